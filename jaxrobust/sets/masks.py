"""Changes confined to a place: a support that is given, or a square that the adversary puts where it hurts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrobust.sets.balls import squared_gain
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.sets.lp import L1, L2, AdditiveBall, Linf
from jaxrobust.sets.sparse import GroupL21, SparseSet, whole
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["Masked", "Patch"]

Scalar = Float[Array, ""]


@pytree("radius")
class Patch(AdditiveBall):
    """One square of pixels takes any values in [0, 1], and the adversary chooses where it lies: θ is the change δ.

    A union over places, so not convex. The projection is exact over all of them, but ascent rarely leaves the place
    at which it started: restarts try others, and `maximise` finds the best one for a linear loss.

    Args:
        radius: the side of the square in pixels, ≥ 0; a fraction counts as its floor, and a side longer than the
            image covers it. Typical: ImageNet 20 (untargeted) and 40 (targeted), CIFAR-10 5.

    Reference:
        Croce et al., 2022, arXiv:2006.12834 (sides); Karmon et al., 2018, arXiv:1801.02608.
    """

    radius: Number

    def sample(self, key: Key, x: Image) -> Image:
        """Uniform colours on a square at a uniform place."""
        row_key, column_key, colour_key = jax.random.split(key, 3)
        side = whole(self._radius(x), max(x.shape))
        places = [
            jnp.floor(jax.random.uniform(k, (), x.dtype) * (jnp.maximum(n - side, 0) + 1).astype(x.dtype))
            for k, n in ((row_key, x.shape[0]), (column_key, x.shape[1]))
        ]
        window = square_at(x, places[0].astype(jnp.int32), places[1].astype(jnp.int32), side)
        return jnp.where(window, jax.random.uniform(colour_key, x.shape, x.dtype) - x, 0)

    def project(self, x: Image, theta: Image) -> Image:
        """argmin ‖δ' − δ‖₂: the square of largest gain, Σ δ² − (δ − clip δ)², clipped; ties by the lowest index."""
        kept = jnp.clip(theta, -x, 1 - x)
        side = whole(self._radius(x), max(x.shape))
        row, column = self._best_place(squared_gain(theta, kept), side)
        # a member stays where it is, whatever rounding makes of equal sums
        top, left, height, width = _extent(kept)
        fits = jnp.maximum(height, width) <= side
        window = square_at(x, jnp.where(fits, top, row), jnp.where(fits, left, column), side)
        return jnp.where(window, kept, 0)

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · g/max|g|, as for `L0`: inside the square there is only the box, in pixel units."""
        largest = jnp.max(jnp.abs(gradient))
        return theta + size * (gradient / jnp.where(largest > 0, largest, 1))

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ>: the square with the largest Σ max(g (1 − x), −g x), every pixel at its face of the box."""
        best = jnp.where(gradient > 0, 1 - x, jnp.where(gradient < 0, -x, 0))
        side = whole(self._radius(x), max(x.shape))
        return jnp.where(square_at(x, *self._best_place(gradient * best, side), side), best, 0)

    def size(self, x: Image, theta: Image) -> Scalar:
        """The side of the smallest square that holds the change."""
        _, _, height, width = _extent(theta)
        return jnp.maximum(height, width).astype(x.dtype)

    def contains(self, x: Image, theta: Image) -> Bool[Array, ""]:
        """Whether a square of side ⌊radius⌋ holds the change, counted exactly, and x + δ in [0, 1] up to 1e-6."""
        image = x + theta
        inside = (jnp.min(image) >= -1e-6) & (jnp.max(image) <= 1 + 1e-6)
        return inside & (self.size(x, theta) <= whole(self._radius(x), max(x.shape)).astype(x.dtype))

    def _best_place(self, gain: Image, side: Array) -> tuple[Array, Array]:
        """The top left corner of the square that holds most of a gain ≥ 0.

        Squares that hang over the lower and right edges count too: none of them holds more than one inside does. Sums
        by products with bands of ones cancel nothing, as the corners of an integral image would.
        """
        total = gain.sum(2)
        rows, columns = (_band(n, side, gain.dtype) for n in total.shape)
        sums = jnp.matmul(jnp.matmul(rows, total, precision="highest"), columns.T, precision="highest")
        best = jnp.argmax(sums.reshape(-1)).astype(side.dtype)
        return best // total.shape[1], best % total.shape[1]


def _band(length: int, side: Array, dtype: Any) -> Array:
    """(length, length): row i is 1 on [i, i + side)."""
    places = jnp.arange(length, dtype=side.dtype)
    offset = places[None] - places[:, None]
    return ((offset >= 0) & (offset < side)).astype(dtype)


def square_at(x: Image, row: Array, column: Array, side: Array) -> Bool[Array, "height width 1"]:
    """The square of that side whose top left corner is there."""
    rows, columns = (jnp.arange(n, dtype=side.dtype) for n in x.shape[:2])
    tall, wide = (rows >= row) & (rows < row + side), (columns >= column) & (columns < column + side)
    return tall[:, None, None] & wide[None, :, None]


def _extent(delta: Image) -> tuple[Array, Array, Array, Array]:
    """The top, left, height and width of the smallest rectangle that holds the change; all 0 without one."""
    changed = (delta != 0).any(2)
    spans = []
    for touched in (changed.any(1), changed.any(0)):
        first, beyond = (jnp.argmax(line).astype(jnp.int32) for line in (touched, touched[::-1]))
        spans.append((first, jnp.where(touched.any(), touched.size - beyond - first, 0)))
    (top, height), (left, width) = spans
    return top, left, height, width


@pytree("set", "mask")
class Masked(AdditiveBall):
    """An additive set restricted to a fixed support, such as a frame or a sticker: θ is δ, zero outside of the mask.

    Args:
        set: what may change inside: an lp ball, a sparse set, a `Patch` or another `Masked`. Others are refused,
            because their projections need not leave a pixel at rest that is at rest.
        mask: (H, W, C) or (H, W, 1), traced; what is not zero may change.

    Raises:
        TypeError: a set of another kind.
        ValueError: a mask whose shape does not fit the image, when it meets one.

    The radius is the inner set's, in its unit.

    Example:
        >>> frame = np.ones((28, 28, 1), bool)
        >>> frame[2:-2, 2:-2] = False
        >>> str(Masked(Linf(0.3), frame))
        'masked Linf(0.3)'
    """

    set: Any
    mask: Any

    def __post_init__(self) -> None:
        solid("set", self.set)
        if isinstance(self.mask, np.ndarray) and self.mask.dtype != bool:
            object.__setattr__(self, "mask", self.mask.astype(bool))

    @property
    def radius(self) -> Number:
        """The inner set's radius."""
        return self.set.radius

    def with_radius(self, radius: Number) -> Masked:
        """The same support with another inner radius."""
        return Masked(self.set.with_radius(radius), self.mask)

    def sample(self, key: Key, x: Image) -> Image:
        """A sample of the inner set in the support: for the norm balls uniform, then projected on the box."""
        support = self._support(x)
        inner_key, length_key = jax.random.split(key)
        if isinstance(self.set, SparseSet):
            return self.set.sample_within(inner_key, x, support)
        theta = jnp.where(support, self.set.sample(inner_key, x), 0)
        if isinstance(self.set, (L1, L2, GroupL21)):
            # the direction is right, but what fell outside of the mask has left it short
            dimension = jnp.maximum(jnp.sum(support.astype(x.dtype)), 1)
            length = self.set._radius(x) * jax.random.uniform(length_key, (), x.dtype) ** (1 / dimension)
            size = self.set.size(x, theta)
            theta = theta * (length / jnp.where(size > 0, size, 1))
        return self.set.project(x, theta)

    def project(self, x: Image, theta: Image) -> Image:
        """argmin ‖δ' − δ‖₂: zero outside, the inner projection inside."""
        return self.set.project(x, jnp.where(self._support(x), theta, 0))

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """The inner set's step along the gradient inside of the support."""
        return self.set.ascend(x, theta, self.pullback(x, theta, gradient), size)

    def pullback(self, x: Image, theta: Image, gradient: Image) -> Image:
        """The gradient inside of the support, zero outside."""
        return jnp.where(self._support(x), gradient, 0)

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ>: the inner set's for the gradient inside of the support."""
        return self.set.maximise(x, jnp.where(self._support(x), gradient, 0))

    def size(self, x: Image, theta: Image) -> Scalar:
        """The inner set's size."""
        return self.set.size(x, theta)

    def contains(self, x: Image, theta: Image) -> Bool[Array, ""]:
        """Whether the inner set contains δ, and nothing outside of the support changes."""
        return self.set.contains(x, theta) & jnp.all(jnp.where(self._support(x), 0, theta) == 0)

    def _support(self, x: Image) -> Bool[Array, "height width channels"]:
        if jnp.ndim(self.mask) != 3 or self.mask.shape not in (x.shape, (*x.shape[:2], 1)):
            raise ValueError(
                f"mask must have shape {(*x.shape[:2], 1)} or {x.shape} like the image; got {jnp.shape(self.mask)}"
            )
        return jnp.broadcast_to(jnp.asarray(self.mask).astype(bool), x.shape)

    def __str__(self) -> str:
        return f"masked {self.set}"


# sets whose projections only shrink coordinates: what is at rest stays at rest, and a smaller change stays a member
SOLID = (Linf, L2, L1, SparseSet, GroupL21, Patch, Masked)


def solid(name: str, value: Any) -> None:
    """Refuses sets that are not solid; placeholders by which JAX rebuilds a pytree pass."""
    if isinstance(value, (PerturbationSet, type, str)) and not isinstance(value, SOLID):
        found = value if isinstance(value, (type, str)) else type(value).__name__
        raise TypeError(f"{name} must be an lp ball, a sparse set, a patch or a masked one; got {found!r}")


register("patch", lambda: Patch(3))
register("masked", lambda: Masked(L2(0.5), np.arange(30).reshape(6, 5, 1) % 3 > 0), shapes=((6, 5, 3), (6, 5, 1)))
