"""What the sets made of other sets share: their parts, checked, bound to a model and scaled."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.sets.base import PerturbationSet
from jaxrobust.types import Classifier, Image, Number

Scalar = Float[Array, ""]


class Composite(PerturbationSet):
    """A set of parts, whose radii its own multiplies."""

    kind: ClassVar[type] = PerturbationSet
    meaning: ClassVar[str] = "perturbation sets"
    joined: ClassVar[str] = ", "
    parts: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", checked(self.parts, self.kind, self.meaning))
        super().__post_init__()

    @property
    def contains_clean(self) -> bool:
        """Whether every part does."""
        return all(part.contains_clean for part in self.parts)

    def bound_to(self, model: Classifier) -> Composite:
        """Every part when `model` is attacked."""
        parts = tuple(part.bound_to(model) for part in self.parts)
        return cast(Composite, dataclasses.replace(cast(Any, self), parts=parts))

    def scaled_parts(self) -> list[Any]:
        """The parts with their radii multiplied by this set's."""
        return [scaled(part, self.radius) for part in self.parts]

    def __str__(self) -> str:
        scale = super().__str__().removeprefix(type(self).__name__)
        return f"{self.joined.join(map(str, self.parts))}, scale {scale}"


def scaled(set: PerturbationSet, weight: Number) -> PerturbationSet:
    """The set with its radius multiplied by a weight, as the affine adversary shares a budget out.

    Args:
        set: any set.
        weight: a factor ≥ 0, traced if you like.

    Returns:
        The set with radius weight · radius.

    Raises:
        TypeError: a weight that is no number.
        ValueError: a weight that is negative or not finite.

    Example:
        >>> str(scaled(Linf(0.4), 0.25))
        'Linf(0.1)'

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000.
    """
    weight, radius = _checks.number("weight", weight), set.radius
    if isinstance(weight, jax.Array) or isinstance(radius, jax.Array):
        radius = jnp.asarray(radius)
        weight = jnp.asarray(weight).astype(radius.dtype)
    return set.with_radius(weight * radius)


def checked(parts: Any, kind: type, meaning: str) -> Any:
    """A tuple of at least one set; placeholders by which JAX rebuilds a pytree pass."""
    if isinstance(parts, (PerturbationSet, type, str)):
        raise TypeError(f"parts must be a tuple of {meaning}; got {parts!r}")
    if not isinstance(parts, (tuple, list)):
        return parts
    if not parts:
        raise ValueError("parts must hold at least one set; got none")
    for part in parts:
        if isinstance(part, (PerturbationSet, type, str)) and not isinstance(part, kind):
            found = part if isinstance(part, (type, str)) else type(part).__name__
            raise TypeError(f"parts must be {meaning}; got {found!r}")
    return tuple(parts)


def radius_of(part: PerturbationSet, x: Image) -> Scalar:
    """The part's own radius as a number like the image's."""
    return jnp.asarray(part.radius).astype(x.dtype)


def share(size: Scalar, part: PerturbationSet) -> Scalar:
    """A size as a fraction of the part's own radius; infinite where that is 0 and something moved."""
    radius = jnp.asarray(part.radius).astype(size.dtype)
    return jnp.where(radius > 0, size / jnp.where(radius > 0, radius, 1), jnp.where(size > 0, jnp.inf, 0))
