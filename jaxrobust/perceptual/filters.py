"""A feature network made by hand, for those who have no weights at hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _checks
from jaxrobust.types import Classifier, Images, Number

__all__ = ["filter_bank"]

ANGLES = np.arange(8) * np.pi / 4
DIRECTIONS = np.stack([np.sin(ANGLES), np.cos(ANGLES)])
BLUR = (0.25, 0.5, 0.25)
SLOPE = (-0.5, 0.0, 0.5)


def filter_bank(*, scales: int = 3, contrast: Number = 0.1) -> Classifier:
    """A small fixed bank of oriented edge filters, a feature network without weights, for images of any size.

    At every scale (the image, then blurred by [1 2 1]/4 and halved, and so on) a position's activations are the
    intensities of its channels, their derivatives in eight directions, max(∂y/∂u, 0), and a constant. Normalised,
    they say how light changes relative to the light there; by the constant, dark places do not count for more.

    It is no substitute for AlexNet: nothing in it was learned, and no human judged it. Radii of papers do not carry
    over. It tells any two images apart, so its distance is a metric; it is at most √(2 · scales).

    Args:
        scales: how often the image is taken, each time at half the resolution, ≥ 1.
        contrast: the constant, > 0, in units of intensity: smaller changes of intensity matter little in the dark.

    Returns:
        A feature network: `activations` gives a map (N, h, w, 9 C + 1) a scale, and the logits are their means.

    Raises:
        ValueError: scales below 1, or contrast not positive and finite.

    Example:
        >>> image = jnp.zeros((1, 7, 5, 3))
        >>> bank = filter_bank()
        >>> [maps.shape for maps in bank.activations(bank.params, image)]
        [(1, 7, 5, 28), (1, 4, 3, 28), (1, 2, 2, 28)]
    """
    contrast = float(_checks.number("contrast", contrast))
    if not contrast:
        raise ValueError(f"contrast must be > 0; got {contrast:g}")
    activations = _Activations(_checks.count("scales", scales), contrast)
    return Classifier(_Means(activations), (), activations)


@dataclasses.dataclass(frozen=True)
class _Activations:
    """Compares equal for equal banks, so that two of them share one compilation."""

    scales: int
    contrast: float

    def __call__(self, params: tuple[()], images: Images) -> tuple[jax.Array, ...]:
        maps = []
        for _ in range(self.scales):
            maps.append(self._responses(images))
            images = _filtered(_filtered(images, 1, BLUR, 2), 2, BLUR, 2)
        return tuple(maps)

    def _responses(self, images: Images) -> jax.Array:
        slopes = jnp.stack([_filtered(images, 1, SLOPE), _filtered(images, 2, SLOPE)], -1)
        edges = jax.nn.relu(jnp.matmul(slopes, DIRECTIONS.astype(images.dtype), precision="highest"))
        constant = jnp.full((*images.shape[:3], 1), self.contrast, images.dtype)
        return jnp.concatenate([images, edges.reshape(*images.shape[:3], -1), constant], -1)


@dataclasses.dataclass(frozen=True)
class _Means:
    activations: _Activations

    def __call__(self, params: tuple[()], images: Images) -> jax.Array:
        return jnp.concatenate([maps.mean((1, 2)) for maps in self.activations(params, images)], -1)


def _filtered(images: jax.Array, axis: int, taps: tuple[float, ...], stride: int = 1) -> jax.Array:
    """Three taps along an axis, the border repeated; as a product with a matrix, because shifted sums of shifted sums
    are fused into one expression whose size is exponential in the number of scales.
    """
    length = images.shape[axis]
    matrix = np.zeros((length, length), np.float32)
    for shift, tap in zip((-1, 0, 1), taps, strict=True):
        np.add.at(matrix, (np.arange(length), np.clip(np.arange(length) + shift, 0, length - 1)), tap)
    equation = "oh,nhwc->nowc" if axis == 1 else "ow,nhwc->nhoc"
    return jnp.einsum(equation, matrix[::stride].astype(images.dtype), images, precision="highest")
