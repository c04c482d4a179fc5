"""Pointwise: what it finds is adversarial, minimal coordinate by coordinate, and needs labels alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.queries.pointwise import pointwise
from jaxrobust.types import Classifier, Targeted
from tests import tiny

KEY = jax.random.key(17)
BALLS = {"pixel": sets.L0(1e4), "coordinate": sets.L0(1e4, "coordinate"), "l2": sets.L2(1e4)}


@functools.cache
def setting():
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 5)
    return model, images[:-1], labels[:-1]


@functools.cache
def result(name, queries=1500):
    return attacks.run(pointwise(BALLS[name], queries=queries), *setting(), key=KEY)


def put_back(image, clean, name):
    """The image with one changed coordinate or pixel at its clean value, for each of these."""
    changed = np.abs(image - clean) > 0
    places = np.argwhere(changed.any(-1) if name == "pixel" else changed)
    found = []
    for place in places:
        one = image.copy()
        one[tuple(place)] = clean[tuple(place)]
        found.append(one)
    return np.stack(found)


@pytest.mark.parametrize("name", [pytest.param("pixel", marks=pytest.mark.slow), "coordinate"])
def test_nothing_can_be_put_back(name):
    model, images, labels = setting()
    found = result(name)
    assert found.success.all()
    # it ended by itself
    assert (np.asarray(found.forwards) < 1501).all()
    for x, image, label in zip(images, np.asarray(found.images), labels, strict=True):
        # clean coordinates are exactly so
        image = np.where(np.abs(image - x) < 1e-6, x, image)
        assert (np.asarray(model(put_back(image, x, name))).argmax(-1) == label).all()


@pytest.mark.slow
def test_size_counts_what_is_left():
    images = setting()[1]
    for name in ("pixel", "coordinate"):
        moved = np.abs(np.asarray(result(name).images) - images) > 1e-6
        moved = moved.any(-1) if name == "pixel" else moved
        np.testing.assert_array_equal(result(name).size, moved.reshape(len(images), -1).sum(1))


@pytest.mark.slow
def test_the_smallest_set_of_a_linear_model():
    """One coordinate is enough to cross the boundary, all others together are not."""
    weights = np.zeros((60, 2), np.float32)
    weights[:, 1], weights[7, 1] = 0.001, 1.0
    images = np.full((3, *tiny.SHAPE), 0.25, np.float32)
    model = Classifier(tiny.linear, (jnp.asarray(weights), jnp.asarray([0.6, 0], jnp.float32)))
    found = attacks.run(pointwise(BALLS["coordinate"], queries=500), model, images, np.zeros(3, np.int32), key=KEY)
    delta = np.asarray(found.parameters).reshape(3, -1)
    np.testing.assert_array_equal(found.size, 1)
    np.testing.assert_allclose(delta[:, 7], 0.75, atol=1e-6)


def test_changes_are_halved_for_l2():
    """The least change of the one coordinate that matters: 1.0 · (0.25 + δ) + 59 · 0.00025 > 0.6."""
    weights = np.zeros((60, 2), np.float32)
    weights[:, 1], weights[7, 1] = 0.001, 1.0
    images = np.full((3, *tiny.SHAPE), 0.25, np.float32)
    model = Classifier(tiny.linear, (jnp.asarray(weights), jnp.asarray([0.6, 0], jnp.float32)))
    found = attacks.run(pointwise(BALLS["l2"], queries=700), model, images, np.zeros(3, np.int32), key=KEY)
    least = 0.6 - 0.25 - 59 * 0.00025
    assert (np.asarray(found.size) >= least).all()
    assert (np.asarray(found.size) <= least * 1.002).all()
    assert (np.asarray(found.forwards) < 701).all()


@pytest.mark.slow
def test_targets_are_met_from_images_given():
    model, images, labels = setting()
    others = np.random.default_rng(5).random((40, *tiny.SHAPE)).astype(np.float32)
    predicted = np.asarray(model(others).argmax(-1))
    start = others[np.flatnonzero(predicted != labels[0])[0]]
    target = np.asarray(model(start[None]).argmax(-1))
    made = pointwise(BALLS["pixel"], queries=300, starts=start[None])
    found = attacks.run(made, model, images[:1], Targeted(target), key=KEY)
    assert found.success.all()
    np.testing.assert_array_equal(model(found.images).argmax(-1), target)
    # every pixel left is the start's
    moved = (np.abs(np.asarray(found.images[0]) - images[0]) > 1e-6).any(-1)
    np.testing.assert_allclose(np.asarray(found.images[0])[moved], start[moved], atol=1e-6)


@pytest.mark.slow
def test_the_radius_says_what_counts():
    model, images, labels = setting()
    sizes = np.asarray(result("pixel").size)
    radius = int(np.sort(sizes)[1])
    near = attacks.run(pointwise(sets.L0(radius), queries=1500), model, images, labels, key=KEY)
    np.testing.assert_array_equal(near.success, sizes <= radius)
    np.testing.assert_array_equal(near.images[~np.asarray(near.success)], images[sizes > radius])


@pytest.mark.slow
def test_float64():
    with jax.enable_x64(True):
        model = Classifier(tiny.linear, (jnp.asarray(np.random.default_rng(0).normal(size=(60, 3))), jnp.zeros(3)))
        images = np.random.default_rng(1).random((2, *tiny.SHAPE))
        labels = np.asarray(model(images).argmax(-1))
        found = attacks.run(pointwise(BALLS["l2"], queries=30), model, images, labels, key=KEY)
        assert found.images.dtype == np.float64


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="set must be L0 or L2 for Pointwise; got Linf"):
        pointwise(sets.Linf(0.1))
    with pytest.raises(ValueError, match="queries must be >= 1; got 0"):
        pointwise(sets.L0(1), queries=0)
