"""Pointwise: from salt and pepper that misleads the model, coordinates go back one by one, by labels alone."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust.attacks.core.ascent import SearchState
from jaxrobust.attacks.core.base import check_set, register
from jaxrobust.attacks.core.minimum import choose
from jaxrobust.attacks.queries.boundary import OVER, SEARCH, Decision
from jaxrobust.sets import L2, PerturbationSet
from jaxrobust.sets.sparse import L0, group_sums, spread
from jaxrobust.types import Criterion, Image, Key, Logits, pytree

__all__ = ["Pointwise", "pointwise"]

# what is being done once a start is found: groups are put back, or their changes halved
RESET, HALVE = 1, 2
STARTS = 50  # attempts in which the share of salt and pepper grows to the whole image
HALVINGS = 10
SWEEPS = 2**31 - 1  # folded into the key, it tells the sweeps' order from the starts
OTHERS = SWEEPS - 1  # likewise the starts of other kinds from salt and pepper


@pytree("key", "phase", "tries", "sweep", "place", "pending", "improved", "low", "high", "count")
class Sweep:
    """What Pointwise remembers.

    Args:
        key: of the run.
        phase: what is being done.
        tries: starts tried.
        sweep: sweeps begun.
        place: the adversarial perturbation that is made smaller.
        pending: groups that this sweep has still to try.
        improved: whether it has put any back, or made it smaller.
        low: the largest share of the group's change known not to be enough.
        high: the smallest known to be enough.
        count: shares of it tried so far.
    """

    key: Any
    phase: Any
    tries: Any
    sweep: Any
    place: Any
    pending: Any
    improved: Any
    low: Any
    high: Any
    count: Any


@pytree("set", "starts")
class Pointwise(Decision):
    """Coordinates or pixels are put back one by one; see `pointwise`.

    Args:
        set: `L0` or `L2`; its radius says what counts as success.
        budget: queries of a run, ≥ 1 (static).
        starts: (M, H, W, C) images to start from, or None.
        restarts: independent runs, ≥ 1 (static).
    """

    set: PerturbationSet
    budget: int = 10_000
    starts: Any = None
    restarts: int = 1
    kinds = (L0, L2)

    _method = "Pointwise"

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """Before the first start is tried."""
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        still, none, all = jnp.zeros_like(x), jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
        sweep = Sweep(key, zero, zero, zero, still, self._changed(still), no, none, all, zero)
        return self._start(x, goal, logits, self._candidate(key, x, zero), sweep)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the point if it is the smallest within the radius, and keeps to what stays adversarial."""
        sweep, met = state.memory, state.goal.met(logits[0])
        found = self._begun(dataclasses.replace(sweep, place=state.theta), RESET)
        tries = sweep.tries + 1
        phase = self._phase_after(state.x, met, tries, RESET)
        searched = choose(met, found, dataclasses.replace(sweep, phase=phase, tries=tries))
        after = choose(sweep.phase == SEARCH, searched, self._tried(sweep, met))
        start = self._candidate(sweep.key, state.x, after.tries)
        theta = jnp.where(after.phase == SEARCH, start, self._with_share(after, _middle(after)))
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=after)

    def _tried(self, sweep: Sweep, met: Array) -> Sweep:
        """After a share of one group's change was asked: the next share, group, sweep or phase."""
        share = _middle(sweep)
        high, low = jnp.where(met, share, sweep.high), jnp.where(met, sweep.low, share)
        group = self._group(sweep)
        back = met & (sweep.count == 0)
        halving = sweep.phase == HALVE
        ended = back | ~halving | (sweep.count >= HALVINGS)
        shrunk = self._with_share(sweep, high)
        same = dataclasses.replace(sweep, low=low, high=high, count=sweep.count + 1)
        following = dataclasses.replace(
            sweep,
            place=shrunk,
            pending=sweep.pending & ~group,
            improved=sweep.improved | (high < 1),
            low=jnp.zeros_like(low),
            high=jnp.ones_like(high),
            count=jnp.zeros_like(sweep.count),
        )
        # with nothing left to put back, changes are halved where the norm rewards it
        final = HALVE if isinstance(self.set, L2) else OVER
        phase = jnp.where(following.improved, sweep.phase, jnp.where(halving, OVER, final))
        over = self._begun(following, phase)
        following = choose(jnp.any(following.pending), following, over)
        return choose(ended, following, same)

    def _begun(self, sweep: Sweep, phase: Any) -> Sweep:
        """At the beginning of a sweep over all groups that are changed; over if there are none."""
        pending = self._changed(sweep.place)
        phase = jnp.where(jnp.any(pending), phase, OVER).astype(sweep.phase.dtype)
        return dataclasses.replace(
            sweep, phase=phase, sweep=sweep.sweep + 1, pending=pending, improved=jnp.zeros_like(sweep.improved)
        )

    def _group(self, sweep: Sweep) -> Bool[Array, "..."]:
        """The group that is tried, as a mask: of those pending the first in this sweep's random order."""
        key = jax.random.fold_in(jax.random.fold_in(sweep.key, SWEEPS), sweep.sweep)
        order = jax.random.uniform(key, sweep.pending.shape)
        chosen = jnp.argmax(jnp.where(sweep.pending, order, -1))
        return (jnp.arange(sweep.pending.size) == chosen).reshape(sweep.pending.shape) & sweep.pending

    def _with_share(self, sweep: Sweep, share: Array) -> Image:
        """The place with a share of one group's change."""
        return jnp.where(spread(self._group(sweep), sweep.place, self._block), share * sweep.place, sweep.place)

    def _changed(self, theta: Image) -> Bool[Array, "..."]:
        """Which groups are changed: pixels or coordinates, as the set counts them."""
        return group_sums((theta != 0).astype(theta.dtype), self._block) > 0

    @property
    def _block(self) -> int:
        return self.set._block if isinstance(self.set, L0) else 0

    def _candidate(self, key: Key, x: Image, attempt: Int[Array, ""]) -> Image:
        """The perturbation that leads to start number `attempt`: those given, then ever more salt and pepper.

        When that has come to the whole image, every other start is of the kinds that all such attacks have.
        """
        known = self._known(x)
        flip_key, colour_key = jax.random.split(jax.random.fold_in(key, attempt))
        number = (attempt - known) % STARTS + 1
        flipped = jax.random.uniform(flip_key, x.shape, x.dtype) * STARTS < number.astype(x.dtype)
        colour = jax.random.bernoulli(colour_key, 0.5, x.shape).astype(x.dtype)
        noise = jnp.where(flipped, colour - x, 0)
        other = (attempt < known) | ((attempt - known >= STARTS) & (attempt % 2 == 1))
        return jnp.where(other, super()._candidate(jax.random.fold_in(key, OTHERS), x, attempt), noise)


def _middle(sweep: Sweep) -> Array:
    """The share to ask: none at first, then halfway between what is not enough and what is."""
    return jnp.where(sweep.count == 0, 0, (sweep.low + sweep.high) / 2)


def pointwise(set: PerturbationSet, *, queries: int = 10_000, starts: Any = None, restarts: int = 1) -> Pointwise:
    """The Pointwise attack: a perturbation that is minimal coordinate by coordinate, found by labels alone.

    It starts from an adversarial image. In random order each coordinate that is changed (each pixel, for `L0` by pixel)
    is put back to its clean value if the image stays adversarial, again and again until none can be put back: then no
    coordinate alone is superfluous. For `L2`, each change is then made as small as ten halvings find, again and again
    until none shrinks.

    Cost: at most `queries` · `restarts` forwards, no backwards; about d for each sweep of d changed coordinates.

    Args:
        set: `L0` or `L2`; what is found is a success if it lies within the radius.
        queries: queries of a run, ≥ 1.
        starts: (M, H, W, C) images in [0, 1] to try first, such as one of each class; needed for most targets. Then,
            and by default, salt and pepper on a share of the coordinates that grows from 1/50 to all of them, over and
            over, later in turn with the other starts of `boundary`, up to 1000. An example for which none is
            adversarial has `Code.NO_START`.
        restarts: independent runs; the smallest result counts.

    Returns:
        The attack, of which `size` is what was found and `loss` its negative, −∞ without a start.

    Raises:
        ValueError: another set, starts of the wrong shape, or counts below 1.

    Example:
        >>> str(pointwise(jr.sets.L0(25), queries=1000))
        'Pointwise in L0(25), 1000 queries'

    Reference:
        Schott et al., 2019, arXiv:1805.09190. A sweep goes on after a coordinate has been put back, where the paper's
        code begins another.
    """
    check_set(set)
    return Pointwise(set, queries, starts, restarts)


register(
    "pointwise",
    functools.partial(pointwise, queries=60),
    on="l0",
    use="l0 distances when only labels are known; a last resort where all scores are masked.",
)
