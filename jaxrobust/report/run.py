"""A run folder, read and checked: what the evaluation wrote, before anything is drawn."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxrobust import _store
from jaxrobust.report import text
from jaxrobust.report.format import FORMAT, OUTCOMES, RESULTS, picture_key

__all__ = ["Run", "diagnostics", "load", "training_log"]


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "title": str,
    "created": str,
    "command": str,
    "seconds": (int, float, type(None)),
    "data": dict,
    "key": list,
    "config": dict,
    "versions": dict,
    "device": str,
    "attacks": dict,
    "models": list,
    "curves": list,
    "trajectories": list,
    "pictures": (str, type(None)),
}
_MASKING_FIELDS: dict[str, type | tuple[type, ...]] = {
    "attack": str,
    "radius": (int, float),
    "count": int,
    "flags": list,
    "checks": list,
    "accuracy_against_steps": list,
    "accuracy_against_radius": list,
}
_CHECK_FIELDS: dict[str, type | tuple[type, ...]] = {"name": str, "flagged": (bool, type(None)), "verdict": str}
_MODEL_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "trained_on": list,
    "notes": dict,
    "clean": dict,
    "attacks": dict,
    "union": (dict, type(None)),
    "unseen_mean": (int, float, type(None)),
    "examples": dict,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A complete run.

    Args:
        folder: where it lies.
        results: the content of its results.json.
        pictures: the arrays of its pictures.npz, or None where the run kept none.
        parts: the runs that it was put together from, in the order of the models; see `several`.
    """

    folder: _store.Path
    results: Mapping[str, Any]
    pictures: Mapping[str, np.ndarray] | None
    parts: tuple[Run, ...] = ()

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models, in the order of the table's rows."""
        return self.results["models"]

    @property
    def attacks(self) -> dict[str, dict[str, Any]]:
        """The attacks by name, in the order of the table's columns."""
        return self.results["attacks"]

    @functools.cached_property
    def names(self) -> list[str]:
        """The models' names; a model's place here decides its colour everywhere."""
        return [model["name"] for model in self.models]

    @property
    def comparable(self) -> bool:
        """Whether all models met the same examples and the same attacks."""
        examples = [(m["examples"].get("label"), list(m["examples"].get("outcome", {}))) for m in self.models]
        names = ("name", "split", "images")
        same_data = len({str([part.results["data"].get(name) for name in names]) for part in self.parts}) < 2
        return same_data and all(entry == examples[0] for entry in examples)

    def picture(self, what: str, model: int, *, attack: str | None = None) -> np.ndarray | None:
        """The kept images or predictions of a model, under an attack or without one.

        Args:
            what: "images" or "prediction".
            model: its place in the run.
            attack: its name, or None for the clean images.

        Returns:
            (M, H, W, C) or (M,), or None where the run did not keep them.
        """
        stored = self.pictures or {}
        number = None if attack is None else list(self.attacks).index(attack)
        if picture_key("prediction", 0) in stored:
            return stored.get(picture_key(what, model, attack=number))
        # runs of before are keyed by names
        return stored.get("/".join([self.names[model], *([] if attack is None else [attack]), what]))


def diagnostics(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """A model's diagnostics of masked gradients.

    Args:
        model: an entry of `Run.models`.

    Returns:
        Its note of the name "masking", or None where there is none, or it is something else of this name.
    """
    found = model["notes"].get("masking")
    return found if isinstance(found, dict) and "checks" in found else None


def training_log(model: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The log of a model's training, a row an epoch.

    Args:
        model: an entry of `Run.models`.

    Returns:
        Its note of the name "training", or None where there is none, or it is something else of this name.
    """
    found = model["notes"].get("training")
    rows = found if isinstance(found, list) else [None]
    return found if all(isinstance(row, dict) and text.measured(row.get("epoch")) for row in rows) else None


def load(run_dir: str | os.PathLike[str]) -> Run:
    """Read a run folder and check that it is whole.

    Args:
        run_dir: the folder an evaluation wrote.

    Returns:
        The run.

    Raises:
        FileNotFoundError: there is no such folder, it holds no results.json, or the pictures it names are missing.
        ValueError: the run is half-written, or its results.json is of another format or lacks a field.
    """
    folder = _store.place(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"run_dir must be the folder of a run; there is no folder {str(folder)!r}")
    path = folder / RESULTS
    if not path.is_file():
        raise FileNotFoundError(
            f"run_dir must hold results.json, which an evaluation writes; there is none in {str(folder)!r}"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: half-written, not valid JSON ({error}); {_resume({})}") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        got = results.get("format") if isinstance(results, dict) else type(results).__name__
        raise ValueError(
            f"{path}: format must be {FORMAT}, the one this version of jaxrobust reads, got {got!r}; "
            "use the version that wrote the run, or evaluate again"
        )
    if results.get("complete") is not True:
        raise ValueError(f'{path}: half-written ("complete" is not true); {_resume(results)}')
    for where, problem in _problems(results):
        raise ValueError(f"{path}: {where} {problem}")
    return Run(folder, results, _pictures(folder, results))


def _resume(results: Mapping[str, Any]) -> str:
    command = results.get("command")
    return "rerunning the same command resumes it" + (f": {command}" if isinstance(command, str) and command else "")


def _problems(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _misfits(results, _FIELDS, "")
    if not results["models"]:
        yield "models", "must name at least one model, got none"
    for name, attack in results["attacks"].items():
        if not isinstance(attack, dict):
            yield f"attacks[{name!r}]", f"must be an object, got {attack!r}"
    for index, model in enumerate(results["models"]):
        yield from _model_problems(model, results["attacks"], f"models[{index}]")
    names = [model["name"] for model in results["models"]]
    if len(set(names)) != len(names):
        yield "models", f"must have different names, got {names}"
    lengths = {len(codes) for model in results["models"] for codes in model["examples"].get("outcome", {}).values()}
    if len(lengths) > 1:
        yield "models[].examples.outcome", f"must have one entry an example everywhere, got lengths {sorted(lengths)}"
    for index, curve in enumerate(results["curves"]):
        where = f"curves[{index}]."
        yield from _misfits(curve, {"attack": str, "radii": list, "accuracy": dict}, where)
        for model, values in curve["accuracy"].items():
            if len(values) != len(curve["radii"]):
                yield f"{where}accuracy[{model!r}]", f"must have {len(curve['radii'])} values, got {len(values)}"
    for index, trajectory in enumerate(results["trajectories"]):
        yield from _misfits(trajectory, {"attack": str, "mean": dict}, f"trajectories[{index}].")


def _model_problems(model: Any, attacks: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    yield from _misfits(model, _MODEL_FIELDS, f"{where}.")
    for name in attacks:
        if not isinstance(model["attacks"].get(name), dict):
            yield f"{where}.attacks", f"must have an entry for every attack; {name!r} has none"
    found = diagnostics(model)
    if found is not None:
        yield from _misfits(found, _MASKING_FIELDS, f"{where}.notes.masking.")
        for index, check in enumerate(found["checks"]):
            yield from _misfits(check, _CHECK_FIELDS, f"{where}.notes.masking.checks[{index}].")
    for name, codes in model["examples"].get("outcome", {}).items():
        if name not in attacks:
            yield f"{where}.examples.outcome", f"must be of attacks that the run has, {list(attacks)}, got {name!r}"
        strange = set(codes) - set(range(len(OUTCOMES)))
        if strange:
            yield f"{where}.examples.outcome[{name!r}]", f"must hold 0 to {len(OUTCOMES) - 1}, got {sorted(strange)}"


def _misfits(entry: Any, fields: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    if not isinstance(entry, dict):
        yield where.rstrip("."), f"must be an object, got {entry!r}"
    for name, kinds in fields.items():
        if name not in entry:
            yield f"{where}{name}", "is missing"
        if not isinstance(entry[name], kinds):
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            rule = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            yield f"{where}{name}", f"must be {rule}, got {entry[name]!r}"


def _pictures(folder: _store.Path, results: Mapping[str, Any]) -> Mapping[str, np.ndarray] | None:
    if results["pictures"] is None:
        return None
    if not results["pictures"] or pathlib.PureWindowsPath(results["pictures"]).name != results["pictures"]:
        raise ValueError(
            f"{folder / RESULTS}: pictures must name a file of the run's own folder, got {results['pictures']!r}"
        )
    path = folder / results["pictures"]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: results.json names these pictures, but the file is missing; "
                                f"{_resume(results)}")  # fmt: skip

    def told(error: Exception) -> str:
        return f"{path}: half-written, not an archive of arrays ({error}); {_resume(results)}"

    arrays = _store.read_arrays(path, told)
    missing = sorted({"clean", "label"} - set(arrays))
    if missing:
        raise ValueError(f"{path}: must hold the arrays 'clean' and 'label', missing {missing}; {_resume(results)}")
    clean = arrays["clean"].shape
    for name, array in arrays.items():
        expected = clean if name.endswith("/images") else clean[:1]
        if name != "clean" and array.shape != expected:
            raise ValueError(f"{path}: {name!r} must have the shape {expected}, got {array.shape}")
    if len(clean) != 4:
        raise ValueError(f"{path}: 'clean' must have the shape (images, height, width, channels), got {clean}")
    return arrays
