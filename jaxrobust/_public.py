"""What a room shows of itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazily", "names"]


def lazily(room: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` by which a name's file is imported when the name is asked for.

    Args:
        room: the module's name.
        homes: the file of each name.

    Returns:
        The function.
    """

    def look(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{room}.{homes[name]}"), name)
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return look


def names(room: Mapping[str, Any]) -> list[str]:
    """The answer of a module's `__dir__`: its public names and what every module has, not the files that it is made of.

    Args:
        room: the module's globals.

    Returns:
        The names, sorted.
    """
    return sorted({*room["__all__"], *(name for name in room if name.startswith("__") and name.endswith("__"))})
