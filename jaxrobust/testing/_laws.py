"""How laws are kept in tables, and how they say what does not hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxrobust import _checks

__all__ = ["Law", "Laws", "chosen", "hold", "law", "near", "same"]

Law = Callable[[Any], None]
Laws = dict[str, Law]


def law(*tables: Laws) -> Callable[[Law], Law]:
    """Enter a law, a function of a case, into tables; what it raises names the law and the case.

    Args:
        *tables: the law's name there is the function's.

    Returns:
        A decorator.
    """

    def enter(check: Law) -> Law:
        @functools.wraps(check)
        def checked(case: Any) -> None:
            said = f"{case} breaks the law {check.__name__}"
            try:
                check(case)
            except AssertionError as error:
                raise AssertionError(f"{said}: {error}") from None
            except Exception as error:
                error.add_note(f"(raised while the law {check.__name__} was tried on {case})")
                raise

        for table in tables:
            table[check.__name__] = checked
        return checked

    return enter


def chosen(table: Mapping[str, Law], names: Iterable[str] | None) -> list[Law]:
    """The laws of these names, all of a table by default.

    Raises:
        ValueError: there is no such law, or none is named.
    """
    if isinstance(names, str):
        raise TypeError(f"laws must be a collection of names; got the string {names!r}")
    found = [table[_checks.choice("laws", name, tuple(table))] for name in (table if names is None else names)]
    if not found:
        raise ValueError("laws must name at least one law; got none")
    return found


def hold(condition: Any, said: str) -> None:
    """That a condition holds everywhere; `said` has the numbers by which it can be seen where it does not."""
    if not np.all(np.asarray(condition)):
        raise AssertionError(said)


def near(found: Any, due: Any, what: str, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """That two pytrees of arrays agree leaf by leaf, NaN with nothing."""
    _same_structure(found, due, what)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(due), strict=True):
        name = what + jax.tree_util.keystr(path)
        a, b = np.asarray(a), np.asarray(b)
        hold(a.shape == b.shape, f"{name} has shape {a.shape} where {b.shape} is due")
        wide = np.float64 if np.issubdtype(a.dtype, np.floating) else a.dtype
        a, b = a.astype(wide), b.astype(wide)
        alike = (a == b) if wide is not np.float64 else np.isclose(a, b, rtol=rtol, atol=atol)
        if not alike.all():
            place = tuple(int(i) for i in np.argwhere(~alike)[0])
            count = f"{int((~alike).sum())} of {alike.size} entries"
            raise AssertionError(f"{name} is {a[place]:.9g} where {b[place]:.9g} is due, at {place} ({count} differ)")


def same(found: Any, due: Any, what: str) -> None:
    """That two pytrees have one structure, and leaves of one shape and dtype."""
    _same_structure(found, due, what)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(due), strict=True):
        hold((a.shape, a.dtype) == (b.shape, b.dtype), f"{what} is {a.dtype}{a.shape} where {b.dtype}{b.shape} is due")


def _same_structure(found: Any, due: Any, what: str) -> None:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (found, due)]
    alike = structures[0] == structures[1]
    hold(alike, f"{what} has the structure {structures[0]} where {structures[1]} is due")
