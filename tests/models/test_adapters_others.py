"""Networks of Equinox and Haiku as pure functions."""

import collections

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import Classifier

IMAGES = np.random.default_rng(0).random((5, 6, 4, 2)).astype(np.float32)


class Net(equinox.Module):
    """A convolution, batch statistics, dropout, something that is no array."""

    conv: equinox.nn.Conv2d
    norm: equinox.nn.BatchNorm
    drop: equinox.nn.Dropout
    dense: equinox.nn.Linear
    scale: np.ndarray
    name: str

    def __init__(self, seed):
        keys = jax.random.split(jax.random.key(seed))
        self.conv = equinox.nn.Conv2d(2, 3, 3, key=keys[0])
        self.norm = equinox.nn.BatchNorm(3, "batch", mode="ema")
        self.drop = equinox.nn.Dropout()
        self.dense = equinox.nn.Linear(24, 3, key=keys[1])
        self.scale = np.full(3, 1.5, np.float32)
        self.name = "net"

    def __call__(self, image, state):
        maps, state = self.norm(self.conv(image), state)
        return self.dense(self.drop(jax.nn.relu(maps)).ravel()) * self.scale, state


@equinox.filter_jit
def trained(network, state, batch):
    return jax.vmap(network, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(batch, state)[1]


def stateful(seed):
    """A network and its state, which has seen a batch."""
    network, state = equinox.nn.make_with_state(Net)(seed)
    network = equinox.tree_at(lambda net: net.drop, network, equinox.nn.Dropout(inference=True))
    state = trained(network, state, jnp.asarray(IMAGES.transpose(0, 3, 1, 2)))
    return equinox.tree_at(lambda net: net.drop, network, equinox.nn.Dropout()), state


def test_an_equinox_network_with_state_is_in_inference_mode():
    network, state = stateful(0)
    model = Classifier.from_equinox(network, state=state)
    still = equinox.nn.inference_mode(network)
    alone = [still(jnp.asarray(image.transpose(2, 0, 1)), state)[0] for image in IMAGES[:2]]
    logits = jax.jit(model)(IMAGES)
    np.testing.assert_allclose(logits[:2], alone, rtol=1e-4, atol=1e-6)
    # its numbers are parameters, and one program serves all
    network, state = stateful(1)
    other = Classifier.from_equinox(network, state=state)
    assert hash(other.apply) == hash(model.apply)
    assert other.apply == model.apply
    assert not np.allclose(jax.jit(other)(IMAGES), logits)
    assert {np.shape(leaf) for leaf in jax.tree.leaves(model.params)} >= {(3, 2, 3, 3), (3, 24), (3,)}


def test_what_is_no_equinox_network_is_refused():
    for wrong in (jnp.ravel, Net, equinox.nn.LayerNorm):
        with pytest.raises(TypeError, match=r"module must be an equinox\.Module with a __call__"):
            Classifier.from_equinox(wrong)


Transformed = collections.namedtuple("Transformed", ["init", "apply"])


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("takes_key", [False, True])
def test_a_transformed_function_is_called_as_it_wants(stateful, takes_key):
    """By stand-ins of Haiku's four kinds."""

    def logits(params, images, is_training):
        assert not is_training
        return images.reshape(len(images), -1)[:, :3] * params[None]

    def with_state(params, state, rng, images, is_training):
        assert rng is None
        return logits(params, images, is_training) + state[None], state

    def with_key(params, rng, images, is_training):
        assert rng is None
        return logits(params, images, is_training)

    apply = {
        (False, False): logits,
        (False, True): with_key,
        (True, False): lambda params, state, images, is_training: with_state(params, state, None, images, is_training),
        (True, True): with_state,
    }[stateful, takes_key]
    params, state = jnp.arange(3.0), jnp.ones(3) if stateful else None
    model = Classifier.from_haiku(Transformed(None, apply), params, state=state, is_training=False)
    np.testing.assert_allclose(model(IMAGES), IMAGES.reshape(5, -1)[:, :3] * np.arange(3) + stateful)
    with pytest.raises(TypeError, match="state must be given where"):
        Classifier.from_haiku(Transformed(None, apply), params, state=None if stateful else params, is_training=False)


def test_haiku_itself():
    haiku = pytest.importorskip("haiku")

    def network(images, is_training):
        hidden = haiku.BatchNorm(True, True, 0.9)(haiku.Conv2D(4, 3)(images), is_training)
        return haiku.Linear(3)(haiku.Flatten()(jax.nn.relu(hidden)))

    transformed = haiku.transform_with_state(network)
    params, state = transformed.init(jax.random.key(0), IMAGES, True)
    model = Classifier.from_haiku(transformed, params, state=state, is_training=False)
    np.testing.assert_allclose(model(IMAGES), transformed.apply(params, state, None, IMAGES, False)[0], rtol=1e-5)
    noisy = haiku.transform(lambda images: haiku.dropout(haiku.next_rng_key(), 0.5, images.reshape(5, -1)))
    with pytest.raises(ValueError, match="PRNGKey"):
        Classifier.from_haiku(noisy, {})(IMAGES)


def test_what_is_not_transformed_is_refused():
    with pytest.raises(TypeError, match=r"transformed must be what haiku\.transform returns; got a function"):
        Classifier.from_haiku(lambda x: x, {})
