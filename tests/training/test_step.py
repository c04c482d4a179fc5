"""The pure step: exact values on a linear model, weights of padding, devices, averaging, no retrace."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxrobust import attacks
from jaxrobust.data import Batch
from jaxrobust.sets import L1, L2, Linf
from jaxrobust.training import adversarial, mixed, standard, train_step
from jaxrobust.types import Misclassified
from tests.training.tiny import Linear, Mlp, assert_equal, make_batch, start, take_steps


@pytest.mark.parametrize(("perturbations", "dual"), [(Linf, 1), (L2, 2), (L1, np.inf)])
def test_adversarial_loss_of_a_linear_model_has_a_closed_form(perturbations, dual, rng):
    network = Linear(16, 2, nnx.Rngs(0))
    batch = make_batch(classes=2)
    # far enough from 0 and 1 for no box to bind
    batch = batch._replace(images=(0.4 + 0.2 * batch.images).astype(np.float32))
    radius = 0.1
    objective = adversarial(attacks.pgd(perturbations(radius), steps=60, relative_step_size=0.2, random_start=False))
    _, metrics = take_steps(objective, network, batch)
    kernel, bias = np.asarray(network.dense.kernel[...], np.float64), np.asarray(network.dense.bias[...], np.float64)
    logits = batch.images.reshape(8, -1) @ kernel + bias
    sign = np.where(batch.labels == 1, 1, -1)
    margin = sign * (logits[:, 1] - logits[:, 0])
    worst = margin - radius * np.linalg.norm(kernel[:, 1] - kernel[:, 0], dual)
    np.testing.assert_allclose(metrics["loss"], np.logaddexp(0, -worst).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["adv_acc"], (worst > 0).mean(), atol=1e-6)
    np.testing.assert_allclose(metrics["clean_acc"], (margin > 0).mean(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "perturbations"), [(attacks.rs_fgsm, Linf), (attacks.fgsm, L2)])
def test_radius_zero_is_clean_training_bit_for_bit(make, perturbations):
    network = Mlp(16, 3, nnx.Rngs(0), norm=True, dropout=0.3)
    batch = make_batch()
    clean, clean_metrics = take_steps(standard(), network, batch, steps=3, augment=jitter)
    objective = adversarial(make(perturbations(0.0)))
    robust, metrics = take_steps(objective, network, batch, steps=3, augment=jitter)
    assert_equal(clean, robust)
    assert metrics["loss"] == clean_metrics["loss"]
    assert metrics["delta_linf"] == metrics["delta_l2"] == 0


def jitter(key, images, index):
    noise = jax.vmap(lambda k: jax.random.uniform(k, images.shape[1:]))(attacks.example_keys(key, index))
    return 0.5 * images + 0.5 * noise


def grey(key, images, index):
    return 0.5 + 0 * images


def test_augmentation_comes_before_the_attack():
    network, batch = Mlp(16, 3, nnx.Rngs(0)), make_batch()
    objective = adversarial(attacks.fgsm(Linf(0.1)))
    augmented = take_steps(objective, network, batch, augment=grey)
    plain = take_steps(objective, network, batch._replace(images=0.5 + 0 * batch.images))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), augmented, plain)
    assert augmented[1]["delta_linf"] > 0


def test_fast_training_reaches_the_corners_of_the_ball():
    """With a step of two radii, wherever it started, every coordinate with a gradient ends at ±ε (no box active)."""
    network = Linear(16, 2, nnx.Rngs(0))
    network.dense.kernel[...] = network.dense.kernel[...].at[3].set(1.0)  # equal for both classes: no gradient there
    batch = make_batch(classes=2)
    images = jnp.asarray(0.4 + 0.2 * batch.images, jnp.float32)
    attack = attacks.rs_fgsm(Linf(0.1), relative_step_size=2.0)
    trainable, _, state = start(network)
    model = trainable.classifier(state.params, state.state)
    keys = attacks.example_keys(jax.random.key(0), batch.index)
    goal = Misclassified(jnp.asarray(batch.labels))
    found = jax.jit(attacks.last_iterate)(attack, model, images, goal, keys)
    size = np.abs(np.asarray(found - images)).reshape(8, 16)
    np.testing.assert_allclose(np.delete(size, 3, axis=1), 0.1, atol=1e-6)
    assert (size[:, 3] < 0.0999).any()


def test_padding_has_no_effect():
    network = Mlp(16, 3, nnx.Rngs(0))
    small = make_batch(count=5)
    garbage = np.full((3, 4, 4, 1), 7.0, np.float32)
    padded = Batch(
        np.concatenate([small.images, garbage]),
        np.concatenate([small.labels, np.zeros(3, np.int32)]),
        np.array([True] * 5 + [False] * 3),
        np.concatenate([small.index, np.zeros(3, np.int32)]),
    )
    objective = mixed(attacks.fgsm(Linf(0.1)), label_smoothing=0.1)
    alone, together = take_steps(objective, network, small), take_steps(objective, network, padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, together)


def test_uint8_images_are_scaled():
    network = Mlp(16, 3, nnx.Rngs(0))
    batch = make_batch()
    raw = np.round(batch.images * 255).astype(np.uint8)
    state, _ = take_steps(standard(), network, batch._replace(images=raw))
    other, _ = take_steps(standard(), network, batch._replace(images=raw.astype(np.float32) / 255))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), state, other)


def test_four_devices_make_the_step_of_one():
    objective = adversarial(attacks.rs_fgsm(Linf(0.1)), label_smoothing=0.1)
    network = Mlp(16, 3, nnx.Rngs(0))
    batch = make_batch(count=16, mask=np.array([1.0] * 11 + [0.0] * 5, np.float32))  # devices of 4, 4, 3 and 0 examples
    trainable, optimizer, state = start(network, optimizer=optax.sgd(0.1, momentum=0.9), with_ema=True)
    alone = functools.partial(train_step, objective, trainable, optimizer, ema_decay=0.9)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.jit(
        jax.shard_map(
            functools.partial(alone, axis_name="data"),
            mesh=mesh,
            in_specs=(P(), P("data"), P()),
            out_specs=(P(), P()),
            check_vma=False,
        )
    )
    key = jax.random.key(1)
    first, second = state, state
    for _ in range(3):
        first, metrics = jax.jit(alone)(first, batch, key)
        second, other = mapped(second, batch, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), (first, metrics), (second, other))


def test_devices_average_batch_statistics():
    network = Mlp(16, 3, nnx.Rngs(0), norm=True)
    batch = make_batch(count=8)
    trainable, optimizer, state = start(network)
    step = functools.partial(train_step, standard(), trainable, optimizer)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P(), P("data"), P()), "out_specs": (P(), P())}  # with JAX's own check of what varies
    mapped, _ = jax.jit(jax.shard_map(functools.partial(step, axis_name="data"), mesh=mesh, **specs))(
        state, batch, jax.random.key(0)
    )
    alone, _ = take_steps(standard(), network, batch)
    np.testing.assert_allclose(mapped.state["norm"]["mean"], alone.state["norm"]["mean"], atol=1e-6)


def test_numbers_never_retrace():
    count = [0]

    def traces():
        count[0] += 1

    network = Mlp(16, 3, nnx.Rngs(0), traces=traces)
    trainable, _, _ = start(network)
    optimizer = optax.sgd(optax.linear_schedule(0.1, 0.0, 10))
    _, _, state = start(network, optimizer=optimizer)
    step = jax.jit(lambda *args, decay: train_step(args[0], trainable, optimizer, *args[1:], ema_decay=decay))
    objective = adversarial(attacks.pgd(Linf(0.1), steps=3, random_start=False), label_smoothing=0.1)
    state, _ = step(objective, state, make_batch(0), jax.random.key(0), decay=0.5)
    first = count[0]
    assert first > 0
    for number in range(1, 4):
        attack = objective.attack.with_radius(0.1 * number)
        changed = dataclasses.replace(objective, attack=attack)
        state, _ = step(changed, state, make_batch(number), jax.random.key(number), decay=0.1 * number)
    assert count[0] == first


def test_same_key_same_numbers_and_another_key_others():
    network = Mlp(16, 3, nnx.Rngs(0), norm=True, dropout=0.2)
    objective = adversarial(attacks.rs_fgsm(Linf(0.1)))
    runs = [take_steps(objective, network, make_batch(), steps=2, seed=seed) for seed in (0, 0, 1)]
    assert_equal(runs[0], runs[1])
    assert float(runs[0][1]["loss"]) != float(runs[2][1]["loss"])


@pytest.mark.parametrize(
    ("count", "shape", "classes"), [(1, (4, 4, 1), 3), (4, (4, 4, 1), 2), (3, (3, 5, 3), 4), (2, (6, 2, 1), 2)]
)
def test_odd_shapes(count, shape, classes):
    network = Mlp(int(np.prod(shape)), classes, nnx.Rngs(0))
    batch = make_batch(count=count, shape=shape, classes=classes)
    state, metrics = take_steps(adversarial(attacks.fgsm(Linf(0.1))), network, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert int(state.step) == 1


def test_average_of_resting_parameters_is_a_fixed_point():
    network = Mlp(16, 3, nnx.Rngs(0), norm=False)
    state, _ = take_steps(
        standard(), network, make_batch(), steps=5, with_ema=True, optimizer=optax.sgd(0.0), ema_decay=0.9
    )
    assert_equal(state.ema[0], state.params)


def test_average_follows_its_recursion():
    network = Mlp(16, 3, nnx.Rngs(0), norm=True)
    batch = make_batch()
    kernels, averages = [], []
    for steps in range(4):
        state, _ = take_steps(standard(), network, batch, steps=steps, with_ema=True, ema_decay=0.15)
        kernels.append(np.asarray(state.params["first"]["kernel"], np.float64))
        averages.append(np.asarray(state.ema[0]["first"]["kernel"], np.float64))
    expected = kernels[0]
    for t in range(3):
        decay = min(0.15, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * kernels[t + 1]
        np.testing.assert_allclose(averages[t + 1], expected, atol=1e-6)
    assert state.evaluated is state.ema
    assert float(jnp.abs(state.ema[1]["norm"]["mean"] - state.state["norm"]["mean"]).max()) > 0


def test_donated_state_leaves_the_network_alone():
    network = Mlp(16, 3, nnx.Rngs(0))
    trainable, optimizer, state = start(network, with_ema=True)
    step = jax.jit(lambda s, b, k: train_step(standard(), trainable, optimizer, s, b, k), donate_argnums=0)
    for _ in range(2):
        state, _ = step(state, make_batch(), jax.random.key(0))
    assert np.isfinite(np.asarray(network.first.kernel[...])).all()
