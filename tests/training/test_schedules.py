"""Schedules at their knots, as fractions of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.training import SCHEDULES, TrainConfig, schedule

KNOTS = {
    "constant": {0: 1, 500: 1, 999: 1},
    "cosine": {0: 1, 500: 0.5, 1000: 0},
    "cyclic": {0: 0, 200: 0.5, 400: 1, 700: 0.5, 1000: 0},
    "triangle": {0: 0, 250: 0.5, 500: 1, 1000: 0},
    "linear": {0: 1, 333: 1, 667: 0.1, 1000: 0.01},
    "piecewise": {0: 1, 499: 1, 500: 0.1, 749: 0.1, 750: 0.01, 999: 0.01},
    "one-drop": {0: 1, 499: 1, 500: 0.1, 999: 0.1},
    "multi-decay": {0: 1, 99: 1, 100: 0.9, 550: 0.5, 999: 0.1},
    "piecewise-ft": {0: 1, 332: 1, 333: 0.1, 666: 0.1, 667: 0.01},
    "three-drops": {0: 1, 624: 1, 625: 0.1, 749: 0.1, 750: 0.01, 832: 0.01, 833: 0.001, 999: 0.001},
    "late-drops": {0: 1, 908: 1, 909: 0.1, 954: 0.1, 955: 0.01},
    "multi-norm": {0: 0, 200: 0.5, 400: 1, 600: 0.525, 800: 0.05, 900: 0.025, 1000: 0},
    "perceptual": {0: 0, 25: 0.5, 50: 1, 749: 1, 750: 0.1, 899: 0.1, 900: 0.01},
    "perceptual-imagenet": {0: 0, 28: 0.5, 56: 1, 333: 1, 334: 0.1, 667: 0.01, 889: 0.001},
}


def test_every_schedule_is_tested():
    assert KNOTS.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("name", KNOTS)
def test_knots(name):
    rates = schedule(name, 0.2, 1000)
    steps = np.array(list(KNOTS[name]))
    np.testing.assert_allclose([rates(step) for step in steps], 0.2 * np.array(list(KNOTS[name].values())), atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_shortest_runs(name):
    for total in (1, 2, 3):
        assert all(np.isfinite(schedule(name, 0.1, total)(step)) for step in range(total + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("warp", 0.1, 10), "schedule must be one of .*'cosine'.*; got 'warp'"),
        (("cosine", -0.1, 10), "peak must be finite and >= 0; got -0.1"),
        (("cosine", 0.1, 0), "total_steps must be >= 1; got 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)


def test_a_users_schedule_multiplies_the_learning_rate():
    config = TrainConfig(learning_rate=0.5, schedule=lambda step: 1 / (1 + step))
    assert config.rates(10)(3) == 0.125


def test_clipping_is_of_every_entry_and_comes_before_decay():
    weights, gradient = jnp.array([1.0, -2.0, 4.0]), jnp.array([3.0, -0.5, -7.0])
    config = TrainConfig(optimizer="sgd", learning_rate=0.5, weight_decay=0.1, clip_value=1.0)
    optimizer = config.transformation(10)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
    np.testing.assert_allclose(updates, -0.5 * (np.array([1, -0.5, -1]) + 0.1 * np.array(weights)), rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_only_kernels_decay_where_asked(name):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = TrainConfig(optimizer=name, learning_rate=0.5, weight_decay=0.1, decayed="kernels").transformation(10)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    assert not updates["bias"].any()


def test_nesterovs_first_step_is_longer_by_the_momentum():
    gradient = jnp.array([2.0])
    moved = {}
    for name in ("sgd", "nesterov"):
        optimizer = TrainConfig(optimizer=name, learning_rate=0.5).transformation(10)
        with jax.numpy_dtype_promotion("standard"):
            moved[name] = optimizer.update(gradient, optimizer.init(gradient), gradient)[0]
    np.testing.assert_allclose(moved["nesterov"], 1.9 * moved["sgd"], rtol=1e-6)


def test_equal_settings_give_the_same_optimizer():
    """Else every run would compile its step anew."""
    assert TrainConfig().transformation(10) is TrainConfig(epochs=3).transformation(10)
    assert TrainConfig().transformation(10) is not TrainConfig(optimizer="sgd").transformation(10)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"learning_rate": None}, TypeError, "learning_rate must be a real number|Type-check error"),
        ({"learning_rate": 1e39}, ValueError, "learning_rate must be finite in float32"),
        ({"ema_decay": [0.1, 0.2]}, TypeError, "ema_decay must be a real number|Type-check error"),
        ({"clip_value": ()}, TypeError, "clip_value must be a real number|Type-check error"),
        ({"drop_last": "no"}, TypeError, "drop_last must be True or False|Type-check error"),
        ({"epochs": -1}, ValueError, "epochs must be >= 1; got -1"),
        ({"epochs": 1.5}, TypeError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1; got 0"),
        ({"optimizer": "lion"}, ValueError, "optimizer must be one of .*; got 'lion'"),
        ({"decayed": "biases"}, ValueError, "decayed must be one of"),
        ({"schedule": "warp"}, ValueError, "schedule must be one of .*; got 'warp'"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be > 0; got 0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be"),
        ({"clip_value": 0.0}, ValueError, "clip_value must be > 0"),
        ({"ema_decay": 1.5}, ValueError, "ema_decay must be"),
        ({"validation": 1.0}, ValueError, r"validation must lie in \[0, 1\); got 1.0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be >= 1; got 0"),
        ({"radius_warmup": -1.0}, ValueError, "radius_warmup must be"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        TrainConfig(**settings)
