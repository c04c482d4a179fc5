"""Minimum-norm attacks: their targets, what their radius says, and models that go wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.compose.minimal import minimal
from jaxrobust.attacks.minimum_norm.carlini_wagner import carlini_wagner
from jaxrobust.attacks.minimum_norm.ddn import ddn
from jaxrobust.attacks.minimum_norm.deepfool import deepfool
from jaxrobust.attacks.minimum_norm.ead import ead
from jaxrobust.attacks.minimum_norm.fab import fab
from jaxrobust.attacks.minimum_norm.fmn import fmn
from jaxrobust.types import Classifier, Targeted
from tests import tiny
from tests.attacks.test_laws import KEY
from tests.references import hyperplane

LARGE = {0: sets.L0(1e4), 1: sets.L1(1e4), 2: sets.L2(1e4), np.inf: sets.Linf(1.0)}
COUNT = 5


def ddn_without_levels(set, steps=300):
    return ddn(set, steps=steps, levels=None)


def linear_problem(rng, classes=tiny.CLASSES):
    """A linear model, images away from the box and near the boundary, and their labels."""
    model = tiny.linear_classifier(rng, classes=classes, scale=0.5)
    images = rng.uniform(0.35, 0.65, (COUNT, *tiny.SHAPE)).astype(np.float32)
    return model, images, np.asarray(model(images).argmax(-1))


def distances(model, images, labels, p):
    """To every other class: margin/‖w_k − w_y‖_q where the box is far, by linear programming in l1; ∞ for the label."""
    weights, logits = np.asarray(model.params[0], float), np.asarray(model(images), float)
    found = np.full(logits.shape, np.inf)
    for i, label in enumerate(labels):
        for k in set(range(logits.shape[1])) - {label}:
            normal, margin = weights[:, k] - weights[:, label], logits[i, label] - logits[i, k]
            if p == 1:
                nearest = hyperplane.nearest(images[i], normal, margin, 1)
                found[i, k] = np.inf if nearest is None else np.abs(nearest).sum()
            else:
                found[i, k] = margin / np.linalg.norm(normal, {2: 2, np.inf: 1}[p])
    return found


def run(attack, model, images, goal, **settings):
    return attacks.run(attack, model, images, goal, key=KEY, **settings)


def fewest(model, images, labels, coordinates):
    """How many coordinates or pixels must change: those that gain most go to their bounds until a margin is met."""
    weights, logits = np.asarray(model.params[0], float), np.asarray(model(images), float)
    found = []
    for x, z, label in zip(images, logits, labels, strict=True):
        normals = (weights - weights[:, label : label + 1]).T.reshape(-1, *tiny.SHAPE)
        gains = np.maximum(normals * (1 - x), -normals * x)
        gains = gains.reshape(len(gains), -1) if coordinates else gains.sum(-1).reshape(len(gains), -1)
        totals = np.cumsum(-np.sort(-gains, 1), 1)
        found.append(min((t <= z[label] - z[k]).sum() + 1 for k, t in enumerate(totals) if k != label))
    return np.array(found)


SHORT = [
    ("deepfool", lambda: deepfool(sets.L2(1.0), steps=3)),
    ("deepfool_linf", lambda: deepfool(sets.Linf(0.1), steps=3)),
    ("fab", lambda: fab(sets.Linf(0.1), steps=2)),
    ("fab_t", lambda: fab(sets.L1(5.0), steps=2, targets=9)),
    ("fmn", lambda: fmn(sets.L1(5.0), steps=3)),
    ("fmn_l0", lambda: fmn(sets.L0(5), steps=3)),
    ("ddn", lambda: ddn(sets.L2(1.0), steps=3)),
    ("cw", lambda: carlini_wagner(sets.L2(1.0), steps=3, rounds=2)),
    ("cw_linf", lambda: carlini_wagner(sets.Linf(0.1), steps=3, rounds=2)),
    ("cw_l0", lambda: carlini_wagner(sets.L0(5), steps=3, rounds=2)),
    ("ead", lambda: ead(sets.L1(5.0), steps=3, rounds=2)),
    ("minimal", lambda: minimal(attacks.pgd(sets.Linf(0.1), steps=2), steps=2)),
]
UNTARGETED = {"deepfool", "deepfool_linf", "fab"}
# by default one attack that is done early and one that is not
FEW = {"deepfool", "fmn"}
CASES = [pytest.param(name, make, id=name, marks=[] if name in FEW else [pytest.mark.slow]) for name, make in SHORT]


TARGETED = [
    ("fab_t", functools.partial(fab, steps=40, targets=1), 2),
    ("fmn", functools.partial(fmn, steps=300), 2),
    ("fmn", functools.partial(fmn, steps=300), np.inf),
    ("ddn", ddn_without_levels, 2),
    ("cw", functools.partial(carlini_wagner, steps=200, constant=1.0), 2),
    ("ead", functools.partial(ead, steps=300, rounds=10, constant=1.0, shrinkage=0.1, decision="l1"), 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "p"), [pytest.param(*case, id=f"{case[0]}-l{case[2]}") for case in TARGETED])
def test_targets_of_a_linear_model(name, make, p, rng):
    # of three classes the third is out of the way, so the target's boundary is the one to the true class
    model, images, labels = linear_problem(rng, classes=3)
    weights, _ = model.params
    model = Classifier(tiny.linear, (weights, jnp.asarray([0.0, 0, -40])))
    labels = np.asarray(model(images).argmax(-1))
    targets = 1 - labels
    found = run(make(LARGE[p]), model, images, Targeted(targets))
    expected = distances(model, images, labels, p)[np.arange(COUNT), targets]
    assert found.success.all()
    ratio = np.asarray(found.size) / expected
    assert (ratio > 1 - 1e-4).all(), ratio
    assert (ratio < 1.05).all(), ratio


@pytest.mark.parametrize("name", ["deepfool", pytest.param("cw", marks=pytest.mark.slow), "fmn"])
def test_what_is_farther_than_the_radius_is_no_success(name, rng):
    model, images, labels = linear_problem(rng)
    make = {"deepfool": deepfool, "cw": functools.partial(carlini_wagner, steps=50, rounds=3, constant=1.0), "fmn": fmn}
    far = run(make[name](LARGE[2]), model, images, labels)
    assert far.success.all()
    radius = float(np.sort(far.size)[COUNT // 2])
    near = run(make[name](sets.L2(radius)), model, images, labels)
    np.testing.assert_array_equal(near.success, np.asarray(far.size) <= radius)
    np.testing.assert_allclose(near.size[near.success], far.size[near.success], rtol=1e-5)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_float64(name, make):
    with jax.enable_x64(True):
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(60, 3)))
        model = Classifier(tiny.linear, (weights, jnp.zeros(3)))
        images = np.random.default_rng(1).random((2, *tiny.SHAPE))
        found = run(make(), model, images, np.asarray(model(images).argmax(-1)))
        assert found.images.dtype == np.float64
        assert found.size.dtype == np.float64
        assert np.isfinite(found.images).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), CASES)
def test_counts_stay_within_the_schedule(name, make):
    made, model = make(), tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model)
    found = run(made, model, images, labels)
    forwards, backwards = np.asarray(found.forwards[:-1]), np.asarray(found.backwards[:-1])
    assert (forwards <= 1 + made.width * made.asks * made.restarts).all()
    assert (forwards > 1).all()
    assert (backwards <= made.gradients * made.restarts).all()
    if not getattr(made, "ends_early", False):
        assert (forwards == 1 + made.asks).all()
        assert (backwards == made.gradients).all()
