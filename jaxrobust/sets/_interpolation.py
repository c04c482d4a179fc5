"""Bilinear sampling of images and trilinear lookups, exact where nothing moves."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from jaxrobust.types import Image

__all__ = ["clamp", "lookup", "pixels", "warp"]

Displacement = Float[Array, "height width 2"]
Pixels = Int[Array, "height width"]

# the corners of a cube, first those with the first coordinate low
CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(8, 3).astype(np.int32)


def clamp(values: Array, low: float = 0.0, high: float = 1.0) -> Array:
    """A clip whose gradient at the bounds is 1, not the half of `jnp.clip`: black and white stay movable."""
    return jnp.where(values < low, low, jnp.where(values > high, high, values))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def warp(image: Image, displacement: Displacement, outside: str) -> Image:
    """z_p = x(p + d_p), bilinear between pixels.

    The fraction is split off the displacement, not off the coordinate, so that d = 0 gives x to the last bit. Where a
    coordinate falls on a pixel the interpolant has a kink; its derivative there is the mean of both sides,
    (x_{i+1} − x_{i−1})/2, so that the gradient at the identity is the central difference.

    Args:
        image: x (H, W, C).
        displacement: d (H, W, 2) in pixels, down and right.
        outside: "zero" is black beyond the border; "reflect" mirrors at the middle of the outermost pixels.

    Returns:
        z (H, W, C).
    """
    whole, share = _split(displacement)
    above, below = (_line(image, 0, whole[..., 0] + step, whole, share, outside) for step in (0, 1))
    return _between(above, below, share[..., :1])


@functools.partial(warp.defjvp, symbolic_zeros=True)
def _warp_jvp(outside: str, primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    image, displacement = primals
    moved = warp(image, displacement, outside)
    tangent = jnp.zeros_like(moved)
    if not isinstance(tangents[0], SymbolicZero):
        tangent += warp(tangents[0], displacement, outside)
    if not isinstance(tangents[1], SymbolicZero):
        whole, share = _split(displacement)
        # the next pixels on either side: two apart where the coordinate falls on one
        before, after = whole - (share == 0).astype(whole.dtype), whole + 1
        for axis in (0, 1):
            rise = _line(image, axis, after[..., axis], whole, share, outside)
            rise -= _line(image, axis, before[..., axis], whole, share, outside)
            gap = (after - before)[..., axis, None].astype(image.dtype)
            # an outer product: its transpose is a matrix product, and XLA:CPU is slow at sums over a short last axis
            tangent += rise / gap * _spread(tangents[1][..., axis], image.shape[-1])
    return moved, tangent


def _spread(values: Array, channels: int) -> Array:
    return jnp.tensordot(values, jnp.ones(channels, values.dtype), axes=0, precision=lax.Precision.HIGHEST)


def _split(displacement: Displacement) -> tuple[Int[Array, "height width 2"], Displacement]:
    """The pixel above and to the left of each coordinate, and the fractions beyond it in [0, 1)."""
    floor = jnp.floor(displacement)
    # float32 has no fractions left long before 2^30
    steps = jnp.clip(floor, -(2.0**30), 2.0**30).astype(jnp.int32)
    return steps + pixels(*displacement.shape[:2]).astype(np.int32), displacement - floor


def pixels(height: int, width: int) -> Int[np.ndarray, "height width 2"]:
    """Row and column of every pixel."""
    return np.moveaxis(np.indices((height, width)), 0, -1)


def _line(image: Image, axis: int, place: Pixels, whole: Array, share: Array, outside: str) -> Image:
    """The image at row (axis 0) or column (axis 1) `place`, interpolated along the other axis."""
    across = whole[..., 1 - axis]
    if axis == 0:
        start, end = _at(image, place, across, outside), _at(image, place, across + 1, outside)
    else:
        start, end = _at(image, across, place, outside), _at(image, across + 1, place, outside)
    return _between(start, end, share[..., 1 - axis, None])


def _between(start: Array, end: Array, share: Array) -> Array:
    """Linear interpolation in the form that keeps constants, and numbers in [0, 1], exactly there."""
    return start + share * (end - start)


def _at(image: Image, rows: Pixels, columns: Pixels, outside: str) -> Image:
    """Pixels by index, also beyond the border."""
    (row, inside_rows), (column, inside_columns) = (
        _mirrored(index, size) if outside == "reflect" else _cut(index, size)
        for index, size in ((rows, image.shape[0]), (columns, image.shape[1]))
    )
    found = image.at[row, column].get(mode="promise_in_bounds")
    return found if outside == "reflect" else jnp.where((inside_rows & inside_columns)[..., None], found, 0)


def _cut(index: Pixels, size: int) -> tuple[Pixels, Array]:
    inside = (index >= 0) & (index < size)
    return jnp.clip(index, 0, size - 1), inside


def _mirrored(index: Pixels, size: int) -> tuple[Pixels, Array]:
    period = max(2 * size - 2, 1)
    folded = index % period
    return jnp.minimum(folded, period - folded) % size, jnp.ones_like(index, bool)


def lookup(table: Float[Array, "a b c k"], points: Float[Array, "*batch 3"]) -> Float[Array, "*batch k"]:
    """f(c) from its values on a regular lattice over [0, 1]³, trilinear between, the border's value beyond it.

    Args:
        table: values f (A, B, C, k), A, B, C ≥ 2, the first at 0 and the last at 1 of each axis.
        points: coordinates c (..., 3).

    Returns:
        f(c) (..., k).
    """
    cells = np.array(table.shape[:3]) - 1
    place = clamp(points) * jnp.broadcast_to(jnp.asarray(cells, points.dtype), points.shape)
    whole = jnp.minimum(jnp.floor(place), jnp.broadcast_to(jnp.asarray(cells - 1, points.dtype), points.shape))
    share = (place - whole)[..., None]
    strides = np.array([table.shape[1] * table.shape[2], table.shape[2], 1], np.int32)
    # one gather for all eight corners of a cell, since its transpose fills a whole table
    first = jnp.sum(whole.astype(jnp.int32) * jnp.broadcast_to(strides, whole.shape), -1, dtype=jnp.int32)
    corners = first[..., None] + jnp.broadcast_to(CORNERS @ strides, (*first.shape, 8))
    values = table.reshape(-1, table.shape[-1]).at[corners].get(mode="promise_in_bounds")
    for axis in range(3):
        half = values.shape[-2] // 2
        values = _between(values[..., :half, :], values[..., half:, :], share[..., axis : axis + 1, :])
    return values[..., 0, :]
