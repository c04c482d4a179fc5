"""Local transport plans on the pixel grid: where the mass of every pixel goes, within a k x k window of its channel.

A plan is an array Π (k², H, W, C): Π[j, r, c, h] is the mass that leaves pixel (r, c) of channel h by the j-th offset
of the window. Σ_j Π[j] is the image whose mass is moved, `columns(Π)` the image that it becomes. The window comes
first so that sums over it run along contiguous images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.types import Image

__all__ = ["Plan", "allowed", "columns", "costs", "identity", "offsets", "windows"]

Plan = Float[Array, "offsets height width channels"]


def offsets(kernel: int) -> np.ndarray:
    """The window's offsets (Δrow, Δcolumn), row by row; the middle one is (0, 0).

    Args:
        kernel: side k of the window, odd.

    Returns:
        (k², 2) integers.

    Raises:
        ValueError: an even kernel, or one below 1.

    Example:
        >>> offsets(3)[[0, 4, 8]].tolist()
        [[-1, -1], [0, 0], [1, 1]]
    """
    if _checks.count("kernel", kernel) % 2 == 0:
        raise ValueError(f"kernel must be odd; got {kernel}")
    reach = np.arange(kernel) - kernel // 2
    return np.stack(np.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)


def costs(kernel: int, p: int) -> np.ndarray:
    """What moving a unit of mass by each offset costs, (Δrow² + Δcolumn²)^{p/2}.

    Args:
        kernel: side k of the window, odd.
        p: 1 for the Euclidean distance in pixels, 2 for its square.

    Returns:
        (k²,) float32.
    """
    return (np.linalg.norm(offsets(kernel), axis=1) ** p).astype(np.float32)


def allowed(shape: tuple[int, ...], kernel: int) -> Bool[np.ndarray, "offsets height width 1"]:
    """Which moves stay inside an image.

    Args:
        shape: (H, W, C).
        kernel: side k of the window, odd.

    Returns:
        (k², H, W, 1), True where the pixel's target lies in the image.
    """
    rows, places = np.arange(shape[0]), np.arange(shape[1])
    steps = offsets(kernel)
    inside_rows = (rows + steps[:, :1] >= 0) & (rows + steps[:, :1] < shape[0])
    inside_columns = (places + steps[:, 1:] >= 0) & (places + steps[:, 1:] < shape[1])
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[..., None]


def identity(x: Image, kernel: int) -> Plan:
    """The plan that moves nothing.

    Args:
        x: (H, W, C), the mass.
        kernel: side k of the window, odd.

    Returns:
        (k², H, W, C), x at the middle offset and zero elsewhere.
    """
    return jnp.zeros((kernel**2, *x.shape), x.dtype).at[kernel**2 // 2].set(x)


def windows(image: Image, kernel: int) -> Plan:
    """What every pixel sees through its window: out[j, r, c] = image[(r, c) + offset j], zero outside the image.

    Args:
        image: (H, W, C).
        kernel: side k of the window, odd.

    Returns:
        (k², H, W, C). It is the transpose of `columns`: <windows(g), Π> = <g, columns(Π)> for plans that stay inside.
    """
    reach = kernel // 2
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)))
    starts = jnp.pad(jnp.asarray(offsets(kernel) + reach), ((0, 0), (0, 1)))
    # one gather: XLA:CPU takes several times as long to run or to compile a stack of slices
    return jax.vmap(lambda start: lax.dynamic_slice(padded, start, image.shape))(starts)


def columns(plan: Plan) -> Image:
    """The image that a plan makes: the mass that arrives at every pixel. What leaves the image is lost.

    Args:
        plan: (k², H, W, C).

    Returns:
        (H, W, C).
    """
    plan = lax.optimization_barrier(plan)  # or XLA computes its entries again for every offset
    kernel = kernel_of(plan)
    arriving = jnp.zeros(plan.shape[1:], plan.dtype)
    for mass, (r, c) in zip(plan, offsets(kernel).tolist(), strict=True):
        # negative padding crops: the image moves by (r, c) and what leaves it is dropped
        arriving += lax.pad(mass, jnp.zeros((), plan.dtype), [(r, -r, 0), (c, -c, 0), (0, 0, 0)])
    return arriving


def kernel_of(plan: Plan) -> int:
    """The side k of a plan's window."""
    return round(plan.shape[0] ** 0.5)


def window_sums(terms: Sequence[Callable[[Any, int], Image]], kernel: int, arrays: Any) -> list[Image]:
    """Σ_j term(arrays, j) over the window's offsets, for each term.

    For XLA:CPU the sums are written out (it takes 25 times as long to reduce a leading axis), and barriers keep it
    from sharing what the terms have in common in 2 k² arrays, from computing `arrays` again in each sum and, inside a
    loop, from copying the slices of what does not change in front of it.
    """
    sums: list[Any] = []
    for term in terms:
        arrays, sums = lax.optimization_barrier((arrays, sums))
        sums.append(sum(term(arrays, j) for j in range(kernel**2)))
    return cast(list[Image], lax.optimization_barrier(sums))


def grand_total(image: Image) -> Float[Array, ""]:
    """Σ of all entries, as a dot product: XLA:CPU computes what a reduction depends on in the reduction's own loop."""
    return jnp.vdot(jnp.ones(image.size, image.dtype), image.reshape(-1), precision=lax.Precision.HIGHEST)
