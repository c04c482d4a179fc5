"""Unforeseen attack robustness (UAR): accuracy against an attack, over that of training against this very attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrobust import _checks
from jaxrobust.types import Number

__all__ = ["ATA", "UAR", "calibrate", "uar", "uar_table"]

Numbers = Sequence[Number] | np.ndarray

# data set -> attack -> adversarial training accuracy at each of the six sizes of `attacks.unforeseen_sets`: the best
# that training against the attack achieved. ResNet-56 on CIFAR-10, ResNet-50 on ImageNet-100; from the released
# calibrations, which the paper rounds to 0.1 %. The l1 scores that the authors released for CIFAR-10 divide by another
# sum than this l1 row's, 4.0917.
ATA: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar10": {
        "linf": (0.9095, 0.8780, 0.8159, 0.7134, 0.4650, 0.2311),
        "l2": (0.9006, 0.8640, 0.7960, 0.6726, 0.4989, 0.1727),
        "l1": (0.9223, 0.9002, 0.8324, 0.7383, 0.4736, 0.3533),
        "jpeg_linf": (0.8975, 0.8703, 0.8312, 0.7856, 0.6971, 0.3542),
        "jpeg_l2": (0.9218, 0.9099, 0.8842, 0.8584, 0.8125, 0.7198),
        "jpeg_l1": (0.9142, 0.8806, 0.8021, 0.6886, 0.5633, 0.3768),
        "elastic": (0.8738, 0.8126, 0.7209, 0.5822, 0.4545, 0.2785),
    },
    "imagenet100": {
        "linf": (0.8464, 0.8212, 0.7624, 0.6690, 0.4006, 0.1288),
        "l2": (0.8502, 0.8350, 0.7960, 0.7256, 0.5914, 0.1990),
        "l1": (0.8438, 0.8274, 0.7626, 0.6890, 0.5644, 0.3614),
        "jpeg_linf": (0.8504, 0.8324, 0.7932, 0.7276, 0.3480, 0.0110),
        "jpeg_l2": (0.8478, 0.8246, 0.7894, 0.7232, 0.4746, 0.0344),
        "jpeg_l1": (0.8476, 0.8176, 0.7622, 0.6710, 0.4638, 0.4184),
        "elastic": (0.8588, 0.8318, 0.7806, 0.7564, 0.5704, 0.2254),
        "fog": (0.8582, 0.8384, 0.7898, 0.6840, 0.6788, 0.6466),
        "gabor": (0.8402, 0.7984, 0.7984, 0.6622, 0.4468, 0.1460),
        "snow": (0.8402, 0.8114, 0.7770, 0.6562, 0.5954, 0.4120),
    },
}


def uar(attack: str, accuracies: Numbers, *, dataset: str = "cifar10") -> float:
    """Unforeseen attack robustness against one attack: 100 · Σ_k Acc(ε_k) / Σ_k ATA(ε_k).

    Args:
        attack: the attack's name in `ATA`.
        accuracies: robust accuracies in [0, 1] at the six sizes of `attacks.unforeseen_sets`, in their order, such as
            those that `curve` gives.
        dataset: "cifar10" or "imagenet100".

    Returns:
        The score in per cent. 100 is what training against the attack itself achieves; it can be exceeded.

    Raises:
        ValueError: an unknown attack or data set, accuracies that are not six or not in [0, 1].

    Example:
        >>> round(uar("linf", [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]), 2)
        37.38

    Reference:
        Kang et al., 2019, arXiv:1908.08016.
    """
    table = ATA[_checks.choice("dataset", dataset, ATA)]
    best = table[_checks.choice("attack", attack, table)]
    return 100 * float(np.sum(_fractions("accuracies", accuracies, len(best))) / np.sum(best))


@dataclasses.dataclass(frozen=True)
class UAR:
    """The scores of several models. Printing it gives a table.

    Args:
        scores: model name -> attack name -> score in per cent.
    """

    scores: Mapping[str, Mapping[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """Model name -> the mean score over its attacks."""
        return {model: float(np.mean(list(row.values()))) for model, row in self.scores.items()}

    def __str__(self) -> str:
        attacks = list(dict.fromkeys(attack for row in self.scores.values() for attack in row))
        rows = [["model", *attacks, "mean"]]
        for (model, row), mean in zip(self.scores.items(), self.mean.values(), strict=True):
            rows.append([model, *(f"{row[a]:.1f}" if a in row else "" for a in attacks), f"{mean:.1f}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *cells in rows:
            numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join([name.ljust(widths[0]), *numbers]))
        return "\n".join(lines)


def uar_table(accuracies: Mapping[str, Mapping[str, Numbers]], *, dataset: str = "cifar10") -> UAR:
    """The UAR of several models against several attacks.

    Args:
        accuracies: model name -> attack name -> six robust accuracies in [0, 1], as in `uar`.
        dataset: "cifar10" or "imagenet100".

    Returns:
        The scores and their means.

    Raises:
        ValueError: as in `uar`; no model, or a model without attacks.

    Example:
        >>> print(uar_table({"ours": {"linf": [0.9, 0.8, 0.8, 0.7, 0.4, 0.2], "l2": [0.8, 0.8, 0.7, 0.5, 0.3, 0.1]}}))
        model  linf    l2  mean
        ours   94.7  82.0  88.3
    """
    if not accuracies or not all(accuracies.values()):
        raise ValueError(f"accuracies must hold a model and an attack of each; got {accuracies!r}")
    rows = {
        model: {attack: uar(attack, values, dataset=dataset) for attack, values in row.items()}
        for model, row in accuracies.items()
    }
    return UAR(rows)


def calibrate(candidates: Mapping[Number, Number], reference: Numbers) -> tuple[float, ...]:
    """The sizes at which a new attack is as hard as another, so that its UAR can be compared with that one's.

    Each rung ε_k of the reference is assigned a size of its own, so as to minimise Σ_k |ATA_new(size_k) − ATA_k|.

    Args:
        candidates: size of the new attack -> adversarial training accuracy in [0, 1] there.
        reference: the accuracies to match, such as `ATA["cifar10"]["linf"]`, at l∞ sizes of 1, 2, 4, 8, 16 and 32.

    Returns:
        As many sizes as the reference has rungs, ascending.

    Raises:
        ValueError: fewer candidates than rungs, or accuracies that are not in [0, 1].

    Example:
        >>> calibrate({1.0: 0.9, 2.0: 0.89, 4.0: 0.5, 8.0: 0.1}, [0.88, 0.2])
        (2.0, 8.0)

    Reference:
        Kang et al., 2019, arXiv:1908.08016, by the Hungarian method.
    """
    from scipy import optimize

    rungs = _fractions("reference", reference, len(reference))
    if len(candidates) < len(rungs):
        raise ValueError(f"candidates must be at least as many as the reference's {len(rungs)}; got {len(candidates)}")
    sizes = np.asarray(list(candidates), float)
    found = _fractions("candidates", list(candidates.values()), len(candidates))
    chosen = optimize.linear_sum_assignment(np.abs(rungs[:, None] - found[None]))[1]
    return tuple(sorted(sizes[chosen].tolist()))


def _fractions(name: str, values: Any, count: int) -> np.ndarray:
    found = np.asarray(values, float)
    if found.shape != (count,):
        raise ValueError(f"{name} must be {count} numbers; got shape {found.shape}")
    if not (np.all(found >= 0) and np.all(found <= 1)):
        raise ValueError(f"{name} must be fractions in [0, 1]; got {values!r}")
    return found
