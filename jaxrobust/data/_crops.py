"""Crops on the host, at decoding: what changes an image's size has to come before images are stacked."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from jaxrobust import _checks

__all__ = ["CentreCrop", "Crop", "RandomResizedCrop"]


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """Resize the shorter side (bilinear), then cut out the centre: ImageNet's test transform.

    Args:
        size: pixels of a side of the result.
        resize: pixels of the shorter side; default: 8/7 of `size`, so 256 for 224.

    Raises:
        TypeError: not integers.
        ValueError: a size below 1, or `resize` below it.

    Example:
        >>> CentreCrop(224)
        CentreCrop(size=224, resize=256)
    """

    size: int
    resize: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        size = _checks.count("size", self.size)
        resize = round(size * 8 / 7) if self.resize == 0 else _checks.count("resize", self.resize, low=size)
        object.__setattr__(self, "resize", resize)

    def cut(self, image: Image.Image, mode: str, rng: np.random.Generator | None) -> Image.Image:
        """The crop of an opened image, in a mode of Pillow's."""
        width, height = image.size
        # As the recipes of the field round: the longer side down, the corner to the nearest.
        short = min(width, height)
        width, height = self.resize * width // short, self.resize * height // short
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = _in_mode(image, mode).resize((width, height), Image.Resampling.BILINEAR)
        return image.crop((left, top, left + self.size, top + self.size))


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a random box and resize it to a square (bilinear): ImageNet's training transform.

    The box has area U(scale) of the image's and log-uniform aspect ratio, at a uniform place; drawn anew, up to ten
    times, while it does not fit, then the largest central one of an allowed ratio. It is drawn by (seed, epoch, index),
    so it does not depend on order, batch, host, thread or resumption. Read without a seed, as for validation, the
    result is `CentreCrop(size)`.

    Args:
        size: pixels of a side of the result.
        scale: smallest and largest fraction of the image's area, in (0, 1].
        ratio: smallest and largest width / height.

    Raises:
        TypeError: size is not an integer.
        ValueError: a size below 1, or an interval that is empty or out of range.

    Example:
        >>> RandomResizedCrop(224).scale
        (0.08, 1.0)

    Reference:
        Szegedy et al. (2015), arXiv:1409.4842, section 6.
    """

    size: int
    scale: tuple[float, float] = dataclasses.field(default=(0.08, 1.0), kw_only=True)
    ratio: tuple[float, float] = dataclasses.field(default=(3 / 4, 4 / 3), kw_only=True)

    def __post_init__(self) -> None:
        _checks.count("size", self.size)
        for name, most in (("scale", 1.0), ("ratio", 1e3)):
            pair = getattr(self, name)
            if not (isinstance(pair, tuple) and len(pair) == 2 and 0 < pair[0] <= pair[1] <= most < math.inf):
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high <= {most:g}; got {pair}")

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """The box (left, top, right, bottom) that a generator draws of an image of this size."""
        low, high = self.ratio
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = (int(rng.integers(0, room + 1)) for room in (width - w, height - h))
                return left, top, left + w, top + h
        w, h = min(width, max(1, round(height * high))), min(height, max(1, round(width / low)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def cut(self, image: Image.Image, mode: str, rng: np.random.Generator | None) -> Image.Image:
        """The crop of an opened image, in a mode of Pillow's."""
        if rng is None:
            return CentreCrop(self.size).cut(image, mode, None)
        width, height = image.size
        left, top, right, bottom = self.box(width, height, rng)
        # JPEG decodes at 1/2, 1/4 or 1/8 for less: taken where the box keeps `size` pixels a side.
        image.draft(
            None, (math.ceil(width * self.size / (right - left)), math.ceil(height * self.size / (bottom - top)))
        )
        x, y = image.size[0] / width, image.size[1] / height
        box = (left * x, top * y, right * x, bottom * y)
        return _in_mode(image, mode).resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which copies in any case


Crop = CentreCrop | RandomResizedCrop
