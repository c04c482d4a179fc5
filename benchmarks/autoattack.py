"""AutoAttack on published networks, beside what the official code gives."""

from __future__ import annotations

from collections.abc import Iterator

import jax

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, register

# network, norm, radius -> robust accuracy of the official code on the first 1,000 test images, in %
OFFICIAL = {
    ("mnist_vanilla", "linf", 0.1): 7.4,
    ("mnist_vanilla", "l2", 1.0): 46.7,
    ("mnist_wasserstein_adv", "linf", 0.1): 0.0,
    ("mnist_wasserstein_adv", "l2", 1.0): 0.0,
}
KEYS = 3


@register
def autoattack(settings: Settings) -> Iterator[Figure]:
    """AutoAttack standard on two published MNIST networks, first 1,000 test images, by attack and by key."""
    count = 50 if settings.quick else 1000
    data = jr.data.load("mnist", split=f"test[:{count}]")
    for (name, norm, radius), official in OFFICIAL.items():
        model = work.released(settings, name)
        for number in range(1 if settings.quick else KEYS):
            found = jr.evaluate.autoattack(
                model, data, norm=norm, radius=radius, key=jax.random.key(number), progress=settings.progress
            )
            title = f"{name}, {norm} {radius}, key {number}"
            for attack, outcome in found.outcomes.items():
                yield Figure(f"{title}: accuracy after {attack}", 100 * outcome.robust.mean(), "%")
            yield Figure(f"{title}: accuracy", 100 * found.union.accuracy, "%", official + 0.2)
            seconds = sum(outcome.counts.seconds for outcome in found.outcomes.values())
            yield Figure(f"{title}: wall time", seconds, "s")
