"""What a training step costs over the passes that it cannot do without, and by which mapping."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, against, register
from jaxrobust import training
from jaxrobust._compile import jit
from jaxrobust.data import Batch
from jaxrobust.training._placement import numbered_step, placement

OPTIMIZER = optax.sgd(0.01, momentum=0.9)
BALLS = jr.sets.Linf(8 / 255), jr.sets.L2(1.0), jr.sets.L1(12.0)
_step = jit(numbered_step, static_argnames=("optimizer", "augment", "accumulate"))


def _objectives(steps: int) -> dict[str, tuple[Any, tuple[int, int, int]]]:
    """Objectives, and their input gradients, forward passes and training passes."""
    ascents = [jr.attacks.pgd(ball, steps=steps) for ball in BALLS]
    lpa = jr.attacks.fast_lpa(jr.sets.Perceptual(0.5), steps=steps)
    return {
        f"PGD-{steps} adversarial training": (training.adversarial(ascents[0], clean_metric=False), (steps, 0, 1)),
        f"TRADES, {steps} steps": (training.trades(ascents[0]), (steps, 1, 2)),
        f"E-AT of three sets, {steps} steps": (
            training.several(*ascents, combine="errors", clean_metric=False),
            (steps, 0, 1),
        ),
        f"PAT, self-bounded, {steps} steps": (
            training.adversarial(lpa, clean_metric=False),
            (steps, steps + 1, 1),
        ),
    }


@register
def train_step_overhead(settings: Settings) -> Iterator[Figure]:
    """A training step over its passes timed alone (ResNet-18 at 32 pixels, batch 16), and pmap over shard_map."""
    count, steps = (4, 2) if settings.quick else (16, 5)
    widths = (4, 8, 8, 8) if settings.quick else (64, 128, 256, 512)
    network = jr.models.PreActResNet(widths=widths, rngs=nnx.Rngs(settings.seed))
    trainable, params, state = training_parts = jr.models.Trainable.from_nnx(network)
    model = trainable.classifier(params, state)
    images, labels = work.unlike(model, (32, 32, 3), count, seed=settings.seed)
    batch = Batch(images, labels, np.ones(count, bool), np.arange(count, dtype=np.int32))
    for name, (objective, passes) in _objectives(steps).items():
        alone = _passes(trainable, params, state, batch, *passes)
        timing = against(alone, {"": _stepped(objective, training_parts, batch)}, pairs=settings.repeats(5))[""]
        yield Figure.of(f"{name}: the step over its passes", timing.ratio, target=1.10)
    if len(jax.local_devices()) == 1:
        return
    objective = training.adversarial(jr.attacks.fgsm(BALLS[0]))
    mapped = {mapping: _mapped(mapping, objective, training_parts, batch) for mapping in ("shard_map", "pmap")}
    timing = against(mapped["shard_map"], {"": mapped["pmap"]}, pairs=settings.repeats(5))[""]
    yield Figure.of("FGSM step on two devices: pmap over shard_map", timing.ratio)


def _stepped(objective: Any, parts: tuple[Any, Any, Any], batch: Any) -> Callable[[], Any]:
    trainable, params, state = parts
    memory = training.first_memory(objective, trainable, params, state, batch)
    start = training.TrainState.create(params, state, OPTIMIZER, memory=memory)
    decay, key = np.float32(0), jax.random.key(0)

    def run() -> Any:
        return _step(objective, trainable, OPTIMIZER, start, batch, key, decay, augment=None, accumulate=1)

    return run


def _mapped(mapping: str, objective: Any, parts: tuple[Any, Any, Any], batch: Any) -> Callable[[], Any]:
    trainable, params, state = parts
    place = placement(2, mapping, batch_size=len(batch.labels))
    held = [place.place(training.TrainState.create(params, state, OPTIMIZER))]
    decay, key = np.float32(0), jax.random.key(0)

    def run() -> Any:
        held[0], metrics = place.step(objective, trainable, OPTIMIZER, held[0], batch, key, decay, None, 1)
        return metrics

    return run


def _passes(
    trainable: Any, params: Any, state: Any, batch: Any, gradients: int, forwards: int, trained: int
) -> Callable[[], Any]:
    model = trainable.classifier(params, state)

    @functools.partial(jit, static_argnums=0)
    def weight_gradient(count: int, params: Any, images: Any) -> Any:
        def loss(params: Any) -> Any:
            found = 0.0
            for index in range(count):
                logits, _ = trainable.train(params, state, images + index * 1e-3, jax.random.key(0))
                found += optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
            return jnp.asarray(found)

        return jax.grad(loss)(params)

    def run() -> Any:
        # one after the other, as in the step: XLA:CPU may run independent programs at the same time
        for _ in range(gradients):
            work.input_gradient(model, batch.images, batch.labels).block_until_ready()
        for _ in range(forwards):
            work.forward(model, batch.images).block_until_ready()
        return weight_gradient(trained, params, batch.images)

    return run
