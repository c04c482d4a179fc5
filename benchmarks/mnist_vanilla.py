"""The undefended MNIST network of Wong, Schmidt and Kolter 2019: clean and robust accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, register


@register
def mnist_vanilla(settings: Settings) -> Iterator[Figure]:
    """98.89 % clean on 10,000 images; under PGD-100, linf 0.1, not above 10 % of 1,000 (AutoAttack: 7.4 %)."""
    model = work.undefended(settings)
    images, labels = jr.data.load("mnist", "test")
    clean = 100 * float(np.mean(jr.evaluate.predict(model, images).argmax(1) == labels))
    yield Figure("clean accuracy, 10,000 images", clean, "%", 98.885, "at least")
    count, steps = (200, 20) if settings.quick else (1000, 100)
    key = jax.random.key(settings.seed)
    for step, size in {"step 0.01": 0.01, "default step": None}.items():
        for restarts in (1, 5, 20):
            attack = jr.attacks.pgd(jr.sets.Linf(0.1), steps=steps, step_size=size, restarts=restarts)
            data = images[:count], labels[:count]
            report = jr.evaluate.robustness(model, data, {"PGD": attack}, key=key, progress=settings.progress)
            what = f"PGD-{steps}, {step}, {restarts} {'run' if restarts == 1 else 'runs'}"
            yield Figure(f"accuracy under {what}, {count} images", 100 * report.union.accuracy, "%", target=10.0)
            yield Figure(f"{what}: wall time", report.outcomes["PGD"].counts.seconds, "s")
