"""Robust accuracy against the number of queries that the adversary may make."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jaxrobust.evaluate.outcomes import AttackOutcome
from jaxrobust.report.format import FOOLED
from jaxrobust.types import AttackResult, Number

__all__ = ["queries_curve"]


def queries_curve(found: AttackOutcome | AttackResult, budgets: Iterable[Number]) -> np.ndarray:
    """The share of examples that an adversary with so many queries each leaves robust.

    An example counts as robust at a budget b if it was never fooled, or only by more than b queries. The clean image's
    own pass is no query. The counts are those at the first success only where `early_stop` ended the search there, as
    it does by default but for minimum-norm attacks; without it the curve is an upper bound.

    Args:
        found: an attack's outcome in an evaluation (clean errors and NaN logits count as not robust at any budget), or
            an attack's result (already misclassified images so count).
        budgets: queries an example, each ≥ 0.

    Returns:
        (len(budgets),) robust accuracies in [0, 1], non-increasing in the budget.

    Raises:
        ValueError: no budgets, or one that is negative or NaN.

    Example:
        >>> report = robustness(model, data, {"square": jr.attacks.square(ball)}, key=key)  # doctest: +SKIP
        >>> queries_curve(report.outcomes["square"], [100, 1000, 5000])  # doctest: +SKIP
        array([0.62, 0.31, 0.27])
    """
    limits = np.asarray(list(budgets), np.float64)
    if not limits.size or not (limits >= 0).all():
        raise ValueError(f"budgets must hold at least one number, all >= 0; got {limits.tolist()}")
    spent = np.maximum(np.asarray(found.forwards, np.int64) - 1, 0)
    if isinstance(found, AttackOutcome):
        never, fooled = found.robust, found.outcome == FOOLED
    else:
        fooled = np.asarray(found.success)
        never = ~fooled
    return np.array([float((never | (fooled & (spent > limit))).mean()) for limit in limits])
