"""`jaxrobust list`: what there is, from the registries and docstrings."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable

from jaxrobust.cli.output import say

__all__ = ["interrupted", "run"]


def interrupted(options: argparse.Namespace) -> str:
    """Nothing is left behind."""
    return "interrupted"


def run(options: argparse.Namespace) -> None:
    """Print one list."""
    lists = {"attacks": _attacks, "sets": _sets, "suites": _suites, "objectives": _objectives, "models": _models}
    say((lists | {"data": _data})[options.what]())


def _attacks() -> str:
    from jaxrobust.attacks.table import rows
    from jaxrobust.cli import specs

    made = specs.attack_makers()
    entries = []
    for row in rows():
        name = row.name.removeprefix("attacks.")
        if name in made:
            entries.append((name, f"[{row.knowledge}; {', '.join(row.sets)}] {row.use or row.method}"))
    about = (
        "--attack NAME:SET:RADIUS:OPTION=VALUE,...; options are those of jaxrobust.attacks.NAME. In brackets: what it "
        f"must see of the model, and the sets it takes. From Python alone: {', '.join(specs.others())}."
    )
    return f"{_table(entries)}\n\n{textwrap.fill(about, _columns())}"


def _sets() -> str:
    from jaxrobust import sets
    from jaxrobust.cli import specs
    from jaxrobust.sets.standard import TABLE

    entries = []
    for name, kind in specs.set_makers().items():
        fields = [field for field in dataclasses.fields(kind) if field.name not in ("radius", "network")]  # type: ignore[arg-type]
        options = ", ".join(f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default}" for f in fields)
        entries.append((f"{name}({options})" if options else name, _first_line(kind)))
    usual = {dataset: ", ".join(sets.standard(dataset)) for dataset in TABLE}
    return f"{_table(entries)}\n\nusual bounds, as DATASET.NAME\n{_table(usual.items())}"


def _suites() -> str:
    from jaxrobust import attacks
    from jaxrobust.attacks import suites

    names = [*suites.SUITES, *suites.UNFORESEEN, "minimal", "pat-cifar10"]
    return _table((name, ", ".join(attacks.suite(name))) for name in names)


def _objectives() -> str:
    from jaxrobust.training import REGISTRY

    entries = ((name, f"[{entry.cost}] {entry.use}") for name, entry in REGISTRY.items())
    about = (
        "What training minimises; in brackets the passes of a step: fb forward and backward, f forward, S steps of the "
        "attack, m attacks. jaxrobust/training/README.md says how each is made."
    )
    return f"{_table(entries)}\n\n{textwrap.fill(about, _columns())}"


def _models() -> str:
    from flax import nnx

    from jaxrobust import models

    kinds = {name: getattr(models, name) for name in sorted(models.__all__)}
    networks = {n: kind for n, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, nnx.Module)}
    networks.pop("Conv")  # a layer
    readers = {name: kind for name, kind in kinds.items() if name.startswith("load_")}
    listed = [*networks.items(), *readers.items()]
    return (
        _table((name, _first_line(kind)) for name, kind in listed)
        + "\n\nAll in jaxrobust.models; --model takes a function of yours that makes one."
    )


def _data() -> str:
    from jaxrobust.data import _prepared

    ready = {"digits": "ships with scikit-learn: 8 x 8, grey, 10 classes"}
    ready |= {name: f"prepared in {_prepared.data_root(None) / name}" for name in _prepared.names(None)}
    usual = {name: "not prepared here" for name in ("mnist", "fashion_mnist", "cifar10") if name not in ready}
    about = (
        "And every image classification name of TensorFlow Datasets; FILE.npz; ./FOLDER. Local copies are imported by "
        "python -m jaxrobust.data.prepare NAME --from FOLDER."
    )
    return f"{_table([*ready.items(), *usual.items()])}\n\n{textwrap.fill(about, _columns())}"


def _columns() -> int:
    return shutil.get_terminal_size((120, 24)).columns


def _first_line(thing: object) -> str:
    text = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r"`+", "", text)


def _table(entries: Iterable[tuple[str, str]]) -> str:
    entries = list(entries)
    columns = _columns()
    width = min(max(len(name) for name, _ in entries), 26)
    lines = []
    for name, text in entries:
        pieces = textwrap.wrap(text, max(columns - width - 4, 30)) or [""]
        lines += [f"  {name}"] if len(name) > width else []
        lead = "" if len(name) > width else name
        lines.append(f"  {lead:<{width}}  {pieces[0]}")
        lines += [f"  {'':<{width}}  {piece}" for piece in pieces[1:]]
    return "\n".join(lines)
