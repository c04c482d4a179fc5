"""The face every perturbation set shows, and the registry by which laws and tables find them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust._repr import written
from jaxrobust.types import Classifier, Image, Key, Number

__all__ = ["REGISTRY", "UNBOUNDED", "PerturbationSet", "register"]

Parameters = Any  # θ, a pytree of arrays; for an additive set the perturbation itself
Scalar = Float[Array, ""]

UNBOUNDED = 1e6  # a radius with which a projection only respects the box


class PerturbationSet(abc.ABC):
    """What the adversary may do to one image x (H, W, C): a parametrisation θ ↦ x', bounded by a radius.

    Every method is about one image, pure, and safe under `jit` and `vmap`; engines batch it. `init` is the identity,
    `project` brings θ back into the set, `ascend` is a steepest-ascent step in the set's own geometry. A set that
    Frank–Wolfe can search also has `maximise(x, gradient) -> θ`, the member of largest <gradient, θ>.
    """

    radius: Number  # engines also take an array (N,), one an image, and give the methods each image's own

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", _checks.number("radius", self.radius))

    @property
    def contains_clean(self) -> bool:
        """Whether `init` gives the clean image; where it does not (fog, subsampled JPEG), attacks keep x besides."""
        return True

    @abc.abstractmethod
    def init(self, x: Image) -> Parameters:
        """The parameters that change nothing."""

    @abc.abstractmethod
    def sample(self, key: Key, x: Image) -> Parameters:
        """A random member: uniform in the ball where that is defined, then projected on the box."""

    @abc.abstractmethod
    def apply(self, x: Image, theta: Parameters) -> Image:
        """The perturbed image, in [0, 1]."""

    @abc.abstractmethod
    def project(self, x: Image, theta: Parameters) -> Parameters:
        """The nearest parameters whose image lies in the set and in [0, 1]."""

    @abc.abstractmethod
    def ascend(self, x: Image, theta: Parameters, gradient: Parameters, size: Scalar) -> Parameters:
        """θ moved by `size`, in the unit of the radius, along the steepest ascent of <gradient, ·>; not projected."""

    @abc.abstractmethod
    def size(self, x: Image, theta: Parameters) -> Scalar:
        """How large the perturbation is, in the unit of the radius."""

    def contains(self, x: Image, theta: Parameters) -> Bool[Array, ""]:
        """Whether the image of θ lies in the set, to the tolerance of float32, and in [0, 1].

        By default size ≤ radius + 1e-5 · max(1, radius), for sets whose `apply` stays in [0, 1] by itself.
        """
        radius, image = jnp.asarray(self.radius).astype(x.dtype), self.apply(x, theta)
        inside = (jnp.min(image) >= -1e-6) & (jnp.max(image) <= 1 + 1e-6)
        return inside & (self.size(x, theta) <= radius + 1e-5 * jnp.maximum(radius, 1))

    def distance(self, x: Image, theta: Parameters, other: Parameters) -> Scalar:
        """How far apart two members are, in the unit of the radius: as a rule the size of their difference."""
        moved = jax.tree.map(lambda start, a, b: start + (a - b), self.init(x), theta, other)
        return self.size(x, moved)

    def penalty(self, x: Image, theta: Parameters) -> Scalar:
        """What penalised attacks subtract from the loss, such as a flow's roughness; nothing by default."""
        return jnp.zeros((), x.dtype)

    def pullback(self, x: Image, theta: Parameters, gradient: Image) -> Parameters:
        """The gradient in θ of a loss whose gradient in the image is `gradient`."""
        return jax.vjp(lambda theta: self.apply(x, theta), theta)[1](gradient)[0]

    def bound_to(self, model: Classifier) -> PerturbationSet:
        """The set when `model` is attacked: only a set that measures with the attacked network itself changes."""
        return self

    def boxed(self, x: Image, theta: Parameters) -> Parameters:
        """The nearest parameters whose image lies in [0, 1], whatever its distance: for penalised attacks."""
        return self.with_radius(UNBOUNDED).project(x, theta)

    def measures_with(self, model: Classifier) -> bool:
        """Whether the set measures with activations of this very model; then it has `separation` of those."""
        return False

    def with_radius(self, radius: Number) -> PerturbationSet:
        """The same set with another radius; traced radii are welcome."""
        return cast(PerturbationSet, dataclasses.replace(cast(Any, self), radius=radius))

    def __str__(self) -> str:
        radius = self.radius
        if is_placeholder(radius):
            several = isinstance(radius, (np.ndarray, jax.Array)) and not isinstance(radius, jax.core.Tracer)
            told = f"{written(radius.min())} to {written(radius.max())}" if several and radius.size else radius
        else:
            told = written(radius)
        return f"{type(self).__name__}({told})"


def is_placeholder(value: Any) -> bool:
    """Whether a number cannot be read now: a tracer, an array of several, or a pytree placeholder."""
    return isinstance(value, jax.core.Tracer) or jnp.ndim(value) > 0 or not isinstance(value, (int, float, jax.Array))


class Entry(NamedTuple):
    """A registered set: how to make it with a typical radius, and two image shapes (H, W, C) that it takes."""

    example: Callable[[], PerturbationSet]
    shapes: tuple[tuple[int, int, int], ...]

    def __call__(self) -> PerturbationSet:
        return self.example()


# every law of the tests runs over it
REGISTRY: dict[str, Entry] = {}


def register(
    name: str,
    example: Callable[[], PerturbationSet],
    *,
    shapes: tuple[tuple[int, int, int], ...] = ((6, 5, 3), (4, 7, 1)),
) -> None:
    """Enter a set into the table over which laws are tested and tables are made.

    Args:
        name: how the set is called in suites and command lines.
        example: makes the set with a typical radius.
        shapes: small image shapes (H, W, C) that the set takes; the laws are tested on them.

    Raises:
        ValueError: the name is taken.
    """
    if name in REGISTRY:
        raise ValueError(f"name must be new in the registry of sets; got {name!r} again")
    REGISTRY[name] = Entry(example, shapes)
