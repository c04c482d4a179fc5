"""JPEG: perturbations of the coefficients that JPEG quantises, in quantisation steps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.sets.lp import L1, L2, Linf
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["JPEG"]

Scalar = Float[Array, ""]
Planes = dict[str, Array]

BALLS: dict[str, Callable[..., Linf | L2 | L1]] = {"linf": Linf, "l2": L2, "l1": L1}
LIMIT = 2.0  # |v_i| under l2 and l1

# The quantisation tables of quality 50; rows are vertical frequencies.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
CHROMINANCE = np.full((8, 8), 99, np.float32)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# JFIF: (R, G, B) @ TO_YCC = (Y, Cb, Cr) up to the offset of the chroma planes, which cancels below.
TO_YCC = np.array([[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]], np.float32)
TO_RGB = np.array([[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]], np.float32)

_frequency, _place = np.mgrid[:8, :8]
DCT = np.cos((2 * _place + 1) * _frequency * np.pi / 16) * np.where(_frequency == 0, np.sqrt(1 / 8), 0.5)
DCT = DCT.astype(np.float32)  # orthonormal DCT-II, frequency x place


@pytree("radius")
class JPEG(PerturbationSet):
    """JPEG coefficients moved by up to ±radius/2 quantisation steps, without any rounding.

    θ = v is a dictionary of coefficient planes, "y" (H, W) and, of RGB images, "cb" and "cr", half as high and wide
    with chroma subsampling; each 8 × 8 block holds the coefficients of the image's block there. The image is taken to
    YCbCr, the chroma averaged over 2 × 2 pixels, and each block's orthonormal DCT divided by the quality-50 table;
    then v/2 is added and all is undone, with nearest upsampling, and clipped to [0, 1]. As nothing is rounded, the way
    there and back is linear, so that x' = clip(x with its chroma averaged + ½ · inverse DCT of (table · v)).

    v is bounded by ‖v‖ ≤ radius, and by |v_i| ≤ 2 under l2 and l1. Projections and linear maximisers are exact.

    Args:
        radius: ε, the norm of v, ≥ 0; twice the quantisation steps of change. Typical: CIFAR-10 0.125 (l∞), 1 (l2),
            64 (l1); ImageNet 0.25 (l∞), 32 (l2), 4096 (l1).
        norm: "linf", "l2" or "l1" (static). Kang et al. search l1 by Frank–Wolfe.
        subsample: whether chroma planes are halved, 4:2:0 (static). Then the clean image is not in the set unless it
            is grey: averaging the chroma alone moves random noise by 0.17 in the mean, at most by 0.86 to 0.99.

    Raises:
        ValueError: height or width that is no multiple of 8 (16 for RGB with subsampling), or channels other than 1
            or 3 (when the set is used).

    Example:
        >>> coefficients = JPEG(0.125).init(jnp.zeros((16, 32, 3)))
        >>> {name: plane.shape for name, plane in sorted(coefficients.items())}
        {'cb': (8, 16), 'cr': (8, 16), 'y': (16, 32)}

    Reference:
        Kang et al., 2019, arXiv:1908.08016. Their code works on images with rows and columns swapped, and so on the
        transposed luminance table; its l2 step projects on the ball and then clips, which is not nearest; and its l1
        maximiser may leave |v_i| ≤ 2, as it measures the room from the current v but moves from 0.
    """

    radius: Number
    norm: str = "linf"
    subsample: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice("norm", self.norm, tuple(BALLS))
        _checks.choice("subsample", self.subsample, (False, True))

    @property
    def contains_clean(self) -> bool:
        """Without chroma subsampling only."""
        return not self.subsample

    def init(self, x: Image) -> Planes:
        """All coefficients as they are."""
        return {name: jnp.zeros(shape, x.dtype) for name, shape in self._shapes(x).items()}

    def sample(self, key: Key, x: Image) -> Planes:
        """Uniform in the norm's ball over all coefficients, then within |v_i| ≤ 2."""
        flat, unravel = ravel_pytree(self.init(x))
        ball, scale, middle = self._ball(flat)
        return unravel(scale * ball.sample(key, middle).reshape(-1))

    def apply(self, x: Image, theta: Planes) -> Image:
        """The decoded image."""
        return jnp.clip(self._decoded(x, theta), 0, 1)

    def pullback(self, x: Image, theta: Planes, gradient: Image) -> Planes:
        """The gradient in v; pixels that are clipped have none, those on the very edge of [0, 1] do."""
        image, pull = jax.vjp(lambda theta: self._decoded(x, theta), theta)
        clipped = (image < -1e-6) | (image > 1 + 1e-6)
        return pull(jnp.where(clipped, 0, gradient))[0]

    def project(self, x: Image, theta: Planes) -> Planes:
        """argmin ‖v' − v‖₂ over ‖v'‖ ≤ radius, |v'_i| ≤ 2."""
        return self._on_ball(lambda ball, middle, v: ball.project(middle, v), theta)

    def ascend(self, x: Image, theta: Planes, gradient: Planes, size: Scalar) -> Planes:
        """The lp ball's own step, over all coefficients: along sign(g), g/‖g‖₂ or the largest entries of g."""
        flat = ravel_pytree(gradient)[0].reshape(-1, 1, 1)
        scale = self._ball(flat)[1]
        return self._on_ball(lambda ball, middle, v: ball.ascend(middle, v, flat, size / scale), theta)

    def maximise(self, x: Image, gradient: Planes) -> Planes:
        """argmax <g, v> over ‖v‖ ≤ radius, |v_i| ≤ 2."""
        return self._on_ball(lambda ball, middle, g: ball.maximise(middle, g), gradient)

    def size(self, x: Image, theta: Planes) -> Scalar:
        """‖v‖ in the set's norm."""
        flat = ravel_pytree(theta)[0]
        ball, _, middle = self._ball(flat)
        return ball.size(middle, flat.reshape(-1, 1, 1))

    def contains(self, x: Image, theta: Planes) -> Bool[Array, ""]:
        """Whether ‖v‖ ≤ radius and |v_i| ≤ 2, both up to 1e-5 · max(1, radius) (1e-6 for l∞); see `apply`."""
        largest = jnp.max(jnp.abs(ravel_pytree(theta)[0]))
        limit = self._limit(largest)
        radius = jnp.asarray(self.radius).astype(x.dtype)
        slack = (1e-6 if self.norm == "linf" else 1e-5) * jnp.maximum(radius, 1)
        return (self.size(x, theta) <= radius + slack) & (largest <= limit + 1e-6 * jnp.maximum(limit, 1))

    def _shapes(self, x: Image) -> dict[str, tuple[int, int]]:
        height, width, channels = x.shape
        if channels not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels for JPEG; got {channels}")
        step = 16 if self.subsample and channels == 3 else 8
        if height % step or width % step:
            raise ValueError(f"images' height and width must be multiples of {step} for JPEG; got {(height, width)}")
        if channels == 1:
            return {"y": (height, width)}
        chroma = (height // 2, width // 2) if self.subsample else (height, width)
        return {"y": (height, width), "cb": chroma, "cr": chroma}

    def _decoded(self, x: Image, theta: Planes) -> Image:
        if {name: plane.shape for name, plane in theta.items()} != self._shapes(x):
            found = {name: plane.shape for name, plane in theta.items()}
            raise ValueError(f"theta must have planes {self._shapes(x)}; got {found}")
        if x.shape[2] == 1:
            return x + _inverse_dct(theta["y"], LUMINANCE)[..., None] / 510
        chroma = [_inverse_dct(theta[name], CHROMINANCE) for name in ("cb", "cr")]
        if self.subsample:
            planes = jnp.matmul(x, TO_YCC[:, 1:], precision="highest")
            pooled = planes.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, 2).mean((1, 3))
            chroma = [_doubled(plane) for plane in chroma]
            x = x + jnp.matmul(_doubled(pooled) - planes, TO_RGB[1:], precision="highest")
        planes = jnp.stack([_inverse_dct(theta["y"], LUMINANCE), *chroma], -1)
        return x + jnp.matmul(planes, TO_RGB, precision="highest") / 510

    def _limit(self, v: Array) -> Scalar:
        """The largest |v_i|; under l∞ the radius says it."""
        limit = jnp.full((), LIMIT, v.dtype)
        return jnp.maximum(limit, jnp.asarray(self.radius).astype(v.dtype)) if self.norm == "linf" else limit

    def _ball(self, v: Array) -> tuple[Linf | L2 | L1, Scalar, Image]:
        """The lp ball ∩ box of which v/scale is a member, around an image that is grey in the middle."""
        scale = 2 * self._limit(v)
        ball = BALLS[self.norm](jnp.asarray(self.radius).astype(v.dtype) / scale)
        return ball, scale, jnp.full((v.size, 1, 1), 0.5, v.dtype)

    def _on_ball(self, method: Callable[..., Image], theta: Planes) -> Planes:
        flat, unravel = ravel_pytree(theta)
        ball, scale, middle = self._ball(flat)
        return unravel(scale * method(ball, middle, (flat / scale).reshape(-1, 1, 1)).reshape(-1))


def _inverse_dct(plane: Float[Array, "height width"], table: np.ndarray) -> Float[Array, "height width"]:
    """Pixels from coefficients in quantisation steps, block by block."""
    height, width = plane.shape
    blocks = plane.reshape(height // 8, 8, width // 8, 8) * table[None, :, None, :]
    return jnp.einsum("ui,aubv,vj->aibj", DCT, blocks, DCT, precision="highest").reshape(height, width)


def _doubled(plane: Array) -> Array:
    """Nearest upsampling of the first two axes."""
    return jnp.repeat(jnp.repeat(plane, 2, 0), 2, 1)


register("jpeg_linf", lambda: JPEG(0.125), shapes=((16, 32, 3), (32, 16, 1)))
register("jpeg_l2", lambda: JPEG(1.0, norm="l2", subsample=False), shapes=((8, 16, 3), (16, 8, 1)))
register("jpeg_l1", lambda: JPEG(64.0, norm="l1", subsample=False), shapes=((16, 8, 3),) * 2)
