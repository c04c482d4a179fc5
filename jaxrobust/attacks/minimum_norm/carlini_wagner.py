"""The Carlini–Wagner attacks: descent on size plus a hinge on the margin, in a variable that cannot leave the box."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust.attacks.core.ascent import SearchState, adam_step, finite, no_moments
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import Penalised, Rounds, check_steps, choose, order_of
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.sparse import group_sums, spread
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["CarliniWagnerL0", "CarliniWagnerL2", "CarliniWagnerLinf", "carlini_wagner"]

Scalar = Float[Array, ""]


class CarliniWagner(Penalised):
    """The image is (1 + tanh w)/2, and Adam descends in w; subclasses say what, and when a round is over."""

    _method = "Carlini–Wagner"

    constant: Number
    step_size: Number
    ends_early = True
    others: tuple[str, ...] = ()  # numbers of its own that a form has

    def __post_init__(self) -> None:
        check_steps(self, "confidence", "constant", "step_size", *self.others, counts=("steps", "rounds"))

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """At the clean image."""
        w = _variable(x)
        return self._start(x, goal, logits, self._perturbation(x, w), (w, no_moments(x), self._plan(x)))

    @abc.abstractmethod
    def _plan(self, x: Image) -> Any:
        """Where the search over rounds begins."""

    def _perturbation(self, x: Image, w: Image) -> Image:
        return self._inside(x, (1 + jnp.tanh(w)) / 2 - x, jnp.zeros_like(x))

    def _step(self, w: Image, moments: Any, count: Int[Array, ""], gradient: Image) -> tuple[Image, Any]:
        """One step of Adam, from the gradient in the image."""
        slope = (1 - jnp.square(jnp.tanh(w))) / 2
        direction, moments = adam_step(finite(gradient * slope), moments, count)
        return w - jnp.asarray(self.step_size).astype(w.dtype) * direction, moments

    def _slope(self, state: SearchState, logits: Logits, gradient: Image) -> Image:
        """The hinge's gradient, but for its sign: at a tie the hinge is zero, but the criterion need not be met."""
        return jnp.where(self._meets(state.goal, logits), 0, gradient)


@pytree("set", "confidence", "constant", "step_size")
class CarliniWagnerL2(CarliniWagner):
    """‖δ‖₂² + c · max(κ − margin, 0), with c searched by bisection; see `carlini_wagner`.

    Args:
        set: `L2`.
        steps: of a round, ≥ 1 (static).
        rounds: values of c tried, ≥ 1 (static).
        confidence: κ ≥ 0.
        constant: the first c.
        step_size: Adam's.
        abort_early: whether a round ends where progress does (static).
    """

    set: PerturbationSet
    steps: int = 10_000
    rounds: int = 9
    confidence: Number = 0.0
    constant: Number = 1e-3
    step_size: Number = 1e-2
    abort_early: bool = True

    def _plan(self, x: Image) -> Rounds:
        return Rounds.first(self.constant, x.dtype)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate and moves on, at a round's end to the next c."""
        x, (w, moments, plan) = state.x, state.memory
        hinge = self._hinge(state, logits[0])
        objective = jnp.sum(jnp.square(state.theta)) + plan.weight * hinge
        success = self._meets(state.goal, logits[0])
        slope = self._slope(state, logits[0], finite(gradients[0, 0]))
        moved = self._step(w, moments, plan.count, 2 * state.theta - plan.weight * slope)
        plan, over = plan.after(success, objective, steps=self.steps, rounds=self.rounds, abort_early=self.abort_early)
        # where the last round ends is what training may get
        w, moments = choose(over & (plan.round < self.rounds), (_variable(x), no_moments(x)), moved)
        memory = (w, moments, plan)
        return dataclasses.replace(self._record(state, logits), theta=self._perturbation(x, w), memory=memory)

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether all rounds are over."""
        return state.memory[2].round >= self.rounds

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        return state.asked - state.memory[2].round


@pytree("weight", "bound", "allowed", "count", "total", "round", "over")
class Tightening:
    """The outer search of the l∞ and l0 forms: tighten after a success, double c after a failure."""

    weight: Any
    bound: Any  # τ, for l∞
    allowed: Any  # where the image may change, for l0
    count: Any  # points of this round so far
    total: Any  # gradients since Adam began anew
    round: Any
    over: Any


class Tightened(CarliniWagner):
    """Rounds of one c and one restriction, which end with their first success; subclasses restrict."""

    most: float  # the c at which the search is given up
    anew = False  # whether Adam begins anew with every c

    @abc.abstractmethod
    def _terms(self, theta: Image, plan: Tightening, hinge: Scalar) -> tuple[Image, Bool[Array, ""]]:
        """The gradient of what stands for size, and whether this counts as solved, given the criterion is met."""

    @abc.abstractmethod
    def _tightened(self, plan: Tightening, theta: Image, gradient: Image) -> Tightening:
        """The next restriction, from a success and the margin's gradient there."""

    def _plan(self, x: Image) -> Tightening:
        zero = jnp.zeros((), jnp.int32)
        return Tightening(
            weight=jnp.asarray(self.constant).astype(x.dtype),
            bound=jnp.ones((), x.dtype),
            allowed=jnp.ones_like(x, bool),
            count=zero,
            total=zero,
            round=zero,
            over=jnp.zeros((), bool),
        )

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate; after a success tightens the restriction, after a vain round doubles c."""
        x, (w, moments, plan) = state.x, state.memory
        hinge, gradient = self._hinge(state, logits[0]), finite(gradients[0, 0])
        slope, small = self._terms(state.theta, plan, hinge)
        solved = state.goal.met(logits[0]) & small
        slope = slope - plan.weight * self._slope(state, logits[0], gradient)
        moved = self._step(w, moments, plan.total, jnp.where(plan.allowed, slope, 0))
        goes_on = dataclasses.replace(plan, count=plan.count + 1, total=plan.total + 1)
        ended = dataclasses.replace(plan, count=jnp.zeros_like(plan.count), round=plan.round + 1)
        vain = dataclasses.replace(
            ended,
            total=0 * plan.total if self.anew else plan.total + 1,
            weight=2 * plan.weight,
            over=2 * plan.weight >= self.most,
        )
        tighter = self._tightened(dataclasses.replace(ended, total=jnp.zeros_like(plan.total)), state.theta, gradient)
        failed = plan.count >= self.steps
        plan = choose(solved, tighter, choose(failed, vain, goes_on))
        w, moments = choose(solved, w, moved[0]), moved[1]
        moments = choose(solved | (failed & self.anew), no_moments(x), moments)
        theta = self._restricted(self._perturbation(x, w), plan)
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=(w, moments, plan))

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether nothing more can be tightened, c has grown too large, or all rounds are over."""
        plan = state.memory[2]
        return plan.over | (plan.round >= self.rounds)

    def _restricted(self, theta: Image, plan: Tightening) -> Image:
        return theta

    @property
    def gradients(self) -> int:
        """One a point, and none for the last."""
        return self.asks - 1


@pytree("set", "confidence", "constant", "step_size", "shrink")
class CarliniWagnerLinf(Tightened):
    """Σ max(|δ| − τ, 0) + c · max(κ − margin, 0) for ever smaller τ; see `carlini_wagner`.

    Args:
        set: `Linf`.
        steps: of a round at most, ≥ 1 (static).
        rounds: pairs of c and τ tried at most, ≥ 1 (static). τ needs 53 to come from 1 to 1/256, c 21 to be given up.
        confidence: κ ≥ 0.
        constant: the first c.
        step_size: Adam's.
        shrink: what τ is multiplied by after a success.
    """

    set: PerturbationSet
    steps: int = 1000
    rounds: int = 74
    confidence: Number = 0.0
    constant: Number = 1e-5
    step_size: Number = 5e-3
    shrink: Number = 0.9
    most = 20.0
    others = ("shrink",)

    def _terms(self, theta: Image, plan: Tightening, hinge: Scalar) -> tuple[Image, Bool[Array, ""]]:
        excess = jnp.maximum(jnp.abs(theta) - plan.bound, 0)
        solved = jnp.sum(excess) + plan.weight * hinge < 1e-4 * plan.weight
        return jnp.where(excess > 0, jnp.sign(theta), 0), solved

    def _tightened(self, plan: Tightening, theta: Image, gradient: Image) -> Tightening:
        shrink = jnp.asarray(self.shrink).astype(theta.dtype)
        bound = shrink * jnp.minimum(plan.bound, jnp.max(jnp.abs(theta)))
        return dataclasses.replace(plan, bound=bound, over=bound < 1 / 256)


@pytree("set", "confidence", "constant", "step_size", "threshold")
class CarliniWagnerL0(Tightened):
    """‖δ‖₂² + c · max(κ − margin, 0) on ever fewer pixels; see `carlini_wagner`.

    Args:
        set: `L0`, which says whether pixels or coordinates are counted.
        steps: of a round at most, ≥ 1 (static).
        rounds: pairs of c and pixels tried at most, ≥ 1 (static).
        confidence: κ ≥ 0.
        constant: the first c.
        step_size: Adam's.
        threshold: the score above which at most one pixel is frozen at a time.
    """

    set: PerturbationSet
    steps: int = 1000
    rounds: int = 200
    confidence: Number = 0.01
    constant: Number = 1e-3
    step_size: Number = 1e-2
    threshold: Number = 0.01
    most = 2e6
    others = ("threshold",)
    anew = True  # gradients fade where tanh nears the box, and steps by their old size would not come there

    def _terms(self, theta: Image, plan: Tightening, hinge: Scalar) -> tuple[Image, Bool[Array, ""]]:
        return 2 * theta, hinge < 1e-4

    def _tightened(self, plan: Tightening, theta: Image, gradient: Image) -> Tightening:
        block = self.set._block  # type: ignore[attr-defined]
        changed = group_sums(jnp.abs(theta), block) > 0
        score = group_sums(jnp.abs(theta * gradient), block)
        order = jnp.argsort(jnp.where(changed, score, jnp.inf).reshape(-1))
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).reshape(score.shape)
        left = jnp.sum(changed).astype(theta.dtype)
        low = jnp.sum(changed & (score <= jnp.asarray(self.threshold).astype(theta.dtype)))
        frozen = jnp.minimum(jnp.ceil(0.3 * jnp.sqrt(left)).astype(rank.dtype), low.astype(rank.dtype) + 1)
        allowed = spread(changed & (rank >= frozen), theta, block) & plan.allowed
        return dataclasses.replace(plan, allowed=allowed, over=~jnp.any(allowed))

    def _restricted(self, theta: Image, plan: Tightening) -> Image:
        # what is below a grey level's fortieth counts as unchanged: tanh never comes back to the very pixel
        block = self.set._block  # type: ignore[attr-defined]
        moved = spread(group_sums((jnp.abs(theta) > 1e-4).astype(theta.dtype), block) > 0, theta, block)
        return jnp.where(moved & plan.allowed, theta, 0)


def _variable(x: Image) -> Image:
    """w of an image, kept finite at black and white."""
    return jnp.arctanh((2 * x - 1) * 0.999999)


FORMS: dict[int | float, Any] = {0: CarliniWagnerL0, 2: CarliniWagnerL2, math.inf: CarliniWagnerLinf}


def carlini_wagner(
    set: PerturbationSet,
    *,
    steps: int | None = None,
    rounds: int | None = None,
    confidence: Number | None = None,
    constant: Number | None = None,
    step_size: Number | None = None,
) -> CarliniWagner:
    """The Carlini–Wagner attacks for l2, l∞ and l0; also targeted.

    With x' = (1 + tanh w)/2, which cannot leave the box, and the hinge h = max(κ − margin, 0), Adam descends in w.

    - l2: ‖δ‖₂² + c h from the clean image, in rounds; c is the smallest that succeeds, by bisection once one has,
      tenfold until then. A round ends where a tenth of its steps lowers the objective by less than a ten-thousandth.
    - l∞: Σ max(|δ| − τ, 0) + c h. A success makes τ ← 0.9 · min(τ, max |δ|), from where it stands, a vain round
      doubles c; it is over when τ < 1/256 or c ≥ 20.
    - l0: ‖δ‖₂² + c h on the pixels still allowed. A success freezes those of least Σ |δ ∇|, at most 0.3 √n of the n
      that changed, and one alone once their score is above 0.01; a vain round doubles c, up to 2e6.

    Args:
        set: `L2`, `Linf` or `L0`. Its norm is the attack's, its radius caps what counts as success: take one that is
            large to learn the distances themselves.
        steps: of a round, ≥ 1. The authors' are 10,000 for l2 (libraries often take 1000) and 1000 for l∞ and l0.
        rounds: at most, ≥ 1: 9 for l2, 74 for l∞ (enough for every τ and c), 200 for l0.
        confidence: κ ≥ 0, the margin that is asked for, in logits: 0, for l0 0.01.
        constant: the first c: 1e-3, for l∞ 1e-5.
        step_size: Adam's: 0.01, for l∞ 0.005.

    Returns:
        The attack. Cost: at most rounds · (steps + 1) forwards and, for l2, rounds · steps backwards (else one less
        than forwards): 90,009 forwards with the defaults of l2. Early ends of rounds, for each example alone, save
        most of it.

    Raises:
        ValueError: another set, counts below 1, a negative number.

    Example:
        >>> str(carlini_wagner(jr.sets.L2(10.0), steps=1000))
        'Carlini–Wagner in L2(10), 9 rounds of 1000 steps'

    Reference:
        Carlini and Wagner, 2017, arXiv:1608.04644. Their code ends a round early by the sum over a batch; here every
        example's ends by its own objective. For l0, pixels that hardly changed (by 1e-4) are frozen all at once, a
        pixel whose channels change in opposite ways keeps its score (theirs is |Σ δ| · Σ |∇|), and Adam begins anew
        with every c, since it would not come to the box else.
    """
    form = FORMS[order_of(set, "carlini_wagner", tuple(FORMS))]
    given = {
        "steps": steps,
        "rounds": rounds,
        "confidence": confidence,
        "constant": constant,
        "step_size": step_size,
    }
    return form(set, **{name: value for name, value in given.items() if value is not None})


register(
    "cw",
    functools.partial(carlini_wagner, steps=10, rounds=3),
    on="l2",
    use="Thorough l2 distances where time does not matter; the l∞ and l0 forms for comparison with older papers.",
)
register("cw_linf", functools.partial(carlini_wagner, steps=10, rounds=5), on="linf")
register("cw_l0", functools.partial(carlini_wagner, steps=10, rounds=5), on="l0")
