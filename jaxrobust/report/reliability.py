"""The reliability diagram: accuracy over confidence, by bins of confidence, as a file of its own."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from jaxrobust import _checks, _store

__all__ = ["reliability_diagram"]


def reliability_diagram(path: str | pathlib.Path, measured: Mapping[str, Any]) -> pathlib.Path:
    """Draw accuracy over confidence for one or several models, and below how many examples each bin has.

    Args:
        path: the file; its suffix says of which kind, such as ".svg" or ".png". An older one is replaced.
        measured: name -> what `jaxrobust.training.calibration` gave. On the diagonal confidence is accuracy, below it
            a model is overconfident.

    Returns:
        The path.

    Raises:
        TypeError: measures of another kind.
        ValueError: none at all.

    Example:
        >>> reliability_diagram("runs/mine/reliability.svg", {"T = 1": plain, "scaled": scaled})  # doctest: +SKIP
    """
    place = _store.local("path", _checks.path("path", path))
    if not measured:
        raise ValueError("measured must hold at least one calibration; got none")
    for name, one in measured.items():
        if not all(hasattr(one, part) for part in ("counts", "confidence", "accuracy")):
            raise TypeError(f"measured[{name!r}] must be what training.calibration gives; got {_checks.told(one)}")
    place.parent.mkdir(parents=True, exist_ok=True)
    # the user's own style must not leak into the picture, and no back end is chosen
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(4, 4.4), layout="constrained")
        above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
        for name, one in measured.items():
            filled = np.asarray(one.counts) > 0
            edges = np.linspace(0, 1, len(filled) + 1)
            above.plot(one.confidence[filled], one.accuracy[filled], marker="o", markersize=3.5, label=name)
            below.stairs(one.counts, edges)
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        below.set(yscale="symlog", xlabel="confidence", ylabel="examples")
        above.legend(frameon=False)
        figure.savefig(place)
    return place
