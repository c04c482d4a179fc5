"""FMN: gradient steps under a ball whose radius follows the decision boundary, in the l0, l1, l2 and l∞ norm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.attacks.core.ascent import SearchState, finite
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import (
    MinimumNorm,
    check_steps,
    cosine,
    dual_norm,
    farthest,
    margin_gradient,
    order_of,
    shortest,
)
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.balls import unit
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["FMN", "fmn"]

ORDERS = (0, 1, 2, math.inf)


@pytree("set", "step_size", "rate", "last_rate")
class FMN(MinimumNorm):
    """The fast minimum-norm attack; see `fmn`.

    Args:
        set: `L0`, `L1`, `L2` or `Linf`.
        steps: K ≥ 1 (static).
        step_size: α₀; the last step's is a hundredth of it.
        rate: γ₀, by which the radius first shrinks or grows.
        last_rate: γ_K.
    """

    set: PerturbationSet
    steps: int = 100
    step_size: Number = 1.0
    rate: Number = 0.05
    last_rate: Number = 0.001

    _method = "FMN"

    def __post_init__(self) -> None:
        check_steps(self, "step_size", "rate", "last_rate")

    @property
    def asks(self) -> int:
        """The clean image and every iterate."""
        return self.steps + 1

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """At the clean image; the radius is unknown (one group for l0)."""
        first = 1.0 if order_of(self.set, "fmn", ORDERS) == 0 else jnp.inf
        # the working radius, and the smallest norm found, which may be above the set's radius
        memory = (jnp.full((), first, x.dtype), jnp.full((), jnp.inf, x.dtype))
        return self._start(x, goal, logits, jnp.zeros_like(x), memory)

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The gradient of the margin."""
        return margin_gradient(logits[0], state.goal)[None, None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate, sets the radius by it, and steps up the margin within that radius."""
        x, gradient = state.x, finite(gradients[0, 0])
        radius, best = state.memory
        met, size = state.goal.met(logits[0]), self.set.size(x, state.theta)
        best = jnp.where(met, jnp.minimum(best, size), best)
        found = jnp.isfinite(best)
        share = (state.asked + 1).astype(x.dtype) / self.steps
        rate = cosine(self.rate, self.last_rate, state.asked, self.steps, x.dtype)
        margin = finite(self._loss(logits[0], state.goal)).astype(x.dtype)
        most = farthest(self.set, x)
        radius = self._radius_after(radius, best, met, rate, size, margin, gradient)
        radius = jnp.minimum(jnp.where(found, radius, jnp.maximum(radius, self._latest(most, share))), most)
        length = cosine(self.step_size, jnp.asarray(self.step_size) / 100, state.asked, self.steps, x.dtype)
        # a search that has found nothing does not slow down, and ends with steps that cross the box
        length = jnp.where(found, length, jnp.asarray(self.step_size).astype(x.dtype) * x.size ** (share**2 / 2))
        inside: Any = self.set.with_radius(radius)
        theta = inside.project(x, state.theta + length * unit(gradient))
        theta = self._inside(x, theta, state.theta)
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=(radius, best))

    def _radius_after(
        self, radius: Array, best: Array, met: Array, rate: Array, size: Array, margin: Array, gradient: Image
    ) -> Array:
        """The working radius: smaller where the iterate is adversarial, else larger."""
        p = order_of(self.set, "fmn", ORDERS)
        smaller, larger = radius * (1 - rate), radius * (1 + rate)
        if p == 0:
            smaller = jnp.maximum(jnp.minimum(radius - 1, jnp.floor(smaller)), 0)
            return jnp.where(met, jnp.minimum(smaller, best), jnp.maximum(radius + 1, jnp.floor(larger)))
        slope = dual_norm(gradient, p)
        left = jnp.where(slope > 0, jnp.abs(margin) / jnp.where(slope > 0, slope, 1), jnp.inf)
        # where a boundary bends away, its linearised distances shrink with every step and never add up to the whole
        left = jnp.maximum(left, jnp.maximum(jnp.asarray(self.rate).astype(size.dtype) * size, shortest(gradient, p)))
        return jnp.where(met, jnp.minimum(smaller, best), jnp.where(jnp.isfinite(best), larger, size + left))

    def _latest(self, most: Array, share: Array) -> Array:
        """The radius at a share of the schedule where nothing is found: at its end the whole box.

        It is above the method's own only towards the end, in l0, where that grows by a group a step, of few steps.
        """
        if order_of(self.set, "fmn", ORDERS) == 0:
            return jnp.floor(most ** jnp.square(share))
        return most * share**16


def fmn(
    set: PerturbationSet,
    *,
    steps: int = 100,
    step_size: Number = 1.0,
    rate: Number = 0.05,
    last_rate: Number = 0.001,
) -> FMN:
    """FMN, the fast minimum-norm attack, for l0, l1, l2 and l∞; also targeted.

    Step k moves δ by α_k along the unit gradient of the margin and projects it onto the ball of radius ε_k and the
    box. ε_k = (1 − γ_k) ε_{k−1} where δ is adversarial, (1 + γ_k) ε_{k−1} where it is not, and, until something is
    found, the distance ‖δ‖ + |margin|/‖∇‖_q to the linearised boundary; for l0 it changes by at least one. α falls
    from α₀ to α₀/100 and γ from γ₀ to γ_K along half a cosine.

    Args:
        set: `L0`, `L1`, `L2` or `Linf`. Its norm is the attack's, its radius caps what counts as success: take one
            that is large to learn the distances themselves.
        steps: K ≥ 1. The released code has 10, papers 100 to 1000.
        step_size: α₀ in the l2 norm, whatever the attack's norm.
        rate: γ₀ in [0, 1).
        last_rate: γ_K.

    Returns:
        The attack. Cost: steps + 1 forwards and steps backwards.

    Raises:
        ValueError: another set, steps below 1, a negative number.

    Example:
        >>> str(fmn(jr.sets.L1(100.0), steps=200))
        'FMN in L1(100), 200 steps'

    Reference:
        Pintor et al., 2021, arXiv:2102.12827. The released code projects onto the ball and then clips; here the
        projection onto both is exact. It counts channels apart in l0; here a pixel is what the set says it is.
    """
    order_of(set, "fmn", ORDERS)
    return FMN(set, steps, step_size, rate, last_rate)


register("fmn", fmn, on="l1", use="First choice for distances in lp: a hundred gradients, nothing to tune.")
