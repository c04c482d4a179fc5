"""The page of every room, made from its docstrings and registry: `python -m jaxrobust.rooms`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from jaxrobust._repr import written

__all__ = ["ROOMS", "main", "page", "place"]

HERE = pathlib.Path(__file__).parent
# in the order in which one comes to need them; attacks have a page of their own kind, `attacks.table`
ROOMS = ("sets", "evaluate", "training", "models", "data", "report", "transport", "perceptual", "testing", "losses")
# what is no function or class has no docstring of its own
VALUES = {
    "REGISTRY": "Name -> what is registered under it; laws are tested over it, and tables made.",
    "SCHEDULES": "The names that `schedule` takes.",
    "LEGEND": "What the fields of a run's `results.json` mean.",
    "LOSSES": "Name -> loss, what attacks take as `loss`.",
    "FOLLOWED": "Loss -> the form in which it is followed, which does not saturate.",
    "ATA": "The published table by which UAR is scaled: ε and adversarial training accuracies, attack by attack.",
    "SET_LAWS": "Name -> law of a set, a function of a case.",
    "ATTACK_LAWS": "Name -> law of an attack.",
    "OBJECTIVE_LAWS": "Name -> law of an objective.",
}


def place(room: str) -> pathlib.Path:
    """Where a room's page is committed.

    Args:
        room: its name.

    Returns:
        The file; `losses`, which is a file itself, has its page beside it.
    """
    return HERE / room / "README.md" if (HERE / room).is_dir() else HERE / f"{room}.md"


def page(room: str) -> str:
    """A room's page in Markdown.

    Args:
        room: one of `ROOMS`.

    Returns:
        Its text: what the room is for, and its public names with what each is.
    """
    module = importlib.import_module(f"jaxrobust.{room}")
    things = {name: getattr(module, name) for name in module.__all__}
    about = (inspect.getdoc(module) or "").strip()
    written_by = (
        f"Written by `python -m jaxrobust.rooms --write` from docstrings. All names stand in `jaxrobust.{room}`."
    )
    lines = [f"# {room.capitalize()}", "", about, "", written_by, ""]
    special = {"sets": _sets, "models": _models, "testing": _laws, "training": _objectives}.get(room)
    told: set[str] = set()
    if special is not None:
        section, told = special(things)
        lines += [*section, ""]
    rest = [(f"`{name}`", _line(name, thing)) for name, thing in things.items() if name not in told]
    return "\n".join([*lines, *_table(("name", "what it is"), sorted(rest, key=_plain)), ""])


def _plain(row: tuple[str, ...]) -> str:
    return row[0].strip("`").lower()


def _line(name: str, thing: Any) -> str:
    """The first sentence or line of what is documented, on one line."""
    if inspect.ismodule(thing):
        return _first(thing)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return VALUES[name]
    return _first(thing)


def _first(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def _sets(things: dict[str, Any]) -> tuple[list[str], set[str]]:
    """The classes that are registered, with what the registry and the table of standard bounds know of them."""
    from jaxrobust.sets import REGISTRY
    from jaxrobust.sets.standard import TABLE

    registered: dict[type, list[str]] = {}
    for name, entry in REGISTRY.items():
        registered.setdefault(type(entry()), []).append(name)
    bounds: dict[str, list[str]] = {}
    for dataset, lines in TABLE.items():
        for kind, arguments in lines.values():
            if "radius" in arguments:
                bounds.setdefault(kind.partition(".")[2], []).append(f"{dataset} {written(arguments['radius'])}")
    rows = []
    for name, kind in things.items():
        if inspect.isclass(kind) and kind in registered:
            example = REGISTRY[registered[kind][0]]()
            can = [word for word, has in (("maximise", "maximise"), ("grid", "grid")) if hasattr(kind, has)]
            can += [] if example.contains_clean else ["not the clean image"]
            names = ", ".join(f"`{one}`" for one in registered[kind])
            usual = ", ".join(dict.fromkeys(bounds.get(name, [])))
            rows.append((f"`{name}`", _first(kind), names, ", ".join(can), usual))
    head = ("set", "what the adversary may do", "registered as", "has", "usual radii")
    note = (
        "**Registered as**: the names under which the laws are tested. **Has**: `maximise`, a linear maximiser, by "
        "which Frank–Wolfe searches it; `grid`, by which grid search does. **Usual radii**: `standard(DATASET)`."
    )
    return [note, "", *_table(head, sorted(rows, key=_plain))], {row[0].strip("`") for row in rows}


def _models(things: dict[str, Any]) -> tuple[list[str], set[str]]:
    """The networks, with how they are made."""
    from flax import nnx

    rows = []
    for name, kind in things.items():
        if inspect.isclass(kind) and issubclass(kind, nnx.Module):
            given = [_argument(one) for one in _arguments(kind) if one.name != "rngs"]
            maps = "yes" if hasattr(kind, "activations") else "no"
            rows.append((f"`{name}`", _first(kind), ", ".join(f"`{one}`" for one in given), maps))
    head = ("network", "what it is", "made with, besides `rngs`", "activations")
    return _table(head, sorted(rows, key=_plain)), {row[0].strip("`") for row in rows}


def _arguments(kind: type) -> list[inspect.Parameter]:
    return list(inspect.signature(inspect.unwrap(kind.__init__)).parameters.values())[1:]


def _argument(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


def _laws(things: dict[str, Any]) -> tuple[list[str], set[str]]:
    """What each of the checks checks."""
    lines: list[str] = []
    for table in ("SET_LAWS", "ATTACK_LAWS", "OBJECTIVE_LAWS"):
        check = f"check_{table.removesuffix('_LAWS').lower()}"
        rows = [(f"`{name}`", _first(law)) for name, law in things[table].items()]
        lines += [f"`{check}`:", "", *_table(("law", "what it says"), rows), ""]
    return lines[:-1], set()


def _objectives(things: dict[str, Any]) -> tuple[list[str], set[str]]:
    """The objectives that are registered, with what a step costs and what each is for."""
    from jaxrobust.training import REGISTRY

    rows, told = [], set()
    for registered, entry in REGISTRY.items():
        name = entry.factory.__name__
        first = "" if name in told else _first(entry.factory)
        told.add(name)
        rows.append((f"`{registered}`", f"`{name}`", first, entry.cost, entry.use, entry.reference))
    note = (
        "An objective is made from an attack, as in `training.trades(attacks.pgd(sets.Linf(8 / 255), steps=10))`, and "
        "goes to `fit` or `train_step`. **Cost** of a step: fb is a forward and backward pass of the batch, f a forward"
        " one, S the attack's steps, m the number of attacks; a set's own work comes on top. Spectral normalisation is "
        "a layer of the network's, `flax.nnx.SpectralNorm`; `parseval` and `clip_weights` are Optax transformations."
    )
    head = ("objective", "made by", "what it minimises", "cost", "use", "reference")
    return [note, "", *_table(head, rows)], told


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def pages() -> dict[pathlib.Path, Callable[[], str]]:
    """All pages, that of attacks too: where each lies, and what makes it."""
    from jaxrobust.attacks import table

    made: dict[pathlib.Path, Callable[[], str]] = {place(room): lambda room=room: page(room) for room in ROOMS}
    return made | {table.PAGE: table.page}


def main() -> None:
    """Print the pages of rooms, or write them to their places."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrobust.rooms", description="The pages of all rooms, in Markdown."
    )
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="by default all, that of attacks too")
    parser.add_argument("--write", action="store_true", help="write them to their places, print nothing")
    options = parser.parse_args()
    known = {
        file.parent.name if file.name == "README.md" else file.stem: (file, make) for file, make in pages().items()
    }
    for room in options.rooms or known:
        if room not in known:
            parser.error(f"ROOM must be one of {', '.join(known)}; got {room!r}")
        file, make = known[room]
        if options.write:
            file.write_text(make(), encoding="utf-8")
        else:
            sys.stdout.write(make())


if __name__ == "__main__":
    main()
