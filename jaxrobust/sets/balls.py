"""Balls ∩ box, as functions of a vector and its bounds: exact projections, maximisers, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = [
    "kth_largest",
    "maximise_l1",
    "maximise_l2",
    "meet",
    "norm",
    "power_of_two",
    "project_l1",
    "project_l2",
    "room",
    "squared_gain",
    "unit",
]

Scalar = Float[Array, ""]

LENIENT = 1e-6  # share of a radius that a projection may leave unspent


def norm(vector: Array) -> Scalar:
    """‖v‖₂ over all entries, free of overflow and underflow.

    Args:
        vector: of any shape.

    Returns:
        The norm, with gradient 0 at 0.
    """
    largest = jnp.max(jnp.abs(vector))
    safe = jnp.where(largest > 0, largest, 1)
    total = jnp.sum(jnp.square(vector / lax.stop_gradient(safe)))
    return jnp.where(largest > 0, lax.stop_gradient(safe) * jnp.sqrt(jnp.where(largest > 0, total, 1)), 0)


def unit(vector: Array) -> Array:
    """v/‖v‖₂; scaled first, so that a gradient of 1e-30 keeps its direction.

    Args:
        vector: of any shape.

    Returns:
        The same shape, of norm 1; zeros for v = 0.
    """
    largest = jnp.max(jnp.abs(vector))
    scaled = vector / jnp.where(largest > 0, largest, 1)
    total = jnp.sum(jnp.square(scaled))
    return scaled * lax.rsqrt(jnp.where(total > 0, total, 1))


def room(v: Array, low: Array, high: Array) -> Array:
    """How far each entry can move along the sign of v before it meets its bounds: high where v > 0, else −low.

    Args:
        v: directions.
        low: lower bounds ≤ 0, such as −x.
        high: upper bounds ≥ 0, such as 1 − x.

    Returns:
        Lengths ≥ 0.
    """
    return jnp.where(v > 0, high, -low)


def project_l2(v: Array, low: Array, high: Array, radius: Scalar) -> Array:
    """argmin ‖v' − v‖₂ over ‖v'‖₂ ≤ r and low ≤ v' ≤ high: clip(s v) with the largest s ≤ 1 that meets the ball.

    Args:
        v: of any shape.
        low: lower bounds ≤ 0 of its entries, such as −x.
        high: upper bounds ≥ 0, such as 1 − x.
        radius: r ≥ 0.

    Returns:
        v', of the same shape; exact, where project-then-clip is not nearest.
    """
    return _stretched(v, low, high, radius, most=1.0)


def maximise_l2(v: Array, low: Array, high: Array, radius: Scalar) -> Array:
    """argmax <v, v'> over ‖v'‖₂ ≤ r and low ≤ v' ≤ high: clip(s v) with the largest s that meets the ball.

    Args:
        v: a gradient, of any shape.
        low: lower bounds ≤ 0 of its entries, such as −x.
        high: upper bounds ≥ 0, such as 1 − x.
        radius: r ≥ 0.

    Returns:
        v', of the same shape; zeros where v is zero.
    """
    return _stretched(unit(v), low, high, radius, most=math.inf)


def project_l1(v: Array, low: Array, high: Array, radius: Scalar) -> Array:
    """argmin ‖v' − v‖₂ over ‖v'‖₁ ≤ r and low ≤ v' ≤ high: clip(sign(v) max(|v| − t, 0)) with the smallest t ≥ 0.

    Args:
        v: of any shape.
        low: lower bounds ≤ 0 of its entries, such as −x.
        high: upper bounds ≥ 0, such as 1 − x.
        radius: r ≥ 0.

    Returns:
        v', of the same shape.
    """
    magnitude, space = jnp.abs(v), room(v, low, high)

    def total(base: Scalar, offset: Scalar) -> tuple[Scalar, Scalar]:
        kept = jnp.maximum(magnitude - base - offset, 0)
        slope = jnp.sum(((kept > 0) & (kept < space)).astype(v.dtype))
        return jnp.sum(jnp.minimum(kept, space)), slope

    base, offset = meet(total, radius, jnp.max(magnitude), jnp.max(space))
    return jnp.clip(jnp.sign(v) * jnp.maximum(magnitude - base - offset, 0), low, high)


def maximise_l1(v: Array, low: Array, high: Array, radius: Scalar) -> Array:
    """argmax <v, v'> over ‖v'‖₁ ≤ r and low ≤ v' ≤ high: entries go to their bounds by |v| until the budget is spent.

    Args:
        v: a gradient, of any shape.
        low: lower bounds ≤ 0 of its entries, such as −x.
        high: upper bounds ≥ 0, such as 1 − x.
        radius: r ≥ 0.

    Returns:
        v', of the same shape; zeros where v is zero.
    """
    flat = v.reshape(-1)
    space = jnp.where(flat == 0, 0, room(v, low, high).reshape(-1))
    order = jnp.argsort(-jnp.abs(flat))
    spent = jnp.cumsum(space[order]) - space[order]
    fill = jnp.clip(radius - spent, 0, space[order])
    return (jnp.zeros_like(flat).at[order].set(fill) * jnp.sign(flat)).reshape(v.shape)


def power_of_two(value: Scalar) -> Scalar:
    """The largest power of two that is not above a number: dividing by it rounds nothing.

    Args:
        value: a number ≥ 0.

    Returns:
        The power; 1 for 0.
    """
    value = lax.stop_gradient(value)
    bits = lax.bitcast_convert_type(value, jnp.dtype(f"int{8 * value.dtype.itemsize}"))
    mantissa = jnp.finfo(value.dtype).nmant
    power = lax.bitcast_convert_type((bits >> mantissa) << mantissa, value.dtype)
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1)


def squared_gain(theta: Array, kept: Array) -> Array:
    """The terms of Σ = ‖θ‖² − ‖θ − kept‖², over one power of two: free of cancellation, overflow and underflow.

    Args:
        theta: θ.
        kept: what is kept of it, such as its projection on a box.

    Returns:
        What keeping each entry gains, in a unit that is one for all.
    """
    return kept * ((2 * theta - kept) / power_of_two(jnp.max(jnp.abs(theta))))


def kth_largest(values: Array, k: int | Array) -> Scalar:
    """The k-th largest of values ≥ 0, bit by bit: their bits order as integers do.

    Counting thirty-odd times costs a fifth of what XLA:CPU takes to select.

    Args:
        values: of any shape.
        k: from 1, may be traced.

    Returns:
        The value.
    """
    integer = jnp.dtype(f"int{8 * values.dtype.itemsize}")
    bits = lax.bitcast_convert_type(values, integer)
    highest = 8 * values.dtype.itemsize - 2

    def set_bit(i: Array, found: Array) -> Array:
        candidate = found | (jnp.ones((), integer) << (highest - i).astype(integer))
        return jnp.where(jnp.sum(bits >= candidate, dtype=jnp.result_type(k)) >= k, candidate, found)

    found = lax.fori_loop(0, highest + 1, set_bit, jnp.zeros((), integer))
    return lax.bitcast_convert_type(found, values.dtype)


def meet(
    total: Callable[[Scalar, Scalar], tuple[Scalar, Scalar]], radius: Scalar, high: Scalar, reach: Scalar
) -> tuple[Scalar, Scalar]:
    """inf {t ≥ 0 : total(t) ≤ r} of a non-increasing total, as t = base + offset.

    Newton's step is exact on the right piece of a piecewise linear total; where it leaves the bracket, bisection takes
    its place. Where the floats near t lie further apart than the radius is long, as for a perturbation of 1e8, a second
    search finds the offset between two of them, and what is a little above t is to be told by (value − base) − offset.

    Args:
        total: of (base, offset), with its negated slope.
        radius: r.
        high: where the total is 0.
        reach: how far below a magnitude t has to be for that magnitude to have all its room.

    Returns:
        The base and the offset, which is in [−reach, 0].
    """

    def search(
        total: Callable[[Scalar], tuple[Scalar, Scalar]], low: Scalar, high: Scalar, done: Array
    ) -> tuple[Scalar, Scalar, Scalar, Scalar, Scalar]:
        first = low

        def body(carry: tuple[Scalar, Scalar, Scalar, Scalar, Scalar]) -> tuple[Scalar, Scalar, Scalar, Scalar, Scalar]:
            low, high, threshold, _, _ = carry
            value, slope = total(threshold)
            excess = value - radius
            low, high = jnp.where(excess > 0, threshold, low), jnp.where(excess > 0, high, threshold)
            newton = threshold + excess / jnp.where(slope > 0, slope, 1)
            middle = low + (high - low) / 2
            inside = (slope > 0) & (newton > low) & (newton < high)
            split = jnp.where(inside, newton, jnp.where((middle > low) & (middle < high), middle, high))
            solved = (jnp.abs(excess) <= tolerance) | ((excess <= 0) & (threshold == first))
            return low, high, jnp.where(solved, threshold, split), threshold, excess

        # two thresholds that are alike end the search
        start = (low, high, low, jnp.where(done, low, low - 1), 0 * (low + radius))
        return lax.while_loop(lambda carry: carry[2] != carry[3], body, start)

    tolerance = 16 * jnp.finfo(radius.dtype).eps * radius
    zero = jnp.zeros_like(high)
    low, _, base, _, excess = search(lambda base: total(base, zero), zero, high, jnp.zeros((), bool))
    spent = (excess >= -LENIENT * radius) | (base == 0)
    offset = search(lambda offset: total(base, offset), jnp.maximum(low - base, -reach), zero, spent)[2]
    return base, jnp.where(spent, 0, offset)


def _stretched(v: Array, low: Array, high: Array, radius: Scalar, *, most: float) -> Array:
    """clip(s v, low, high) with the largest s ≤ most of which the norm is at most the radius.

    Powers of two are taken out of v and the radius, so that no square overflows or underflows.
    """
    unit_v, unit_radius = power_of_two(jnp.max(jnp.abs(v))), power_of_two(radius)
    v = v / unit_v
    # beyond 4 room does not bind, since the radius is below 2
    space = jnp.minimum(room(v, low, high) / unit_radius, 4)
    scale = _largest_scale(jnp.abs(v), space, radius / unit_radius)
    # 1e20 stands for infinity, which times zero would be NaN
    moved = jnp.minimum(scale, 1e20) * v * unit_radius
    if math.isfinite(most):
        longest = most * unit_v
        moved = jnp.where(scale * unit_radius >= longest, longest * v, moved)
    return jnp.clip(moved, low, high)


def _largest_scale(magnitude: Array, room: Array, radius: Scalar) -> Scalar:
    """sup {s ≥ 0 : ‖min(s m, room)‖₂ ≤ r}, possibly infinite.

    With the entries that meet their room at s held there, the rest gives the next s in closed form. It never
    overshoots, because entries that will meet their room later only make the norm smaller, so a handful of rounds
    ends at the exact solution where bisection would take fifty.
    """
    square_room, square_magnitude = jnp.square(room), jnp.square(magnitude)

    def better(scale: Scalar) -> Scalar:
        met = scale * magnitude >= room
        left = jnp.maximum(jnp.square(radius) - jnp.sum(jnp.where(met, square_room, 0)), 0)
        free = jnp.sum(jnp.where(met, 0, square_magnitude))
        return jnp.where(free > 0, jnp.sqrt(left / jnp.where(free > 0, free, 1)), jnp.inf)

    def improves(carry: tuple[Scalar, Scalar, Array]) -> Array:
        scale, candidate, rounds = carry
        return (candidate > scale) & jnp.isfinite(candidate) & (rounds < 100)

    zero = jnp.zeros((), magnitude.dtype)
    start = (zero, better(zero), jnp.zeros((), jnp.int32))
    _, scale, _ = lax.while_loop(improves, lambda c: (c[1], jnp.maximum(better(c[1]), c[1]), c[2] + 1), start)
    return scale
