"""The unforeseen attacks of Kang et al.: their schedules, and the six sizes of each attack that UAR is measured at."""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxrobust import _checks
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.gradient.frank_wolfe import FrankWolfe, frank_wolfe
from jaxrobust.attacks.gradient.pgd import PGD, pgd
from jaxrobust.sets import L1, L2, Linf, PerturbationSet
from jaxrobust.sets.jpeg import JPEG
from jaxrobust.sets.spatial import Elastic
from jaxrobust.sets.weather import Fog, Gabor, Snow

__all__ = ["LADDERS", "kang", "unforeseen_sets"]

MAKERS: dict[str, Callable[[float], PerturbationSet]] = {
    "linf": lambda size: Linf(size / 255),
    "l2": lambda size: L2(size / 255),
    "l1": lambda size: L1(size / 255),
    "jpeg_linf": lambda size: JPEG(size, norm="linf"),
    "jpeg_l2": lambda size: JPEG(size, norm="l2"),
    "jpeg_l1": lambda size: JPEG(size, norm="l1"),
    "elastic": Elastic,
    "fog": Fog,
    "gabor": Gabor,
    "snow": Snow,
}

# data set -> attack -> the six sizes as published; those of lp balls in units of 1/255, l1 summed over the image
LADDERS: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar10": {
        "linf": (1, 2, 4, 8, 16, 32),
        "l2": (40, 80, 160, 320, 640, 2560),
        "l1": (195, 390, 780, 1560, 6240, 24960),
        "jpeg_linf": (0.03125, 0.0625, 0.125, 0.25, 0.5, 1),
        "jpeg_l2": (0.25, 0.5, 1, 2, 4, 8),
        "jpeg_l1": (2, 8, 64, 256, 512, 1024),
        "elastic": (0.125, 0.25, 0.5, 1, 2, 8),
    },
    "imagenet100": {
        "linf": (1, 2, 4, 8, 16, 32),
        "l2": (150, 300, 600, 1200, 2400, 4800),
        "l1": (9562.5, 19125, 76500, 153000, 306000, 612000),
        "jpeg_linf": (0.0625, 0.125, 0.25, 0.5, 1, 2),
        "jpeg_l2": (8, 16, 32, 64, 128, 256),
        "jpeg_l1": (256, 1024, 4096, 16384, 65536, 131072),
        "elastic": (0.25, 0.5, 2, 4, 8, 16),
        "fog": (128, 256, 512, 2048, 4096, 8192),
        "gabor": (6.25, 12.5, 25, 400, 800, 1600),
        "snow": (0.0625, 0.125, 0.25, 2, 4, 8),
    },
}


def unforeseen_sets(dataset: str) -> dict[str, tuple[PerturbationSet, ...]]:
    """The attacks of the UAR metric, each as six sets of growing size.

    Args:
        dataset: "cifar10" (7 attacks, images of 32 x 32) or "imagenet100" (10 attacks, 224 x 224).

    Returns:
        Attack name -> six sets, ready for `kang`. Sizes that are published in units of 1/255 are converted where the
        set's radius has another unit. JPEG l2 on CIFAR-10 is in the released calibrations but not in the paper's UAR.

    Raises:
        ValueError: another data set.

    Example:
        >>> [str(perturbation_set) for perturbation_set in unforeseen_sets("cifar10")["elastic"][:2]]
        ['Elastic(0.125)', 'Elastic(0.25)']

    Reference:
        Kang et al., 2019, arXiv:1908.08016.
    """
    ladders = LADDERS[_checks.choice("dataset", dataset, LADDERS)]
    return {attack: tuple(MAKERS[attack](float(size)) for size in sizes) for attack, sizes in ladders.items()}


def kang(set: PerturbationSet, *, steps: int = 200, restarts: int = 1) -> PGD | FrankWolfe:
    """The attack of Kang et al. on a set: many small steps on the cross-entropy from a random start.

    Sign steps (l2: along the gradient) of radius/√steps; for fog, Gabor noise and snow, whose variables do not scale
    with the radius, steps of √(0.001/steps) in the variables, the published 0.002236 at 200 steps; for l1 balls, of
    pixels or JPEG coefficients, Frank–Wolfe with the mean of all maximisers.

    Cost: (steps + 1) · restarts forwards, steps · restarts backwards.

    Args:
        set: what the adversary may do, such as those of `unforeseen_sets`.
        steps: gradient steps of a run, ≥ 1. Published: 200 in evaluation.
        restarts: independent runs, ≥ 1; the original has one.

    Returns:
        The attack. The original keeps the last iterate, this the best one.

    Raises:
        ValueError: steps or restarts below 1.

    Example:
        >>> str(kang(Fog(128)))
        'gradient ascent in Fog(128), 200 steps, random start, cross-entropy'

    Reference:
        Kang et al., 2019, arXiv:1908.08016.
    """
    _checks.count("steps", steps)
    if isinstance(set, L1) or (isinstance(set, JPEG) and set.norm == "l1"):
        return frank_wolfe(set, steps=steps, averaging="1/(t+1)", restarts=restarts, random_start=True)
    variance = 0.001 if isinstance(set, (Fog, Gabor, Snow)) else 1.0
    return pgd(set, steps=steps, relative_step_size=math.sqrt(variance / steps), restarts=restarts)


register("kang", kang, on="fog", use="Comparison with the published unforeseen attack robustness (UAR).")
