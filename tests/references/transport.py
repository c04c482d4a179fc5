"""Exact, slow transport on tiny images, by general-purpose solvers in float64: distance, projection, maximiser.

Plans are laid out as in `jaxrobust.transport`: (k², H, W, C), where entry [j, r, c, h] is the mass that pixel (r, c)
of channel h sends by the window's j-th offset. Nothing here is shared with the library.
"""

import numpy as np
from scipy import optimize, sparse


class Moves:
    """The moves a plan may make: one variable each, with its source, its target, its cost and its place in a plan."""

    def __init__(self, shape, p, kernel):
        height, width, channels = shape
        reach = max(height, width) - 1 if kernel is None else kernel // 2
        side = 2 * reach + 1
        r, c, h, dr, dc = (
            axis.ravel()
            for axis in np.meshgrid(
                range(height),
                range(width),
                range(channels),
                range(-reach, reach + 1),
                range(-reach, reach + 1),
                indexing="ij",
            )
        )
        inside = (r + dr >= 0) & (r + dr < height) & (c + dc >= 0) & (c + dc < width)
        r, c, h, dr, dc = (axis[inside] for axis in (r, c, h, dr, dc))
        self.shape = shape
        self.pixels = height * width * channels
        self.cost = (dr**2 + dc**2) ** (p / 2)
        self.source = (r * width + c) * channels + h
        self.target = ((r + dr) * width + c + dc) * channels + h
        self.plan_shape = (side**2, *shape)
        self.entry = ((dr + reach) * side + dc + reach, r, c, h)
        self.rows = self._incidence(self.source)
        self.columns = self._incidence(self.target)

    def _incidence(self, pixel):
        count = len(pixel)
        return sparse.csr_matrix((np.ones(count), (pixel, np.arange(count))), (self.pixels, count))

    def to_plan(self, variables):
        plan = np.zeros(self.plan_shape)
        plan[self.entry] = variables
        return plan


def distance(x, z, p, kernel=None):
    """min <C, Π>/Σx over plans from x to z; kernel None lets mass travel anywhere. Infinite where no plan exists.

    Float error in the masses of the channels is evened out by rescaling z.
    """
    x, z = np.asarray(x, float), np.asarray(z, float)
    if x.sum() == 0:
        return 0.0 if np.abs(z).max() < 1e-6 else np.inf
    mass, other = x.sum((0, 1)), z.sum((0, 1))
    if not np.allclose(mass, other, rtol=1e-5, atol=1e-6):
        return np.inf
    z = z * np.where(other > 0, mass / np.where(other > 0, other, 1), 0)
    moves = Moves(x.shape, p, kernel)
    # inequalities on the targets: with equal masses they are met with equality, without trouble from rounding
    found = optimize.linprog(
        moves.cost,
        A_eq=moves.rows,
        b_eq=x.ravel(),
        A_ub=moves.columns,
        b_ub=z.ravel() + 1e-9,
        bounds=(0, None),
        method="highs",
    )
    return found.fun / x.sum() if found.success else np.inf


def maximise(x, gradient, radius, p, kernel, capacity=True):
    """A plan of largest <gradient, Π> with rows x, cost ≤ radius · Σx and, with capacity, columns ≤ 1."""
    x = np.asarray(x, float)
    moves = Moves(x.shape, p, kernel)
    limits, bounds = [sparse.csr_matrix(moves.cost[None])], [[radius * x.sum()]]
    if capacity:
        limits.append(moves.columns)
        bounds.append(np.ones(moves.pixels))
    found = optimize.linprog(
        -np.asarray(gradient, float)[moves.entry],
        A_eq=moves.rows,
        b_eq=x.ravel(),
        A_ub=sparse.vstack(limits),
        b_ub=np.concatenate(bounds),
        bounds=(0, None),
        method="highs",
    )
    assert found.success, found.message
    return moves.to_plan(found.x)


def project(x, plan, radius, p, kernel, capacity=True):
    """argmin ‖Π − plan‖ with rows x, cost ≤ radius · Σx and, with capacity, columns ≤ 1.

    The dual, in the prices λ of cost and μ of room, is smooth, concave and small: a quasi-Newton method takes it to
    the end. Rows are projected on their simplices by sorting.
    """
    x = np.asarray(x, float)
    moves = Moves(x.shape, p, kernel)
    wanted = np.asarray(plan, float)[moves.entry]
    budget = radius * x.sum()

    def primal(prices):
        values = wanted - prices[0] * moves.cost - (moves.columns.T @ prices[1:] if capacity else 0)
        return _rows_on_simplices(values, moves.source, x.ravel())

    def dual(prices):
        variables = primal(prices)
        slack = np.concatenate([[moves.cost @ variables - budget], moves.columns @ variables - 1])
        slack = slack[: len(prices)]
        return -(0.5 * np.sum((variables - wanted) ** 2) + prices @ slack), -slack

    count = 1 + (moves.pixels if capacity else 0)
    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 0, "gtol": 1e-11, "maxcor": 30}
    prices = np.zeros(count)
    for _ in range(3):  # a fresh memory takes it further where the pieces of the dual have changed
        found = optimize.minimize(
            dual, prices, jac=True, bounds=[(0, None)] * count, method="L-BFGS-B", options=options
        )
        prices = found.x
    return moves.to_plan(primal(prices))


def _rows_on_simplices(values, source, mass):
    """argmin ‖v − values‖ with v ≥ 0 and the sum of each source's entries its mass."""
    projected = np.zeros_like(values)
    for pixel in np.flatnonzero(mass > 0):
        mine = source == pixel
        ordered = np.sort(values[mine])[::-1]
        thresholds = (np.cumsum(ordered) - mass[pixel]) / np.arange(1, len(ordered) + 1)
        threshold = thresholds[np.flatnonzero(ordered > thresholds)[-1]]
        projected[mine] = np.maximum(values[mine] - threshold, 0)
    return projected


def project_by_bisection(x, plan, radius, p, kernel, halvings):
    """The released algorithm without capacity: bisect the price of distance, sort every row at each of them."""
    x = np.asarray(x, float)
    moves = Moves(x.shape, p, kernel)
    wanted = np.asarray(plan, float)[moves.entry]
    budget = radius * x.sum()

    def primal(price):
        return _rows_on_simplices(wanted - price * moves.cost, moves.source, x.ravel())

    if moves.cost @ primal(0) <= budget:
        return moves.to_plan(primal(0))
    low, high = 0.0, 2 * np.abs(wanted).max() + x.max()
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if moves.cost @ primal(middle) > budget else (low, middle)
    return moves.to_plan(primal(high))
