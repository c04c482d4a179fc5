"""Diagnostics of masked gradients: is a model robust, or do its gradients only lead attacks astray?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _checks, _compile
from jaxrobust.attacks import Attack, fgsm, pgd, square, trajectory, worst_of_k
from jaxrobust.evaluate._programs import pad
from jaxrobust.evaluate.lanes import run_lanes
from jaxrobust.evaluate.outcomes import AttackOutcome, Evaluation
from jaxrobust.evaluate.queries import queries_curve
from jaxrobust.evaluate.robustness import curve, robustness
from jaxrobust.losses import cross_entropy
from jaxrobust.sets import L1, L2, Linf, PerturbationSet
from jaxrobust.types import Classifier, Key, Number

__all__ = ["Check", "MaskingReport", "masking"]

GAIN = 0.002  # AutoAttack's: how much better than white-box attacks a black-box one may be
LEFT = 0.01  # accuracy that may be left where every image can become every other
RISE = 0.01  # accuracy by which a larger radius may be better, or the second half of the steps needed
ZERO = 0.001  # share of examples without a gradient
APART = 0.02  # accuracy by which two losses may differ
LOOKED_AT = 128  # examples whose loss is followed
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
    model: Classifier,
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
    "one step": a single step leaves less accuracy than the iterative attack (by over 0.2 points);
    "black box": attacks without gradients fool over 0.2 % of the examples besides;
    "random points": random members of the set fool examples that gradients did not;
    "full radius": over 1 % accuracy is left where the set holds every image;
    "radius": accuracy rises with the radius (by over 1 point), or never falls;
    "loss": the mean loss does not rise along the iterations from the clean image;
    "gradients": over 0.1 % of the examples have a zero or non-finite gradient of the cross-entropy;
    "losses": cross-entropy and DLR leave accuracies over 2 points apart;
    "steps": the second half of the steps still takes over 1 point, so the attack has not converged.

    Cost: an example takes at most 1 + 6 `steps` + `steps` backwards, about as many forwards, and `queries` + `samples`
    forwards where white-box attacks have failed; successes end searches early.

    Args:
        model: the classifier.
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
        Athalye et al., 2018, arXiv:1802.00420; Carlini et al., 2019, arXiv:1902.06705; the thresholds are our choice,
        but for that of black-box attacks, which is AutoAttack's.
    """
    _checks.count("steps", steps, low=2)
    known = isinstance(set, (Linf, L2, L1))
    if black_box is None:
        black_box = {"square": square(set, queries=queries)} if known else {}
    for place, attack in black_box.items():
        if attack.gradients:
            raise ValueError(f"black_box[{place!r}] must use no gradients; got {attack}")
    options: dict[str, Any] = {"lanes": lanes, "devices": devices}
    iterative = pgd(set, steps=steps, relative_step_size=4.0 / steps)
    by_dlr = dataclasses.replace(iterative, loss="dlr")
    white_box = {"one step": fgsm(set), "iterative": iterative, "iterative, DLR": by_dlr}
    found = robustness(model, data, white_box, key=key, name=name, progress=progress, **options)
    images, labels = found.images, found.labels
    accuracy = {place: found.accuracy(place).accuracy for place in white_box}
    survivors = np.flatnonzero(found.outcomes["iterative"].robust & found.outcomes["iterative, DLR"].robust)

    def also_fooled(attack: Attack, number: int) -> float:
        """The share of all examples that an attack fools and gradients did not."""
        if not len(survivors):
            return 0.0
        own = jax.random.fold_in(key, number)
        ran = run_lanes(attack, model, images[survivors], labels[survivors], key=own, indices=survivors, **options)
        return float(ran.result.success.sum() / len(images))

    if full_radius is None and known:
        black, white = jnp.zeros(images.shape[1:]), jnp.ones(images.shape[1:])
        full_radius = float(set.size(black, white))
    radii = np.array([factor * float(set.radius) for factor in RADII])
    if full_radius is not None:
        radii = np.append(radii[radii < float(full_radius)], float(full_radius))
    by_radius = curve(model, data, iterative, radii, key=jax.random.fold_in(key, 1), progress=progress, **options)
    looked_at = np.flatnonzero(found.prediction == labels)[:LOOKED_AT]
    checks = [
        _one_step(accuracy),
        _black_box({place: also_fooled(attack, 3 + i) for i, (place, attack) in enumerate(black_box.items())}),
        _random_points(also_fooled(worst_of_k(set, samples=samples, chunk=min(samples, 10)), 2), samples),
        _full_radius(None if full_radius is None else float(by_radius[-1])),
        _radius(found.clean.accuracy, by_radius),
        _loss(model, images[looked_at], labels[looked_at], dataclasses.replace(iterative, start="clean"), key),
        _gradients(model, images, labels, lanes),
        _losses(accuracy),
    ]
    counts = np.unique(np.append(2 ** np.arange(int(np.log2(steps)) + 1), [steps // 2, steps]))
    by_steps = _against_steps(found.outcomes["iterative"], counts)
    checks.append(_steps(float(by_steps[counts == steps // 2][0]), float(by_steps[-1]), steps))
    return MaskingReport(tuple(checks), counts, by_steps, radii, by_radius, found)


def _against_steps(outcome: AttackOutcome, counts: np.ndarray) -> np.ndarray:
    """The accuracy that is left after so many steps; the start is a query too."""
    return queries_curve(outcome, counts + 1)


def _one_step(accuracy: Mapping[str, float]) -> Check:
    single, several = accuracy["one step"], accuracy["iterative"]
    verdict = f"one step leaves {_percent(single)}, many leave {_percent(several)}"
    return Check("one step", several - single > GAIN, verdict, {"one step": single, "iterative": several})


def _black_box(gains: Mapping[str, float]) -> Check:
    if not gains:
        return Check("black box", None, "no attack without gradients was given for this set", {})
    best = max(gains, key=lambda place: gains[place])
    verdict = f"{best} fools another {_percent(gains[best])} after white-box attacks"
    return Check("black box", gains[best] > GAIN, verdict, dict(gains))


def _random_points(gain: float, samples: int) -> Check:
    verdict = f"{samples} random points fool another {_percent(gain)} after white-box attacks"
    return Check("random points", gain > 0, verdict, {"gain": gain})


def _full_radius(left: float | None) -> Check:
    if left is None:
        return Check("full radius", None, "no radius is known at which this set holds every image", {})
    return Check("full radius", left > LEFT, f"{_percent(left)} is left where nothing can be", {"accuracy": left})


def _radius(clean: float, accuracy: np.ndarray) -> Check:
    rise = float(np.diff(np.append(clean, accuracy)).max())
    fall = float(clean - accuracy.min())
    verdict = (
        f"accuracy falls by {_percent(fall)} over the radii, rises by at most {_percent(max(rise, 0.0))} on the way"
    )
    return Check("radius", rise > RISE or fall <= 0 < clean, verdict, {"largest_rise": rise, "fall": fall})


def _loss(model: Classifier, images: np.ndarray, labels: np.ndarray, attack: Attack, key: Key) -> Check:
    if not len(images):
        return Check("loss", None, "no example is classified correctly", {})
    losses = trajectory(attack, model, images, labels, key=key)
    first, last = float(losses[0].mean()), float(losses[-1].mean())
    stuck = float((losses.max(0) <= losses[0]).mean())
    verdict = f"the mean loss goes from {first:.3g} to {last:.3g}; it never rises for {_percent(stuck)} of the examples"
    return Check("loss", not last > first, verdict, {"first": first, "last": last, "never_rises": stuck})


def _gradients(model: Classifier, images: np.ndarray, labels: np.ndarray, batch_size: int) -> Check:
    useless = 0
    for start in range(0, len(images), batch_size):
        piece, own = images[start : start + batch_size], labels[start : start + batch_size]
        found = _without_gradient(model, pad(piece, batch_size), pad(own, batch_size))
        useless += int(np.asarray(found)[: len(piece)].sum())
    share = useless / len(images)
    verdict = f"{useless} of {len(images)} examples have a zero or non-finite gradient"
    return Check("gradients", share > ZERO, verdict, {"share": share})


@_compile.jit
def _without_gradient(model: Classifier, images: Any, labels: Any) -> Any:
    def loss(images: Any) -> Any:
        return jnp.sum(jax.vmap(cross_entropy)(model(images), labels))

    gradients = jax.grad(loss)(images)
    return jnp.all(gradients == 0, (1, 2, 3)) | ~jnp.all(jnp.isfinite(gradients), (1, 2, 3))


def _losses(accuracy: Mapping[str, float]) -> Check:
    by_loss = {"cross-entropy": accuracy["iterative"], "DLR": accuracy["iterative, DLR"]}
    apart = abs(by_loss["cross-entropy"] - by_loss["DLR"])
    verdict = "; ".join(f"{name} leaves {_percent(left)}" for name, left in by_loss.items())
    return Check("losses", apart > APART, verdict, by_loss)


def _steps(half: float, whole: float, steps: int) -> Check:
    verdict = f"{_percent(half)} is left after {steps // 2} steps, {_percent(whole)} after {steps}"
    return Check("steps", half - whole > RISE, verdict, {"half": half, "whole": whole})


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
