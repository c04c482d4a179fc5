"""The local Wasserstein ball: the adversary moves mass between neighbouring pixels, on a budget of distance.

Three sets parametrise one ball by transport plans, and differ in how it is searched:

| take | for | projection | besides |
|---|---|---|---|
| `Wasserstein` | attacks: the strongest of the three | the nearest plan, by the dual | `maximise`, for Frank–Wolfe |
| `WassersteinSinkhorn` | figures beside Wong et al.'s | entropic, its blur spends some of the budget | |
| `WassersteinOTT` | penalties, which need a distance with a gradient | OTT-JAX's plan, all moves scaled down alike | \
`size` differentiable off the ball |

The published radii of the first are mostly for p = 1, of the others for p = 2; the numbers do not compare.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import _checks, transport
from jaxrobust.sets._plans import PlanBall
from jaxrobust.sets.base import register
from jaxrobust.transport import dual, linear
from jaxrobust.transport.plans import Plan
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["Wasserstein"]

Scalar = Float[Array, ""]


@pytree("radius", "stride", "sharpness")
class Wasserstein(PlanBall):
    """The local Wasserstein ball: x' = columns(Π) of a plan with rows x, cost <C, Π> ≤ radius · Σx, and x' ≤ 1.

    θ is the transport plan Π (k², H, W, C) itself: where the mass of every pixel goes, within a k × k window of its
    channel and within the image. So mass is conserved, and membership is read off the plan. No pixel receives more
    than it can hold, in any iterate: images are never clipped, which would destroy mass and leave the ball.

    Args:
        radius: ε, the mean distance^p by which a unit of the image's mass moves, ≥ 0: 0.1 moves 10 % of all mass by
            one pixel. Typical: MNIST 0.5, CIFAR-10 0.005, ImageNet 0.001 (p = 1, 5 × 5). A figure means nothing
            without its p, window and limit on full pixels.
        p: 1 for distances in pixels, 2 for their squares (static).
        kernel: side k of the window, odd (static).
        rounds: of the projection, see `transport.project`; the linear maximiser takes four times as many (static).
        stride: how much mass a step of the whole radius adds to the steepest move before it is projected, a full
            pixel's being 1. The published steps, 0.1 (MNIST) and 0.01 (CIFAR-10), are relative step sizes of 0.1/stride
            and 0.01/stride.
        sharpness: of the linear maximiser, see `transport.maximise`.

    Example:
        >>> str(Wasserstein(0.5))
        'Wasserstein(0.5)'

    Reference:
        Wu, Wang and Yu, 2020, arXiv:2008.02883. Their images may exceed 1 until a post-processing, and are clipped
        when they are shown to the network; here every plan respects the limit, so the attacks are weaker at equal
        radius, and their images real.
    """

    radius: Number
    p: int = 1
    kernel: int = 5
    rounds: int = 15
    stride: Number = 3.0
    sharpness: Number = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stride", _checks.number("stride", self.stride))
        object.__setattr__(self, "sharpness", _checks.number("sharpness", self.sharpness))
        _checks.count("rounds", self.rounds, low=0)

    def sample(self, key: Key, x: Image) -> Plan:
        """Part of the way, uniformly chosen, from the identity to a member that random noise likes."""
        noise_key, way_key = jax.random.split(key)
        noise = transport.windows(jax.random.normal(noise_key, x.shape, x.dtype), self.kernel)
        identity = self.init(x)
        far = self.project(x, self.ascend(x, identity, noise, self._radius(x)))
        return identity + jax.random.uniform(way_key, (), x.dtype) * (far - identity)

    def project(self, x: Image, theta: Plan) -> Plan:
        """argmin ‖Π' − Π‖₂ over the set, as far as `rounds` goes; a member in any case."""
        return dual.project(theta, x, self._budget(x), p=self.p, rounds=self.rounds)

    def ascend(self, x: Image, theta: Plan, gradient: Plan, size: Scalar) -> Plan:
        """Π + stride · (size/radius) · g/max|g|, the maximum over pixels that have mass: only these can send any.

        The nearest member of an array moves all of few pixels' mass, however small the radius. So steps are measured
        against what a pixel can hold, and the radius says what part of the longest step is taken.
        """
        radius = self._radius(x)
        length = jnp.asarray(self.stride).astype(x.dtype) * size / jnp.where(radius > 0, radius, 1)
        return theta + length * linear.unit_gradient(gradient, x)

    def maximise(self, x: Image, gradient: Plan) -> Plan:
        """The member of largest <g, Π>, up to the smoothing that `sharpness` sets."""
        budget, rounds = self._budget(x), 4 * self.rounds
        return linear.maximise(gradient, x, budget, p=self.p, sharpness=self.sharpness, rounds=rounds)

    def size(self, x: Image, theta: Plan) -> Scalar:
        """<C, Π>/Σx, at least the local transport distance of the two images."""
        return self._cost(x, theta)

    def distance(self, x: Image, theta: Plan, other: Plan) -> Scalar:
        """The cost of what two plans move differently, <C, |Π − Π'|>/Σx; for p = 1 at least their images' distance."""
        return self._cost(x, theta - other)


register("wasserstein", lambda: Wasserstein(0.1, kernel=3))
