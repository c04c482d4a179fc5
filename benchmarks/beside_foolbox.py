"""Attacks here and in Foolbox, on the same JAX network, images and budget, one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, register

LINF, ANY = 0.1, 1e6


@dataclasses.dataclass
class _Counted:
    """A network for Foolbox that counts the images it is asked about."""

    forward: Callable[[Any], Any]
    asked: int = 0

    def __call__(self, images: Any) -> Any:
        self.asked += len(images)
        return self.forward(images)


@register(needs=("foolbox",))
def beside_foolbox(settings: Settings) -> Iterator[Figure]:
    """PGD-40, DeepFool, Carlini–Wagner and Boundary on `mnist_vanilla`: what is found, and how long it takes."""
    import foolbox

    count, steps = (8, 5) if settings.quick else (100, 100)
    images, labels = jr.data.load("mnist", split=f"test[:{count}]")
    images, labels = jnp.asarray(images), jnp.asarray(labels).astype(jnp.int32)
    model = work.released(settings, "mnist_vanilla")
    network = _Counted(lambda x: work.forward(model, x))
    theirs = foolbox.models.JAXModel(network, bounds=(0, 1), data_format="channels_last")
    walk = 100 if settings.quick else 2000
    cases = {
        "PGD-40, linf 0.1": (
            foolbox.attacks.LinfPGD(steps=40, rel_stepsize=1 / 30),
            jr.attacks.pgd(jr.sets.Linf(LINF), steps=40, relative_step_size=1 / 30),
        ),
        "DeepFool, l2": (foolbox.attacks.L2DeepFoolAttack(), jr.attacks.deepfool(jr.sets.L2(ANY))),
        f"Carlini-Wagner, l2, 9 x {steps} steps of 0.1": (
            foolbox.attacks.L2CarliniWagnerAttack(steps=steps, stepsize=0.1),
            jr.attacks.carlini_wagner(jr.sets.L2(ANY), steps=steps, step_size=0.1),
        ),
        # as many queries: the steps, every tenth looked at twice, and what both spend on the start
        f"Boundary, l2, {walk} steps": (
            foolbox.attacks.BoundaryAttack(steps=walk),
            jr.attacks.boundary(jr.sets.L2(ANY), queries=walk + walk // 10 + 50),
        ),
    }
    for title, (other, attack) in cases.items():
        network.asked, began = 0, time.perf_counter()
        fixed = title.startswith("PGD")
        _, points, success = other(
            theirs, images, foolbox.criteria.Misclassification(labels), epsilons=LINF if fixed else None
        )
        jax.block_until_ready(points)
        seconds = {"Foolbox": time.perf_counter() - began}
        asked = {"Foolbox": network.asked / count}
        began = time.perf_counter()
        run = jr.evaluate.run_lanes(
            attack, model, np.asarray(images), np.asarray(labels), key=jax.random.key(settings.seed), early_stop=fixed
        ).result
        seconds["here"] = time.perf_counter() - began
        asked["here"] = float(np.mean(run.forwards))
        # where its Carlini-Wagner finds nothing it returns a black image, as a success
        success = np.asarray(success) & np.any(np.asarray(points) != 0, (1, 2, 3))
        found = {"Foolbox": (points, success), "here": (run.images, np.asarray(run.success))}
        for name, (moved, won) in found.items():
            if fixed:
                yield Figure(f"{title}: accuracy, {name}", 100 * (1 - won.mean()), "%")
            else:
                distance = np.linalg.norm((np.asarray(moved) - np.asarray(images)).reshape(count, -1), axis=1)
                # what was not fooled is infinitely far
                yield Figure(f"{title}: median distance, {name}", np.median(np.where(won, distance, np.inf)))
            yield Figure(f"{title}: images classified for each, {name}", asked[name])
            yield Figure(f"{title}: wall time, {name}", seconds[name], "s")
        yield Figure(f"{title}: wall time over Foolbox's", seconds["here"] / seconds["Foolbox"])
