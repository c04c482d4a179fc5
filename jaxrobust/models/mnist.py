"""Small networks for small images: digits, MNIST, Fashion-MNIST."""

from __future__ import annotations

from typing import Literal

import jax
from flax import nnx

from jaxrobust._checks import choice
from jaxrobust.models.layers import Conv, Normalise
from jaxrobust.types import Images

__all__ = ["MnistNet", "SmallCNN"]


class MnistNet(nnx.Module):
    """Two strided convolutions and two dense layers, the MNIST network of much work on certified robustness.

    Convolution 4x4 stride 2 to 16 channels, ReLU, the same to 32 channels, ReLU, dense to 100, ReLU, dense to
    the classes. Arrays are flattened in the order height, width, channel. 166,406 parameters by default.

    Args:
        classes: number of classes.
        channels: channels of an image.
        size: height and width of an image, a multiple of 4.
        mean: subtracted from each channel; empty for none.
        std: divides each channel; empty for none.
        rngs: draws the initial parameters, `nnx.Conv`'s and `nnx.Linear`'s defaults.

    Raises:
        ValueError: if `size` is not a multiple of 4.

    Example:
        >>> import jax.numpy as jnp
        >>> MnistNet(rngs=nnx.Rngs(0))(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)

    Reference:
        Wong, Schmidt, Kolter 2019, Wasserstein Adversarial Examples via Projected Sinkhorn Iterations,
        arXiv:1902.07906.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 1,
        size: int = 28,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        rngs: nnx.Rngs,
    ) -> None:
        if size < 4 or size % 4:
            raise ValueError(f"size must be a positive multiple of 4; got {size}")
        self.normalise = Normalise(mean, std, channels=channels, size=size)
        self.conv1 = Conv(channels, 16, (4, 4), 2, padding=1, rngs=rngs)
        self.conv2 = Conv(16, 32, (4, 4), 2, padding=1, rngs=rngs)
        self.dense1 = nnx.Linear((size // 4) ** 2 * 32, 100, rngs=rngs)
        self.dense2 = nnx.Linear(100, classes, rngs=rngs)

    def activations(self, images: Images) -> tuple[jax.Array, ...]:
        """The outputs of the two convolutions after ReLU, each (N, h, w, c)."""
        first = nnx.relu(self.conv1(self.normalise(images)))
        return first, nnx.relu(self.conv2(first))

    def __call__(self, images: Images) -> jax.Array:
        """Logits (N, K) of images (N, H, W, C) in [0, 1]."""
        features = self.activations(images)[-1]
        return self.dense2(nnx.relu(self.dense1(features.reshape(features.shape[0], -1))))


class SmallCNN(nnx.Module):
    """Four 3x3 convolutions with two poolings and three dense layers.

    Convolutions of w, w, pool, 2w, 2w, pool channels, dense h, dropout, dense h, dense to the classes, ReLU between.
    The defaults fit the 8-pixel digits of scikit-learn. With `size=28, padding="VALID"` it is the field's network for
    adversarial training on MNIST. Kernels start He normal (fan in), the last layer at zero.

    Args:
        size: height and width of an image.
        channels: channels of an image.
        classes: number of classes.
        width: w, channels of the first two convolutions.
        hidden: h, units of the two hidden dense layers.
        dropout: rate of the dropout between them, in [0, 1).
        padding: of the convolutions, "SAME" or "VALID".
        mean: subtracted from each channel; empty for none.
        std: divides each channel; empty for none.
        rngs: draws the initial parameters, and dropout outside of a `Trainable`.

    Raises:
        ValueError: if the images are too small for the padding, or the dropout rate is not in [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> SmallCNN(width=16, rngs=nnx.Rngs(0))(jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)

    Reference:
        Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019, Theoretically Principled Trade-off between Robustness and
        Accuracy, arXiv:1901.08573.
    """

    def __init__(
        self,
        *,
        size: int = 8,
        channels: int = 1,
        classes: int = 10,
        width: int = 32,
        hidden: int = 200,
        dropout: float = 0.5,
        padding: Literal["SAME", "VALID"] = "SAME",
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        rngs: nnx.Rngs,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {dropout}")
        lost = 0 if choice("padding", padding, ("SAME", "VALID")) == "SAME" else 4
        final = ((size - lost) // 2 - lost) // 2
        if final < 1:
            raise ValueError(f"size must be at least {4 + 3 * lost} with padding {padding!r}; got {size}")
        he = nnx.initializers.he_normal()
        self.normalise = Normalise(mean, std, channels=channels, size=size)
        self.conv1 = Conv(channels, width, (3, 3), padding=padding, kernel_init=he, rngs=rngs)
        self.conv2 = Conv(width, width, (3, 3), padding=padding, kernel_init=he, rngs=rngs)
        self.conv3 = Conv(width, 2 * width, (3, 3), padding=padding, kernel_init=he, rngs=rngs)
        self.conv4 = Conv(2 * width, 2 * width, (3, 3), padding=padding, kernel_init=he, rngs=rngs)
        self.dense1 = nnx.Linear(final**2 * 2 * width, hidden, kernel_init=he, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.dense2 = nnx.Linear(hidden, hidden, kernel_init=he, rngs=rngs)
        self.dense3 = nnx.Linear(hidden, classes, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def activations(self, images: Images) -> tuple[jax.Array, ...]:
        """The outputs of the four convolutions after ReLU, before pooling, each (N, h, w, c)."""
        first = nnx.relu(self.conv1(self.normalise(images)))
        second = nnx.relu(self.conv2(first))
        third = nnx.relu(self.conv3(_halve(second)))
        return first, second, third, nnx.relu(self.conv4(third))

    def __call__(self, images: Images) -> jax.Array:
        """Logits (N, K) of images (N, H, W, C) in [0, 1]."""
        features = _halve(self.activations(images)[-1])
        hidden = nnx.relu(self.dense1(features.reshape(features.shape[0], -1)))
        return self.dense3(nnx.relu(self.dense2(self.dropout(hidden))))


def _halve(maps: jax.Array) -> jax.Array:
    """2x2 max-pooling. Written as a maximum over an axis, because XLA:CPU scatters the gradient of a window slowly."""
    count, height, width, channels = maps.shape
    cut = maps[:, : height // 2 * 2, : width // 2 * 2]
    return cut.reshape(count, height // 2, 2, width // 2, 2, channels).max((2, 4))
