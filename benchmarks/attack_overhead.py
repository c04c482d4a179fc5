"""What an evaluation's attacks cost over the passes that they cannot do without."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, against, register


@register
def attack_overhead(settings: Settings) -> Iterator[Figure]:
    """APGD-100 over 100 input gradients, Square's queries over forward passes (MNIST net, batch 128, the lanes)."""
    steps, count = (4, 16) if settings.quick else (100, 128)
    model = work.mnist_net(settings)
    images, labels = work.unlike(model, (28, 28, 1), count, seed=settings.seed)
    key = jax.random.key(settings.seed)
    for ball in (jr.sets.Linf(0.3), jr.sets.L2(2.0), jr.sets.L1(10.0)):
        attack = jr.attacks.apgd(ball, steps=steps)
        run = functools.partial(work.in_lanes, attack, model, images, labels, key)
        reference = work.gradients(model, images, labels, times=steps)
        timing = against(reference, {"": run}, pairs=settings.repeats(7))[""]
        yield Figure.of(f"APGD-{steps} in {ball} over {steps} input gradients", timing.ratio, target=1.10)
    for ball in (jr.sets.Linf(0.3), jr.sets.L2(2.0)):
        attack = jr.attacks.square(ball, queries=5 * steps)
        run = functools.partial(work.in_lanes, attack, model, images, labels, key)
        timing = against(_forwards(model, images, 5 * steps), {"": run}, pairs=settings.repeats(7))[""]
        yield Figure.of(f"Square in {ball}, {5 * steps} queries, over as many forward passes", timing.ratio)
        yield Figure.of(f"Square in {ball}: queries a second", 5 * steps * count / timing.measured)


def _forwards(model: Any, images: Any, times: int) -> Any:
    def run() -> Any:
        for _ in range(times):
            logits = work.forward(model, images).block_until_ready()
        return logits

    return run
