"""AutoAttack: attack after attack on what is still robust, with the signs that its figure may mislead."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrobust import _checks
from jaxrobust.attacks import Attack, Square, suite
from jaxrobust.attacks.suites import BALLS, SUITES
from jaxrobust.evaluate import _hosts
from jaxrobust.evaluate.evaluation import Evaluation
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.masking import GAIN, LOOKED_AT
from jaxrobust.evaluate.outcomes import FOOLED
from jaxrobust.evaluate.robustness import robustness
from jaxrobust.losses import dlr
from jaxrobust.types import Classifier, Key, Number

__all__ = ["AutoAttack", "autoattack"]

VERSIONS = {"standard": "autoattack", "plus": "autoattack-plus", "rand": "autoattack-rand"}


@dataclasses.dataclass(frozen=True, repr=False)
class AutoAttack(Evaluation):
    """What `autoattack` found: an evaluation, whose `union` is the robust accuracy. Printing it gives the breakdown.

    Args:
        warnings: why the figure may be too high, a sentence each.
    """

    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        count, seconds = len(self.labels), 0.0
        against = "" if self._aim is None else f" against {self._aim}"
        lines = [f"initial accuracy{against}: {100 * self.clean.accuracy:.2f} %"]
        before = self.robust("clean")
        for name, outcome in self.outcomes.items():
            left, fooled = int(outcome.robust.sum()), int((before & (outcome.outcome == FOOLED)).sum())
            seconds += outcome.counts.seconds
            lines.append(
                f"robust accuracy after {name}: {100 * left / count:.2f} % ({fooled} of {int(before.sum())} fooled, "
                f"{outcome.counts.seconds:.1f} s, in all {seconds:.1f} s{outcome.caveats})"
            )
            before = outcome.robust
        lines.append(f"robust accuracy{against}: {self.union} %")
        return "\n".join([*lines, *self._small_print, *(f"warning: {warning}" for warning in self.warnings)])


def autoattack(
    model: Classifier | HostModel,
    data: Any,
    *,
    key: Key,
    norm: str = "linf",
    radius: Number | None = None,
    version: str = "standard",
    steps: int | None = None,
    queries: int | None = None,
    attacks: Mapping[str, Attack] | None = None,
    **options: Any,
) -> AutoAttack:
    """Robust accuracy by AutoAttack: each attack sees only the examples that are still robust.

    Models that are random or return probabilities, which the original warns of, are refused at the door. A random one
    is a `RandomClassifier`; attack its `mean(key)` by version "rand", in which no attack stops at its first success,
    since that may be luck with the draws.

    Args:
        model: the classifier; or a `HostModel`, for attacks without gradients unless it has a pullback.
        data: images (N, H, W, C) in [0, 1] and labels (N,).
        key: makes all randomness; the original takes the time of day.
        norm: "linf", "l2" or "l1".
        radius: ε; by default the usual one of CIFAR-10, 8/255, 0.5 and 12.
        version: "standard", "plus" (l∞ and l2): more restarts, and the untargeted forms, or "rand", for randomised
            models: APGD by cross-entropy and by DLR on the mean of 20 draws.
        steps: for a first look, fewer steps than the 100 of the version; see `attacks.suite`. The result says so.
        queries: likewise of Square's 5000.
        attacks: name -> attack, in the order in which they run, in place of a version; `norm` and `radius` then do not
            count.
        **options: of `evaluate.robustness`, such as `lanes`, `save_dir` (a killed run goes on), `run_id`, `progress`.

    Returns:
        The evaluation. Its warnings, each also given as a `RuntimeWarning`: gradients of the DLR loss that are zero or
        not finite at images that are classified right, and a Square attack that lowers the accuracy by more than 0.2 %
        after white-box attacks; both are signs of gradients that are masked.

    Raises:
        TypeError: as `evaluate.robustness`.
        ValueError: as `evaluate.robustness`, an unknown norm or version, more steps or queries than the version has,
            or either of them beside `attacks`.

    Example:
        >>> print(autoattack(model, (x, y), norm="linf", radius=8 / 255, key=key))  # doctest: +SKIP
        >>> print(autoattack(defence.mean(key), (x, y), version="rand", key=key))  # doctest: +SKIP

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690; in l1, Croce and Hein, 2021, arXiv:2103.01208.
    """
    if attacks is None:
        family = VERSIONS[_checks.choice("version", version, VERSIONS)]
        norms = [known for known in BALLS if f"{family}-{known}" in SUITES]
        _checks.choice("norm", norm, norms, otherwise=f" for version {version!r}")
        attacks = suite(f"{family}-{norm}", radius=radius, steps=steps, queries=queries)
    elif steps is not None or queries is not None:
        raise ValueError(f"steps and queries must be None beside attacks, which have their own; got {steps}, {queries}")
    evaluation = robustness(model, data, attacks, key=key, only_survivors=True, **options)
    white_box = any(attack.gradients for attack in attacks.values())
    found = tuple((_dead_gradients(model, evaluation) if white_box else []) + _square_gains(evaluation))
    for warning in found:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
    parts = {field.name: getattr(evaluation, field.name) for field in dataclasses.fields(evaluation)}
    return AutoAttack(**parts, warnings=found)


def _dead_gradients(model: Classifier | HostModel, evaluation: Evaluation) -> list[str]:
    images, labels = evaluation.images[:LOOKED_AT], evaluation.labels[:LOOKED_AT].astype(np.int32)
    # of an error whose label comes third, the ratio is 1 whatever the logits
    right = evaluation.prediction[:LOOKED_AT] == labels
    gradients = _hosts.gradients(dlr, model, images, labels)
    kinds = {"zero": (gradients == 0).all((1, 2, 3)), "NaN or infinite": ~np.isfinite(gradients).all((1, 2, 3))}
    where = f"of {right.sum()} clean images that are classified right"
    counts = {kind: int((dead & right).sum()) for kind, dead in kinds.items()}
    return [f"the gradient of the DLR loss is {kind} at {n} {where}" for kind, n in counts.items() if n]


def _square_gains(evaluation: Evaluation) -> list[str]:
    before, white_box = evaluation.clean.accuracy, False
    for name, outcome in evaluation.outcomes.items():
        after = evaluation.accuracy(name).accuracy
        if isinstance(outcome.attack, Square) and white_box and before - after > GAIN:
            return [f"{name} lowers the robust accuracy by {100 * (before - after):.2f} points after white-box attacks"]
        before, white_box = after, white_box or outcome.attack.gradients > 0
    return []
