"""Robust accuracy of a model: clean, under each attack, under the worst of them, with what it cost."""

from __future__ import annotations

import binascii
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust import _checks
from jaxrobust.attacks import Attack
from jaxrobust.attacks.core.engine import of_examples
from jaxrobust.attacks.suites import Suite
from jaxrobust.evaluate import _hosts, _saved
from jaxrobust.evaluate._programs import clean_logits, fitting, pad, replicated, rows_of
from jaxrobust.evaluate.door import enter, labelled
from jaxrobust.evaluate.evaluation import Evaluation
from jaxrobust.evaluate.export import still_fooled
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.lanes import LaneCounts, LaneResult, drive, unwatched
from jaxrobust.evaluate.outcomes import BLIND, AttackOutcome, clean_fate, fate_after
from jaxrobust.losses import cross_entropy
from jaxrobust.report.format import FOOLED, LISTED, ROBUST
from jaxrobust.types import Classifier, Code, Key

__all__ = ["check_name", "robustness"]

LONGEST_NAME = 200  # bytes of an attack's name, of the 255 that a file's may have
LOOKED_AT = 8  # images whose gradients are looked at
RESERVED_NAMES = (".", "..", "pictures", LISTED, "clean", "union")


@_checks.off_mesh
def robustness(
    model: Classifier | HostModel,
    data: Any,
    attacks: Attack | Sequence[Attack] | Mapping[str, Attack],
    *,
    key: Key,
    name: str = "model",
    trained_on: Sequence[str] = (),
    notes: Mapping[str, Any] | None = None,
    lanes: int = 128,
    early_stop: bool | None = None,
    only_survivors: bool = False,
    devices: Sequence[Any] | None = None,
    save_dir: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Robust accuracy of a model under attacks, each example's worst case, intervals and costs.

    An example is robust if it is classified correctly, and no point that the attack found is classified otherwise;
    every success is confirmed by a fresh forward pass. NaN logits count as neither.

    Args:
        model: the classifier; or a `HostModel`, without a pullback for attacks that use no gradients.
        data: a pair of images (N, H, W, C) in [0, 1] and integer labels (N,), such as `data.load` returns; or, in the
            place of labels, a criterion that has them, such as `Targeted(targets, labels)`, `TopK(labels, 5)` or
            `Confident(Misclassified(labels), 0.9)`. An example then is robust if no point, the clean image among them,
            meets it, and a clean error if the clean image does.
        attacks: one attack, several, or a dictionary from names to attacks; their sets' radii may be arrays (N,), one
            an image.
        key: makes all randomness. An example's result depends on the key, the attack's name and its place in the
            data, and on nothing else: not on the lanes, the devices, the other attacks or an interruption.
        name: the model's name in tables.
        trained_on: the names of the attacks that training had seen.
        notes: anything in JSON's terms to keep with the results.
        lanes: examples in flight at once.
        early_stop: whether an example's search ends with its first success. The accuracies are the same without; the
            points returned are then those of highest loss, of minimum-norm attacks the nearest. By default it does
            where the attack's `first_success_is_final`: not of a minimum-norm one, since then sizes are distances, see
            `AttackOutcome.distances`. With `only_survivors`, where successes alone are wanted, that too ends. Under
            randomness (`attacks.eot`) none ever does: the first success is the luckiest.
        only_survivors: whether each attack sees only the examples that are still robust, as in AutoAttack; each
            example then keeps its first fate, an attack's accuracy is that of the attacks so far, and it costs less.
        devices: where to run; by default all local devices.
        save_dir: a folder in which progress is saved, also when an exception or Ctrl-C ends the evaluation; started
            again, it goes on from there. Files of another evaluation are refused; see `save` of `run_lanes`.
        run_id: a name of your own for the evaluation, with `save_dir`, where something in the model or an attack cannot
            be recognised in another process, or changes as it is used (a count of calls); see `run_lanes`.
        progress: whether to show a progress bar for each attack.

    Returns:
        The evaluation; print it, or `save` it as a page. It notes, and its text says, where gradients are NaN or
        infinite at images that withstood an attack by gradients; up to eight are looked at, of a `HostModel` none.

    Raises:
        TypeError: images, labels or key of the wrong dtype, or not attacks.
        ValueError: see `attacks.run` and `run_lanes`; or two attacks of one name, or a model that is saved and that the
            clean pass has changed without a `run_id`.
        BlockingIOError: another run is saving attacks of these names in `save_dir`.

    Example:
        >>> x, y = jr.data.load("digits")  # doctest: +SKIP
        >>> report = robustness(model, (x, y), jr.attacks.pgd(jr.sets.Linf(0.1)), key=key)  # doctest: +SKIP
    """
    images, labels = labelled(data)
    named = _named(attacks)
    cheapened = attacks.cheapened if isinstance(attacks, Suite) else None
    if isinstance(trained_on, str):
        raise TypeError(f"trained_on must be a sequence of names; got the string {trained_on!r}")
    _checks.count("lanes", lanes)
    everywhere = replicated(devices)
    _checks.saving("save_dir", save_dir, run_id)
    # before the model is first asked, since some functions count their calls
    known = {} if save_dir is None else _saved.of_model(model, run_id)
    checked, given = enter(named.values(), model, images, labels, key=key), model
    goal = checked.goal
    files = {} if save_dir is None else {name: _checks.path("save_dir", save_dir) / f"{name}.npz" for name in named}
    with _saved.held(files.values()):
        # placed here once, so that all forward passes share one program
        model = jax.device_put(model, everywhere)
        logits = clean_logits(model, images, batch_size=lanes)
        if files and run_id is None:
            _saved.check_unchanged(known, given)
        fate, points, prediction = clean_fate(logits, goal), images, logits.argmax(-1)
        rounded, outcomes = np.zeros(len(images), bool), {}
        for attack_name, attack in named.items():
            rows = np.flatnonzero(fate == ROBUST) if only_survivors else np.arange(len(images))
            among: Any = rows if len(rows) < len(images) else slice(None)  # of all, a view
            found = None
            if len(rows):
                found = drive(
                    of_examples(attack, rows) if len(rows) < len(images) else attack,
                    model,
                    checked.images[among],
                    rows_of(goal, rows),
                    key=jax.random.fold_in(key, binascii.crc32(attack_name.encode())),
                    indices=checked.indices[among],
                    logits=logits[rows],
                    lanes=lanes,
                    early_stop=only_survivors or attack.first_success_is_final if early_stop is None else early_stop,
                    everywhere=everywhere,
                    progress=f"{name} | {attack_name}" if progress else False,
                    watch=_saved.kept(files[attack_name], attack, known, run_id) if files else unwatched,
                )
            outcome = _outcome(attack, found, rows, fate, points, prediction)
            # a model that shows its scores alone may be far, and its queries cost money
            if not isinstance(model, HostModel) or getattr(model, "differentiable", False):
                still = rounded.copy()
                fooled = rows[outcome.outcome[rows] == FOOLED]
                still[fooled] = still_fooled(
                    model, outcome.images[fooled], rows_of(goal, fooled), fitting(len(images), lanes)
                )
                outcome = dataclasses.replace(outcome, fooled_8bit=still)
            outcomes[attack_name] = outcome
            if only_survivors:
                fate, points, prediction = outcome.outcome, outcome.images, outcome.prediction
                rounded = outcome.fooled_8bit if outcome.fooled_8bit is not None else rounded
        # the pullback of a model on the host may cost money
        blind = "" if isinstance(model, HostModel) else _non_finite(model, checked.images, goal.label, outcomes)
    return Evaluation(
        name=name,
        labels=goal.label,
        logits=logits,
        outcomes=outcomes,
        images=images,
        key=np.asarray(jax.random.key_data(key)).tolist(),
        trained_on=tuple(trained_on),
        notes=dict(notes or {}) | ({"cheapened": cheapened} if cheapened else {}) | ({BLIND: blind} if blind else {}),
        goal=goal,
    )


def _non_finite(model: Classifier, images: np.ndarray, labels: Any, outcomes: Mapping[str, AttackOutcome]) -> str:
    """At how many of a few images that withstood an attack by gradients these are NaN or infinite; nothing if none."""
    withstood = [outcome.robust for outcome in outcomes.values() if outcome.attack.gradients]
    rows = np.flatnonzero(np.any(withstood, 0))[:LOOKED_AT] if withstood else np.array([], int)
    if not len(rows):
        return ""
    some = pad(rows, min(LOOKED_AT, len(images)))  # of one shape, a program
    gradients = _hosts.gradients(cross_entropy, model, images[some], np.asarray(labels)[some].astype(np.int32))
    dead = int((~np.isfinite(gradients[: len(rows)])).any((1, 2, 3)).sum())
    where = f"{dead} of {len(rows)} images that were looked at"
    return f"NaN or infinite at {where}; attacks that follow them may have found nothing" if dead else ""


def _outcome(
    attack: Attack,
    found: LaneResult | None,
    rows: np.ndarray,
    fate: np.ndarray,
    points: np.ndarray,
    prediction: np.ndarray,
) -> AttackOutcome:
    """Lane results of some rows, spread over all examples; None where no row was left."""
    count = len(fate)
    outcome = {
        "outcome": fate.copy(),
        "size": np.zeros(count, points.dtype),
        "loss": np.full(count, np.nan, points.dtype),
        "code": np.full(count, Code.RAN, np.int32),
        "images": points,
        "forwards": np.zeros(count, np.int32),
        "backwards": np.zeros(count, np.int32),
    }
    prediction = prediction.copy()
    if found is not None:
        prediction[rows] = found.prediction
        outcome["outcome"][rows] = fate_after(fate[rows], found.result.success, found.result.code)
        if len(rows) == count:
            outcome["images"] = np.asarray(found.result.images, points.dtype)  # the lanes' own array
        else:
            outcome["images"] = points.copy()
            outcome["images"][rows] = found.result.images
        for name in outcome.keys() - {"outcome", "images"}:
            outcome[name][rows] = getattr(found.result, name)
    counts = found.counts if found else LaneCounts(0, 0, 0.0)
    return AttackOutcome(attack=attack, counts=counts, prediction=prediction, **outcome)


def _named(attacks: Attack | Sequence[Attack] | Mapping[str, Attack]) -> dict[str, Attack]:
    if isinstance(attacks, Attack):
        attacks = [attacks]
    if not isinstance(attacks, (Mapping, list, tuple)):
        raise TypeError(f"attacks must be an attack, a list of them or a dictionary from names; got {attacks!r}")
    if not attacks:
        raise ValueError("attacks must hold at least one attack; got none")
    places = attacks.items() if isinstance(attacks, Mapping) else enumerate(attacks)
    named: dict[str, Attack] = {}
    for place, attack in places:
        if not isinstance(attack, Attack):
            raise TypeError(f"attacks[{place!r}] must be an Attack; got {attack!r}")
        own = f"{type(attack).__name__}-{type(attack.set).__name__}".lower()
        name = check_name(place if isinstance(attacks, Mapping) else own)
        if name in named:
            raise ValueError(f"attacks of one kind need names, pass a dictionary; got {name!r} again")
        named[name] = attack
    return named


def check_name(name: Any) -> str:
    """The name of an attack, refused before anything is computed if a file or row of a run cannot be called so.

    Args:
        name: the name.

    Returns:
        The name.

    Raises:
        ValueError: it cannot name a file, or is that of a run's own file or row.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or any(c in name for c in "/\\"):
        raise ValueError(f"attacks must have names that can name a file; got {name!r}")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"attacks must have names of at most {LONGEST_NAME} bytes; got {len(name.encode())}: {name!r}")
    if name.casefold() in RESERVED_NAMES:
        raise ValueError(f"attacks must not be named as a run's own files or rows, {RESERVED_NAMES}; got {name!r}")
    return name
