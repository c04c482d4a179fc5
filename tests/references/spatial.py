"""Slow samplers and lookups in float64, by SciPy or by loops."""

import numpy as np
from scipy import ndimage

MODES = {"zero": "grid-constant", "reflect": "mirror"}


def warp(image, displacement, outside="zero"):
    """z_p = x(p + d_p), bilinear."""
    height, width, channels = image.shape
    rows, columns = np.mgrid[:height, :width]
    places = [rows + displacement[..., 0], columns + displacement[..., 1]]
    planes = [
        ndimage.map_coordinates(image[..., c].astype(float), places, order=1, mode=MODES[outside])
        for c in range(channels)
    ]
    return np.stack(planes, -1)


def rotate_then_shift(image, degrees, shift, pad=16, outside="zero"):
    """Pad, rotate counter-clockwise about the centre, translate, crop, with two resamplings."""
    widths = ((pad, pad), (pad, pad), (0, 0))
    padded = np.pad(image.astype(float), widths, mode="constant" if outside == "zero" else "reflect")
    turned = ndimage.rotate(padded, degrees, reshape=False, order=1, mode="grid-constant")
    moved = ndimage.shift(turned, (*shift, 0), order=1, mode="grid-constant")
    return moved[pad:-pad, pad:-pad]


def trilinear(table, point):
    """f(c) of one point c from its values on a lattice over [0, 1]³: indices are clipped, fractions are not."""
    place = np.asarray(point, float) * (np.array(table.shape[:3]) - 1)
    whole, share = np.floor(place).astype(int), place % 1
    value = np.zeros(table.shape[-1])
    for steps in np.ndindex(2, 2, 2):
        index = np.clip(whole + steps, 0, np.array(table.shape[:3]) - 1)
        value += np.prod(np.where(steps, share, 1 - share)) * table[tuple(index)]
    return value


def roughness(field):
    """Σ_p Σ_q √(‖f_p − f_q‖² + 1e-10) − 1e-5 with the border replicated, one neighbour in each direction."""
    total = 0.0
    for axis in range(field.ndim - 1):
        widths = [(1, 1) if i == axis else (0, 0) for i in range(field.ndim)]
        padded = np.pad(field.astype(float), widths, mode="edge")
        for start in (0, 2):
            other = np.take(padded, np.arange(start, start + field.shape[axis]), axis)
            total += np.sum(np.sqrt(np.sum((field - other) ** 2, -1) + 1e-10) - 1e-5)
    return total
