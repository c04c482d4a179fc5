"""Diagnostics of masked gradients: is a model robust, or do its gradients only lead attacks astray?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _checks, _inputs
from jaxrobust.attacks import Attack, fgsm, pgd, square, targeted_each, worst_of_k
from jaxrobust.evaluate import _hosts
from jaxrobust.evaluate._programs import pad
from jaxrobust.evaluate.door import run_lanes
from jaxrobust.evaluate.evaluation import Evaluation
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.outcomes import AttackOutcome
from jaxrobust.evaluate.queries import queries_curve
from jaxrobust.evaluate.robustness import robustness
from jaxrobust.losses import cross_entropy
from jaxrobust.report.format import FOOLED
from jaxrobust.sets import L1, L2, Linf, PerturbationSet
from jaxrobust.types import Classifier, Key, Number

__all__ = ["Check", "MaskingReport", "masking"]

CHANCE = 0.01  # of a sign where there is none, for each check that counts examples
GAIN = 0.002  # of the accuracy that black-box attacks may take after white-box ones; `autoattack` warns by it too
LEFT = 0.01  # accuracy that may be left where every image can become every other
LATE = 0.1  # share of all successes for which the second half of the steps may be needed
ZERO = 0.001  # share of examples without a gradient
MISSED = 0.2  # share of the examples fooled by one loss that the other may miss
FEWEST = 20  # successes of which shares are told: of fewer, all are close calls, which fall together
TARGETS = 9  # classes at which gradients are aimed, one after the other, at what other attacks have fooled
LOOKED_AT = 128  # examples, the first ones, whose loss is followed, and whose gradients `autoattack` looks at
RADII = (0.5, 1.0, 2.0)  # times the set's


@dataclasses.dataclass(frozen=True)
class Check:
    """One diagnostic.

    Args:
        name: what is looked at.
        flagged: whether it is a sign of masked gradients; None where the check does not apply.
        verdict: what was found, in a sentence.
        numbers: what the verdict rests on, accuracies and shares in [0, 1].
    """

    name: str
    flagged: bool | None
    verdict: str
    numbers: dict[str, float]


@dataclasses.dataclass(frozen=True)
class MaskingReport:
    """What `masking` found. Printing it gives a table.

    Args:
        checks: the diagnostics.
        steps: numbers of steps of the iterative attack, and
        steps_accuracy: the accuracy that it leaves after so many.
        radii: radii of the iterative attack, and
        radii_accuracy: the accuracy that it leaves there.
        evaluation: the one-step and the iterative attacks, per example.
    """

    checks: tuple[Check, ...]
    steps: np.ndarray
    steps_accuracy: np.ndarray
    radii: np.ndarray
    radii_accuracy: np.ndarray
    evaluation: Evaluation

    def __repr__(self) -> str:
        flags = ", ".join(self.flags) or None
        return f"MaskingReport({self.evaluation.name!r}, {len(self.checks)} checks, flags: {flags})"

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of the checks that are signs of masked gradients."""
        return tuple(check.name for check in self.checks if check.flagged)

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def summary(self) -> dict[str, Any]:
        """The numbers in JSON's terms; `Evaluation.with_notes(masking=report.summary())` puts them on the page."""
        iterative = self.evaluation.outcomes["iterative"].attack
        return {
            "attack": str(iterative),
            "radius": float(iterative.set.radius),
            "count": len(self.evaluation.labels),
            "flags": list(self.flags),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "accuracy_against_steps": [self.steps.tolist(), self.steps_accuracy.tolist()],
            "accuracy_against_radius": [self.radii.tolist(), self.radii_accuracy.tolist()],
        }

    def __str__(self) -> str:
        words = {True: "FLAG", False: "ok", None: "-"}
        width = max(len(check.name) for check in self.checks)
        lines = [
            f"{self.evaluation.name}: {len(self.flags)} of {len(self.checks)} checks are signs of masked gradients"
        ]
        lines += [f"  {words[check.flagged]:<4}  {check.name:<{width}}  {check.verdict}" for check in self.checks]
        curves = (("steps", self.steps, self.steps_accuracy), ("radius", self.radii, self.radii_accuracy))
        for name, places, accuracy in curves:
            points = "  ".join(f"{p:g}: {100 * a:.1f}" for p, a in zip(places, accuracy, strict=True))
            lines.append(f"  accuracy in % against {name}  {points}")
        return "\n".join(lines)


def masking(
    model: Classifier | HostModel,
    data: Any,
    set: PerturbationSet,
    *,
    key: Key,
    name: str = "model",
    steps: int = 40,
    queries: int = 1000,
    samples: int = 1000,
    black_box: Mapping[str, Attack] | None = None,
    full_radius: Number | None = None,
    lanes: int = 128,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> MaskingReport:
    """Whether a model's gradients are masked, so that gradient-based attacks overstate its robustness.

    A check is a sign of it where
    "one step": a single step fools more than the iterative attack;
    "black box": attacks without gradients fool over 0.2 % of the examples besides, which the iterative attack, aimed at
    the 9 likeliest other classes in turn, does not fool either;
    "random points": random members of the set fool over 0.2 % of the examples, likewise;
    "full radius": over 1 % accuracy is left where the set holds every image;
    "radius": accuracy rises with the radius, or never falls;
    "loss": the mean loss does not rise along the iterations from the clean image;
    "gradients": over 0.1 % of the examples have a zero or non-finite gradient of the cross-entropy;
    "losses": of cross-entropy and DLR, under equal budgets, one misses over 20 % of what the other fools;
    "steps": over 10 % of the successes need the second half of the steps, so the attack has not converged.

    Attacks on an ordinary network differ in a few examples by luck. So what is counted must exceed the stated share, or
    of two attacks on the same examples one must be ahead, beyond what chance explains (exact one-sided binomial tests,
    each at 1 %): fewer examples let fewer signs be seen, and do not make any. Of fewer than 20 successes,
    "losses" and "steps", which are about their shares, say nothing.

    Cost: an example takes at most 1 + 6 `steps` + `steps` backwards, about as many forwards, and `queries` + `samples`
    forwards where white-box attacks have failed, and 9 `steps` of both where these then succeed; successes end searches
    early.

    Args:
        model: the classifier, or a `HostModel` with a pullback.
        data: images (N, H, W, C) in [0, 1] and labels (N,); a few hundred will do.
        set: what the adversary may do.
        key: makes all randomness.
        name: the model's name in the table.
        steps: of the iterative attack, PGD from a random start with steps of 4/`steps` radii, ≥ 2.
        queries: of the Square attack.
        samples: random members of the set, an example. A thorough check has 100,000.
        black_box: name -> attack without gradients; by default Square for `Linf`, `L2` and `L1`, else none.
        full_radius: a radius at which the set holds every image; known for `Linf`, `L2` and `L1`.
        lanes: as in `robustness`.
        devices: as in `robustness`.
        progress: whether to show progress bars.

    Returns:
        The report; `.flags` names the signs. On the page of an evaluation it has a section of its own, see
        `Evaluation.with_notes`.

    Raises:
        TypeError: as `robustness`.
        ValueError: as `robustness`, steps below 2, or black-box attacks that use gradients.

    Example:
        >>> print(masking(model, (x, y), jr.sets.Linf(8 / 255), key=key))  # doctest: +SKIP

    Reference:
        Athalye et al., 2018, arXiv:1802.00420; Carlini et al., 2019, arXiv:1902.06705; the shares and tests are our
        choice, but for that of black-box attacks, which is AutoAttack's.
    """
    _checks.count("steps", steps, low=2)
    data = _inputs.pair(data)
    known = isinstance(set, (Linf, L2, L1))
    if black_box is None:
        black_box = {"square": square(set, queries=queries)} if known else {}
    for place, attack in black_box.items():
        if attack.gradients:
            raise ValueError(f"black_box[{place!r}] must use no gradients; got {attack}")
    options: dict[str, Any] = {"lanes": lanes, "devices": devices}
    iterative = pgd(set, steps=steps, relative_step_size=4.0 / steps)
    _checks.one_radius(set)
    by_dlr = dataclasses.replace(iterative, loss="dlr")
    white_box = {"one step": fgsm(set), "iterative": iterative, "iterative, DLR": by_dlr}
    found = robustness(model, data, white_box, key=key, name=name, progress=progress, **options)
    images, labels = found.images, found.labels
    fooled = {place: outcome.outcome == FOOLED for place, outcome in found.outcomes.items()}
    survivors = np.flatnonzero(found.outcomes["iterative"].robust & found.outcomes["iterative, DLR"].robust)

    def which(attack: Attack, rows: np.ndarray, number: int) -> np.ndarray:
        """Those of some examples that an attack fools."""
        if not len(rows):
            return rows
        own = jax.random.fold_in(key, number)
        ran = run_lanes(attack, model, images[rows], labels[rows], key=own, indices=rows, **options)
        return rows[ran.result.success]

    # one run by each loss is little beside a thousand queries: gradients have as many again before they count as led
    # astray, but only where that is the question
    again = targeted_each(dataclasses.replace(iterative, loss="margin"), targets=TARGETS)

    def also_fooled(attack: Attack, number: int) -> int:
        """How many examples an attack fools that gradients do not."""
        fooled = which(attack, survivors, number)
        return len(fooled) - len(which(again, fooled, 0))

    if full_radius is None and known:
        black, white = jnp.zeros(images.shape[1:]), jnp.ones(images.shape[1:])
        full_radius = float(set.size(black, white))
    radii = np.array([factor * float(set.radius) for factor in RADII])
    if full_radius is not None:
        radii = np.append(radii[radii < float(full_radius)], float(full_radius))
    ladder = {f"radius {radius:.6g}": iterative.with_radius(radius) for radius in radii}
    own = jax.random.fold_in(key, 1)
    by_radius = robustness(model, data, ladder, key=own, name=name, progress=progress, **options)
    left = np.stack([outcome.robust for outcome in by_radius.outcomes.values()])
    looked_at = np.flatnonzero(found.prediction == labels)[:LOOKED_AT]
    counts = np.unique(np.append(2 ** np.arange(int(np.log2(steps)) + 1), [steps // 2, steps]))
    by_steps = _against_steps(found.outcomes["iterative"], counts)
    halves = np.rint(len(images) * (by_steps[[np.flatnonzero(counts == steps // 2)[0], -1]])).astype(int)
    checks = (
        _one_step(found.outcomes["one step"].robust, found.outcomes["iterative"].robust),
        _black_box({place: also_fooled(a, 3 + i) for i, (place, a) in enumerate(black_box.items())}, len(images)),
        _random_points(also_fooled(worst_of_k(set, samples=samples, chunk=min(samples, 10)), 2), len(images), samples),
        _full_radius(None if full_radius is None else left[-1]),
        _radius(np.stack([found.prediction == labels, *left])),
        _loss(model, images[looked_at], labels[looked_at], dataclasses.replace(iterative, start="clean"), key),
        _gradients(model, images, labels, lanes),
        _losses(fooled["iterative"], fooled["iterative, DLR"]),
        _steps(int(halves[0]), int(halves[1]), int(fooled["iterative"].sum()), len(images), steps),
    )
    return MaskingReport(checks, counts, by_steps, radii, left.mean(1), found)


def _against_steps(outcome: AttackOutcome, counts: np.ndarray) -> np.ndarray:
    """The accuracy that is left after so many steps; the start is a query too."""
    return queries_curve(outcome, counts + 1)


def _exceeds(hits: Any, count: Any, share: float) -> bool:
    """Whether so many of so many examples show that the true share is above one."""
    from scipy import stats

    return int(count) > 0 and bool(stats.binom.sf(int(hits) - 1, int(count), share) < CHANCE)


def _ahead(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the first is true of more examples than the second, by the pairs in which they differ (McNemar)."""
    only = int((first & ~second).sum())
    return _exceeds(only, only + (second & ~first).sum(), 0.5)


def _one_step(single: np.ndarray, several: np.ndarray) -> Check:
    """Of which examples are robust under one step, and under many."""
    left = {"one step": float(single.mean()), "iterative": float(several.mean())}
    verdict = f"one step leaves {_percent(left['one step'])}, many leave {_percent(left['iterative'])}"
    return Check("one step", _ahead(several, single), verdict, left)


def _black_box(gains: Mapping[str, int], count: int) -> Check:
    if not gains:
        return Check("black box", None, "no attack without gradients was given for this set", {})
    best = max(gains, key=lambda place: gains[place])
    verdict = f"{best} fools another {_percent(gains[best] / count)} after white-box attacks"
    numbers = {place: gain / count for place, gain in gains.items()}
    return Check("black box", _exceeds(gains[best], count, GAIN), verdict, numbers)


def _random_points(gain: int, count: int, samples: int) -> Check:
    verdict = f"{samples} random points fool another {_percent(gain / count)} after white-box attacks"
    return Check("random points", _exceeds(gain, count, GAIN), verdict, {"gain": gain / count})


def _full_radius(left: np.ndarray | None) -> Check:
    if left is None:
        return Check("full radius", None, "no radius is known at which this set holds every image", {})
    verdict = f"{_percent(left.mean())} is left where nothing can be"
    return Check("full radius", _exceeds(left.sum(), len(left), LEFT), verdict, {"accuracy": float(left.mean())})


def _radius(left: np.ndarray) -> Check:
    """Of whether examples are classified right, without an attack and at each radius."""
    accuracy = left.mean(1)
    rises = any(_ahead(larger, smaller) for smaller, larger in itertools.pairwise(left))
    rise = float(np.diff(accuracy).max())
    clean, fall = float(accuracy[0]), float(accuracy[0] - accuracy.min())
    verdict = (
        f"accuracy falls by {_percent(fall)} over the radii, rises by at most {_percent(max(rise, 0.0))} on the way"
    )
    return Check("radius", rises or fall <= 0 < clean, verdict, {"largest_rise": rise, "fall": fall})


def _loss(model: Classifier | HostModel, images: np.ndarray, labels: np.ndarray, attack: Attack, key: Key) -> Check:
    if not len(images):
        return Check("loss", None, "no example is classified correctly", {})
    losses = _hosts.losses(attack, model, images, labels, key=key)
    first, last = float(losses[0].mean()), float(losses[-1].mean())
    stuck = float((losses.max(0) <= losses[0]).mean())
    verdict = f"the mean loss goes from {first:.3g} to {last:.3g}; it never rises for {_percent(stuck)} of the examples"
    return Check("loss", not last > first, verdict, {"first": first, "last": last, "never_rises": stuck})


def _gradients(model: Classifier | HostModel, images: np.ndarray, labels: np.ndarray, batch_size: int) -> Check:
    useless = 0
    for start in range(0, len(images), batch_size):
        piece, own = images[start : start + batch_size], labels[start : start + batch_size]
        if not isinstance(model, HostModel):
            piece, own = pad(piece, batch_size), pad(own, batch_size)
        found = _hosts.gradients(cross_entropy, model, piece, own)[: len(images) - start]
        useless += int(((found == 0).all((1, 2, 3)) | ~np.isfinite(found).all((1, 2, 3))).sum())
    share = useless / len(images)
    verdict = f"{useless} of {len(images)} examples have a zero or non-finite gradient"
    return Check("gradients", share > ZERO, verdict, {"share": share})


def _losses(by_entropy: np.ndarray, by_dlr: np.ndarray) -> Check:
    pairs = {"cross-entropy": (by_entropy, by_dlr), "DLR": (by_dlr, by_entropy)}
    missed = {name: float((other & ~own).sum() / max(other.sum(), 1)) for name, (own, other) in pairs.items()}
    verdict = "; ".join(
        f"{name} fools {_percent(own.mean())} and misses {_percent(missed[name])} of what the other fools"
        for name, (own, _) in pairs.items()
    )
    flagged = any(
        other.sum() >= FEWEST and _exceeds((other & ~own).sum(), other.sum(), MISSED) for own, other in pairs.values()
    )
    return Check("losses", flagged, verdict, missed)


def _steps(half: int, whole: int, fooled: int, count: int, steps: int) -> Check:
    """Of how many examples are left after half of the steps, and after all."""
    verdict = f"{_percent(half / count)} is left after {steps // 2} steps, {_percent(whole / count)} after {steps}"
    numbers = {"half": half / count, "whole": whole / count}
    flagged = fooled >= FEWEST and _exceeds(half - whole, fooled, LATE)
    return Check("steps", flagged, verdict, numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
