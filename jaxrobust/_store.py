"""What is written to disk: whole or not at all, without pickles, and recognised again by its identity."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._identity import identity as identity
from jaxrobust._taken_apart import raw as raw

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]


def describe(value: Any) -> Any:
    """A value in JSON's terms, stable from one process to the next: for people; `identity` is what tells runs apart."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((describe(v) for v in value), key=repr)
    if isinstance(value, functools.partial):
        return {"type": "partial", **{name: describe(getattr(value, name)) for name in ("func", "args", "keywords")}}
    if isinstance(value, types.MethodType):
        return {"type": "method", "of": describe(value.__self__), "name": value.__name__}
    if isinstance(value, (complex, bytes)):
        return str(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, (np.ndarray, jax.Array)):
        array = raw(value)
        if array.size > 64:  # a network's weights: a page wants to know which they are, not to print them
            digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
            return f"{array.dtype}{list(array.shape)}, sha256 {digest}"
        return array.tolist()
    if isinstance(value, pathlib.Path):
        return str(value)
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"


def restored(array: np.ndarray, like: jax.Array) -> jax.Array:
    """The inverse of `raw`, with the type and placement of `like`."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.device_put(
            jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like)), like.sharding
        )
    # .npz knows no bfloat16 and its like, and brings back their bytes
    return jax.device_put(array.view(like.dtype) if array.dtype.kind == "V" else array, like.sharding)


def write_arrays(path: pathlib.Path, /, **arrays: Any) -> None:
    """An .npz that is either the old one or the new one, never half of it."""

    def write(partial: pathlib.Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomically(path, write)


def read_arrays(path: pathlib.Path, told: Callable[[Exception], str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz.

    Args:
        path: the file.
        told: what is said of a file that is none, from the reader's own error; by default how to start anew.

    Returns:
        Name -> array.

    Raises:
        ValueError: the file is damaged or no .npz.
    """
    # opened here, since NumPy leaves a file that it opened itself open when the archive is broken
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except Exception as error:  # broken bytes raise whatever the reader of the part they are in raises
            anew = f"{path} must be a whole .npz, remove it to start anew; got damage: {error}"
            raise ValueError(told(error) if told else anew) from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """JSON that is either the old one or the new one; NaN and infinity become null, as the standard has it."""
    atomically(path, lambda partial: partial.write_text(json.dumps(_finite(value), allow_nan=False)))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """What JSON nests, by dotted names, so that two of them can be compared and told apart name by name."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= flat(item, f"{prefix}.{name}" if prefix else name)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def atomically(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """What `write` puts into the path it is given becomes the file, or the file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # of this very call: other threads, processes and hosts may write to the same place
    partial = path.with_name(f".{path.name[:32]}.{uuid.uuid4().hex}.partial")
    try:
        write(partial)
        _flush(partial, os.O_RDWR)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush_folder(path.parent)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold a file that is or will be written for this run alone, by a lock beside it that says whose it is.

    The lock ends with the process, whatever ends that, once no process that was forked from it meanwhile is left: they
    hold it too. Nothing is held where the system has no locks, or the folder cannot be written to.

    Args:
        path: the file.

    Raises:
        BlockingIOError: another run holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = _lock(lock, path)
    try:
        yield
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _lock(lock: pathlib.Path, path: pathlib.Path) -> int | None:
    """A handle with the only lock on what has this name; None where there are no locks."""
    while fcntl is not None:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # a full disk: the lock is held nevertheless
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
            # else its owner has just taken it away
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        except BlockingIOError:
            owner = os.read(handle, 300).decode(errors="replace")
            os.close(handle)
            owner = f", {owner}" if owner else ""
            raise BlockingIOError(f"{path} is in use by another run{owner}: wait for it, or save elsewhere") from None
        except OSError:
            os.close(handle)
            return None
        os.close(handle)
    return None


def remove(path: pathlib.Path) -> None:
    """Take a file away, if there is one, for good once this returns."""
    path.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: pathlib.Path) -> None:
    """Have the names in a folder on the disk itself, where the system can."""
    with contextlib.suppress(OSError):
        _flush(folder, os.O_RDONLY)


def _flush(path: pathlib.Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on."""
    # by its name, since a room that imports the house from above would close a circle
    own = importlib.import_module("jaxrobust").__version__
    found = {"python": platform.python_version(), "jaxrobust": own}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
