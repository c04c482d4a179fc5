"""EAD: the elastic-net attack, whose shrinkage gives sparse perturbations of small l1 norm."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import SearchState, finite
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import Penalised, Rounds, check_steps, choose, margin_gradient, order_of
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["EAD", "ead"]

Scalar = Float[Array, ""]


@pytree("set", "shrinkage", "confidence", "constant", "step_size")
class EAD(Penalised):
    """Accelerated proximal descent of c · max(κ − margin, 0) + ‖δ‖₂² + β ‖δ‖₁; see `ead`.

    Args:
        set: `L1`.
        steps: of a round, ≥ 1 (static).
        rounds: values of c tried, ≥ 1 (static).
        decision: which of the successes is kept: that of least ‖δ‖₁ ("l1") or of least β ‖δ‖₁ + ‖δ‖₂² ("en") (static).
        shrinkage: β.
        confidence: κ ≥ 0.
        constant: the first c.
        step_size: of the first step of a round.
        abort_early: whether a round ends where progress does (static).
    """

    set: PerturbationSet
    steps: int = 10_000
    rounds: int = 9
    decision: Literal["en", "l1"] = "en"
    shrinkage: Number = 1e-3
    confidence: Number = 0.0
    constant: Number = 1e-3
    step_size: Number = 1e-2
    abort_early: bool = True
    ends_early = True

    _method = "EAD"

    def __post_init__(self) -> None:
        numbers = ("shrinkage", "confidence", "constant", "step_size")
        check_steps(self, *numbers, counts=("steps", "rounds"))
        _checks.choice("decision", self.decision, ("en", "l1"))

    @property
    def width(self) -> int:
        """The iterate, and the extrapolated point at which the gradient is taken."""
        return 2

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """At the clean image."""
        memory = (jnp.zeros_like(x), Rounds.first(self.constant, x.dtype), jnp.zeros_like(x))
        return self._start(x, goal, logits, jnp.zeros_like(x), memory)

    def ask(self, state: SearchState) -> Any:
        """The iterate and the extrapolated point."""
        return jnp.stack([self.set.apply(state.x, delta) for delta in (state.theta, state.memory[0])])

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The gradient of the margin at the extrapolated point."""
        gradient = margin_gradient(logits[1], state.goal)
        return jnp.stack([jnp.zeros_like(gradient), gradient])[:, None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books both points and moves on, at a round's end to the next c."""
        x, delta, (ahead, plan, _) = state.x, state.theta, state.memory
        beta, rate = (jnp.asarray(value).astype(x.dtype) for value in (self.shrinkage, self.step_size))
        objective = plan.weight * self._hinge(state, logits[0]) + self._elastic(delta)
        # at a tie the hinge is zero, but the criterion need not be met
        met = self._meets(state.goal, logits[1])
        slope = 2 * ahead - plan.weight * jnp.where(met, 0, finite(gradients[1, 0]))
        elapsed = plan.count.astype(x.dtype)
        target = ahead - rate * jnp.sqrt(jnp.maximum(1 - elapsed / self.steps, 0)) * slope
        shrunk = self._inside(x, jnp.sign(target) * jnp.maximum(jnp.abs(target) - beta, 0), delta)
        extrapolated = self._inside(x, shrunk + elapsed / (elapsed + 3) * (shrunk - delta), delta)
        success = self._meets(state.goal, logits[0])
        plan, over = plan.after(success, objective, steps=self.steps, rounds=self.rounds, abort_early=self.abort_early)
        # where the last round ends is what training may get
        again = over & (plan.round < self.rounds)
        theta, ahead = choose(again, (jnp.zeros_like(x), jnp.zeros_like(x)), (shrunk, extrapolated))
        new = self._record(state, logits, jnp.stack([delta, state.memory[0]]))
        return dataclasses.replace(new, theta=theta, memory=(ahead, plan, finite(target)))

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether all rounds are over."""
        return state.memory[1].round >= self.rounds

    def _iterate(self, state: SearchState) -> Image:
        """The iterate; where no entry of it has passed the threshold, a step of the radius along what was cut off."""
        step = self.set.ascend(state.x, jnp.zeros_like(state.theta), state.memory[2], self._radius(state.x))
        return jnp.where(jnp.any(state.theta != 0), state.theta, step)

    def _distance(self, theta: Image, size: Scalar) -> Scalar:
        return size if self.decision == "l1" else self._elastic(theta)

    def _elastic(self, delta: Image) -> Scalar:
        beta = jnp.asarray(self.shrinkage).astype(delta.dtype)
        return jnp.sum(jnp.square(delta)) + beta * jnp.sum(jnp.abs(delta))

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        return state.asked - state.memory[1].round


def ead(
    set: PerturbationSet,
    *,
    steps: int = 10_000,
    rounds: int = 9,
    decision: Literal["en", "l1"] = "en",
    shrinkage: Number = 1e-3,
    confidence: Number = 0.0,
    constant: Number = 1e-3,
    step_size: Number = 1e-2,
) -> EAD:
    """EAD, the elastic-net attack, for l1; also targeted.

    Minimises c · max(κ − margin, 0) + ‖δ‖₂² + β ‖δ‖₁ by accelerated proximal descent: a gradient step of
    α √(1 − k/T) on the first two terms from the extrapolated point, entries within β of the clean image's set back to
    them and all others moved by β towards them, then an extrapolation by k/(k + 3). c is searched in rounds as in
    `carlini_wagner` for l2.

    Args:
        set: `L1`. Its radius caps what counts as success: take one that is large to learn the distances themselves.
        steps: T, of a round, ≥ 1. The authors' is 10,000; libraries often take 1000.
        rounds: values of c tried, ≥ 1.
        decision: which success is kept: the one of least elastic-net distance ("en") or of least l1 norm ("l1").
        shrinkage: β.
        confidence: κ ≥ 0, the margin that is asked for, in logits.
        constant: the first c.
        step_size: α.

    Returns:
        The attack. Cost: at most 2 · rounds · (steps + 1) forwards and rounds · steps backwards.

    Raises:
        ValueError: another set, counts below 1, a negative number, or an unknown decision.

    Example:
        >>> str(ead(jr.sets.L1(100.0), steps=1000))
        'EAD in L1(100), 9 rounds of 1000 steps'

    Reference:
        Chen et al., 2018, arXiv:1709.04114. As in their code the threshold is β itself, not β times the step. The
        extrapolated point is clipped to the box, and booked as well where it succeeds.
    """
    order_of(set, "ead", (1,))
    return EAD(set, steps, rounds, decision, shrinkage, confidence, constant, step_size)


register(
    "ead",
    functools.partial(ead, steps=10, rounds=3),
    on="l1",
    use="Thorough l1 distances where time does not matter; else `fmn`.",
)
