"""Augmentation on the device: pure functions `(key, image) -> image`, each example with a key of its own.

What changes the size of images is done on the host, at decoding: `jaxrobust.data.RandomResizedCrop`. All else is done
here, because hosts are the narrow place: at 224 pixels `IMAGENET` would add 1.8 ms of CPU to the 4 ms that decoding an
image takes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from jaxrobust import _checks
from jaxrobust.types import Image, Images, Key, Number

__all__ = [
    "CIFAR",
    "IMAGENET",
    "Transform",
    "batch",
    "chain",
    "random_crop",
    "random_flip",
    "random_jitter",
    "random_lighting",
    "random_rotation",
    "to_float",
]

Transform = Callable[[Any, Any], Any]

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
# Eigenvectors (columns) of the covariance of ImageNet's RGB values, times their eigenvalues, as the recipes have them.
_LIGHT = np.asarray([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]) * np.asarray(
    [0.2175, 0.0188, 0.0045]
)


def random_crop(key: Key, image: Image, *, padding: int = 4) -> Image:
    """Pad with zeros and cut the image's own size out at a uniformly random place.

    The result is the image shifted by (i, j) with i, j uniform on -padding..padding.

    Args:
        key: a key, used once.
        image: (H, W, C).
        padding: pixels on each side; static.

    Returns:
        (H, W, C) image in the range of `image` and 0.

    Raises:
        TypeError: padding is not an integer.
        ValueError: padding is negative.

    Example:
        >>> random_crop(jax.random.key(0), jnp.ones((32, 32, 3))).shape
        (32, 32, 3)

    Reference:
        He, Zhang, Ren, Sun (2015), arXiv:1512.03385, section 4.2.
    """
    padding = _checks.count("padding", padding, low=0)
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    # Under vmap this is one gather of whole rows; selecting among static shifts was 15 times slower on a CPU.
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def random_flip(key: Key, image: Image) -> Image:
    """Mirror the image left to right with probability one half.

    Args:
        key: a key, used once.
        image: (H, W, C).

    Returns:
        (H, W, C) image, `image` or its mirror image.

    Example:
        >>> random_flip(jax.random.key(0), jnp.ones((32, 32, 3))).shape
        (32, 32, 3)
    """
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_jitter(
    key: Key, image: Image, *, brightness: Number = 0.0, contrast: Number = 0.0, saturation: Number = 0.0
) -> Image:
    """Change brightness, contrast and saturation, in random order.

    Each is a blend clip(f·x + (1 - f)·t) with f uniform on [max(0, 1 - s), 1 + s], s its strength, and t black, the
    mean grey of the image, and the grey of each pixel.

    Args:
        key: a key, used once.
        image: (H, W, C) in [0, 1]; C is 3, or 1, which has no saturation.
        brightness: strength, >= 0.
        contrast: strength, >= 0.
        saturation: strength, >= 0.

    Returns:
        (H, W, C) image in [0, 1].

    Raises:
        ValueError: a strength that is negative or not finite, or images of other channels.

    Example:
        >>> random_jitter(jax.random.key(0), jnp.ones((32, 32, 3)), contrast=0.25).shape
        (32, 32, 3)
    """
    given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    strengths = jnp.stack([jnp.asarray(_checks.number(name, value), jnp.float32) for name, value in given.items()])
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"image must have 1 channel or 3; got the shape {image.shape}")
    weights = jnp.asarray([[_GREY if image.shape[-1] == 3 else (1.0,)]], image.dtype)
    factor_key, order_key = jax.random.split(key)
    low = jnp.maximum(0, 1 - strengths)
    factors = low + (1 + strengths - low) * jax.random.uniform(factor_key, (3,))
    order = jnp.asarray(_ORDERS)[jax.random.randint(order_key, (), 0, len(_ORDERS))]
    for step in range(3):
        kind = order[step]
        factor = factors[kind].astype(image.dtype)
        grey = (image * weights).sum(-1, keepdims=True)
        target = jnp.where(kind == 0, 0, jnp.where(kind == 1, grey.mean(), grey))
        image = jnp.clip(factor * image + (1 - factor) * target, 0, 1)
    return image


def random_lighting(key: Key, image: Image, *, std: Number = 0.05) -> Image:
    """Add one random colour to all pixels, along the principal components of ImageNet's colours.

    clip(x + Σₖ aₖ λₖ pₖ) with aₖ ~ N(0, std²), pₖ and λₖ eigenvectors and eigenvalues of the covariance of RGB values.

    Args:
        key: a key, used once.
        image: (H, W, 3) in [0, 1].
        std: standard deviation of the aₖ.

    Returns:
        (H, W, 3) image in [0, 1].

    Raises:
        ValueError: std is negative or not finite, or images without three channels.

    Example:
        >>> random_lighting(jax.random.key(0), jnp.ones((32, 32, 3))).shape
        (32, 32, 3)

    Reference:
        Krizhevsky, Sutskever, Hinton (2012), Advances in Neural Information Processing Systems 25, section 4.1.
    """
    std = jnp.asarray(_checks.number("std", std), image.dtype)
    if image.shape[-1] != 3:
        raise ValueError(f"image must have 3 channels; got the shape {image.shape}")
    strengths = std * jax.random.normal(key, (1, 3), image.dtype)
    colour = (jnp.asarray(_LIGHT, image.dtype) * strengths).sum(-1)
    return jnp.clip(image + colour[None, None], 0, 1)


def random_rotation(key: Key, image: Image, *, degrees: Number = 2.0) -> Image:
    """Rotate the image about its centre by an angle uniform on ±degrees; nearest pixel, zeros from outside.

    Args:
        key: a key, used once.
        image: (H, W, C).
        degrees: the largest angle.

    Returns:
        (H, W, C) image whose values are those of `image` and 0.

    Raises:
        ValueError: degrees are negative or not finite.

    Example:
        >>> random_rotation(jax.random.key(0), jnp.ones((32, 32, 3))).shape
        (32, 32, 3)
    """
    limit = jnp.deg2rad(jnp.float32(_checks.number("degrees", degrees)))
    angle = jax.random.uniform(key, minval=-limit, maxval=limit)
    height, width, _ = image.shape
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    row = jnp.round(cos * y - sin * x + (height - 1) / 2).astype(jnp.int32)
    column = jnp.round(sin * y + cos * x + (width - 1) / 2).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    moved = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], moved, 0)


def to_float(images: Any) -> Any:
    """float32 images in [0, 1] of bytes: bit for bit what the loader makes of them on the host.

    Args:
        images: an array of uint8, which is divided by 255, or of floats, which stay as they are.

    Returns:
        The images, floating.

    Example:
        >>> to_float(jnp.asarray([0, 51, 255], jnp.uint8)).tolist()
        [0.0, 0.20000000298023224, 1.0]
    """
    if images.dtype != jnp.uint8:
        return images
    # Compilers make of x / 255 a product with a rounded 1 / 255, which is off for half of all bytes; in 1 / 255 =
    # 1 / 256 + 1 / (255 · 256) the rounded part is too small to count.
    exact = images.astype(jnp.float32)
    return exact * np.float32(1 / 256) + exact * np.float32(1 / (255 * 256))


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Compares equal for the same transforms, so that making it twice does not compile twice."""

    transforms: tuple[Transform, ...]

    def __call__(self, key: Any, image: Any) -> Any:
        for step, transform in enumerate(self.transforms):
            image = transform(jax.random.fold_in(key, step), image)
        return image


def chain(*transforms: Transform) -> Transform:
    """One transform that applies several in turn, each with its own key.

    Args:
        *transforms: functions `(key, image) -> image`.

    Returns:
        A function `(key, image) -> image`; hashable if the transforms are.

    Example:
        >>> transform = chain(random_crop, random_flip)
        >>> transform(jax.random.key(0), jnp.ones((8, 8, 1))).shape
        (8, 8, 1)
    """
    return _Chain(transforms)


def batch(
    key: Key,
    images: Images | UInt8[Array, "batch height width channels"],
    index: Int[Array, " batch"],
    transform: Transform,
) -> Images:
    """Transform every image with the key `fold_in(key, index)`, so that it depends on nothing but itself.

    Args:
        key: one key for the batch; fold the epoch or the step into it, or every epoch sees the same images.
        images: (N, H, W, C), floating, or uint8, which `to_float` takes first.
        index: (N,) positions in the data set, as `Batch.index`.
        transform: a function `(key, image) -> image`, such as `chain(random_crop, random_flip)`.

    Returns:
        (N, H, W, C) transformed images.

    Example:
        >>> transform = chain(random_crop, random_flip)
        >>> batch(jax.random.key(0), jnp.ones((2, 8, 8, 1)), jnp.arange(2), transform).shape
        (2, 8, 8, 1)
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(transform)(keys, to_float(images))


CIFAR = chain(
    random_crop,
    random_flip,
    functools.partial(random_jitter, brightness=0.25, contrast=0.25, saturation=0.25),
    random_rotation,
)
"""The training transform of perceptual adversarial training on CIFAR-10 (Laidlaw et al. 2021, arXiv:2006.12655)."""

IMAGENET = chain(
    random_flip,
    functools.partial(random_jitter, brightness=0.1, contrast=0.1, saturation=0.1),
    random_lighting,
)
"""The same paper's on ImageNet-100, after `RandomResizedCrop(224)` on the host."""
