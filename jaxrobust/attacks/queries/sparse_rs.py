"""Sparse-RS: random search over few pixels, over a patch and its place, or over a fixed support such as a frame."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Loss, QueryAttack, SearchState, check_loss
from jaxrobust.attacks.core.base import Points, check_field, is_better, register
from jaxrobust.attacks.core.minimum import choose
from jaxrobust.sets import Linf, Masked, Patch, PerturbationSet
from jaxrobust.sets.masks import square_at
from jaxrobust.sets.sparse import L0, first_largest, whole
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["SparseRS", "SparseRSMask", "SparseRSPatch", "SparseRSPixels", "sparse_rs"]

Scalar = Float[Array, ""]
Pixels = Bool[Array, "height width 1"]

# after how many queries of 10,000 the share that is changed falls, and by what it is divided from then on
PIXELS = np.array([0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]), np.array([1, 2, 4, 5, 6, 8, 10, 12, 15, 20])
SQUARES = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]), np.array([1, 2, 4, 8, 16, 32, 32, 64, 64, 128])
FIRST_SQUARES = 1000  # of which the first patch is painted
SHIFT = 0.75  # the longest move of the patch, as a share of the image


@pytree("key", "current", "proposal", "loss", "success")
class Trail:
    """Where the search stands (with loss and success there), and what it asks next; what a place is, attacks say."""

    key: Any
    current: Any
    proposal: Any
    loss: Any
    success: Any


class SparseRS(QueryAttack):
    """Random search that keeps a proposal if the loss rises; subclasses say what is proposed."""

    budget: int
    share: Number
    rescale_schedule: bool
    schedule: tuple[np.ndarray, np.ndarray] = SQUARES

    _method = "Sparse-RS"

    def _check(self) -> None:
        check_field(self.set)
        check_loss(self.loss)
        _checks.count("queries", self.budget)
        _checks.count("restarts", self.restarts)
        object.__setattr__(self, "share", _checks.number("share", self.share, high=1.0))

    @property
    def asks(self) -> int:
        """One query an ask."""
        return self.budget

    @abc.abstractmethod
    def _first(self, key: Key, x: Image) -> Any:
        """Where the search begins."""

    @abc.abstractmethod
    def _propose(self, key: Key, x: Image, current: Any, asked: Int[Array, ""]) -> Any:
        """A random neighbour for query number `asked`."""

    @abc.abstractmethod
    def _theta(self, x: Image, place: Any) -> Image:
        """The perturbation at a place."""

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """The first point is drawn; the clean image is booked, but the search does not start there."""
        first = self._first(jax.random.fold_in(key, 0), x)
        state = self._open(x, goal, logits, self._theta(x, first), None)
        trail = Trail(key, first, first, state.best_loss, state.success)
        return dataclasses.replace(state, memory=trail)

    def ask(self, state: SearchState) -> Points:
        """The proposal."""
        return self.set.apply(state.x, state.theta)[None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the proposal if it is the best; moves there if it is better than where the search stands."""
        trail = state.memory
        loss, success = self._loss(logits[0], state.aim), state.goal.met(logits[0])
        better = (state.asked == 0) | is_better(success, loss, trail.success, trail.loss)
        current = choose(better, trail.proposal, trail.current)
        asked = state.asked + 1
        proposal = self._propose(jax.random.fold_in(trail.key, asked), state.x, current, asked)
        after = Trail(
            key=trail.key,
            current=current,
            proposal=proposal,
            loss=jnp.where(better, loss, trail.loss),
            success=jnp.where(better, success, trail.success),
        )
        booked = self._book(state, state.theta[None], loss[None], logits, jnp.ones(1, bool))
        return dataclasses.replace(booked, theta=self._theta(state.x, proposal), memory=after)

    def share_at(self, asked: Int[Array, ""], dtype: Any = jnp.float32) -> Scalar:
        """The share that query number `asked` changes (the first point is number 0)."""
        after, divisors = self.schedule
        if self.rescale_schedule:
            # the first query q with ⌊10000 q / budget⌋ > t
            after = -(-(after + 1) * self.budget // 10_000) - 1
        passed = jnp.sum(asked[None] > after.astype(np.int32), dtype=jnp.int32)
        return jnp.asarray(self.share).astype(dtype) / jnp.asarray(divisors, dtype)[passed]

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        return state.asked

    @property
    def _run(self) -> str:
        return f"{self.budget} queries" + ("" if self.restarts == 1 else f", {self.restarts} restarts")


@pytree("set", "share")
class SparseRSPixels(SparseRS):
    """Few pixels: some of those changed are put back for as many others; see `sparse_rs`.

    A place is the perturbation and which pixels are taken, some of which may have their clean colour by chance.

    Args:
        set: `L0` by pixel, or one in a `Masked`.
        budget: queries of a run, ≥ 1 (static).
        share: α in [0, 1], of the pixels that the first proposals move.
        restarts: independent runs, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
        rescale_schedule: whether the schedule is stretched to the budget (static).
    """

    set: PerturbationSet
    budget: int = 10_000
    share: Number = 0.3
    restarts: int = 1
    loss: Loss = "margin"
    rescale_schedule: bool = True
    schedule = PIXELS

    def __post_init__(self) -> None:
        self._check()

    def _first(self, key: Key, x: Image) -> tuple[Image, Pixels]:
        place_key, colour_key = jax.random.split(key)
        free = _free(self.set, x)
        taken = _some(place_key, free, self._count(x, free), x.dtype)
        return jnp.where(taken, _corners(colour_key, x) - x, 0) * self._support(x), taken

    def _propose(self, key: Key, x: Image, current: tuple[Image, Pixels], asked: Int[Array, ""]) -> Any:
        theta, taken = current
        free = _free(self.set, x)
        count = self._count(x, free)
        most = whole(self.share_at(asked, x.dtype) * count.astype(x.dtype), x.size)
        moved = jnp.minimum(jnp.maximum(most, 1), count)
        left_key, new_key, colour_key = jax.random.split(key, 3)
        left = _some(left_key, taken, moved, x.dtype)
        # where all pixels are taken, those that were left get new colours
        new = _some(new_key, free & (left | ~taken), moved, x.dtype, first=free & ~taken)
        support = self._support(x)
        colours = _corners(colour_key, x)
        # a single pixel gets a colour that it does not have
        flipped = jnp.where(_flips(jax.random.fold_in(colour_key, 1), x.shape[-1])[None, None], 1 - colours, colours)
        before = x + jnp.where(left & ~new, 0, theta)
        same = jnp.all((colours == before) | (support == 0), -1, keepdims=True)
        colours = jnp.where((moved == 1) & same, flipped, colours)
        theta = jnp.where(new, (colours - x) * support, jnp.where(left, 0, theta))
        return theta, (taken & ~left) | new

    def _theta(self, x: Image, place: tuple[Image, Pixels]) -> Image:
        return place[0]

    def _count(self, x: Image, free: Pixels) -> Int[Array, ""]:
        return jnp.minimum(whole(self._radius(x), x.size), jnp.sum(free, dtype=jnp.int32))

    def _support(self, x: Image) -> Image:
        return _support(self.set, x).astype(x.dtype)


@pytree("set", "share")
class SparseRSMask(SparseRS):
    """All pixels of a fixed support, such as a frame: some get other colours; see `sparse_rs`.

    Args:
        set: `Linf` in a `Masked`; colours are the corners of its bounds.
        budget: as in `SparseRSPixels`.
        share: α in [0, 1], of the support's pixels that the first proposals paint.
        restarts: as in `SparseRSPixels`.
        loss: as in `SparseRSPixels`.
        rescale_schedule: as in `SparseRSPixels`.
    """

    set: PerturbationSet
    budget: int = 10_000
    share: Number = 0.5
    restarts: int = 1
    loss: Loss = "margin"
    rescale_schedule: bool = True

    def __post_init__(self) -> None:
        self._check()

    def _first(self, key: Key, x: Image) -> Image:
        return self._coloured(key, x)

    def _propose(self, key: Key, x: Image, current: Image, asked: Int[Array, ""]) -> Image:
        place_key, colour_key = jax.random.split(key)
        free = _free(self.set, x)
        painted = self.share_at(asked, x.dtype) * jnp.sum(free.astype(x.dtype))
        chosen = _some(place_key, free, jnp.maximum(whole(painted, x.size), 1), x.dtype)
        return jnp.where(chosen, self._coloured(colour_key, x), current)

    def _theta(self, x: Image, place: Image) -> Image:
        return place

    def _coloured(self, key: Key, x: Image) -> Image:
        return self.set.project(x, (2 * _corners(key, x) - 1) * self._radius(x))


@pytree("set", "share")
class SparseRSPatch(SparseRS):
    """A square patch: its colours change by squares, and now and then it moves; see `sparse_rs`.

    A place is the patch, in the top left corner of an image, and where its own top left corner lies.

    Args:
        set: `Patch`.
        budget: as in `SparseRSPixels`.
        share: α in [0, 1], of the patch that the first proposals paint.
        restarts: as in `SparseRSPixels`.
        loss: as in `SparseRSPixels`.
        rescale_schedule: as in `SparseRSPixels`.
        move_every: every so many queries the patch is moved, ≥ 1 (static).
    """

    set: PerturbationSet
    budget: int = 10_000
    share: Number = 0.4
    restarts: int = 1
    loss: Loss = "margin"
    rescale_schedule: bool = True
    move_every: int = 4

    def __post_init__(self) -> None:
        self._check()
        _checks.count("move_every", self.move_every)

    def _first(self, key: Key, x: Image) -> tuple[Image, Int[Array, " 2"]]:
        """Black, with a thousand squares of random colours painted over each other, at a random place."""
        place_key, paint_key = jax.random.split(key)
        side = self._side(x)
        # squares of sides below ⌈√s⌉, and of one pixel at least
        largest = jnp.maximum(jnp.ceil(jnp.sqrt(side.astype(x.dtype))).astype(jnp.int32) - 1, 1)

        def paint(i: Array, patch: Image) -> Image:
            draws = jax.random.uniform(jax.random.fold_in(paint_key, i), (3 + x.shape[-1],), x.dtype)
            size = 1 + _below(draws[0], largest)
            return _painted(patch, side, size, draws[1:])

        patch = jax.lax.fori_loop(0, FIRST_SQUARES, paint, jnp.zeros_like(x))
        return patch, _below(jax.random.uniform(place_key, (2,), x.dtype), self._room(x) + 1)

    def _propose(self, key: Key, x: Image, current: Any, asked: Int[Array, ""]) -> Any:
        patch, corner = current
        side = self._side(x)
        draws = jax.random.uniform(key, (4 + x.shape[-1],), x.dtype)
        covered = jnp.sqrt(self.share_at(asked, x.dtype)) * side.astype(x.dtype)
        painted = _painted(patch, side, jnp.maximum(whole(covered, max(x.shape)), 1), draws[2:])
        left = SHIFT * (self.budget - asked).astype(x.dtype) / self.budget
        reach = jnp.floor(jnp.maximum(left, 0) * jnp.asarray(x.shape[:2], x.dtype)).astype(jnp.int32)
        shifted = jnp.clip(corner + _below(draws[:2], 2 * reach + 1) - reach, 0, self._room(x))
        moves = (asked % self.move_every == 0) & jnp.any(reach > 0)
        return choose(moves, (patch, shifted), (painted, corner))

    def _theta(self, x: Image, place: Any) -> Image:
        patch, corner = place
        window = square_at(x, corner[0], corner[1], self._side(x))
        return jnp.where(window, jnp.roll(patch, corner, (0, 1)) - x, 0)

    def _side(self, x: Image) -> Int[Array, ""]:
        return whole(self._radius(x), max(x.shape[:2]))

    def _room(self, x: Image) -> Int[Array, " 2"]:
        return jnp.maximum(jnp.asarray(x.shape[:2], jnp.int32) - self._side(x), 0)


def _painted(patch: Image, side: Array, size: Array, draws: Array) -> Image:
    """The patch with a square of one corner colour, of which every draw decides a coordinate or a channel.

    A square of one pixel gets a colour that it does not have.
    """
    extent = jnp.minimum(side, jnp.asarray(patch.shape[:2], jnp.int32))
    place = _below(draws[:2], jnp.maximum(extent - size, 0) + 1)
    colour = (draws[2:] < 0.5).astype(patch.dtype)
    # the channel of the draw that was nearest to its threshold is the one to flip
    nearest = jnp.arange(colour.size) == jnp.argmin(jnp.abs(draws[2:] - 0.5))
    same = (size == 1) & jnp.all(patch[place[0], place[1]] == colour)
    colour = jnp.where(same & nearest, 1 - colour, colour)
    return jnp.where(square_at(patch, place[0], place[1], size), colour[None, None], patch)


def _below(draw: Array, limit: Array) -> Array:
    """A whole number in [0, limit) from a draw in [0, 1)."""
    return jnp.minimum((draw * limit.astype(draw.dtype)).astype(jnp.int32), limit - 1)


def _support(set: PerturbationSet, x: Image) -> Bool[Array, "height width channels"]:
    return set._support(x) if isinstance(set, Masked) else jnp.ones(x.shape, bool)


def _free(set: PerturbationSet, x: Image) -> Pixels:
    """The pixels of which any channel may change."""
    return jnp.any(_support(set, x), -1, keepdims=True)


def _some(key: Key, among: Pixels, count: Array, dtype: Any, first: Pixels | None = None) -> Pixels:
    """`count` random pixels of some, or all of them if they are fewer; of those that come first if there are enough."""
    priority = 1 - jax.random.uniform(key, among.shape, dtype)
    if first is not None:
        priority = priority + first.astype(dtype)
    return first_largest(jnp.where(among, priority, 0), count) & among


def _corners(key: Key, x: Image) -> Image:
    """Every coordinate black or white."""
    return jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)


def _flips(key: Key, channels: int) -> Bool[Array, " channels"]:
    """A random set of channels that is not empty."""
    bits = min(channels, 20)
    number = jax.random.randint(key, (), 1, 2**bits, jnp.int32)
    return (number >> jnp.minimum(jnp.arange(channels, dtype=jnp.int32), bits)) % 2 == 1


def sparse_rs(
    set: PerturbationSet,
    *,
    queries: int = 10_000,
    share: Number | None = None,
    restarts: int = 1,
    loss: Loss = "margin",
    rescale_schedule: bool = True,
    move_every: int = 4,
) -> SparseRS:
    """Sparse-RS: random search by scores alone for few pixels, for a patch, or for a fixed support such as a frame.

    All colours are corners of the colour cube. A proposal is taken if the loss rises. With the radius k of `L0`, k
    random pixels are changed, and each proposal puts ⌊α_i k⌋ of them back (at least one) and changes as many others. A
    `Patch` of side s starts as a thousand random squares; a proposal paints a square of side ⌊√α_i s⌋ in it, and every
    fourth moves the patch instead, by up to ¾ of the image at first, down to nothing at the end. On a fixed support,
    each proposal paints a share α_i of its pixels. α_i falls from α: for `L0` to α/2 after the first proposal and on to
    α/20 after 80 % of the queries, for the others to α/2 after 0.1 % and on to α/128.

    Cost: `queries` · `restarts` forwards, no backwards; success may end it early.

    Args:
        set: `L0` by pixel, `Patch`, or `Masked` with `L0` by pixel or `Linf` inside; a frame is `Masked(Linf(1.0),
            mask)`. Another radius never recompiles.
        queries: queries of a run, ≥ 1, the first point among them; the clean image is not counted. Published: 10,000,
            with targets 50,000 for patches and 100,000 for pixels.
        share: α in [0, 1]; by default 0.3 for `L0`, 0.4 for patches, 0.5 for a support. With targets the paper has 0.1
            for pixels and patches.
        restarts: independent runs.
        loss: "margin", "cross_entropy" (the original for targets), "dlr" or a function of (logits (K,), criterion),
            ascended; targeted with a `Targeted` criterion.
        rescale_schedule: whether α falls at shares of the budget; else as for 10,000 queries.
        move_every: every so many queries a patch is moved, ≥ 1; with targets the paper has 10.

    Returns:
        The attack.

    Raises:
        TypeError: another set.
        ValueError: counts below 1, or a share outside of [0, 1].

    Example:
        >>> str(sparse_rs(jr.sets.Patch(20), queries=1000))
        'Sparse-RS in Patch(20), 1000 queries, margin'

    Reference:
        Croce et al., 2022, arXiv:2006.12834. Pixels and squares are drawn for each example, where the released code
        draws some of them for the whole batch; on frames it paints squares, here single pixels. The universal forms are
        not among these.
    """
    inner = set.set if isinstance(set, Masked) else set
    if isinstance(inner, L0) and inner.per == "pixel":
        return SparseRSPixels(set, queries, 0.3 if share is None else share, restarts, loss, rescale_schedule)
    if isinstance(set, Masked) and isinstance(inner, Linf):
        return SparseRSMask(set, queries, 0.5 if share is None else share, restarts, loss, rescale_schedule)
    if isinstance(set, Patch):
        return SparseRSPatch(
            set, queries, 0.4 if share is None else share, restarts, loss, rescale_schedule, move_every
        )
    raise TypeError(f"set must be L0 by pixel, Patch, or Masked with L0 by pixel or Linf inside; got {set}")


register(
    "sparse_rs",
    functools.partial(sparse_rs, queries=40),
    on="l0",
    use="First choice for a given number of pixels and for patches and frames, even when gradients are known.",
)
register("sparse_rs_patch", functools.partial(sparse_rs, queries=40), on="patch")
