"""The lp balls: additive perturbations, with the exact projection onto the ball ∩ the box [0, 1]."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["L1", "L2", "Linf"]

Scalar = Float[Array, ""]

LENIENT = 1e-6  # share of a radius that a projection may leave unspent


class AdditiveBall(PerturbationSet):
    """x' = x + δ with ‖δ‖ ≤ radius and x' in [0, 1]: θ is δ itself. What differs by norm is in the subclasses."""

    def init(self, x: Image) -> Image:
        """No perturbation."""
        return jnp.zeros_like(x)

    def apply(self, x: Image, theta: Image) -> Image:
        """x + δ; the clip only guards against rounding, since projected perturbations respect the box."""
        return jnp.clip(x + theta, 0, 1)

    def pullback(self, x: Image, theta: Image, gradient: Image) -> Image:
        """The image's own gradient: differentiating the guard of `apply` would freeze every saturated pixel."""
        return gradient

    def contains(self, x: Image, theta: Image) -> Bool[Array, ""]:
        """Whether ‖δ‖ ≤ radius and x + δ in [0, 1], both up to 1e-5 · max(1, radius) (1e-6 for l∞ and the box)."""
        image = x + theta
        radius = self._radius(x)
        inside_box = (jnp.min(image) >= -1e-6) & (jnp.max(image) <= 1 + 1e-6)
        slack = 1e-6 if isinstance(self, Linf) else 1e-5 * jnp.maximum(radius, 1)
        return inside_box & (self.size(x, theta) <= radius + slack)

    def _radius(self, x: Image) -> Scalar:
        return jnp.asarray(self.radius).astype(x.dtype)


@pytree("radius")
class Linf(AdditiveBall):
    """The l∞ ball {δ : max_i |δ_i| ≤ radius} ∩ box.

    Args:
        radius: ε in pixel units of [0, 1], ≥ 0. Typical: MNIST 0.3, CIFAR-10 8/255, ImageNet 4/255.

    Example:
        >>> str(Linf(8 / 255))
        'Linf(8/255)'

    Reference:
        Madry et al., 2018, arXiv:1706.06083.
    """

    radius: Number

    def __post_init__(self) -> None:
        # as users write it: a number that was made canonical is of a set that was warned of, and one that is larger
        # still is meant to cap nothing
        if type(self.radius) in (int, float) and 1 < self.radius <= 64:
            _checks.slip(
                f"Linf of radius {self.radius:g} holds every image, since pixels lie in [0, 1] (did you mean "
                f"{self.radius:g} / 255?)"
            )
        if type(self.radius) is int and self.radius == 0:
            _checks.slip(
                "Linf of radius 0 holds the clean image alone (did you mean 8 / 255, not 8 // 255, which rounds down? "
                "where 0 is meant, write 0.0)"
            )
        super().__post_init__()

    def sample(self, key: Key, x: Image) -> Image:
        """Uniform in [−ε, ε]^d, clipped to the box."""
        radius = self._radius(x)
        return self.project(x, jax.random.uniform(key, x.shape, x.dtype, -1, 1) * radius)

    def project(self, x: Image, theta: Image) -> Image:
        """argmin ‖δ' − δ‖₂: a clip."""
        radius = self._radius(x)
        return jnp.clip(theta, jnp.maximum(-radius, -x), jnp.minimum(radius, 1 - x))

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · sign(g), with sign(0) = 0."""
        return theta + size * jnp.sign(gradient)

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ> over the ball ∩ box; pixels with zero gradient stay."""
        return self.project(x, self._radius(x) * jnp.sign(gradient))

    def size(self, x: Image, theta: Image) -> Scalar:
        """max_i |δ_i|."""
        return jnp.max(jnp.abs(theta))


@pytree("radius")
class L2(AdditiveBall):
    """The l2 ball {δ : ‖δ‖₂ ≤ radius} ∩ box.

    Args:
        radius: ε, the Euclidean norm over all pixels and channels of an image in [0, 1], ≥ 0. Typical: MNIST 2,
            CIFAR-10 0.5 (also 128/255, 1), ImageNet 3.

    Reference:
        Madry et al., 2018, arXiv:1706.06083. The projection onto ball ∩ box is exact, where project-then-clip, the
        usual code, is not nearest.
    """

    radius: Number

    def sample(self, key: Key, x: Image) -> Image:
        """Uniform in the ball, ε u^{1/d} n/‖n‖₂, then projected on the box."""
        direction_key, length_key = jax.random.split(key)
        normal = jax.random.normal(direction_key, x.shape, x.dtype)
        length = jax.random.uniform(length_key, (), x.dtype) ** (1 / x.size)
        return self.project(x, self._radius(x) * length * unit(normal))

    def project(self, x: Image, theta: Image) -> Image:
        """argmin ‖δ' − δ‖₂: δ' = clip(s δ, −x, 1 − x) with the largest s ≤ 1 that meets the ball."""
        return _stretched(x, theta, self._radius(x), most=1.0)

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · g/‖g‖₂; a zero gradient moves nothing."""
        return theta + size * unit(gradient)

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ> over the ball ∩ box: clip(s g, −x, 1 − x) with the largest s that meets the ball."""
        return _stretched(x, unit(gradient), self._radius(x), most=math.inf)

    def size(self, x: Image, theta: Image) -> Scalar:
        """‖δ‖₂."""
        return norm(theta)


@pytree("radius")
class L1(AdditiveBall):
    """The l1 ball {δ : Σ_i |δ_i| ≤ radius} ∩ box.

    Args:
        radius: ε, the sum of absolute changes over all pixels and channels of an image in [0, 1], ≥ 0. Typical:
            MNIST 10, CIFAR-10 12 (also 2000/255), ImageNet 60.
        quantile: steps move the entries whose |gradient| is at or above this quantile (SLIDE's q, static); of d
            entries these are the k = d − ⌈q (d − 1)⌉ largest. 1 moves the largest alone, the exact steepest ascent.

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000 (steps); Croce and Hein, 2021, arXiv:2103.01208 (ball ∩ box). Their
        released projections leave the ball on some inputs; this one solves for the threshold and does not.
    """

    radius: Number
    quantile: float = dataclasses.field(default=0.99, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "quantile", float(_checks.number("quantile", self.quantile, high=1.0)))

    def sample(self, key: Key, x: Image) -> Image:
        """Uniform in the ball (exponential spacings with random signs), then projected on the box."""
        spacing_key, sign_key = jax.random.split(key)
        spacings = jax.random.exponential(spacing_key, (x.size + 1,), x.dtype)
        signs = jax.random.rademacher(sign_key, x.shape, x.dtype)
        fractions = (spacings[:-1] / jnp.sum(spacings)).reshape(x.shape)
        return self.project(x, self._radius(x) * signs * fractions)

    def project(self, x: Image, theta: Image) -> Image:
        """argmin ‖δ' − δ‖₂: δ' = clip(sign(δ) max(|δ| − t, 0), −x, 1 − x) with the smallest t ≥ 0 in the ball."""
        magnitude, room = jnp.abs(theta), _room(x, theta)

        def total(base: Scalar, offset: Scalar) -> tuple[Scalar, Scalar]:
            kept = jnp.maximum(magnitude - base - offset, 0)
            slope = jnp.sum(((kept > 0) & (kept < room)).astype(x.dtype))
            return jnp.sum(jnp.minimum(kept, room)), slope

        base, offset = _meet(total, self._radius(x), jnp.max(magnitude), jnp.max(room))
        return jnp.clip(jnp.sign(theta) * jnp.maximum(magnitude - base - offset, 0), -x, 1 - x)

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · e with ‖e‖₁ = 1: equal moves along sign(g) of the largest entries that the box lets move."""
        image = x + theta
        stuck = ((image >= 1) & (gradient > 0)) | ((image <= 0) & (gradient < 0))
        strength = jnp.where(stuck, 0, jnp.abs(gradient))
        kept = x.size - math.ceil(self.quantile * (x.size - 1))
        chosen = (strength >= _kth_largest(strength, kept)) & (strength > 0)
        share = size / jnp.maximum(jnp.sum(chosen.astype(x.dtype)), 1)
        return theta + jnp.where(chosen, share * jnp.sign(gradient), 0)

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ> over the ball ∩ box: fill pixels to the box in order of |g| until the budget is spent."""
        flat = gradient.reshape(-1)
        room = jnp.where(flat == 0, 0, _room(x, gradient).reshape(-1))
        order = jnp.argsort(-jnp.abs(flat))
        spent = jnp.cumsum(room[order]) - room[order]
        fill = jnp.clip(self._radius(x) - spent, 0, room[order])
        return (jnp.zeros_like(flat).at[order].set(fill) * jnp.sign(flat)).reshape(x.shape)

    def size(self, x: Image, theta: Image) -> Scalar:
        """Σ_i |δ_i|."""
        return jnp.sum(jnp.abs(theta))


def norm(vector: Array) -> Scalar:
    """‖v‖₂ over all entries, free of overflow and underflow, with gradient 0 at 0."""
    largest = jnp.max(jnp.abs(vector))
    safe = jnp.where(largest > 0, largest, 1)
    total = jnp.sum(jnp.square(vector / lax.stop_gradient(safe)))
    return jnp.where(largest > 0, lax.stop_gradient(safe) * jnp.sqrt(jnp.where(largest > 0, total, 1)), 0)


def unit(vector: Array) -> Array:
    """v/‖v‖₂, and 0 for v = 0; scaled first, so that a gradient of 1e-30 keeps its direction."""
    largest = jnp.max(jnp.abs(vector))
    scaled = vector / jnp.where(largest > 0, largest, 1)
    total = jnp.sum(jnp.square(scaled))
    return scaled * lax.rsqrt(jnp.where(total > 0, total, 1))


def power_of_two(value: Scalar) -> Scalar:
    """The largest power of two that is not above a number ≥ 0, and 1 for 0: dividing by it rounds nothing."""
    value = lax.stop_gradient(value)
    bits = lax.bitcast_convert_type(value, jnp.dtype(f"int{8 * value.dtype.itemsize}"))
    mantissa = jnp.finfo(value.dtype).nmant
    power = lax.bitcast_convert_type((bits >> mantissa) << mantissa, value.dtype)
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1)


def squared_gain(theta: Image, kept: Image) -> Image:
    """Σ's terms of ‖θ‖² − ‖θ − kept‖², over one power of two: free of cancellation, overflow and underflow."""
    return kept * ((2 * theta - kept) / power_of_two(jnp.max(jnp.abs(theta))))


def _room(x: Image, direction: Image) -> Image:
    """How far each entry can move along the sign of the direction before it meets the box."""
    return jnp.where(direction > 0, 1 - x, x)


def _stretched(x: Image, direction: Image, radius: Scalar, *, most: float) -> Image:
    """clip(s d, −x, 1 − x) with the largest s ≤ most of which the norm is at most the radius.

    Powers of two are taken out of the direction and the radius, so that no square overflows or underflows.
    """
    unit_direction, unit_radius = power_of_two(jnp.max(jnp.abs(direction))), power_of_two(radius)
    direction = direction / unit_direction
    # beyond 4 room does not bind, since the radius is below 2
    room = jnp.minimum(_room(x, direction) / unit_radius, 4)
    scale = _largest_scale(jnp.abs(direction), room, radius / unit_radius)
    # 1e20 stands for infinity, which times zero would be NaN
    moved = jnp.minimum(scale, 1e20) * direction * unit_radius
    if math.isfinite(most):
        longest = most * unit_direction
        moved = jnp.where(scale * unit_radius >= longest, longest * direction, moved)
    return jnp.clip(moved, -x, 1 - x)


def _largest_scale(magnitude: Array, room: Array, radius: Scalar) -> Scalar:
    """sup {s ≥ 0 : ‖min(s m, room)‖₂ ≤ r}, possibly infinite.

    With the entries that meet their room at s held there, the rest gives the next s in closed form. It never
    overshoots, because entries that will meet their room later only make the norm smaller, so a handful of rounds
    ends at the exact solution where bisection would take fifty.
    """
    square_room, square_magnitude = jnp.square(room), jnp.square(magnitude)

    def better(scale: Scalar) -> Scalar:
        met = scale * magnitude >= room
        left = jnp.maximum(jnp.square(radius) - jnp.sum(jnp.where(met, square_room, 0)), 0)
        free = jnp.sum(jnp.where(met, 0, square_magnitude))
        return jnp.where(free > 0, jnp.sqrt(left / jnp.where(free > 0, free, 1)), jnp.inf)

    def improves(carry: tuple[Scalar, Scalar, Array]) -> Array:
        scale, candidate, rounds = carry
        return (candidate > scale) & jnp.isfinite(candidate) & (rounds < 100)

    zero = jnp.zeros((), magnitude.dtype)
    start = (zero, better(zero), jnp.zeros((), jnp.int32))
    _, scale, _ = lax.while_loop(improves, lambda c: (c[1], jnp.maximum(better(c[1]), c[1]), c[2] + 1), start)
    return scale


def _kth_largest(values: Array, k: int | Array) -> Scalar:
    """The k-th largest of values ≥ 0, bit by bit: their bits order as integers do.

    Counting thirty-odd times costs a fifth of what XLA:CPU takes to select.
    """
    integer = jnp.dtype(f"int{8 * values.dtype.itemsize}")
    bits = lax.bitcast_convert_type(values, integer)
    highest = 8 * values.dtype.itemsize - 2

    def set_bit(i: Array, found: Array) -> Array:
        candidate = found | (jnp.ones((), integer) << (highest - i).astype(integer))
        return jnp.where(jnp.sum(bits >= candidate, dtype=jnp.result_type(k)) >= k, candidate, found)

    found = lax.fori_loop(0, highest + 1, set_bit, jnp.zeros((), integer))
    return lax.bitcast_convert_type(found, values.dtype)


def _meet(
    total: Callable[[Scalar, Scalar], tuple[Scalar, Scalar]], radius: Scalar, high: Scalar, reach: Scalar
) -> tuple[Scalar, Scalar]:
    """inf {t ≥ 0 : total(t) ≤ r} of a non-increasing total, as t = base + offset.

    Newton's step is exact on the right piece of a piecewise linear total; where it leaves the bracket, bisection takes
    its place. Where the floats near t lie further apart than the radius is long, as for a perturbation of 1e8, a second
    search finds the offset between two of them, and what is a little above t is to be told by (value − base) − offset.

    Args:
        total: of (base, offset), with its negated slope.
        radius: r.
        high: where the total is 0.
        reach: how far below a magnitude t has to be for that magnitude to have all its room.

    Returns:
        The base and the offset, which is in [−reach, 0].
    """

    def search(
        total: Callable[[Scalar], tuple[Scalar, Scalar]], low: Scalar, high: Scalar, done: Array
    ) -> tuple[Scalar, Scalar, Scalar, Scalar, Scalar]:
        first = low

        def body(carry: tuple[Scalar, Scalar, Scalar, Scalar, Scalar]) -> tuple[Scalar, Scalar, Scalar, Scalar, Scalar]:
            low, high, threshold, _, _ = carry
            value, slope = total(threshold)
            excess = value - radius
            low, high = jnp.where(excess > 0, threshold, low), jnp.where(excess > 0, high, threshold)
            newton = threshold + excess / jnp.where(slope > 0, slope, 1)
            middle = low + (high - low) / 2
            inside = (slope > 0) & (newton > low) & (newton < high)
            split = jnp.where(inside, newton, jnp.where((middle > low) & (middle < high), middle, high))
            solved = (jnp.abs(excess) <= tolerance) | ((excess <= 0) & (threshold == first))
            return low, high, jnp.where(solved, threshold, split), threshold, excess

        # two thresholds that are alike end the search
        start = (low, high, low, jnp.where(done, low, low - 1), 0 * radius)
        return lax.while_loop(lambda carry: carry[2] != carry[3], body, start)

    tolerance = 16 * jnp.finfo(radius.dtype).eps * radius
    zero = jnp.zeros_like(high)
    low, _, base, _, excess = search(lambda base: total(base, zero), zero, high, jnp.zeros((), bool))
    spent = (excess >= -LENIENT * radius) | (base == 0)
    offset = search(lambda offset: total(base, offset), jnp.maximum(low - base, -reach), zero, spent)[2]
    return base, jnp.where(spent, 0, offset)


register("linf", lambda: Linf(0.1))
register("l2", lambda: L2(1.0))
register("l1", lambda: L1(5.0))
