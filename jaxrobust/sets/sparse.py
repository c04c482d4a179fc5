"""Sparse sets: few pixels, few coordinates or few blocks change, and the convex ball that stands for few blocks."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets import balls
from jaxrobust.sets.balls import kth_largest, meet, power_of_two, squared_gain
from jaxrobust.sets.base import register
from jaxrobust.sets.lp import AdditiveBall
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["L0", "GroupL20", "GroupL21", "L0Linf"]

Scalar = Float[Array, ""]


class SparseSet(AdditiveBall):
    """At most ⌊radius⌋ groups of coordinates change, within bounds: what the hard-thresholded sets share.

    Not convex: the projection is exact all the same, but a convex combination of members, such as an iterate of
    Frank–Wolfe, need not be one.
    """

    def __post_init__(self) -> None:
        # as users write it; a number that was made canonical is of a set that was warned of
        if type(self.radius) is float and 0 < self.radius < 1:
            name = f"{type(self).__name__} of radius {self.radius:g}"
            _checks.slip(f"{name} holds the clean image alone: the radius counts what changes, so that it is 1 or more")
        super().__post_init__()

    @property
    @abc.abstractmethod
    def _block(self) -> int:
        """Side of the square blocks that are the groups; 0 where every coordinate is its own."""

    def _bounds(self, x: Image) -> tuple[Image, Image]:
        return -x, 1 - x

    def sample(self, key: Key, x: Image) -> Image:
        """⌊radius⌋ distinct random groups, every coordinate of theirs black or white (then clipped to the bounds)."""
        return self.sample_within(key, x, jnp.ones(x.shape, bool))

    def sample_within(self, key: Key, x: Image, support: Bool[Array, "height width channels"]) -> Image:
        """`sample` with groups that meet the support, and nothing outside of it."""
        place_key, colour_key = jax.random.split(key)
        allowed = group_sums(support.astype(x.dtype), self._block) > 0
        priority = 1 - jax.random.uniform(place_key, allowed.shape, x.dtype)
        chosen = allowed & first_largest(jnp.where(allowed, priority, 0), self._count(x))
        corner = jax.random.bernoulli(colour_key, 0.5, x.shape).astype(x.dtype)
        return jnp.where(spread(chosen, x, self._block) & support, jnp.clip(corner - x, *self._bounds(x)), 0)

    def project(self, x: Image, theta: Image) -> Image:
        """argmin ‖δ' − δ‖₂: the groups of largest gain, Σ δ² − (δ − clip δ)², clipped; ties by the lowest index."""
        kept = jnp.clip(theta, *self._bounds(x))
        gain = group_sums(squared_gain(theta, kept), self._block)
        return jnp.where(spread(first_largest(gain, self._count(x)), x, self._block), kept, 0)

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · g/max|g|: at size 1 the strongest coordinate crosses its whole range.

        A count has no steepest direction; keeping g's proportions lets the projection find where the loss rises
        most, and the scale does not depend on the number of pixels, as PGD₀'s g/‖g‖₁ does.
        """
        largest = jnp.max(jnp.abs(gradient))
        return theta + size * (gradient / jnp.where(largest > 0, largest, 1))

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ>: the groups with the largest Σ max(g · upper, g · lower) go to their bounds."""
        lower, upper = self._bounds(x)
        best = jnp.where(gradient > 0, upper, jnp.where(gradient < 0, lower, 0))
        gain = group_sums(gradient * best, self._block)
        return jnp.where(spread(first_largest(gain, self._count(x)), x, self._block), best, 0)

    def size(self, x: Image, theta: Image) -> Scalar:
        """How many groups change."""
        return jnp.sum((group_sums((theta != 0).astype(x.dtype), self._block) > 0).astype(x.dtype))

    def contains(self, x: Image, theta: Image) -> Bool[Array, ""]:
        """Whether at most ⌊radius⌋ groups change, counted exactly, within the bounds up to 1e-6."""
        lower, upper = self._bounds(x)
        inside = jnp.all((theta >= lower - 1e-6) & (theta <= upper + 1e-6))
        return inside & (self.size(x, theta) <= self._count(x).astype(x.dtype))

    def _count(self, x: Image) -> Array:
        return whole(self._radius(x), x.size)


@pytree("radius")
class L0(SparseSet):
    """At most ⌊radius⌋ pixels (or coordinates) change, to any value in [0, 1].

    Args:
        radius: k, a count ≥ 0; a fraction counts as its floor. Typical, in pixels: MNIST 10 to 25, CIFAR-10 9 to 24,
            ImageNet 150.
        per: "pixel" counts pixels of which any channel changes, "coordinate" every channel alone ("24 features" are
            not "24 pixels").

    Example:
        >>> str(L0(24))
        'L0(24)'

    Reference:
        Croce and Hein, 2019, arXiv:1909.05040 (projection; the official code keeps more than k on ties, this does
        not); Croce et al., 2022, arXiv:2006.12834 (random starts at the corners of the colour cube).
    """

    radius: Number
    per: Literal["pixel", "coordinate"] = "pixel"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice("per", self.per, ("pixel", "coordinate"))

    @property
    def _block(self) -> int:
        return 1 if self.per == "pixel" else 0

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.per == "pixel" else text.replace("(", " by coordinate(", 1)


@pytree("radius", "bound")
class L0Linf(SparseSet):
    """At most ⌊radius⌋ pixels (or coordinates) change, each coordinate by at most `bound`.

    Args:
        radius: k, a count ≥ 0; a fraction counts as its floor. No value is customary; the counts of `L0` with the
            bounds of `Linf`, such as 24 pixels and 0.1 on CIFAR-10, make a set that both exceed.
        bound: ε of max_i |δ_i| ≤ ε in pixel units of [0, 1], ≥ 0; traced, and left alone by `with_radius`.
        per: as for `L0`.

    Reference:
        Croce and Hein, 2019, arXiv:1909.05040.
    """

    radius: Number
    bound: Number
    per: Literal["pixel", "coordinate"] = "pixel"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bound", _checks.number("bound", self.bound))
        _checks.choice("per", self.per, ("pixel", "coordinate"))

    @property
    def _block(self) -> int:
        return 1 if self.per == "pixel" else 0

    def _bounds(self, x: Image) -> tuple[Image, Image]:
        bound = jnp.asarray(self.bound).astype(x.dtype)
        return jnp.maximum(-x, -bound), jnp.minimum(1 - x, bound)

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.per == "pixel" else text.replace("(", " by coordinate(", 1)


@pytree("radius")
class GroupL20(SparseSet):
    """At most ⌊radius⌋ blocks of pixels change, to any values in [0, 1].

    Args:
        radius: k, a count of blocks ≥ 0; a fraction counts as its floor. No value is customary; 6 blocks of 2 × 2 are
            the 24 pixels usual for `L0` on CIFAR-10.
        block: side r of the disjoint r × r blocks over all channels, ≥ 1 (static). The grid starts at the top left
            corner; blocks at the other edges may be incomplete. Overlapping blocks are not offered: their hard
            thresholding is a covering problem.

    Reference:
        Xu et al., 2019, arXiv:1808.01664 (the groups).
    """

    radius: Number
    block: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.count("block", self.block)

    @property
    def _block(self) -> int:
        return self.block


@pytree("radius")
class GroupL21(AdditiveBall):
    """The group-lasso ball {δ : Σ_G ‖δ_G‖₂ ≤ radius} ∩ box over disjoint blocks of pixels: few blocks, convexly.

    Args:
        radius: ε, the sum over blocks of the Euclidean norms of the change in [0, 1], ≥ 0. No value is customary; it
            lies between the l2 and the l1 norm of the same change, so between 0.5 and 12 on CIFAR-10.
        block: side r of the disjoint r × r blocks, as for `GroupL20` (static).
        quantile: steps move the blocks whose gradient norm is at or above this quantile, as in `L1` (static); 1
            moves the largest alone, the exact steepest ascent.

    Reference:
        Xu et al., 2019, arXiv:1808.01664, penalise the same norm; here it bounds a ball with an exact projection.
    """

    radius: Number
    block: int = 2
    quantile: float = dataclasses.field(default=0.99, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.count("block", self.block)
        object.__setattr__(self, "quantile", float(_checks.number("quantile", self.quantile, high=1.0)))

    def sample(self, key: Key, x: Image) -> Image:
        """Uniform in the ball, then projected on the box: block norms share out gamma variables, directions turn."""
        share_key, rest_key, direction_key = jax.random.split(key, 3)
        # a gamma variable of the block's dimension is a sum of exponentials, one a coordinate
        shares = group_sums(jax.random.exponential(share_key, x.shape, x.dtype), self.block)
        shares = shares / (jnp.sum(shares) + jax.random.exponential(rest_key, (), x.dtype))
        normal = jax.random.normal(direction_key, x.shape, x.dtype)
        scale = self._radius(x) * shares / jnp.maximum(self._norms(normal), 1e-12)
        return self.project(x, spread(scale, x, self.block) * normal)

    def project(self, x: Image, theta: Image) -> Image:
        """argmin ‖δ' − δ‖₂: block by block δ' = clip(s δ, −x, 1 − x) with s = n/(n + t), n = ‖δ'‖₂, and one t ≥ 0.

        t is the smallest that meets the ball: block soft-thresholding where the box does not bind.
        """
        magnitude = jnp.abs(theta)
        # moves are in this unit, so that no square underflows; beyond 4 of it room does not bind
        unit = power_of_two(jnp.minimum(self._radius(x), jnp.max(magnitude)))
        radius, room = self._radius(x) / unit, jnp.minimum(balls.room(theta, -x, 1 - x) / unit, 4)
        free = self.norms(jnp.where(room > 0, magnitude, 0))
        most = self._norms(jnp.minimum(magnitude / unit, room))

        # beneath the upper end rounding alone makes these equal
        nearly = 1 - 4 * jnp.finfo(x.dtype).eps

        def shrunk(norms: Array, threshold: Scalar) -> Image:
            scale = norms / jnp.where(norms > 0, norms * unit + threshold, 1)
            return jnp.minimum(spread(scale, x, self.block) * magnitude, room)

        def solve(base: Scalar, offset: Scalar) -> Image:
            """Every block's solution for t = base + offset: below the root in n, ‖clip(s δ)‖ is above n."""
            threshold = base + offset

            def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
                low, high = bracket
                middle = (low + high) / 2
                below = self._norms(shrunk(middle, threshold)) >= middle * nearly
                return jnp.where(below, middle, low), jnp.where(below, high, middle)

            # the upper end is the solution itself wherever the box does not bind
            highest = jnp.clip((free - base - offset) / unit, 0, most)
            met = self._norms(shrunk(highest, threshold)) >= highest * (1 - 1e-6)
            low, _ = lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 2, halve, (jnp.zeros_like(highest), highest))
            return shrunk(jnp.where(met, highest, low), threshold)

        def total(base: Scalar, offset: Scalar) -> tuple[Scalar, Scalar]:
            moved = solve(base, offset)
            norms = self._norms(moved)
            scale = norms / jnp.where(norms > 0, norms + (base + offset) / unit, 1)
            # implicit differentiation of n = ‖clip(δ n/(n + t))‖ with the clipped entries where they are
            loose = self._norms(jnp.where(moved < room, moved, 0)) / jnp.where(norms > 0, norms, 1)
            slope = jnp.square(loose) * scale / jnp.maximum(1 - jnp.square(loose) * (1 - scale), 1e-12)
            return jnp.sum(norms) * unit, jnp.sum(slope)

        moved = solve(*meet(total, self._radius(x), jnp.max(free), jnp.max(most) * unit))
        # what rounding leaves above the radius
        used = jnp.sum(self._norms(moved))
        return jnp.sign(theta) * moved * (unit * jnp.minimum(1, radius / jnp.where(used > 0, used, 1)))

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + Σ_G share · g_G/‖g_G‖₂ over the blocks of largest ‖g_G‖₂ that the box lets move; shares sum to size."""
        image = x + theta
        stuck = ((image >= 1) & (gradient > 0)) | ((image <= 0) & (gradient < 0))
        loose = jnp.where(stuck, 0, gradient)
        largest = jnp.max(jnp.abs(loose))
        loose = loose / jnp.where(largest > 0, largest, 1)
        strength = self._norms(loose)
        kept = strength.size - math.ceil(self.quantile * (strength.size - 1))
        chosen = (strength >= kth_largest(strength.reshape(-1), kept)) & (strength > 0)
        share = size / jnp.maximum(jnp.sum(chosen.astype(x.dtype)), 1)
        return theta + spread(jnp.where(chosen, share / jnp.where(chosen, strength, 1), 0), x, self.block) * loose

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ> over the ball ∩ box, by bisection on the multiplier t of the ball.

        For one t every block goes to clip(s g, −x, 1 − x) with the largest s at which a further unit of norm still
        gains t. At the critical t blocks that gain alike jump, and the two sides are mixed to spend the budget.
        """
        radius, room = self._radius(x), balls.room(gradient, -x, 1 - x)
        largest = jnp.max(jnp.abs(gradient))
        magnitude = jnp.abs(gradient) / jnp.where(largest > 0, largest, 1)
        free = self._norms(jnp.where(room > 0, magnitude, 0))
        square, full = jnp.square(magnitude), group_sums(jnp.square(room), self.block)

        def at(multiplier: Scalar) -> Image:
            def next_scale(scale: Array) -> Array:
                held = spread(scale, x, self.block) * magnitude >= room
                inner = group_sums(jnp.where(held, jnp.square(room), 0), self.block)
                left = jnp.square(multiplier) - group_sums(jnp.where(held, 0, square), self.block)
                # entries held too early make this too large and never too small, so it falls to the solution
                return jnp.where(left > 0, jnp.minimum(scale, jnp.sqrt(inner / jnp.where(left > 0, left, 1))), scale)

            start = jnp.minimum(jnp.sqrt(full) / jnp.maximum(multiplier, 1e-20), 1e20)
            carry = (start, next_scale(start), jnp.zeros((), jnp.int32))
            # a block of n coordinates takes at most n rounds
            rounds = self.block**2 * x.shape[2]
            _, scale, _ = lax.while_loop(
                lambda c: jnp.any(c[1] < c[0]) & (c[2] < rounds), lambda c: (c[1], next_scale(c[1]), c[2] + 1), carry
            )
            moved = jnp.minimum(spread(jnp.where(free > multiplier, scale, 0), x, self.block) * magnitude, room)
            return jnp.where(magnitude > 0, moved, 0)

        def halve(_: Array, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            low, high = bracket
            middle = (low + high) / 2
            over = jnp.sum(self._norms(at(middle))) > radius
            return jnp.where(over, middle, low), jnp.where(over, high, middle)

        low, high = lax.fori_loop(0, 40, halve, (jnp.zeros((), x.dtype), jnp.max(free)))
        more, less = at(low), at(high)
        most, least = jnp.sum(self._norms(more)), jnp.sum(self._norms(less))
        mix = jnp.clip((radius - least) / jnp.where(most > least, most - least, 1), 0, 1)
        return jnp.sign(gradient) * (less + mix * (more - less))

    def size(self, x: Image, theta: Image) -> Scalar:
        """Σ_G ‖δ_G‖₂."""
        return jnp.sum(self.norms(theta))

    def norms(self, vector: Image) -> Array:
        """‖v_G‖₂ of every block (⌈H/r⌉, ⌈W/r⌉, 1), free of overflow and underflow, with gradient 0 at 0."""
        unit = power_of_two(jnp.max(jnp.abs(vector)))
        return unit * self._norms(vector / unit)

    def _norms(self, vector: Image) -> Array:
        """`norms` of what can be squared."""
        total = group_sums(jnp.square(vector), self.block)
        return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), 0)


def whole(radius: Scalar, most: int) -> Array:
    """⌊radius⌋ as an integer, at most `most`; 28.999999, which is 0.29 · 100 in float32, counts as 29."""
    return jnp.floor(jnp.minimum(radius * (1 + 1e-6), most)).astype(jnp.int32)


def first_largest(scores: Array, count: Array) -> Array:
    """Which `count` of the scores ≥ 0 are the largest; of equal ones those of lowest index."""
    flat = scores.reshape(-1)
    threshold = kth_largest(flat, count)
    above, equal = flat > threshold, flat == threshold
    left = count - jnp.sum(above, dtype=count.dtype)
    chosen = above | (equal & (jnp.cumsum(equal, dtype=count.dtype) <= left))
    return (chosen & (count > 0)).reshape(scores.shape)


def group_sums(values: Image, block: int) -> Array:
    """Sums over r × r blocks and all channels, of shape (⌈H/r⌉, ⌈W/r⌉, 1); block 0 leaves the coordinates alone."""
    if block == 0:
        return values
    height, width, channels = values.shape
    padded = jnp.pad(values, ((0, -height % block), (0, -width % block), (0, 0)))
    return padded.reshape(-(-height // block), block, -(-width // block), block, channels).sum((1, 3, 4))[:, :, None]


def spread(groups: Array, x: Image, block: int) -> Array:
    """What belongs to a block at each of its pixels: (H, W, 1), or (H, W, C) for block 0."""
    if block == 0:
        return groups
    tiled = jnp.broadcast_to(groups[:, None, :, None], (groups.shape[0], block, groups.shape[1], block, 1))
    return tiled.reshape(groups.shape[0] * block, groups.shape[1] * block, 1)[: x.shape[0], : x.shape[1]]


register("l0", lambda: L0(5))
register("l0_coordinate", lambda: L0(8, "coordinate"))
register("l0_linf", lambda: L0Linf(5, 0.3))
register("group_l20", lambda: GroupL20(3))
register("group_l21", lambda: GroupL21(2.0))
