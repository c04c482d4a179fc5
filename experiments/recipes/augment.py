"""The transforms of training images in the recipes, by name, each pure: `(key, image) -> image`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import sets
from jaxrobust.cli import train
from jaxrobust.types import Image, Key

__all__ = ["AUGMENTATIONS", "augmentation", "jitter", "lighting", "rotation"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# principal components of ImageNet's colours, columns, and their standard deviations
VALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32)


def jitter(key: Key, image: Image, *, amount: float) -> Image:
    """Brightness, contrast and saturation times factors from U[1 − amount, 1 + amount], in this order."""
    brightness, contrast, saturation = jax.random.uniform(key, (3,), image.dtype, 1 - amount, 1 + amount)
    image = jnp.clip(brightness * image, 0, 1)
    middle = (image @ LUMA).mean()
    image = jnp.clip(middle + contrast * (image - middle), 0, 1)
    grey = (image @ LUMA)[..., None]
    return jnp.clip(grey + saturation * (image - grey), 0, 1)


def lighting(key: Key, image: Image, *, amount: float = 0.05) -> Image:
    """Colours moved along their principal components by N(0, amount²) standard deviations (Krizhevsky et al., 2012)."""
    move = VECTORS @ (amount * jax.random.normal(key, (3,), image.dtype) * VALUES)
    return jnp.clip(image + move.reshape(1, 1, 3), 0, 1)


def rotation(key: Key, image: Image, *, degrees: float) -> Image:
    """Turned about its middle by an angle from U[−degrees, degrees], bilinear."""
    ball = sets.RotationTranslation(rotation=degrees, translation=0.0)
    return ball.apply(image, ball.sample(key, image))


AUGMENTATIONS = {
    **train.AUGMENTATIONS,
    "jitter": functools.partial(jitter, amount=0.25),
    "jitter-imagenet": functools.partial(jitter, amount=0.1),
    "lighting": lighting,
    "rotation": functools.partial(rotation, degrees=2.0),
}


def augmentation(names: Sequence[str]) -> Any:
    """What `training.fit` takes: the named transforms one after the other, or None for none."""
    return train.augmentation(names, known=AUGMENTATIONS, what="augment")
