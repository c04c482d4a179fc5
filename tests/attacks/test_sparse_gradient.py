"""σ-zero, SparseFool and PGD₀ on linear models, whose best sparse changes are known, and on models that go wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.gradient.pgd_0 import pgd_0
from jaxrobust.attacks.minimum_norm.sigma_zero import sigma_zero
from jaxrobust.attacks.minimum_norm.sparse_fool import sparse_fool
from jaxrobust.types import Classifier, Targeted
from tests import tiny
from tests.attacks.test_minimum_norm import fewest

KEY = jax.random.key(5)
MAKE = {
    "sigma_zero": functools.partial(sigma_zero, steps=100),
    "sparse_fool": sparse_fool,
    "pgd_0": functools.partial(pgd_0, steps=5, restarts=2),
}


def strong_class(rng, classes=tiny.CLASSES):
    """A linear model whose first class takes several pixels to leave, and images of it."""
    model = tiny.linear_classifier(rng, classes=classes, scale=0.5)
    model = Classifier(tiny.linear, (model.params[0], jnp.asarray([6.0, *[0.0] * (classes - 1)])))
    images = rng.uniform(0.35, 0.65, (5, *tiny.SHAPE)).astype(np.float32)
    return model, images, np.zeros(5, np.int32)


@pytest.mark.parametrize("per", ["coordinate", pytest.param("pixel", marks=pytest.mark.slow)])
def test_sigma_zero_finds_the_fewest_changes_of_a_linear_model(per, rng):
    model, images, labels = strong_class(rng)
    expected = fewest(model, images, labels, per == "coordinate")
    assert expected.min() >= 2
    found = attacks.run(sigma_zero(sets.L0(1e4, per), steps=100), model, images, labels, key=KEY)
    assert found.success.all()
    size = np.asarray(found.size)
    assert (size >= expected).all()
    # it thresholds coordinates, so by pixel it is somewhat further from the fewest
    assert (size <= expected + (2 if per == "coordinate" else 3)).all(), (size, expected)


@pytest.mark.parametrize("reach", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_sparse_fool_moves_the_heaviest_coordinates_of_a_linear_model(reach, rng):
    model, images, labels = strong_class(rng, classes=2)
    made = sparse_fool(sets.L0(1e4, "coordinate"), reach=reach, overshoot=0.1)
    found = attacks.run(made, model, images, labels, key=KEY)
    assert found.success.all()
    normal = np.asarray(model.params[0], float)[:, 1] - np.asarray(model.params[0], float)[:, 0]
    order, length = np.argsort(-np.abs(normal)), np.linalg.norm(normal)
    logits = np.asarray(model(images), float)
    for x, z, delta in zip(images, logits, np.asarray(found.parameters).reshape(len(images), -1), strict=True):
        room = np.where(normal > 0, 1 - x.ravel(), x.ravel())[order]
        needed = reach * (z[0] - z[1]) / length + 1e-3
        count = int((np.cumsum(np.abs(normal[order]) / length * room) < needed).sum()) + 1
        assert set(np.flatnonzero(delta)) == set(order[:count])
        assert (np.sign(delta[order[:count]]) == np.sign(normal[order[:count]])).all()
    # the clean image, DeepFool's step, the point of the normal and the sparse point
    np.testing.assert_array_equal(found.forwards, 1 + 4)
    np.testing.assert_array_equal(found.backwards, 2)


def test_sigma_zero_follows_its_published_steps(rng):
    """Against the same steps in NumPy, with the gradient of a linear model."""
    model, images, _ = strong_class(rng, classes=2)
    steps, weights = 30, np.asarray(model.params[0], float)
    x, delta = images[0].ravel().astype(float), np.zeros(60)
    mean, square, threshold, best = np.zeros(60), np.zeros(60), 0.3, np.inf
    for i in range(steps + 1):
        z = (x + delta) @ weights + np.array([6.0, 0])
        if z[1] > z[0]:
            best = min(best, (delta != 0).sum())
        length, ahead = (0.1 + 0.9 * (1 + np.cos(np.pi * j / steps)) / 2 for j in (i, i + 1))
        gradient = 2 * delta * 1e-3 / (delta**2 + 1e-3) ** 2 / 60
        gradient += (weights[:, 0] - weights[:, 1]) * (z[0] >= z[1])
        gradient /= np.abs(gradient).max()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        move = mean / (1 - 0.9 ** (i + 1)) / (np.sqrt(square / (1 - 0.999 ** (i + 1))) + 1e-8)
        delta = np.clip(delta - length * move, -x, 1 - x)
        threshold = np.clip(threshold + (0.01 if z[1] > z[0] else -0.01) * ahead, 0, 1)
        delta[np.abs(delta) < threshold] = 0
    made = sigma_zero(sets.L0(1e4, "coordinate"), steps=steps)
    with jax.enable_x64(True):
        double = Classifier(tiny.linear, (jnp.asarray(weights), jnp.asarray([6.0, 0])))
        found = attacks.run(made, double, images[:1].astype(np.float64), np.zeros(1, int), key=KEY)
    assert np.isfinite(best)
    assert float(found.size[0]) == best
    assert (int(found.forwards[0]), int(found.backwards[0])) == (steps + 2, steps)


@pytest.mark.slow
def test_sigma_zero_meets_targets(rng):
    model = tiny.linear_classifier(rng, scale=0.5)
    images = rng.uniform(0.35, 0.65, (5, *tiny.SHAPE)).astype(np.float32)
    targets = (np.asarray(model(images).argmax(-1)) + 1) % tiny.CLASSES
    found = attacks.run(MAKE["sigma_zero"](sets.L0(1e4)), model, images, Targeted(targets), key=KEY)
    assert found.success.all()
    np.testing.assert_array_equal(model(found.images).argmax(-1), targets)


@pytest.mark.slow
@pytest.mark.parametrize("linf", [False, True])
def test_pgd_0_finds_the_best_member_for_a_linear_model(linf, rng):
    model, images, labels = strong_class(rng, classes=2)
    normal = np.asarray(model.params[0])[:, 1] - np.asarray(model.params[0])[:, 0]
    normal = normal.reshape(tiny.SHAPE).astype(np.float32)
    ball = sets.L0Linf(3, 0.2) if linf else sets.L0(3)
    found = attacks.run(pgd_0(ball, loss="margin"), model, images, labels, key=KEY)
    best = jax.vmap(ball.maximise)(images, jnp.broadcast_to(normal, images.shape))
    gains = [np.sum(normal * np.asarray(theta), (1, 2, 3)) for theta in (found.parameters, best)]
    np.testing.assert_allclose(gains[0], gains[1], rtol=1e-4)
    np.testing.assert_array_equal(found.forwards, 1 + 10 * 21)
    np.testing.assert_array_equal(found.backwards, 10 * 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_float64(name):
    with jax.enable_x64(True):
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(60, 3)))
        model = Classifier(tiny.linear, (weights, jnp.zeros(3)))
        images = np.random.default_rng(1).random((2, *tiny.SHAPE))
        found = attacks.run(MAKE[name](sets.L0(5)), model, images, np.asarray(model(images).argmax(-1)), key=KEY)
        assert found.images.dtype == np.float64
        assert found.size.dtype == np.float64


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="set must be L0 for sigma_zero"):
        sigma_zero(sets.L1(1.0))
    with pytest.raises(ValueError, match="set must be L0 for sparse_fool"):
        sparse_fool(sets.L1(1.0))
    with pytest.raises(TypeError, match=r"set must be sparse, such as L0\(24\); got L1"):
        pgd_0(sets.L1(1.0))
    with pytest.raises(ValueError, match="candidates must be >= 2; got 1"):
        sparse_fool(sets.L0(1), candidates=1)
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model)
    with pytest.raises(ValueError, match=r"the criterion must be Misclassified for sparse_fool, .*got Targeted"):
        attacks.run(sparse_fool(sets.L0(1)), model, images, Targeted(labels), key=KEY)
