"""Arrays as PNG data URIs: pictures, differences and the map of outcomes."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

__all__ = ["OUTCOME_COLOURS", "amplification", "difference", "outcomes", "picture"]

# Told apart by lightness too: dark, light, middle, and one that stands out.
OUTCOME_COLOURS = ("#1c6a86", "#f6c65b", "#a3a7ad", "#d4127c")
# Blue, pale grey, red (colour-blind-safe ends): the image got darker, stayed, got lighter.
_SIGNED = np.array([(33, 102, 172), (146, 197, 222), (243, 243, 243), (244, 165, 130), (178, 24, 43)], float)
_COLUMNS = 1200


def picture(image: np.ndarray) -> str:
    """An image (H, W, C) in [0, 1] as a PNG data URI; channels that are not grey or RGB are averaged to grey."""
    if image.shape[-1] != 3:
        image = image.mean(-1)
    return _png(np.nan_to_num(image.clip(0, 1)) * 255)


def amplification(differences: np.ndarray) -> float:
    """The round factor (1, 2, 5, 10, ...) that brings the largest |difference| nearest to 1 without passing it."""
    finite = np.abs(differences[np.isfinite(differences)])
    largest = float(finite.max(initial=0))
    if largest <= 1e-6:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(1 / largest))
    return max(1.0, max(step * decade for step in (1, 2, 5) if step * decade * largest <= 1 + 1e-6))


def difference(change: np.ndarray, factor: float) -> str:
    """A signed difference (H, W, C), times `factor`, as a PNG data URI.

    One channel runs from blue (darker) over pale grey (unchanged) to red (lighter); three channels are shown each on
    its own around middle grey.
    """
    change = np.nan_to_num(change * factor).clip(-1, 1)
    if change.shape[-1] == 3:
        return _png(127.5 + 127.5 * change)
    place = (change.mean(-1) + 1) / 2 * (len(_SIGNED) - 1)
    knots = np.arange(len(_SIGNED))
    return _png(np.stack([np.interp(place, knots, _SIGNED[:, channel]) for channel in range(3)], -1))


def outcomes(codes: np.ndarray) -> str:
    """A row of outcome codes (N,) as a PNG data URI, one pixel high; beyond 1,200 examples neighbours are blended."""
    colours = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in OUTCOME_COLOURS], float)
    pixels = colours[codes]
    if len(pixels) > _COLUMNS:
        edges = np.arange(_COLUMNS) * len(pixels) // _COLUMNS
        pixels = np.add.reduceat(pixels, edges) / np.diff(edges, append=len(pixels))[:, None]
    return _png(pixels[None])


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
