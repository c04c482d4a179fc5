"""The sections of the page: each takes the run and returns what its template shows, or None to be left out.

A new section is a function here, a template of the same name, and a line in `SECTIONS`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrobust import _statistics
from jaxrobust.report import charts, images, text
from jaxrobust.report.format import OUTCOMES
from jaxrobust.report.run import Run, diagnostics, training_log

__all__ = ["SECTIONS", "Section"]

_PICTURES = 8
_PAIRED = 6  # models of several runs that are compared two by two, at most


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        name: its anchor, and the name of its template.
        title: its heading.
        context: run -> the template's variables, or None to leave the section out.
    """

    name: str
    title: str
    context: Callable[[Run], dict[str, Any] | None]


def summary(run: Run) -> dict[str, Any]:
    """What was evaluated, and the result in two sentences."""
    data = run.results["data"]
    facts = {
        "data": " ".join(str(data[part]) for part in ("name", "split") if data.get(part)) or text.DASH,
        "images": text.count(data.get("count")),
        "shape": " × ".join(map(str, data.get("shape") or [])) or text.DASH,
        "classes": text.count(data.get("classes")),
        "models": text.count(len(run.models)),
        "attacks": text.count(len(run.attacks)),
        "took": text.seconds(run.results["seconds"]),
        "device": run.results["device"],
    }
    doubtful = [model["name"] for model in run.models if (diagnostics(model) or {}).get("flags")]
    cheapened = {model["name"]: model["notes"]["cheapened"] for model in run.models if "cheapened" in model["notes"]}
    blind = [model["name"] for model in run.models if "gradients_not_finite" in model["notes"]]
    warned = {"doubtful": doubtful, "blind": blind, "cheapened": cheapened}
    return {"facts": facts, "statement": _statement(run), **warned}


def _statement(run: Run) -> str:
    if run.parts and not run.comparable:
        return (
            f"{len(run.parts)} runs, {len(run.models)} models. Their examples or attacks are not the same, so a union "
            "is that of the model's own attacks, and compares with no other."
        )
    data = run.results["data"]
    among = f"On {text.count(data.get('count'))} images of {data.get('name') or 'the data'}"
    ranked = sorted(
        (model for model in run.models if text.measured((model["union"] or {}).get("accuracy"))),
        key=lambda model: (model["union"]["accuracy"], _clean(model)),
        reverse=True,
    )
    if not ranked or not run.attacks:
        best = max(run.models, key=_clean)
        return f"{among}, {best['name']} is right on {_share(best['clean'])} without an attack."
    best, *others = ranked
    under = f"under {'the attack' if len(run.attacks) == 1 else f'all {len(run.attacks)} attacks at once'}"
    clean = f"{text.percent(best['clean'].get('accuracy'))}\u00a0%"
    if best["union"]["accuracy"] == 0:
        who = "no model" if others else best["name"] + " never"
        return f"{among}, {who} holds {under}. Without an attack, {best['name']} is right on {clean} of them."
    result = f"{_share(best['union'])} of them {under}, and on {clean} without an attack."
    if not others:
        return f"{among}, {best['name']} is right on {result} {_strongest(best)}"
    runner_up = f"Next comes {others[0]['name']} with {_share(others[0]['union'])}; {_cleanest(ranked)}"
    return f"{among}, {best['name']} resists best: it is right on {result} {runner_up}"


def _cleanest(ranked: list[dict[str, Any]]) -> str:
    top = max(ranked, key=_clean)
    if top is ranked[0]:
        return f"{top['name']} also has the highest clean accuracy."
    return (
        f"the highest clean accuracy, {text.percent(top['clean'].get('accuracy'))}\u00a0%, is that of {top['name']}, "
        f"which keeps {text.percent(top['union']['accuracy'])}\u00a0%."
    )


def _strongest(model: dict[str, Any]) -> str:
    entries = {name: entry for name, entry in model["attacks"].items() if text.measured(entry.get("accuracy"))}
    if not entries:
        return ""
    if any(entry.get("inherits") for entry in entries.values()):
        return ""
    name = min(entries, key=lambda name: entries[name]["accuracy"])
    return f"The strongest single attack, {name}, leaves {_share(entries[name])}."


def _clean(model: dict[str, Any]) -> float:
    accuracy = model["clean"].get("accuracy")
    return float(accuracy) if text.measured(accuracy) else -1.0


def _share(entry: dict[str, Any]) -> str:
    between = text.interval(entry)
    return f"{text.percent(entry.get('accuracy'))}\u00a0%" + (f" ({between})" if between else "")


def table(run: Run) -> dict[str, Any]:
    """Accuracy of every model: clean, under each attack, under their union, and the mean over unseen attacks."""
    columns: list[dict[str, Any]] = [{"name": "Clean", "kind": "clean"}]
    for name, attack in run.attacks.items():
        columns.append({"name": name, "kind": "attack", "about": attack})
    columns += [{"name": "Union", "kind": "union"}, {"name": "Unseen mean", "kind": "unseen"}]
    rows = [[_cell(model, column) for column in columns] for model in run.models]
    for place in range(len(columns)):
        shown = [row[place]["shown"] for row in rows if text.measured(row[place].get("accuracy"))]
        best = max(shown, key=float) if len(shown) > 1 and run.comparable else None
        for row in rows:
            row[place]["best"] = best is not None and row[place]["shown"] == best
    wide = len(columns) > 9
    seen = any(cell["seen"] for row in rows for cell in row)
    told = {"columns": columns, "rows": rows, "wide": wide, "seen": seen, "unmeasured": any(_gaps(rows))}
    return {**told, "pairs": _pairs(run), "inherited": any(_inherited(run))}


def _inherited(run: Run) -> Iterator[bool]:
    return (bool(entry.get("inherits")) for model in run.models for entry in model["attacks"].values())


def _pairs(run: Run) -> list[dict[str, Any]]:
    """Models of several runs, two by two: the examples on which only one of them holds, and McNemar's exact test."""
    if not (run.parts and run.comparable) or len(run.models) > _PAIRED:
        return []
    robust = [np.all([np.asarray(c) == 0 for c in m["examples"]["outcome"].values()], 0) for m in run.models]
    found = []
    for (first, one), (second, other) in itertools.combinations(enumerate(robust), 2):
        alone = int((one & ~other).sum()), int((other & ~one).sum())
        found.append({"places": (first, second), "alone": alone, "p_value": _statistics.sign_test(*alone)})
    return found


def _cell(model: dict[str, Any], column: Mapping[str, Any]) -> dict[str, Any]:
    kind, name = column["kind"], column["name"]
    entry: dict[str, Any]
    if kind == "attack":
        entry = model["attacks"][name]
    elif kind == "unseen":
        entry = {"accuracy": model["unseen_mean"]}
    else:
        entry = model[kind] or {}
    seen = kind == "attack" and name in model["trained_on"]
    picked = {edge: entry.get(edge) for edge in ("accuracy", "low", "high")}
    return {**picked, "kind": kind, "seen": seen, "shown": text.percent(entry.get("accuracy"))}


def _gaps(rows: list[list[dict[str, Any]]]) -> Iterator[bool]:
    return (cell["shown"] == text.DASH for row in rows for cell in row)


def radius(run: Run) -> dict[str, Any] | None:
    """Robust accuracy against radius: a panel an attack, a line a model, the evaluated radius marked."""
    panels, numbers = [], []
    for attack, curves in _by_attack(run.results["curves"]):
        about = run.attacks.get(attack, {})
        lines = [
            charts.Line(run.names.index(model), curve["radii"], accuracy)
            for curve in curves
            for model, accuracy in curve["accuracy"].items()
            if model in run.names
        ]
        svg = charts.chart(
            lines,
            label=f"Robust accuracy against radius under {attack}",
            x_label=f"radius ({about['set']})" if about.get("set") else "radius",
            y_label="robust accuracy",
            mark=about.get("radius") if text.measured(about.get("radius")) else None,
            fraction=True,
        )
        panels.append({"name": attack, "count": _same([c.get("count") for c in curves]), "svg": svg, "about": about})
        numbers += [
            {"attack": attack, "place": line.model, "points": list(zip(line.x, line.y, strict=True))} for line in lines
        ]
    return {"panels": panels, "numbers": numbers} if panels else None


def _by_attack(entries: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Entries of results.json, those of one attack together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["attack"], []).append(entry)
    return list(found.items())


def _same(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def steps(run: Run) -> dict[str, Any] | None:
    """Loss against attack step: a panel an attack, a line a model, the 10–90 % band where it was kept."""
    panels, banded = [], False
    for attack, found in _by_attack(run.results["trajectories"]):
        lines = []
        for trajectory in found:
            for model, mean in trajectory["mean"].items():
                if model in run.names:
                    low, high = ((trajectory.get(edge) or {}).get(model) for edge in ("low", "high"))
                    banded |= low is not None and high is not None
                    lines.append(charts.Line(run.names.index(model), range(len(mean)), mean, low, high))
        svg = charts.chart(lines, label=f"Loss against step of {attack}", x_label="attack step", y_label="loss")
        panels.append({"name": attack, "count": _same([one.get("count") for one in found]), "svg": svg})
    return {"panels": panels, "banded": banded} if panels else None


_TRAINED = {
    "loss": "Loss on the training images",
    "val_clean_acc": "Accuracy on held-out images",
    "val_adv_acc": "The same, under the attack of training",
}


def training(run: Run) -> dict[str, Any] | None:
    """How the models were trained: loss and held-out accuracies against epoch, a line a model."""
    logs = {place: rows for place, model in enumerate(run.models) if (rows := training_log(model))}
    panels = []
    for field, name in _TRAINED.items():
        lines = []
        for place, rows in logs.items():
            points = [(row["epoch"], row[field]) for row in rows if text.measured(row.get(field))]
            if points:
                lines.append(charts.Line(place, *zip(*points, strict=True)))
        if lines:
            share = field != "loss"
            label, y_label = f"{name} against epoch", "accuracy" if share else "loss"
            svg = charts.chart(lines, label=label, x_label="epoch", y_label=y_label, fraction=share)
            panels.append({"name": name, "svg": svg})
    return {"panels": panels} if panels else None


def masking(run: Run) -> dict[str, Any] | None:
    """Signs of masked gradients: a verdict a check, and accuracy against the steps and the radius of one attack."""
    found = {place: notes for place, model in enumerate(run.models) if (notes := diagnostics(model)) is not None}
    panels = []
    for attack in dict.fromkeys(notes["attack"] for notes in found.values()):
        alike = {place: notes for place, notes in found.items() if notes["attack"] == attack}
        count, radius = (next(iter(alike.values()))[name] for name in ("count", "radius"))
        for against, written, mark in (("steps", text.count, None), ("radius", text.radius, radius or None)):
            lines = [charts.Line(place, *notes[f"accuracy_against_{against}"]) for place, notes in alike.items()]
            svg = charts.chart(
                lines,
                label=f"Accuracy against {against} of {attack}",
                x_label=against,
                y_label="accuracy",
                mark=mark,
                fraction=True,
                ticks={x: written(x) for x in sorted({x for line in lines for x in line.x if x})},
            )
            panels.append({"name": f"Accuracy against {against}", "attack": attack, "count": count, "svg": svg})
    groups = [{"place": place, "name": run.names[place], **notes} for place, notes in found.items()]
    return {"groups": groups, "panels": panels} if found else None


def pictures(run: Run) -> dict[str, Any] | None:
    """Original, adversarial and difference images of every model and attack; of several runs, run by run."""
    blocks: list[dict[str, Any]] = []
    place = 0
    for part in run.parts or (run,):
        blocks += _pictures(part, place, run.names, _PICTURES // 2 if run.parts else _PICTURES)
        place += len(part.models)
    if not blocks:
        return None
    compact = sum(len(block["rows"]) for block in blocks) <= 12
    first, colour = blocks[0], any(block["colour"] for block in blocks)
    return {"blocks": blocks, "shown": first["shown"], "total": first["total"], "compact": compact, "colour": colour}


def _pictures(run: Run, start: int, names: list[str], most: int) -> list[dict[str, Any]]:
    """A block a model of one run, whose first model has the place `start` on the page."""
    if run.pictures is None:
        return []
    stored = run.pictures
    clean, labels = stored["clean"], stored["label"]
    shown = min(most, len(clean))
    places = range(len(run.names))
    found = [
        name for name in run.attacks if any(run.picture("images", place, attack=name) is not None for place in places)
    ]
    factors = {name: _factor(run, name, clean[:shown]) for name in found}
    classes = run.results["data"].get("class_names")
    originals = [
        {"image": images.picture(clean[index]), "label": _class(labels, index, classes)} for index in range(shown)
    ]
    about = {"originals": originals, "shown": shown, "total": len(clean), "colour": clean.shape[-1] == 3}
    blocks = []
    for place in places:
        before = run.picture("prediction", place)
        rows = []
        for name in found:
            attacked, after = run.picture("images", place, attack=name), run.picture("prediction", place, attack=name)
            if attacked is not None:
                cells = [
                    {
                        "image": images.picture(attacked[index]),
                        "difference": images.difference(attacked[index] - clean[index], factors[name]),
                        "before": _class(before, index, classes),
                        "after": _class(after, index, classes),
                        "outcome": _outcome(labels, before, after, index),
                    }
                    for index in range(shown)
                ]
                rows.append({"name": name, "factor": factors[name], "cells": cells})
        if rows:
            blocks.append({"place": start + place, "name": names[start + place], "rows": rows, **about})
    return blocks


def _factor(run: Run, name: str, clean: np.ndarray) -> float:
    kept = [run.picture("images", place, attack=name) for place in range(len(run.names))]
    changes = [attacked[: len(clean)] - clean for attacked in kept if attacked is not None]
    return images.amplification(np.stack(changes))


def _class(labels: np.ndarray | None, index: int, names: list[str] | None) -> str:
    if labels is None:
        return text.DASH
    label = int(labels[index])
    return str(names[label]) if names and 0 <= label < len(names) else str(label)


def _outcome(labels: np.ndarray, before: np.ndarray | None, after: np.ndarray | None, index: int) -> str:
    if before is not None and before[index] != labels[index]:
        return "clean error"
    if after is None:
        return ""
    return "robust" if after[index] == labels[index] else "fooled"


def examples(run: Run) -> dict[str, Any] | None:
    """The outcome of every example under every model and attack, ordered so that structure shows.

    Examples are ordered from those robust most often to those robust least often, ties by the outcomes themselves.
    """
    outcomes = {
        (place, name): np.asarray(codes, np.int64)
        for place, model in enumerate(run.models)
        for name, codes in model["examples"].get("outcome", {}).items()
    }
    if not outcomes or (run.parts and not _share_examples(run)):
        return None
    grid = np.stack(list(outcomes.values()))
    robust = grid == 0
    order = np.lexsort((*grid[::-1], -robust.sum(0)))
    groups = []
    for place, model in enumerate(run.names):
        rows = {name: codes[order] for (owner, name), codes in outcomes.items() if owner == place}
        if len(rows) > 1:
            # The codes are ordered by how bad they are, so the worst case is the largest.
            rows["worst case"] = np.max(list(rows.values()), 0)
        strips = [
            {"name": name, "image": images.outcomes(codes), "shares": np.bincount(codes, minlength=4) / len(codes)}
            for name, codes in rows.items()
        ]
        groups.append({"place": place, "name": model, "strips": strips})
    return {
        "groups": groups,
        "dense": len(outcomes) > 40,
        "count": grid.shape[1],
        "always": int(robust.all(0).sum()),
        "never": int((~robust).all(0).sum()),
        "legend": list(zip(OUTCOMES, images.OUTCOME_COLOURS, strict=True)),
    }


def _share_examples(run: Run) -> bool:
    labels = [model["examples"].get("label") for model in run.models]
    return all(own == labels[0] for own in labels)


# What has a column only where it occurs: examples that count as robust though the search tells nothing of them.
_RARE = (
    {
        "field": "outside",
        "heading": "Outside",
        "note": "Outside are those whose success the attack's own set does not contain; they count as robust.",
    },
    {
        "field": "no_start",
        "heading": "No start",
        "note": "No start is of those for which the attack found no point to search from; they count as robust though "
        "they were hardly attacked.",
    },
)


def cost(run: Run) -> dict[str, Any] | None:
    """What each attack cost, how often it succeeded and how large its perturbations are."""
    groups = [
        {
            "place": place,
            "name": model["name"],
            "entries": [(name, model["attacks"][name]) for name in run.attacks if model["attacks"][name]],
        }
        for place, model in enumerate(run.models)
    ]
    entries = [entry for group in groups for _, entry in group["entries"]]
    rare = [column for column in _RARE if any(entry.get(column["field"]) for entry in entries)]
    return {"groups": groups, "rare": rare} if run.attacks else None


def settings(run: Run) -> dict[str, Any]:
    """Everything needed to do it again."""
    elsewhere = {"masking": diagnostics, "training": training_log}  # notes that have sections of their own

    def is_here(name: str, model: dict[str, Any]) -> bool:
        return name not in elsewhere or elsewhere[name](model) is None

    models = [
        model | {"notes": {name: note for name, note in model["notes"].items() if is_here(name, model)}}
        for model in run.models
    ]
    return {"noted": [model for model in models if model["notes"] or model["trained_on"]]}


SECTIONS = (
    Section("summary", "Result", summary),
    Section("table", "Accuracy", table),
    Section("radius", "Robust accuracy against radius", radius),
    Section("steps", "Loss against attack step", steps),
    Section("training", "Training", training),
    Section("masking", "Signs of masked gradients", masking),
    Section("pictures", "Adversarial images", pictures),
    Section("examples", "Every example", examples),
    Section("cost", "Cost", cost),
    Section("settings", "Settings", settings),
)
