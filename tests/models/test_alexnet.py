"""AlexNet and VGG: published sizes, torchvision's arithmetic in NumPy, and their poolings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust.models import VGG, AlexNet, from_nnx, load_torchvision
from jaxrobust.models.alexnet import average_to, max_pool
from tests.references import torchvision

FULL = {
    "AlexNet": (
        AlexNet,
        (224, 224, 3),
        61_100_840,
        [(55, 55, 64), (27, 27, 192), (13, 13, 384), (13, 13, 256), (13, 13, 256)],
    ),
    "AlexNet for CIFAR": (
        lambda **k: AlexNet(form="cifar", classes=10, **k),
        (32, 32, 3),
        23_272_266,
        [(16, 16, 64), (8, 8, 192), (4, 4, 384), (4, 4, 256), (4, 4, 256)],
    ),
    "VGG-16": (
        VGG,
        (224, 224, 3),
        138_357_544,
        [(224, 224, 64), (112, 112, 128), (56, 56, 256), (28, 28, 512), (14, 14, 512)],
    ),
}

WIDTHS = (3, 4, 5, 4, 2)
# name -> (network, torch's places, kernels of the convolutions, dense layers, image sizes)
NARROW = {
    "imagenet": (
        lambda **k: AlexNet(widths=WIDTHS, hidden=7, classes=4, **k),
        torchvision.ALEXNET,
        [(3, 3, 11, 11), (4, 3, 5, 5), (5, 4, 3, 3), (4, 5, 3, 3), (2, 4, 3, 3)],
        [(7, 72), (7, 7), (4, 7)],
        [(63, 70), (95, 127)],
    ),
    "cifar": (
        lambda **k: AlexNet(form="cifar", widths=WIDTHS, hidden=7, classes=4, **k),
        torchvision.ALEXNET,
        [(3, 3, 3, 3), (4, 3, 3, 3), (5, 4, 3, 3), (4, 5, 3, 3), (2, 4, 3, 3)],
        [(7, 8), (7, 7), (4, 7)],
        [(32, 32), (16, 23)],
    ),
    "vgg": (
        lambda **k: VGG(stages=(1, 2), widths=(3, 4), hidden=7, classes=4, grid=3, **k),
        torchvision.VGG_SMALL,
        [(3, 3, 3, 3), (4, 3, 3, 3), (4, 4, 3, 3)],
        [(7, 36), (7, 7), (4, 7)],
        [(12, 12), (8, 15)],
    ),
}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def reference(name, arrays, places, images):
    """Activations and logits as torchvision defines them, in float64."""
    value = ((images - MEAN) / STD).transpose(0, 3, 1, 2)
    maps = []
    strides = {"imagenet": [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], "cifar": [(2, 1)] + [(1, 1)] * 4}.get(name)
    for place, index in enumerate(places[0]):
        stride, padding = strides[place] if strides else (1, 1)
        value = torchvision.conv(
            value, arrays[f"features.{index}.weight"], arrays[f"features.{index}.bias"], stride, padding
        )
        if name == "vgg":
            if place == 1:
                continue
            maps.append(value)
            value = torchvision.pool(value, 2)
        else:
            maps.append(value)
            if place in (0, 1, 4):
                value = torchvision.pool(value, 3 if name == "imagenet" else 2)
    grid = {"imagenet": 6, "cifar": 2, "vgg": 3}[name]
    return [m.transpose(0, 2, 3, 1) for m in maps], torchvision.logits(arrays, places, torchvision.average(value, grid))


def abstract(build):
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


@jax.jit
def answers(model, images):
    return model(images), model.activations(model.params, images)


@pytest.mark.parametrize("name", FULL)
def test_full_size_shapes_and_parameter_counts(name):
    build, image, parameters, activations = FULL[name]
    network = abstract(build)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == parameters
    logits, maps = jax.eval_shape(answers, from_nnx(network), jax.ShapeDtypeStruct((2, *image), jnp.float32))
    assert logits.shape == (2, 10 if "CIFAR" in name else 1000)
    assert [each.shape[1:] for each in maps] == activations


@pytest.mark.parametrize("name", NARROW)
def test_loaded_weights_compute_what_torchvision_defines(name, tmp_path, rng):
    build, places, convs, dense, sizes = NARROW[name]
    arrays = torchvision.state_dict(places, convs, dense)
    torchvision.write_safetensors(tmp_path / "w.safetensors", arrays)
    model = load_torchvision(tmp_path / "w.safetensors", from_nnx(abstract(build)))
    for size in sizes:
        images = rng.random((2, *size, 3)).astype(np.float32)
        logits, maps = answers(model, images)
        wanted_maps, wanted = reference(name, arrays, places, images)
        assert len(maps) == len(wanted_maps)
        for found, want in zip(maps, wanted_maps, strict=True):
            np.testing.assert_allclose(found, want, atol=2e-5)
        np.testing.assert_allclose(logits, wanted, atol=2e-5)
        assert np.ptp(wanted) > 0.05


@pytest.mark.parametrize("window", [2, 3])
def test_pooling_is_a_windows_maximum_with_its_gradient(window, rng):
    maps = jnp.asarray(rng.normal(size=(2, 7, 8, 3)), jnp.float32)

    def windows(maps):
        return jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")

    def value(pooling, maps):
        return jnp.sum(jnp.sin(pooling(maps)))

    np.testing.assert_array_equal(max_pool(maps, window), windows(maps))
    gradient = jax.jit(jax.grad(value, 1), static_argnums=0)
    found, wanted = (gradient(pooling, maps) for pooling in (lambda maps: max_pool(maps, window), windows))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("size", "grid"), [((6, 6), 6), ((13, 9), 6), ((2, 5), 7), ((1, 1), 2)])
def test_averages_are_torchvisions(size, grid, rng):
    maps = rng.normal(size=(2, *size, 3)).astype(np.float32)
    wanted = torchvision.average(maps.transpose(0, 3, 1, 2), grid).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(average_to(jnp.asarray(maps), grid), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda r: AlexNet(widths=(1, 2, 3, 4), rngs=r), "widths must be five"),
        (lambda r: AlexNet(dropout=1.0, rngs=r), "dropout must be in .*got 1.0"),
        (lambda r: VGG(stages=(1,), widths=(1, 2), rngs=r), "stages and widths must be"),
        (lambda r: VGG(grid=0, rngs=r), "grid must be >= 1; got 0"),
        (lambda r: VGG(dropout=-0.1, rngs=r), "dropout must be in .*got -0.1"),
    ],
)
def test_refused_at_the_door(build, rule):
    with pytest.raises(ValueError, match=rule):
        build(nnx.Rngs(0))


def test_images_too_small_are_refused():
    model = from_nnx(abstract(AlexNet))
    logits, _ = jax.eval_shape(answers, model, jax.ShapeDtypeStruct((1, 63, 63, 3), jnp.float32))
    assert logits.shape == (1, 1000)
    with pytest.raises(ValueError, match="images are too small for this network"):
        jax.eval_shape(answers, model, jax.ShapeDtypeStruct((1, 63, 62, 3), jnp.float32))
