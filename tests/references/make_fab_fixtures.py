"""Writes tests/fixtures/fab.npz with the FAB of PyPI `pyautoattack` 0.2.0, in float64.

To be run in an environment of its own (pip install pyautoattack==0.2.0 torch numpy):
python tests/references/make_fab_fixtures.py
"""

import pathlib

import numpy as np
import torch
from pyautoattack.fab_pt import FABAttack_PT

SHAPE, CLASSES, COUNT, STEPS = (4, 3, 2), 4, 2, 20
NORMS = ("Linf", "L2", "L1")


def problem():
    """A small network with one hidden layer, images that reach the box, and their labels."""
    rng = np.random.default_rng(5)
    size = int(np.prod(SHAPE))
    hidden, out = rng.normal(size=(size, 12)) / 2, rng.normal(size=(12, CLASSES))
    images = rng.random((COUNT, *SHAPE))
    labels = (np.tanh(images.reshape(COUNT, -1) @ hidden) @ out).argmax(-1)
    return hidden, out, images, labels


def main():
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # the package casts to float32
    hidden, out, images, labels = problem()
    weights = torch.tensor(hidden), torch.tensor(out)
    kept = {"hidden": hidden, "out": out, "images": images, "labels": labels}

    def network(x):
        return torch.tanh(x.reshape(len(x), -1) @ weights[0]) @ weights[1]

    for norm in NORMS:
        for targeted in (False, True):
            attack = FABAttack_PT(network, norm=norm, n_iter=STEPS, eps=100.0, targeted=targeted)
            attack.target_class = 2  # the second largest logit
            asked, predict = [], attack._get_predicted_label

            def recording(x, asked=asked, predict=predict):
                asked.append(x.detach().numpy().copy())
                return predict(x)

            attack._get_predicted_label = recording
            arguments = torch.tensor(images), torch.tensor(labels)
            found = attack.attack_single_run(*arguments, use_rand_start=False, is_targeted=targeted)
            name = f"{norm}{'_t' if targeted else ''}"
            kept[name] = np.stack(asked[1:])  # the first is the clean image
            kept[f"{name}_found"] = found.numpy()
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "fab.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **kept)


if __name__ == "__main__":
    main()
