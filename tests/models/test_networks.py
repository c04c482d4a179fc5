"""Architectures against their published sizes, and what every network promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust.models import MnistNet, PreActResNet, ResNet, SmallCNN, Trainable, WideResNet, from_nnx, resnet
from tests.compiled import compiled

# name -> (network, images, parameters, shapes of the activations)
FULL = {
    "MnistNet": (MnistNet, (28, 28, 1), 166_406, [(14, 14, 16), (7, 7, 32)]),
    "TRADES": (
        lambda **k: SmallCNN(size=28, padding="VALID", **k),
        (28, 28, 1),
        312_202,
        [(26, 26, 32), (24, 24, 32), (10, 10, 64), (8, 8, 64)],
    ),
    "PreActResNet-18": (
        PreActResNet,
        (32, 32, 3),
        11_172_170,
        [(32, 32, 64), (32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)],
    ),
    "WRN-28-10": (
        WideResNet,
        (32, 32, 3),
        36_479_194,
        [(32, 32, 16), (32, 32, 160), (16, 16, 320), (8, 8, 640)],
    ),
    "WRN-34-10": (
        lambda **k: WideResNet(depth=34, **k),
        (32, 32, 3),
        46_160_474,
        [(32, 32, 16), (32, 32, 160), (16, 16, 320), (8, 8, 640)],
    ),
    "ResNet-50": (
        ResNet,
        (224, 224, 3),
        25_557_032,
        [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)],
    ),
    "ResNet-50 at 64": (
        lambda **k: ResNet(stem_pool=False, **k),
        (64, 64, 3),
        25_557_032,
        [(32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048)],
    ),
    "ResNet-50 at 32": (
        lambda **k: ResNet(stem_pool=False, stem_stride=1, classes=10, **k),
        (32, 32, 3),
        23_520_842,
        [(32, 32, 64), (32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048)],
    ),
}

# Narrow ones, quick to run.
NARROW = {
    "MnistNet": (lambda **k: MnistNet(size=8, **k), (8, 8, 1)),
    "SmallCNN": (lambda **k: SmallCNN(width=4, **k), (8, 8, 1)),
    "SmallCNN, VALID": (lambda **k: SmallCNN(size=16, width=4, padding="VALID", **k), (16, 16, 1)),
    "PreActResNet": (lambda **k: PreActResNet(stages=(1, 2), widths=(4, 8), activation="silu", **k), (8, 8, 3)),
    "WideResNet": (lambda **k: WideResNet(depth=10, width=1, activation="softplus", **k), (8, 8, 3)),
    "ResNet": (lambda **k: ResNet(stages=(2, 1), widths=(2, 4), classes=10, **k), (16, 16, 3)),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size_shapes_and_parameter_counts(name):
    build, image, parameters, activations = FULL[name]
    network = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == parameters
    model = from_nnx(network)
    images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    logits, maps = jax.eval_shape(lambda m, x: (m(x), m.activations(m.params, x)), model, images)
    assert logits.shape == (2, 1000 if parameters == 25_557_032 else 10)
    assert logits.dtype == jnp.float32
    assert [map.shape[1:] for map in maps] == activations


def built(build, **options):
    """The network with NumPy's random numbers in it: its own initial ones take seconds to compile."""
    network = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0), **options))
    numpy = np.random.default_rng(0)

    def draw(path, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        values = 0.3 * numpy.normal(size=leaf.shape)
        values = 1 + abs(values) if path[-1].key in ("var", "scale") else values
        return np.asarray(values, leaf.dtype)

    nnx.update(network, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(nnx.state(network))))
    return network


@compiled
def answers(model, images):
    return model(images), model.activations(model.params, images)


@pytest.fixture(scope="module", params=NARROW)
def narrow(request):
    build, image = NARROW[request.param]
    images = np.random.default_rng(0).random((4, *image), np.float32)
    return build, built(build), images


def test_the_classifier_is_the_network_in_evaluation_mode(narrow):
    build, network, images = narrow
    logits, maps = answers(from_nnx(network), images)
    network = built(build)  # the same again
    network.eval()
    expected = nnx.jit(lambda network, x: (network(x), network.activations(x)))(network, images)
    for found, wanted in zip((logits, *maps), (expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_every_image_is_treated_alone(narrow):
    _, network, images = narrow
    model = from_nnx(network)
    _, maps = answers(model, images)
    _, others = answers(model, np.concatenate([1 - images[:2], images[2:]]))
    for found, wanted in zip(others, maps, strict=True):
        assert np.any(found[:2] != wanted[:2])
        np.testing.assert_array_equal(found[2:], wanted[2:])


def test_normalisation_is_inside(narrow):
    build, _, images = narrow
    mean, std = ([0.1, 0.2, 0.3][: images.shape[-1]], [0.5, 2.0, 4.0][: images.shape[-1]])
    inside = from_nnx(built(build, mean=tuple(mean), std=tuple(std)))
    outside = from_nnx(built(build, mean=(), std=()))
    mean, std = (np.asarray(value, np.float32)[None, None, None] for value in (mean, std))
    by_hand = (images - mean) / std
    for found, wanted in zip(answers(inside, images)[1], answers(outside, by_hand)[1], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("narrow", ["SmallCNN", "PreActResNet", "ResNet"], indirect=True)
def test_training_reaches_every_parameter(narrow):
    _, network, images = narrow
    trainable, params, state = Trainable.from_nnx(network)

    @jax.jit
    def gradient(params, state, images):
        return jax.grad(lambda p: jnp.sum(jnp.sin(trainable.train(p, state, images, jax.random.key(0))[0])))(params)

    found = jax.tree.map(np.asarray, gradient(params, state, images))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf != 0), path


def test_residual_convolutions_start_he_normal_by_fan_out():
    kernel = np.asarray(resnet._conv(16, 64, 3, rngs=nnx.Rngs(0)).kernel[...])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.04)
    assert abs(kernel).max() > 3 * kernel.std()  # not truncated


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda r: MnistNet(size=30, rngs=r), "size must be a positive multiple of 4; got 30"),
        (lambda r: SmallCNN(size=3, rngs=r), "size must be at least 4 .*got 3"),
        (lambda r: SmallCNN(size=15, padding="VALID", rngs=r), "size must be at least 16 .*got 15"),
        (lambda r: SmallCNN(dropout=1.0, rngs=r), "dropout must be in .*got 1.0"),
        (lambda r: PreActResNet(stages=(1, 1), widths=(4,), rngs=r), "stages and widths must be"),
        (lambda r: PreActResNet(stages=(0,), widths=(4,), rngs=r), "stages and widths must be"),
        (lambda r: PreActResNet(channels=1, rngs=r), "mean and std must be empty or hold 1 numbers"),
        (lambda r: PreActResNet(activation="tanh", rngs=r), "activation must be one of"),
        (lambda r: WideResNet(depth=27, rngs=r), "depth must be 6n .*got 27"),
        (lambda r: WideResNet(depth=4, rngs=r), "depth must be 6n .*got 4"),
        (lambda r: WideResNet(width=0, rngs=r), "width must be at least 1; got 0"),
        (lambda r: ResNet(stem_stride=3, rngs=r), "stem_stride must be 1 or 2; got 3"),
    ],
)
def test_refused_at_the_door(build, rule):
    with pytest.raises(ValueError, match=rule):
        build(nnx.Rngs(0))


def test_the_smallest_sizes_that_are_not_refused():
    for size, padding in ((4, "SAME"), (16, "VALID")):
        network = nnx.eval_shape(lambda: SmallCNN(size=size, padding=padding, rngs=nnx.Rngs(0)))
        images = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        assert jax.eval_shape(answers.__wrapped__, from_nnx(network), images)[0].shape == (1, 10)
