"""Spatial sets: pixels are moved, not changed. Flows (StAdv), rotations with translations, elastic deformations."""

from __future__ import annotations

import abc
import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.sets._bounded import BoundedParameters, Smooth
from jaxrobust.sets._interpolation import clamp, pixels, warp
from jaxrobust.sets.base import is_placeholder, register
from jaxrobust.types import Image, Number, pytree

__all__ = ["Elastic", "Flow", "RotationTranslation"]

FlowField = Float[Array, "height width 2"]


class _Warping(BoundedParameters):
    """A set that samples the image at p + d_p, bilinearly; subclasses say what θ makes of the displacement d."""

    outside: str = "zero"

    def apply(self, x: Image, theta: Array) -> Image:
        """z_p = x(p + d_p), bilinear; averages of pixels stay in [0, 1]."""
        return warp(clamp(x), self.displacement(x, theta), self.outside)

    @abc.abstractmethod
    def displacement(self, x: Image, theta: Array) -> FlowField:
        """Where each pixel is taken from: (H, W, 2) in pixels, down and right of its own place."""


@pytree("radius", "weight")
class Flow(Smooth, _Warping):
    """StAdv, a flow field: z_p = x(p + f_p) with one displacement f_p a pixel, |f_p| ≤ radius in each direction.

    θ is the flow (H, W, 2), down and right, in half image sides: images span [−1, 1] from edge to edge and pixel i of n
    lies at (2i + 1)/n − 1, so a flow f moves by f · n/2 pixels (the half-pixel convention). Coordinates stay in
    [−1, 1]; beyond the border there is black, which the outermost half pixel blends in. `penalty` is
    weight · Σ_p Σ_{q ∈ N(p)} ‖f_p − f_q‖₂ over the four neighbours; attacks that penalise ascend the loss minus it.

    Bilinear sampling has a kink wherever a coordinate falls on a pixel, first of all at the identity; the gradient
    there is the mean of both sides, the central difference. Besides `sample`, uniform in the box, a start from tiny
    noise suits the set: a flow of large random vectors scrambles the image.

    Args:
        radius: ε in half image sides, ≥ 0. Typical: 0.05 on CIFAR-10 (0.8 pixels) and ImageNet (5.6 of 224).
        weight: what the flow's roughness costs, ≥ 0; None takes 0.0025/radius, 0.05 at the typical radius.

    Example:
        >>> x = jnp.linspace(0, 1, 64).reshape(8, 8, 1)
        >>> flow = jnp.zeros((8, 8, 2)).at[..., 1].set(2 / 8)  # from one pixel to the right
        >>> bool(jnp.allclose(Flow().apply(x, flow)[:, :-1], x[:, 1:]))
        True

    Reference:
        Xiao et al., 2018, arXiv:1801.02612; bounded as in Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655. Their root
        √(‖·‖² + 10⁻¹⁰) is kept, less its value at 0, so that a constant flow costs nothing.
    """

    radius: Number = 0.05
    weight: Number | None = None

    _relative_weight = 0.0025

    @staticmethod
    def penalised(side: int, *, tau: Number = 0.05) -> Flow:
        """Penalised StAdv, the original form: no bound but the image itself, and τ times the roughness in pixels.

        To be searched from the clean image by an attack that ascends the loss minus `penalty`, with steps said in half
        image sides, not in fractions of the radius, which is 2: a flow across the whole image.

        Args:
            side: the side n of the square images; f in pixels is n/2 times the flow, and so the weight is τ n/2.
            tau: τ ≥ 0, the paper's 0.05.

        Returns:
            The set.

        Example:
            >>> Flow.penalised(32).weight.item()
            0.8
        """
        return Flow(2.0, _checks.number("tau", tau) * _checks.count("side", side) / 2)

    def displacement(self, x: Image, theta: FlowField) -> FlowField:
        """f · n/2."""
        return theta * jnp.asarray(x.shape[:2], x.dtype)[None, None] / 2

    def _shape(self, x: Image) -> tuple[int, ...]:
        return (*x.shape[:2], 2)

    def _limits(self, x: Image) -> tuple[Array, Array]:
        middles = (2 * pixels(*x.shape[:2]) + 1) / np.array(x.shape[:2]) - 1
        return jnp.asarray(-1 - middles, x.dtype), jnp.asarray(1 - middles, x.dtype)


@pytree("radius")
class Elastic(_Warping):
    """Elastic deformations: z_p = x(p + (G * θ)_p), a field of displacements smoothed by a Gaussian.

    θ (H, W, 2) are displacements in pixels, down and right, |θ| ≤ radius before they are smoothed; where neighbours
    disagree, little is left of them. The Gaussian has σ = 3 n/224 and reaches ⌈4σ⌉ pixels (25 x 25 at n = 224, 5 x 5 at
    32), with n the smaller side, and the field is mirrored beyond the border. As in the original the image spans
    [−1, 1] from the middle of its first pixel to the middle of its last while θ counts in n-ths of it, so that a
    displacement of θ moves by θ (n − 1)/n pixels. Beyond the border there is black.

    Args:
        radius: ε in pixels, ≥ 0. Typical: 0.125 to 8 on CIFAR-10, 0.25 to 16 on ImageNet.
        sigma: σ in pixels (static); None takes 3 n/224.

    Example:
        >>> str(Elastic(0.5))
        'Elastic(0.5)'

    Reference:
        Kang et al., 2019, arXiv:1908.08016. Their base grid is the identity only where the image spans pixel middles;
        sampled the other way it changes an unperturbed image, here it does not.
    """

    radius: Number
    sigma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None:
            object.__setattr__(self, "sigma", float(_checks.number("sigma", self.sigma)))

    def displacement(self, x: Image, theta: FlowField) -> FlowField:
        """(G * θ) (n − 1)/n."""
        sigma = 3 * min(x.shape[:2]) / 224 if self.sigma is None else self.sigma
        down, along = (jnp.asarray(_smoothing(size, sigma), x.dtype) for size in x.shape[:2])
        smooth = jnp.einsum("ri,ijk,cj->rck", down, theta, along, precision=lax.Precision.HIGHEST)
        return smooth * jnp.asarray(1 - 1 / np.array(x.shape[:2]), x.dtype)[None, None]

    def _shape(self, x: Image) -> tuple[int, ...]:
        return (*x.shape[:2], 2)


@pytree("radius", "rotation", "translation")
class RotationTranslation(_Warping):
    """Rotations and translations: the image turned about its middle by an angle a, then moved by t, bilinear.

    θ (3,) is (a, t_down, t_right) in units of their limits: a = θ₀ · rotation degrees counter-clockwise and
    t = θ₁,₂ · translation pixels, all |θ_i| ≤ radius. So the radius scales the whole set, `size` is the largest of the
    three as a fraction of its limit, and a step of `ascend` moves each by the same fraction of its limit. First-order
    search is known to get stuck on this set; `grid` lists the points for the search that does not.

    Args:
        radius: the share of the limits that is allowed, ≥ 0. Typical: 1.
        rotation: the limit of |a| at radius 1, in degrees, ≥ 0. Typical: 30.
        translation: the limit of |t| in each direction at radius 1, in pixels, ≥ 0. Typical: 3 on MNIST and CIFAR-10,
            24 on ImageNet.
        outside: what comes in from beyond the border (static): "zero" for black, "reflect" for the mirrored image.

    Example:
        >>> x = jnp.arange(9.0).reshape(3, 3, 1) / 9
        >>> turned = RotationTranslation(rotation=90).apply(x, jnp.array([1.0, 0, 0]))
        >>> bool(jnp.allclose(turned, jnp.rot90(x), atol=1e-6))
        True

    Reference:
        Engstrom et al., 2019, arXiv:1712.02779. Their code resamples twice, for the rotation and for the translation;
        here both are one map and the image is resampled once, which for whole pixels of translation is the same.
    """

    radius: Number = 1.0
    rotation: Number = 30.0
    translation: Number = 3.0
    outside: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rotation", "translation"):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name)))
        _checks.choice("outside", self.outside, ("zero", "reflect"))

    def __str__(self) -> str:
        limits = (self.rotation, self.translation)
        if any(is_placeholder(limit) for limit in limits):
            return super().__str__()
        rotation, translation = (format(float(limit), "g") for limit in limits)
        return super().__str__().replace("(", f" of {rotation}°, {translation} px (", 1)

    def grid(self, x: Image, points: tuple[int, ...] = (31, 5, 5)) -> Float[Array, "points 3"]:
        """The points of a grid search, evenly spaced with both ends and the identity.

        Args:
            x: (H, W, C); only its dtype matters.
            points: how many angles, shifts down and shifts right, all odd so that the identity is among them.

        Returns:
            (775, 3) for the default: θ of every combination.

        Raises:
            ValueError: other than three numbers of points, or one that is even or below 1.
        """
        if len(points) != 3:
            raise ValueError(f"points must have 3 entries, one a parameter; got {points}")
        axes = []
        for number in points:
            if _checks.count("points", number) % 2 == 0:
                raise ValueError(f"points must be odd, so that the identity is among them; got {points}")
            half = number // 2
            axes.append(np.arange(-half, half + 1) / max(half, 1))
        corners = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        return jnp.asarray(corners, x.dtype) * jnp.asarray(self.radius).astype(x.dtype)

    def displacement(self, x: Image, theta: Float[Array, "3"]) -> FlowField:
        """R(p − m − t) + m − p, with m the middle of the image and R the inverse of the rotation."""
        angle = theta[0] * jnp.asarray(self.rotation).astype(x.dtype) * (math.pi / 180)
        shift = theta[1:] * jnp.asarray(self.translation).astype(x.dtype)
        sine, cosine_less_one = jnp.sin(angle), -2 * jnp.square(jnp.sin(angle / 2))
        middle = (np.array(x.shape[:2]) - 1) / 2
        places = jnp.asarray(pixels(*x.shape[:2]) - middle, x.dtype) - shift[None, None]
        across = jnp.stack([places[..., 1], -places[..., 0]], -1)
        return cosine_less_one * places + sine * across - shift[None, None]

    def _shape(self, x: Image) -> tuple[int, ...]:
        return (3,)


@functools.cache
def _smoothing(size: int, sigma: float) -> np.ndarray:
    """The matrix (n, n) of a Gaussian of reach ⌈4σ⌉, at most n − 1, on a line that is mirrored at its ends."""
    reach = min(math.ceil(4 * sigma), size - 1)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-np.square(steps / sigma) / 2) if sigma > 0 else (steps == 0).astype(float)
    weights /= weights.sum()
    period = max(2 * size - 2, 1)
    places = (np.arange(size)[:, None] + steps) % period
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], np.minimum(places, period - places) % size), weights)
    return matrix


register("flow", Flow)
register("elastic", lambda: Elastic(1.0))
register("rotation_translation", RotationTranslation)
