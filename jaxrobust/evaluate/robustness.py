"""Robust accuracy of a model: clean, under each attack, under the worst of them, with what it cost."""

from __future__ import annotations

import binascii
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from jaxrobust import _checks
from jaxrobust import attacks as attacks_room
from jaxrobust.attacks import Attack
from jaxrobust.evaluate import _store
from jaxrobust.evaluate.lanes import LaneCounts, predict, run_lanes
from jaxrobust.types import Classifier, Code, Key

__all__ = [
    "CLEAN_ERROR",
    "FOOLED",
    "NON_FINITE",
    "ROBUST",
    "AttackOutcome",
    "Evaluation",
    "Proportion",
    "curve",
    "robustness",
]

# what became of an example under an attack
ROBUST, FOOLED, CLEAN_ERROR, NON_FINITE = 0, 1, 2, 3


class Proportion(NamedTuple):
    """A proportion with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: Any) -> Proportion:
        """Of a boolean array."""
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
        images: (N, H, W, C) the points returned.
        forwards: (N,) forward passes an example.
        backwards: (N,) gradients an example.
        counts: what the lanes executed and needed, and how long it took.
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

    @property
    def robust(self) -> np.ndarray:
        """(N,) whether the example was classified correctly and the attack did not change that."""
        return self.outcome == ROBUST

    def summary(self) -> dict[str, Any]:
        """The numbers of a results file."""
        attacked = (self.outcome == ROBUST) | (self.outcome == FOOLED)
        fooled = self.outcome == FOOLED
        return {
            **Proportion.of(self.robust)._asdict(),
            "success_rate": float(fooled.sum() / attacked.sum()) if attacked.any() else None,
            "mean_size": float(self.size[fooled].mean()) if fooled.any() else None,
            "median_size": float(np.median(self.size[fooled])) if fooled.any() else None,
            "forwards": float(self.forwards[attacked].mean()) if attacked.any() else None,
            "backwards": float(self.backwards[attacked].mean()) if attacked.any() else None,
            "seconds": self.counts.seconds,
            "steps_executed": self.counts.executed,
            "steps_needed": self.counts.needed,
            "non_finite": int((self.outcome == NON_FINITE).sum()),
            "disagreed": int((self.code == Code.DISAGREED).sum()),
        }


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model under several attacks, per example. Printing it gives a table.

    Args:
        name: the model's name in tables.
        labels: (N,) true labels.
        logits: (N, K) clean logits.
        outcomes: attack name -> what it did.
        images: (N, H, W, C) clean images.
        key: the key's data, integers.
        trained_on: the names of the attacks that training had seen; they do not count as unseen.
        notes: anything in JSON's terms, such as seconds of training.
    """

    name: str
    labels: np.ndarray
    logits: np.ndarray
    outcomes: dict[str, AttackOutcome]
    images: np.ndarray
    key: list[int]
    trained_on: tuple[str, ...] = ()
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def prediction(self) -> np.ndarray:
        """(N,) the clean predictions."""
        return self.logits.argmax(-1)

    @property
    def clean(self) -> Proportion:
        """Clean accuracy; NaN logits are errors."""
        return Proportion.of((self.prediction == self.labels) & np.isfinite(self.logits).all(-1))

    @property
    def union(self) -> Proportion:
        """Accuracy against the worst attack of each example: an example counts only if no attack fooled it."""
        robust = [outcome.robust for outcome in self.outcomes.values()]
        return Proportion.of(np.logical_and.reduce(robust))

    @property
    def unseen_mean(self) -> float | None:
        """The mean robust accuracy over the attacks that training had not seen; None if there is none."""
        unseen = [self.accuracy(name).accuracy for name in self.outcomes if name not in self.trained_on]
        return float(np.mean(unseen)) if unseen else None

    def accuracy(self, attack: str) -> Proportion:
        """Robust accuracy under one attack."""
        return Proportion.of(self.outcomes[attack].robust)

    def to_json(self) -> dict[str, Any]:
        """The model's part of a results file."""
        return {
            "name": self.name,
            "trained_on": list(self.trained_on),
            "notes": _store.describe(self.notes),
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

    def save(self, run_dir: str | pathlib.Path, *, title: str | None = None) -> pathlib.Path:
        """Write `results.json`, pictures and the page to a new run folder.

        Args:
            run_dir: the folder; made if it does not exist.
            title: the page's title; by default the model's name.

        Returns:
            The page.

        Raises:
            ValueError: the folder holds a run already.
        """
        from jaxrobust.evaluate.run_folder import save_run

        return save_run(run_dir, [self], title=title or self.name)

    def __str__(self) -> str:
        rows = [("clean", self.clean, None)]
        rows += [(name, self.accuracy(name), outcome) for name, outcome in self.outcomes.items()]
        rows += [("worst case", self.union, None)] if len(self.outcomes) > 1 else []
        width = max(len(name) for name, *_ in rows)
        lines = [f"{self.name}: accuracy in % [95 % interval] on {len(self.labels)} examples"]
        for name, proportion, outcome in rows:
            about = "" if outcome is None else f"   {outcome.attack}, {outcome.counts.seconds:.1f} s"
            lines.append(f"  {name:<{width}}  {proportion!s:>19}{about}")
        return "\n".join(lines)


def robustness(
    model: Classifier,
    data: Any,
    attacks: Attack | Sequence[Attack] | Mapping[str, Attack],
    *,
    key: Key,
    name: str = "model",
    trained_on: Sequence[str] = (),
    notes: Mapping[str, Any] | None = None,
    lanes: int = 128,
    early_stop: bool = True,
    only_survivors: bool = False,
    devices: Sequence[Any] | None = None,
    save_dir: str | pathlib.Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Robust accuracy of a model under attacks, each example's worst case, intervals and costs.

    An example is robust if it is classified correctly, and no point that the attack found is classified otherwise;
    every success is confirmed by a fresh forward pass. NaN logits count as neither.

    Args:
        model: the classifier.
        data: a pair of images (N, H, W, C) in [0, 1] and integer labels (N,), such as `data.load` returns.
        attacks: one attack, several, or a dictionary from names to attacks.
        key: makes all randomness. An example's result depends on the key, the attack's name and its place in the
            data, and on nothing else: not on the lanes, the devices, the other attacks or an interruption.
        name: the model's name in tables.
        trained_on: the names of the attacks that training had seen.
        notes: anything in JSON's terms to keep with the results.
        lanes: examples in flight at once.
        early_stop: whether an example's search ends with its first success. The accuracies are the same without; the
            points returned are then those of highest loss.
        only_survivors: whether each attack sees only the examples that no earlier one fooled, as AutoAttack does;
            then only the worst case is meaningful, and it costs less.
        devices: where to run; by default all local devices.
        save_dir: a folder in which progress is saved; a killed evaluation, started again, goes on from there.
        progress: whether to show a progress bar for each attack.

    Returns:
        The evaluation; print it, or `save` it as a page.

    Raises:
        TypeError: images or labels of the wrong dtype.
        ValueError: see `attacks.run`; or two attacks of one name.

    Example:
        >>> x, y = jr.data.load("digits")  # doctest: +SKIP
        >>> report = robustness(model, (x, y), jr.attacks.pgd(jr.sets.Linf(0.1)), key=key)  # doctest: +SKIP
    """
    images, labels = (np.asarray(part) for part in data)
    named = _named(attacks)
    _checks.image_shape(images)
    goal = _checks.criterion(labels, images)
    classes = _checks.logits_shape(model, images)
    for attack in named.values():
        attacks_room.engine.check_values(attack, model, images, goal, classes)
    logits = predict(model, images, batch_size=lanes)
    finite = np.isfinite(logits).all(-1)
    correct = finite & (logits.argmax(-1) == labels)
    survivors = np.ones(len(labels), bool)
    outcomes = {}
    for attack_name, attack in named.items():
        rows = np.flatnonzero(survivors)
        if not len(rows):
            # every example has fallen already, and stays fallen
            fallen = next(reversed(outcomes.values()))
            outcomes[attack_name] = dataclasses.replace(fallen, attack=attack, counts=LaneCounts(0, 0, 0.0))
            continue
        found = run_lanes(
            attack,
            model,
            images[rows],
            labels[rows],
            key=jax.random.fold_in(key, binascii.crc32(attack_name.encode())),
            indices=rows,
            logits=logits[rows],
            lanes=lanes,
            early_stop=early_stop,
            devices=devices,
            save=None if save_dir is None else pathlib.Path(save_dir) / f"{attack_name}.npz",
            progress=f"{name} | {attack_name}" if progress else False,
        )
        outcomes[attack_name] = _outcome(attack, found, rows, images, correct, finite)
        if only_survivors:
            survivors &= outcomes[attack_name].robust
    return Evaluation(
        name=name,
        labels=labels,
        logits=logits,
        outcomes=outcomes,
        images=images,
        key=np.asarray(jax.random.key_data(key)).tolist(),
        trained_on=tuple(trained_on),
        notes=dict(notes or {}),
    )


def _outcome(
    attack: Attack, found: Any, rows: np.ndarray, images: np.ndarray, correct: np.ndarray, finite: np.ndarray
) -> AttackOutcome:
    """Lane results of some rows, spread over all examples."""
    result = found.result

    def spread(values: np.ndarray, default: Any) -> np.ndarray:
        full = np.array(np.broadcast_to(default, (len(images), *values.shape[1:])), values.dtype)
        full[rows] = values
        return full

    fooled = spread(result.success, True)
    code = spread(result.code, Code.RAN)
    outcome = np.where(fooled, FOOLED, ROBUST)
    outcome = np.where(~fooled & (code == Code.NON_FINITE), NON_FINITE, outcome)
    outcome = np.where(finite, np.where(correct, outcome, CLEAN_ERROR), NON_FINITE)
    images_found = images.copy()
    images_found[rows] = result.images
    return AttackOutcome(
        attack=attack,
        outcome=outcome.astype(np.int8),
        size=spread(result.size, 0),
        loss=spread(result.loss, 0),
        code=code,
        images=images_found,
        forwards=spread(result.forwards, 0),
        backwards=spread(result.backwards, 0),
        counts=found.counts,
    )


def _named(attacks: Attack | Sequence[Attack] | Mapping[str, Attack]) -> dict[str, Attack]:
    if isinstance(attacks, Attack):
        attacks = [attacks]
    if not isinstance(attacks, Mapping):
        pairs = [(f"{type(a).__name__.lower()}-{type(a.set).__name__.lower()}", a) for a in attacks]
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError(f"attacks of one kind need names: pass a dictionary; got {[name for name, _ in pairs]}")
        attacks = dict(pairs)
    if not attacks:
        raise ValueError("attacks must hold at least one attack; got none")
    for name, attack in attacks.items():
        if not isinstance(attack, Attack):
            raise TypeError(f"attacks[{name!r}] must be an Attack; got {attack!r}")
        if not name or any(c in name for c in "/\\"):
            raise ValueError(f"attacks must have names that can name a file; got {name!r}")
    return dict(attacks)


def curve(
    model: Classifier,
    data: Any,
    attack: Attack,
    radii: Sequence[float],
    *,
    key: Key,
    lanes: int = 128,
    devices: Sequence[Any] | None = None,
    progress: bool | str = False,
) -> np.ndarray:
    """Robust accuracy against radius, all radii with one compiled program.

    Args:
        model: the classifier.
        data: images (N, H, W, C) in [0, 1] and labels (N,).
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
    images, labels = (np.asarray(part) for part in data)
    radii = [_checks.number("radii", float(radius)) for radius in radii]
    logits = predict(model, images, batch_size=lanes)
    finite = np.isfinite(logits).all(-1)
    accuracies = []
    for radius in radii:
        label = f"{progress} r={radius:.3g}" if isinstance(progress, str) else progress
        found = run_lanes(
            attack.with_radius(radius),
            model,
            images,
            labels,
            key=key,
            logits=logits,
            lanes=lanes,
            devices=devices,
            progress=label,
        )
        accuracies.append(float((finite & ~found.result.success & (found.result.code != Code.NON_FINITE)).mean()))
    return np.array(accuracies)
