"""VGG networks, whose activations serve perceptual distances."""

from __future__ import annotations

from itertools import pairwise

import jax
from flax import nnx

from jaxrobust._checks import count
from jaxrobust.models.alexnet import average_to, max_pool
from jaxrobust.models.layers import Conv, Normalise
from jaxrobust.models.resnet import IMAGENET_MEAN, IMAGENET_STD, _check_stages
from jaxrobust.types import Images

__all__ = ["VGG"]


class VGG(nnx.Module):
    """Stages of 3x3 convolutions and three dense layers; by default VGG-16 (138.4 million parameters).

    Every stage ends in 2x2 max-pooling; then the maps are averaged to a fixed grid, so that any size is taken that
    the stages can halve. ReLU throughout, dropout after the hidden dense layers. Kernels start He normal (fan in),
    the last layer as `nnx.Linear` does.

    Args:
        stages: convolutions in each stage; (2, 2, 3, 3, 3) is VGG-16, (2, 2, 4, 4, 4) VGG-19.
        widths: channels of each stage.
        classes: number of classes.
        channels: channels of an image.
        grid: height and width of what the dense layers see: 7 for 224 pixels; 1 suits 32.
        hidden: units of the two hidden dense layers.
        dropout: rate after each of them, in [0, 1).
        mean: subtracted from each channel, by default ImageNet's; empty for none.
        std: divides each channel, by default ImageNet's; empty for none.
        rngs: draws the initial parameters, and dropout outside of a `Trainable`.

    Raises:
        ValueError: if `stages` and `widths` differ in length, or the dropout rate is not in [0, 1); when called, if
            the images are too small.

    Example:
        >>> network = VGG(stages=(1, 2), widths=(4, 8), hidden=8, grid=1, rngs=nnx.Rngs(0))
        >>> [maps.shape[1:] for maps in network.activations(jnp.zeros((1, 8, 8, 3)))]
        [(8, 8, 4), (4, 4, 8)]

    Reference:
        Simonyan, Zisserman, 2015, arXiv:1409.1556.
    """

    def __init__(
        self,
        *,
        stages: tuple[int, ...] = (2, 2, 3, 3, 3),
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
        classes: int = 1000,
        channels: int = 3,
        grid: int = 7,
        hidden: int = 4096,
        dropout: float = 0.5,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        rngs: nnx.Rngs,
    ) -> None:
        _check_stages(stages, widths)
        self.grid = count("grid", grid)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {dropout}")
        he = nnx.initializers.he_normal()
        self.normalise = Normalise(mean, std, channels=channels)
        self.stages = stages
        each = (channels, *(width for number, width in zip(stages, widths, strict=True) for _ in range(number)))
        self.convs = nnx.List(
            Conv(before, width, (3, 3), padding=1, kernel_init=he, rngs=rngs) for before, width in pairwise(each)
        )
        self.dense1 = nnx.Linear(grid**2 * widths[-1], hidden, kernel_init=he, rngs=rngs)
        self.dense2 = nnx.Linear(hidden, hidden, kernel_init=he, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.dense3 = nnx.Linear(hidden, classes, rngs=rngs)

    def activations(self, images: Images) -> tuple[jax.Array, ...]:
        """The last convolution of every stage after ReLU, before pooling, each (N, h, w, c)."""
        maps: list[jax.Array] = []
        value, convs = self.normalise(images), iter(self.convs)
        for number in self.stages:
            value = max_pool(value, 2) if maps else value
            for _ in range(number):
                value = nnx.relu(next(convs)(value))
            maps.append(value)
        return tuple(maps)

    def __call__(self, images: Images) -> jax.Array:
        """Logits (N, K) of images (N, H, W, C) in [0, 1]."""
        features = average_to(max_pool(self.activations(images)[-1], 2), self.grid)
        hidden = self.dropout(nnx.relu(self.dense1(features.reshape(features.shape[0], -1))))
        return self.dense3(self.dropout(nnx.relu(self.dense2(hidden))))
