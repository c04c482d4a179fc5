"""How often the model is traced again when a number changes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, compilations, register, seconds


class Traces:
    """A model's forward pass that counts how often Python runs it."""

    def __init__(self, apply: Callable[..., Any]) -> None:
        self.apply = apply
        self.count = 0

    def __call__(self, params: Any, images: Any) -> Any:
        """The forward pass."""
        self.count += 1
        return self.apply(params, images)


@register
def retraces(settings: Settings) -> Iterator[Figure]:
    """Traces and compilations after the first call, when radius, step size, parameters, data and key change."""
    steps, count = (3, 8) if settings.quick else (40, 128)
    plain = work.mnist_net(settings)
    traced = Traces(plain.apply)
    model = dataclasses.replace(plain, apply=traced)
    images, labels = work.unlike(plain, (28, 28, 1), count, seed=settings.seed)
    other_images, other_labels = work.unlike(plain, (28, 28, 1), count, seed=settings.seed + 1)
    key, other_key = jax.random.split(jax.random.key(settings.seed))
    attack = jr.attacks.pgd(jr.sets.Linf(0.1), steps=steps, step_size=0.01)
    scaled = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf * 0.5, model.params))

    calls = {
        "radius": (attack.with_radius(0.2), model, images, labels, key),
        "step size": (dataclasses.replace(attack, step_size=0.02), model, images, labels, key),
        "parameters": (attack, scaled, images, labels, key),
        "data": (attack, model, other_images, other_labels, key),
        "key": (attack, model, images, labels, other_key),
    }
    for engine, run in {"in jit": work.in_jit, "lanes": work.in_lanes}.items():
        before = traced.count
        with compilations() as compiled:
            first = seconds(functools.partial(run, attack, model, images, labels, key))
        yield Figure(f"{engine}: traces by the first call", traced.count - before)
        yield Figure(f"{engine}: programs compiled by the first call", len(compiled))
        yield Figure(f"{engine}: seconds in the compiler", sum(compiled), "s")
        yield Figure(f"{engine}: the first call", first, "s")
        for what, arguments in calls.items():
            before = traced.count
            with compilations() as compiled:
                seconds(functools.partial(run, *arguments))
            yield Figure(f"{engine}: traces when {what} changes", traced.count - before, target=0)
            yield Figure(f"{engine}: compilations when {what} changes", len(compiled), target=0)
