"""Writes apgd.npz: the points that the authors' APGD asks about a tiny network, in float64.

It runs in an environment of its own, which needs `pip install pyautoattack==0.2.0 torch numpy`, and not this package:

    python tests/references/make_autoattack_fixtures.py tests/fixtures

Three things of the authors' code are mended here, because ours mends them too; all else runs as released.
1. The first check of l∞ and l2 compares the first step's loss with an unwritten buffer's zero; here with the loss at
   the start. `differs_<case>` says for which examples the released code goes another way.
2. In l1 it counts entries as changed that differ from the image by rounding alone; here only those beyond 1e-9.
3. In l1 it projects in single precision, and truncates a quantile's index that rounding may have put just below a
   whole number; here the projection is in double precision and the index is raised by 1e-9 first.
"""

import inspect
import sys
from pathlib import Path

import numpy as np
import torch
from pyautoattack import autopgd_base
from torch.nn import functional

SHAPE, HIDDEN, CLASSES, COUNT, STEPS = (4, 3, 2), 10, 5, 3, 20
RADII = {"Linf": 0.2, "L2": 0.4, "L1": 1.5}
INDEX = "(1. - topk) * n_fts"


def mended_module():
    """The authors' module with changes 2 and 3, made in its text."""
    projection, attacks = inspect.getsource(autopgd_base).split("class APGDAttack()")
    assert attacks.count(INDEX) == 1
    text = f"{projection.replace('.float()', '.double()')}class APGDAttack(){attacks.replace(INDEX, INDEX + ' + 1e-9')}"
    module = type(autopgd_base)("mended")
    module.__package__ = autopgd_base.__package__
    exec(compile(text, "mended", "exec"), module.__dict__)
    module.L0_norm = lambda x: (x.abs() > 1e-9).view(x.shape[0], -1).sum(-1)
    return module


def run(module, norm, loss, network, batch, *, mend=True, large=False):
    """All points asked (asks, N, H, W, C) by one of their attacks."""
    images, labels, targets = batch
    asked = []

    def model(points):
        asked.append(points.detach().clone())
        return network(points)

    targeted = loss == "dlr-targeted"

    class Attack(module.APGDAttack_targeted if targeted else module.APGDAttack):
        """Change 1: the buffer's last row, which the first check reads, holds the loss at the start."""

        def check_oscillation(self, x, j, k, y5, k3=0.75):
            if mend and j == k - 1:
                logits = network(asked[0])
                x = x.clone()
                x[-1] = {
                    "ce": lambda: functional.cross_entropy(logits, labels, reduction="none"),
                    "dlr": lambda: self.dlr_loss(logits, labels),
                    "dlr-targeted": lambda: self.dlr_loss_targeted(logits, labels),
                }[loss]().detach()
            return super().check_oscillation(x, j, k, y5, k3)

    made = Attack(model, n_iter=STEPS, norm=norm, eps=RADII[norm], **({} if targeted else {"loss": loss}))
    made.init_hyperparam(images)
    made.y_target = targets
    torch.manual_seed(3)
    if large:
        lengths = [round(share * STEPS) for share in (0.3, 0.3, 0.4)]
        made.decr_eps_pgd(images, labels, [scale * RADII[norm] for scale in (3.0, 2.0, 1.0)], lengths)
    else:
        made.attack_single_run(images, labels)
    return torch.stack(asked).numpy()


def main(folder):
    """Writes the file."""
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(5)
    hidden, out = rng.normal(size=(int(np.prod(SHAPE)), HIDDEN)), rng.normal(size=(HIDDEN, CLASSES))
    images = torch.tensor(rng.uniform(0, 1, (2000, *SHAPE)))

    def network(points):
        return functional.silu((points.reshape(len(points), -1) - 0.5) @ torch.tensor(hidden)) @ torch.tensor(out)

    # where DLR is 1 its gradient is rounding alone, which no two programs share: so images that stay far from there
    top = network(images).sort(dim=1)[0]
    images = images[torch.argsort(top[:, -2] - top[:, -1])[:COUNT]]
    order = network(images).sort(dim=1)[1]
    batch = images, order[:, -1], order[:, -2]
    found = {"hidden": hidden, "out": out, "images": images.numpy(), "labels": order[:, -1].numpy()}
    found |= {f"radius_{norm}": np.float64(radius) for norm, radius in RADII.items()}
    module = mended_module()
    for norm in RADII:
        for loss in ("ce", "dlr", "dlr-targeted"):
            points = run(module, norm, loss, network, batch)
            found[f"{norm}_{loss}"] = points
            if norm != "L1":
                released = run(module, norm, loss, network, batch, mend=False)
                found[f"differs_{norm}_{loss}"] = np.abs(points - released).max((0, 2, 3, 4)) > 1e-6
                print(norm, loss, "released code goes another way:", found[f"differs_{norm}_{loss}"])
    found["L1_ce_large"] = run(module, "L1", "ce", network, batch, large=True)
    path = Path(folder) / "apgd.npz"
    np.savez_compressed(path, **found)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
