"""What networks and their doors call things."""

from __future__ import annotations

from typing import Any

__all__ = ["called", "check_hashable", "has_activations", "kind"]


def has_activations(network: type) -> bool:
    """Whether networks of a class can show their feature maps."""
    return callable(getattr(network, "activations", None))


def called(network: type, method: str) -> str:
    """How a forward pass is printed."""
    return network.__name__ + ("" if method == "__call__" else f".{method}")


def kind(value: Any) -> str:
    """What somebody passed, for a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_hashable(**statics: Any) -> None:
    """A `TypeError` where something cannot be part of a compiled program."""
    for name, static in statics.items():
        try:
            hash(static)
        except TypeError as error:
            raise TypeError(
                f"{name} must be hashable, because it becomes part of the compiled program: {error}"
            ) from None
