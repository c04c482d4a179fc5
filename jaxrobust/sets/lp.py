"""The lp balls: additive perturbations, with the exact projection onto the ball ∩ the box [0, 1]."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets.balls import kth_largest, maximise_l1, maximise_l2, norm, project_l1, project_l2, unit
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["L1", "L2", "Linf"]

Scalar = Float[Array, ""]


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
        return project_l2(theta, -x, 1 - x, self._radius(x))

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · g/‖g‖₂; a zero gradient moves nothing."""
        return theta + size * unit(gradient)

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ> over the ball ∩ box: clip(s g, −x, 1 − x) with the largest s that meets the ball."""
        return maximise_l2(gradient, -x, 1 - x, self._radius(x))

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
        return project_l1(theta, -x, 1 - x, self._radius(x))

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · e with ‖e‖₁ = 1: equal moves along sign(g) of the largest entries that the box lets move."""
        image = x + theta
        stuck = ((image >= 1) & (gradient > 0)) | ((image <= 0) & (gradient < 0))
        strength = jnp.where(stuck, 0, jnp.abs(gradient))
        kept = x.size - math.ceil(self.quantile * (x.size - 1))
        chosen = (strength >= kth_largest(strength, kept)) & (strength > 0)
        share = size / jnp.maximum(jnp.sum(chosen.astype(x.dtype)), 1)
        return theta + jnp.where(chosen, share * jnp.sign(gradient), 0)

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ> over the ball ∩ box: fill pixels to the box in order of |g| until the budget is spent."""
        return maximise_l1(gradient, -x, 1 - x, self._radius(x))

    def size(self, x: Image, theta: Image) -> Scalar:
        """Σ_i |δ_i|."""
        return jnp.sum(jnp.abs(theta))


register("linf", lambda: Linf(0.1))
register("l2", lambda: L2(1.0))
register("l1", lambda: L1(5.0))
