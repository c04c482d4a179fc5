"""σ-zero: gradient descent on a smooth stand-in for the l0 norm, with a threshold that follows success."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.attacks.core.ascent import SearchState, adam_step, finite, no_moments
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import MinimumNorm, check_steps, cosine, margin_gradient, order_of
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["SigmaZero", "sigma_zero"]


@pytree("set", "step_size", "sigma", "threshold", "rate")
class SigmaZero(MinimumNorm):
    """Descent of hinge plus smooth sparsity, thresholded; see `sigma_zero`.

    Args:
        set: `L0`.
        steps: N ≥ 1 (static).
        step_size: η₀, Adam's first; the last is a tenth of it.
        sigma: σ > 0.
        threshold: τ₀ in [0, 1].
        rate: t, by which τ changes, relative to the step size.
    """

    set: PerturbationSet
    steps: int = 1000
    step_size: Number = 1.0
    sigma: Number = 1e-3
    threshold: Number = 0.3
    rate: Number = 0.01

    _method = "σ-zero"

    def __post_init__(self) -> None:
        check_steps(self, "step_size", "sigma", "threshold", "rate")

    @property
    def asks(self) -> int:
        """The clean image and every iterate."""
        return self.steps + 1

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """At the clean image, with Adam's moments and the first threshold."""
        memory = (no_moments(x), jnp.asarray(self.threshold).astype(x.dtype))
        return self._start(x, goal, logits, jnp.zeros_like(x), memory)

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The gradient of the margin."""
        return margin_gradient(logits[0], state.goal)[None, None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate, descends, and sets small entries to zero."""
        x, delta = state.x, state.theta
        moments, threshold = state.memory
        met = state.goal.met(logits[0])
        sigma, rate = (jnp.asarray(value).astype(x.dtype) for value in (self.sigma, self.rate))
        sparsity = 2 * delta * sigma / jnp.square(jnp.square(delta) + sigma) / x.size
        gradient = sparsity - jnp.where(met, 0, finite(gradients[0, 0]))
        gradient = gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-12)
        direction, moments = adam_step(gradient, moments, state.asked)
        last = jnp.asarray(self.step_size) / 10
        length, ahead = (
            cosine(self.step_size, last, step, self.steps, x.dtype) for step in (state.asked, state.asked + 1)
        )
        moved = self._inside(x, delta - length * direction, delta)
        threshold = jnp.clip(threshold + jnp.where(met, rate, -rate) * ahead, 0, 1)
        theta = jnp.where(jnp.abs(moved) < threshold, 0, moved)
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=(moments, threshold))


def sigma_zero(
    set: PerturbationSet,
    *,
    steps: int = 1000,
    step_size: Number = 1.0,
    sigma: Number = 1e-3,
    threshold: Number = 0.3,
    rate: Number = 0.01,
) -> SigmaZero:
    """σ-zero, a minimum-norm attack in l0; also targeted.

    Adam descends max(−margin, 0) + (1/d) Σ δ_i²/(δ_i² + σ) with gradients of largest entry 1, its step size η falling
    to a tenth along half a cosine. After each step δ is clipped to the box and entries below τ are set to zero; τ rises
    by t η where δ met the criterion and falls by it where not, within [0, 1].

    Cost: steps + 1 forwards, steps backwards.

    Args:
        set: `L0`, by pixel or by coordinate. Its radius caps what counts as success: take one that is large to learn
            the distances themselves.
        steps: N ≥ 1; the paper has 100 and 1000.
        step_size: η₀.
        sigma: σ > 0; smaller is closer to l0 and less smooth.
        threshold: τ₀ in [0, 1].
        rate: t.

    Returns:
        The attack.

    Raises:
        ValueError: another set, steps below 1, a negative number.

    Example:
        >>> str(sigma_zero(jr.sets.L0(24), steps=100))
        'σ-zero in L0(24), 100 steps'

    Reference:
        Cinà et al., 2025, arXiv:2402.01879. The last iterate is looked at too, and what is kept is smallest by the
        set's own count, where the released code counts coordinates.
    """
    order_of(set, "sigma_zero", (0,))
    return SigmaZero(set, steps, step_size, sigma, threshold, rate)


register("sigma_zero", sigma_zero, on="l0", use="First choice for l0 distances.")
