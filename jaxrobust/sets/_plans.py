"""What the Wasserstein balls share: θ is a local transport plan, x' its columns."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets.base import PerturbationSet
from jaxrobust.transport.plans import Plan, allowed, columns, costs, identity, offsets, windows
from jaxrobust.transport.windowed import row_sums
from jaxrobust.types import Image

Scalar = Float[Array, ""]


class PlanBall(PerturbationSet):
    """The images that plans Π (k², H, W, C) with rows x, columns at most 1 and <C, Π> ≤ radius · Σx make of x."""

    p: int
    kernel: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice("p", self.p, (1, 2))
        offsets(self.kernel)

    def init(self, x: Image) -> Plan:
        """The plan that moves nothing."""
        return identity(x, self.kernel)

    def apply(self, x: Image, theta: Plan) -> Image:
        """The mass that arrives at every pixel; the clip only guards against rounding."""
        return jnp.clip(columns(theta), 0, 1)

    def pullback(self, x: Image, theta: Plan, gradient: Image) -> Plan:
        """Of every move, the gradient where it arrives; through the guard of `apply`, full pixels would have none."""
        return windows(gradient, self.kernel)

    def contains(self, x: Image, theta: Plan) -> Bool[Array, ""]:
        """Whether rows are x and columns in [0, 1] up to 2e-6, no mass leaves the image, and <C, |Π|>/Σx ≤ radius.

        Entries may be −1e-6. The cost has a tolerance of 1e-4 · radius + 1e-6.
        """
        return self._holds(x, theta, 1e-4)

    def _holds(self, x: Image, theta: Plan, slack: float) -> Bool[Array, ""]:
        outside = jnp.max(jnp.where(allowed(x.shape, self.kernel), 0, jnp.abs(theta)))
        rows, image = jnp.abs(row_sums(theta) - x), columns(theta)
        within = (jnp.max(rows) <= 2e-6) & (jnp.min(theta) >= -1e-6) & (outside <= 1e-6)
        within &= (jnp.min(image) >= -2e-6) & (jnp.max(image) <= 1 + 2e-6)
        return within & (self._cost(x, theta) <= self._radius(x) * (1 + slack) + 0.01 * slack)

    def _cost(self, x: Image, theta: Plan) -> Scalar:
        """<C, |Π|>/Σx; 0 for a black image, whose plans cost nothing.

        Less than nothing, sent one way, is mass that moves the other way, and no refund.
        """
        mass, moved = jnp.sum(x), jnp.where(theta < 0, -theta, theta)  # with the slope of a cost at 0 too
        return jnp.sum(row_sums(moved, costs(self.kernel, self.p))) / jnp.where(mass > 0, mass, 1)

    def _budget(self, x: Image) -> Scalar:
        return self._radius(x) * jnp.sum(x)

    def _radius(self, x: Image) -> Scalar:
        return jnp.asarray(self.radius).astype(x.dtype)
