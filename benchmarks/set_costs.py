"""What a PGD step costs on each perturbation set."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, against, register

STEPS = 10


@register
def set_costs(settings: Settings) -> Iterator[Figure]:
    """One PGD step on every registered set over one input gradient, on the MNIST network."""
    model = work.mnist_net(settings)
    images, labels = work.unlike(model, (28, 28, 1), 16 if settings.quick else 128, seed=settings.seed)
    keys = jr.attacks.example_keys(jax.random.key(settings.seed), range(len(images)))
    runs = {}
    for name, make in jr.sets.REGISTRY.items():
        attack = jr.attacks.pgd(make(), steps=40)
        start = _begin(attack, model, images, labels, keys)
        runs[name] = functools.partial(_steps, attack, model, start)
    reference = work.gradients(model, images, labels, times=STEPS)
    for name, timing in against(reference, runs, pairs=settings.repeats(15)).items():
        yield Figure.of(f"a step in {name} over an input gradient", timing.ratio)
        yield Figure(f"{name}: compilation", timing.compile, "s")


@jax.jit
def _begin(attack: Any, model: Any, images: Any, labels: Any, keys: Any) -> Any:
    return jr.attacks.engine.begin(attack, images, jr.Misclassified(labels), keys, model(images), 0)


@jax.jit
def _step(attack: Any, model: Any, states: Any) -> Any:
    return jr.attacks.engine.advance(attack, model, states, stop="never")


def _steps(attack: Any, model: Any, states: Any) -> Any:
    for _ in range(STEPS):
        states = _step(attack, model, states)
    return states
