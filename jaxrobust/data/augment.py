"""Augmentation on the device: pure functions `(key, image) -> image`, each example with a key of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrobust import _checks
from jaxrobust.types import Image, Images, Key

__all__ = ["Transform", "batch", "chain", "random_crop", "random_flip"]

Transform = Callable[[Any, Any], Any]


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


def batch(key: Key, images: Images, index: Int[Array, " batch"], transform: Transform) -> Images:
    """Transform every image with the key `fold_in(key, index)`, so that it depends on nothing but itself.

    Args:
        key: one key for the batch; fold the epoch or the step into it, or every epoch sees the same images.
        images: (N, H, W, C).
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
    return jax.vmap(transform)(keys, images)
