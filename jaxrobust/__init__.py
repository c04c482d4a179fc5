"""jaxrobust: adversarial robustness in JAX, as pure functions.

Rooms and types are imported when they are first used, so that the core costs no more than JAX itself, and the command
line's help not even that.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrobust import _public

if TYPE_CHECKING:
    from jaxrobust import (
        attacks,
        data,
        evaluate,
        losses,
        models,
        perceptual,
        report,
        sets,
        testing,
        training,
        transport,
    )
    from jaxrobust.types import AttackResult as AttackResult
    from jaxrobust.types import Classifier as Classifier
    from jaxrobust.types import Code as Code
    from jaxrobust.types import Confident as Confident
    from jaxrobust.types import Misclassified as Misclassified
    from jaxrobust.types import Targeted as Targeted
    from jaxrobust.types import TopK as TopK
    from jaxrobust.types import Towards as Towards

__version__ = "0.1.0"

__all__ = [
    "AttackResult",
    "Classifier",
    "Code",
    "Confident",
    "Misclassified",
    "Targeted",
    "TopK",
    "Towards",
    "attacks",
    "data",
    "evaluate",
    "losses",
    "models",
    "perceptual",
    "report",
    "sets",
    "testing",
    "training",
    "transport",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'jaxrobust' has no attribute {name!r}")
    if name.islower():  # a room; the others are types
        return importlib.import_module(f"jaxrobust.{name}")
    return getattr(importlib.import_module("jaxrobust.types"), name)


def __dir__() -> list[str]:
    return _public.names(globals())
