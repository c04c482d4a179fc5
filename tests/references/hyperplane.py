"""The nearest point of a hyperplane in the box, by general-purpose solvers in float64."""

import numpy as np
from scipy import optimize


def nearest(x, normal, offset, p):
    """argmin ‖δ‖_p over {<w, δ> = c, 0 ≤ x + δ ≤ 1}; None where that is empty."""
    x, w = x.ravel().astype(float), normal.ravel().astype(float)
    n = len(x)
    low, high = -x, 1 - x
    reach = np.where(w > 0, high, low) @ w if offset > 0 else np.where(w > 0, low, high) @ w
    if abs(reach) < abs(offset):
        return None
    if p == 2:
        return _l2(w, offset, low, high)
    if p == 1:  # δ = a − b, and Σ a + b is least
        bounds = [(0, h) for h in high] + [(0, -v) for v in low]
        found = optimize.linprog(np.ones(2 * n), A_eq=np.concatenate([w, -w])[None], b_eq=[offset], bounds=bounds)
        return found.x[:n] - found.x[n:]
    # one more variable t ≥ |δ_i|
    rows = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
    found = optimize.linprog(
        np.append(np.zeros(n), 1),
        A_ub=rows,
        b_ub=np.zeros(2 * n),
        A_eq=np.append(w, 0)[None],
        b_eq=[offset],
        bounds=[*zip(low, high, strict=True), (0, None)],
    )
    return found.x[:n]


def _l2(w, offset, low, high):
    """Every set of entries held at a bound is tried; the rest solves the linear system of the optimality conditions."""
    n, best = len(w), None
    for pattern in np.ndindex(*(3,) * n):
        held = np.array(pattern)
        delta = np.where(held == 1, low, np.where(held == 2, high, 0.0))
        free = held == 0
        left = offset - w @ delta
        square = np.sum(w[free] ** 2)
        if square > 0:
            delta[free] = left * w[free] / square
        elif abs(left) > 1e-12:
            continue
        inside = np.all(delta >= low - 1e-12) and np.all(delta <= high + 1e-12)
        if inside and (best is None or np.linalg.norm(delta) < np.linalg.norm(best)):
            best = delta
    return best
