"""The usual bounds of the literature, data set by data set, as sets that are ready to be attacked."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from jaxrobust import _checks
from jaxrobust.sets.base import PerturbationSet
from jaxrobust.sets.combine import Sequence, Union

__all__ = ["standard"]

# A line is a class, as module.Name below `jaxrobust.sets`, and its arguments; or a combination of other lines. The
# modules are imported when the table is asked for. Sources are in the docstring of `standard`.
Line = tuple[str, dict[str, Any]]
_LINF, _L2, _L1, _L0 = "lp.Linf", "lp.L2", "lp.L1", "sparse.L0"
_FLOW, _RECOLOR, _ROTATION = "spatial.Flow", "colour.ReColor", "spatial.RotationTranslation"
_PERCEPTUAL, _JPEG, _PATCH = "perceptual.Perceptual", "jpeg.JPEG", "masks.Patch"
_WASSERSTEIN, _SINKHORN = "wasserstein.Wasserstein", "sinkhorn.WassersteinSinkhorn"

TABLE: dict[str, dict[str, Line]] = {
    "mnist": {
        "linf": (_LINF, {"radius": 0.3}),
        "l2": (_L2, {"radius": 2.0}),
        "l1": (_L1, {"radius": 10.0}),
        "l0": (_L0, {"radius": 10}),
        "wasserstein": (_WASSERSTEIN, {"radius": 0.5}),
        "wasserstein_sinkhorn": (_SINKHORN, {"radius": 1.0, "p": 2, "kernel": 7, "regularisation": 1000.0}),
        "rotation_translation": (_ROTATION, {"rotation": 30.0, "translation": 3.0}),
    },
    "cifar10": {
        "linf": (_LINF, {"radius": 8 / 255}),
        "l2": (_L2, {"radius": 0.5}),
        "l1": (_L1, {"radius": 12.0}),
        "l0": (_L0, {"radius": 24}),
        "flow": (_FLOW, {"radius": 0.05}),
        "recolor": (_RECOLOR, {"radius": 0.06}),
        "perceptual": (_PERCEPTUAL, {"radius": 0.5}),
        "wasserstein": (_WASSERSTEIN, {"radius": 0.005}),
        "wasserstein_sinkhorn": (_SINKHORN, {"radius": 0.1, "p": 2, "kernel": 5, "regularisation": 3000.0}),
        "rotation_translation": (_ROTATION, {"rotation": 30.0, "translation": 3.0}),
    },
    "imagenet": {
        "linf": (_LINF, {"radius": 4 / 255}),
        "l2": (_L2, {"radius": 3.0}),
        "l1": (_L1, {"radius": 60.0}),
        "l0": (_L0, {"radius": 150}),
        "patch": (_PATCH, {"radius": 20}),
        "wasserstein": (_WASSERSTEIN, {"radius": 0.001}),
        "rotation_translation": (_ROTATION, {"rotation": 30.0, "translation": 24.0}),
    },
    "imagenet100": {
        "linf": (_LINF, {"radius": 4 / 255}),
        "l2": (_L2, {"radius": 1200 / 255}),
        "flow": (_FLOW, {"radius": 0.05}),
        "recolor": (_RECOLOR, {"radius": 0.06}),
        "perceptual": (_PERCEPTUAL, {"radius": 0.5}),
        "jpeg_linf": (_JPEG, {"radius": 0.125, "norm": "linf"}),
    },
}

# name -> (what combines, the lines above or the sets that it combines)
Combination = tuple[Callable[..., PerturbationSet], tuple[str | Line, ...]]
COMBINATIONS: dict[str, dict[str, Combination]] = {
    "mnist": {"union": (Union, ("linf", "l2", "l1"))},
    "cifar10": {
        "union": (Union, ((_LINF, {"radius": 0.03}), "l2", "l1")),
        "recolor+linf": (Sequence, ("recolor", "linf")),
        "recolor+flow": (Sequence, ("recolor", "flow")),
        "flow+linf": (Sequence, ("flow", "linf")),
        "recolor+flow+linf": (Sequence, ("recolor", "flow", "linf")),
    },
    "imagenet": {},
    "imagenet100": {},
}


def standard(dataset: str) -> dict[str, PerturbationSet]:
    """The perturbation sets in common use on a data set, at their usual bounds.

    | set | mnist | cifar10 | imagenet | imagenet100 |
    |---|---|---|---|---|
    | linf, per coordinate in [0, 1] | 0.3 | 8/255 | 4/255 | 4/255 |
    | l2, Euclidean in [0, 1] | 2 | 0.5 | 3 | 1200/255 |
    | l1, sum in [0, 1] | 10 | 12 | 60 | |
    | l0, pixels | 10 | 24 | 150 | |
    | patch, side in pixels | | | 20 | |
    | flow, half image widths | | 0.05 | | 0.05 |
    | recolor, scaled LUV | | 0.06 | | 0.06 |
    | perceptual, LPIPS of the attacked network | | 0.5 | | 0.5 |
    | jpeg_linf, quantisation steps | | | | 0.125 |
    | wasserstein, p = 1, 5 × 5, mass · pixels | 0.5 | 0.005 | 0.001 | |
    | wasserstein_sinkhorn, p = 2 | 1.0, 7 × 7 | 0.1, 5 × 5 | | |
    | rotation_translation | 30°, 3 px | 30°, 3 px | 30°, 24 px | |
    | union of linf, l2, l1 | .3, 2, 10 | .03, .5, 12 | | |
    | recolor+linf, recolor+flow, flow+linf, recolor+flow+linf | | the rows above | | |

    Sources: linf, l2: Madry et al., 2018 and RobustBench; l1: Croce and Hein, 2021; union, and l1 on MNIST: Maini et
    al., 2020; l0: Croce and Hein, 2019, and Croce et al., 2022 (also the patch); flow, recolor and their sequences:
    Laidlaw and Feizi, 2019; perceptual, and imagenet100: Laidlaw et al., 2021; jpeg_linf: Kang et al., 2019, at the
    bound of Laidlaw et al.; wasserstein: Wu et al., 2020; wasserstein_sinkhorn: Wong et al., 2019;
    rotation_translation: Engstrom et al., 2019.

    Args:
        dataset: "mnist", "cifar10", "imagenet" or "imagenet100".

    Returns:
        Name to set. Other bounds: `with_radius`.

    Raises:
        ValueError: an unknown data set.

    Example:
        >>> str(standard("imagenet")["l0"])
        'L0(150)'
    """
    lines = TABLE[_checks.choice("dataset", dataset, tuple(TABLE))]
    made = {name: _make(line) for name, line in lines.items()}
    for name, (combine, parts) in COMBINATIONS[dataset].items():
        made[name] = combine(tuple(made[part] if isinstance(part, str) else _make(part) for part in parts))
    return made


def _make(line: Line) -> PerturbationSet:
    path, arguments = line
    module, name = path.split(".")
    return getattr(importlib.import_module(f"jaxrobust.sets.{module}"), name)(**arguments)
