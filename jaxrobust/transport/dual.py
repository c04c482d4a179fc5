"""The nearest plan in a Wasserstein ball, by its dual: a price for distance and a price for every full pixel.

At prices λ ≥ 0 of distance and μ ≥ 0 of room the nearest plan to G is found pixel by pixel: of the values
V = G − λC − windows(μ) it keeps max(V − θ, 0), with the threshold θ at which a pixel sends just what it has. What is
sent, spent and received is piecewise linear in (λ, θ, μ), so Newton's steps are exact once they stand on the right
piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrobust import _checks, _compile
from jaxrobust.transport.capacity import repair
from jaxrobust.transport.plans import Plan, allowed, costs, grand_total, kernel_of, offsets, window_sums, windows
from jaxrobust.types import Image

__all__ = ["project"]

Scalar = Float[Array, ""]
Value = Callable[[Any, int], Image]  # from arrays and an offset to V[offset] − θ, whose positive part is the plan


def project(plan: Plan, x: Image, budget: Scalar, *, p: int = 1, capacity: bool = True, rounds: int = 15) -> Plan:
    """The plan in the ball that is nearest to a given array, argmin ‖Π − plan‖₂.

    The ball is {Π ≥ 0 : Σ_j Π[j] = x, <C, Π> ≤ budget, no mass leaves the image, columns(Π) ≤ 1}. First all prices are
    improved together: a Newton step for λ and θ, an accelerated gradient step for μ, in which each pixel's price moves
    by its excess over the number of moves that reach it (this count bounds the curvature of the dual). Then λ and θ
    are solved for exactly at the last μ, and `repair` sends back what excess is left. So the result is feasible
    whatever the number of rounds, and exact to rounding once they converge.

    Args:
        plan: (k², H, W, C), any numbers; a plan plus a gradient step, say.
        x: (H, W, C) in [0, 1], the mass of every pixel.
        budget: ≥ 0, in units of mass · distance^p: radius · Σ x.
        p: the power of the distance, 1 or 2.
        capacity: whether no pixel may receive more than 1.
        rounds: how many rounds the prices of room get at most, ≥ 0 (static). After a gradient step of 0.5 on small
            images, 15 leave 1e-4 of the way to the optimum at most, and 60 5e-7.

    Returns:
        (k², H, W, C), feasible up to rounding.

    Example:
        >>> x = jnp.full((1, 2, 1), 0.5)
        >>> towards = identity(x, 3) + windows(jnp.array([[[0.0], [1.0]]]), 3)
        >>> columns(project(towards, x, jnp.asarray(0.2))).ravel().tolist()  # 0.2 of mass moves by one pixel
        [0.30000001192092896, 0.699999988079071]

    Reference:
        Wu, Wang and Yu, 2020, arXiv:2008.02883. They bisect λ, sort every row at each λ, and meet the capacity in 5,000
        gradient steps after the attack; their result is feasible only up to their tolerance.
    """
    kernel_of(plan)
    _checks.choice("p", p, (1, 2))
    _checks.count("rounds", rounds, low=0)
    return _project(plan, x, budget, p=p, capacity=capacity, rounds=rounds)


# a program of its own, so that an attack that projects in three places is traced once
@functools.partial(_compile.jit, static_argnames=("p", "capacity", "rounds"))
def _project(plan: Plan, x: Image, budget: Scalar, *, p: int, capacity: bool, rounds: int) -> Plan:
    kernel = kernel_of(plan)
    values = lax.optimization_barrier(jnp.where(allowed((x.shape[0], x.shape[1], 1), kernel), plan, -jnp.inf))
    # what is common to a row changes nothing but costs digits
    values = lax.optimization_barrier(values - _largest(lambda v, j: v[j], kernel, values)[None])
    ball = _Ball(values, x, budget, tuple(costs(kernel, p).tolist()), kernel)
    zero = jnp.zeros((), x.dtype)
    prices = _Prices(zero, _thresholds(ball, _Prices(zero, -x)))
    if capacity and rounds:
        prices, room = _price_room(ball, prices, rounds)
        ball = ball._replace(values=lax.optimization_barrier(values - windows(room, kernel)))
    distance, threshold = _meet_budget(ball, prices)
    cost = jnp.asarray(ball.costs, x.dtype)[:, None, None, None]
    nearest = jnp.maximum(ball.values - distance * cost - threshold[None], 0)
    return repair(nearest, x, budget, p=p, capacity=capacity)


class _Ball(NamedTuple):
    values: Plan  # what is to be projected, −∞ for moves out of the image
    x: Image
    budget: Scalar
    costs: tuple[float, ...]  # of the window's offsets
    kernel: int

    @property
    def highest_price(self) -> Scalar:
        """The least price of distance that surely keeps all mass where it is: no move is shorter than 1."""
        stays = self.values[self.kernel**2 // 2] - self.x
        gain = _largest(lambda v, j: v[j], self.kernel, self.values) - stays
        return jnp.max(jnp.where(self.x > 0, gain, 0))


class _Prices(NamedTuple):
    distance: Scalar  # λ
    threshold: Image  # θ


class _Sums(NamedTuple):
    sent: Image  # Σ_j Π[j]
    spent: Scalar  # <C, Π>
    active: Image  # how many moves of a pixel are in use
    cost: Image  # Σ of the costs of these
    slope: Scalar  # −d<C, Π>/dλ when the thresholds follow: the variance of cost among a pixel's moves in use


def _sums(ball: _Ball, value: Value, arrays: Any) -> _Sums:
    cost, dtype = ball.costs, ball.x.dtype

    def in_use(weight: Callable[[int], float]) -> Value:
        return lambda a, j: jnp.where(value(a, j) > 0, jnp.asarray(weight(j), dtype), 0)

    terms: list[Value] = [
        lambda a, j: jnp.maximum(value(a, j), 0),
        lambda a, j: cost[j] * jnp.maximum(value(a, j), 0),
        in_use(lambda j: 1),
        in_use(lambda j: cost[j]),
        in_use(lambda j: cost[j] ** 2),
    ]
    sent, spent, count, first, second = window_sums(terms, ball.kernel, arrays)
    slope = grand_total(second - jnp.square(first) / jnp.maximum(count, 1))
    return _Sums(sent, grand_total(spent), count, first, slope)


def _largest(term: Value, kernel: int, arrays: Any) -> Image:
    """max_j term(arrays, j)."""
    highest = term(arrays, 0)
    for j in range(1, kernel**2):
        highest = jnp.maximum(highest, term(arrays, j))
    return lax.optimization_barrier(highest)


def _thresholds(ball: _Ball, prices: _Prices) -> Image:
    """θ with Σ_j max(V_j − λC_j − θ, 0) = x, by Newton's method from prices.threshold.

    The sum is convex in θ, so after one step all others come from the left and the method ends on the exact piece.
    """
    values, x, cost, kernel = ball.values, ball.x, ball.costs, ball.kernel

    def value(arrays: Any, j: int) -> Image:
        values, distance, threshold = arrays
        return values[j] - distance * cost[j] - threshold

    terms: list[Value] = [
        lambda a, j: jnp.maximum(value(a, j), 0),
        lambda a, j: (value(a, j) > 0).astype(x.dtype),
    ]

    def step(carry: tuple[Image, Array, Array]) -> tuple[Image, Array, Array]:
        threshold, _, rounds = carry
        sent, count = window_sums(terms, kernel, (values, prices.distance, threshold))
        gap = sent - x
        unmet = jnp.abs(gap) > 2 * jnp.finfo(x.dtype).eps * (x + count * jnp.abs(threshold))
        return jnp.where(unmet, threshold + gap / jnp.maximum(count, 1), threshold), unmet, rounds + 1

    top = _largest(lambda a, j: a[0][j] - a[1] * cost[j], kernel, (values, prices.distance))
    start = jnp.clip(prices.threshold, top - x, top - x / kernel**2)
    carry = (start, jnp.ones(x.shape, bool), jnp.zeros((), jnp.int32))
    return lax.while_loop(lambda carry: jnp.any(carry[1]) & (carry[2] < 2 * kernel**2), step, carry)[0]


def _meet_budget(ball: _Ball, start: _Prices) -> _Prices:
    """The price of distance at which the budget is just spent, or 0 where it need not be, and its thresholds.

    Newton's method; where a step leaves the bracket, bisection takes its place.
    """
    x, budget, cost = ball.x, ball.budget, ball.costs

    def value(arrays: Any, j: int) -> Image:
        values, distance, threshold = arrays
        return values[j] - distance * cost[j] - threshold

    def step(carry: tuple[Scalar, Scalar, _Prices, Array, Array]) -> tuple[Scalar, Scalar, _Prices, Array, Array]:
        low, high, prices, _, rounds = carry
        distance, threshold = prices.distance, _thresholds(ball, prices)
        sums = _sums(ball, value, (ball.values, distance, threshold))
        over = sums.spent - budget
        low, high = jnp.where(over > 0, distance, low), jnp.where(over > 0, high, distance)
        sloped = sums.slope > 0
        newton = jnp.maximum(distance + over / jnp.where(sloped, sums.slope, 1), 0)
        stands = sloped & (jnp.abs(newton - distance) <= 2 * jnp.finfo(x.dtype).eps * distance)
        solved = stands | (jnp.abs(over) <= 2e-6 * budget) | ((over <= 0) & (distance <= 0))
        inside = sloped & (newton >= low) & (newton < high)
        better = jnp.where(solved, distance, jnp.where(inside, newton, low + (high - low) / 2))
        threshold = threshold - sums.cost / jnp.maximum(sums.active, 1) * (better - distance)
        return low, high, _Prices(better, threshold), ~solved, rounds + 1

    highest = ball.highest_price
    first = _Prices(jnp.minimum(start.distance, highest), start.threshold)
    carry = (jnp.zeros((), x.dtype), highest, first, jnp.ones((), bool), jnp.zeros((), jnp.int32))
    return lax.while_loop(lambda carry: carry[3] & (carry[4] < 60), step, carry)[2]


class _Search(NamedTuple):
    """Where the search for the prices of room stands."""

    prices: _Prices
    room: Image  # μ
    ahead: Image  # μ carried on by its momentum
    pace: Scalar  # of the momentum
    damping: Scalar  # of Newton's steps in the price of distance
    over: Scalar  # by how much the budget was overspent
    residual: Image
    rounds: Array


def _price_room(ball: _Ball, start: _Prices, rounds: int) -> tuple[_Prices, Image]:
    """Prices at which no pixel receives more than 1: accelerated dual ascent, restarted where the momentum misleads."""
    values, x, budget, cost, kernel = ball
    reach, steps = kernel // 2, offsets(kernel).tolist()
    height, width, _ = x.shape

    def wider(image: Image) -> Array:
        return jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)))

    def seen(image: Array, row: int, column: int) -> Array:
        return image[reach + row : reach + row + height, reach + column : reach + column + width]

    def leaving(arrays: Any, j: int) -> Image:
        values, rooms, distance, threshold = arrays
        return values[j] - seen(rooms, *steps[j]) - distance * cost[j] - threshold

    def arriving(arrays: Any, j: int) -> Image:
        values, room, distance, thresholds = arrays
        row, column = steps[j]
        return seen(values[j], -row, -column) - room - distance * cost[j] - seen(thresholds, -row, -column)

    terms: list[Value] = [
        lambda a, j: jnp.maximum(arriving(a, j), 0),
        lambda a, j: (arriving(a, j) > 0).astype(x.dtype),
    ]
    fringe = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    values_by_target = lax.optimization_barrier(jnp.pad(values, fringe, constant_values=-jnp.inf))
    longest = jnp.maximum(ball.highest_price / 16, 1)

    def step(search: _Search) -> _Search:
        (distance, threshold), room, ahead = search.prices, search.room, search.ahead
        sums = _sums(ball, leaving, (values, wider(ahead), distance, threshold))
        count = jnp.maximum(sums.active, 1)
        gap = sums.sent - x
        over = sums.spent - budget - grand_total(sums.cost * gap / count)
        turned = over * search.over < 0
        damping = jnp.where(turned, jnp.maximum(search.damping / 2, 0.1), jnp.minimum(search.damping * 1.5, 1))
        sloped = sums.slope > 0
        # where no pixel hesitates between two moves, a step of what a pixel holds; longer ones run away with μ
        newton = jnp.where(sloped, over / jnp.where(sloped, sums.slope, 1), jnp.sign(over))
        dearer = jnp.maximum(distance + damping * jnp.clip(newton, -longest, longest), 0)
        # a pixel that sends nothing lowers its threshold until it does
        moved = jnp.where(sums.active > 0, (gap - sums.cost * (dearer - distance)) / count, -x)
        prices = _Prices(dearer, threshold + moved)

        received, count = window_sums(terms, kernel, (values_by_target, ahead, dearer, wider(prices.threshold)))
        count = jnp.maximum(count, 1)
        risen = jnp.maximum(ahead + (received - 1) / count, 0)
        misled = grand_total((ahead - risen) * (risen - room)) > 0
        pace = jnp.where(misled, 1, search.pace)
        faster = (1 + jnp.sqrt(1 + 4 * jnp.square(pace))) / 2
        overspent = jnp.where(dearer > 0, jnp.abs(over) / jnp.maximum(budget, 1e-12), 0)
        residual = jnp.maximum(jnp.maximum(jnp.abs(risen - ahead) * count, jnp.abs(gap)), 0.1 * overspent)
        ahead = jnp.maximum(risen + (pace - 1) / faster * (risen - room), 0)
        return _Search(prices, risen, ahead, faster, damping, over, residual, search.rounds + 1)

    none, one = jnp.zeros_like(x), jnp.ones((), x.dtype)
    search = _Search(start, none, none, one, one, 0 * one, none + 1, jnp.zeros((), jnp.int32))
    search = lax.while_loop(lambda s: (jnp.max(s.residual) > 1e-6) & (s.rounds < rounds), step, search)
    return search.prices, search.room
