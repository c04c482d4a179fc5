"""Sets whose parameters lie in a box around zero: flows, angles, displacements of colours."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets.base import PerturbationSet
from jaxrobust.types import Image, Key, Number

__all__ = ["BoundedParameters", "Smooth", "roughness"]

Scalar = Float[Array, ""]


class BoundedParameters(PerturbationSet):
    """{θ : |θ_i| ≤ radius · unit_i, low_i ≤ θ_i ≤ high_i} with θ = 0 the identity, and l∞ geometry.

    A subclass says the shape of θ and what it does to the image, which it keeps in [0, 1] by itself; `_unit` and
    `_limits` where they are not 1 and infinite.
    """

    radius: Number

    @abc.abstractmethod
    def _shape(self, x: Image) -> tuple[int, ...]:
        """The shape of θ."""

    def _unit(self, x: Image) -> Array:
        """What one unit of the radius is in each parameter, ≥ 0; broadcasts against θ."""
        return jnp.ones((), x.dtype)

    def _limits(self, x: Image) -> tuple[Array, Array]:
        """What bounds θ besides the radius; both broadcast against θ."""
        return jnp.asarray(-jnp.inf, x.dtype), jnp.asarray(jnp.inf, x.dtype)

    def _reach(self, x: Image) -> Array:
        return jnp.asarray(self.radius).astype(x.dtype) * self._unit(x)

    def _bounds(self, x: Image) -> tuple[Array, Array]:
        reach, (low, high) = self._reach(x), self._limits(x)
        return jnp.maximum(-reach, low), jnp.minimum(reach, high)

    def init(self, x: Image) -> Array:
        """θ = 0."""
        return jnp.zeros(self._shape(x), x.dtype)

    def sample(self, key: Key, x: Image) -> Array:
        """Uniform in |θ_i| ≤ radius · unit_i, then clipped to the other limits."""
        return self.project(x, jax.random.uniform(key, self._shape(x), x.dtype, -1, 1) * self._reach(x))

    def project(self, x: Image, theta: Array) -> Array:
        """argmin ‖θ' − θ‖₂: a clip."""
        return jnp.clip(theta, *self._bounds(x))

    def ascend(self, x: Image, theta: Array, gradient: Array, size: Scalar) -> Array:
        """θ + size · unit · sign(g), with sign(0) = 0."""
        return theta + size * self._unit(x) * jnp.sign(gradient)

    def size(self, x: Image, theta: Array) -> Scalar:
        """max_i |θ_i| / unit_i."""
        unit = self._unit(x)
        return jnp.max(jnp.abs(theta) / jnp.where(unit > 0, unit, 1))

    def contains(self, x: Image, theta: Array) -> Bool[Array, ""]:
        """Whether θ is within its bounds, up to 1e-6 · max(1, radius); its image is then in [0, 1]."""
        low, high = self._bounds(x)
        slack = 1e-6 * jnp.maximum(jnp.asarray(self.radius).astype(x.dtype), 1)
        return jnp.all((theta >= low - slack) & (theta <= high + slack))


class Smooth(BoundedParameters):
    """Bounded parameters that are vectors on a lattice and cost weight · roughness."""

    weight: Number | None
    # the weight is this over the radius where it is None
    _relative_weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", _checks.number("weight", self.weight))

    def penalty(self, x: Image, theta: Array) -> Scalar:
        """weight · Σ_p Σ_{q ∈ N(p)} ‖θ_p − θ_q‖₂ over points p and their neighbours q: each pair counts twice."""
        if self.weight is None:
            radius = jnp.asarray(self.radius).astype(x.dtype)
            weight = self._relative_weight / jnp.where(radius > 0, radius, 1)
        else:
            weight = jnp.asarray(self.weight).astype(x.dtype)
        return weight * roughness(theta)


def roughness(field: Array) -> Scalar:
    """Σ_p Σ_q √(‖f_p − f_q‖² + 10⁻¹⁰) − 10⁻⁵ over points p and their neighbours q along every axis but the last.

    The constant in the root makes it smooth where f is constant; it is taken off again, so that constants cost nothing.

    Args:
        field: (..., k) vectors on a lattice.

    Returns:
        The sum, ≥ 0.
    """
    total = jnp.zeros((), field.dtype)
    tiny, ones = jnp.asarray(1e-10, field.dtype), jnp.ones(field.shape[-1], field.dtype)
    for axis in range(field.ndim - 1):
        # a matrix product, because XLA:CPU is slow at sums over a short last axis
        square = jnp.dot(jnp.square(jnp.diff(field, axis=axis)), ones, precision=lax.Precision.HIGHEST)
        total += 2 * jnp.sum(jnp.sqrt(square + tiny) - jnp.sqrt(tiny))
    return total
