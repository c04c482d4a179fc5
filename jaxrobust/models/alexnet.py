"""AlexNet, the network of perceptual distances, for ImageNet and for 32 pixels."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrobust._checks import choice
from jaxrobust.models.layers import Conv, Normalise
from jaxrobust.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from jaxrobust.types import Images

__all__ = ["AlexNet", "average_to", "max_pool"]

# (kernel, stride, padding) of the five convolutions, the pooling window, and the grid that the dense layers see
FORMS = {
    "imagenet": (((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)), 3, 6),
    "cifar": (((3, 2, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1)), 2, 2),
}


class AlexNet(nnx.Module):
    """Five convolutions and three dense layers; by default torchvision's AlexNet (61.1 million parameters).

    Max-pooling of stride 2 follows the first, second and fifth convolution; then the maps are averaged to a fixed
    grid, so that any size of at least 63 pixels ("imagenet") or 16 ("cifar") is taken. ReLU and dropout between.
    Kernels start He normal (fan in), the last layer as `nnx.Linear` does.

    Args:
        form: "imagenet" (11x11 stride 4, 5x5, 3x3; pooling over 3; 6x6 grid) or "cifar" (3x3 stride 2, 3x3; pooling
            over 2; 2x2 grid).
        classes: number of classes.
        channels: channels of an image.
        widths: channels of the convolutions.
        hidden: units of the two hidden dense layers.
        dropout: rate before each of them, in [0, 1).
        mean: subtracted from each channel, by default ImageNet's (in both forms); empty for none.
        std: divides each channel, by default ImageNet's; empty for none.
        rngs: draws the initial parameters, and dropout outside of a `Trainable`.

    Raises:
        ValueError: if the form is unknown, `widths` are not five, or the dropout rate is not in [0, 1); when called,
            if the images are too small.

    Example:
        >>> network = AlexNet(form="cifar", classes=10, hidden=8, rngs=nnx.Rngs(0))
        >>> [maps.shape[1:] for maps in network.activations(jnp.zeros((1, 32, 32, 3)))]
        [(16, 16, 64), (8, 8, 192), (4, 4, 384), (4, 4, 256), (4, 4, 256)]

    Reference:
        Krizhevsky, 2014, arXiv:1404.5997; for 32 pixels as in Laidlaw, Singla, Feizi, 2021, arXiv:2006.12655.
    """

    def __init__(
        self,
        *,
        form: Literal["imagenet", "cifar"] = "imagenet",
        classes: int = 1000,
        channels: int = 3,
        widths: tuple[int, ...] = (64, 192, 384, 256, 256),
        hidden: int = 4096,
        dropout: float = 0.5,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        rngs: nnx.Rngs,
    ) -> None:
        layers, self.window, self.grid = FORMS[choice("form", form, FORMS)]
        if len(widths) != len(layers) or min(widths) < 1:
            raise ValueError(f"widths must be five and at least 1 each; got {widths}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {dropout}")
        he = nnx.initializers.he_normal()
        self.normalise = Normalise(mean, std, channels=channels)
        self.convs = nnx.List(
            Conv(before, width, (kernel, kernel), stride, padding=padding, kernel_init=he, rngs=rngs)
            for before, width, (kernel, stride, padding) in zip((channels, *widths), widths, layers, strict=False)
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        flat = self.grid**2 * widths[-1]
        self.dense1 = nnx.Linear(flat, hidden, kernel_init=he, rngs=rngs)
        self.dense2 = nnx.Linear(hidden, hidden, kernel_init=he, rngs=rngs)
        self.dense3 = nnx.Linear(hidden, classes, rngs=rngs)

    def activations(self, images: Images) -> tuple[jax.Array, ...]:
        """The outputs of the five convolutions after ReLU, before pooling, each (N, h, w, c)."""
        maps: list[jax.Array] = []
        value = self.normalise(images)
        for index, conv in enumerate(self.convs):
            maps.append(nnx.relu(conv(value)))
            value = max_pool(maps[-1], self.window) if index < 2 else maps[-1]
        return tuple(maps)

    def __call__(self, images: Images) -> jax.Array:
        """Logits (N, K) of images (N, H, W, C) in [0, 1]."""
        features = average_to(max_pool(self.activations(images)[-1], self.window), self.grid)
        hidden = nnx.relu(self.dense1(self.dropout(features.reshape(features.shape[0], -1))))
        return self.dense3(nnx.relu(self.dense2(self.dropout(hidden))))


def max_pool(maps: jax.Array, window: int) -> jax.Array:
    """Max-pooling of stride 2 without padding, as a maximum of slices: XLA:CPU is slow at a window's gradient.

    Args:
        maps: (N, h, w, c).
        window: height and width of the window.

    Returns:
        (N, (h − window)//2 + 1, (w − window)//2 + 1, c). Ties share the gradient.

    Raises:
        ValueError: if the maps are smaller than the window.
    """
    if min(maps.shape[1:3]) < window:
        raise ValueError(f"images are too small for this network: pooling over {window} meets maps of {maps.shape}")
    for axis in (1, 2):
        last = maps.shape[axis] - window + 1
        slices = [jax.lax.slice_in_dim(maps, start, start + last, 2, axis) for start in range(window)]
        maps = functools.reduce(jnp.maximum, slices)
    return maps


def average_to(maps: jax.Array, grid: int) -> jax.Array:
    """Adaptive average pooling to grid x grid: cell i averages positions ⌊i h/grid⌋ to ⌈(i + 1) h/grid⌉ − 1.

    Args:
        maps: (N, h, w, c).
        grid: height and width of the result.

    Returns:
        (N, grid, grid, c).
    """
    if maps.shape[1:3] == (grid, grid):
        return maps
    rows, columns = (_cells(length, grid).astype(maps.dtype) for length in maps.shape[1:3])
    return jnp.einsum("ah,bw,nhwc->nabc", rows, columns, maps, precision="highest")


def _cells(length: int, grid: int) -> np.ndarray:
    position, cell = np.arange(length)[None], np.arange(grid)[:, None]
    inside = (position >= cell * length // grid) & (position < -(-(cell + 1) * length // grid))
    return inside / inside.sum(1, keepdims=True)
