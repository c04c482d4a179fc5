"""Several runs on one page: their models as the rows of one table, the union of their attacks as its columns."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxrobust import _store
from jaxrobust.report.format import PAGE
from jaxrobust.report.page import write
from jaxrobust.report.run import Run, load

__all__ = ["merged", "render_several"]


def render_several(
    run_dirs: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str] = PAGE,
) -> _store.Path:
    """Write one page of several evaluation runs.

    Rows are the models of all runs, columns the attacks; those of one name are one column if their settings are the
    same, and so are the attacks before them whose successes they inherit. Where the examples are the same, pairs of
    models are compared example by example.

    Args:
        run_dirs: the run folders, each with its results.json.
        output: where the page goes.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: as `render`.
        ValueError: as `render`, or no runs, or one of them twice.

    Example:
        >>> render_several(["runs/standard", "runs/robust"], output="both.html")  # doctest: +SKIP
        PosixPath('both.html')
    """
    return write(merged([load(folder) for folder in run_dirs]), _store.place(output))


def merged(runs: Sequence[Run]) -> Run:
    """Several runs as one, whose `parts` they are; what was not measured is left empty.

    Args:
        runs: at least one, all different.

    Returns:
        The run.

    Raises:
        ValueError: none, or one twice.
    """
    folders = [run.folder.resolve() for run in runs]
    if not runs or len(set(folders)) < len(folders):
        raise ValueError(f"runs must be at least one, and different folders; got {[str(run.folder) for run in runs]}")
    if len(runs) == 1:
        return runs[0]
    titles = _titles(folders)
    columns, attacks = _columns(runs, titles)
    names = _apart([[model["name"] for model in run.models] for run in runs], titles)
    models = [
        _renamed(model, name, column, attacks)
        for run, own, column in zip(runs, names, columns, strict=True)
        for model, name in zip(run.models, own, strict=True)
    ]
    results = [run.results for run in runs]
    named = list(zip(titles, results, strict=True))
    return Run(
        runs[0].folder,
        {
            **results[0],
            "title": f"{len(runs)} runs: {', '.join(titles)}",
            "created": max(result["created"] for result in results),
            "command": "\n".join(dict.fromkeys(result["command"] for result in results)),
            "seconds": sum(result["seconds"] or 0 for result in results) or None,
            "data": _common([result["data"] for result in results]),
            "key": {title: result["key"] for title, result in named},
            "config": {title: result["config"] for title, result in named},
            "versions": _common([result["versions"] for result in results]),
            "device": " / ".join(dict.fromkeys(result["device"] for result in results)),
            "attacks": attacks,
            "models": models,
            "curves": _lines(runs, columns, names, "curves", ("accuracy",)),
            "trajectories": _lines(runs, columns, names, "trajectories", ("mean", "low", "high")),
        },
        None,
        tuple(runs),
    )


def _titles(folders: list[_store.Path]) -> list[str]:
    """The folders' names, with as many of those above as tell them apart."""
    for depth in itertools.count(1):
        titles = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(titles)) == len(titles):
            return titles
    raise AssertionError


def _apart(names: list[list[str]], titles: list[str]) -> list[list[str]]:
    """Names, of those that occur in several runs with their run's."""
    flat = [name for own in names for name in own]
    taken = set(flat)
    return [
        [name if flat.count(name) == 1 else _free(name, title, taken) for name in own]
        for own, title in zip(names, titles, strict=True)
    ]


def _free(name: str, title: str, taken: set[str]) -> str:
    """A name with its run's, and a number if that one is taken; it then is."""
    named = f"{name} ({title})"
    numbered = (f"{named} {number}" for number in itertools.count(2))
    found = next(one for one in itertools.chain([named], numbered) if one not in taken)
    taken.add(found)
    return found


def _columns(runs: Sequence[Run], titles: list[str]) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Of each run its attacks' names -> the columns' names; and the columns."""
    columns: list[dict[str, str]] = []
    attacks: dict[str, Any] = {}
    known: list[tuple[Any, str]] = []  # what tells attacks apart, and their columns
    taken = {name for run in runs for name in run.attacks}
    for run, title in zip(runs, titles, strict=True):
        own: dict[str, str] = {}
        in_order = list(run.attacks.items())
        for place, (name, about) in enumerate(in_order):
            inherits = any(model["attacks"][name].get("inherits") for model in run.models)
            # the accuracy is then that of all so far
            told = (name, about, in_order[:place] if inherits else None)
            column = next((column for other, column in known if other == told), None)
            if column is None:
                column = _free(name, title, taken) if name in attacks else name
                known.append((told, column))
            own[name] = column
            attacks[column] = about
        columns.append(own)
    return columns, attacks


def _renamed(
    model: Mapping[str, Any], name: str, columns: Mapping[str, str], attacks: Mapping[str, Any]
) -> dict[str, Any]:
    examples = model["examples"]
    outcome = {columns[attack]: codes for attack, codes in examples.get("outcome", {}).items()}
    return {
        **model,
        "name": name,
        "trained_on": [columns.get(attack, attack) for attack in model["trained_on"]],
        "attacks": {attack: {} for attack in attacks} | {columns[n]: entry for n, entry in model["attacks"].items()},
        "examples": {**examples, "outcome": outcome},
    }


def _common(dictionaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Entry by entry what all say; where they differ all of it in text, or nothing of what is no text."""
    dictionaries = list(dictionaries)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(itertools.chain(*dictionaries)):
        values = [dictionary.get(name) for dictionary in dictionaries]
        texts = list(dict.fromkeys(value for value in values if isinstance(value, str)))
        found[name] = values[0] if all(v == values[0] for v in values) else " / ".join(texts) or None
    return found


def _lines(
    runs: Sequence[Run], columns: list[dict[str, str]], names: list[list[str]], what: str, fields: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Curves or trajectories of all runs, with the names of the page."""
    found = []
    for run, column, own in zip(runs, columns, names, strict=True):
        renamed = dict(zip(run.names, own, strict=True))
        for line in run.results[what]:
            by_model = {f: {renamed.get(n, n): v for n, v in line[f].items()} for f in fields if line.get(f)}
            found.append({**line, "attack": column.get(line["attack"], line["attack"]), **by_model})
    return found
