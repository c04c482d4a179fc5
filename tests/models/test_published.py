"""Published weights in files: every format, every misfit, and nothing loaded but weights."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import perceptual
from jaxrobust.models import AlexNet, ResNet, from_nnx, load_lpips, load_torchvision
from tests.references import torchvision

SHAPES = [(3, 3, 3, 3), (4, 3, 3, 3), (5, 4, 3, 3), (4, 5, 3, 3), (2, 4, 3, 3)]
DENSE = [(7, 8), (7, 7), (4, 7)]


def small():
    return AlexNet(form="cifar", widths=(3, 4, 5, 4, 2), hidden=7, classes=4, rngs=nnx.Rngs(0))


def filled(tree, seed=0):
    """An abstract tree with NumPy's random numbers: a network's own initial ones take seconds to compile."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype), tree)


@pytest.fixture(scope="module")
def pattern():
    return from_nnx(nnx.eval_shape(small))


@pytest.fixture
def arrays():
    return torchvision.state_dict(torchvision.ALEXNET, SHAPES, DENSE)


def same(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


class Tensor:
    """As much of a PyTorch tensor as the reader asks for."""

    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    def is_floating_point(self):
        return self.value.dtype.kind == "f"

    def float(self):
        return Tensor(self.value.astype(np.float32))

    def numpy(self):
        return self.value


@pytest.fixture
def torch(monkeypatch):
    """A stand-in for PyTorch that records how it was asked."""
    module = types.ModuleType("torch")
    module.asked = []

    def load(path, **options):
        module.asked.append(options)
        return module.found

    module.load = load
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_every_format_gives_the_same_network(tmp_path, arrays, pattern, torch):
    np.savez(tmp_path / "w.npz", **arrays)
    torchvision.write_safetensors(tmp_path / "w.safetensors", arrays)
    (tmp_path / "w.pth").touch()
    plain, safe = (load_torchvision(tmp_path / f"w.{suffix}", pattern) for suffix in ("npz", "safetensors"))
    assert same(plain.params, safe.params)
    tensors = {name: Tensor(value) for name, value in arrays.items()}
    for torch.found in (tensors, {"state_dict": tensors, "epoch": 3}, {"model": tensors}):
        assert same(load_torchvision(tmp_path / "w.pth", pattern).params, plain.params)
    assert torch.asked == [{"map_location": "cpu", "weights_only": True}] * 3


def test_modules_are_updated_in_place_and_types_follow_the_model(tmp_path, arrays, pattern):
    half = {name: value.astype(np.float16) for name, value in arrays.items()}
    torchvision.write_safetensors(tmp_path / "w.safetensors", half)
    network = nnx.eval_shape(small)
    assert load_torchvision(tmp_path / "w.safetensors", network) is network
    kernel = network.convs[1].kernel[...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, half["features.3.weight"].astype(np.float32).transpose(2, 3, 1, 0))


def test_bfloat16_is_read(tmp_path, arrays, pattern):
    rounded = {name: jnp.asarray(value, jnp.bfloat16) for name, value in arrays.items()}
    raw = {name: np.asarray(value).view(np.uint16) for name, value in rounded.items()}
    torchvision.write_safetensors(tmp_path / "w.safetensors", raw, dict.fromkeys(raw, "BF16"))
    loaded = load_torchvision(tmp_path / "w.safetensors", pattern)
    np.testing.assert_array_equal(
        loaded.params["dense3"]["kernel"], np.asarray(rounded["classifier.6.weight"], np.float32).T
    )


def test_a_residual_network_by_its_torchvision_names(tmp_path):
    network = nnx.eval_shape(lambda: ResNet(stages=(1, 2), widths=(4, 8), classes=3, rngs=nnx.Rngs(0)))
    wanted = filled(from_nnx(network).params)
    first, second = wanted["stages"].values() if isinstance(wanted["stages"], dict) else wanted["stages"]
    blocks = {"layer1.0": first[0], "layer2.0": second[0], "layer2.1": second[1]}
    convs, norms = {"conv1": wanted["conv1"]}, {"bn1": wanted["bn1"]}
    for name, block in blocks.items():
        convs |= {f"{name}.conv{i}": block[f"conv{i}"] for i in (1, 2, 3)}
        norms |= {f"{name}.bn{i}": block[f"bn{i}"] for i in (1, 2, 3)}
        if name != "layer2.1":
            convs[f"{name}.downsample.0"] = block["shortcut"]["conv"]
            norms[f"{name}.downsample.1"] = block["shortcut"]["bn"]
    arrays = {f"{name}.weight": np.asarray(conv["kernel"]).transpose(3, 2, 0, 1) for name, conv in convs.items()}
    for name, norm in norms.items():
        for theirs, ours in {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}.items():
            arrays[f"{name}.{theirs}"] = np.asarray(norm[ours])
        arrays[f"{name}.num_batches_tracked"] = np.array(7)
    arrays |= {"fc.weight": np.asarray(wanted["dense"]["kernel"]).T, "fc.bias": np.asarray(wanted["dense"]["bias"])}
    np.savez(tmp_path / "resnet.npz", **arrays)
    loaded = load_torchvision(tmp_path / "resnet.npz", from_nnx(network))
    assert same(loaded.params, wanted)


def test_every_misfit_is_listed_and_nothing_is_changed(tmp_path, arrays):
    del arrays["features.10.bias"]
    arrays["features.3.weight"] = np.zeros((4, 3, 5, 5), np.float32)
    np.savez(tmp_path / "w.npz", aux=np.zeros(1), **arrays)
    network = nnx.eval_shape(small)
    nnx.update(network, filled(nnx.to_pure_dict(nnx.state(network, nnx.Param))))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_torchvision(tmp_path / "w.npz", network)
    for part in ("missing convs.4.bias", "convs.1.kernel must have shape (3, 3, 3, 4), found (5, 5, 3, 4)", "aux"):
        assert part in str(error.value)
    assert same(before, nnx.to_pure_dict(nnx.state(network, nnx.Param)))


def test_a_dense_layer_that_sees_no_square_maps_is_refused(tmp_path, arrays, pattern):
    arrays["classifier.1.weight"] = np.zeros((7, 10), np.float32)
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match="10 inputs, not 2 square maps"):
        load_torchvision(tmp_path / "w.npz", pattern)


def damaged(whole):
    text = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    long = text.replace(b'"F32"', b'"F99"', 1)
    shape = text.replace(b"[3, 3, 3, 3]", b"[3, 3, 3, 4]", 1)
    keys = text.replace(b'"shape"', b'"shapes"', 1)
    yield from (b"", b"short", whole[:100], whole[:-4], (10**15).to_bytes(8, "little") + whole[8:])
    yield from (len(t).to_bytes(8, "little") + t + whole[8 + len(text) :] for t in (long, shape, keys, b"[1]", b"7"))


def test_damaged_safetensors_are_refused(tmp_path, arrays, pattern):
    file = tmp_path / "w.safetensors"
    torchvision.write_safetensors(file, arrays)
    for content in damaged(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"w\.safetensors must be a safetensors file"):
            load_torchvision(file, pattern)


def test_other_files_are_refused(tmp_path, pattern, torch, monkeypatch):
    with pytest.raises(ValueError, match=r"path must end in one of .*\.npz.*got .*w\.h5"):
        load_torchvision(tmp_path / "w.h5", pattern)
    for suffix in ("npz", "safetensors", "pt"):
        with pytest.raises(FileNotFoundError):
            load_torchvision(tmp_path / f"none.{suffix}", pattern)
    (tmp_path / "w.pt").touch()
    for torch.found in ([1, 2], {"w": "text"}):
        with pytest.raises(ValueError, match="must be a PyTorch file of weights alone"):
            load_torchvision(tmp_path / "w.pt", pattern)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"w\.pt is a PyTorch file: install torch, or convert it"):
        load_torchvision(tmp_path / "w.pt", pattern)


def test_lpips_weights_weigh_the_channels(tmp_path, pattern, rng):
    weights = [rng.random(width).astype(np.float32) for width in (3, 4, 5, 4, 2)]
    stored = {f"lin{i}.model.1.weight": weight.reshape(1, -1, 1, 1) for i, weight in enumerate(weights)}
    torchvision.write_safetensors(tmp_path / "lpips.safetensors", stored)
    loaded = load_lpips(tmp_path / "lpips.safetensors")
    for found, wanted in zip(loaded, weights, strict=True):
        np.testing.assert_array_equal(found, wanted)
    model = dataclasses.replace(pattern, params=filled(pattern.params))
    x, z = rng.random((2, 16, 16, 3)).astype(np.float32)
    pairs = zip(*(jax.jit(perceptual.features)(model, image) for image in (x, z)), strict=True)
    by_layer = [np.square(np.asarray(a) - np.asarray(b)).sum((0, 1)) for a, b in pairs]
    wanted = sum(float(layer @ weight) for layer, weight in zip(by_layer, weights, strict=True))
    np.testing.assert_allclose(jax.jit(perceptual.lpips)(model, x, z, loaded), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        ({}, "must hold lin0.model.1.weight"),
        ({"lin1.model.1.weight": np.ones((1, 2, 1, 1))}, "must hold lin0.model.1.weight"),
        ({"lin0.model.1.weight": np.ones((2, 1, 1, 1))}, r"must have shape \(1, C, 1, 1\); got \(2, 1, 1, 1\)"),
        ({"lin0.model.1.weight": -np.ones((1, 2, 1, 1))}, "must be >= 0; got -1.0"),
    ],
)
def test_lpips_files_that_are_none_are_refused(tmp_path, arrays, rule):
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match=rule):
        load_lpips(tmp_path / "w.npz")
