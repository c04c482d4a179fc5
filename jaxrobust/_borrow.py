"""Programs of a model that live no longer than the model: the weights that a function closes over are theirs too."""

from __future__ import annotations

import dataclasses
import types
import weakref
from typing import Any

from jaxrobust.types import Classifier

__all__ = ["borrowed", "owner"]


class Borrowed:
    """A function known by which object it is, called while that object is alive, and not kept alive by this.

    Args:
        function: a function or any callable that is equal to itself alone; or a method of such an object.
    """

    def __init__(self, function: Any) -> None:
        bound = isinstance(function, types.MethodType)
        self._owner = weakref.ref(function.__self__ if bound else function)
        self._method = function.__func__ if bound else None
        self._identity = (id(self.owner), self._method)

    @property
    def owner(self) -> Any:
        """The object, or None where it is gone."""
        return self._owner()

    def __call__(self, *args: Any) -> Any:
        owner = self.owner
        return owner(*args) if self._method is None else self._method(owner, *args)

    # an object's number is given to another when it is gone
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Borrowed) and self._identity == other._identity and self.owner is other.owner

    def __hash__(self) -> int:
        return hash(self._identity)


def borrowed(model: Any) -> Any:
    """A classifier for JAX's caches, which keep what they have seen: it does not keep the model's function alive.

    Args:
        model: a classifier, to be kept by the caller while this is used. Functions that are compared by more than
            which object they are, such as those of networks, stay as they are, and so does anything else.

    Returns:
        The classifier, of equal structure for an equal model.
    """
    if not isinstance(model, Classifier):
        return model
    apply = model.apply
    inner = getattr(apply, "function", None) if dataclasses.is_dataclass(apply) else None
    if inner is not None and _alone(inner):
        apply = dataclasses.replace(apply, function=Borrowed(inner))  # type: ignore[type-var]
    elif _alone(apply):
        apply = Borrowed(apply)
    else:
        return model
    activations = Borrowed(model.activations) if _alone(model.activations) else model.activations
    return Classifier(apply, model.params, activations)


def owner(model: Any) -> Any:
    """The object with which the programs of a borrowed classifier are to end; None if they need not."""
    apply = model.apply if isinstance(model, Classifier) else None
    inner = getattr(apply, "function", apply)
    return inner.owner if isinstance(inner, Borrowed) else None


def _alone(function: Any) -> bool:
    """Whether a callable equals itself alone, so that nobody can ask for its programs when it is gone."""
    if isinstance(function, types.MethodType):
        function = function.__self__
    if function is None or isinstance(function, (type, types.ModuleType, Borrowed)):
        return False
    kind = type(function)
    if kind.__eq__ is not object.__eq__ or kind.__hash__ is not object.__hash__:
        return False
    try:
        weakref.ref(function)
    except TypeError:
        return False
    return True
