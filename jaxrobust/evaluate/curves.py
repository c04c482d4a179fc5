"""Curves for the page: robust accuracy against radius, and the loss along an attack's steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust import _checks
from jaxrobust.attacks import Attack
from jaxrobust.evaluate import _hosts
from jaxrobust.evaluate._programs import clean_logits, replicated
from jaxrobust.evaluate.door import enter, labelled
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.lanes import drive
from jaxrobust.evaluate.outcomes import clean_fate, fate_after
from jaxrobust.report.format import ROBUST
from jaxrobust.types import Classifier, Key, Number

__all__ = ["curve", "curves", "trajectories"]


@_checks.off_mesh
def curve(
    model: Classifier | HostModel,
    data: Any,
    attack: Attack,
    radii: Iterable[Number],
    *,
    key: Key,
    lanes: int = 128,
    devices: Sequence[Any] | None = None,
    progress: bool | str = False,
) -> np.ndarray:
    """Robust accuracy against radius, all radii with one compiled program.

    Args:
        model: the classifier, or a `HostModel`.
        data: images (N, H, W, C) in [0, 1] and labels (N,), or a criterion, as in `robustness`.
        attack: the attack, of any radius.
        radii: the radii, each ≥ 0.
        key: makes all randomness, the same for every radius.
        lanes: as in `robustness`.
        devices: as in `robustness`.
        progress: whether to show progress bars.

    Returns:
        (len(radii),) robust accuracies in [0, 1].

    Raises:
        ValueError: a radius that is negative or not finite; see `robustness`.
    """
    images, labels = labelled(data)
    _checks.count("lanes", lanes)
    everywhere = replicated(devices)
    radii = [float(_checks.number("radii", radius)) for radius in radii]
    if not radii:
        raise ValueError("radii must hold at least one radius; got none")
    ladder = [attack.with_radius(radius) for radius in radii]
    checked = enter(ladder, model, images, labels, key=key)
    model = jax.device_put(model, everywhere)
    logits = clean_logits(model, images, batch_size=lanes)
    fate = clean_fate(logits, checked.goal)
    accuracies = []
    for radius, rung in zip(radii, ladder, strict=True):
        label = f"{progress} r={radius:.3g}" if isinstance(progress, str) else progress
        found = drive(
            rung,
            model,
            checked.images,
            checked.goal,
            key=key,
            indices=checked.indices,
            logits=logits,
            lanes=lanes,
            early_stop=True,
            everywhere=everywhere,
            progress=label,
        ).result
        accuracies.append(float((fate_after(fate, found.success, found.code) == ROBUST).mean()))
    return np.array(accuracies)


def curves(
    models: Mapping[str, Classifier | HostModel],
    data: Any,
    attacks: Mapping[str, Attack],
    radii: Mapping[str, Iterable[Number]],
    *,
    key: Key,
    progress: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Robust accuracy against radius for several models and attacks, as a run folder holds it.

    Args:
        models: name -> classifier.
        data: images (N, H, W, C) and labels (N,).
        attacks: name -> attack.
        radii: attack name -> radii.
        key: makes all randomness.
        progress: whether to show progress bars.
        **options: of `curve`.

    Returns:
        One dictionary an attack.
    """
    return [
        {
            "attack": name,
            "radii": [float(radius) for radius in radii[name]],
            "accuracy": {
                model_name: curve(
                    model,
                    data,
                    attack,
                    radii[name],
                    key=key,
                    progress=f"{model_name} | {name}" if progress else False,
                    **options,
                ).tolist()
                for model_name, model in models.items()
            },
            "count": len(data[1]),
        }
        for name, attack in attacks.items()
        if name in radii
    ]


def trajectories(
    models: Mapping[str, Classifier | HostModel], data: Any, attacks: Mapping[str, Attack], *, key: Key
) -> list[dict[str, Any]]:
    """Mean loss and its 10–90 % band against attack step for several models, as a run folder holds it.

    At each step the examples count whose loss is finite there.

    Args:
        models: name -> classifier.
        data: images (N, H, W, C) and labels (N,).
        attacks: name -> attack.
        key: makes all randomness.

    Returns:
        One dictionary an attack.
    """
    images, labels = data
    found = []
    for name, attack in attacks.items():
        losses = {m: _hosts.losses(attack, c, images, labels, key=key) for m, c in models.items()}
        found.append(
            {
                "attack": name,
                "mean": {model: _of_finite(np.mean, loss) for model, loss in losses.items()},
                "low": {model: _of_finite(lambda row: np.quantile(row, 0.1), loss) for model, loss in losses.items()},
                "high": {model: _of_finite(lambda row: np.quantile(row, 0.9), loss) for model, loss in losses.items()},
                "count": len(labels),
            }
        )
    return found


def _of_finite(statistic: Callable[[np.ndarray], Any], rows: np.ndarray) -> list[float]:
    finite = [row[np.isfinite(row)] for row in rows]
    return [float(statistic(row)) if len(row) else np.nan for row in finite]
