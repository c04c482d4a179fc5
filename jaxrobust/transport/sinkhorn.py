"""Entropic transport on the pixel grid, in logarithms: the projected Sinkhorn iteration, and certified distances.

A plan is held as two images of log-weights a and b and a price ψ of cost, Π[j, i] = exp(a_i + b_{i+j} − ψ C_j) over the
offsets j of the window. Sums over every pixel's window are all that the iterations need (`transport.windowed`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxrobust.transport import plans
from jaxrobust.transport.plans import Plan
from jaxrobust.transport.windowed import Window, log_of, row_sums, safe_range, with_rows
from jaxrobust.types import Image, Number

__all__ = ["Projection", "sinkhorn_projection", "wright_omega"]

Scalar = Float[Array, ""]
LogImage = Float[Array, "height width channels"]  # −∞ where there is no mass


def wright_omega(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The Wright omega function on the real line: the ω > 0 with ω + log ω = y, that is W₀(e^y) without overflow.

    Args:
        y: any real numbers.

    Returns:
        ω(y), to a few units in the last place.

    Example:
        >>> float(wright_omega(jnp.asarray(1.0)))
        1.0

    Reference:
        Lawrence, Corless and Jeffrey, 2012, Algorithm 917, for the fourth-order step of Fritsch, Shafer and Crowley.
    """
    # outside of these the first guesses are exact to working precision, and the step would overflow or add noise
    inner = jnp.clip(y, -17, 1e8)
    guess = jnp.where(y > 1, y - jnp.log(jnp.maximum(y, 1)), jnp.log1p(jnp.exp(jnp.minimum(y, 1))))
    omega = jnp.clip(guess, 1e-8, 1e8)
    for _ in range(2):
        residual = inner - omega - jnp.log(omega)
        near = 1 + omega
        bound = 2 * near * (near + 2 / 3 * residual)
        omega = omega * (1 + residual / near * (bound - residual) / (bound - 2 * residual))
    return jnp.where(y == inner, omega, jnp.where(y > 0, guess, jnp.exp(jnp.minimum(y, 0))))


def _log_omega(y: LogImage) -> LogImage:
    """log ω(y): exact also where ω underflows."""
    omega = wright_omega(y)
    return jnp.where(y < 1, y - omega, jnp.log(jnp.maximum(omega, 1e-30)))


class Projection(NamedTuple):
    """What `sinkhorn_projection` returns.

    Args:
        image: (H, W, C), the plan's columns: mass by channel is that of x, values in [0, capacity].
        plan: (k², H, W, C), its rows are x to rounding.
        cost: () <C, Π>/Σx; where the iteration has converged, to tolerance at most the radius.
        dual: () the dual objective, of masses normalised to 1.
        error: () Σ|Π1 − x|/Σx before the last half-step made the rows exact: how far the iteration had converged.
        rounds: () how many it took.
    """

    image: Image
    plan: Plan
    cost: Scalar
    dual: Scalar
    error: Scalar
    rounds: Int[Array, ""]


class _Dual(NamedTuple):
    """Where the dual ascent stands: log-weights of rows and columns, the price ψ of cost, and the last errors."""

    left: LogImage
    right: LogImage
    price: Scalar
    error: Scalar
    slack: Scalar
    rounds: Int[Array, ""]


def sinkhorn_projection(
    x: Image,
    w: Image,
    radius: Number,
    *,
    p: int = 2,
    kernel: int = 5,
    regularisation: Number = 1000.0,
    capacity: Number = 1.0,
    rounds: Number = 400,
    tolerance: Number = 1e-4,
) -> Projection:
    """The entropic projection of w onto the local Wasserstein ball around x: projected Sinkhorn.

    With masses divided by s = Σx, it solves min_{z, Π} (λ/2)‖w − z‖₂² + Σ Π (log Π − 1) subject to Π1 = x, Πᵀ1 = z ≤
    capacity/s and <C, Π> ≤ radius, by block ascent on the dual max_{a, b, ψ ≥ 0} Σ_j min_{z ≤ cap} {(λ/2)(w_j − z)² +
    b_j z} + <a, x> − ψ radius − Σ Π with Π = exp(a_i + b_{i+j} − ψ C_j). Rows and columns are maximised in closed form
    (by the Wright omega function), the price ψ by a Newton step on log <C, Π> that is curbed so that it never
    overshoots; so the dual never decreases. The loop ends when rows and budget hold to the tolerance.

    Args:
        x: (H, W, C) in [0, capacity].
        w: (H, W, C), any real numbers.
        radius: mean distance^p by which a unit of mass may move, ≥ 0.
        p: 1 or 2.
        kernel: side k of the window, odd.
        regularisation: λ ≥ 0; larger is sharper and slower.
        capacity: the most that a pixel holds, 1 for images; infinity for no bound.
        rounds: the most rounds.
        tolerance: of mass and of the radius.

    Returns:
        The projection.

    Reference:
        Wong, Schmidt and Kolter, 2019, arXiv:1902.07906. The released code clamps to [0, 1] afterwards, which destroys
        mass; here the bound is part of the problem and costs nothing. Its convergence test swaps two arguments and
        waits for the slowest of the batch; here each image stops by its own marginal error.
    """
    window, dtype = Window(kernel, p), x.dtype
    mass = jnp.sum(x)
    total = jnp.where(mass > 0, mass, 1)
    source, wanted = x / total, w / total
    log_source = log_of(source)
    # a radius of 0 has no finite price
    budget = jnp.maximum(jnp.asarray(radius).astype(dtype), 1e-9)
    strength = jnp.asarray(regularisation).astype(dtype)
    room = jnp.asarray(capacity).astype(dtype) / total
    costs = window.costs[window.costs > 0]
    # the second derivative of log <C, Π> in ψ is a variance of costs, at most this
    bend = float(costs.max() - costs.min()) ** 2 / 4 if kernel > 1 else 0.0

    def rows(right: LogImage, price: Scalar, plain: bool) -> LogImage:
        return jnp.where(source > 0, log_source - window.log_sum(right, price, plain=plain), -jnp.inf)

    def step(state: _Dual, plain: bool) -> _Dual:
        left = rows(state.right, state.price, plain)
        error = jnp.sum(jnp.abs(source * jnp.expm1(jnp.where(source > 0, state.left - left, 0))))
        cost, square = window.moments(left, state.right, state.price, plain=plain)
        over = (cost - budget) / budget
        slack = jnp.where(state.price > 0, jnp.abs(over), jnp.maximum(over, 0))
        price = _next_price(state.price, cost, square, budget, bend)
        arriving = window.log_sum(left, price, plain=plain)
        reached = jnp.isfinite(arriving)
        arriving = jnp.where(reached, arriving, 0)
        log_z = _log_omega(jnp.log(strength) + strength * wanted + arriving) - jnp.log(strength)
        # the second value is that of z = 0, where nothing arrives
        right = jnp.where(reached, jnp.minimum(log_z, jnp.log(room)) - arriving, strength * wanted)
        return _Dual(left, right, price, error, slack, state.rounds + 1)

    def going(state: _Dual, plain: bool) -> Bool[Array, ""]:
        unfinished = (state.error > tolerance) | (state.slack > tolerance)
        safe = safe_range(state.left) & safe_range(state.right)
        return unfinished & (state.rounds < rounds) & (mass > 0) & (safe | (not plain))

    unknown = jnp.asarray(jnp.inf, dtype)
    start = strength * (wanted - source)
    state = _Dual(log_source, start, jnp.ones((), dtype), unknown, unknown, jnp.zeros((), jnp.int32))
    for plain in (True, False):  # an image goes over to logarithms when, if ever, it needs them
        state = lax.while_loop(functools.partial(going, plain=plain), functools.partial(step, plain=plain), state)
    left = rows(state.right, state.price, plain=False)
    plan = with_rows(window.plan(left, state.right, state.price), x)
    z = jnp.minimum(wanted - state.right / strength, room)
    dual = (
        jnp.sum(strength / 2 * jnp.square(wanted - z) + state.right * z)
        + jnp.sum(jnp.where(source > 0, left * source, 0))
        - state.price * budget
        - jnp.sum(plan) / total
    )
    cost = jnp.sum(row_sums(plan, window.costs)) / total
    return Projection(plans.columns(plan), plan, cost, dual, state.error, state.rounds)


def _next_price(price: Scalar, cost: Scalar, square: Scalar, budget: Scalar, bend: float) -> Scalar:
    """ψ after one step towards log <C, Π> = log budget, a convex function of ψ, without passing the solution.

    To the right Newton's step falls short of it by convexity. To the left the bound on the curvature is solved for,
    which is Newton's step where the gap is small.
    """
    usable = cost > 0
    slope = jnp.where(usable, square / jnp.where(usable, cost, 1), 1)
    slope = jnp.maximum(slope, 1e-6)
    gap = jnp.log(jnp.where(usable, cost, budget)) - jnp.log(budget)
    back = 2 * jnp.maximum(-gap, 0) / (slope + jnp.sqrt(jnp.square(slope) + 2 * bend * jnp.maximum(-gap, 0)))
    moved = price + jnp.maximum(gap, 0) / slope - back
    return jnp.maximum(jnp.where(usable, moved, price), 0)
