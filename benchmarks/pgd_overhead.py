"""PGD-40 against the 40 input gradients that it cannot do without."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, against, register

TARGETS = {"MnistNet": 1.10, "PreActResNet-18": 1.05}


@register
def pgd_overhead(settings: Settings) -> Iterator[Figure]:
    """Wall time of PGD-40 (linf, batch 128) over 40 times one compiled input gradient."""
    steps, count = (4, 16) if settings.quick else (40, 128)
    key = jax.random.key(settings.seed)
    for name in settings.networks:
        model, shape, radius = work.network(name, settings)
        images, labels = work.unlike(model, shape, count, seed=settings.seed)
        attack = jr.attacks.pgd(jr.sets.Linf(radius), steps=steps)
        arguments = (attack, model, images, labels, key)
        engines = {"in jit": work.in_jit, "lanes": work.in_lanes}
        if name == "MnistNet":  # for a large network it would be minutes spent on the in-jit program once more
            engines["eager"] = work.eagerly
        runs = {kind: functools.partial(run, *arguments) for kind, run in engines.items()}
        # For a large network a few of the gradients stand for all of them: seconds each, they vary little.
        times = steps if name == "MnistNet" else steps // 4
        reference = work.gradients(model, images, labels, times=times)
        pairs = settings.repeats(11 if name == "MnistNet" else 3)
        timings = against(reference, runs, pairs=pairs)
        for kind, timing in timings.items():
            target = None if kind == "eager" else TARGETS[name]
            yield Figure.of(f"{name}, {kind}", timing.ratio * times / steps, target=target)
        for kind, timing in timings.items():
            yield Figure(f"{name}, {kind}: compilation", timing.compile, "s")
        yield Figure.of(f"{name}: one input gradient", timings["in jit"].reference / times * 1000, "ms")
        one = work.gradients(model, images, labels, times=1)
        passes = against(one, {"": functools.partial(work.forward, model, images)}, pairs=pairs)[""]
        yield Figure.of(f"{name}: a forward pass over an input gradient (a run has three)", passes.ratio)
