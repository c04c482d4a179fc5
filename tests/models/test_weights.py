"""Weights in files: whole or not at all, by name, without pickle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust.models import MnistNet, from_nnx, load_npz, save_npz
from tests.published import published


class Small(nnx.Module):
    def __init__(self, seed, features=3):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(2, features, rngs=rngs)])
        self.bn = nnx.BatchNorm(features, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        return self.drop(self.bn(self.layers[0](images.mean((1, 2)))))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.npz"


def numbers(network):
    return jax.tree.map(np.asarray, from_nnx(network).params)


def same(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def test_network_round_trip(file):
    saved, other = Small(0), Small(1)
    saved.bn.mean[...] = jnp.arange(3.0)
    save_npz(file, saved)
    assert set(np.load(file).files) == {
        "layers.0.kernel",
        "layers.0.bias",
        "bn.scale",
        "bn.bias",
        "bn.mean",
        "bn.var",
    }
    assert not same(numbers(saved), numbers(other))
    assert load_npz(file, other) is other
    assert same(numbers(saved), numbers(other))
    assert other(jnp.ones((1, 2, 2, 2))).shape == (1, 3)


def test_classifier_and_pytree_round_trip(file):
    saved, pattern = from_nnx(Small(0)), from_nnx(Small(1))
    save_npz(file, saved)
    loaded = load_npz(file, pattern)
    assert same(loaded.params, saved.params)
    assert loaded.apply == pattern.apply
    assert not same(pattern.params, saved.params)
    assert same(load_npz(file, jax.tree.map(jnp.zeros_like, saved.params)), saved.params)
    assert same(numbers(load_npz(str(file), Small(2))), saved.params)


def test_loading_into_an_abstract_network(file):
    save_npz(file, Small(0))
    abstract = from_nnx(nnx.eval_shape(lambda: Small(1)))
    assert same(load_npz(file, abstract).params, numbers(Small(0)))


def test_types_follow_the_model(file):
    save_npz(file, {"w": jnp.ones(2, jnp.float16), "n": np.int64(3)})
    loaded = load_npz(file, {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.int32(0)})
    assert (loaded["w"].dtype, loaded["n"].dtype, int(loaded["n"])) == (jnp.bfloat16, jnp.int32, 3)


def test_every_misfit_is_listed_and_nothing_is_changed(file):
    np.savez(file, **{"layers.0.kernel": np.zeros((2, 4)), "bn.scale": np.zeros(3, int), "extra": np.zeros(1)})
    network = Small(0)
    before = numbers(network)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_npz(file, network)
    for part in (
        str(file),
        "missing layers.0.bias",
        "missing bn.var",
        "not expected extra",
        "layers.0.kernel must have shape (2, 3), found (2, 4)",
        "bn.scale must be of type float32, found int64",
    ):
        assert part in str(error.value)
    assert same(before, numbers(network))


def test_a_write_that_fails_leaves_what_was_there(file, monkeypatch):
    save_npz(file, Small(0))
    before = file.read_bytes()

    def broken(handle, **arrays):
        handle.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        save_npz(file, Small(1))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("model", "error", "rule"),
    [
        ({"w": jnp.ones(2, jnp.bfloat16)}, TypeError, "w must be of a type that NumPy has; got bfloat16"),
        ({"k": jax.random.key(0)}, TypeError, "k must be of a type that NumPy has; got key"),
        ({"a": {"b": "text"}}, TypeError, "a.b must be an array; got a str"),
        ({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, ValueError, "its own name; got 'a.b' twice"),
    ],
)
def test_save_refuses_and_writes_nothing(file, model, error, rule):
    with pytest.raises(error, match=rule):
        save_npz(file, model)
    assert not file.exists()


def test_load_refuses_what_is_no_archive_of_arrays(file):
    with pytest.raises(FileNotFoundError):
        load_npz(file, Small(0))
    save_npz(file, Small(0))
    whole = file.read_bytes()
    np.savez(file, w=np.array([{}], object))
    pickled = file.read_bytes()
    with file.open("wb") as handle:
        np.save(handle, np.ones(3))
    single = file.read_bytes()
    for content in (
        b"",
        b"not an archive",
        whole[: len(whole) // 2],
        whole[:60] + b"\xff" * 8 + whole[68:],
        pickled,
        single,
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file.name} must be an .npz file of plain arrays"):
            load_npz(file, Small(0))


@pytest.mark.realdata
def test_published_checkpoint_loads_into_the_mnist_net():
    network = load_npz(published("mnist_vanilla.npz"), nnx.eval_shape(lambda: MnistNet(rngs=nnx.Rngs(0))))
    stored = np.load(published("mnist_vanilla.npz"))
    np.testing.assert_array_equal(network.dense1.kernel[...], stored["dense1.kernel"])
    np.testing.assert_array_equal(network.conv1.bias[...], stored["conv1.bias"])


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "accuracy"), [("mnist_vanilla", 0.9889), ("mnist_wasserstein_adv", 0.9728)])
def test_published_accuracy_on_the_mnist_test_set(name, accuracy):
    from jaxrobust import data

    test = data.load("mnist", "test")
    model = from_nnx(load_npz(published(f"{name}.npz"), MnistNet(rngs=nnx.Rngs(0))))
    answer = jax.jit(lambda model, images: model(images).argmax(-1))
    found = np.concatenate([answer(model, images) for images in np.split(np.asarray(test.images), 10)])
    assert np.mean(found == np.asarray(test.labels)) == pytest.approx(accuracy, abs=5e-5)
