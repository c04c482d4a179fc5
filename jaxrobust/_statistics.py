"""Exact tests on counts, in whole numbers, since SciPy's statistics take as long to import as all the rest."""

from __future__ import annotations

__all__ = ["sign_test"]


def sign_test(first: int, second: int) -> float:
    """Two-sided exact p-value of so many wins against so many, were either side as likely to win: McNemar's.

    Args:
        first: wins of one side, ≥ 0.
        second: wins of the other.

    Returns:
        min(1, 2 P(X ≤ min(first, second))), X ~ Binomial(first + second, 1/2); 1 where nobody has won.

    Example:
        >>> sign_test(1, 9)
        0.021484375
    """
    count = first + second
    term = total = 1
    for k in range(1, min(first, second) + 1):
        term = term * (count - k + 1) // k
        total += term
    return min(1.0, 2 * total / 2**count)
