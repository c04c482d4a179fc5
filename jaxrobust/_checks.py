"""Checks at the door: each raises an error that names the argument, the rule and the received value."""

from __future__ import annotations

import difflib
import functools
import os
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxrobust import _store

_Function = TypeVar("_Function", bound=Callable[..., Any])


def number(name: str, value: Any, *, low: float = 0.0, high: float = np.inf) -> Any:
    """A Python or NumPy number, or a list of them, made canonical (strongly typed, so that it never retraces); anything
    else as it is.
    """
    listed = value if type(value) in (list, tuple) else [value]
    if any(_is_unreal(one) for one in listed):
        raise TypeError(f"{name} must be a real number; got {value!r}")
    # of a list that holds placeholders nothing is known
    if listed is value and value and all(isinstance(one, (int, float, np.number)) for one in value):
        value = np.array(value, np.float64)
    if isinstance(value, jax.Array) and jax.typeof(value).weak_type:
        return jnp.asarray(value, value.dtype)
    if not isinstance(value, (int, float, np.ndarray, np.number)):
        return value  # an array or tracer, or a placeholder by which JAX rebuilds a pytree
    array = np.asarray(value, np.float64)
    if not (np.all(np.isfinite(array)) and np.all(array >= low) and np.all(array <= high)):
        bounds = f" and in [{low:g}, {high:g}]" if high < np.inf else f" and >= {low:g}" if low > -np.inf else ""
        raise ValueError(f"{name} must be finite{bounds}; got {value!r}")
    return array[()]


def positive(name: str, value: Any) -> Any:
    """A `number` that is not 0 either."""
    value = number(name, value)
    if isinstance(value, (np.number, np.ndarray)) and not np.all(value > 0):
        raise ValueError(f"{name} must be > 0; got {value}")
    return value


def _is_unreal(value: Any) -> bool:
    """Whether it is certainly no real number, nor an array of them."""
    if isinstance(value, (np.ndarray, np.generic)) or (isinstance(value, jax.Array) and not is_traced(value)):
        return value.dtype.kind in "bcSU"
    return isinstance(value, (bool, str, complex))


def one_radius(perturbation_set: Any) -> None:
    """A set of one radius, where what is computed is of all images together."""
    shape = jnp.shape(perturbation_set.radius)
    if shape:
        raise ValueError(f"radius must be one number here, not one an image; got shape {shape}")


def count(name: str, value: Any, *, low: int = 1) -> int:
    """A static whole number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be >= {low}; got {value}")
    return int(value)


def choice(name: str, value: Any, known: Iterable[Any], *, otherwise: str = "") -> Any:
    """One of the known names; `otherwise` says what else would do."""
    known = list(known)
    try:
        if value in known:
            return value
    except (TypeError, ValueError):  # such as arrays, which have no one answer
        pass
    raise ValueError(f"{name} must be one of {sorted(known)}{otherwise}; got {value!r}{_nearest(value, known)}")


def _nearest(value: Any, known: list[Any]) -> str:
    """The known name that was probably meant, as a question: spelt alike, or shortened to its initials."""
    names = {_plain(name): name for name in known if isinstance(name, str)}
    wanted = _plain(str(value))
    initials = {"".join(word[0] for word in plain.split()): plain for plain in names}
    near = [initials[wanted]] if wanted in initials else difflib.get_close_matches(wanted, names, n=1)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""


def _plain(name: str) -> str:
    return " ".join(re.split(r"[^a-z0-9]+", name.lower().replace("∞", "inf"))).strip()


def told(value: Any) -> str:
    """What a thing is, in an error: short, whatever its size."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (bool, int, float, complex, np.generic)):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:40]}…")
    name = getattr(value, "__name__", "")
    return f"{type(value).__name__} {name}".rstrip()


def explicit_mesh(*trees: Any) -> Any:
    """The mesh with explicit axes on which an array lies, or None: there `vmap` fails on arrays of different places."""
    for leaf in jax.tree.leaves(trees):
        mesh = jax.typeof(leaf).sharding.mesh if isinstance(leaf, jax.Array) else None
        if mesh is not None and AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def off_mesh(function: _Function) -> _Function:
    """A function of the host that places arrays itself, where the user's `jax.set_mesh` may have explicit axes."""

    @functools.wraps(function)
    def placed(*args: Any, **options: Any) -> Any:
        if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
            return function(*args, **options)
        with jax.set_mesh(Mesh(np.empty((), object), ())):
            return function(*args, **options)

    return placed  # type: ignore[return-value]


def path(name: str, value: Any) -> _store.Path:
    """A path, or a string that is one, maybe of a bucket: see `_store.place`."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path or a string; got {told(value)}")
    return _store.place(value)


def saving(name: str, place: Any, run_id: Any) -> None:
    """That progress can be saved where, and under the name, that is said."""
    if place is not None:
        path(name, place)
    if not (run_id is None or isinstance(run_id, str)):
        raise TypeError(f"run_id must be a string or None; got {run_id!r}")


def slip(text: str) -> None:
    """Warn of what is allowed, but probably not meant: once for each text, wherever it comes from."""
    warnings.warn(text, UserWarning, stacklevel=1)


def key(value: Any) -> None:
    """A typed random key, one of them."""
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.shape:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, jax.Array) else repr(value)
        raise TypeError(f"key must be one typed key such as jax.random.key(0); got {found}")
    if "rbg" in str(value.dtype):
        raise ValueError(f"key must be like jax.random.key(0); got {value.dtype}, and its numbers change under vmap")


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer, so that values cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def same(first: Any, second: Any) -> bool:
    """Whether two trees have equal structure and equal numbers, which can be looked at."""
    structures: list[Any] = [jax.tree.structure(one) for one in (first, second)]
    if structures[0] != structures[1] or is_traced(first, second):
        return False
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))
