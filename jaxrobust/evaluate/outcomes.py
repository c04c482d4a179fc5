"""What an evaluation found: per example, per attack, in the worst case, and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrobust import _checks, _store
from jaxrobust.attacks import Attack
from jaxrobust.evaluate._programs import meets
from jaxrobust.evaluate.lanes import LaneCounts
from jaxrobust.report.format import CLEAN_ERROR, FOOLED, NON_FINITE, OUTCOMES, ROBUST
from jaxrobust.types import Code, Confident, Criterion, Misclassified

__all__ = [
    "BLIND",
    "AttackOutcome",
    "Outcomes",
    "Proportion",
    "clean_fate",
    "fate_after",
    "unseen_mean",
]

BLIND = "gradients_not_finite"  # the note that they are


def clean_fate(logits: np.ndarray, goal: Criterion) -> np.ndarray:
    """(N,) int8: what became of examples before any attack, from clean logits (N, K)."""
    fate = np.where(meets(goal, logits), CLEAN_ERROR, ROBUST)
    return np.where(np.isfinite(logits).all(-1), fate, NON_FINITE).astype(np.int8)


def fate_after(fate: np.ndarray, success: Any, code: Any) -> np.ndarray:
    """(N,) int8: what an attack makes of examples; it changes the fate only of those that were robust before."""
    attacked = np.where(success, FOOLED, np.where(code == Code.NON_FINITE, NON_FINITE, ROBUST))
    return np.where(fate == ROBUST, attacked, fate).astype(np.int8)


class Proportion(NamedTuple):
    """A proportion with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: Any) -> Proportion:
        """Of a boolean array."""
        from scipy import stats  # takes as long to import as the rest of this room

        hits = np.asarray(hits, bool)
        interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="wilson")
        return cls(float(hits.mean()), float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclasses.dataclass(frozen=True)
class AttackOutcome:
    """What one attack did to every example.

    Args:
        attack: the attack.
        outcome: (N,) int8: ROBUST, FOOLED, CLEAN_ERROR or NON_FINITE.
        size: (N,) perturbation sizes in the unit of the set's radius.
        loss: (N,) the attack's loss at the point returned.
        code: (N,) a `Code` an example.
        images: (N, H, W, C) the points returned; of an example that an earlier attack had fooled already (see
            `only_survivors` of `robustness`) that attack's.
        forwards: (N,) forward passes an example; 0 where this attack was not run.
        backwards: (N,) gradients an example.
        counts: what the lanes executed and needed, and how long it took.
        prediction: (N,) the class of the point returned, as the forward pass that confirms a success sees it; the clean
            one where no success was claimed.
        fooled_8bit: (N,) whether an example is fooled, and still is when the point is rounded to 8 bits a channel, as
            image files have it (which may leave the set by half a level); None where the model was not asked, as a host
            model without gradients is not, whose queries may cost money.
    """

    attack: Attack
    outcome: np.ndarray
    size: np.ndarray
    loss: np.ndarray
    code: np.ndarray
    images: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    counts: LaneCounts
    prediction: np.ndarray | None = None
    fooled_8bit: np.ndarray | None = None

    def __repr__(self) -> str:
        fates = ", ".join(f"{int((self.outcome == code).sum())} {fate}" for code, fate in enumerate(OUTCOMES))
        return f"AttackOutcome({self.attack}: {fates})"

    @property
    def robust(self) -> np.ndarray:
        """(N,) whether the example was classified correctly and the attack did not change that."""
        return self.outcome == ROBUST

    @property
    def distances(self) -> np.ndarray:
        """(N,) how far each example is from an error, as far as the attack found: 0 where it is one, ∞ where none was.

        They are distances to the decision boundary if the attack is a minimum-norm one, else upper bounds of them. NaN
        logits count as an error.
        """
        unfooled = np.where(self.outcome == ROBUST, np.inf, 0.0)
        return np.where(self.outcome == FOOLED, self.size, unfooled).astype(self.size.dtype)

    @property
    def inherits(self) -> bool:
        """Whether some examples were fooled by an earlier attack already, and sizes are therefore no distances."""
        return bool((self.forwards[self.outcome == FOOLED] == 0).any())

    @property
    def median_distance(self) -> float:
        """The median of `distances`: ∞ if most examples withstood the attack."""
        return float(np.median(self.distances))

    def curve(self, radii: Any) -> np.ndarray:
        """Robust accuracy against radius from one run of a minimum-norm attack: the share of examples farther away.

        Args:
            radii: each ≥ 0, in the unit of the set's radius; at those above it accuracies are upper bounds.

        Returns:
            (len(radii),) accuracies in [0, 1].

        Raises:
            ValueError: a radius that is negative or not finite.

        Example:
            >>> found = jr.evaluate.robustness(model, data, {"fmn": jr.attacks.fmn(ball)}, key=key)  # doctest: +SKIP
            >>> found.outcomes["fmn"].curve([0.5, 1.0, 2.0])  # doctest: +SKIP
        """
        radii = np.array([float(_checks.number("radii", radius)) for radius in radii])
        return (self.distances[None] > radii[:, None]).mean(1)

    @property
    def caveats(self) -> str:
        """What a reader of the accuracy must know, each part led in by a semicolon; mostly nothing."""
        fooled = int((self.outcome == FOOLED).sum())
        lost = 0 if self.fooled_8bit is None else fooled - int(self.fooled_8bit.sum())
        found = {
            f"of {fooled} successes lost by rounding to 8 bits": lost,
            "with NaN or infinite logits": int((self.outcome == NON_FINITE).sum()),
            "successes not confirmed": int((self.code == Code.DISAGREED).sum()),
            "successes outside of the set": int((self.code == Code.OUTSIDE).sum()),
            "without a start": int((self.code == Code.NO_START).sum()),
        }
        return "".join(f"; {count} {what}" for what, count in found.items() if count)

    def summary(self) -> dict[str, Any]:
        """The numbers of a results file."""
        attacked = (self.forwards > 0) & ((self.outcome == ROBUST) | (self.outcome == FOOLED))
        fooled = attacked & (self.outcome == FOOLED)
        return {
            **Proportion.of(self.robust)._asdict(),
            "success_rate": float(fooled.sum() / attacked.sum()) if attacked.any() else None,
            "mean_size": float(self.size[fooled].mean()) if fooled.any() else None,
            "median_size": float(np.median(self.size[fooled])) if fooled.any() else None,
            "fooled": int((self.outcome == FOOLED).sum()),
            "fooled_8bit": None if self.fooled_8bit is None else int(self.fooled_8bit.sum()),
            "forwards": float(self.forwards[attacked].mean()) if attacked.any() else None,
            "backwards": float(self.backwards[attacked].mean()) if attacked.any() else None,
            "seconds": self.counts.seconds,
            "steps_executed": self.counts.executed,
            "steps_needed": self.counts.needed,
            "non_finite": int((self.outcome == NON_FINITE).sum()),
            "disagreed": int((self.code == Code.DISAGREED).sum()),
            "outside": int((self.code == Code.OUTSIDE).sum()),
            "no_start": int((self.code == Code.NO_START).sum()),
            "inherits": self.inherits,
        }


@dataclasses.dataclass(frozen=True, repr=False)
class Outcomes:
    """What several attacks did to one model, per example; `Evaluation` writes it to files too.

    Args:
        name: the model's name in tables.
        labels: (N,) true labels.
        logits: (N, K) clean logits.
        outcomes: attack name -> what it did.
        images: (N, H, W, C) clean images.
        key: the key's data, integers.
        trained_on: the names of the attacks that training had seen; they do not count as unseen.
        notes: anything in JSON's terms, such as seconds of training.
        goal: what counts as a success, its numbers (N,); by default misclassification. Accuracy is the share of
            examples of which no point meets it.
    """

    name: str
    labels: np.ndarray
    logits: np.ndarray
    outcomes: dict[str, AttackOutcome]
    images: np.ndarray
    key: list[int]
    trained_on: tuple[str, ...] = ()
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    goal: Criterion = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.goal is None:
            object.__setattr__(self, "goal", Misclassified(self.labels))

    @property
    def _aim(self) -> str | None:
        """What counts as a success, in words; None of misclassification."""
        goal: Any = self.goal
        if type(goal) is Misclassified:
            return None
        confidence = ""
        if isinstance(goal, Confident):
            low, high = np.min(goal.probability), np.max(goal.probability)
            confidence = f" with confidence {low:g}" + ("" if low == high else f" to {high:g}")
            goal = goal.goal
        if goal.targeted:
            return f"given targets{confidence}"
        return (f"top-{goal.k} errors" if goal.k > 1 else "errors") + confidence

    @property
    def _small_print(self) -> list[str]:
        """What must be said wherever the accuracies are: that a suite was cheapened, that gradients are not finite."""
        said = {"cheapened": "cheapened", BLIND: "warning: gradients"}
        return [f"{text}: {self.notes[name]}" for name, text in said.items() if name in self.notes]

    def __repr__(self) -> str:
        found = {"clean": self.clean, **{name: self.accuracy(name) for name in self.outcomes}}
        found |= {"worst case": self.union} if len(self.outcomes) > 1 else {}
        accuracies = ", ".join(f"{name} {100 * each.accuracy:.1f}" for name, each in found.items())
        less = "; cheapened" if "cheapened" in self.notes else ""
        less += "; gradients not finite" if BLIND in self.notes else ""
        return f"{type(self).__name__}({self.name!r}, {len(self.labels)} examples; accuracy in %: {accuracies}{less})"

    def __getitem__(self, attack: str) -> AttackOutcome:
        """What one attack did."""
        return self.outcomes[_checks.choice("attack", attack, self.outcomes)]

    def __iter__(self) -> Iterator[str]:
        """The names of the attacks."""
        return iter(self.outcomes)

    @property
    def prediction(self) -> np.ndarray:
        """(N,) the clean predictions."""
        return self.logits.argmax(-1)

    @property
    def clean(self) -> Proportion:
        """Clean accuracy, or the share of clean images that do not meet another criterion; NaN logits are errors."""
        return Proportion.of(self._right())

    @property
    def union(self) -> Proportion:
        """Accuracy against the worst attack of each example: an example counts only if no attack fooled it."""
        return Proportion.of(self.robust())

    @property
    def unseen_mean(self) -> float | None:
        """The mean robust accuracy over the attacks that training had not seen; None if there is none."""
        return unseen_mean({name: self.accuracy(name).accuracy for name in self.outcomes}, self.trained_on)

    def accuracy(self, attack: str | None = None) -> Proportion:
        """Robust accuracy under one attack; by default in the worst case, `union`."""
        return self.union if attack is None else Proportion.of(self[attack].robust)

    def robust(self, attack: str | None = None) -> np.ndarray:
        """Which examples are classified right under an attack; "clean": without one; None: under every one of them.

        Args:
            attack: its name, "clean" or None.

        Returns:
            (N,) bool.
        """
        if attack is None:
            return np.logical_and.reduce([outcome.robust for outcome in self.outcomes.values()])
        return self._right() if attack == "clean" and attack not in self.outcomes else self[attack].robust

    def _right(self) -> np.ndarray:
        return ~meets(self.goal, self.logits) & np.isfinite(self.logits).all(-1)

    def to_dict(self) -> dict[str, Any]:
        """What a results file holds of the model, in JSON's terms; `report.LEGEND` says what the fields are."""
        return {
            "name": self.name,
            "trained_on": list(self.trained_on),
            "notes": _store.describe(self.notes | ({} if self._aim is None else {"criterion": self._aim})),
            "clean": self.clean._asdict(),
            "attacks": {name: outcome.summary() for name, outcome in self.outcomes.items()},
            "union": self.union._asdict(),
            "unseen_mean": self.unseen_mean,
            "examples": {
                "label": self.labels.tolist(),
                "prediction": self.prediction.tolist(),
                "outcome": {name: outcome.outcome.tolist() for name, outcome in self.outcomes.items()},
                "size": {name: outcome.size.tolist() for name, outcome in self.outcomes.items()},
            },
        }

    def __str__(self) -> str:
        rows = [("clean", self.clean, None)]
        rows += [(name, self.accuracy(name), outcome) for name, outcome in self.outcomes.items()]
        rows += [("worst case", self.union, None)] if len(self.outcomes) > 1 else []
        width = max(len(name) for name, *_ in rows)
        numbers = [[f"{100 * value:.1f}" for value in proportion] for _, proportion, _ in rows]
        wide, low, high = (max(map(len, column)) for column in zip(*numbers, strict=True))
        against = "" if self._aim is None else f", against {self._aim},"
        lines = [f"{self.name}: accuracy in %{against} [95 % interval] on {len(self.labels)} examples"]
        for (name, _, outcome), (accuracy, least, most) in zip(rows, numbers, strict=True):
            about = "" if outcome is None else f"   {outcome.attack}, {outcome.counts.seconds:.1f} s{outcome.caveats}"
            if outcome is not None and outcome.attack.minimum_norm and not outcome.inherits:
                about += f"; median distance {outcome.median_distance:.4g}"
            lines.append(f"  {name:<{width}}  {accuracy:>{wide}} [{least:>{low}}, {most:>{high}}]{about}")
        return "\n".join([*lines, *self._small_print])


def unseen_mean(accuracies: Mapping[str, float], trained_on: Collection[str]) -> float | None:
    """The mean robust accuracy over the attacks that training had not seen.

    Args:
        accuracies: attack name -> robust accuracy.
        trained_on: the names of the attacks that training had seen; others than those of `accuracies` do no harm.

    Returns:
        The mean, in the unit of `accuracies`; None if training had seen them all.

    Example:
        >>> unseen_mean({"linf": 0.5, "l2": 0.25, "l1": 0.75}, ["linf"])
        0.5

    Reference:
        Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655.
    """
    unseen = [accuracy for name, accuracy in accuracies.items() if name not in trained_on]
    return float(np.mean(unseen)) if unseen else None
