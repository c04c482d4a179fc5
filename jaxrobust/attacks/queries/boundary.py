"""Attacks that see labels only: what they share, and the Boundary attack, a random walk along the boundary."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import QueryAttack, SearchState
from jaxrobust.attacks.core.base import Best, check_field, check_set, register
from jaxrobust.attacks.core.minimum import MinimumNorm, choose, switch
from jaxrobust.sets import L2, PerturbationSet
from jaxrobust.sets.balls import norm, unit
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["Boundary", "Decision", "boundary"]

Scalar = Float[Array, ""]

# the phases that all of them have, and those of the Boundary attack
SEARCH, OVER = 0, 9
LINE, WALK = 1, 2
BLENDS = 50  # points on the line from the image to the first adversarial one
# outcomes that are looked at together: of the spherical step, and of the whole one
SPHERICAL_TRIALS, STEP_TRIALS = 100, 30
TRIES = 1000  # starts that are drawn, before the search for one is given up
NOISES = 10  # of them plain noise, before other kinds take their turns
KINDS = 6  # of starts
CHECK_EVERY = 10  # steps between two looks at the spherical step
STEPS = 2**31 - 1  # folded into the key, it tells the steps' randomness from that of the starts
CONVERGED = 1e-7  # relative step towards the image at which the walk ends


class Decision(QueryAttack, MinimumNorm):
    """A search for a small perturbation by labels alone, from an adversarial start; every query counts.

    Starts are the images given, in their order, then those of `_drawn`, at most `TRIES`; a start is any point that
    meets the criterion, however far away.
    """

    budget: int
    starts: Any
    start = "random"
    kinds: tuple[type, ...]  # the balls whose norm the attack has a form for
    last = MinimumNorm.last  # not the best within the radius: training wants a point even where that is the clean image
    # the walk may converge, or find no start, before its budget is spent
    ends_early = True
    needs_start = True
    knowledge = "decisions"

    def __post_init__(self) -> None:
        check_field(self.set)
        if isinstance(self.set, PerturbationSet) and not isinstance(self.set, self.kinds):
            names = " or ".join(kind.__name__ for kind in self.kinds)
            raise ValueError(f"set must be {names} for {self._method}; got {self.set}")
        _checks.count("queries", self.budget)
        _checks.count("restarts", self.restarts)
        if hasattr(self.starts, "shape") and len(self.starts.shape) != 4:
            raise ValueError(f"starts must have shape (M, H, W, C); got {tuple(self.starts.shape)}")

    @property
    def asks(self) -> int:
        """At least one query an ask."""
        return self.budget

    def done(self, state: Any) -> Bool[Array, ""]:
        """Whether the budget is spent, no start was found, or the search has come to its end."""
        return (self._forwards(state) >= self.budget) | (state.memory.phase == OVER)

    def best(self, state: Any) -> Best:
        """The smallest within the radius; without one, the loss still tells how far the smallest of all is."""
        best = super().best(state)
        loss = jnp.where(best.success, best.loss, -state.distance)
        return dataclasses.replace(best, loss=loss, rank=loss)

    def _phase_after(self, x: Image, met: Bool[Array, ""], tries: Int[Array, ""], first: int) -> Int[Array, ""]:
        """The phase after so many starts: the first of those that follow, unless the last was in vain."""
        lost = tries >= TRIES + self._known(x)
        return jnp.where(met, first, jnp.where(lost, OVER, SEARCH)).astype(jnp.int32)

    def _known(self, x: Image) -> int:
        """How many starts are given, whose shape is the image's."""
        if self.starts is None:
            return 0
        if self.starts.shape[1:] != x.shape:
            raise ValueError(f"starts must be of the images' shape {x.shape}; got {tuple(self.starts.shape[1:])}")
        return self.starts.shape[0]

    def _candidate(self, key: Key, x: Image, attempt: Int[Array, ""]) -> Image:
        """The perturbation that leads to start number `attempt`."""
        count = self._known(x)
        image = _drawn(jax.random.fold_in(key, attempt), x, attempt - count)
        if count:
            given = jnp.clip(jnp.asarray(self.starts).astype(x.dtype), 0, 1)
            image = jnp.where(attempt < count, given[jnp.minimum(attempt, count - 1)], image)
        return image - x

    @property
    def _run(self) -> str:
        return f"{self.budget} queries" + ("" if self.restarts == 1 else f", {self.restarts} restarts")


def _drawn(key: Key, x: Image, number: Int[Array, ""]) -> Image:
    """Start number so many: noise at first, then, in turn, images of six kinds.

    Noise, which all looks like one class to many models; the image blended with noise; noise in black and white; noise
    of ever larger tiles; one colour; and the negative, first plain and then blended with noise.
    """
    # one draw serves all kinds
    noise = jax.random.uniform(key, x.shape, x.dtype)
    turn, around = number % KINDS, jnp.maximum(number - NOISES, 0) // KINDS
    share = (around % 4).astype(x.dtype) / 4
    tile = jnp.left_shift(2, around % 4)
    rows, columns = (jnp.arange(length, dtype=jnp.int32) // tile * tile for length in x.shape[:2])
    kinds = (
        noise,
        x + (share + 0.25) * (noise - x),
        jnp.round(noise),
        noise[rows][:, columns],
        jnp.broadcast_to(noise[:1, :1], x.shape),
        (1 - share) * (1 - x) + share * noise,
    )
    return jax.lax.select_n(jnp.where(number < NOISES, 0, turn), *kinds)


@pytree("key", "phase", "tries", "step", "place", "spherical", "towards", "sphere_met", "on_sphere", "sphere", "steps")
class Walk:
    """Where the walk is: its phase, tries in that, the adversarial place δ, both step sizes and their records."""

    key: Any
    phase: Any
    tries: Any
    step: Any
    place: Any
    spherical: Any
    towards: Any
    sphere_met: Any  # the spherical step's outcome, known before the whole step's
    on_sphere: Any  # whether that outcome is asked next
    sphere: Any
    steps: Any


@pytree("outcomes", "count")
class Record:
    """The last outcomes of a kind of trial, in a ring, and how many there were since it was cleared."""

    outcomes: Any
    count: Any

    @staticmethod
    def empty(length: int) -> Record:
        """Without any."""
        return Record(jnp.zeros(length, bool), jnp.zeros((), jnp.int32))

    def judged(self, outcome: Array, low: float, high: float, dtype: Any) -> tuple[Record, Array, Array]:
        """With another outcome; a full record of a share > high or < low says so, and is cleared."""
        length = self.outcomes.shape[0]
        outcomes, count = self.outcomes.at[self.count % length].set(outcome), self.count + 1
        share = jnp.mean(outcomes.astype(dtype))
        full = count >= length
        often, seldom = full & (share > high), full & (share < low)
        return Record(outcomes, jnp.where(often | seldom, 0, count)), often, seldom


@pytree("set", "starts", "spherical_step", "source_step", "adaptation")
class Boundary(Decision):
    """A random walk along the decision boundary towards the image; see `boundary`.

    Args:
        set: an `L2` ball; its radius says what counts as success.
        budget: queries of a run, ≥ 1 (static).
        starts: (M, H, W, C) images to start from, or None.
        spherical_step: the first step along the sphere, relative to the distance.
        source_step: the first step towards the image, relative to the distance.
        adaptation: the factor by which both are changed.
        restarts: independent runs, ≥ 1 (static).
    """

    set: PerturbationSet
    budget: int = 25_000
    starts: Any = None
    spherical_step: Number = 0.01
    source_step: Number = 0.01
    adaptation: Number = 1.5
    restarts: int = 1
    kinds = (L2,)

    _method = "Boundary attack"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("spherical_step", 0.0), ("source_step", 0.0), ("adaptation", 1.0)):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name), low=low))

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """Before the first start is tried."""
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        spherical, towards = (jnp.asarray(s).astype(x.dtype) for s in (self.spherical_step, self.source_step))
        records = Record.empty(SPHERICAL_TRIALS), Record.empty(STEP_TRIALS)
        walk = Walk(key, zero, zero, zero + 1, self.set.init(x), spherical, towards, no, no, *records)
        return self._start(x, goal, logits, self._candidate(key, x, zero), walk)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the point if it is the closest within the radius, moves there if it is adversarial and closer."""
        walk, met = state.memory, state.goal.met(logits[0])
        moves = (self._searched, self._on_line, self._walked)
        new = switch(walk.phase, *(move(state, walk, met) for move in moves))
        return dataclasses.replace(self._record(state, logits), theta=self._next(state.x, new), memory=new)

    def _next(self, x: Image, walk: Walk) -> Image:
        """The perturbation to ask."""
        start = self._candidate(walk.key, x, walk.tries)
        blend = walk.place * ((walk.tries + 1).astype(x.dtype) / BLENDS)
        sphere, proposal = self._proposals(walk, x)
        ahead = jnp.where(walk.on_sphere, sphere, proposal)
        return jnp.where(walk.phase == SEARCH, start, jnp.where(walk.phase == LINE, blend, ahead))

    def _proposals(self, walk: Walk, x: Image) -> tuple[Image, Image]:
        """A random step on the sphere around the image, and from there one towards the image."""
        distance, towards = norm(walk.place), unit(walk.place)
        noise = jax.random.normal(jax.random.fold_in(jax.random.fold_in(walk.key, STEPS), walk.step), x.shape, x.dtype)
        tangent = unit(noise - towards * jnp.sum(towards * noise))
        turned = walk.place + tangent * (distance * walk.spherical)
        sphere = jnp.clip(turned / jnp.sqrt(1 + jnp.square(walk.spherical)), -x, 1 - x)
        reached = norm(sphere)
        # how far the clip has left the sphere is made up for
        length = jnp.maximum(walk.towards * distance + reached - distance, 0)
        return sphere, sphere * (1 - length / jnp.where(reached > 0, reached, 1))

    def _searched(self, state: SearchState, walk: Walk, met: Array) -> Walk:
        return dataclasses.replace(
            walk,
            phase=self._phase_after(state.x, met, walk.tries + 1, LINE),
            tries=jnp.where(met, 0, walk.tries + 1),
            place=jnp.where(met, state.theta, walk.place),
        )

    def _on_line(self, state: SearchState, walk: Walk, met: Array) -> Walk:
        tries = walk.tries + 1
        # the last of the blends is the start itself, which is known to be adversarial
        over = met | (tries >= BLENDS - 1)
        place = jnp.where(met, state.theta, walk.place)
        return dataclasses.replace(walk, phase=jnp.where(over, WALK, LINE).astype(jnp.int32), tries=tries, place=place)

    def _walked(self, state: SearchState, walk: Walk, met: Array) -> Walk:
        dtype, factor = state.x.dtype, jnp.asarray(self.adaptation).astype(state.x.dtype)
        checked = walk.step % CHECK_EVERY == 0
        sphere, more, less = walk.sphere.judged(walk.sphere_met, 0.2, 0.5, dtype)
        steps, longer, shorter = walk.steps.judged(met, 0.1, 0.25, dtype)

        def adapted(size: Array, up: Array, down: Array) -> Array:
            return jnp.where(checked & up, size * factor, jnp.where(checked & down, size / factor, size))

        spherical = adapted(walk.spherical, more, less)
        towards = adapted(adapted(walk.towards, more, less), longer, shorter)
        closer = met & (norm(state.theta) < norm(walk.place))
        step = walk.step + 1
        whole = dataclasses.replace(
            walk,
            phase=jnp.where(towards < CONVERGED, OVER, WALK).astype(jnp.int32),
            step=step,
            place=jnp.where(closer, state.theta, walk.place),
            spherical=spherical,
            towards=towards,
            on_sphere=step % CHECK_EVERY == 0,
            sphere=choose(checked, sphere, walk.sphere),
            steps=choose(checked, steps, walk.steps),
        )
        looked = dataclasses.replace(walk, sphere_met=met, on_sphere=jnp.zeros((), bool))
        return choose(walk.on_sphere, looked, whole)


def boundary(
    set: PerturbationSet,
    *,
    queries: int = 25_000,
    starts: Any = None,
    spherical_step: Number = 0.01,
    source_step: Number = 0.01,
    adaptation: Number = 1.5,
    restarts: int = 1,
) -> Boundary:
    """The Boundary attack: a random walk along the decision boundary that never leaves the adversarial side.

    From an adversarial start, brought near by a search along the line to the image, each step turns on the sphere
    around the image and then steps towards it, and is taken if it stays adversarial and comes closer. Both relative
    step sizes are multiplied by the adaptation factor or divided by it, by how often they succeed (spherical steps:
    more than 50 % or less than 20 % of 100; whole steps: 25 % and 10 % of 30; both looked at every tenth step).

    Cost: at most `queries` · `restarts` forwards (each start tried, then up to 49 on the line, then 1.1 a step), no
    backwards; it ends early where the step towards the image falls below 1e-7.

    Args:
        set: an `L2` ball. What is found is the smallest perturbation; it is a success if it lies within the radius.
        queries: queries of a run, ≥ 1.
        starts: (M, H, W, C) images in [0, 1] to try first, such as one of each class; needed for most targets, which
            noise never meets. Then, and by default, up to 1000 are drawn: noise, plain, blended with the image, in
            black and white and in tiles, single colours and the negative. An example for which none is adversarial
            has `Code.NO_START`.
        spherical_step: the first step along the sphere, a share of the distance.
        source_step: the first step towards the image, a share of the distance.
        adaptation: ≥ 1.
        restarts: independent runs.

    Returns:
        The attack, of which `size` is the distance found and `loss` its negative, −∞ without a start.

    Raises:
        ValueError: another set, starts of the wrong shape, or numbers out of range.

    Example:
        >>> str(boundary(jr.sets.L2(1.0), queries=1000))
        'Boundary attack in L2(1), 1000 queries'

    Reference:
        Brendel et al., 2018, arXiv:1712.04248, in the form of Foolbox 3: the whole step's success is counted whether
        the spherical one succeeded or not. Directions are drawn for each example, not one for the batch.
    """
    check_set(set)
    return Boundary(set, queries, starts, spherical_step, source_step, adaptation, restarts)


register(
    "boundary",
    functools.partial(boundary, queries=60),
    on="l2",
    use="Comparison with older papers; `hop_skip_jump` needs fewer queries.",
)
