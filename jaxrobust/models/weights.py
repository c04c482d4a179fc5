"""Parameters in plain `.npz` files: one array a name, no pickle, readable wherever NumPy is."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrobust import _store
from jaxrobust.types import Classifier

__all__ = ["load_npz", "save_npz"]

Model = TypeVar("Model")


def save_npz(path: str | os.PathLike[str], model: Any) -> None:
    """Write a model's numbers, batch statistics included, under dotted names such as "conv1.kernel".

    The file appears whole or not at all; one that is there is replaced only when the new one is complete.

    Args:
        path: the file, in a directory that exists. Nothing is appended to the name.
        model: an `nnx.Module` (its random streams are left out), a `Classifier`, or any pytree of arrays.

    Raises:
        ValueError: if two arrays would have the same name.
        TypeError: if a leaf is not an array, or of a type that `.npz` cannot hold without pickle, such as bfloat16.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_npz(f"{folder}/w.npz", {"dense": {"bias": jnp.ones(2)}})
        ...     load_npz(f"{folder}/w.npz", {"dense": {"bias": jnp.zeros(2)}})
        {'dense': {'bias': Array([1., 1.], dtype=float32)}}
    """
    arrays = _named(_numbers(model))
    for name, value in arrays.items():
        if getattr(value.dtype, "kind", None) not in set("biufc"):
            raise TypeError(f"{name} must be of a type that NumPy has; got {value.dtype}")
    _store.write_arrays(Path(path), **{name: np.asarray(value) for name, value in arrays.items()})


def load_npz(path: str | os.PathLike[str], model: Model) -> Model:
    """Read what `save_npz` wrote, or any `.npz` with the same names and shapes.

    Arrays take the model's types. Everything is checked before anything is changed.

    Args:
        path: the file.
        model: the kind of thing that was saved. An `nnx.Module` is updated in place, as `nnx.update` does; a
            `Classifier` or another pytree serves as the pattern for a new one.

    Returns:
        The same module, or the new classifier or pytree.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an `.npz` of plain arrays, or a name is missing or not expected, or a shape or the
            kind of number differs; the message lists every one.

    Example:
        >>> import tempfile
        >>> from jaxrobust.models import MnistNet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_npz(f"{folder}/net.npz", MnistNet(rngs=nnx.Rngs(0)))
        ...     network = load_npz(f"{folder}/net.npz", MnistNet(rngs=nnx.Rngs(1)))
    """
    pattern = _numbers(model)
    expected, found = _named(pattern), _read(path)
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"not expected {name}" for name in found if name not in expected]
    for name in [name for name in expected if name in found]:
        want, have = expected[name], found[name]
        if want.shape != have.shape:
            problems.append(f"{name} must have shape {want.shape}, found {have.shape}")
        elif _family(want.dtype) is not _family(have.dtype):
            problems.append(f"{name} must be of type {want.dtype}, found {have.dtype}")
    if problems:
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems)}")
    loaded = [jnp.asarray(found[name], want.dtype) for name, want in expected.items()]
    numbers = jax.tree.unflatten(jax.tree.structure(pattern), loaded)
    return _with_numbers(model, numbers)


def _with_numbers(model: Any, numbers: Any) -> Any:
    if isinstance(model, nnx.Module):
        nnx.update(model, numbers)
        return model
    return dataclasses.replace(model, params=numbers) if isinstance(model, Classifier) else numbers


def _numbers(model: Any) -> Any:
    if isinstance(model, nnx.Module):
        return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate))))
    return model.params if isinstance(model, Classifier) else model


def _named(numbers: Any) -> dict[str, Any]:
    """The leaves in order, by dotted name."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(numbers):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{name or 'model'} must be an array; got a {type(leaf).__name__}")
        if name in named:
            raise ValueError(f"model must give every array its own name; got {name!r} twice")
        named[name] = leaf
    return named


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive.items())
    except FileNotFoundError:
        raise
    # Whatever else NumPy and zipfile raise, the file is not one: a damaged archive, a single array, a pickle.
    except (ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file of plain arrays: {error}") from error


def _family(dtype: Any) -> Any:
    families = (jnp.floating, jnp.integer, jnp.complexfloating, jnp.bool_)
    return next((family for family in families if jnp.issubdtype(dtype, family)), None)
