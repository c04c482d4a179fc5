"""From almost feasible plans to feasible ones: mass goes back to where it came from until every limit is met."""

from __future__ import annotations

from typing import cast

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.transport.plans import Plan, allowed, columns, costs, grand_total, kernel_of, window_sums, windows
from jaxrobust.types import Image

__all__ = ["repair"]

Scalar = Float[Array, ""]
PATIENCE = 16  # rounds of exact returns before larger ones
SPARE = 4 * float(np.finfo(np.float32).eps)  # how far above 1 rounding may leave a pixel


def repair(plan: Plan, x: Image, budget: Scalar, *, p: int = 1, capacity: bool = True) -> Plan:
    """A feasible plan near one that almost is: nothing moves further, some mass moves back to its source.

    Mass that would leave the image or is negative is dropped; the moves of pixels that send more than they have, then
    all moves where they cost more than the budget, are scaled down; then pixels that receive more than they can hold
    send the excess back, evenly, along all moves that reach them. What a pixel keeps is what it does not send, so
    rows are met to rounding. A plan that is feasible already is returned as it is, up to rounding.

    Args:
        plan: (k², H, W, C).
        x: (H, W, C) in [0, 1], the mass of every pixel.
        budget: ≥ 0, in units of mass · distance^p: radius · Σ x.
        p: the power of the distance, 1 or 2.
        capacity: whether no pixel may receive more than 1.

    Returns:
        (k², H, W, C) with Π ≥ 0, Σ_j Π[j] = x, <C, Π> ≤ budget and `columns(Π)` ≤ 1, up to rounding (5e-7).

    Example:
        >>> x = jnp.ones((3, 3, 1))
        >>> image = columns(repair(windows(x, 3), x, jnp.asarray(9.0)))  # full pixels can only swap mass
        >>> bool(jnp.allclose(image, x, atol=1e-6))
        True
    """
    kernel = kernel_of(plan)
    middle = kernel**2 // 2
    cost = costs(kernel, _checks.choice("p", p, (1, 2)))
    movable = allowed((x.shape[0], x.shape[1], 1), kernel) & (np.arange(kernel**2) != middle)[:, None, None, None]
    moves = lax.optimization_barrier(jnp.where(movable, jnp.maximum(plan, 0), 0))
    sent, spent = window_sums([lambda m, j: m[j], lambda m, j: float(cost[j]) * m[j]], kernel, moves)
    share = jnp.minimum(1, x / jnp.where(sent > 0, sent, 1))
    spent = grand_total(share * spent)
    share = share * jnp.minimum(1, budget / jnp.where(spent > 0, spent, 1))
    moves = moves * share[None]
    if capacity:
        moves = _return_excess(moves, x, kernel)
    return cast(Plan, moves.at[middle].set(jnp.maximum(x - _total(moves), 0)))


def _return_excess(moves: Plan, x: Image, kernel: int) -> Plan:
    """Pixels above 1 send their excess back to its sources, until none is left.

    What comes back may overfill its source in turn, and among full pixels that swap mass it may go round for long.
    So after `PATIENCE` rounds the share that is sent back doubles with every round: a pixel that has returned all
    that it received holds at most x ≤ 1 for good, so the loop ends, and the cost only falls.
    """
    room = jnp.maximum(x, 1)

    def state(moves: Plan) -> tuple[Image, Image]:
        received = columns(moves)
        return x - _total(moves) + received - room, received

    def unmet(carry: tuple[Plan, Array, Image, Image]) -> Array:
        _, _, excess, received = carry
        return jnp.any((excess > SPARE) & (received > 0))  # both are in the carry, so this costs one small pass

    def send_back(carry: tuple[Plan, Array, Image, Image]) -> tuple[Plan, Array, Image, Image]:
        moves, rounds, excess, received = carry
        urge = 2.0 ** jnp.maximum(rounds - PATIENCE, 0).astype(x.dtype)
        share = jnp.clip(urge * excess / jnp.where(received > 0, received, 1), 0, 1)
        moves = moves * (1 - windows(share, kernel))
        return moves, rounds + 1, *state(moves)

    return lax.while_loop(unmet, send_back, (moves, jnp.zeros((), jnp.int32), *state(moves)))[0]


def _total(plan: Plan) -> Image:
    return window_sums([lambda plan, j: plan[j]], kernel_of(plan), plan)[0]
