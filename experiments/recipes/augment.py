"""The transforms of training images in the recipes, by name, each pure: `(key, image) -> image`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jaxrobust.cli import train
from jaxrobust.data import augment

__all__ = ["AUGMENTATIONS", "augmentation"]


def _jitter(amount: float) -> Any:
    return functools.partial(augment.random_jitter, brightness=amount, contrast=amount, saturation=amount)


AUGMENTATIONS = {
    **train.AUGMENTATIONS,
    "jitter": _jitter(0.25),
    "jitter-imagenet": _jitter(0.1),
    "lighting": augment.random_lighting,
    "rotation": augment.random_rotation,
}


def augmentation(names: Sequence[str]) -> Any:
    """What `training.fit` takes: the named transforms one after the other, or None for none."""
    return train.augmentation(names, known=AUGMENTATIONS, what="augment")
