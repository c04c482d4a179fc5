"""Short texts of values: numbers as people write them, arrays by type and shape, pytrees by what they were made of."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["represented", "short", "written"]

LONGEST = 80  # characters of a value inside of another
MEMBERS = 6  # of a container or an array that is shown whole
PIXEL = 255


def written(value: Any, *, exact: bool = False) -> str:
    """A number as it was written: "0.3", "8/255" where it is just that in its own precision, else with six digits.

    Args:
        value: a real number, of Python, NumPy or JAX.
        exact: whether all digits are to be shown where six do not tell it from its neighbours.

    Returns:
        The text.

    Example:
        >>> written(8 / 255), written(0.3), written(np.float32(8 / 255)), written(1 / 3)
        ('8/255', '0.3', '8/255', '0.333333')
    """
    number = np.asarray(value)
    number = number if number.dtype.kind == "f" else number.astype(np.float64)

    def is_it(candidate: float) -> bool:
        return bool(number.dtype.type(candidate) == number)

    plain = f"{float(number):g}"
    if len(plain) < 8 and is_it(float(plain)):  # six digits that fit may be chance in single precision: 16/255
        return plain
    levels = round(float(number) * PIXEL) if np.isfinite(number) else 0
    # 1/3 is 85/255 too, but nobody means that
    if levels and abs(levels) < 1e6 and math.gcd(levels, PIXEL) < PIXEL / 3 and is_it(levels / PIXEL):
        return f"{levels}/{PIXEL}"
    return str(float(number)) if exact and not is_it(float(plain)) else plain


def short(value: Any) -> str:
    """Any value on one line, at most so long whatever its size."""
    if value is None or isinstance(value, (bool, np.bool_, int, str)):
        return _cut(repr(value))
    if isinstance(value, (float, np.floating)):
        return written(value, exact=True)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array(value)
    if isinstance(value, functools.partial):
        options = [short(argument) for argument in value.args]
        options += [f"{name}={short(argument)}" for name, argument in value.keywords.items()]
        return _cut(f"{short(value.func)}({', '.join(['…', *options])})")
    if isinstance(value, (tuple, list, Mapping)):
        return _container(value)
    name = getattr(value, "__qualname__", None)
    if callable(value) and isinstance(name, str):
        return name
    return _cut(repr(value))


def _array(value: Any) -> str:
    shape = ",".join(map(str, np.shape(value)))
    text = f"{value.dtype}[{shape}]"
    if isinstance(value, jax.core.Tracer) or value.dtype.kind not in "bifu" or np.size(value) > MEMBERS:
        return text
    if not np.ndim(value):
        return written(value, exact=True) if value.dtype.kind == "f" else str(value)
    return str(np.asarray(value).tolist())


def _container(value: Any) -> str:
    if len(value) <= MEMBERS:
        if isinstance(value, Mapping):
            text = "{" + ", ".join(f"{key!r}: {short(entry)}" for key, entry in value.items()) + "}"
        else:
            text = ", ".join(map(short, value)) + ("," if len(value) == 1 and isinstance(value, tuple) else "")
            text = f"({text})" if isinstance(value, tuple) else f"[{text}]"
        if len(text) <= LONGEST:
            return text
    arrays = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "shape")]
    if arrays:
        return f"<{len(arrays)} arrays of {sum(int(np.prod(np.shape(array))) for array in arrays):,} numbers>"
    return _cut(repr(value))


def _cut(text: str) -> str:
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def represented(value: Any) -> str:
    """A dataclass by its first field, and by those that have not their default: `PGD(Linf(8/255), steps=40)`."""
    parts = []
    for place, field in enumerate(dataclasses.fields(value)):
        found = getattr(value, field.name, None)
        if place and _is_default(found, field):
            continue
        inner = represented(found) if type(found).__repr__ is represented else short(found)
        parts.append(inner if place == 0 else f"{field.name}={inner}")
    return f"{type(value).__name__}({', '.join(parts)})"


def _is_default(found: Any, field: dataclasses.Field[Any]) -> bool:
    default = field.default
    if default is dataclasses.MISSING or default is None or found is None:
        return found is default
    plain = (bool, int, float, str, np.number, tuple)
    if not (isinstance(found, plain) and isinstance(default, plain)):
        return found is default
    try:
        return bool(found == default)
    except ValueError:  # of arrays within a tuple
        return False
