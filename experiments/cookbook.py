"""The ten daily jobs, each in a few lines: `python -m experiments.cookbook table`, or several names, or all by none.

They run on the embedded digits, 40 images of them, in seconds; put your own model, data and numbers in their place.
"""

from __future__ import annotations

import functools
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression

import jaxrobust as jr
from jaxrobust import attacks, evaluate, sets

KEY = jax.random.key(0)


@functools.cache
def digits(split="test[:40]"):
    """Images (N, 8, 8, 1) in [0, 1] and labels (N,)."""
    images, labels = jr.data.load("digits", split)
    return images, labels


@functools.cache
def model(strength=1.0):
    """A linear classifier; yours is `jr.Classifier.from_nnx(network)` or one of its siblings."""
    images, labels = digits("train")
    fitted = LogisticRegression(C=strength, max_iter=300).fit(images.reshape(len(images), -1), labels)
    weights = np.float32(fitted.coef_.T), np.float32(fitted.intercept_[None])
    return jr.Classifier(lambda p, x: x.reshape(x.shape[0], -1) @ p[0] + p[1], weights)


def table():
    """Accuracy at several ε, by one attack, which compiles once."""
    radii = [0, 0.05, 0.1, 0.2]
    robust = evaluate.curve(model(), digits(), attacks.pgd(sets.Linf(0.1), steps=10), radii, key=KEY)
    return "\n".join(f"l∞ {radius:<5} {accuracy:6.1%}" for radius, accuracy in zip(radii, robust, strict=True))


def images():
    """Adversarial images as PNG files, with a list of which are still adversarial after rounding to 8 bits."""
    report = evaluate.robustness(model(), digits(), {"pgd": attacks.pgd(sets.Linf(0.1), steps=10)}, key=KEY)
    folder = report.save_images(pathlib.Path(tempfile.mkdtemp()))  # report["pgd"].images are the arrays
    return f"{len(list(folder.rglob('*.png')))} files; the list begins\n" + (folder / "images.csv").read_text()[:160]


def distances():
    """The minimal distance of every image, from which the whole curve follows."""
    report = evaluate.robustness(model(), digits(), {"fmn": attacks.fmn(sets.L2(10.0), steps=30)}, key=KEY)
    found, radii = report["fmn"], [0.25, 0.5, 1.0]
    robust = ", ".join(
        f"{accuracy:.1%} at {radius}" for radius, accuracy in zip(radii, found.curve(radii), strict=True)
    )
    return f"median l2 distance {found.median_distance:.3f}; robust: {robust}"


def compare():
    """Three attacks on one set: each alone, and their worst case."""
    ball = sets.Linf(0.1)
    three = {"fgsm": attacks.fgsm(ball), "pgd": attacks.pgd(ball, steps=10), "apgd": attacks.apgd(ball, steps=10)}
    return str(evaluate.robustness(model(), digits(), three, key=KEY))


def targets():
    """Towards given classes: success is the target's label and no other."""
    x, y = digits()
    goal = jr.Targeted((y + 1) % 10, y)
    return str(evaluate.robustness(model(), (x, goal), {"targeted": attacks.pgd(sets.Linf(0.2), steps=10)}, key=KEY))


def transfer():
    """What is crafted on one model, scored on another without a look at it."""
    both = {"strong": model(1.0), "weak": model(0.01)}
    return str(evaluate.transfer(both, both, digits(), attacks.mi_fgsm(sets.Linf(0.15), steps=10), key=KEY))


def train():
    """Adversarial training of a residual network; here a narrow one on 64 digits, on CIFAR-10 as in the comment."""
    # flip = functools.partial(jr.data.augment.batch, transform=jr.data.augment.random_flip)
    # jr.training.fit(jr.models.PreActResNet(rngs=nnx.Rngs(0)), jr.data.load("cifar10", "train"), key=KEY, augment=flip,
    #     objective=jr.training.adversarial(attacks.pgd(sets.Linf(8 / 255), steps=10)), run_dir="runs/cifar",
    #     config=jr.training.TrainConfig(epochs=100))
    network = jr.models.PreActResNet(stages=(1,), widths=(8,), channels=1, mean=(), std=(), rngs=nnx.Rngs(0))
    objective = jr.training.adversarial(attacks.rs_fgsm(sets.Linf(0.1)))
    config = jr.training.TrainConfig(epochs=1, batch_size=32)
    result = jr.training.fit(network, digits("train[:64]"), objective=objective, key=KEY, config=config, progress=False)
    return str(result.history[-1])


def shell():
    """A figure from the shell; `--suite autoattack-linf` in place of `--attack` for a standard one."""
    folder = pathlib.Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "jaxrobust", "evaluate", "--model", "experiments.cookbook:model"]
    command += ["--data", "digits:test[:40]", "--attack", "fgsm:linf:0.1", "--out", str(folder / "run")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def torch():
    """A PyTorch module, white-box, its own gradients."""
    try:
        import torch
    except ImportError:
        return "skipped: PyTorch is not installed (pip install 'jaxrobust[torch]')"
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    weights, bias = (torch.tensor(np.asarray(number)) for number in model().params)
    module[1].weight.data, module[1].bias.data = weights.T.contiguous(), bias[0]
    attack = attacks.pgd(sets.Linf(0.1), steps=10)
    return str(evaluate.robustness(evaluate.TorchModel(module), digits(), {"pgd": attack}, key=KEY))


def queries():
    """A black box: a function of NumPy arrays, asked at most 100 times an image."""
    weights, bias = model().params
    box = evaluate.HostModel(lambda x: x.reshape(len(x), -1) @ weights + bias, classes=10)
    report = evaluate.robustness(box, digits(), {"square": attacks.square(sets.Linf(0.2), queries=100)}, key=KEY)
    budgets = [10, 30, 100]
    left = evaluate.queries_curve(report["square"], budgets)
    return ", ".join(f"{share:.1%} robust after {budget}" for budget, share in zip(budgets, left, strict=True))


JOBS = {
    job.__name__: job for job in (table, images, distances, compare, targets, transfer, train, shell, torch, queries)
}


def main(names):
    """Run jobs by name, all by default, and print what they say."""
    if unknown := set(names) - set(JOBS):
        sys.exit(f"jobs must be among {', '.join(JOBS)}; got {', '.join(sorted(unknown))}")
    for name in names or JOBS:
        print(f"{name}: {JOBS[name].__doc__}\n\n{JOBS[name]()}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
