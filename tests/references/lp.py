"""Exact, slow lp projections and linear maximisers, by general-purpose solvers in float64."""

import numpy as np
from scipy import optimize


def project(z, x, norm, radius):
    """argmin ‖δ − z‖₂ over {‖δ‖ ≤ radius} ∩ {0 ≤ x + δ ≤ 1}, δ = p − q with p, q ≥ 0 where the norm is l1."""
    z, x = z.ravel().astype(float), x.ravel().astype(float)
    if norm == "linf":
        bounds = list(zip(np.maximum(-x, -radius), np.minimum(1 - x, radius), strict=True))
        return _minimise(lambda d: (np.sum((d - z) ** 2), 2 * (d - z)), bounds, [], np.zeros_like(x))
    if norm == "l2":
        ball = {"type": "ineq", "fun": lambda d: radius**2 - d @ d, "jac": lambda d: -2 * d}
        bounds = list(zip(-x, 1 - x, strict=True))
        return _minimise(lambda d: (np.sum((d - z) ** 2), 2 * (d - z)), bounds, [ball], np.zeros_like(x))
    n = len(x)
    budget = {"type": "ineq", "fun": lambda v: radius - v.sum(), "jac": lambda v: -np.ones(2 * n)}

    def objective(v):
        gap = v[:n] - v[n:] - z
        return np.sum(gap**2), 2 * np.concatenate([gap, -gap])

    bounds = [(0, c) for c in 1 - x] + [(0, c) for c in x]
    v = _minimise(objective, bounds, [budget], np.zeros(2 * n))
    return v[:n] - v[n:]


def _minimise(objective, bounds, constraints, start):
    options = {"ftol": 1e-14, "maxiter": 1000}
    found = optimize.minimize(
        objective, start, jac=True, bounds=bounds, constraints=constraints, method="SLSQP", options=options
    )
    return found.x


def maximise(g, x, norm, radius):
    """The largest <g, δ> over {‖δ‖ ≤ radius} ∩ {0 ≤ x + δ ≤ 1}."""
    g, x = g.ravel().astype(float), x.ravel().astype(float)
    n = len(x)
    if norm == "l1":
        bounds = [(0, c) for c in 1 - x] + [(0, c) for c in x]
        found = optimize.linprog(np.concatenate([-g, g]), A_ub=np.ones((1, 2 * n)), b_ub=[radius], bounds=bounds)
        return -found.fun
    if norm == "linf":
        return np.sum(np.where(g > 0, g * np.minimum(radius, 1 - x), -g * np.minimum(radius, x)))
    ball = {"type": "ineq", "fun": lambda d: radius**2 - d @ d, "jac": lambda d: -2 * d}
    d = _minimise(lambda d: (-g @ d, -g), list(zip(-x, 1 - x, strict=True)), [ball], np.zeros(n))
    return g @ d
