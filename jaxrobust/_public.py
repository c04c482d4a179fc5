"""What a room shows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["names"]


def names(room: Mapping[str, Any]) -> list[str]:
    """The answer of a module's `__dir__`: its public names and what every module has, not the files that it is made of.

    Args:
        room: the module's globals.

    Returns:
        The names, sorted.
    """
    return sorted({*room["__all__"], *(name for name in room if name.startswith("__") and name.endswith("__"))})
