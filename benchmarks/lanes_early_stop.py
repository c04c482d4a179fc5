"""What the lanes save where examples fall early, and what they cost beside the steps that remain."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, against, register, seconds
from jaxrobust._compile import jit


@register
def lanes_early_stop(settings: Settings) -> Iterator[Figure]:
    """PGD-100 (linf 0.3, step 0.01) on the undefended network over 2,000 MNIST test images, 128 lanes."""
    count, steps, width = (200, 20, 16) if settings.quick else (2000, 100, 128)
    model = work.undefended(settings)
    images, labels = jr.data.load("mnist", f"test[:{count}]")
    key = jax.random.key(settings.seed)
    attack = jr.attacks.pgd(jr.sets.Linf(0.3), steps=steps, step_size=0.01)
    device = jax.local_devices()[:1]

    def lanes() -> Any:
        return jr.evaluate.run_lanes(attack, model, images, labels, key=key, lanes=width, devices=device)

    found = lanes()
    executed, needed = found.counts.executed, found.counts.needed
    yield Figure("steps executed over steps needed", executed / needed, target=1.25)
    yield Figure("steps needed", needed, "lane-steps")

    pairs = settings.repeats(7)
    turns = -(-needed // width)
    keys = jr.attacks.example_keys(key, np.arange(width))
    goal = jr.Misclassified(labels[:width])
    alone = functools.partial(_steps, attack, model, images[:width], goal, keys, turns)
    timing = against(alone, {"": lambda: lanes().result.images}, pairs=pairs)[""]
    yield Figure.of("wall time over that of the needed steps alone", timing.ratio, target=1.5)
    yield Figure.of("wall time", timing.measured, "s")
    gradients = work.gradients(model, images[:width], labels[:width], times=turns)
    timing = against(gradients, {"": lambda: lanes().result.images}, pairs=pairs)[""]
    yield Figure.of("wall time over that of as many input gradients", timing.ratio)

    plain = functools.partial(_plain, attack, model, images, labels, key, width)
    expected = plain()
    yield Figure("the compiled loop, which runs every step", seconds(plain), "s")
    same = (found.result.images == expected.images).all((1, 2, 3))
    for name in ("success", "forwards", "backwards", "code"):
        same &= getattr(found.result, name) == getattr(expected, name)
    yield Figure("examples equal to the compiled loop's, bit by bit", 100 * same.mean(), "%", 100, "at least")
    yield Figure("accuracy", 100 * (1 - found.result.success.mean()), "%")


def _steps(attack: Any, model: Any, images: Any, goal: Any, keys: Any, times: int) -> Any:
    return work.steps(attack, model, work.begin(attack, model, images, goal, keys), times, stop="success")


@jit
def _search(attack: Any, model: Any, images: Any, labels: Any, key: Any, indices: Any) -> Any:
    return jr.attacks.run(attack, model, images, labels, key=key, indices=indices, early_stop=True)


def _plain(attack: Any, model: Any, images: Any, labels: Any, key: Any, width: int) -> Any:
    """`attacks.run` in one program, batch by batch; the last one is filled up with examples from the front."""
    pieces = []
    for start in range(0, len(images), width):
        rows = np.arange(start, start + width)
        rows = np.where(rows < len(images), rows, 0)
        pieces.append(jax.device_get(_search(attack, model, images[rows], labels[rows], key, rows)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *pieces)
