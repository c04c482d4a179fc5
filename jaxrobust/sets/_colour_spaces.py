"""Colour spaces: maps between sRGB in [0, 1]³ and coordinates that lie in or near [0, 1]³."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrobust.sets._interpolation import clamp

__all__ = ["SPACES", "Space"]

Colours = Float[Array, "*batch 3"]


class Space(NamedTuple):
    """A colour space. `to` takes RGB in [0, 1]; `back` gives RGB that has yet to be clipped to [0, 1]."""

    to: Callable[[Colours], Colours]
    back: Callable[[Colours], Colours]


# keeps denominators and powers off zero
TINY = 1e-10

XYZ_OF_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9504]])
RGB_OF_XYZ = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])

# u' and v' of white. All of L*u*v* is written in differences from them: in float32, u' and v' themselves would lose
# the blue of a bright yellow, where 12 − 3u' − 20v' nearly cancels.
WHITE_U, WHITE_V = 0.1978, 0.4683

# luma of ITU-R BT.601; chroma is (b − y) and (r − y), scaled to [0, 1] around 1/2
LUMA = np.array([0.299, 0.587, 0.114])
YPBPR_OF_RGB = np.stack([LUMA, (np.eye(3)[2] - LUMA) / (2 - 2 * LUMA[2]), (np.eye(3)[0] - LUMA) / (2 - 2 * LUMA[0])])
RGB_OF_YPBPR = np.linalg.inv(YPBPR_OF_RGB)
# the plane of equal brightness, seen along the grey axis
PLANE_OF_RGB = np.array([[2, -1, -1], [0, math.sqrt(3), -math.sqrt(3)]]) / (3 * math.sqrt(2))
HUES_OF_PLANE = np.linalg.pinv(PLANE_OF_RGB)


def _times(matrix: np.ndarray, colours: Array) -> Array:
    """The matrix applied to every colour, in full float32 also where matrix products are cheaper and coarser."""
    return jnp.einsum("ji,...i->...j", jnp.asarray(matrix, colours.dtype), colours, precision=lax.Precision.HIGHEST)


def _parts(colours: Array) -> tuple[Array, Array, Array]:
    return colours[..., 0], colours[..., 1], colours[..., 2]


def _same(colours: Colours) -> Colours:
    return colours


def _xyz_of_rgb(rgb: Colours) -> Colours:
    """CIE XYZ of sRGB: its gamma undone, then a matrix; white is (0.95, 1, 1.09)."""
    linear = jnp.where(rgb < 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return _times(XYZ_OF_RGB, linear)


def _rgb_of_xyz(xyz: Colours) -> Colours:
    linear = _times(RGB_OF_XYZ, xyz)
    powered = 1.055 * jnp.maximum(linear, TINY) ** (1 / 2.4) - 0.055
    return jnp.where(linear < 0.0031308, 12.92 * linear, powered)


def _luv_of_rgb(rgb: Colours) -> Colours:
    """CIE 1976 L*u*v* as (L/100, (u + 100)/200, (v + 100)/200)."""
    x, y, z = _parts(_xyz_of_rgb(rgb))
    total = x + 15 * y + 3 * z + TINY
    lightness = jnp.where(y < (6 / 29) ** 3, (29 / 3) ** 3 * y, 116 * jnp.maximum(y, TINY) ** (1 / 3) - 16)
    u = 13 * lightness * (((4 - WHITE_U) * x - 15 * WHITE_U * y - 3 * WHITE_U * z) / total)
    v = 13 * lightness * (((9 - 15 * WHITE_V) * y - WHITE_V * x - 3 * WHITE_V * z) / total)
    return jnp.stack([lightness / 100, (u + 100) / 200, (v + 100) / 200], -1)


def _rgb_of_luv(luv: Colours) -> Colours:
    """The inverse; XYZ is clipped to [0, 1.1], which is where colours outside of the gamut end."""
    first, second, third = _parts(luv)
    lightness = 100 * clamp(first, 0.0, math.inf)
    u = (200 * second - 100) / (13 * lightness + TINY)
    v = (200 * third - 100) / (13 * lightness + TINY)
    y = jnp.where(lightness <= 8, lightness * (3 / 29) ** 3, ((lightness + 16) / 116) ** 3)
    share = y / (4 * (v + WHITE_V) + TINY)
    rest = 12 - 3 * WHITE_U - 20 * WHITE_V
    xyz = jnp.stack([9 * share * (u + WHITE_U), y, share * (rest - 3 * u - 20 * v)], -1)
    return _rgb_of_xyz(clamp(xyz, 0.0, 1.1))


def _ypbpr_of_rgb(rgb: Colours) -> Colours:
    """Luma of ITU-R BT.601 and two differences of colour, moved up by 1/2."""
    y, blue, red = _parts(_times(YPBPR_OF_RGB, rgb))
    return jnp.stack([y, blue + 0.5, red + 0.5], -1)


def _rgb_of_ypbpr(ypbpr: Colours) -> Colours:
    y, blue, red = _parts(ypbpr)
    return _times(RGB_OF_YPBPR, jnp.stack([y, blue - 0.5, red - 0.5], -1))


def _smooth_cone_of_rgb(rgb: Colours) -> Colours:
    """The value max(r, g, b) and the projection along the grey axis, moved up by 1/2: almost the HSV cone."""
    across = _times(PLANE_OF_RGB, rgb) + 0.5
    return jnp.concatenate([jnp.max(rgb, -1, keepdims=True), across], -1)


def _rgb_of_smooth_cone(cone: Colours) -> Colours:
    hues = _times(HUES_OF_PLANE, cone[..., 1:] - 0.5)
    return hues + cone[..., :1] - jnp.max(hues, -1, keepdims=True)


def _cone_of_rgb(rgb: Colours) -> Colours:
    """The HSV cone ((s v cos h + 1)/2, (s v sin h + 1)/2, v)."""
    r, g, b = _parts(rgb)
    value = jnp.max(rgb, -1)
    chroma = value - jnp.min(rgb, -1)
    safe = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(r == value, (g - b) / safe, jnp.where(g == value, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = sixths * (math.pi / 3)
    return jnp.stack([(jnp.cos(hue) * chroma + 1) / 2, (jnp.sin(hue) * chroma + 1) / 2, value], -1)


def _rgb_of_cone(cone: Colours) -> Colours:
    x, y, value = 2 * cone[..., 0] - 1, 2 * cone[..., 1] - 1, clamp(cone[..., 2])
    square = jnp.square(x) + jnp.square(y)
    grey = square == 0
    hue = jnp.arctan2(jnp.where(grey, 0, y), jnp.where(grey, 1, x)) * (3 / math.pi)
    chroma = jnp.minimum(jnp.where(grey, 0, jnp.sqrt(jnp.where(grey, 1, square))), value)
    sixths = (jnp.stack([hue + 5, hue + 3, hue + 1], -1)) % 6
    return value[..., None] - chroma[..., None] * clamp(jnp.minimum(sixths, 4 - sixths))


SPACES = {
    "luv": Space(_luv_of_rgb, _rgb_of_luv),
    "rgb": Space(_same, _same),
    "ypbpr": Space(_ypbpr_of_rgb, _rgb_of_ypbpr),
    "hsv_cone": Space(_cone_of_rgb, _rgb_of_cone),
    "smooth_hsv_cone": Space(_smooth_cone_of_rgb, _rgb_of_smooth_cone),
    "xyz": Space(_xyz_of_rgb, _rgb_of_xyz),
}
