"""Writes square.npz: how many queries the authors' Square attack takes on a small network, image by image.

It runs in an environment of its own, which needs `pip install pyautoattack==0.2.0 torch numpy`, and not this package:

    python tests/references/make_square_fixtures.py tests/fixtures

Every image is attacked alone with a seed of its own, since the released code shares windows and signs over a batch, so
that its images are no independent draws. `released_<norm>` is the package as it is. For `<norm>` two things are mended
that ours mends too: windows may be placed on the last row and column, and in l∞ signs that would change nothing are
drawn anew, as in the attack's first release.
"""

import inspect
import sys
from pathlib import Path

import numpy as np
import torch
from pyautoattack import square

SHAPE, HIDDEN, CLASSES, COUNT, SEEDS, QUERIES = (10, 10, 3), 12, 5, 64, 12, 300
RADII = {"Linf": 0.03, "L2": 0.5, "L1": 3.0}
SIGNS = "self.random_choice([c, 1, 1])"


def problem():
    """Weights of filters two pixels wide, images of a byte an entry, and the labels that the network gives them."""
    rng = np.random.default_rng(11)
    coarse = rng.normal(size=(SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2], HIDDEN))
    hidden = coarse.repeat(2, 0).repeat(2, 1).reshape(-1, HIDDEN) + rng.normal(size=(np.prod(SHAPE), HIDDEN)) / 2
    hidden, out = (hidden / 4).astype(np.float32), rng.normal(size=(HIDDEN, CLASSES)).astype(np.float32)
    images = rng.integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
    logits = np.tanh((images.reshape(COUNT, -1) / 255 - 0.5) @ hidden) @ out
    return {"hidden": hidden, "out": out, "images": images, "labels": logits.argmax(-1)}


def mended_class():
    """The authors' class, both things mended."""
    text = inspect.getsource(square)
    assert text.count(SIGNS) == 1
    module = type(square)("mended")
    module.__package__ = square.__package__
    exec(compile(text.replace(SIGNS, "self.signs(x_curr, x_best_curr, vh, vw, s)"), "mended", "exec"), module.__dict__)

    class Mended(module.SquareAttack):
        def random_int(self, low=0, high=1, shape=(1,)):
            return super().random_int(low, high + 1, list(shape))

        def signs(self, x, current, row, column, side):
            while True:
                signs = self.random_choice([x.shape[1], 1, 1])
                moved = torch.clamp(current + 2 * self.eps * signs, x - self.eps, x + self.eps).clamp(0, 1)
                if ((moved - current).abs() > 1e-7)[:, :, row : row + side, column : column + side].any():
                    return signs

    return Mended


def counts(kind, norm, data):
    """(seeds, images) queries until success, the first point's among them; 0 where the budget does not do."""
    weights = torch.tensor(data["hidden"]), torch.tensor(data["out"])
    images = torch.tensor(data["images"].astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()

    def network(x):
        return torch.tanh((x.permute(0, 2, 3, 1).reshape(len(x), -1) - 0.5) @ weights[0]) @ weights[1]

    attack = kind(network, norm=norm, n_queries=QUERIES - 1, eps=RADII[norm], p_init=0.8, resc_schedule=False)
    found = np.zeros((SEEDS, COUNT), np.uint16)
    for i in range(COUNT):
        x, y = images[i : i + 1], torch.tensor(data["labels"][i : i + 1])
        attack.init_hyperparam(x)
        for seed in range(SEEDS):
            torch.manual_seed(1000 * seed + i)
            queries, best = attack.attack_single_run(x, y)
            found[seed, i] = int(queries) if network(best).argmax(1) != y else 0
    return found


def main(folder):
    """Writes the file."""
    torch.set_num_threads(1)
    data = problem()
    kept = data | {"queries": QUERIES} | {f"radius_{norm}": radius for norm, radius in RADII.items()}
    for norm in RADII:
        for prefix, kind in (("released_", square.SquareAttack), ("", mended_class())):
            found = kept[f"{prefix}{norm}"] = counts(kind, norm, data)
            print(f"{prefix}{norm}: robust {np.mean(found == 0):.4f}, median queries {np.median(found[found > 0])}")
    path = Path(folder) / "square.npz"
    np.savez_compressed(path, **kept)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
