"""The nearest point of a hyperplane within the box [0, 1], exactly, in the l1, l2 and l∞ norm."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrobust.sets import balls
from jaxrobust.types import Image

__all__ = ["to_hyperplane"]

Scalar = Float[Array, ""]


def to_hyperplane(x: Image, normal: Image, offset: Scalar, *, p: int | float) -> Image:
    """argmin ‖δ‖_p subject to <w, δ> = c and 0 ≤ x + δ ≤ 1.

    Every pixel moves along sign(c w): by min(λ, room) for l∞, by min(λ |w|, room) for l2, both with the λ that meets
    the hyperplane; for l1 pixels fill their room in order of |w| until it is met.

    Args:
        x: (H, W, C) in [0, 1].
        normal: w, (H, W, C).
        offset: c, how far <w, ·> must rise.
        p: 1, 2 or ∞ (static).

    Returns:
        δ (H, W, C). Where the box does not reach the hyperplane, the corner nearest to it (pixels with w = 0 stay);
        for w = 0, zeros.

    Reference:
        Hein and Andriushchenko, 2017, arXiv:1705.08475 (appendix); Croce and Hein, 2020, arXiv:1907.02044.
    """
    largest = jnp.max(jnp.abs(normal))
    safe = jnp.where(largest > 0, largest, 1)
    weight, needed = jnp.abs(normal / safe), jnp.abs(offset / safe)
    direction = jnp.sign(offset) * jnp.sign(normal)
    room = jnp.where(weight > 0, jnp.maximum(balls.room(direction, -x, 1 - x), 0), 0)
    if p == 1:
        return direction * _filled(weight, room, needed)
    speed = jnp.ones_like(weight) if p == math.inf else weight
    # 1e20 stands for infinity, which times zero would be NaN
    length = jnp.minimum(_length(weight, speed, room, needed), 1e20)
    return direction * jnp.minimum(length * speed, room)


def _length(weight: Array, speed: Array, room: Array, needed: Scalar) -> Scalar:
    """inf {λ ≥ 0 : Σ w min(λ s, room) ≥ c}, possibly infinite.

    The sum is concave in λ: Newton's steps from 0 never overshoot, each holds at least one entry more at its room,
    and the one that holds none more is exact.
    """

    def better(length: Scalar) -> Scalar:
        met = length * speed >= room
        left = needed - jnp.sum(jnp.where(met, weight * room, 0))
        slope = jnp.sum(jnp.where(met, 0, weight * speed))
        return jnp.where(left > 0, jnp.where(slope > 0, left / jnp.where(slope > 0, slope, 1), jnp.inf), length)

    def improves(carry: tuple[Scalar, Scalar, Array]) -> Array:
        length, candidate, rounds = carry
        return (candidate > length) & jnp.isfinite(candidate) & (rounds < weight.size)

    zero = jnp.zeros((), weight.dtype)
    start = (zero, better(zero), jnp.zeros((), jnp.int32))
    _, length, _ = lax.while_loop(improves, lambda c: (c[1], jnp.maximum(better(c[1]), c[1]), c[2] + 1), start)
    return length


def _filled(weight: Array, room: Array, needed: Scalar) -> Array:
    """Moves ≤ room of least sum with Σ w · move = c: the heaviest first, the last one in part."""
    flat = weight.reshape(-1)
    order = jnp.argsort(-flat)
    heavy = flat[order]
    gain = heavy * room.reshape(-1)[order]
    spent = jnp.cumsum(gain) - gain
    # a full move is the room itself, not the room up to rounding
    part = jnp.clip(needed - spent, 0, gain) / jnp.where(heavy > 0, heavy, 1)
    moved = jnp.where(needed - spent >= gain, room.reshape(-1)[order], part)
    return jnp.zeros_like(flat).at[order].set(moved).reshape(weight.shape)
