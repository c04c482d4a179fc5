"""Sums over every pixel's k x k window, by matrix products where float32 allows it and by logarithms where not.

A plan on the grid can be held as two images of log-weights a, b and a price ψ of cost, Π[j, i] = exp(a_i + b_{i+j} −
ψ C_j) over the offsets j of the window. Its row sums are a sum over the windows of b, its column sums one over the
windows of a, since the window is symmetric.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust.transport import plans
from jaxrobust.transport.plans import Plan
from jaxrobust.types import Image

__all__ = ["Window", "log_of", "row_sums", "safe_range", "with_rows"]

Scalar = Float[Array, ""]
LogImage = Float[Array, "height width channels"]  # −∞ where there is no mass

# The widest range of exponents for plain sums: products of three such weights are far from the ends of float32.
RANGE = 50.0


def log_of(mass: Array) -> Array:
    """log of non-negative numbers, −∞ for 0, without a warning or a NaN in gradients."""
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1)), -jnp.inf)


def safe_range(values: LogImage) -> Bool[Array, ""]:
    """Whether plain sums of e^values keep all that matters: the finite values span no more than e^±25."""
    finite = jnp.isfinite(values)
    high, low = jnp.max(jnp.where(finite, values, -jnp.inf)), jnp.min(jnp.where(finite, values, jnp.inf))
    return ~(high - low > RANGE)


# products of masses must not be rounded to the ten bits that accelerators take by default
_exact = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def row_sums(plan: Plan, weights: np.ndarray | None = None) -> Image:
    """Σ_j w_j Π[j], as a matrix product: XLA:CPU is slow to reduce over a leading axis.

    Args:
        plan: (k², H, W, C).
        weights: (k²,), all 1 if not given.

    Returns:
        (H, W, C).
    """
    weights = np.ones(plan.shape[0]) if weights is None else weights
    return _exact("j,jhwc->hwc", jnp.asarray(weights, plan.dtype), plan)


def with_rows(plan: Plan, x: Image) -> Plan:
    """The plan with every pixel's moves scaled to its mass: exponents of thousands lose a few digits, rows must not.

    Args:
        plan: (k², H, W, C) ≥ 0.
        x: (H, W, C), the rows that it is to have.

    Returns:
        (k², H, W, C); nothing is sent from where nothing was.
    """
    sent = row_sums(plan)
    return plan * (x / jnp.where(sent > 0, sent, 1))[None]


@dataclasses.dataclass(frozen=True)
class Window:
    """A k x k window on the pixel grid, whose offsets cost (Δrow² + Δcolumn²)^{p/2}.

    Args:
        kernel: side k of the window, odd.
        p: 1 or 2.
    """

    kernel: int
    p: int

    @property
    def costs(self) -> np.ndarray:
        """(k²,) what each offset costs."""
        return plans.costs(self.kernel, self.p)

    @property
    def farthest(self) -> float:
        """The largest cost in the window."""
        return float(self.costs.max())

    def _bands(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Costs (k//2 + 1, W, W) by row distance, column from and column to, and how often each counts."""
        reach = self.kernel // 2
        across = np.abs(np.arange(width)[:, None] - np.arange(width)[None])
        costs = (np.arange(reach + 1)[:, None, None] ** 2 + across[None] ** 2) ** (self.p / 2)
        counts = np.where(across[None] <= reach, np.ones((reach + 1, 1, 1)), 0)
        counts[0] /= 2  # pixels above and below are added; of the row itself that makes twice as much
        return costs.astype(np.float32), counts.astype(np.float32)

    def _rows(self, image: Image) -> Float[Array, "reach height width channels"]:
        """For every row distance, what lies that far above plus what lies that far below."""
        reach, height = self.kernel // 2, image.shape[0]
        padded = jnp.pad(image, ((reach, reach), (0, 0), (0, 0)))
        return jnp.stack(
            [padded[reach - a : reach - a + height] + padded[reach + a : reach + a + height] for a in range(reach + 1)]
        )

    def _contract(self, rows: Array, bands: Array | np.ndarray) -> Image:
        return _exact("nhwc,nwv->hvc", rows, bands)

    def weighted_sum(self, image: Image, price: Scalar) -> Image:
        """Σ_j e^{−price · C_j} image_{i+j}, for every pixel i.

        Args:
            image: (H, W, C).
            price: ψ ≥ 0.

        Returns:
            (H, W, C).
        """
        costs, counts = self._bands(image.shape[1])
        return self._contract(self._rows(image), counts * jnp.exp(-price * costs))

    def log_sum(self, values: LogImage, price: Scalar, *, plain: bool) -> LogImage:
        """log Σ_j e^{values_{i+j} − price · C_j}, for every pixel i.

        Args:
            values: (H, W, C), −∞ where there is no mass.
            price: ψ ≥ 0.
            plain: whether to exponentiate first and multiply matrices, which is many times faster and the same to
                rounding where `safe_range` allows it.

        Returns:
            (H, W, C), −∞ where a window holds no mass.
        """
        if plain:
            highest = jnp.max(values)
            highest = jnp.where(jnp.isfinite(highest), highest, 0)
            return log_of(self.weighted_sum(jnp.exp(values - highest), price)) + highest

        def largest(highest: LogImage, offset: tuple[Array, Array]) -> tuple[LogImage, None]:
            return jnp.maximum(highest, view(offset)), None

        def add(total: Image, offset: tuple[Array, Array]) -> tuple[Image, None]:
            return total + jnp.exp(view(offset) - highest), None

        view = self._views(values, price)
        highest, _ = lax.scan(largest, jnp.full_like(values, -jnp.inf), self._offsets)
        highest = jnp.where(jnp.isfinite(highest), highest, 0)
        total, _ = lax.scan(add, jnp.zeros_like(values), self._offsets)
        return log_of(total) + highest

    def moments(self, left: LogImage, right: LogImage, price: Scalar, *, plain: bool) -> tuple[Scalar, Scalar]:
        """<C, Π> and <C², Π> of the plan exp(left_i + right_{i+j} − price · C_j).

        Args:
            left: a (H, W, C), −∞ where there is no mass.
            right: b (H, W, C), likewise.
            price: ψ ≥ 0.
            plain: as in `log_sum`.

        Returns:
            The two numbers.
        """
        if plain:
            highest = jnp.max(right)
            highest = jnp.where(jnp.isfinite(highest), highest, 0)
            costs, counts = self._bands(left.shape[1])
            pairs = _exact("nhwc,hvc->nwv", self._rows(jnp.exp(right - highest)), jnp.exp(left + highest))
            weighted = counts * costs * jnp.exp(-price * costs) * pairs
            return jnp.sum(weighted), jnp.sum(costs * weighted)
        view = self._views(right, price)

        def mass(_: None, offset: tuple[Array, Array]) -> tuple[None, Scalar]:
            return None, jnp.sum(jnp.exp(left + view(offset)))

        masses = lax.scan(mass, None, self._offsets)[1]
        return jnp.sum(self.costs * masses), jnp.sum(self.costs**2 * masses)

    def least(self, values: Image) -> Image:
        """min_j (C_j − values_{i+j}), for every pixel i: the largest partner that a dual potential can have.

        Args:
            values: (H, W, C), −∞ for pixels that do not count.

        Returns:
            (H, W, C), +∞ where no pixel of the window counts.
        """
        view = self._views(values, jnp.ones((), values.dtype))
        return -lax.scan(
            lambda high, o: (jnp.maximum(high, view(o)), None), jnp.full_like(values, -jnp.inf), self._offsets
        )[0]

    def plan(self, left: LogImage, right: LogImage, price: Scalar) -> Plan:
        """The whole array exp(left_i + right_{i+j} − price · C_j); nothing leaves the image.

        Args:
            left: (H, W, C), −∞ where there is no mass.
            right: (H, W, C), likewise.
            price: ψ ≥ 0.

        Returns:
            (k², H, W, C).
        """
        logs = left[None] + plans.windows(right, self.kernel) - price * self.costs[:, None, None, None]
        return jnp.where(plans.allowed(left.shape, self.kernel), jnp.exp(logs), 0)

    @property
    def _offsets(self) -> Any:
        return plans.offsets(self.kernel), self.costs

    def _views(self, values: LogImage, price: Scalar) -> Callable[[tuple[Array, Array]], LogImage]:
        """From an offset and its cost to the image seen there, less the price of going there."""
        reach = self.kernel // 2
        padded = jnp.pad(values, ((reach, reach), (reach, reach), (0, 0)), constant_values=-jnp.inf)

        def view(offset: tuple[Array, Array]) -> LogImage:
            (row, column), cost = offset
            return lax.dynamic_slice(padded, (row + reach, column + reach, 0), values.shape) - price * cost

        return view
