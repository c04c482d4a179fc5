"""One network, whether of NNX, of Linen or of functions, trains to the same numbers; in low precision to near ones."""

import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxrobust import attacks, training
from jaxrobust.models import Trainable, from_equinox
from jaxrobust.sets import Linf
from tests.training import tiny


class LinenMlp(linen.Module):
    """`tiny.Mlp` in Linen."""

    @linen.compact
    def __call__(self, images, train):
        hidden = linen.relu(linen.Dense(16, name="first")(images.reshape(images.shape[0], -1)))
        hidden = linen.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(hidden)
        return linen.Dense(3, name="second")(linen.Dropout(0.0, deterministic=not train)(hidden))


def both():
    """The same numbers in both libraries' networks."""
    taken = Trainable.from_nnx(tiny.Mlp(16, 3, tiny.nnx.Rngs(0), norm=True))
    params, norm = taken[1], taken[2]["norm"]
    variables = {"params": params, "batch_stats": {"norm": {"mean": norm["mean"], "var": norm["var"]}}}
    return taken, Trainable.from_linen(LinenMlp(), variables)


OBJECTIVE = training.mixed(attacks.fgsm(Linf(0.1)))


def steps(taken, count=3, **options):
    trainable, params, state = taken
    before = training.TrainState.create(params, state, tiny.SGD)
    for number in range(count):
        before, metrics = compiled(
            OBJECTIVE, trainable, tiny.SGD, before, tiny.make_batch(), jax.random.key(number), **options
        )
    return before, metrics


compiled = jax.jit(training.train_step, static_argnames=("optimizer", "augment", "accumulate"))


def test_linen_trains_as_nnx_does():
    (nnx_state, nnx_metrics), (linen_state, linen_metrics) = map(steps, both())
    np.testing.assert_allclose(nnx_metrics["loss"], linen_metrics["loss"], rtol=1e-5)
    for path in (("first", "kernel"), ("norm", "scale"), ("second", "bias")):
        one, other = (functools.reduce(lambda t, name: t[name], path, s.params) for s in (nnx_state, linen_state))
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(
        nnx_state.state["norm"]["var"], linen_state.state["batch_stats"]["norm"]["var"], rtol=1e-5
    )


def linear(params, images):
    return images.reshape(len(images), -1) @ params["kernel"] + params["bias"][None]


def counting(params, state, images, key):
    return linear(params, images), state + 1


def counted(params, state, images):
    return linear(params, images) + 0 * state


def test_fit_takes_functions_and_linen():
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (64, 2, 2, 1)).astype(np.float32)
    data = images, (images.mean((1, 2, 3)) > 0.5).astype(np.int32)
    config = training.TrainConfig(epochs=2, batch_size=16, learning_rate=0.1, validation=0.25)
    fit = functools.partial(
        training.fit,
        train_data=data,
        config=config,
        key=jax.random.key(0),
        objective=training.standard(),
        progress=False,
    )
    params = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
    plain = fit(Trainable.from_function(linear, params))
    with_state = fit(Trainable.from_function(counting, params, state=jnp.zeros(()), evaluate=counted))
    assert plain.history[-1]["loss"] < 0.69
    assert plain.history[-1]["loss"] == pytest.approx(with_state.history[-1]["loss"], abs=1e-6)
    assert with_state.last[1] == 6
    assert plain.classifier(images[:3]).shape == (3, 2)

    variables = LinenMlp().init(jax.random.key(0), images, train=False)
    result = fit(Trainable.from_linen(LinenMlp(), variables))
    assert jax.tree.structure(result.network) == jax.tree.structure(variables)
    logits = LinenMlp().apply(result.network, images[:3], train=False)
    np.testing.assert_allclose(result.classifier(images[:3]), logits, rtol=1e-5)


def test_equinox_by_its_arrays():
    """Its structure is part of the function, its arrays are the parameters."""
    module = equinox.nn.MLP(16, 3, 8, 1, key=jax.random.key(0))
    params, static = equinox.partition(module, equinox.is_array)

    def apply(params, images):
        return jax.vmap(equinox.combine(params, static))(images.reshape(len(images), -1))

    state, metrics = steps(Trainable.from_function(apply, params))
    assert np.isfinite(metrics["loss"])
    trained = from_equinox(equinox.nn.Sequential([equinox.nn.Lambda(jnp.ravel), equinox.combine(state.params, static)]))
    images = tiny.make_batch().images
    np.testing.assert_allclose(trained(images), apply(state.params, images), atol=1e-6)


def test_accumulating_is_the_step_of_the_whole():
    taken = Trainable.from_nnx(tiny.Mlp(16, 3, tiny.nnx.Rngs(0)))
    (whole, metrics), (parts, same) = steps(taken), steps(taken, accumulate=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole, parts)
    assert {name: float(value) for name, value in same.items()} == pytest.approx(
        {name: float(value) for name, value in metrics.items()}, abs=1e-5
    )


def test_low_precision_computes_low_and_remembers_high():
    taken = Trainable.from_nnx(tiny.Mlp(16, 3, tiny.nnx.Rngs(0), norm=True))
    low = (taken[0].computing("bfloat16"), *taken[1:])
    (exact, metrics), (near, about) = steps(taken), steps(low)
    assert jax.tree.map(lambda x: x.dtype, near) == jax.tree.map(lambda x: x.dtype, exact)
    assert float(about["loss"]) != float(metrics["loss"])
    assert float(about["loss"]) == pytest.approx(float(metrics["loss"]), rel=0.02)
    images = jnp.asarray(tiny.make_batch().images)
    lowered = jax.jit(low[0].classifier(*low[1:])).lower(images).as_text()
    assert "dot_general" in lowered
    assert "xbf16>) -> tensor" in lowered
    assert taken[0].computing("float32") == taken[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, {}), TypeError, "apply must be a function; got a int|Type-check error"),
        ((linear, {}, 1.0), ValueError, "evaluate must be given where there is a state"),
    ],
)
def test_bad_functions(arguments, error, message):
    with pytest.raises(error, match=message):
        Trainable.from_function(*arguments[:2], state=arguments[2] if len(arguments) == 3 else None)


def test_bad_networks():
    with pytest.raises(TypeError, match=r"module must be a flax\.linen\.Module"):
        Trainable.from_linen(tiny.Mlp(16, 3, tiny.nnx.Rngs(0)), {"params": {}})
    with pytest.raises(TypeError, match="fit also takes what Trainable"):
        training.fit(
            lambda x: x, (np.zeros((4, 2, 2, 1)), np.zeros(4)), objective=training.standard(), key=jax.random.key(0)
        )


class Sowing(linen.Module):
    @linen.compact
    def __call__(self, images, train):
        self.sow("losses", "norm", images.sum())
        return linen.BatchNorm(use_running_average=not train)(linen.Dense(3)(images.reshape(len(images), -1)))


def test_what_is_sown_does_not_grow():
    images, module = jnp.ones((2, 2, 2, 1)), Sowing()
    trainable, params, state = Trainable.from_linen(module, module.init(jax.random.key(0), images, train=False))
    after = trainable.train(params, state, images, jax.random.key(0))[1]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert not np.array_equal(after["batch_stats"]["BatchNorm_0"]["var"], state["batch_stats"]["BatchNorm_0"]["var"])


@pytest.mark.parametrize("after", [[0.0, 1.0], [np.zeros(3, np.float32)], [np.int32(0)]])
def test_a_state_that_changes_structure_is_refused(after):
    trainable, *numbers = Trainable.from_function(lambda *args: (args[2], after), 1.0, state=[0.0], evaluate=linear)
    with pytest.raises(ValueError, match="apply must return a state of the structure it was given"):
        trainable.train(*numbers, jnp.ones((2, 2, 2, 1)), jax.random.key(0))
