"""Checkpoints of a training run. The only file that knows Orbax, which still renames things between releases."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints of one run folder, a folder a step; each appears whole or not at all.

    A checkpoint is a pytree of arrays and a JSON value, written together. Use it as a context manager.

    Args:
        folder: where they lie; created if need be.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        # Imported here because it takes a second that a run without a folder need not spend.
        from orbax.checkpoint import v1

        self._orbax = v1.training.Checkpointer(
            folder.absolute(),
            preservation_policy=v1.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._orbax.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(self, step: int, tree: Any, progress: Any) -> None:
        """Write a checkpoint, whole on disk when this returns.

        Args:
            step: its name, larger than that of all before.
            tree: a pytree of arrays.
            progress: what else belongs to it, as a JSON value.
        """
        # Not in the background: on CPU that would read buffers that the next step, to which they are donated, rewrites.
        self._orbax.save(step, tree, force=True, custom_metadata={"progress": progress})

    def load(self, like: Any) -> tuple[Any, Any]:
        """Read the newest checkpoint.

        Args:
            like: a pytree of the same structure, shapes, dtypes and shardings.

        Returns:
            The pytree and the JSON value.
        """
        newest = self._orbax.latest
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        progress = self._orbax.metadata(newest.step).custom_metadata["progress"]
        return self._orbax.load(newest.step, abstract), progress
