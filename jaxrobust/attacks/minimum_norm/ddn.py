"""DDN: the direction of l2 steps decoupled from their norm, which shrinks inside and grows outside the boundary."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import SearchState, finite
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import MinimumNorm, check_steps, cosine, farthest, order_of
from jaxrobust.losses import followed
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.balls import norm, unit
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["DDN", "ddn"]


@pytree("set", "rate", "first_norm", "step_size")
class DDN(MinimumNorm):
    """Decoupled direction and norm; see `ddn`.

    Args:
        set: `L2`.
        steps: K ≥ 1 (static).
        rate: γ.
        first_norm: ε₀.
        step_size: α₀, in the l2 norm; the last step's is 0.01.
        levels: to how many values in [0, 1] images are rounded, ≥ 2; None for no rounding (static).
    """

    set: PerturbationSet
    steps: int = 100
    rate: Number = 0.05
    first_norm: Number = 1.0
    step_size: Number = 1.0
    levels: int | None = 256

    _method = "DDN"

    def __post_init__(self) -> None:
        check_steps(self, "rate", "first_norm", "step_size")
        if self.levels is not None:
            _checks.count("levels", self.levels, low=2)

    @property
    def asks(self) -> int:
        """The clean image and every iterate."""
        return self.steps + 1

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """At the clean image; the key is for directions where there is no gradient."""
        memory = (key, jnp.asarray(self.first_norm).astype(x.dtype))
        return self._start(x, goal, logits, jnp.zeros_like(x), memory)

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The gradient of cross-entropy, towards the target where there is one."""
        return jax.grad(followed("cross_entropy").value)(logits[0], state.goal)[None, None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate, changes the norm by it, and turns δ along the gradient."""
        x, gradient = state.x, finite(gradients[0, 0])
        key, length = state.memory
        noise = jax.random.normal(jax.random.fold_in(key, state.asked), x.shape, x.dtype)
        direction = unit(jnp.where(norm(gradient) > 0, gradient, noise))
        rate = jnp.asarray(self.rate).astype(x.dtype)
        length = length * jnp.where(state.goal.met(logits[0]), 1 - rate, 1 + rate)
        length = jnp.minimum(length, farthest(self.set, x))
        step = cosine(self.step_size, 0.01, state.asked, self.steps, x.dtype)
        image = x + length * unit(state.theta + step * direction)
        if self.levels is not None:
            image = jnp.round(image * (self.levels - 1)) / (self.levels - 1)
        theta = self._inside(x, image - x, state.theta)
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=(key, length))


def ddn(
    set: PerturbationSet,
    *,
    steps: int = 100,
    rate: Number = 0.05,
    first_norm: Number = 1.0,
    step_size: Number = 1.0,
    levels: int | None = 256,
) -> DDN:
    """DDN, the decoupled direction and norm attack, for l2; also targeted.

    δ ← ε_k (δ + α_k g)/‖δ + α_k g‖₂ with g the unit gradient of cross-entropy, ε_k = (1 − γ) ε_{k−1} where δ was
    adversarial and (1 + γ) ε_{k−1} where not, and α from α₀ to 0.01 along half a cosine. Then x + δ is rounded to
    grey levels and clipped to the box.

    Args:
        set: `L2`. Its radius caps what counts as success: take one that is large to learn the distances themselves.
        steps: K ≥ 1. Published: 100, 300 and 1000.
        rate: γ in [0, 1).
        first_norm: ε₀.
        step_size: α₀.
        levels: grey levels, 256 for images of 8 bits; None does not round, which is right where the clean images are
            not of so many levels, and nearer the boundary.

    Returns:
        The attack. Cost: steps + 1 forwards and steps backwards.

    Raises:
        ValueError: another set, steps below 1, a negative number, levels below 2.

    Example:
        >>> str(ddn(jr.sets.L2(10.0), steps=300))
        'DDN in L2(10), 300 steps'

    Reference:
        Rony et al., 2019, arXiv:1811.09600.
    """
    order_of(set, "ddn", (2,))
    return DDN(set, steps, rate, first_norm, step_size, levels)


register("ddn", ddn, on="l2", use="l2 distances in about a hundred gradients, and training on them.")
