"""Sparse projections and maximisers by enumeration and by alternating projections, in NumPy float64."""

import itertools

import numpy as np


def blocks(shape, side):
    """The coordinates of every block, as boolean masks: side 0 is one coordinate each, 1 a pixel."""
    height, width, _ = shape
    found = []
    if side == 0:
        for index in np.ndindex(shape):
            found.append(np.zeros(shape, bool))
            found[-1][index] = True
        return found
    for row, column in itertools.product(range(0, height, side), range(0, width, side)):
        found.append(np.zeros(shape, bool))
        found[-1][row : row + side, column : column + side] = True
    return found


def best_support(objective, shape, side, count):
    """The change δ of least cost over all supports of `count` groups: `objective(support)` gives cost and δ."""
    groups = blocks(shape, side)
    supports = itertools.combinations(groups, min(count, len(groups)))
    return min((objective(np.any([np.zeros(shape, bool), *chosen], axis=0)) for chosen in supports), key=lambda t: t[0])


def project(z, x, side, count, bound=np.inf):
    """Distance and nearest change with at most `count` groups in the box."""
    clipped = np.clip(z, np.maximum(-x, -bound), np.minimum(1 - x, bound))

    def objective(support):
        delta = np.where(support, clipped, 0)
        return np.sum((delta - z) ** 2), delta

    return best_support(objective, x.shape, side, count)


def maximise(g, x, side, count, bound=np.inf):
    """The largest <g, δ> with at most `count` groups in the box."""
    best = np.where(g > 0, np.minimum(1 - x, bound), -np.minimum(x, bound))
    return -best_support(lambda support: (-np.sum(np.where(support, g * best, 0)), None), x.shape, side, count)[0]


def patch(value, side):
    """The largest sum of `value` over squares of that side inside of the image, and the square's mask."""
    height, width = value.shape[:2]
    tall, wide = min(side, height), min(side, width)
    best, mask = -np.inf, None
    for row, column in itertools.product(range(height - tall + 1), range(width - wide + 1)):
        total = value[row : row + tall, column : column + wide].sum()
        if total > best:
            best, mask = total, np.zeros(value.shape, bool)
            mask[row : row + tall, column : column + wide] = True
    return best, mask


def group_ball(z, x, side, radius, rounds=3000):
    """argmin ‖δ − z‖₂ over {Σ_G ‖δ_G‖₂ ≤ radius} ∩ box, by Dykstra's alternating projections on the two sets."""
    masks = np.stack(blocks(x.shape, side))

    def on_ball(delta):
        norms = np.sqrt((delta**2 * masks).sum((1, 2, 3)))
        if norms.sum() <= radius:
            return delta
        ordered = np.sort(norms)[::-1]
        excess = (np.cumsum(ordered) - radius) / np.arange(1, norms.size + 1)
        kept = np.maximum(norms - excess[np.flatnonzero(ordered > excess)[-1]], 0)
        return delta * (masks * (kept / np.maximum(norms, 1e-300))[:, None, None, None]).sum(0)

    delta, ball_rest, box_rest = z, np.zeros_like(z), np.zeros_like(z)
    for _ in range(rounds):
        on = on_ball(delta + ball_rest)
        ball_rest = delta + ball_rest - on
        delta = np.clip(on + box_rest, -x, 1 - x)
        box_rest = on + box_rest - delta
    return delta
