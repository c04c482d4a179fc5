"""On linear models all that an attack can reach is known: the nearest boundary in the box, and the highest loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.core.minimum import MinimumNorm
from jaxrobust.types import Classifier
from tests import tiny
from tests.references import hyperplane

KEY = jax.random.key(7)
COUNT = 5
BALLS = {
    "linf": sets.Linf(1.0),
    "l2": sets.L2(1e4),
    "l1": sets.L1(1e4),
    "l0": sets.L0(1e4),
    "l0-coordinate": sets.L0(1e4, "coordinate"),
}
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
# how far class 0 leads at least, in logits: by several changes in l0
LEADS = dict.fromkeys(ORDERS, 1.0) | {"l0": 8.0, "l0-coordinate": 8.0}


def minimal_pgd(ball):
    return attacks.minimal(attacks.pgd(ball, steps=20, random_start=False), steps=14)


fab = functools.partial(attacks.fab, steps=30)
fmn = functools.partial(attacks.fmn, steps=300)
cw = functools.partial(attacks.carlini_wagner, steps=200)
ead = functools.partial(attacks.ead, steps=300, rounds=10, constant=1.0, shrinkage=0.1, decision="l1")

# The class of every minimum-norm attack and the norms that it takes: how it is run, and how far above the closed form
# it may come, by so large a share of the distance, in l0 by so many changes.
SEARCHES = {
    ("DeepFool", "l2"): (attacks.deepfool, 0.0201),
    ("DeepFool", "linf"): (attacks.deepfool, 0.0201),
    ("FAB", "l1"): (fab, 0.01),
    ("FAB", "l2"): (fab, 0.01),
    ("FAB", "linf"): (fab, 0.01),
    ("FMN", "l1"): (fmn, 0.001),
    ("FMN", "l2"): (fmn, 0.001),
    ("FMN", "linf"): (fmn, 0.001),
    ("FMN", "l0"): (fmn, 1),
    ("FMN", "l0-coordinate"): (fmn, 4),
    ("DDN", "l2"): (functools.partial(attacks.ddn, steps=300, levels=None), 0.005),
    ("CarliniWagnerL2", "l2"): (functools.partial(cw, constant=1.0), 0.02),
    ("CarliniWagnerLinf", "linf"): (functools.partial(cw, constant=0.1), 0.12),
    ("CarliniWagnerL0", "l0"): (functools.partial(attacks.carlini_wagner, steps=100, rounds=60), 1),
    ("CarliniWagnerL0", "l0-coordinate"): (functools.partial(attacks.carlini_wagner, steps=100, rounds=60), 2),
    ("EAD", "l1"): (ead, 0.05),
    ("Minimal", "l1"): (minimal_pgd, 0.01),
    ("Minimal", "l2"): (minimal_pgd, 0.005),
    ("Minimal", "linf"): (minimal_pgd, 0.001),
    ("Minimal", "l0"): (minimal_pgd, 2),
    ("Minimal", "l0-coordinate"): (minimal_pgd, 2),
    ("SigmaZero", "l0"): (functools.partial(attacks.sigma_zero, steps=200), 5),
    ("SigmaZero", "l0-coordinate"): (functools.partial(attacks.sigma_zero, steps=200), 2),
}
# What these find is known in closed form too, but is not the nearest boundary: a half-space's where they need a start
# beyond it, a path's of their own, or no single change can be put back. Their own tests compare with that.
ELSEWHERE = {"Boundary", "HopSkipJump", "JSMA", "SparseFool", "Pointwise", "CornerSearch"}
# in the default run
FEW = {("DeepFool", "linf", 10, True), ("FAB", "l1", 10, True), ("FMN", "l2", 3, False), ("EAD", "l1", 3, False)}
CASES = [
    pytest.param(
        *row,
        classes,
        near,
        id="-".join((*row, f"K{classes}", "near" if near else "far")),
        marks=[] if (*row, classes, near) in FEW else [pytest.mark.slow],
    )
    for row in SEARCHES
    for classes, near in ((2, True), (3, False), (10, True))
]


def test_every_minimum_norm_attack_has_its_row():
    """In every norm that it takes: who registers one is asked for its limit."""
    found = set()
    for entry in attacks.REGISTRY.values():
        for norm, ball in BALLS.items():
            try:
                made = entry(ball)
            except (TypeError, ValueError):
                continue  # not in this norm
            if isinstance(made, (MinimumNorm, attacks.Minimal)):
                found.add((type(made).__name__, norm))
    assert {row for row in found if row[0] not in ELSEWHERE} == set(SEARCHES)
    assert {name for name, _ in found} >= ELSEWHERE


@functools.cache
def problem(classes, near, lead):
    """A linear model whose class 0 leads by at least so much, and those of 400 images with the clearest second class.

    Attacks that follow the margin go to the class of the second largest logit; the closed form is of the nearest class.
    """
    rng = np.random.default_rng(classes)
    weights, low = rng.normal(size=(int(np.prod(tiny.SHAPE)), classes)) / 2, 0.05 if near else 0.35
    images = rng.uniform(low, 1 - low, (400, *tiny.SHAPE)).astype(np.float32)
    logits = images.reshape(400, -1) @ weights
    bias = np.zeros(classes)
    bias[0] = lead + np.max(logits[:, 1:] - logits[:, :1])
    apart = (logits[:, :1] + bias[0] - logits[:, 1:]) / np.linalg.norm(weights[:, 1:] - weights[:, :1], axis=0)
    apart = np.sort(apart, 1)
    images = images[np.argsort(-apart[:, 1] / apart[:, 0])[:COUNT]] if classes > 2 else images[:COUNT]
    return Classifier(tiny.linear, (jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32))), images


@functools.cache
def closed_form(classes, near, lead, norm):
    """(images,) the least size that leaves class 0: by general-purpose solvers, in l0 entry by entry, best first."""
    model, images = problem(classes, near, lead)
    weights, logits = np.asarray(model.params[0], float), np.asarray(model(images), float)
    found = np.full((COUNT, classes), np.inf)
    for i, x in enumerate(images.reshape(COUNT, -1).astype(float)):
        for k in range(1, classes):
            normal, margin = weights[:, k] - weights[:, 0], logits[i, 0] - logits[i, k]
            if norm in ORDERS:
                nearest = hyperplane.nearest(x, normal, margin, ORDERS[norm])
                if nearest is not None:
                    found[i, k] = np.linalg.norm(nearest, ORDERS[norm])
            else:
                gains = np.maximum(normal * (1 - x), -normal * x)
                gains = gains if norm == "l0-coordinate" else gains.reshape(-1, tiny.SHAPE[-1]).sum(1)
                found[i, k] = np.sum(np.cumsum(-np.sort(-gains)) <= margin) + 1
    return found.min(1)


@pytest.mark.parametrize(("name", "norm", "classes", "near"), CASES)
def test_the_nearest_boundary_is_found(name, norm, classes, near):
    make, excess = SEARCHES[name, norm]
    lead = LEADS[norm]
    model, images = problem(classes, near, lead)
    found = attacks.run(make(BALLS[norm]), model, images, np.zeros(COUNT, np.int32), key=KEY)
    expected, size = closed_form(classes, near, lead, norm), np.asarray(found.size)
    assert type(make(BALLS[norm])).__name__ == name
    assert found.success.all()
    above = size / expected - 1 if norm in ORDERS else size - expected
    print(f"{name} {norm} K={classes} {'near' if near else 'far'}: {above.min():.5f} to {above.max():.5f} of {excess}")
    assert (above >= (-1e-4 if norm in ORDERS else 0)).all(), (size, expected)
    assert (above <= excess).all(), (size, expected)


# The share of the highest gain in the margin that must be reached. PGD in l1 has no row: from a random start, most of
# whose entries are of no use, it refills on so small images the few best entries after every projection.
ASCENTS = {
    "fgsm": (lambda ball: attacks.fgsm(ball, loss="margin"), {"linf": 0.9999}),
    "pgd": (lambda ball: attacks.pgd(ball, steps=50, loss="margin"), {"linf": 0.999, "l2": 0.97}),
    "apgd": (lambda ball: attacks.apgd(ball, steps=50, loss="margin"), {"linf": 0.999, "l2": 0.99, "l1": 0.75}),
    "frank_wolfe": (lambda ball: attacks.frank_wolfe(ball, steps=50, loss="margin"), dict.fromkeys(ORDERS, 0.99)),
}
MOVES = {"linf": 0.2, "l2": 1.5, "l1": 3.0}
ROWS = [
    pytest.param(name, norm, marks=[] if (name, norm) == ("apgd", "l2") else [pytest.mark.slow])
    for name, (_, shares) in ASCENTS.items()
    for norm in shares
]


@pytest.mark.parametrize(("name", "norm"), ROWS)
def test_the_highest_loss_is_reached(name, norm):
    """Of two classes, where the box takes part: the radius at which the hyperplane is as far as the gain says."""
    make, shares = ASCENTS[name]
    model, images = problem(2, True, 30.0)
    found = attacks.run(make(BALLS[norm].with_radius(MOVES[norm])), model, images, np.zeros(COUNT, np.int32), key=KEY)
    logits = np.asarray(model(images), float)
    gain = np.asarray(found.loss, float) - (logits[:, 1] - logits[:, 0])
    normal = np.asarray(model.params[0][:, 1] - model.params[0][:, 0], float)
    # whoever gains so much cannot come with less than this size, and the radius allows no more
    for x, reached in zip(images.reshape(COUNT, -1).astype(float), gain, strict=True):
        least = np.linalg.norm(hyperplane.nearest(x, normal, reached * (1 - 1e-5), ORDERS[norm]), ORDERS[norm])
        more = hyperplane.nearest(x, normal, reached / shares[norm], ORDERS[norm])
        assert least <= MOVES[norm] * (1 + 1e-5)
        assert more is None or np.linalg.norm(more, ORDERS[norm]) >= MOVES[norm] * (1 - 1e-5)
