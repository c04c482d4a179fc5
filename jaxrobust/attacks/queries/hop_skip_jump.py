"""HopSkipJump: labels alone give the boundary's normal, by which the search jumps, and comes back by bisection."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import SearchState
from jaxrobust.attacks.core.base import Points, check_set, register
from jaxrobust.attacks.core.minimum import choose, switch
from jaxrobust.attacks.queries.boundary import OVER, STEPS, TRIES, Decision
from jaxrobust.sets import L2, Linf, PerturbationSet
from jaxrobust.sets.balls import unit
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["HopSkipJump", "hop_skip_jump"]

Scalar = Float[Array, ""]

# after a start is found: blend it with the image, bisect to the boundary, estimate its normal, jump
BLEND, BISECT, ESTIMATE, JUMP = range(1, 5)
BLENDINGS = 10  # halvings of the blend, to a precision below 1e-3
BISECTIONS = 40  # at most, of one search for the boundary; the floating-point precision ends it earlier
HALVINGS = 25  # of one jump's length, after which it is given up
MOST_SAMPLES = 10_000  # of one estimate


@pytree(
    "key",
    "phase",
    "tries",
    "iteration",
    "spent",
    "far",
    "near",
    "low",
    "high",
    "reach",
    "drawn",
    "signed",
    "total",
    "met",
)
class Hop:
    """Where the search is.

    `far` is the adversarial end of a bisection, `near` the point at the boundary; `reach` is the size of `far` before a
    bisection, then the length of the jump; `signed` and `total` are Σ ±u and Σ u over the samples, `met` how many of
    them were adversarial; `signed` then holds the direction of the jump.
    """

    key: Any
    phase: Any
    tries: Any
    iteration: Any
    spent: Any
    far: Any
    near: Any
    low: Any
    high: Any
    reach: Any
    drawn: Any
    signed: Any
    total: Any
    met: Any


@pytree("set", "starts", "gamma")
class HopSkipJump(Decision):
    """Jumps along the estimated normal of the decision boundary; see `hop_skip_jump`.

    Args:
        set: an `L2` or `Linf` ball; its radius says what counts as success.
        iterations: jumps, ≥ 1 (static).
        budget: queries of a run, ≥ 1 (static).
        starts: (M, H, W, C) images to start from, or None.
        chunk: samples of an estimate asked at once, ≥ 1 (static).
        samples: the first estimate's samples, ≥ 1 (static).
        gamma: γ of the bisection's precision.
        restarts: independent runs, ≥ 1 (static).
    """

    set: PerturbationSet
    iterations: int = 40
    budget: int = 25_000
    starts: Any = None
    chunk: int = 10
    samples: int = 100
    gamma: Number = 1.0
    restarts: int = 1
    kinds = (L2, Linf)

    _method = "HopSkipJump"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "chunk", "samples"):
            _checks.count(name, getattr(self, name))
        object.__setattr__(self, "gamma", _checks.number("gamma", self.gamma))

    @property
    def width(self) -> int:
        """Points asked at once: samples of an estimate, or one point and others that are not looked at."""
        return min(self.chunk, self.budget)

    @property
    def asks(self) -> int:
        """As many as the budget or the iterations allow."""
        estimates = int(np.ceil(self._schedule / self.width).sum())
        given = 0 if self.starts is None else self.starts.shape[0]
        searches = given + TRIES + BLENDINGS + BISECTIONS + self.iterations * (HALVINGS + BISECTIONS)
        return min(self.budget, searches + estimates)

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """Before the first start is tried."""
        zero, none, nowhere = jnp.zeros((), jnp.int32), jnp.zeros((), x.dtype), jnp.zeros_like(x)
        images = dict.fromkeys(("far", "near", "signed", "total"), nowhere)
        numbers = dict.fromkeys(("low", "high", "reach", "met"), none)
        counts = dict.fromkeys(("phase", "tries", "spent", "drawn"), zero)
        return self._start(x, goal, logits, nowhere, Hop(key, iteration=zero + 1, **images, **numbers, **counts))

    def ask(self, state: SearchState) -> Points:
        """Samples around the boundary point, or the one point of the other phases, repeated."""
        points, hop = self.set.apply(state.x, self._single(state))[None], state.memory
        samples = state.x[None] + hop.near[None] + self._spread(state) * self._samples(state)
        return jnp.where(hop.phase == ESTIMATE, jnp.clip(samples, 0, 1), points)

    def meant(self, state: SearchState) -> Bool[Array, " queries"]:
        """The samples that are left of the estimate and the budget, or one point."""
        hop = state.memory
        left = jnp.where(hop.phase == ESTIMATE, self._wanted(hop) - hop.drawn, 1)
        return jnp.arange(self.width, dtype=jnp.int32) < jnp.minimum(left, self.budget - hop.spent)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books a single point if it is the closest within the radius, and moves on."""
        hop, meant = state.memory, self.meant(state)
        met = jax.vmap(state.goal.met)(logits) & meant
        single = self._single(state)
        estimating = hop.phase == ESTIMATE
        booked = choose(estimating, state, self._record(state, logits[:1], single[None]))
        spent = hop.spent + jnp.sum(meant, dtype=jnp.int32)
        moves = (self._searched, self._blended, self._bisected, self._estimated, self._jumped)
        new = switch(hop.phase, *(move(state, met, meant) for move in moves))
        return dataclasses.replace(
            booked,
            asked=state.asked + 1,
            memory=dataclasses.replace(new, spent=spent),
            non_finite=state.non_finite | jnp.any(meant & ~jnp.all(jnp.isfinite(logits), 1)),
        )

    def _iterate(self, state: SearchState) -> Image:
        return self._single(state)

    def _single(self, state: SearchState) -> Image:
        """The perturbation asked in the phases that ask one."""
        x, hop = state.x, state.memory
        middle = (hop.low + hop.high) / 2
        points = (
            self._candidate(hop.key, x, hop.tries),
            middle * hop.far,
            self._shrunk(hop.far, middle),
            hop.near,
            jnp.clip(hop.near + hop.reach * hop.signed, -x, 1 - x),
        )
        return switch(hop.phase, *points)

    def _shrunk(self, theta: Image, to: Scalar) -> Image:
        """A perturbation brought towards the image: to a share of it, for l∞ to a cube."""
        return jnp.clip(theta, -to, to) if isinstance(self.set, Linf) else to * theta

    def _precision(self, x: Image, hop: Hop) -> Scalar:
        """The bisection's, of the dtype at the least."""
        gamma = jnp.asarray(self.gamma).astype(x.dtype)
        if isinstance(self.set, Linf):
            wanted = gamma / x.size**2 * jnp.minimum(hop.reach, 1)
        else:
            wanted = gamma / x.size**1.5
        return jnp.maximum(wanted, 2 * jnp.finfo(x.dtype).eps * hop.high)

    def _spread(self, state: SearchState) -> Scalar:
        """How far samples are from the boundary point."""
        x, hop = state.x, state.memory
        later = jnp.asarray(self.gamma).astype(x.dtype) * hop.reach / x.size
        # distances below the precision would give samples that are no others than the point
        later = jnp.maximum(later, 4 * jnp.finfo(x.dtype).eps * math.sqrt(x.size))
        return jnp.where(hop.iteration == 1, jnp.asarray(0.1, x.dtype), later)

    def _samples(self, state: SearchState) -> Float[Array, "queries height width channels"]:
        x, hop = state.x, state.memory
        key = jax.random.fold_in(jax.random.fold_in(hop.key, STEPS), hop.iteration)

        def draw(place: Array) -> Image:
            drawn = jax.random.fold_in(key, place)
            if isinstance(self.set, Linf):
                return unit(jax.random.uniform(drawn, x.shape, x.dtype, -1, 1))
            return unit(jax.random.normal(drawn, x.shape, x.dtype))

        return jax.vmap(draw)(hop.drawn + jnp.arange(self.width, dtype=jnp.int32))

    def _wanted(self, hop: Hop) -> Int[Array, ""]:
        """How many samples this iteration's estimate has."""
        return jnp.asarray(self._schedule)[hop.iteration - 1]

    @property
    def _schedule(self) -> np.ndarray:
        """The samples of each iteration."""
        grown = self.samples * np.sqrt(np.arange(1, self.iterations + 1))
        return np.minimum(grown, MOST_SAMPLES).astype(np.int32)

    def _searched(self, state: SearchState, met: Array, meant: Array) -> Hop:
        x, hop, found = state.x, state.memory, met[0]
        tries = hop.tries + 1
        return dataclasses.replace(
            hop,
            phase=self._phase_after(x, found, tries, BLEND),
            tries=jnp.where(found, 0, tries),
            far=self._single(state),
            low=jnp.zeros_like(hop.low),
            high=jnp.ones_like(hop.high),
        )

    def _blended(self, state: SearchState, met: Array, meant: Array) -> Hop:
        hop = _halved(state.memory, met[0])
        whole = self._to_bisect(state.x, hop, hop.high * hop.far)
        return choose(hop.tries >= BLENDINGS, whole, hop)

    def _bisected(self, state: SearchState, met: Array, meant: Array) -> Hop:
        hop = _halved(state.memory, met[0])
        over = (hop.high - hop.low <= self._precision(state.x, hop)) | (hop.tries >= BISECTIONS)
        return choose(over, self._to_estimate(hop, self._shrunk(hop.far, hop.high)), hop)

    def _estimated(self, state: SearchState, met: Array, meant: Array) -> Hop:
        x, hop = state.x, state.memory
        spread = self._spread(state)
        place = x + hop.near
        # what the box has left of a sample
        samples = (jnp.clip(place[None] + spread * self._samples(state), 0, 1) - place[None]) / spread
        weights = meant.astype(x.dtype)
        signs = jnp.where(met, 1, -1).astype(x.dtype) * weights
        hop = dataclasses.replace(
            hop,
            drawn=hop.drawn + jnp.sum(meant, dtype=jnp.int32),
            signed=hop.signed + jnp.tensordot(signs, samples, 1, precision=lax.Precision.HIGHEST),
            total=hop.total + jnp.tensordot(weights, samples, 1, precision=lax.Precision.HIGHEST),
            met=hop.met + jnp.sum(met.astype(x.dtype)),
        )
        count = jnp.maximum(hop.drawn, 1).astype(x.dtype)
        mean = 2 * hop.met / count - 1
        # without both outcomes there is no contrast: towards the samples if all are adversarial, else away from them
        direction = jnp.where(jnp.abs(mean) == 1, mean * hop.total, hop.signed - mean * hop.total)
        direction = jnp.sign(direction) if isinstance(self.set, Linf) else unit(direction)
        reach = self.set.size(x, hop.near) / jnp.sqrt(hop.iteration.astype(x.dtype))
        ready = dataclasses.replace(
            hop, phase=jnp.asarray(JUMP, jnp.int32), tries=jnp.zeros_like(hop.tries), signed=direction, reach=reach
        )
        return choose(hop.drawn >= self._wanted(hop), ready, hop)

    def _jumped(self, state: SearchState, met: Array, meant: Array) -> Hop:
        x, hop = state.x, state.memory
        tries, iteration = hop.tries + 1, hop.iteration + 1
        shorter = dataclasses.replace(hop, tries=tries, reach=hop.reach / 2)
        after = dataclasses.replace(hop, iteration=iteration)
        landed = self._to_bisect(x, after, self._single(state))
        stayed = self._to_estimate(dataclasses.replace(after, reach=self.set.size(x, hop.near)), hop.near)
        return choose(met[0], landed, choose(tries >= HALVINGS, stayed, shorter))

    def _to_bisect(self, x: Image, hop: Hop, far: Image) -> Hop:
        """At the beginning of a bisection from an adversarial point."""
        size = self.set.size(x, far)
        return dataclasses.replace(
            hop,
            phase=jnp.asarray(BISECT, jnp.int32),
            tries=jnp.zeros_like(hop.tries),
            far=far,
            low=jnp.zeros_like(hop.low),
            high=size if isinstance(self.set, Linf) else jnp.ones_like(hop.high),
            reach=size,
        )

    def _to_estimate(self, hop: Hop, near: Image) -> Hop:
        """At the beginning of an estimate, or at the end."""
        return dataclasses.replace(
            hop,
            phase=jnp.where(hop.iteration > self.iterations, OVER, ESTIMATE).astype(jnp.int32),
            near=near,
            drawn=jnp.zeros_like(hop.drawn),
            signed=jnp.zeros_like(near),
            total=jnp.zeros_like(near),
            met=jnp.zeros_like(hop.met),
        )

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        return state.memory.spent

    @property
    def _run(self) -> str:
        return f"{self.iterations} iterations, at most {super()._run}"


def _halved(hop: Hop, met: Array) -> Hop:
    """A bisection after its middle was asked: what is adversarial is the new high end."""
    middle = (hop.low + hop.high) / 2
    low, high = jnp.where(met, hop.low, middle), jnp.where(met, middle, hop.high)
    return dataclasses.replace(hop, tries=hop.tries + 1, low=low, high=high)


def hop_skip_jump(
    set: PerturbationSet,
    *,
    iterations: int = 40,
    queries: int = 25_000,
    starts: Any = None,
    chunk: int = 10,
    samples: int = 100,
    gamma: Number = 1.0,
    restarts: int = 1,
) -> HopSkipJump:
    """HopSkipJump: the smallest perturbation by labels alone, along estimated normals of the decision boundary.

    From an adversarial start, blended with the image, a bisection leads to the boundary. Iteration t estimates the
    normal there from the labels of B_t = min(⌊100 √t⌋, 10,000) points at a small distance δ_t, jumps along it (for
    `Linf` along its sign) by distance/√t, halved until the point is adversarial, and bisects again. The bisection's
    precision is γ/d^{3/2} (`Linf`: γ/d² · min(distance, 1)), and δ_t is γ/d of the distance before it (0.1 at first).

    Cost: at most min(`queries`, 1000 + M + 50 + Σ_t (B_t + 65)) · `restarts` forwards, no backwards; about 19,000 by
    default.

    Args:
        set: an `L2` or `Linf` ball. What is found is the smallest perturbation; it is a success if it lies within the
            radius.
        iterations: jumps, ≥ 1.
        queries: queries of a run, ≥ 1, which may end before the iterations do.
        starts: (M, H, W, C) images in [0, 1] to try first, such as one of each class; needed for most targets, which
            noise never meets. Then, and by default, up to 1000 are drawn: noise, plain, blended with the image, in
            black and white and in tiles, single colours and the negative. An example for which none is adversarial
            has `Code.NO_START`.
        chunk: samples of an estimate asked at once. Other queries come one by one, and the compiled forward pass is
            of `chunk` points all the same; only the points meant are counted, or sent to a host model.
        samples: the first estimate's number of samples, B_1 ≥ 1.
        gamma: γ ≥ 0.
        restarts: independent runs.

    Returns:
        The attack, of which `size` is the distance found and `loss` its negative, −∞ without a start.

    Raises:
        ValueError: another set, starts of the wrong shape, or numbers out of range.

    Example:
        >>> str(hop_skip_jump(jr.sets.L2(1.0), iterations=10, queries=2000))
        'HopSkipJump in L2(1), 10 iterations, at most 2000 queries'

    Reference:
        Chen et al., 2020, arXiv:1904.02144. The released code halves a jump forever where the estimate is zero, and a
        bisection below the floating-point precision; here both end.
    """
    check_set(set)
    return HopSkipJump(set, iterations, queries, starts, chunk, samples, gamma, restarts)


register(
    "hop_skip_jump",
    functools.partial(hop_skip_jump, queries=60, chunk=1),
    on="l2",
    use="First choice when only labels are known.",
)
