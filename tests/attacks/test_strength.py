"""How strong attacks are: against all points of a grid where four pixels allow that, and against less of themselves."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.losses import cross_entropy
from jaxrobust.types import Classifier
from tests import tiny

KEY = jax.random.key(5)
FEW, COUNT, CLASSES, POINTS = (2, 2, 1), 24, 3, 13
BALLS = {"linf": sets.Linf(0.15), "l2": sets.L2(0.25), "l1": sets.L1(0.4)}
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


@functools.cache
def four_pixels():
    """A network of two layers on images of four pixels, some at the box, and its own labels."""
    rng = np.random.default_rng(3)
    params = {"hidden": rng.normal(size=(4, 12)), "out": rng.normal(size=(12, CLASSES))}
    model = Classifier(tiny.dense_net, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))
    images = rng.uniform(-0.1, 1.1, (COUNT, *FEW)).clip(0, 1).astype(np.float32)
    return model, images, np.asarray(model(images).argmax(-1))


@functools.cache
def on_grid(norm):
    """The highest loss on a grid of the ball, its surface and the box, and whether any of its points is misclassified.

    A member of the ball is δ = t u with u on the surface; the grid holds directions through all points of a cube.
    """
    model, images, labels = four_pixels()
    axis = np.linspace(-1, 1, POINTS)
    cube = np.array([u for u in itertools.product(axis, repeat=4) if np.any(u)])
    size = np.linalg.norm(cube, ORDERS[norm], axis=1, keepdims=True)
    radius = float(BALLS[norm].radius)
    deltas = np.concatenate([radius * cube[size[:, 0] <= 1], radius * cube / size]).reshape(-1, *FEW)

    @jax.jit
    def worst(x, label):
        logits = model(jnp.clip(x[None] + deltas.astype(np.float32), 0, 1))
        losses = jax.vmap(cross_entropy, (0, None))(logits, label)
        return losses.max(), (logits.argmax(-1) != label).any()

    found = [worst(x, label) for x, label in zip(images, labels, strict=True)]
    return np.array([loss for loss, _ in found]), np.array([fooled for _, fooled in found])


# APGD in l1 changes so small a share of the entries that with four it may rest at one
ASCENTS = [("pgd", "linf"), ("pgd", "l2"), ("pgd", "l1"), ("apgd", "linf"), ("apgd", "l2")]


@pytest.mark.parametrize(
    ("name", "norm"), [pytest.param(*c, marks=[] if c == ("apgd", "linf") else [pytest.mark.slow]) for c in ASCENTS]
)
def test_twenty_steps_come_to_the_highest_loss_of_all_points(name, norm):
    make = {"pgd": attacks.pgd, "apgd": attacks.apgd}[name]
    found = attacks.run(make(BALLS[norm], steps=20, restarts=5), *four_pixels(), key=KEY)
    highest, fooled = on_grid(norm)
    share = np.asarray(found.loss) / highest
    print(f"{name} {norm}: at least {share.min():.4f} of the highest loss on the grid, fooled {fooled.mean():.2f}")
    assert 0.2 < fooled.mean() < 0.8
    np.testing.assert_array_equal(found.success, fooled)
    # of 24 images one may rest at another maximum
    assert np.mean(share >= 0.99) >= 0.95
    assert (share >= 0.97).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:square lowers")  # as it says of APGD in l1 above
@pytest.mark.parametrize("norm", BALLS)
def test_autoattack_is_no_weaker_than_the_grid(norm):
    model, images, labels = four_pixels()
    parts = dict(attacks.suite(f"autoattack-{norm}", radius=BALLS[norm].radius))
    parts["square"] = attacks.square(BALLS[norm], queries=300)
    found = evaluate.autoattack(model, (images, labels), key=KEY, attacks=parts, progress=False)
    robust = 1 - on_grid(norm)[1].mean()
    print(f"AutoAttack {norm}: {found.union.accuracy:.3f}, grid {robust:.3f}")
    assert found.union.accuracy <= robust + 1.001 / COUNT


@functools.cache
def problem():
    model = tiny.dense_classifier(3)
    return model, *tiny.images_and_labels(model, 48)


LINF, L2 = sets.Linf(0.02), sets.L2(0.3)
# name -> attacks of which each does more than the one before it; whether it first does all that that one does
MORE = {
    "radius, PGD": ([attacks.pgd(sets.Linf(r), steps=10) for r in (0.005, 0.01, 0.02, 0.04)], False),
    "radius, APGD": ([attacks.apgd(sets.L2(r), steps=10) for r in (0.05, 0.1, 0.2, 0.4)], False),
    "radius, Square": ([attacks.square(sets.Linf(r), queries=100) for r in (0.01, 0.02, 0.04, 0.08)], False),
    "steps, PGD": ([attacks.pgd(LINF, steps=n, step_size=0.004) for n in (1, 3, 10, 30)], True),
    "steps, APGD": ([attacks.apgd(LINF, steps=n) for n in (2, 5, 20)], False),
    "steps, FMN": ([attacks.fmn(L2, steps=n) for n in (3, 10, 50)], False),
    "restarts, APGD": ([attacks.apgd(LINF, steps=3, restarts=n) for n in (1, 2, 5)], True),
    "restarts, Square": ([attacks.square(LINF, queries=30, restarts=n) for n in (1, 2, 4)], True),
    "queries, Square": ([attacks.square(LINF, queries=n) for n in (10, 50, 250)], True),
    "queries, Boundary": ([attacks.boundary(sets.L2(0.8), queries=n) for n in (100, 300, 900)], True),
    "queries, Sparse-RS": ([attacks.sparse_rs(sets.L0(3), queries=n) for n in (10, 40, 160)], False),
    "samples, worst of k": ([attacks.worst_of_k(sets.Linf(0.1), samples=n) for n in (1, 10, 100)], True),
    "members": (
        [
            attacks.worst_of(*members)
            for members in itertools.accumulate(
                [(attacks.fgsm(LINF),), (attacks.pgd(sets.L2(0.2), steps=3),), (attacks.pgd(LINF, steps=3),)]
            )
        ],
        True,
    ),
}
DEFAULT = {"radius, PGD"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in DEFAULT else [pytest.mark.slow], id=n.replace(", ", "-")) for n in MORE]
)
def test_more_never_helps_the_defender(name):
    """More radius, steps, restarts, queries or members of a union: robust accuracy does not rise."""
    row, nested = MORE[name]
    found = [attacks.run(made, *problem(), key=KEY) for made in row]
    fooled, loss = (np.stack([getattr(one, field) for one in found]) for field in ("success", "loss"))
    assert (np.diff(fooled.mean(1)) >= 0).all()
    assert not nested or (np.diff(fooled.astype(int), axis=0) >= 0).all()
    # the last does more indeed, or the row says nothing
    assert ((fooled[-1] > fooled[0]) | (loss[-1] > loss[0] + 1e-6)).any()
