"""The perceptual distance against its definition, and the facts that make it a metric."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import perceptual
from jaxrobust.types import Classifier

SHAPE = (5, 4, 3)


def two_layers(params, images):
    """A linear layer at every position, and one over two rows."""
    first = images @ params["first"]
    return first, jax.nn.relu((first[:, ::2] - params["offset"][None, None, None]) @ params["second"])


@functools.cache
def network(seed=0, factors=(1.0, 1.0)):
    rng = np.random.default_rng(seed)
    params = {
        "first": jnp.asarray(rng.normal(size=(3, 6)), jnp.float32),
        "offset": jnp.asarray(rng.normal(size=6), jnp.float32),
        "second": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
    }
    return Classifier(
        lambda params, images: images.mean((1, 2)),
        params,
        lambda params, images: tuple(f * maps for f, maps in zip(factors, two_layers(params, images), strict=True)),
    )


lpips = jax.jit(perceptual.lpips)


def by_hand(network, image):
    """φ in float64, position after position."""
    values = []
    for maps in network.activations(network.params, image[None]):
        maps = np.asarray(maps[0], np.float64)
        height, width, _ = maps.shape
        for row in range(height):
            for column in range(width):
                position = maps[row, column]
                values.append(position / (np.linalg.norm(position) + 1e-10) / np.sqrt(height * width))
    return np.concatenate(values)


@pytest.fixture
def images(rng):
    return rng.random((3, *SHAPE)).astype(np.float32)


@jax.jit
def distances(network, images, others):
    return perceptual.distance(network, images, others)


def test_distance_is_the_definition(images):
    found = distances(network(), images[:2], images[1:])
    wanted = [np.linalg.norm(by_hand(network(), x) - by_hand(network(), z)) for x, z in itertools.pairwise(images)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found.shape == (2,)
    np.testing.assert_allclose(distances(network(), images[0], images[1]), wanted[0], rtol=1e-5)


def test_features_have_one_unit_a_layer(images):
    for maps in perceptual.features(network(), images):
        assert maps.shape[0] == 3
    first, _ = perceptual.features(network(), images)
    np.testing.assert_allclose(jnp.sum(jnp.square(first), (1, 2, 3)), 1, rtol=1e-5)


@pytest.mark.parametrize("net", [network(), perceptual.filter_bank()], ids=["two layers", "filter bank"])
def test_it_is_a_metric(net, rng):
    a, b, c = rng.random((3, 20, *SHAPE)).astype(np.float32)
    ab, ba, bc, ac = (distances(net, *pair) for pair in ((a, b), (b, a), (b, c), (a, c)))
    np.testing.assert_allclose(ab, ba, rtol=1e-6)
    assert (np.asarray(ac) <= np.asarray(ab + bc) + 1e-6).all()
    assert (np.asarray(ab) > 0.01).all()
    np.testing.assert_array_equal(distances(net, a, a), 0)


def test_scaling_a_layer_changes_nothing(images):
    found = distances(network(factors=(7.0, 1e-3)), images[:2], images[1:])
    np.testing.assert_allclose(found, distances(network(), images[:2], images[1:]), rtol=1e-5)


def test_it_is_bounded_for_non_negative_activations(rng):
    bank = perceptual.filter_bank()
    black, white = jnp.zeros(SHAPE), jnp.ones(SHAPE)
    noise = jnp.asarray(rng.integers(0, 2, (10, *SHAPE)), jnp.float32)
    far = [distances(bank, black, white), *distances(bank, noise, 1 - noise)]
    assert 1 < max(map(float, far)) <= np.sqrt(2 * 3)


def test_gradients_are_finite_where_the_distance_or_an_activation_is_zero(images):
    def dead(params, images):
        return (jax.nn.relu(images - 0.5), jnp.zeros_like(images))

    for net in (perceptual.filter_bank(scales=1), Classifier(lambda p, x: x.mean((1, 2)), (), dead)):
        gradient = jax.jit(jax.grad(lambda z, net=net: perceptual.distance(net, images[0], z)))
        np.testing.assert_array_equal(gradient(images[0]), 0)
        assert np.isfinite(gradient(images[1])).all()
        slope = jax.jit(jax.grad(lambda z, net=net: perceptual.separation(*both(net, jnp.zeros(SHAPE), z))))
        assert np.isfinite(slope(jnp.zeros(SHAPE))).all()


def both(net, image, other):
    return perceptual.features(net, image), perceptual.features(net, other)


def test_gradient_is_the_derivative(images):
    x, z = images[:2]
    way = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    slope = jnp.vdot(jax.jit(jax.grad(distances, 2))(network(), x, z), way)
    h = 1e-3
    numeric = (distances(network(), x, z + h * way) - distances(network(), x, z - h * way)) / (2 * h)
    np.testing.assert_allclose(slope, numeric, rtol=2e-3)


def test_lpips_with_weights_of_one_is_the_squared_distance(images):
    ones = [np.ones(6), np.ones(4)]
    found = lpips(network(), images[:2], images[1:], ones)
    np.testing.assert_allclose(found, distances(network(), images[:2], images[1:]) ** 2, rtol=1e-5)


def test_lpips_is_its_definition(images, rng):
    weights = [rng.random(6), rng.random(4)]
    x, z = images[:2]
    wanted = 0.0
    pairs = (network().activations(network().params, image[None]) for image in (x, z))
    for a, b, weight in zip(*pairs, weights, strict=True):
        a, b = (np.asarray(maps[0], np.float64) for maps in (a, b))
        a, b = (maps / (np.linalg.norm(maps, axis=-1, keepdims=True) + 1e-10) for maps in (a, b))
        wanted += ((a - b) ** 2 * weight).sum(-1).mean()
    found = lpips(network(), x, z, weights)
    assert found.shape == ()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_what_does_not_fit_is_refused(images):
    with pytest.raises(ValueError, match=r"weights must have shapes \[\(6,\), \(4,\)\], one a layer; got \[\(6,\)\]"):
        perceptual.lpips(network(), images[0], images[1], [np.ones(6)])
    bare = Classifier.from_function(lambda x: x.mean((1, 2)))
    with pytest.raises(ValueError, match="network must have activations"):
        perceptual.distance(bare, images[0], images[1])
