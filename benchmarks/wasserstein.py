"""Wasserstein balls on MNIST: four ways to search one ball, on the undefended and the Wasserstein-trained network."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, against, register
from jaxrobust.transport.distances import certificate
from jaxrobust.types import pytree

P, KERNEL = 2, 7
RADII = (0.1, 0.3, 1.0)
# accuracies of the released README at radius 1, by the growing attack of the released code
PUBLISHED = {"mnist_vanilla": 4.0, "mnist_wasserstein_adv": 86.0}
STEPS = 5
# inner iterations run until the slowest lane is done, and a lane that is empty costs as much as another
LANES = 25


@pytree("radius", "regularisation")
class Released(jr.sets.WassersteinSinkhorn):
    """Projected Sinkhorn with the released attack's step: 0.1 along the sign of the gradient, whatever the radius."""

    def ascend(self, x: Any, theta: Any, gradient: Any, size: Any) -> Any:
        """x' + 0.1 sign(g)."""
        return self._stepped(theta, 0.1 * jnp.sign(self._asked(gradient)))


@pytree("set", "step_size", "relative_step_size", "start_size", "momentum")
class Growing(jr.attacks.PGD):
    """The released attack: the radius starts at that of the set and grows by a tenth every ten steps."""

    def _move(self, state: Any, gradient: Any) -> Any:
        radius = self.set.radius * 1.1 ** (state.asked // 10).astype(state.x.dtype)
        return jr.attacks.PGD._move(self.with_radius(radius), state, gradient)


def attacks(settings: Settings) -> dict[str, Any]:
    """Name -> attack and how many images it is given; radii are set later."""
    quick = settings.quick
    exact = jr.sets.Wasserstein(0.1, p=P, kernel=KERNEL)
    released = Released(0.1, p=P, kernel=KERNEL, rounds=100)
    ott = jr.sets.WassersteinOTT(0.1, p=P, kernel=KERNEL, iterations=100)
    count = 8 if quick else 200
    few, fewer = (4, 4) if quick else (50, 25)

    def pgd(perturbation_set: Any, steps: int) -> Any:
        return jr.attacks.pgd(perturbation_set, steps=2 if quick else steps, random_start=False)

    frank_wolfe = jr.attacks.frank_wolfe(exact, steps=2 if quick else 150)
    return {
        "(a) Frank-Wolfe, 150 steps": (frank_wolfe, count),
        "(a) PGD by dual projection, 100 steps": (pgd(exact, 100), count),
        "(b) projected Sinkhorn, 50 steps of 0.1": (pgd(released, 50), few),
        "(c) OTT, 20 steps": (pgd(ott, 20), fewer),
    }


@register
def wasserstein(settings: Settings) -> Iterator[Figure]:
    """Accuracy against radius on the first MNIST test images (p = 2, 7 x 7), and the time of an image-step."""
    images, labels = jr.data.load("mnist", split="test[:200]")
    key = jax.random.key(settings.seed)
    for name, published in PUBLISHED.items():
        model = work.released(settings, name)
        for what, (attack, count) in attacks(settings).items():
            data = images[:count], labels[:count]
            for radius in RADII[:1] if settings.quick else RADII:
                rung = {"attack": attack.with_radius(radius)}
                report = jr.evaluate.robustness(model, data, rung, key=key, lanes=LANES, progress=settings.progress)
                title = f"{name}: accuracy at {radius} under {what}, {count} images"
                yield Figure(title, 100 * report.union.accuracy, "%")
                yield Figure(f"{title}: wall time", report.outcomes["attack"].counts.seconds, "s")
        yield from _released(settings, model, name, images, labels, published, key)
    yield from _used(settings, images)
    yield from _times(settings, images, labels)


def _released(
    settings: Settings, model: Any, name: str, images: Any, labels: Any, published: float, key: Any
) -> Iterator[Figure]:
    """The released attack up to radius 1, 0.7 · 1.1^3 = 0.93 being its last radius below; its figure beside ours."""
    perturbation_set = Released(0.7, p=P, kernel=KERNEL, rounds=100)
    attack = Growing(perturbation_set, steps=2 if settings.quick else 40, relative_step_size=0.1, start="clean")
    count = 4 if settings.quick else 50
    data = images[:count], labels[:count]
    report = jr.evaluate.robustness(model, data, {"attack": attack}, key=key, lanes=LANES, progress=settings.progress)
    what = f"{name}: accuracy at 1.0 under (b) as released, radius growing from 0.7, {count} images"
    yield Figure(what, 100 * report.union.accuracy, "%")
    yield Figure(f"{name}: accuracy at 1.0 as published", published, "%")


def _used(settings: Settings, images: Any) -> Iterator[Figure]:
    """Of a radius of 1, what the true distance of an image projected from a step of 0.1 comes to."""
    perturbation_set = Released(1.0, p=P, kernel=KERNEL)
    x = jnp.asarray(images[: 2 if settings.quick else 16])
    signs = jnp.asarray(np.random.default_rng(settings.seed).choice([-1.0, 1.0], x.shape), x.dtype)

    @jax.jit
    def true(x: Any, signs: Any) -> Any:
        def one(x: Any, signs: Any) -> Any:
            gradient = perturbation_set.pullback(x, perturbation_set.init(x), signs)
            stepped = perturbation_set.ascend(x, perturbation_set.init(x), gradient, jnp.ones(()))
            image = perturbation_set.apply(x, perturbation_set.project(x, stepped))
            return certificate(x, image, p=P, kernel=KERNEL)

        return jax.vmap(one)(x, signs)

    yield Figure.of(
        "(b) distance of an image projected on radius 1, of which the rest is blur", np.asarray(true(x, signs))
    )


def _times(settings: Settings, images: Any, labels: Any) -> Iterator[Figure]:
    """What a step takes of all images at once, from the clean image on and so before early stops, by attack."""
    model = work.released(settings, "mnist_vanilla")
    count = 4 if settings.quick else 64
    batch = jnp.asarray(images[:count])
    goal = jr.Misclassified(jnp.asarray(labels[:count], jnp.int32))
    keys = jr.attacks.example_keys(jax.random.key(settings.seed), range(count))
    runs = {}
    for what, (attack, _) in attacks(settings).items():
        begun = work.begin(attack.with_radius(0.3), model, batch, goal, keys)
        runs[what] = functools.partial(work.steps, attack.with_radius(0.3), model, begun, STEPS)
    reference = work.gradients(model, batch, goal.label, times=STEPS)
    for what, timing in against(reference, runs, pairs=settings.repeats(3)).items():
        title = what.split(",")[0]
        yield Figure.of(f"{title}: time of an image-step at 0.3", 1e3 * timing.measured / (STEPS * count), "ms")
