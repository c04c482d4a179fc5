"""The folder of a training run: which run it is, its log, and its checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxrobust import _store
from jaxrobust.data import Dataset, LazyDataset
from jaxrobust.training._placement import fine_in_each

__all__ = ["describe_data", "describe_parameters", "opened", "read_rows", "sigterm_deferred", "together", "write_rows"]

FORMAT = 3
CLOSE = 1e-5  # of an array's norm: machines and devices round the numbers that a network begins with differently


@contextlib.contextmanager
def opened(
    run_dir: str | os.PathLike[str], description: Mapping[str, Any], identity: Mapping[str, str]
) -> Iterator[_store.Path]:
    """Make a run folder, or make sure that an existing one is of the same run, and hold it for this run alone.

    Of several processes of a run the first holds it, and makes it before the others look.

    Args:
        run_dir: the folder; nothing is held in a bucket.
        description: what determines the run's numbers, as JSON that people can read.
        identity: the same part by part, by `_store.identity`.

    Yields:
        The folder.

    Raises:
        ValueError: if the folder holds something else, is half-written, or belongs to a run that differs.
        BlockingIOError: another run is in it.
        OSError: it cannot be read or written.
    """
    folder = _store.place(run_dir)
    path, first = folder / "config.json", jax.process_index() == 0
    with contextlib.ExitStack() as held:

        def begin() -> None:
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"run_dir must be a folder; {str(folder)!r} is a file")
            held.enter_context(_store.locked(path))
            if path.is_file():
                _compare(path, description, identity)
            else:
                _begin(folder, path, description, identity)

        for acts, action in ((first, begin), (not first, lambda: _compare(path, description, identity))):
            with _together(), _store.reached(folder, unless=(ValueError,)):
                if acts:
                    action()
        yield folder


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What may fail: of several processes none goes on before it is done in all, and none where it failed in one."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    fine = fine_in_each(failed is None)
    if failed is not None:
        raise failed
    if not fine.all():
        raise OSError(f"run_dir: process {fine.argmin()} could not begin; its own error says why")


def together(what: str) -> None:
    """Wait until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _begin(folder: _store.Path, path: _store.Path, description: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    if folder.is_dir() and any(entry.suffix not in (".partial", ".lock") for entry in folder.iterdir()):
        raise ValueError(
            f"run_dir must be new, empty, or the folder of a training run; {str(folder)!r} holds other files and no "
            "config.json"
        )
    written = {"format": FORMAT, **description, "identity": identity, "versions": _store.versions()}
    text = json.dumps(written, indent=1) + "\n"
    _store.atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_rows(folder: _store.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make metrics.jsonl hold exactly these rows; of several processes the first writes."""
    if jax.process_index() != 0:
        return
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with _store.reached(folder):
        _store.atomically(folder / "metrics.jsonl", lambda partial: partial.write_text(text, encoding="utf-8"))


def read_rows(folder: _store.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none where there is no such file."""
    log = folder / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def describe_data(data: Dataset | LazyDataset) -> dict[str, Any]:
    """What a data set is: its name, its size, and what is in it; of one on disk its positions, and the two ends."""
    facts = {"name": data.name, "split": data.split, "count": len(data), "shape": list(data.shape)}
    if isinstance(data, Dataset):
        return facts | {"digest": _store.identity([data.raw, data.labels])}
    return facts | {
        "size": data.size,
        "keys": list(data.keys),
        "positions": _store.identity(np.asarray(data.positions, np.int64)),
        "digest": _store.identity(data.fetch([0, len(data) - 1])),
        **({} if data.crop is None else {"crop": str(data.crop)}),
    }


def describe_parameters(params: Any, state: Any) -> dict[str, Any]:
    """What arrays a run begins with: of floats the norm and one projection each, to be recognised to rounding."""
    values, exact = {}, []
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": params, "state": state}):
        array, name = _store.raw(leaf), jax.tree_util.keystr(path, simple=True, separator=".")
        floats = jnp.issubdtype(array.dtype, jnp.floating)
        exact.append((name, str(array.dtype), array.shape, None if floats else array))
        if floats:
            flat = array.astype(np.float64).ravel()
            values[name] = [float(np.linalg.norm(flat)), float(flat @ np.cos(np.arange(flat.size)))]
    return {"values": [*values.values()], "names": [*values], "digest": _store.identity(exact)}


def _differing_parameters(there: Any, here: Mapping[str, Any]) -> str | None:
    if not isinstance(there, dict) or any(there.get(name) != here[name] for name in ("digest", "names")):
        return "arrays of other names, shapes or types, or other integers"
    pairs = zip(here["names"], there["values"], here["values"], strict=True)
    apart = [name for name, (norm, a), (_, b) in pairs if not abs(a - b) <= CLOSE * norm]
    return f"other values in {len(apart)} of {len(here['names'])} arrays, first {apart[0]}" if apart else None


@contextlib.contextmanager
def sigterm_deferred() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM back until the context ends; what it gives tells, asked once a step, whether one has come.

    Only the main thread may handle signals; elsewhere nothing is held back. Several processes agree on the step by
    JAX's preemption service, which has SIGTERM to itself.
    """
    if jax.process_count() > 1:
        # Counted from the first step that this process takes, not of the run: the service names the step after the
        # last that it was asked about, and so the first one where it was not asked before.
        asked = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(asked))
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
        if received:
            signal.raise_signal(signal.SIGTERM)


def _compare(path: _store.Path, description: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"run_dir: {str(path)!r} is damaged, not valid JSON ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"run_dir: {str(path)!r} is not of a training run, or of another version's")
    # Through JSON and back, so that tuples and infinities compare as they were written.
    there, here = _store.flat(found), _store.flat(json.loads(json.dumps(description)))
    apart = ("format", "versions.", "identity.", "parameters.")
    names = [name for name in {**there, **here} if not name.startswith(apart)]
    differing = {
        name: f"{there.get(name, 'absent')!r} there, {here.get(name, 'absent')!r} here"
        for name in names
        if there.get(name, "absent") != here.get(name, "absent")
    }
    if description["parameters"] is not None:
        told = _differing_parameters(found.get("parameters"), description["parameters"])
        differing |= {} if told is None else {"parameters": told}
    known = found.get("identity", {})
    for name in [name for name in {**known, **identity} if known.get(name) != identity.get(name)]:
        if not any(told == name or told.startswith(f"{name}.") for told in differing):
            differing[name] = f"what {there.get(name, 'it')} is made of (code, types, constants or closure)"
    if differing:
        listed = "; ".join(f"{name}: {how}" for name, how in differing.items())
        raise ValueError(f"run_dir {str(path.parent)!r} belongs to a run that differs in {listed}")
