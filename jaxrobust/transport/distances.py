"""Certified bounds of the local transport distance between two images, from Sinkhorn's iteration and rounding."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float, Int

from jaxrobust.transport import plans
from jaxrobust.transport.plans import Plan
from jaxrobust.transport.windowed import Window, log_of, row_sums
from jaxrobust.types import Image, Number

__all__ = ["Bounds", "bounds", "certificate"]

Scalar = Float[Array, ""]

# The share of all mass that float32 may leave unmatched. It is priced at the farthest cost of the window.
UNMATCHED = 1e-5
# At each temperature: rounds of Sinkhorn's iteration, then one Newton step of so many conjugate gradients at most.
SWEEPS = 2
SOLVE = 50
# The farthest that Newton's step may move a log-weight.
FARTHEST_STEP = 3.0
# Temperatures fall by this factor from 1, the cost of the shortest move.
COOLING = 0.7


class Bounds(NamedTuple):
    """Where the distance lies.

    Args:
        lower: () the value of a feasible dual; infinite where no plan exists.
        upper: () the cost of a plan, infinite where none was found.
        potential: (H, W, C) g, of which Σ (f x + g z)/Σx is the lower bound: the gradient of the distance in z, up to
            a constant for each channel and the factor 1/Σx.
    """

    lower: Scalar
    upper: Scalar
    potential: Image


class _State(NamedTuple):
    potential: Image  # g, where the iteration stands
    best: Image  # that of the lower bound
    lower: Scalar
    upper: Scalar
    price: Scalar  # 1/temperature
    blocks: Int[Array, ""]


def bounds(
    x: Image,
    z: Image,
    *,
    p: int,
    kernel: int,
    radius: Number | None = None,
    tolerance: float = 1e-3,
    blocks: int = 40,
) -> Bounds:
    """Bounds of min {<C, Π>/Σx : Π ≥ 0, Π1 = x, Πᵀ1 = z} over plans within a k x k window and a channel.

    Entropic transport at falling temperatures, by a few rounds of Sinkhorn's iteration and Newton steps, since the
    rounds alone take thousands where little mass moves. A Newton step gives a plan whose rows are x and whose columns
    are z, not only nearly: its cost is an upper bound. Potentials g with their best partners f_i = min_j (C_ij − g_j)
    give the lower one. Both are kept at their best.

    Args:
        x: (H, W, C) ≥ 0.
        z: (H, W, C) ≥ 0. Where a channel's mass differs from that of x by more than float32 does (1e-5 of all mass), no
            plan exists.
        p: 1 or 2.
        kernel: side k of the window, odd.
        radius: if given, the search ends as soon as the bounds tell whether the distance is above it.
        tolerance: the search ends when the bounds are as close as this, relatively, or when a lower temperature betters
            the plan by less.
        blocks: the most Newton steps.

    Returns:
        The bounds; both are 0 for z = x.

    Reference:
        Altschuler, Weed and Rigollet, 2017, arXiv:1705.09634, round by moving what is left over anywhere; that would
        leave the window, and so a Newton step does it here. Brauer, Clason, Lorenz and Wirth, 2017, arXiv:1710.06635,
        for Newton's method on the entropic dual.
    """
    window, dtype = Window(kernel, p), x.dtype
    mass = jnp.sum(x)
    total_mass = jnp.where(mass > 0, mass, 1)
    channels, others = jnp.sum(x, (0, 1)) / total_mass, jnp.sum(z, (0, 1)) / total_mass
    source = x / total_mass
    target = z / total_mass * (channels / jnp.where(others > 0, others, 1))[None, None]
    log_source, log_target = log_of(source), log_of(target)
    goal = None if radius is None else jnp.asarray(radius).astype(dtype)

    def partner(right: Image, price: Scalar) -> Image:
        return jnp.where(source > 0, log_source - window.log_sum(right, price, plain=False), -jnp.inf)

    def block(state: _State) -> _State:
        price = state.price
        right = jnp.where(target > 0, state.potential * price, -jnp.inf)
        right = jnp.where(state.blocks == 0, log_target, right)
        for _ in range(SWEEPS):
            arriving = window.log_sum(partner(right, price), price, plain=False)
            right = jnp.where(jnp.isfinite(arriving) & (target > 0), log_target - arriving, -jnp.inf)
        unreached = jnp.any((target > 0) & ~jnp.isfinite(right))
        plan = window.plan(partner(right, price), right, price)
        newton, upper = _newton(window, plan, source, target)
        right = right + newton * jnp.minimum(1, FARTHEST_STEP / jnp.maximum(jnp.max(jnp.abs(newton)), 1e-30))
        potential = jnp.where(jnp.isfinite(right), right / price, 0)
        partners = window.least(jnp.where(jnp.isfinite(right), potential, -jnp.inf))
        lower = jnp.sum(jnp.where(source > 0, source * partners, 0)) + jnp.sum(target * potential)
        # colder plans are no better any more
        settled = jnp.isfinite(upper) & (upper >= (1 - tolerance) * state.upper)
        return _State(
            potential,
            jnp.where(lower > state.lower, potential, state.best),
            jnp.maximum(state.lower, jnp.where(unreached, jnp.inf, lower)),
            jnp.minimum(state.upper, upper),
            jnp.where(jnp.isfinite(upper), price / COOLING, price),
            jnp.where(settled, blocks, state.blocks + 1),
        )

    def going(state: _State) -> Bool[Array, ""]:
        undecided = jnp.isinf(state.upper) | (state.upper - state.lower > tolerance * state.upper)
        if goal is not None:
            undecided &= (state.upper > goal) & (state.lower <= goal)
        return undecided & jnp.isfinite(state.lower) & (state.blocks < blocks)

    possible = jnp.all(jnp.abs(channels - others) <= UNMATCHED) & jnp.all(z >= 0)
    zero, infinite = jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype)
    same = jnp.all(x == z) | ((mass == 0) & possible)
    state = _State(
        jnp.zeros_like(x),
        jnp.zeros_like(x),
        jnp.where(possible, zero, infinite),
        jnp.where(same, zero, infinite),
        jnp.ones((), dtype),
        jnp.zeros((), jnp.int32),
    )
    state = lax.while_loop(going, block, state)
    return Bounds(jnp.minimum(state.lower, state.upper), state.upper, state.best)


def _newton(window: Window, plan: Plan, source: Image, target: Image) -> tuple[Image, Scalar]:
    """Newton's step of the entropic dual from a plan whose rows are the source: in log-weights, and what it certifies.

    The plan Π(1 + a_i + b_j) has rows x and columns z where x a + Π b = 0 and Πᵀ a + (Πᵀ1) b = z − Πᵀ1; that is a
    Laplacian in b, solved by conjugate gradients. Where no entry is negative it is a plan, and its cost is returned.
    """
    arrived = plans.columns(plan)
    heavy = jnp.where(arrived > 0, arrived, 1)

    def answer(b: Image) -> Image:
        return -row_sums(plan * plans.windows(b, window.kernel)) / jnp.where(source > 0, source, 1)

    def laplacian(b: Image) -> Image:
        return arrived * b + plans.columns(plan * answer(b)[None])

    wanted = jnp.where(arrived > 0, target - arrived, 0)
    b, _ = cg(laplacian, wanted, tol=1e-4, maxiter=SOLVE, M=lambda r: jnp.where(arrived > 0, r / heavy, 0))
    b = jnp.where(jnp.isfinite(b), b, 0)
    factor = 1 + answer(b)[None] + plans.windows(b, window.kernel)
    better = plan * jnp.maximum(factor, 0)
    sent, got = row_sums(better), plans.columns(better)
    unmatched = jnp.maximum(jnp.sum(jnp.abs(sent - source)), jnp.sum(jnp.abs(got - target))) / 2
    cost = jnp.sum(row_sums(better, window.costs)) + window.farthest * unmatched
    return b, jnp.where(unmatched <= UNMATCHED, cost, jnp.inf)


def certificate(x: Image, z: Image, *, p: int, kernel: int, blocks: int = 40) -> Scalar:
    """An upper bound of the local transport distance from x to z: the cost of a plan between them.

    Args:
        x: (H, W, C) ≥ 0.
        z: (H, W, C) ≥ 0.
        p: 1 for distances in pixels, 2 for their squares.
        kernel: side k of the window, odd.
        blocks: as in `bounds`.

    Returns:
        () mean cost of a unit of mass; exactly 0 for z = x, and infinite where the masses of a channel differ or the
        window does not reach. Its gradient in z is the dual potential, which is that of the distance itself.

    Example:
        >>> x = jnp.zeros((1, 2, 1)).at[0, 0, 0].set(1.0)
        >>> z = jnp.asarray([[[0.75], [0.25]]])
        >>> round(float(certificate(x, z, p=1, kernel=3)), 4)
        0.25
    """
    found = bounds(lax.stop_gradient(x), lax.stop_gradient(z), p=p, kernel=kernel, blocks=blocks)
    mass = jnp.sum(lax.stop_gradient(x))
    slope = found.potential - jnp.mean(found.potential, (0, 1), keepdims=True)
    change = jnp.sum(slope * (z - lax.stop_gradient(z))) / jnp.where(mass > 0, mass, 1)
    return found.upper + jnp.where(jnp.isfinite(found.upper), change, 0)
