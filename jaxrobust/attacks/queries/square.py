"""The Square attack: random search by square windows, from scores only."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Loss, QueryAttack, SearchState, check_loss
from jaxrobust.attacks.core.base import Best, Points, check_field, check_set, is_better, register
from jaxrobust.sets import L1, L2, Linf, PerturbationSet
from jaxrobust.sets.balls import unit
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["Square", "square"]

Scalar = Float[Array, ""]
Mask = Bool[Array, "height width"]

# after how many queries of 10,000 the fraction of pixels is halved
HALVED_AFTER = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], np.int32)
TILES = 5  # bumps along an edge of the first point
LEAST = 1e-5  # a window's length, in radii, below which it counts as nothing


@pytree("set", "p")
class Square(QueryAttack):
    """Random search whose proposals change one square window; see `square`.

    Args:
        set: `Linf`, `L2` or `L1`.
        budget: queries of a run, ≥ 1 (static).
        p: the fraction of pixels that the first windows cover, in [0, 1].
        restarts: independent runs, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
        rescale_schedule: whether the schedule of p is stretched to the budget (static).
    """

    set: PerturbationSet
    budget: int = 5000
    p: Number = 0.8
    restarts: int = 1
    loss: Loss = "margin"
    rescale_schedule: bool = False

    _method = "Square attack"

    def __post_init__(self) -> None:
        # JAX rebuilds pytrees around placeholders, which are no sets
        if isinstance(self.set, (type, PerturbationSet)) and not isinstance(self.set, (Linf, L2, L1)):
            raise TypeError(f"set must be Linf, L2 or L1, whose windows are known; got {self.set}")
        check_field(self.set)
        check_loss(self.loss)
        _checks.count("queries", self.budget)
        _checks.count("restarts", self.restarts)
        object.__setattr__(self, "p", _checks.number("p", self.p, high=1.0))

    @property
    def asks(self) -> int:
        """One query an ask."""
        return self.budget

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """The first point is drawn; the clean image's loss is kept apart, since the search does not start there."""
        state = self._open(x, goal, logits, None, None)
        theta = self._first(jax.random.fold_in(key, 0), x)
        return dataclasses.replace(state, theta=theta, memory=(key, state.best_loss, state.success, logits))

    def ask(self, state: SearchState) -> Points:
        """The proposal."""
        return self.set.apply(state.x, state.theta)[None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Moves to the proposal if that is better (to the first one in any case), and draws the next."""
        loss, success = self._loss(logits[0], state.aim), state.goal.met(logits[0])
        better = (state.asked == 0) | is_better(success, loss, state.success, state.best_loss)
        current = jnp.where(better, state.theta, state.best_theta)
        asked = state.asked + 1
        key = jax.random.fold_in(state.memory[0], asked)
        return dataclasses.replace(
            state,
            theta=self._propose(key, state.x, current, asked),
            asked=asked,
            loss=loss,
            best_theta=current,
            best_loss=jnp.where(better, loss, state.best_loss),
            best_logits=jnp.where(better, logits[0], state.best_logits),
            booked=jnp.ones((), bool),
            success=jnp.where(better, success, state.success),
            non_finite=state.non_finite | ~jnp.all(jnp.isfinite(logits)),
        )

    def best(self, state: SearchState) -> Best:
        """Where the search stands, or the clean image where that is better."""
        _, loss, success, logits = state.memory
        kept = ~is_better(state.success, state.best_loss, success, loss)
        return super().best(
            dataclasses.replace(
                state,
                best_theta=jnp.where(kept, self.set.init(state.x), state.best_theta),
                best_loss=jnp.where(kept, loss, state.best_loss),
                best_logits=jnp.where(kept, logits, state.best_logits),
                success=jnp.where(kept, success, state.success),
            )
        )

    def side(self, asked: Int[Array, ""], shape: tuple[int, ...]) -> Int[Array, ""]:
        """The window's side at query number `asked` (the first point is number 0) for images of a shape (H, W, C).

        round(√(p H W)), and for `L2` and `L1` the next odd number from 3 on; never more than fits.
        """
        height, width = shape[:2]
        age = asked
        if self.rescale_schedule:
            age = (asked.astype(jnp.float32) * np.float32(10_000 / self.budget)).astype(jnp.int32)
        halvings = jnp.sum(age[None] > HALVED_AFTER, dtype=jnp.int32)
        covered = (
            jnp.asarray(self.p).astype(jnp.float32) * np.float32(height * width) / 2.0 ** halvings.astype(jnp.float32)
        )
        side = jnp.round(jnp.sqrt(covered)).astype(jnp.int32)
        if isinstance(self.set, Linf):
            return jnp.clip(side, 1, max(min(height, width) - 1, 1))
        side = jnp.maximum(side, 3)
        return jnp.minimum(side + (side + 1) % 2, (min(height, width) - 1) // 2 * 2 + 1)

    def _first(self, key: Key, x: Image) -> Image:
        radius = self._radius(x)
        if isinstance(self.set, Linf):
            return self.set.project(x, radius * jax.random.rademacher(key, x.shape, x.dtype)[:1] * jnp.ones_like(x))
        tiles = self._tiles(key, x)
        if isinstance(self.set, L2):
            return jnp.clip(radius * unit(tiles), -x, 1 - x)
        return self.set.project(x, radius * tiles / jnp.sum(jnp.abs(tiles)))

    def _propose(self, key: Key, x: Image, current: Image, asked: Int[Array, ""]) -> Image:
        side = self.side(asked, x.shape)
        if isinstance(self.set, Linf):
            return self._flat_window(key, x, current, side)
        return self._bump_window(key, x, current, side)

    def _flat_window(self, key: Key, x: Image, current: Image, side: Int[Array, ""]) -> Image:
        """A window of ±ε, one sign a channel, drawn from those signs that change anything."""
        channels = x.shape[-1]
        # one call draws all that a proposal needs: many small ones would cost more than the proposal
        draws = jax.random.uniform(key, (3 + channels,), x.dtype)
        window = _window(draws[:2], x.shape, side)[0][:, :, None]
        signs = jnp.where(draws[3:] < 0.5, jnp.ones((), x.dtype), -1)

        def changed(signs: Array) -> Image:
            return self.set.project(x, jnp.where(window, self._radius(x) * signs[None, None], current))

        # At most one choice of signs changes nothing; flipping a random non-empty set of them is uniform on the others.
        bits = min(channels, 20)
        flips = 1 + (draws[2] * (2**bits - 1)).astype(jnp.int32)
        flips = flips >> jnp.minimum(jnp.arange(channels, dtype=jnp.int32), bits)
        same = jnp.all(jnp.abs(changed(signs) - current) < 1e-7)
        return changed(jnp.where(same & (flips % 2 == 1), -signs, signs))

    def _bump_window(self, key: Key, x: Image, current: Image, side: Int[Array, ""]) -> Image:
        """One window gets a bump added, another one's share of the norm moves into it; all is scaled to the radius."""
        draws = jax.random.uniform(key, (5 + x.shape[-1],), x.dtype)
        into, rows, columns = _window(draws[:2], x.shape, side)
        source, _, _ = _window(draws[2:4], x.shape, side)
        into, source = into[:, :, None], source[:, :, None]
        turned = draws[4] < 0.5
        signs = jnp.where(draws[5:] < 0.5, jnp.ones((), x.dtype), -1)[None, None]
        power = self._power
        bump = _bump(rows, columns, side, turned, power, x.dtype)[:, :, None] * signs

        def mass(values: Array) -> Array:  # Σ |·|^power, one a channel
            return jnp.sum(jnp.abs(values) ** power, (0, 1), keepdims=True)

        def root(mass: Array) -> Array:
            return mass ** (1 / power)

        inside = jnp.where(into, current, 0)
        # what a projection's rounding leaves of an entry must not be scaled up to a direction
        length = root(mass(inside))
        fresh = bump + inside / jnp.where(length > LEAST * self._radius(x), length, jnp.inf)
        spent = jnp.sum(mass(current))
        slack = jnp.maximum(self._radius(x) ** power - spent, 0)
        held = mass(jnp.where(into | source, current, 0))
        fresh = fresh / (1e-12 + root(mass(fresh))) * root(slack[None, None, None] / x.shape[-1] + held)
        if isinstance(self.set, L1):
            # As released: the window outgrows its share, and the projection takes from all the rest for it.
            fresh = fresh * x.shape[-1]
        proposal = jnp.where(into, fresh, jnp.where(source, 0, current))
        if isinstance(self.set, L2):
            # its length is known: what has moved, the slack, and the rest of the current point
            length = jnp.sqrt(spent + slack)
            return jnp.clip(self._radius(x) / jnp.where(length > 0, length, 1) * proposal, -x, 1 - x)
        return self.set.project(x, proposal)

    def _tiles(self, key: Key, x: Image) -> Image:
        """Bumps side by side over the whole image, each with random signs, and turned or not."""
        height, width, channels = x.shape
        side = max(min(height, width) // TILES, 1)
        row_tile, row = _tiling(height, side)
        column_tile, column = _tiling(width, side)
        count = (height // side, width // side)
        sign_key, turn_key = jax.random.split(key)
        signs = jax.random.rademacher(sign_key, (*count, channels), x.dtype)
        turns = jax.random.bernoulli(turn_key, 0.5, count)
        edge, traced_side = jnp.arange(side, dtype=jnp.int32), jnp.asarray(side, jnp.int32)
        bumps = jnp.stack([_bump(edge, edge, traced_side, jnp.asarray(t), self._power, x.dtype) for t in (False, True)])
        tile = (row_tile[:, None], column_tile[None, :])
        covered = (row_tile >= 0)[:, None] & (column_tile >= 0)[None, :]
        chosen = bumps[turns[tile].astype(jnp.int32), row[:, None], column[None, :]]
        return jnp.where(covered[:, :, None], chosen[:, :, None] * signs[tile], 0)

    @property
    def _power(self) -> int:
        return 2 if isinstance(self.set, L2) else 1

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        return state.asked

    @property
    def _run(self) -> str:
        return f"{self.budget} queries" + ("" if self.restarts == 1 else f", {self.restarts} restarts")


def _window(draws: Array, shape: tuple[int, ...], side: Int[Array, ""]) -> tuple[Mask, Array, Array]:
    """A square window of a traced side, placed by two draws in [0, 1): its mask, and the places of lines in it."""
    places = []
    for draw, length in zip(draws, shape[:2], strict=True):
        room = length - side + 1
        first = jnp.minimum((draw * room.astype(draws.dtype)).astype(jnp.int32), room - 1)
        places.append(jnp.arange(length, dtype=jnp.int32) - first[None])
    rows, columns = places
    within = [(place >= 0) & (place < side[None]) for place in places]
    return within[0][:, None] & within[1][None, :], rows, columns


def _bump(rows: Array, columns: Array, side: Array, turned: Array, power: int, dtype: Any) -> Array:
    """The window's pattern of unit norm: a positive and a negative half, each of nested rectangles that grow weaker.

    A pixel at Chebyshev distance D from the centre of its half gets Σ_{k ≥ D} (k + 1)^(−2) for l2, ^(−4) for l1, up to
    the middle line of the window.
    """
    heights, norms = (jnp.asarray(table, dtype) for table in _bump_tables(max(len(rows), len(columns)), power))
    first = side // 2
    own = heights[first]

    def along(places: Array, across: Array) -> tuple[Array, Array]:
        """Of the lines along one axis: the height they allow, and which are in the positive half.

        `across`: whether the halves lie one after the other along this axis.
        """
        upper = places < first
        centre = jnp.where(upper, first, side - first) // 2
        halved = jnp.abs(jnp.where(upper, places, places - first) - centre)
        distance = jnp.where(across, halved, jnp.abs(places - first))
        within = (places >= 0) & (places < side)
        return jnp.where(within, own[jnp.minimum(distance, len(own) - 1)], 0), upper

    down, upper_rows = along(rows, ~turned)
    right, upper_columns = along(columns, turned)
    upper = jnp.where(turned, upper_columns[None], upper_rows[:, None])
    # heights fall with the distance, so that the larger of two distances has the smaller height
    return jnp.minimum(down[:, None], right[None]) / jnp.where(upper, norms[side, 0], -norms[side, 1])


@functools.lru_cache(maxsize=16)
def _bump_tables(length: int, power: int) -> tuple[np.ndarray, np.ndarray]:
    """Heights (middle line, D) of a bump's pixels, and by what each half is divided (side, half); sides ≤ length."""
    line, distance = np.arange(length // 2 + 1)[:, None], np.arange(length + 1)
    terms = np.where(distance <= line, (distance + 1.0) ** (-2 if power == 2 else -4), 0)
    heights = np.cumsum(terms[:, ::-1], 1)[:, ::-1]
    norms = np.ones((length + 1, 2))
    for side in range(1, length + 1):
        first = side // 2
        sizes = (first, side - first)
        for half, size in enumerate(sizes):
            far = np.maximum(*np.ix_(np.abs(np.arange(size) - size // 2), np.abs(np.arange(side) - first)))
            mass = np.sum(heights[first][far] ** power)
            # each half gets unit norm, then both together
            norms[side, half] = (mass * np.count_nonzero(sizes)) ** (1 / power) if size else 1
    return heights, norms


def _tiling(length: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one edge, each pixel's tile (−1 in the margins, which are even) and its place in that."""
    count = length // side
    place = np.arange(length) - (length - count * side) // 2
    inside = (place >= 0) & (place < count * side)
    return np.where(inside, place // side, -1), np.where(inside, place % side, 0)


def square(
    set: PerturbationSet,
    *,
    queries: int = 5000,
    p: Number = 0.8,
    restarts: int = 1,
    loss: Loss = "margin",
    rescale_schedule: bool = False,
) -> Square:
    """The Square attack: random search that changes one square window a query, and keeps what raises the loss.

    For `Linf` a proposal sets a window to ±ε, for `L2` and `L1` it moves norm between two windows. Windows shrink: they
    cover the fraction p of the pixels at first, which is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000
    queries. The first query is of stripes (`Linf`) or of a tiling by bumps.

    Cost: `queries` · `restarts` forwards, no backwards; success may end it early.

    Args:
        set: `Linf`, `L2` or `L1`; another radius never recompiles.
        queries: queries of a run, ≥ 1, the first point among them; the clean image is not counted.
        p: the first windows' share of the image, in [0, 1]. Published: 0.05 (l∞) and 0.1 (l2) for ImageNet models,
            0.3 to 0.8 for robust models, 0.8 in AutoAttack.
        restarts: independent runs.
        loss: "margin" (AutoAttack), "cross_entropy" (the original for targets), "dlr" or a function of (logits (K,),
            criterion), ascended; targeted with a `Targeted` criterion.
        rescale_schedule: whether p is halved at those shares of 10,000 queries instead, as in the original;
            AutoAttack does not.

    Returns:
        The attack.

    Raises:
        TypeError: another set.
        ValueError: queries or restarts below 1, or p outside of [0, 1].

    Example:
        >>> str(square(jr.sets.Linf(0.1), queries=100))
        'Square attack in Linf(0.1), 100 queries, margin'

    Reference:
        Andriushchenko et al., 2020, arXiv:1912.00049; AutoAttack's defaults, Croce and Hein, 2020, arXiv:2003.01690.
        As in the original, a window and its signs are drawn for each example, and signs that would change nothing are
        drawn anew; as in AutoAttack, any misclassified proposal is taken over one that is not. The released codes
        never place a window on the last row or column; here they do.
    """
    check_set(set)
    return Square(set, queries, p, restarts, loss, rescale_schedule)


register(
    "square",
    functools.partial(square, queries=50),
    use="lp balls when only scores are known, and always as a check: if it beats gradients, they are masked.",
)
