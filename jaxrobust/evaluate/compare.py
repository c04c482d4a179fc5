"""Two models on the same examples: is one more robust, beyond what chance explains?"""

from __future__ import annotations

from typing import NamedTuple

from jaxrobust import _checks
from jaxrobust._statistics import sign_test
from jaxrobust.evaluate.evaluation import Evaluation

__all__ = ["McNemar", "mcnemar"]


class McNemar(NamedTuple):
    """McNemar's exact test.

    Args:
        only_first: how many examples the first model alone classifies right.
        only_second: how many the second model alone.
        p_value: two-sided: how probable a difference at least so large is, were neither model better.
    """

    only_first: int
    only_second: int
    p_value: float

    def __str__(self) -> str:
        alone = f"{self.only_first} examples only the first, {self.only_second} only the second"
        return f"{alone}: p = {self.p_value:.2g}"


def mcnemar(first: Evaluation, second: Evaluation, *, attack: str | None = None) -> McNemar:
    """Whether two models differ on the same examples: the exact test of McNemar.

    Intervals of two accuracies may overlap where the models clearly differ, since both meet the same examples; what
    tells them apart is the examples that only one of them classifies right.

    Args:
        first: one model's evaluation, and
        second: the other's, on the same examples.
        attack: its name in both; "clean" for no attack; None for the worst case over all attacks of each.

    Returns:
        The counts and the p-value.

    Raises:
        ValueError: other examples, or an unknown attack.

    Example:
        >>> print(mcnemar(standard, robust, attack="linf"))  # doctest: +SKIP
        4 examples only the first, 212 only the second: p = 1.7e-56

    Reference:
        McNemar, 1947, Psychometrika 12(2).
    """
    asked = [(evaluation.labels, evaluation.images, evaluation.goal) for evaluation in (first, second)]
    if not _checks.same(*asked):
        raise ValueError(
            f"first and second must be of the same examples and criterion; got {first.name!r} and {second.name!r}"
        )
    one, other = (evaluation.robust(attack) for evaluation in (first, second))
    alone = int((one & ~other).sum()), int((other & ~one).sum())
    return McNemar(*alone, sign_test(*alone))
