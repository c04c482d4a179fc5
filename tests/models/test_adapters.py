"""Flax networks as pure functions: pure, shared compilations, nothing leaks between network and classifier."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxrobust import Classifier
from jaxrobust.models import MnistNet, Trainable, from_linen, from_nnx

# Sowing outside of a capture is deprecated, but networks that do it are about.
pytestmark = pytest.mark.filterwarnings(r"ignore:Using 'Module.sow\(\)' outside:DeprecationWarning")


class Everything(nnx.Module):
    """Batch statistics, dropout, a list, a shared layer, a plain array, something sown, a layer without `set_view`."""

    def __init__(self, seed, rate=0.5):
        rngs = nnx.Rngs(seed)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.again = self.layers[0]
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.shift = nnx.data(jnp.ones((1, 4)))
        self.own = OwnNoise(rngs)
        self.act = nnx.relu

    def activations(self, images):
        flat = images.reshape(images.shape[0], -1)
        return (self.act(self.layers[0](self.norm(flat)) + self.shift),)

    def __call__(self, images):
        hidden = self.activations(images)[0]
        self.sow(nnx.Intermediate, "hidden", hidden)
        return self.again(self.layers[1](self.own(self.drop(hidden))))


class OwnNoise(nnx.Module):
    def __init__(self, rngs):
        self.deterministic = False
        self.rngs = rngs.fork()

    def __call__(self, x):
        return x if self.deterministic else x + self.rngs.noise.normal(x.shape)


class Wrapped(nnx.Module):
    """Calls its layer by way of an NNX transform, which writes random streams back even if none was used."""

    def __init__(self, layer, transform):
        self.layer = layer
        self.transform = transform

    def __call__(self, images):
        return self.transform(lambda layer, x: layer(x))(self.layer, images.reshape(images.shape[0], -1))


class AlwaysNoisy(nnx.Module):
    def __init__(self):
        self.rngs = nnx.Rngs(0)

    def __call__(self, flat):
        return flat + self.rngs.normal((1, 4))


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.random((6, 2, 2, 1)), jnp.float32)


def arrays(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.RngKey))))]


def test_two_networks_of_one_architecture_share_one_compilation(images):
    first, second = from_nnx(Everything(0)), from_nnx(Everything(1))
    assert first.apply == second.apply
    assert hash(first.apply) == hash(second.apply)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert from_nnx(Everything(0, rate=0.4)).apply != first.apply

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(model, images):
        return model(images), model.activations(model.params, images)

    (one, _), (two, _) = run(first, images), run(second, images)
    assert np.any(one != two)
    np.testing.assert_allclose(one, first(images), rtol=1e-6, atol=1e-6)


def test_parameters_are_floats_under_the_networks_own_names():
    params = from_nnx(Everything(0)).params
    assert set(params) == {"norm", "again", "layers", "shift"}
    assert set(params["norm"]) == {"scale", "bias", "mean", "var"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_a_shared_layer_is_held_once():
    kernels = [leaf for leaf in jax.tree.leaves(from_nnx(Everything(0)).params) if leaf.shape == (4, 4)]
    assert len(kernels) == 2


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_evaluation_mode_whatever_mode_the_network_is_in(mode, images):
    network = Everything(0)
    getattr(network, mode)()
    model = from_nnx(network)
    np.testing.assert_array_equal(model(images), model(images))
    np.testing.assert_allclose(model(images[:1]), model(images)[:1], rtol=1e-6)
    assert model.apply == from_nnx(Everything(3)).apply


def test_the_network_is_left_as_it_is(images):
    network = Everything(0)
    before = arrays(network)
    from_nnx(network)(images)
    trainable, params, state = Trainable.from_nnx(network)
    trainable.train(params, state, images, jax.random.key(0))
    for old, new in zip(before, arrays(network), strict=True):
        np.testing.assert_array_equal(old, new)
    assert (network.drop.deterministic, network.norm.use_running_average, network.own.deterministic) == (False,) * 3


def test_later_training_of_the_network_does_not_reach_the_classifier(images):
    network = Everything(0)
    model = from_nnx(network)
    before = np.asarray(model(images))
    nnx.update(network, jax.tree.map(lambda leaf: leaf + 1.0, nnx.state(network, nnx.Param)))
    network(images)
    np.testing.assert_array_equal(before, model(images))


def test_donating_the_numbers_leaves_the_network_usable(images):
    network = Everything(0)
    _, params, state = Trainable.from_nnx(network)
    for leaf in jax.tree.leaves((params, state)):
        leaf.delete()
    assert np.isfinite(from_nnx(network)(images)).all()


def test_a_network_that_has_been_called_has_the_same_structure(images):
    fresh, called = Everything(0), Everything(0)
    called(images)
    assert from_nnx(fresh).apply == from_nnx(called).apply
    assert Trainable.from_nnx(fresh)[0] == Trainable.from_nnx(called)[0]


TRANSFORMS = {"plain": lambda f: f, "jit": nnx.jit, "remat": nnx.remat}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("compile", [jax.jit, lambda f: f], ids=["compiled", "eager"])
def test_a_network_that_stays_random_is_refused(transform, compile, images):
    model = from_nnx(Wrapped(AlwaysNoisy(), transform))
    with pytest.raises(ValueError, match="must be deterministic in evaluation mode"):
        compile(lambda model, images: model(images))(model, images)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_dropout_inside_a_transform_is_switched_off(transform, images):
    model = from_nnx(Wrapped(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), transform))
    np.testing.assert_array_equal(model(images), images.reshape(6, -1))


def test_without_activations_there_are_none(images):
    model = from_nnx(nnx.Sequential(lambda x: x.reshape(x.shape[0], -1), nnx.Linear(4, 2, rngs=nnx.Rngs(0))))
    assert model.activations is None
    assert model(images).shape == (6, 2)


def test_models_stack_and_vmap(images):
    models = [from_nnx(Everything(seed)) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    logits = jax.vmap(lambda model: model(images))(stacked)
    for model, found in zip(models, logits, strict=True):
        np.testing.assert_allclose(found, model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [MnistNet, lambda x: x, {"params": 1}, nnx.Rngs(0)])
def test_what_is_no_network_is_refused(wrong):
    for door in (from_nnx, Trainable.from_nnx, Classifier.from_nnx):
        with pytest.raises(TypeError, match=r"network must be an nnx.Module with a __call__ .*; got "):
            door(wrong)


# Training


def test_trainable_has_no_arrays_and_is_equal_for_equal_architectures():
    first, second = Trainable.from_nnx(Everything(0))[0], Trainable.from_nnx(Everything(1))[0]
    assert jax.tree.leaves(first) == []
    assert first == second
    assert hash(first) == hash(second)
    assert first != Trainable.from_nnx(Everything(0, rate=0.4))[0]


def test_train_uses_and_updates_batch_statistics(images):
    trainable, params, state = Trainable.from_nnx(Everything(0, rate=0.0))
    flat = np.asarray(images).reshape(6, -1)
    logits, new = jax.jit(trainable.train)(params, state, images, jax.random.key(0))
    chex.assert_trees_all_equal_structs(state, new)
    np.testing.assert_allclose(new["norm"]["mean"], 0.5 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["norm"]["var"], 0.5 + 0.5 * flat.var(0), rtol=1e-5)
    shifted, _ = trainable.train(params, state, images + 3.0, jax.random.key(0))
    np.testing.assert_allclose(logits, shifted, rtol=1e-3, atol=1e-3)


def test_dropout_is_a_function_of_the_key(images):
    trainable, params, state = Trainable.from_nnx(Everything(0))
    key, other = jax.random.split(jax.random.key(0))
    first, again, new = (trainable.train(params, state, images, k)[0] for k in (key, key, other))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != new)


def test_two_random_layers_draw_apart():
    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.left, self.right = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, images):
            flat = images.reshape(images.shape[0], -1)
            return jnp.stack([self.left(flat), self.right(flat)])

    trainable, params, state = Trainable.from_nnx(Pair(nnx.Rngs(0)))
    left, right = trainable.train(params, state, jnp.ones((8, 4, 4, 1)), jax.random.key(0))[0]
    assert np.any(left != right)


def test_gradient_steps_in_scan_end_where_the_network_does(images):
    network = Everything(0, rate=0.0)
    network.own.deterministic = True
    trainable, params, state = Trainable.from_nnx(network)

    def step(carry, key):
        params, state = carry
        (loss, state), gradient = jax.value_and_grad(
            lambda p: (lambda logits, new: (jnp.mean(logits**2), new))(*trainable.train(p, state, images, key)),
            has_aux=True,
        )(params)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), state), loss

    (params, state), losses = jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(0), 5))
    assert losses[-1] < losses[0]
    model, network = trainable.classifier(params, state), trainable.merge(params, state)
    assert isinstance(network, Everything)
    assert network.again is network.layers[0]
    np.testing.assert_array_equal(network.norm.mean[...], state["norm"]["mean"])
    np.testing.assert_allclose(model(images), network(images), rtol=1e-6)
    chex.assert_trees_all_equal(from_nnx(network), model)


def test_vectorised_random_streams_are_split():
    class Ensemble(nnx.Module):
        def __init__(self, rngs):
            self.drops = nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs))(rngs.split(3))

        def __call__(self, images):
            flat = images.reshape(images.shape[0], -1)
            return nnx.vmap(lambda drop: drop(flat))(self.drops)

    trainable, params, state = Trainable.from_nnx(Ensemble(nnx.Rngs(0)))
    first, second, third = trainable.train(params, state, jnp.ones((2, 4, 4, 1)), jax.random.key(0))[0]
    assert np.any(first != second)
    assert np.any(second != third)


# Linen


class LinenNet(linen.Module):
    classes: int = 3

    def setup(self):
        self.norm = linen.BatchNorm()
        self.drop = linen.Dropout(0.5)
        self.dense = linen.Dense(self.classes)

    def activations(self, images, train):
        return (self.norm(images, use_running_average=not train),)

    def __call__(self, images, train):
        maps = self.activations(images, train)[0]
        return self.dense(self.drop(maps.reshape(images.shape[0], -1), deterministic=not train))


def test_linen(images):
    variables = [LinenNet().init(jax.random.key(seed), images, train=False) for seed in range(2)]
    first, second = (Classifier.from_linen(LinenNet(), v, train=False) for v in variables)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(model, images):
        return model(images), model.activations(model.params, images)

    for model, numbers in zip((first, second), variables, strict=True):
        logits, maps = run(model, images)
        np.testing.assert_allclose(logits, LinenNet().apply(numbers, images, train=False), rtol=1e-6)
        assert maps[0].shape == images.shape


@pytest.mark.parametrize(
    ("module", "variables", "kwargs", "error", "rule"),
    [
        (LinenNet, {"params": {}}, {}, TypeError, "module must be a flax.linen.Module; got the class LinenNet"),
        (LinenNet(), jnp.ones(3), {}, TypeError, "variables must be a mapping"),
        (LinenNet(), {"kernel": jnp.ones(3)}, {}, ValueError, r"must hold the collection 'params'; got .*\['kernel'\]"),
        (LinenNet(), {"params": {}}, {"train": [False]}, TypeError, "kwargs must be hashable"),
    ],
)
def test_linen_refuses(module, variables, kwargs, error, rule):
    with pytest.raises(error, match=rule):
        from_linen(module, variables, **kwargs)


class BridgedNet(linen.Module):
    """Batch statistics and dropout as Linen networks have them; `silent` is whether evaluation switches dropout off."""

    silent: bool = True

    @linen.compact
    def __call__(self, images, train: bool = False):
        flat = linen.BatchNorm(use_running_average=not train)(images.reshape(images.shape[0], -1))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=self.silent and not train)(flat))


class Around(nnx.Module):
    def __init__(self, inner, rngs):
        self.inner = inner
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        return self.drop(self.inner(images))


def test_bridged_linen_modules_are_taken_although_the_bridge_draws_keys(images):
    bridged = nnx.bridge.ToNNX(BridgedNet(), rngs=nnx.Rngs(0, dropout=1)).lazy_init(images)
    variables = {"params": from_nnx(bridged).params, "batch_stats": {}}
    norm = variables["params"].pop("BatchNorm_0")
    variables["batch_stats"]["BatchNorm_0"] = {name: norm.pop(name) for name in ("mean", "var")}
    variables["params"]["BatchNorm_0"] = norm
    expected = from_linen(BridgedNet(), variables)(images)
    for network in (bridged, Around(bridged, nnx.Rngs(0))):
        model = from_nnx(network)
        np.testing.assert_array_equal(model(images), expected)
        np.testing.assert_allclose(jax.jit(model)(images), expected, atol=1e-6)
    assert bridged.to_nnx__rngs is not None  # the network itself is left as it is


def test_bridged_linen_modules_that_draw_are_refused(images):
    noisy = nnx.bridge.ToNNX(BridgedNet(silent=False), rngs=nnx.Rngs(0, dropout=1)).lazy_init(images)
    with pytest.raises(ValueError, match="network must be deterministic in evaluation mode"):
        from_nnx(noisy)(images)
