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
    """Least squares in the box, the equation one more row of great weight."""
    weight = 1e6 / np.abs(w).max()
    rows, values = np.vstack([np.eye(len(w)), weight * w]), np.append(np.zeros(len(w)), weight * offset)
    return optimize.lsq_linear(rows, values, bounds=(low, high), method="bvls", tol=1e-15).x
