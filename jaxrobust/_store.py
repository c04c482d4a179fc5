"""What is written to disk: whole or not at all, without pickles, and recognised again by its identity."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import tempfile
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._identity import identity as identity
from jaxrobust._taken_apart import raw as raw

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path
else:
    Path = pathlib.PurePath  # one in a bucket has all methods of `pathlib.Path`, but is none

BUCKETS = ("gs", "s3", "az")  # schemes of object stores


def place(given: str | os.PathLike[str]) -> Path:
    """Where files are, from what a user gives: on a local disk, or in a bucket, by `etils.epath`.

    Args:
        given: a local path, or one such as "gs://bucket/run"; a bucket as a string, since `pathlib` drops a slash.

    Returns:
        A `pathlib.Path`, or of a bucket what has its methods and is none.

    Raises:
        ValueError: a bucket of another kind, or one that `pathlib` has made a local folder of.

    Example:
        >>> place("runs/digits"), place("gs://bucket/run").name
        (PosixPath('runs/digits'), 'run')
    """
    text = os.fspath(given)
    scheme, found, _ = text.partition(":/")
    whole = text.startswith(f"{scheme}://")
    if not found or not (whole or scheme in BUCKETS):
        return pathlib.Path(text)
    if not (whole and scheme in BUCKETS):
        schemes = ", ".join(f"{scheme}://" for scheme in BUCKETS)
        raise ValueError(f"a path must be local, or a string that begins with one of {schemes}; got {text!r}")
    from etils import epath

    return epath.Path(text)


def is_local(path: Path) -> bool:
    """Whether what `place` gave is on a local disk: with locks and renames, and none of them elsewhere."""
    return isinstance(path, pathlib.Path)


def local(name: str, given: str | os.PathLike[str]) -> Path:
    """`place`, where only a local disk will do; `name` is how the error calls it."""
    path = place(given)
    if not is_local(path):
        raise ValueError(f"{name} must be on a local disk; got {str(path)!r}")
    return path


def copy(source: Path, target: Path) -> None:
    """Copy a file to or from a bucket, by parts, so that it need not fit into memory."""
    from etils import epath

    epath.Path(source).copy(target, overwrite=True)


@contextlib.contextmanager
def reached(
    folder: Path,
    *,
    name: str = "run_dir",
    unless: tuple[type[Exception], ...] = (),
    then: str = "; the same call goes on from what is whole there",
) -> Iterator[None]:
    """Name the place where reading or writing fails, in whatever way its kind of storage says so.

    Args:
        folder: the place.
        name: the argument that it came from.
        unless: errors that say enough.
        then: what the message ends with.

    Raises:
        OSError: instead of any other; `PermissionError` stays one.
    """
    try:
        yield
    except (BlockingIOError, *unless):
        raise
    except Exception as error:
        kind = PermissionError if isinstance(error, PermissionError) else OSError
        raise kind(
            f"{name} must be a place that can be read and written; got {str(folder)!r}: {type(error).__name__}: "
            f"{error}{then}"
        ) from error


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
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"


def restored(array: np.ndarray, like: Any) -> jax.Array:
    """The inverse of `raw`, with the type and placement of `like`, an array or its shape."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.device_put(
            jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(jnp.empty((), like.dtype))),
            like.sharding,
        )
    # .npz knows no bfloat16 and its like, and brings back their bytes
    return jax.device_put(array.view(like.dtype) if array.dtype.kind == "V" else array, like.sharding)


def write_arrays(path: Path, /, **arrays: Any) -> None:
    """An .npz that is either the old one or the new one, never half of it."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomically(path, write)


def read_arrays(path: Path, told: Callable[[Exception], str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz.

    Args:
        path: the file.
        told: what is said of a file that is none, from the reader's own error; by default how to start anew.

    Returns:
        Name -> array.

    Raises:
        ValueError: the file is damaged or no .npz.
    """
    # opened here, since NumPy leaves a file that it opened itself open when the archive is broken; of a bucket read
    # here, so that a broken connection is no broken archive
    with path.open("rb") if is_local(path) else io.BytesIO(path.read_bytes()) as file:
        try:
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except Exception as error:  # broken bytes raise whatever the reader of the part they are in raises
            anew = f"{path} must be a whole .npz, remove it to start anew; got damage: {error}"
            raise ValueError(told(error) if told else anew) from error


def write_json(path: Path, value: Any) -> None:
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


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """What `write` puts into the local path it is given becomes the file, or the file stays as it was."""
    if not is_local(path):  # a bucket takes whole objects, once all of their bytes have come
        with tempfile.TemporaryDirectory() as folder:
            partial = pathlib.Path(folder, path.name)
            write(partial)
            path.write_bytes(partial.read_bytes())
        return
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
def locked(path: Path) -> Iterator[None]:
    """Hold a file that is or will be written for this run alone, by a lock beside it that says whose it is.

    The lock ends with the process, whatever ends that, once no process that was forked from it meanwhile is left: they
    hold it too. Nothing is held where the system has no locks, as in a bucket, or the folder cannot be written to.

    Args:
        path: the file.

    Raises:
        BlockingIOError: another run holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = _lock(lock, path) if is_local(path) else None
    try:
        yield
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _lock(lock: Path, path: Path) -> int | None:
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


def remove(path: Path) -> None:
    """Take a file away, if there is one, for good once this returns."""
    path.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk itself, where the system can."""
    with contextlib.suppress(OSError):
        _flush(folder, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
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
