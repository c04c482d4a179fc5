"""Calibration: whether confidence is accuracy, and what mends it: one temperature, or targets adapted by group."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special

from jaxrobust import _checks, _inputs

__all__ = [
    "Calibration",
    "adapted_targets",
    "calibration",
    "distance_groups",
    "temperature",
]

OCTAVES = 64.0  # of T about the logits' scale, halved so often
ROUNDING = 1e-12  # of a slope that is 0, in units of that scale
LARGEST = 100.0  # scale/T, where every example is classified correctly and the likelihood grows without end


class Calibration(NamedTuple):
    """How far confidence is from accuracy; a reliability diagram is `accuracy` over `confidence`, by bin.

    Args:
        ece: Σ_b (n_b/N) |accuracy_b − confidence_b|, the expected calibration error.
        mce: the largest |accuracy_b − confidence_b| of a bin that is not empty.
        nll: mean of −log p_y.
        brier: mean of Σ_k (p_k − [k = y])², in [0, 2].
        counts: (B,) examples in the bins ((b − 1)/B, b/B] of the top class's probability.
        confidence: (B,) its mean, NaN in an empty bin.
        accuracy: (B,) the share of correct predictions, NaN in an empty bin.
    """

    ece: float
    mce: float
    nll: float
    brier: float
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(logits: Any, labels: Any, *, bins: int = 15) -> Calibration:
    """Measure calibration: ECE, MCE, NLL, Brier score and the reliability diagram's numbers.

    Args:
        logits: (N, K), finite; divide them by a temperature to see what it does.
        labels: (N,) integers.
        bins: of equal width, ≥ 1.

    Returns:
        The measures.

    Raises:
        TypeError: labels that are no integers.
        ValueError: shapes that do not fit, labels outside of [0, K), logits that are not finite, `bins` below 1.

    Example:
        >>> measured = calibration(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1]))
        >>> round(measured.ece, 3), round(measured.nll, 3)
        (0.119, 0.127)

    Reference:
        Guo et al., 2017, arXiv:1706.04599.
    """
    z, y = _checked(logits, labels)
    bins = _checks.count("bins", bins)
    logs = special.log_softmax(z, axis=1)
    probabilities = np.exp(logs)
    right = (z.argmax(1) == y).astype(float)
    top = probabilities.max(1)
    places = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(places, w, minlength=bins) / counts for w in (top, right))
    gaps = np.abs(accuracy - confidence)
    hot = np.eye(z.shape[1])[y]
    return Calibration(
        ece=float(np.nansum(counts * gaps) / len(y)),
        mce=float(np.nanmax(gaps)),
        nll=float(-logs[np.arange(len(y)), y].mean()),
        brier=float(np.square(probabilities - hot).sum(1).mean()),
        counts=counts,
        confidence=confidence,
        accuracy=accuracy,
    )


def temperature(logits: Any, labels: Any) -> float:
    """Temperature scaling: the T > 0 that minimises the NLL of logits/T on held-out data.

    The NLL is convex in β = 1/T with the slope E[Σ_k p_k z_k − z_y], whose sign is bisected in log β. Logits times c
    give c T.

    Args:
        logits: (N, K) on held-out data, finite.
        labels: (N,) integers.

    Returns:
        T, on which predictions do not depend. A perfectly accurate set, for which any smaller T is better, gives a
        hundredth of the logits' scale, the median of max_k z_k − min_k z_k. Logits that say nothing of the labels, or
        the opposite, with E z_y not above the mean logit, give ∞: uniform probabilities are better than any T.

    Raises:
        TypeError, ValueError: as `calibration`.

    Example:
        >>> logits = np.log([[0.8, 0.2]] * 5)
        >>> round(temperature(3 * logits, np.array([0, 0, 0, 0, 1])), 3)
        3.0

    Reference:
        Guo et al., 2017, arXiv:1706.04599.
    """
    z, y = _checked(logits, labels)
    z = z - z.max(1, keepdims=True)
    ranges = -z.min(1)
    scale = float(np.median(ranges) or ranges.max() or 1.0)
    z /= scale
    own = z[np.arange(len(y)), y]
    if not own.any():
        return scale / LARGEST

    def rises(beta: float) -> bool:
        return bool(np.mean(np.sum(special.softmax(beta * z, axis=1) * z, axis=1) - own) > ROUNDING)

    if np.mean(z.mean(1) - own) >= -ROUNDING:
        return float(np.inf)
    low, high = -OCTAVES, OCTAVES
    for _ in range(int(OCTAVES)):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(2.0**middle) else (middle, high)
    return float(scale / 2.0**high)


def distance_groups(distances: Any, *, groups: int = 10) -> np.ndarray:
    """Equal groups of examples by how far they are from an error.

    Args:
        distances: (N,) adversarial distances, such as `AttackOutcome.distances`; ∞ where no error was found. Ties go
            by place.
        groups: R, from 1 to N.

    Returns:
        (N,) int32: 0 for the least robust examples to R − 1.

    Raises:
        ValueError: distances that are NaN or not of one axis, `groups` out of its range.

    Example:
        >>> distance_groups([0.3, 0.1, 0.2, np.inf], groups=2).tolist()
        [1, 0, 0, 1]
    """
    found = _inputs.as_array("distances", distances)
    if found.ndim != 1 or np.isnan(found).any():
        raise ValueError(f"distances must be numbers of shape (N,), none of them NaN; got {_checks.told(distances)}")
    if _checks.count("groups", groups) > len(found):
        raise ValueError(f"groups must not exceed the {len(found)} examples; got {groups}")
    ranks = np.empty(len(found), np.int64)
    ranks[np.argsort(found, kind="stable")] = np.arange(len(found))
    return (ranks * groups // len(found)).astype(np.int32)


def adapted_targets(targets: Any, confidence: Any, accuracy: Any, *, classes: int, rate: float = 0.05) -> np.ndarray:
    """AR-AdaLS between epochs: p̃_r ← clip(p̃_r − a (confidence_r − accuracy_r), 1/K, 1), of validation data by group.

    Args:
        targets: (R,) p̃, the label's probability in each group's soft target; 1 at first.
        confidence: (R,) mean confidence of the validation examples of the group.
        accuracy: (R,) their accuracy.
        classes: K ≥ 2.
        rate: a ≥ 0.

    Returns:
        (R,) the next p̃, for `group_smoothing`.

    Raises:
        ValueError: arrays of unlike shapes, fewer than 2 classes, a negative rate.

    Example:
        >>> adapted_targets([1.0, 1.0], [0.9, 0.99], [0.7, 1.0], classes=10).tolist()
        [0.99, 1.0]

    Reference:
        Qin et al., 2021, arXiv:2006.16375.
    """
    shapes = {np.shape(values) for values in (targets, confidence, accuracy)}
    if len(shapes) > 1:
        raise ValueError(f"targets, confidence and accuracy must be of one shape; got {sorted(shapes)}")
    least = 1 / _checks.count("classes", classes, low=2)
    gap = np.asarray(confidence, float) - np.asarray(accuracy, float)
    return np.clip(np.asarray(targets, float) - float(_checks.number("rate", rate)) * gap, least, 1)


def _checked(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits in float64 and labels."""
    z, y = _inputs.as_array("logits", jax.device_get(logits)), _inputs.as_array("labels", jax.device_get(labels))
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"labels must be integers; got {y.dtype}")
    if z.ndim != 2 or y.shape != z.shape[:1] or not y.size:
        raise ValueError(f"logits and labels must be of shapes (N, K) and (N,); got {z.shape} and {y.shape}")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels must lie in [0, {z.shape[1]}); got {y.min()} to {y.max()}")
    if not np.isfinite(z).all():
        raise ValueError("logits must be finite; got NaN or infinite ones")
    return z.astype(float), y
