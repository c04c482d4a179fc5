"""A run folder: one `results.json`, the pictures beside it, and the page made from both."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust import _checks, _store, report
from jaxrobust.attacks import Attack
from jaxrobust.evaluate._programs import predict
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.outcomes import Outcomes
from jaxrobust.report.format import FOOLED, FORMAT, PAGE, PICTURES, RESULTS
from jaxrobust.types import Classifier

__all__ = ["is_finished", "save_run"]


def is_finished(run_dir: str | os.PathLike[str], config: Any) -> bool:
    """Whether a folder holds the finished run of some settings, so that nothing is left to do.

    Args:
        run_dir: the folder; it need not exist.
        config: what `save_run` is given as `config`.

    Returns:
        True if it does, False if it holds no finished run.

    Raises:
        TypeError: a folder that is no path, or settings that have no names.
        ValueError: it holds a finished run of other settings or of another version, or settings cannot be identified.
    """
    folder, settings = _checks.path("run_dir", run_dir), _settings(config)
    if not (folder / RESULTS).exists():
        return False
    found, wanted = report.load(run_dir).results.get("identity"), _identified(settings)
    if not isinstance(found, dict):
        raise ValueError(f"run_dir must be new for this version; {run_dir} holds a run of another version")
    unknown = [name for name, digest in wanted.items() if digest is None]
    if unknown:
        advice = "Keep it out of config, or put a name in its place"
        _store.identity(settings[unknown[0]], what=f"config.{unknown[0]}", advice=advice)  # which says why
    other = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if other:
        raise ValueError(f"run_dir must be new for new settings; {run_dir} holds a run with another {', '.join(other)}")
    return True


def _settings(config: Any) -> dict[str, Any]:
    """The settings by name, what kind they are of among them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return {"type": type(config), **fields}
    if config is None:
        return {}
    if isinstance(config, (argparse.Namespace, types.SimpleNamespace)):
        config = vars(config)
    if not isinstance(config, Mapping):
        raise TypeError(
            "config must be a dataclass, a dictionary or a namespace, whose settings have names; got "
            f"{_checks.told(config)}"
        )
    return {str(name): value for name, value in config.items()}


def _identified(settings: dict[str, Any]) -> dict[str, str | None]:
    """What tells a run from others: each setting's identity, None of one that has none, and the version."""
    found: dict[str, str | None] = {"version of jaxrobust": _store.versions()["jaxrobust"]}
    for name, value in settings.items():
        try:
            found[name] = _store.identity(value)
        except ValueError:  # the run is done, and must not be lost for it
            found[name] = None
    return found


def save_run(
    run_dir: str | os.PathLike[str],
    evaluations: Sequence[Outcomes],
    *,
    title: str,
    models: Mapping[str, Classifier | HostModel] | None = None,
    data: Mapping[str, Any] | None = None,
    config: Any = None,
    curves: Sequence[Any] = (),
    trajectories: Sequence[Any] = (),
    seconds: float | None = None,
    pictures: int = 6,
    overwrite: bool = False,
) -> _store.Path:
    """Write a run folder and its page.

    Args:
        run_dir: the folder, made if need be.
        evaluations: one a model, all on the same examples and attacks.
        title: the page's title.
        models: the classifiers by name, to label the adversarial pictures with what they predict now; None takes what
            they predicted when successes were confirmed.
        data: what the data is: "name", "split", "class_names".
        config: the run's configuration: a dataclass, a dictionary or a namespace, such as argparse's.
        curves: from `curves`.
        trajectories: from `trajectories`.
        seconds: wall time of the whole run.
        pictures: how many examples to show, ≥ 0.
        overwrite: whether a finished run in the folder may be replaced. Its results are taken away first and the new
            ones written last, so that the folder never holds parts of both.

    Returns:
        The page, an HTML file.

    Raises:
        TypeError: a folder that is no path, no evaluations, or a configuration whose settings have no names.
        ValueError: the folder holds a finished run, or the evaluations are none, have one name, or differ in their
            examples or attacks.
    """
    run_dir, settings = _checks.path("run_dir", run_dir), _settings(config)
    if (run_dir / RESULTS).exists() and not overwrite:
        raise ValueError(f"run_dir must not hold a run already; got {run_dir}")
    _checks.count("pictures", pictures, low=0)
    _check_comparable(evaluations)
    first = evaluations[0]
    about = {
        "name": None,
        "split": None,
        "class_names": None,
        **dict(data or {}),
        "count": len(first.labels),
        "shape": list(first.images.shape[1:]),
        "classes": int(first.logits.shape[-1]),
        "images": _store.identity(first.images),
    }
    shown = _pictures(evaluations, models or {}, _choose(evaluations, pictures)) if pictures else None
    results = {
        "format": FORMAT,
        "complete": True,
        "title": title,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "seconds": seconds,
        "data": about,
        "key": first.key,
        "config": _store.describe(config if dataclasses.is_dataclass(config) else settings),
        "identity": _identified(settings),
        "versions": _store.versions(),
        "device": _device(),
        "attacks": {name: _about(outcome.attack) for name, outcome in first.outcomes.items()},
        "models": [evaluation.to_dict() for evaluation in evaluations],
        "curves": list(curves),
        "trajectories": list(trajectories),
        "pictures": PICTURES if pictures else None,
        "legend": report.LEGEND,
    }
    # Results go first and come last, so that whenever this ends they are those of the files beside them.
    if (run_dir / RESULTS).exists():
        for name in (RESULTS, PAGE, PICTURES):
            _store.remove(run_dir / name)
    if shown is not None:
        _store.write_arrays(run_dir / PICTURES, **shown)
    _store.write_json(run_dir / RESULTS, results)
    return report.render(run_dir)


def _device() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {platform.machine()}"


def _about(attack: Attack) -> dict[str, Any]:
    radius = np.asarray(attack.set.radius).tolist()
    settings = _store.describe(attack)
    return {"description": str(attack), "set": type(attack.set).__name__, "radius": radius, "settings": settings}


def _check_comparable(evaluations: Sequence[Outcomes]) -> None:
    if isinstance(evaluations, Outcomes) or not isinstance(evaluations, Sequence):
        advice = " (pass [evaluation])" if isinstance(evaluations, Outcomes) else ""
        raise TypeError(f"evaluations must be a list of evaluations; got {_checks.told(evaluations)}{advice}")
    for place, evaluation in enumerate(evaluations):
        if not isinstance(evaluation, Outcomes):
            raise TypeError(f"evaluations[{place}] must be an Evaluation; got {_checks.told(evaluation)}")
    if not evaluations:
        raise ValueError("evaluations must hold at least one evaluation; got none")
    names = [evaluation.name for evaluation in evaluations]
    if len(set(names)) < len(names):
        raise ValueError(f"evaluations must have different names; got {names}")
    first = evaluations[0]
    for other in evaluations[1:]:
        examples = np.array_equal(other.labels, first.labels) and np.array_equal(other.images, first.images)
        if not examples or not _same_attacks(first, other):
            raise ValueError(f"evaluations must share examples and attacks; got {first.name!r} and {other.name!r}")


def _same_attacks(first: Outcomes, other: Outcomes) -> bool:
    """Whether two evaluations are of the same attacks: the very same objects, or alike."""
    if first.outcomes.keys() != other.outcomes.keys():
        return False
    for name, outcome in first.outcomes.items():
        here, there = outcome.attack, other.outcomes[name].attack
        try:
            alike = here is there or _store.identity(here) == _store.identity(there)
        except ValueError:  # what has no identity has a description
            alike = _about(here) == _about(there)
        if not alike:
            return False
    return True


def _choose(evaluations: Sequence[Outcomes], count: int) -> np.ndarray:
    """Examples to show: those whose fate differs most between models and attacks, of as many classes as there are."""
    fooled = np.stack([o.outcome == FOOLED for e in evaluations for o in e.outcomes.values()])
    correct = np.logical_and.reduce([e.prediction == e.labels for e in evaluations])
    spread = np.where(correct, fooled.mean(0) * (1 - fooled.mean(0)), -1)
    order = np.argsort(-spread, kind="stable")
    labels = evaluations[0].labels[order]
    # the k-th best example of each class comes before any class's k+1-th
    rank_in_class = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels[: 50 * count])], int)
    return order[: 50 * count][np.argsort(rank_in_class, kind="stable")][:count]


def _pictures(
    evaluations: Sequence[Outcomes], models: Mapping[str, Classifier | HostModel], shown: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays, by the places of models and attacks: two names put together may be those of another pair."""
    first = evaluations[0]
    arrays = {"clean": first.images[shown], "label": first.labels[shown]}
    for place, evaluation in enumerate(evaluations):
        arrays[report.picture_key("prediction", place)] = evaluation.prediction[shown]
        for number, outcome in enumerate(evaluation.outcomes.values()):
            images, prediction = outcome.images[shown], outcome.prediction
            arrays[report.picture_key("images", place, attack=number)] = images
            if evaluation.name in models:
                after = predict(models[evaluation.name], images, batch_size=len(images)).argmax(-1)
            elif prediction is not None:
                after = prediction[shown]
            else:
                continue
            arrays[report.picture_key("prediction", place, attack=number)] = after
    return arrays
