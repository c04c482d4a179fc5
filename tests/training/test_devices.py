"""A run on several devices is the run of one, to rounding; mapped by either function of JAX it is the same."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrobust import attacks
from jaxrobust.models import Trainable
from jaxrobust.sets import L2, Linf
from jaxrobust.training import TrainConfig, adversarial, fit, fit_many, free, several, standard, trainer
from jaxrobust.training._job import Progress
from tests.training.tiny import Mlp, without_times

CONFIG = TrainConfig(
    epochs=2, batch_size=16, learning_rate=0.01, optimizer="sgd", ema_decay=0.9, checkpoint_every=2, validation=0.0
)
ATTACKS = attacks.fgsm(Linf(0.1)), attacks.fgsm(L2(0.5))
OBJECTIVE = adversarial(attacks.rs_fgsm(Linf(0.1)))


def run(objective=OBJECTIVE, config=CONFIG, **options):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (90, 4, 4, 1)).astype(np.float32)
    data = images, (images.mean((1, 2, 3)) > 0.5).astype(np.int32)
    network = Mlp(16, 2, nnx.Rngs(0), norm=True)
    return fit(network, data, objective=objective, config=config, key=jax.random.key(0), progress=False, **options)


def numbers(result):
    networks = (result.network, result.last, result.ema)
    return [nnx.to_pure_dict(nnx.state(network, (nnx.Param, nnx.BatchStat))) for network in networks]


def assert_near(first, second, atol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), numbers(first), numbers(second))


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_devices_make_the_run_of_one(mapping):
    """Batch statistics too, which are of the whole batch."""
    small = dataclasses.replace(CONFIG, epochs=1)
    alone, together = run(config=small), run(config=small, devices=4, mapping=mapping)
    assert_near(alone, together)
    for first, second in zip(without_times(alone.history), without_times(together.history), strict=True):
        assert first == pytest.approx(second, abs=1e-4)


def test_one_device_is_the_one_that_is_named(monkeypatch):
    seen = []
    monkeypatch.setattr(Progress, "read_metrics", lambda progress, metrics, where: seen.append(metrics[-1]["loss"]))
    monkeypatch.setattr(trainer, "_means", lambda progress: {})
    run(config=dataclasses.replace(CONFIG, epochs=1), devices=jax.devices()[1:2])
    assert {device for loss in seen for device in loss.devices()} == {jax.devices()[1]}


def drawn(params, state, images, key):
    flat = images.reshape(len(images), -1)
    noise = jax.random.normal(state["key"], flat.shape)
    return (flat + 0.1 * noise) @ params, {"key": jax.random.split(state["key"])[0]}


def undrawn(params, state, images):
    return images.reshape(len(images), -1) @ params


def test_random_keys_in_a_state_are_trained_and_kept(tmp_path):
    network = Trainable.from_function(
        drawn, np.zeros((16, 2), np.float32), state={"key": jax.random.key(3)}, evaluate=undrawn
    )
    data = np.zeros((32, 4, 4, 1), np.float32), np.arange(32) % 2
    given = {"config": TrainConfig(epochs=2, batch_size=16, validation=0.0), "objective": standard(), "progress": False}
    given |= {"key": jax.random.key(0)}
    kept = [fit(network, data, devices=2, mapping="pmap", run_dir=tmp_path / "one", **given) for _ in range(2)]
    wanted = jax.random.key(3)
    for _ in range(4):
        wanted = jax.random.split(wanted)[0]
    many = [fit_many(network, data, members=1, run_dir=tmp_path / "many", **given) for _ in range(2)]
    for state in [one.last[1] for one in kept] + [jax.tree.map(lambda x: x[0], one.state) for one in many]:
        assert state["key"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mapping"), [("errors", "pmap"), ("free", "shard_map")])
def test_a_run_goes_on_with_another_number_of_devices(name, mapping, tmp_path):
    objective = {"free": free(0.1), "errors": several(*ATTACKS, combine="errors")}[name]
    undisturbed = run(objective)

    class Stopped(Exception):
        pass

    calls = []

    def stops(*args):
        calls.append(args)
        if len(calls) == 7:
            raise Stopped

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Progress, "read_metrics", stops)
        with pytest.raises(Stopped):
            run(objective, devices=2, mapping=mapping, run_dir=tmp_path)
    assert_near(run(objective, devices=4, run_dir=tmp_path), undisturbed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 3}, "batch_size must be divisible by the 3 devices; got 16"),
        ({"devices": 99}, "devices must be at most"),
        ({"devices": 0}, "devices must be >= 1"),
        ({"devices": []}, "devices must be a count or different devices"),
        ({"devices": [0]}, "devices must be a count or different devices"),
        ({"devices": ["a"]}, "devices must be a count or different devices"),
        ({"mapping": "vmap"}, "mapping must be one of"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check error"):
        run(**options)


def test_a_device_named_twice():
    with pytest.raises(ValueError, match="devices must be a count or different devices"):
        run(devices=jax.devices()[:1] * 2)
