"""What training many networks in one program saves, beside as many runs of `fit` in turn."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxrobust as jr
from benchmarks.harness import Figure, Settings, against, register
from jaxrobust import training
from jaxrobust.models import SmallCNN
from jaxrobust.training import TrainConfig, adversarial, fit, standard

CONFIG = TrainConfig(epochs=2, batch_size=16, learning_rate=0.01, validation=0.0)
ALONE = 4  # runs in turn, of which the mean stands for all


class Dense(nnx.Module):
    """Pixels, hidden units, classes."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.second = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        """Logits of digits."""
        return self.second(nnx.relu(self.first(images.reshape(len(images), -1))))


@register
def fit_many(settings: Settings) -> Iterator[Figure]:
    """M networks on random halves of the digits, 2 epochs of batches of 16, over M runs of `fit` in turn."""
    data = jr.data.load("digits", "train")
    halves = np.random.default_rng(settings.seed).random((256, len(data))) < 0.5
    attack = jr.attacks.pgd(jr.sets.Linf(0.1), steps=5)
    curve = (4,) if settings.quick else (16, 64, 256)
    small = functools.partial(Dense, 16)
    cases = {
        "dense 64-16-10, standard": (small, standard(), curve, 5.0),
        "dense 64-16-10, PGD-5": (small, adversarial(attack), curve, 5.0),
        "dense 64-64-10, PGD-5": (functools.partial(Dense, 64), adversarial(attack), curve[:1], 1.0),
        "dense 64-4096-10, standard": (functools.partial(Dense, 4096), standard(), (ALONE,), 1.0),
        "small convolutions, standard": (functools.partial(SmallCNN, width=8, hidden=32), standard(), (ALONE,), 1.0),
    }
    for name, (make, objective, sizes, target) in cases.items():
        yield from _case(settings, name, make, objective, data, halves, sizes, target)


def _case(
    settings: Settings, name: str, make: Any, objective: Any, data: Any, halves: Any, sizes: Any, target: float
) -> Iterator[Figure]:
    key = jax.random.key(settings.seed)
    options = {"objective": objective, "config": CONFIG, "progress": False}
    network = make(rngs=nnx.Rngs(settings.seed))

    def alone() -> Any:
        return [fit(network, data[half], key=key, **options).history for half in halves[:ALONE]]

    def together(size: int) -> Any:
        return training.fit_many(network, data, key=key, subsets=halves[:size], **options).params

    work = {str(size): functools.partial(together, size) for size in sizes}
    timing = against(alone, work, pairs=settings.repeats(3))
    for size in sizes:
        ratio = size / ALONE / timing[str(size)].ratio
        yield Figure.of(f"{name}: M = {size}, runs in turn over one program", ratio, target=target, sense="at least")
    yield Figure.of(f"{name}: one run of `fit`", timing[str(sizes[0])].reference / ALONE, "s")
    yield Figure.of(f"{name}: M = {sizes[-1]}", timing[str(sizes[-1])].measured, "s")
    yield Figure(f"{name}: M = {sizes[0]}, to compile", timing[str(sizes[0])].compile, "s")
