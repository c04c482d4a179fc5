"""Sinkhorn distances between images by OTT-JAX's solver, which is imported when the first distance is taken."""

from __future__ import annotations

import functools
import types
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.transport.plans import Plan
from jaxrobust.transport.windowed import Window, log_of, with_rows
from jaxrobust.types import Image

__all__ = ["OTTDistance", "ott_distance", "ott_plan"]

Scalar = Float[Array, ""]

# This share of all mass is spread evenly over both images: OTT's gradients are NaN at pixels without mass.
FLOOR = 1e-5
# The range of exponents e^{−C/ε} that float32 holds.
RANGE = 80.0
# Beyond so many pixels a channel, a full cost matrix is refused.
LARGEST_MATRIX = 4096


class OTTDistance(NamedTuple):
    """What `ott_distance` returns.

    Args:
        distance: () <C, Π>/Σx, plus what is unmatched at the farthest cost; differentiable in z.
        unmatched: () the share of mass by which the plan's columns miss z, at most.
        converged: () whether that is below the threshold.
    """

    distance: Scalar
    unmatched: Scalar
    converged: Bool[Array, ""]


def ott_distance(
    x: Image,
    z: Image,
    *,
    p: int,
    kernel: int | None = None,
    epsilon: float = 0.1,
    iterations: int = 500,
    threshold: float = 1e-4,
) -> OTTDistance:
    """The entropic transport distance from x to z, with mass kept in its channel, by OTT-JAX's Sinkhorn.

    The plan Π minimises <C, Π> + ε KL(Π | x zᵀ); its cost <C, Π>/Σx is returned, to which every share of mass that the
    iteration left unmatched adds the farthest cost, so that stopping early does not make images look near. The
    gradient in z is that of the regularised cost by Danskin's theorem, as OTT takes it: the dual potential.

    Args:
        x: (H, W, C) ≥ 0.
        z: (H, W, C) ≥ 0; its channels are rescaled to the masses of x.
        p: 1 for distances in pixels, 2 for their squares.
        kernel: side k of the window within which mass may move, odd; None for the whole image. Without a window,
            p = 2 runs on OTT's separable grid and p = 1, which is not separable, on a full matrix of costs.
        epsilon: temperature ε in the unit of costs (static); smaller is sharper and slower; below 1/80 of
            the window's largest cost it takes logarithms, which are several times slower still.
        iterations: the most iterations (static).
        threshold: share of mass below which what is unmatched counts as converged.

    Returns:
        The distance, 0 for z = x, and how far the iteration got.

    Raises:
        ValueError: p = 1 without a window on more than 4096 pixels, or an epsilon that is not positive.

    Reference:
        Cuturi, 2013, arXiv:1306.0895; Cuturi et al., 2022, arXiv:2201.12324 (OTT).
    """
    _checks.choice("p", p, (1, 2))
    _checks.number("epsilon", epsilon, low=1e-4)
    height, width, channels = x.shape
    if kernel is None and p == 1 and height * width > LARGEST_MATRIX:
        raise ValueError(f"kernel must be given for p = 1 on more than {LARGEST_MATRIX} pixels; got {height * width}")
    masses = jnp.sum(x, (0, 1))
    mass, evened = jnp.sum(masses), _evened(z, masses)
    solve = functools.partial(_measured, iterations=iterations, threshold=threshold)
    if kernel is not None:
        # one problem: the window keeps channels apart
        window = Window(kernel, p)
        geometry = _windowed(x.shape, window, epsilon)
        pair = (_floored(image, mass, x.size) for image in (x, evened))
        cost, tilt, unmatched = solve(geometry, *pair, farthest=window.farthest)
    else:
        farthest = float((height - 1) ** 2 + (width - 1) ** 2) ** (p / 2)
        geometry = _grid((height, width), epsilon) if p == 2 else _matrix((height, width), epsilon)
        shares = masses / jnp.where(mass > 0, mass, 1)
        cost, tilt, unmatched = jnp.zeros((3,), x.dtype)
        for channel in range(channels):
            pair = (_floored(image[..., channel], masses[channel], height * width) for image in (x, evened))
            parts = solve(geometry, *pair, farthest=farthest)
            cost, tilt, unmatched = (
                total + shares[channel] * part for total, part in zip((cost, tilt, unmatched), parts, strict=True)
            )
    same = jnp.all(lax.stop_gradient(x == z)) | (mass == 0)
    return OTTDistance(jnp.where(same, 0, cost) + tilt, unmatched, unmatched <= threshold)


def _evened(z: Image, masses: Array) -> Image:
    """The image with its channels rescaled to masses (C,)."""
    others = jnp.sum(z, (0, 1))
    return z * (masses / jnp.where(others > 0, others, 1))[None, None]


def _floored(image: Array, mass: Scalar, count: int) -> Array:
    """The flat distribution of an image, nowhere zero."""
    share = image.reshape(-1) / jnp.where(mass > 0, mass, 1)
    floored = (1 - FLOOR) * share + FLOOR / count
    return jnp.where(mass > 0, floored, 1 / count)


def ott_plan(x: Image, z: Image, *, p: int, kernel: int, epsilon: float = 0.1, iterations: int = 500) -> Plan:
    """The entropic plan from x towards z within the window, by OTT-JAX's Sinkhorn: the plan of `ott_distance`.

    Args:
        x: (H, W, C) ≥ 0.
        z: (H, W, C) ≥ 0; its channels are rescaled to the masses of x.
        p: as in `ott_distance`.
        kernel: as in `ott_distance`.
        epsilon: as in `ott_distance`.
        iterations: as in `ott_distance`.

    Returns:
        (k², H, W, C). Its rows are x to rounding; its columns are z as far as the window reaches and the iteration got.
    """
    window = Window(kernel, p)
    masses = jnp.sum(x, (0, 1))
    geometry = _windowed(x.shape, window, epsilon)
    pair = (_floored(image, jnp.sum(masses), x.size) for image in (x, _evened(z, masses)))
    _, right = (
        v.reshape(x.shape) / epsilon for v in _potentials(geometry, *pair, iterations=iterations, threshold=0.0)
    )
    price = jnp.asarray(1 / epsilon, x.dtype)
    left = jnp.where(x > 0, log_of(x) - window.log_sum(right, price, plain=False), -jnp.inf)
    return with_rows(window.plan(left, right, price), x)


def _potentials(
    geometry: Any, source: Array, target: Array, *, iterations: int, threshold: float
) -> tuple[Array, Array]:
    """OTT's dual potentials f and g, which hold the marginals; nothing is differentiated through the iteration."""
    solver = _ott().Sinkhorn(threshold=threshold, max_iterations=iterations)
    # OTT is written for NumPy's promotion of ranks and types
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        out = solver(_ott().LinearProblem(geometry, *map(lax.stop_gradient, (source, target))))
    return out.f, out.g


def _measured(
    geometry: Any, source: Array, target: Array, *, farthest: float, iterations: int, threshold: float
) -> tuple[Scalar, Scalar, Scalar]:
    """Mean cost, a zero whose gradient is that of the regularised cost, and the unmatched share."""
    f, g = _potentials(geometry, source, target, iterations=iterations, threshold=threshold)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        cost = geometry.cost_of(f, g) if hasattr(geometry, "cost_of") else _cost(geometry, f, g)
        # rows are met, columns are off by this much
        unmatched = jnp.sum(jnp.abs(geometry.marginal_from_potentials(f, g, axis=0) - target)) / 2
    value = lax.stop_gradient(cost + farthest * unmatched)
    # without the marginals, the potentials are the slope of the cost with its KL term
    slope = lax.stop_gradient(g - geometry.epsilon * jnp.log(target))
    return value, jnp.sum(slope * (target - lax.stop_gradient(target))), lax.stop_gradient(unmatched)


def _cost(geometry: Any, f: Array, g: Array) -> Scalar:
    """<C, Π> of potentials on one of OTT's own geometries; a grid's costs are a product of two thin matrices."""
    if geometry.can_LRC:
        thin = geometry.to_LRCGeometry()
        moved = geometry.apply_transport_from_potentials(f, g, thin.cost_1.T)
        return jnp.sum(moved * thin.cost_2.T)
    return jnp.sum(geometry.transport_from_potentials(f, g) * geometry.cost_matrix)


def _grid(size: tuple[int, int], epsilon: float) -> Any:
    """All moves, squared distances: OTT's separable grid, in pixels."""
    axes = [jnp.arange(side, dtype=jnp.float32) for side in size]
    return _ott().Grid(x=axes, cost_fns=[_ott().SqEuclidean()], epsilon=epsilon)


def _matrix(size: tuple[int, int], epsilon: float) -> Any:
    """All moves, distances: a full matrix, since these are not separable (and OTT's grid would take them as l1)."""
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return _ott().Geometry(cost_matrix=jnp.asarray(distances, jnp.float32), epsilon=epsilon)


def _windowed(shape: tuple[int, ...], window: Window, epsilon: float) -> Any:
    """Moves within the window of a channel; by logarithms where a temperature is too low for float32's exponents."""
    plain = window.farthest <= RANGE * epsilon
    return _windowed_geometry()(shape=shape, window=window, epsilon=epsilon, plain=plain)


@functools.cache
def _ott() -> Any:
    """What is used of OTT-JAX, by name."""
    with warnings.catch_warnings():
        # one of its own dependencies, which nothing here uses, says that it is no longer maintained
        warnings.simplefilter("ignore", DeprecationWarning)
        from ott.geometry.costs import SqEuclidean
        from ott.geometry.geometry import Geometry
        from ott.geometry.grid import Grid
        from ott.problems.linear.linear_problem import LinearProblem
        from ott.solvers.linear.sinkhorn import Sinkhorn
    parts = (SqEuclidean, Geometry, Grid, LinearProblem, Sinkhorn)
    return types.SimpleNamespace(**{part.__name__: part for part in parts})


@functools.cache
def _windowed_geometry() -> type:
    """An OTT geometry in which mass moves within a window of its channel; made when OTT is first needed."""

    @jax.tree_util.register_pytree_node_class
    class WindowedGrid(_ott().Geometry):
        def __init__(self, shape: tuple[int, int, int], window: Window, epsilon: Any, plain: bool) -> None:
            super().__init__(epsilon=epsilon)
            self.size, self.window, self.plain = shape, window, plain

        @property
        def shape(self) -> tuple[int, int]:
            return int(np.prod(self.size)), int(np.prod(self.size))

        @property
        def dtype(self) -> Any:
            return jnp.float32

        @property
        def is_symmetric(self) -> bool:
            return True

        def apply_lse_kernel(self, f: Array, g: Array, eps: Any, vec: Any = None, axis: int = 0) -> tuple[Array, Array]:
            if vec is not None:
                raise NotImplementedError("a windowed grid applies its kernel to potentials only")
            values = (g if axis == 1 else f).reshape(self.size) / eps
            # plain sums, shifted by the largest, where float32 holds every weight: as fast as OTT's own kernel mode
            log_sum = self.window.log_sum(values, jnp.asarray(1 / eps, self.dtype), plain=self.plain)
            return eps * log_sum.reshape(-1), jnp.ones((), self.dtype)

        def cost_of(self, f: Array, g: Array) -> Scalar:
            left, right = (values.reshape(self.size) / self.epsilon for values in (f, g))
            return self.window.moments(left, right, jnp.asarray(1 / self.epsilon, self.dtype), plain=False)[0]

        def tree_flatten(self) -> tuple[list[Any], dict[str, Any]]:
            return [self._epsilon_init], {"shape": self.size, "window": self.window, "plain": self.plain}

        @classmethod
        def tree_unflatten(cls, aux: dict[str, Any], children: Any) -> Any:
            return cls(epsilon=children[0], **aux)

    return WindowedGrid
