"""Checkpoints of a training run. The only file that knows Orbax, which still renames things between releases."""

from __future__ import annotations

import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust import _store
from jaxrobust.training._placement import everywhere, fine_in_each, mesh_of

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints of one run folder, a folder a step; each appears whole or not at all.

    A checkpoint is a pytree of arrays and a JSON value, written together. Use it as a context manager. Of several
    processes all call the same methods, with arrays that are equal on each.

    Args:
        folder: where they lie; created if need be.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: _store.Path, *, keep: int = 2):
        # Imported here because it takes a second that a run without a folder need not spend.
        from orbax.checkpoint import v1

        self._folder = folder
        self._writing: Any = None
        # several processes write arrays that they share
        self._mesh = mesh_of(jax.devices(), "all") if jax.process_count() > 1 else None
        with _store.reached(folder):
            self._orbax = v1.training.Checkpointer(
                # epath takes a bucket for relative, and would put it below the current folder
                folder.absolute() if _store.is_local(folder) else folder,
                preservation_policy=v1.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )

    @staticmethod
    def check(name: str, folder: str | os.PathLike[str]) -> None:
        """That checkpoints can lie there: on a local disk, or in a bucket of the one kind that Orbax writes to."""
        path = _store.place(folder)
        if not _store.is_local(path) and not str(path).startswith("gs://"):
            raise ValueError(f"{name} must be a local folder or begin with gs://; got {str(path)!r}")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        with _store.reached(self._folder):
            try:
                self._settle()
            finally:
                self._orbax.close()  # which raises again what a checkpoint has met

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(self, step: int, tree: Any, progress: Any) -> None:
        """Begin to write a checkpoint; it is whole on disk when the next one begins, or at the context's end.

        Args:
            step: its name; one of that name, which could not be read, is replaced.
            tree: a pytree of arrays; they may be donated once this returns.
            progress: what else belongs to it, as a JSON value.
        """
        self.wait()
        # A copy, since on CPU the writer would read buffers that the next step, to which they are donated, rewrites.
        tree = jax.tree.map(lambda leaf: np.array(_store.raw(leaf)), tree)
        if self._mesh is not None:
            tree = everywhere(tree, self._mesh)
        with _store.reached(self._folder):
            self._writing = self._orbax.save_async(
                step, tree, force=True, overwrite=True, custom_metadata={"progress": progress}
            )

    def wait(self) -> None:
        """Wait until what was begun is whole; what went wrong with it is raised here."""
        with _store.reached(self._folder):
            self._settle()

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self, like: Any) -> tuple[Any, Any]:
        """Read the newest checkpoint that can be read, which is the same one in all processes.

        Args:
            like: a pytree of the same structure, shapes, dtypes and shardings.

        Returns:
            The pytree and the JSON value.

        Raises:
            ValueError: none can be read.
        """
        damaged: list[str] = []
        for step in sorted((checkpoint.step for checkpoint in self._orbax.checkpoints), reverse=True):
            found: Any = None
            failed: Exception | None = None
            try:
                found = self._read(step, like)
            except Exception as error:  # broken bytes raise whatever the reader of the part they are in raises
                # what cannot be reached now may be whole; of several processes the others would wait for this one
                if self._mesh is None and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                    raise
                failed = error
            if fine_in_each(failed is None).all():
                for name in damaged:
                    warnings.warn(f"checkpoint {name} cannot be read; going on from {step}, before it", stacklevel=2)
                return jax.tree.map(_keyed, found[0], like), found[1]
            damaged.append(repr(str(self._folder / str(step))))
        raise ValueError(
            f"run_dir: no checkpoint can be read: {', '.join(damaged)} ({type(failed).__name__}: {failed}); remove the "
            "run's folder to start anew"
        ) from failed

    def _read(self, step: int, like: Any) -> tuple[Any, Any]:
        shared = None if self._mesh is None else NamedSharding(self._mesh, P())

        def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
            leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shared or leaf.sharding)

        progress = self._orbax.metadata(step).custom_metadata["progress"]
        tree = self._orbax.load(step, jax.tree.map(abstract, like))
        if self._mesh is not None:
            tree = jax.tree.map(lambda x: x.addressable_data(0), tree)
        return tree, progress


def _keyed(array: Any, like: Any) -> Any:
    """Random keys of their data, and any other array as it is."""
    return _store.restored(np.asarray(array), like) if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) else array
