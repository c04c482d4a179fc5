"""What a PGD step costs on each perturbation set."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
from flax import nnx

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, against, register

STEPS = 3


@register
def set_costs(settings: Settings) -> Iterator[Figure]:
    """One PGD step on every set over one input gradient: a ResNet-18 of quarter width, 32 x 32 RGB images."""
    widths = (4, 8, 8, 16) if settings.quick else (16, 32, 64, 128)
    model = jr.Classifier.from_nnx(jr.models.PreActResNet(widths=widths, rngs=nnx.Rngs(settings.seed)))
    images, labels = work.unlike(model, (32, 32, 3), 4 if settings.quick else 32, seed=settings.seed)
    keys = jr.attacks.example_keys(jax.random.key(settings.seed), range(len(images)))
    # the usual bounds where there are any; a mask fixes the shape of its images, and costs what its set costs
    sets = {name: entry() for name, entry in jr.sets.REGISTRY.items() if name != "masked"}
    sets |= jr.sets.standard("cifar10")
    if settings.quick:
        sets = {name: sets[name] for name in ("linf", "flow", "perceptual")}
    reference = work.gradients(model, images, labels, times=STEPS)
    for name, perturbation_set in sets.items():
        attack = jr.attacks.pgd(perturbation_set, steps=40).bound_to(model)
        start = work.begin(attack, model, images, jr.Misclassified(labels), keys)
        runs = {name: functools.partial(work.steps, attack, model, start, STEPS)}
        for timing in against(reference, runs, pairs=settings.repeats(3)).values():
            yield Figure.of(f"a step in {perturbation_set} ({name}) over an input gradient", timing.ratio)
            yield Figure(f"{name}: compilation", timing.compile, "s")
