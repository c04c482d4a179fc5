"""CornerSearch: every change of one pixel to a corner of the colour cube, then random combinations of the best."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import QueryAttack, SearchState
from jaxrobust.attacks.core.base import Points, check_field, check_set, register
from jaxrobust.attacks.core.minimum import MinimumNorm, check_kind
from jaxrobust.losses import margin
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.sparse import L0, L0Linf, whole
from jaxrobust.types import Criterion, Image, Key, Logits, Misclassified, pytree

__all__ = ["CornerSearch", "corner_search"]


@pytree("key", "chunks", "spent", "next", "scores", "best", "over")
class Ranking:
    """What CornerSearch remembers.

    Args:
        key: of the combinations.
        chunks: asks so far.
        spent: points so far that were meant.
        next: the number of the next combination.
        scores: (K, N) of the N best changes of one pixel for each class, in descending order.
        best: (K, N) which changes these are.
        over: whether a perturbation of fewest pixels has been found, or all have been asked.
    """

    key: Any
    chunks: Any
    spent: Any
    next: Any
    scores: Any
    best: Any
    over: Any


@pytree("set")
class CornerSearch(QueryAttack, MinimumNorm):
    """Changes of single pixels, ranked, and combinations of them; see `corner_search`.

    Args:
        set: `L0` or `L0Linf` by pixel.
        budget: queries at most, ≥ 1 (static).
        best_changes: N, changes combined for each class, ≥ 1 (static).
        samples: combinations for each number of pixels and class, ≥ 1 (static).
        chunk: points asked at once, ≥ 1 (static).
    """

    set: PerturbationSet
    budget: int = 100_000
    best_changes: int = 100
    samples: int = 1000
    chunk: int = 100
    start = "random"
    ends_early = True
    last = MinimumNorm.last

    _method = "CornerSearch"

    def __post_init__(self) -> None:
        # JAX rebuilds pytrees around placeholders, which are no sets
        known = isinstance(self.set, (L0, L0Linf)) and self.set.per == "pixel"
        if isinstance(self.set, (type, PerturbationSet)) and not known:
            raise TypeError(f"set must be L0 or L0Linf by pixel; got {self.set}")
        check_field(self.set)
        _checks.count("queries", self.budget)
        for name in ("best_changes", "samples", "chunk"):
            _checks.count(name, getattr(self, name))

    @property
    def width(self) -> int:
        """Points asked at once."""
        return min(self.chunk, self.budget)

    @property
    def asks(self) -> int:
        """As many chunks as the budget allows, one more because that which ends the single pixels may not be full."""
        return -(-self.budget // self.width) + 1

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """Before the first change of a single pixel."""
        check_kind(goal, "corner_search", Misclassified)
        zero = jnp.zeros((), jnp.int32)
        shape = (logits.shape[0], min(self.best_changes, self._singles(x)))
        scores, best = jnp.full(shape, -jnp.inf, logits.dtype), jnp.zeros(shape, jnp.int32)
        memory = Ranking(key, zero, zero, zero, scores, best, jnp.zeros((), bool))
        return self._start(x, goal, logits, None, memory)

    def ask(self, state: SearchState) -> Points:
        """The next changes of single pixels, or the next combinations."""
        return jax.vmap(self.set.apply, (None, 0))(state.x, self._thetas(state))

    def meant(self, state: SearchState) -> Bool[Array, " queries"]:
        """Those within the budget, and not beyond the last single pixel or the largest number of pixels."""
        memory, offsets = state.memory, self._offsets
        single = memory.chunks * self.width + offsets < self._singles(state.x)
        allowed = self._level(state, memory.next + offsets) <= self._most(state.x)
        return jnp.where(self._is_single(state), single, allowed) & (memory.spent + offsets < self.budget)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the smallest success; single pixels are ranked, and success ends the search."""
        memory, meant = state.memory, self.meant(state)
        # points that are not meant must not be looked at, not even for NaN: the first one, which is, stands for them
        logits = jnp.where(meant[:, None], logits, logits[:1])
        thetas = self._thetas(state)
        booked = self._record(state, logits, jnp.where(meant[:, None, None, None], thetas, thetas[:1]))
        singles = self._is_single(state)
        count = jnp.sum(meant, dtype=jnp.int32)
        scores, best = self._ranked(state, logits, meant)
        after = dataclasses.replace(
            memory,
            chunks=memory.chunks + 1,
            spent=memory.spent + count,
            next=memory.next + jnp.where(singles, 0, count),
            scores=jnp.where(singles, scores, memory.scores),
            best=jnp.where(singles, best, memory.best),
        )
        ahead = dataclasses.replace(booked, memory=after)
        over = booked.success | ~jnp.any(self.meant(ahead))
        return dataclasses.replace(ahead, memory=dataclasses.replace(after, over=over))

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether something has been found, or nothing is left to ask."""
        return super().done(state) | state.memory.over

    def _iterate(self, state: SearchState) -> Image:
        return self._thetas(state)[0]

    @property
    def _offsets(self) -> Int[Array, " queries"]:
        return jnp.arange(self.width, dtype=jnp.int32)

    def _singles(self, x: Image) -> int:
        """How many changes of a single pixel there are."""
        return x.shape[0] * x.shape[1] * 2 ** x.shape[2]

    def _is_single(self, state: SearchState) -> Bool[Array, ""]:
        return state.memory.chunks * self.width < self._singles(state.x)

    def _most(self, x: Image) -> Int[Array, ""]:
        return whole(self._radius(x), x.shape[0] * x.shape[1])

    def _level(self, state: SearchState, number: Int[Array, "..."]) -> Int[Array, "..."]:
        """How many pixels a combination changes at most."""
        return 2 + number // (state.memory.best.shape[0] * self.samples)

    def _ranked(self, state: SearchState, logits: Array, meant: Array) -> tuple[Array, Array]:
        """The N best of the old ones and those just asked: for the label by the margin, else by z_k − z_y."""
        memory, label = state.memory, state.goal.label
        own = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)

        def rank(logits: Logits) -> Logits:
            return jnp.where(own, margin(logits, label), logits - logits[label])

        fresh = jax.vmap(rank)(logits).T
        fresh = jnp.where(jnp.isnan(fresh) | ~meant[None], -jnp.inf, fresh)
        places = jnp.broadcast_to((memory.chunks * self.width + self._offsets)[None], fresh.shape)
        scores, order = jax.lax.top_k(jnp.concatenate([memory.scores, fresh], 1), memory.scores.shape[1])
        return scores, jnp.take_along_axis(jnp.concatenate([memory.best, places], 1), order, 1)

    def _thetas(self, state: SearchState) -> Float[Array, "queries height width channels"]:
        memory, pixels = state.memory, state.x.shape[0] * state.x.shape[1]
        corners = 2 ** state.x.shape[2]
        place = jnp.minimum(memory.chunks * self.width + self._offsets, pixels * corners - 1)
        unchanged = jnp.full(pixels, -1, jnp.int32)
        single = jax.vmap(lambda place: unchanged.at[place // corners].set(place % corners))(place)
        combined = jax.vmap(lambda number: self._combination(state, number, unchanged, corners))(
            memory.next + self._offsets
        )
        return jax.vmap(self._painted, (None, 0))(state.x, jnp.where(self._is_single(state), single, combined))

    def _combination(self, state: SearchState, number: Array, unchanged: Array, corners: int) -> Array:
        """Changes drawn from the N best of a class, the n-th with probability (2 (N − n) + 1)/N², one a pixel."""
        memory, best = state.memory, state.memory.best
        classes, most = best.shape
        ordering = best[number // self.samples % classes]
        key = jax.random.fold_in(memory.key, number)
        # a level that is not meant need not be made
        level = jnp.where(self._is_single(state), 0, jnp.minimum(self._level(state, number), self._most(state.x)))

        def change(i: Array, chosen: Array) -> Array:
            draw = jax.random.uniform(jax.random.fold_in(key, i), (), state.x.dtype)
            rank = most - 1 - jnp.minimum((most * jnp.sqrt(draw)).astype(jnp.int32), most - 1)
            return chosen.at[ordering[rank] // corners].set(ordering[rank] % corners)

        return jax.lax.fori_loop(0, level, change, unchanged)

    def _painted(self, x: Image, corners: Int[Array, " pixels"]) -> Image:
        """The perturbation that takes each pixel to its corner of the bounds, given by one bit a channel, or −1."""
        lower, upper = self.set._bounds(x)  # type: ignore[attr-defined]
        corners = corners.reshape(*x.shape[:2], 1)
        bits = (corners >> jnp.arange(x.shape[2], dtype=jnp.int32)[None, None]) & 1
        return jnp.where(corners >= 0, jnp.where(bits == 1, upper, lower), 0)

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        return state.memory.spent

    @property
    def _run(self) -> str:
        return f"{self.budget} queries"


def corner_search(
    set: PerturbationSet,
    *,
    queries: int = 100_000,
    best: int = 100,
    samples: int = 1000,
    chunk: int = 100,
) -> CornerSearch:
    """CornerSearch: the fewest pixels, at corners of the colour cube, that change the class; from scores alone.

    First every pixel is set to each of the 2^C corners, one at a time. For each class r the N best of these changes are
    kept, by z_r − z_y, and for the label y itself by the margin. Then, for k = 2, 3, … up to the radius, and for each
    class, k changes are drawn from its N best, the n-th of them with probability (2 (N − n) + 1)/N². The first chunk
    that holds a misclassified point ends the search.

    Cost: at most `queries` forwards, no backwards. All of it is H · W · 2^C + (k − 1) · K · samples: 8192 and 10000 for
    each further pixel on CIFAR-10.

    Args:
        set: `L0` or, with the corners of its bounds, `L0Linf`, by pixel.
        queries: at most so many, ≥ 1; those of single pixels come first.
        best: N ≥ 1.
        samples: combinations for each k and class, ≥ 1.
        chunk: points asked at once.

    Returns:
        The attack, of which `size` is the number of pixels.

    Raises:
        TypeError: another set.
        ValueError: counts below 1; when run, a criterion other than `Misclassified`.

    Example:
        >>> str(corner_search(jr.sets.L0(10)))
        'CornerSearch in L0(10), 100000 queries'

    Reference:
        Croce and Hein, 2019, arXiv:1909.05040.
    """
    check_set(set)
    return CornerSearch(set, queries, best, samples, chunk)


register(
    "corner_search",
    functools.partial(corner_search, queries=300, best=10, samples=10, chunk=20),
    on="l0_linf",
    use="Sparse changes of small images when only scores are known; `sparse_rs` needs fewer queries.",
)
