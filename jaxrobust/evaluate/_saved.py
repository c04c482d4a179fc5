"""What the lanes save from time to time, and how a killed run goes on from it."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from jaxrobust import _store

__all__ = ["resume", "save"]


def save(run: Any, path: pathlib.Path, seconds: float) -> None:
    """Write the books and the lanes of a run, atomically."""
    leaves = jax.tree.leaves(run.states) if run.waits else []
    _store.write_arrays(
        path,
        fingerprint=_fingerprint(run),
        logits=run.logits,
        seconds=seconds,
        executed=run.executed,
        runs_done=run.runs_done,
        lane_example=run.lane_example,
        lane_age=run.lane_age,
        **{f"best_{name}": values for name, values in run.best.items()},
        **{f"lane_{i}": _store.raw(leaf) for i, leaf in enumerate(leaves)},
    )


def resume(run: Any, path: pathlib.Path) -> None:
    """Go on from a saved run, if there is one: with its lanes if as many are asked for, else without."""
    if path.is_dir():
        raise ValueError(f"save must name a file; got the folder {path}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    stored = _store.read_arrays(path)
    # a model's function has no fingerprint, only what it says; other batch shapes round it otherwise
    same_model = "logits" in stored and np.allclose(stored["logits"], run.logits, 1e-3, 1e-3, equal_nan=True)
    if not same_model or str(stored.get("fingerprint")) != _fingerprint(run):
        raise ValueError(
            f"save must name a file of this very run; {path} was written by another attack, model, data set or key"
        )
    run.best = {name: stored[f"best_{name}"] for name in run.best}
    run.runs_done = stored["runs_done"]
    run.executed, run.seconds = int(stored["executed"]), float(stored["seconds"])
    if len(stored["lane_example"]) == run.width and "lane_0" in stored:
        run.lane_example, run.lane_age = stored["lane_example"], stored["lane_age"]
        like = run.example_states()
        saved = [_store.restored(stored[f"lane_{i}"], leaf) for i, leaf in enumerate(jax.tree.leaves(like))]
        run.states = jax.tree.unflatten(jax.tree.structure(like), saved)
    run.line_up()


def _fingerprint(run: Any) -> str:
    return _store.fingerprint(
        _store.describe(run.attack),
        run.stop,
        [run.model.params, run.images, run.goal, run.indices, run.key],
    )
