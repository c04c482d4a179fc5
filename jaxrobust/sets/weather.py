"""Fog, Gabor noise and snow of a given strength, whose shape the adversary learns."""

from __future__ import annotations

import abc
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets.balls import project_l1
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["Fog", "Gabor", "Snow"]

Scalar = Float[Array, ""]
Plane = Float[Array, "height width"]
Variables = Any
Drawn = Any  # what is drawn once, by the key of `sample`, and then left alone
Theta = tuple[Variables, Drawn]


class Weather(PerturbationSet):
    """A disturbance of strength `radius`; θ = (variables, drawn), of which the adversary moves the variables only."""

    # how many units of the radius the range from black to white is
    white: ClassVar[float]
    # between what the variables lie
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def contains_clean(self) -> bool:
        """Never: the disturbance always has its full strength."""
        return False

    @abc.abstractmethod
    def disturb(self, x: Image, strength: Scalar, variables: Variables, drawn: Drawn) -> Image:
        """The disturbed image in [0, 1], given the radius as a share of the range from black to white."""

    def init(self, x: Image) -> Theta:
        """One fixed member, for none changes nothing."""
        return self.sample(jax.random.key(0), x)

    def apply(self, x: Image, theta: Theta) -> Image:
        """The disturbed image."""
        return self.disturb(x, self._radius(x) / self.white, *theta)

    def pullback(self, x: Image, theta: Theta, gradient: Image) -> Theta:
        """The gradient in the variables; zeros in what was drawn."""
        variables, drawn = theta
        pull = jax.vjp(lambda variables: self.apply(x, (variables, drawn)), variables)[1]
        return pull(gradient)[0], jax.tree.map(jnp.zeros_like, drawn)

    def project(self, x: Image, theta: Theta) -> Theta:
        """The variables clipped to their range."""
        variables, drawn = theta
        return jax.tree.map(lambda v: jnp.clip(v, *self.bounds), variables), drawn

    def ascend(self, x: Image, theta: Theta, gradient: Theta, size: Scalar) -> Theta:
        """The variables moved by size/radius · sign(g): a step of the whole radius crosses the range [0, 1]."""
        radius = self._radius(x)
        step = jnp.where(radius > 0, size / jnp.where(radius > 0, radius, 1), 0)
        return jax.tree.map(lambda v, g: v + step * jnp.sign(g), theta[0], gradient[0]), theta[1]

    def size(self, x: Image, theta: Theta) -> Scalar:
        """The radius itself: the adversary does not choose the strength."""
        return self._radius(x)

    def contains(self, x: Image, theta: Theta) -> Bool[Array, ""]:
        """Whether the variables lie in their range, to 1e-6; what was drawn is taken as it is."""
        low, high = self.bounds
        inside = [jnp.all((v >= low - 1e-6) & (v <= high + 1e-6)) for v in jax.tree.leaves(theta[0])]
        return jnp.all(jnp.stack(inside))

    def distance(self, x: Image, theta: Theta, other: Theta) -> Scalar:
        """The largest difference of a pixel, in the unit of the radius."""
        return self.white * jnp.max(jnp.abs(self.apply(x, theta) - self.apply(x, other)))

    def _radius(self, x: Image) -> Scalar:
        return jnp.asarray(self.radius).astype(x.dtype)


@pytree("radius")
class Fog(Weather):
    """Fog: a plasma fractal whose midpoint displacements the adversary learns.

    x' = clip((x + ε f)/(max x + ε)) with the maximum per channel and f (H, W) in [0, 1] the centre of a height map of
    side m = 2^(⌊log₂ max(H, W)⌋ + 1). The map begins as one point of height 0, on a torus; each level halves its
    spacing: the centre of each square gets the mean of its four corners, then the middle of each side the mean of its
    four neighbours, each plus (2 v − 1) w, with w = 100 at first and divided by `decay` after each level. At last the
    map is scaled to [0, 1], for each image alone. θ's variables are the m² − 1 displacements v in [0, 1].

    Args:
        radius: ε in units of 1/255 of the range from black to white, ≥ 0, as published: ImageNet 128, 256, 512, 2048,
            4096, 8192. At 0 the fog is gone, but the image is still brightened to its full range.
        decay: roughness: by how much displacements shrink from level to level, ≥ 1 (static).

    Example:
        >>> levels, drawn = Fog(512).init(jnp.zeros((6, 5, 3)))
        >>> [level.shape for level in levels]
        [(3, 1, 1), (3, 2, 2), (3, 4, 4)]

    Reference:
        Kang et al., 2019, arXiv:1908.08016. Their code scales a batch's maps by common extrema and takes one of the
        four neighbours of a side's middle from two squares away; here it is the one next to it.
    """

    radius: Number
    decay: float = 2.0

    white: ClassVar[float] = 255.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "decay", float(_checks.number("decay", self.decay, low=1.0)))

    def sample(self, key: Key, x: Image) -> Theta:
        """Displacements uniform in [0, 1]."""
        sides = [2**i for i in range(max(x.shape[:2]).bit_length())]
        ends = np.cumsum([3 * side**2 for side in sides])
        parts = jnp.split(jax.random.uniform(key, (ends[-1],), x.dtype), ends[:-1])
        return tuple(part.reshape(3, side, side) for part, side in zip(parts, sides, strict=True)), ()

    def disturb(self, x: Image, strength: Scalar, variables: Variables, drawn: Drawn) -> Image:
        """The image in fog; an all-black channel without fog stays black."""
        whitest = jnp.max(x, (0, 1), keepdims=True) + strength
        foggy = x + strength * self.density(x, variables)[..., None]
        return jnp.clip(foggy / jnp.where(whitest > 0, whitest, 1), 0, 1)

    def density(self, x: Image, variables: tuple[Float[Array, "3 _ _"], ...]) -> Plane:
        """The fog's density in [0, 1]: (H, W)."""
        heights, wibble = jnp.zeros((1, 1), x.dtype), 100.0
        for level in variables:
            heights = _refined(heights, (2 * level - 1) * wibble)
            wibble /= self.decay
        # By index: the gradient of `jnp.min` looks for the entries equal to it, and where XLA computes the heights once
        # for the minimum and once for the comparison, rounding differs and it may find none.
        flat = heights.reshape(-1)
        low, high = flat[jnp.argmin(flat)], flat[jnp.argmax(flat)]
        density = (heights - low) / jnp.where(high > low, high - low, 1)
        top, left = ((len(heights) - side) // 2 for side in x.shape[:2])
        return density[top : top + x.shape[0], left : left + x.shape[1]]


def _refined(heights: Float[Array, "side side"], wibble: Float[Array, "3 side side"]) -> Float[Array, "twice twice"]:
    """One level of the diamond–square algorithm on a torus."""
    # each entry and the next one; XLA:CPU takes several times as long to compile `jnp.roll`
    one = np.eye(len(heights))
    pair = jnp.asarray(one + np.roll(one, 1, 1), heights.dtype)
    times = functools.partial(jnp.matmul, precision="highest")
    right, below = times(heights, pair.T), times(pair, heights)
    centres = times(below, pair.T) / 4 + wibble[0]
    across = (right + times(pair.T, centres)) / 4 + wibble[1]
    down = (below + times(centres, pair)) / 4 + wibble[2]
    rows = [jnp.stack([heights, across], -1), jnp.stack([down, centres], -1)]
    return jnp.stack(rows, 1).reshape(2 * len(heights), -1)


@pytree("radius")
class Gabor(Weather):
    """Gabor noise: x' = clip(x + ε n) with n (H, W) in [0, 1] a sparse field convolved with a random Gabor kernel.

    The field has ⌈HW/14⌋ entries in [−1, 1], at random places; their values are the variables. The kernel (23, 23) is
    the sum of 1–10 Gabor functions exp(−r²/2(s + 0.001)²) cos(2πΛ <r, (cos φ, sin φ)>) on [−½, ½]², with φ turned by
    equal parts of π from a random angle, s uniform in [0.1, 0.4] and Λ in [3, 5.75]. The deviation d of the convolution
    from its mean is divided by 0.001 + |d|/max|d|, which leaves little more than its sign, and scaled to [0, 1].
    Gradients take the divisor, the mean and the extrema as constants, which makes the attack stronger.

    Args:
        radius: ε in units of 1/255 of the range from black to white, ≥ 0, as published: ImageNet 6.25, 12.5, 25, 400,
            800, 1600.

    Reference:
        Kang et al., 2019, arXiv:1908.08016. In their code the mask of the field is the wrong way round, so that from
        the first step on it is the entries drawn as zero that move; here it is the others, as in the paper.
    """

    radius: Number

    white: ClassVar[float] = 255.0
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def sample(self, key: Key, x: Image) -> Theta:
        """Values uniform in [−1, 1] at random places, and a random kernel."""
        value_key, place_key, kernel_key = jax.random.split(key, 3)
        shape = x.shape[:2]
        count = max(round(math.prod(shape) / 14), 1)
        mask = jnp.arange(math.prod(shape)) < count
        mask = jax.random.permutation(place_key, mask).reshape(shape).astype(x.dtype)
        values = jax.random.uniform(value_key, shape, x.dtype, -1, 1)
        return values * mask, {"mask": mask, "kernel": _gabor_kernel(kernel_key, x.dtype)}

    def disturb(self, x: Image, strength: Scalar, variables: Variables, drawn: Drawn) -> Image:
        """The image and its noise."""
        return jnp.clip(x + strength * self.noise(variables, drawn)[..., None], 0, 1)

    def noise(self, variables: Plane, drawn: Drawn) -> Plane:
        """The noise in [0, 1]: (H, W)."""
        height, width = variables.shape
        # by FFT, for one kernel an image makes a grouped convolution, a hundred times slower on CPU
        padded = (height + 22, width + 22)
        spectrum = jnp.fft.rfft2(variables * drawn["mask"], padded) * jnp.fft.rfft2(drawn["kernel"], padded)
        found = jnp.fft.irfft2(spectrum, padded)[11 : 11 + height, 11 : 11 + width]
        deviation = found - lax.stop_gradient(jnp.mean(found))
        magnitude = lax.stop_gradient(jnp.abs(deviation))
        largest = jnp.max(magnitude)
        level = deviation / (0.001 + magnitude / jnp.where(largest > 0, largest, 1))
        low, high = lax.stop_gradient((jnp.min(level), jnp.max(level)))
        return (level - low) / jnp.where(high > low, high - low, 1)

    def project(self, x: Image, theta: Theta) -> Theta:
        """The variables clipped to [−1, 1], and zero off their places."""
        variables, drawn = super().project(x, theta)
        return variables * drawn["mask"], drawn

    def contains(self, x: Image, theta: Theta) -> Bool[Array, ""]:
        """Whether the variables lie in [−1, 1], to 1e-6, and are zero off their places."""
        return super().contains(x, theta) & jnp.all(theta[0] * (1 - theta[1]["mask"]) == 0)


def _gabor_kernel(key: Key, dtype: Any) -> Float[Array, "23 23"]:
    # one draw for all, which compiles four times faster than four
    side, width, wave, turn = jax.random.uniform(key, (4,), dtype)
    sides, deviation, frequency = jnp.floor(1 + 10 * side), 0.101 + 0.3 * width, 3 + 2.75 * wave
    angles = (np.pi * (turn + jnp.arange(10, dtype=dtype) / sides))[:, None, None]
    down, across = (jnp.asarray(grid, dtype)[None] for grid in np.mgrid[-0.5:0.5:23j, -0.5:0.5:23j])
    waves = jnp.cos(2 * np.pi * frequency * (across * jnp.cos(angles) + down * jnp.sin(angles)))
    bell = jnp.exp(-(jnp.square(down[0]) + jnp.square(across[0])) / (2 * jnp.square(deviation)))
    return bell * jnp.sum(jnp.where((jnp.arange(10, dtype=dtype) < sides)[:, None, None], waves, 0), 0)


@pytree("radius")
class Snow(Weather):
    """Snow: seven lattices of flakes, each with a streak of its own, on a slightly paled image.

    x' = clip(¾ x + ¼ max(x, 1.5 g(x) + 0.5) + ε Σ_i K_i * F_i) with g the luminance (.2126, .7152, .0722). The flakes
    F_i lie on lattices of spacing 4, at four horizontal and three vertical offsets; a flake is v⁴, with intensities v
    in [1e-9, 1] the variables (7, ⌈H/4⌉, ⌈W/4⌉). The streaks K_i (13, 13) are random lines through the centre, all
    falling to the same side, slightly blurred. In each lattice, each block of 8 × 8 intensities (fewer at the edge)
    has a mean of at most `budget`.

    Args:
        radius: ε, the brightness of a flake of intensity 1, in [0, 1] units, ≥ 0, as published: ImageNet 0.0625,
            0.125, 0.25, 2, 4, 8. At 0 there is no snow, but the image is still paled.
        budget: the mean intensity that a block may have, in (0, 1] (static).

    Raises:
        ValueError: images of neither 1 nor 3 channels (when the set is used).

    Reference:
        Kang et al., 2019, arXiv:1908.08016. Their code scales a block beyond the budget down, which is not nearest and
        may undo an ascent, and leaves out clipping and scaling after the last step.
    """

    radius: Number
    budget: float = 0.2

    white: ClassVar[float] = 1.0
    bounds: ClassVar[tuple[float, float]] = (1e-9, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "budget", float(_checks.number("budget", self.budget, low=1e-6, high=1.0)))

    def sample(self, key: Key, x: Image) -> Theta:
        """Intensities exp(−u/budget) with u uniform in [0, 1], scaled to the budget, and random streaks."""
        intensity_key, streak_key = jax.random.split(key)
        shape = (7, *(-(-side // 4) for side in x.shape[:2]))
        intensity = jnp.exp(-jax.random.uniform(intensity_key, shape, x.dtype) / self.budget)
        return self.project(x, (intensity, _streaks(streak_key, x.dtype)))

    def disturb(self, x: Image, strength: Scalar, variables: Variables, drawn: Drawn) -> Image:
        """The image in snow."""
        if x.shape[2] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels for Snow; got {x.shape[2]}")
        luminance = jnp.asarray([[0.2126], [0.7152], [0.0722]], x.dtype)
        grey = x if x.shape[2] == 1 else jnp.matmul(x, luminance, precision="highest")
        pale = 0.75 * x + 0.25 * jnp.maximum(x, 1.5 * grey + 0.5)
        return jnp.clip(pale + strength * self.flakes(x, variables, drawn)[..., None], 0, 1)

    def flakes(self, x: Image, variables: Float[Array, "7 rows columns"], drawn: Float[Array, "7 13 13"]) -> Plane:
        """The snow itself, ≥ 0: (H, W)."""
        # A lattice's offset moves its streak within 16 x 16 pixels; there, 4 x 4 blocks of streak meet single flakes.
        offsets = [(0, i) for i in range(4)] + [(i + 1, 0) for i in range(3)]
        placed = [jnp.pad(k, ((i, 3 - i), (j, 3 - j))) for k, (i, j) in zip(drawn, offsets, strict=True)]
        blocks = jnp.stack(placed).reshape(7, 4, 4, 4, 4)
        rows, columns = variables.shape[1] + 3, variables.shape[2] + 3
        padded = jnp.pad(variables**4, ((0, 0), (3, 3), (3, 3)))
        shifted = [[padded[:, 3 - i : 3 - i + rows, 3 - j : 3 - j + columns] for j in range(4)] for i in range(4)]
        flakes = jnp.stack([jnp.stack(row) for row in shifted])
        snow = jnp.einsum("ijkrc,kiyjx->rycx", flakes, blocks, precision="highest")
        return snow.reshape(4 * rows, 4 * columns)[6 : 6 + x.shape[0], 6 : 6 + x.shape[1]]

    def project(self, x: Image, theta: Theta) -> Theta:
        """The nearest intensities in [1e-9, 1] with block means within the budget, up to 1e-9."""
        blocks, counts = _blocks(theta[0])
        low, high = jnp.zeros((8, 8, 1), blocks.dtype), jnp.ones((8, 8, 1), blocks.dtype)
        ball = jax.vmap(lambda block, count: project_l1(block, low, high, self.budget * count))
        rows, columns = blocks.shape[1:3]
        near = ball(blocks.reshape(-1, 8, 8, 1), jnp.broadcast_to(counts, (7, rows, columns)).reshape(-1))
        near = near.reshape(7, rows, columns, 8, 8).swapaxes(2, 3).reshape(7, 8 * rows, 8 * columns)
        return jnp.clip(near[:, : theta[0].shape[1], : theta[0].shape[2]], *self.bounds), theta[1]

    def contains(self, x: Image, theta: Theta) -> Bool[Array, ""]:
        """Whether the intensities lie in [0, 1] and their block means within the budget, to 1e-6."""
        blocks, counts = _blocks(theta[0])
        means = jnp.sum(blocks, (3, 4)) / counts[None]
        return super().contains(x, theta) & jnp.all(means <= self.budget + 1e-6)


def _blocks(
    planes: Float[Array, "7 height width"],
) -> tuple[Float[Array, "7 rows columns 8 8"], Float[Array, "rows columns"]]:
    """Blocks of 8 × 8 entries, filled up with zeros at the edge, and how many entries each has."""
    height, width = planes.shape[1:]
    rows, columns = -(-height // 8), -(-width // 8)
    padded = jnp.pad(planes, ((0, 0), (0, 8 * rows - height), (0, 8 * columns - width)))
    high, wide = (np.minimum(side - 8 * np.arange(-(-side // 8)), 8) for side in (height, width))
    counts = jnp.asarray(np.outer(high, wide), planes.dtype)
    return padded.reshape(7, rows, 8, columns, 8).swapaxes(2, 3), counts


def _streaks(key: Key, dtype: Any) -> Float[Array, "7 13 13"]:
    """Seven lines from the centre (6, 6) to a random end in 8 … 12 each, their mirror images, and a slight blur."""
    draws = jax.random.uniform(key, (5, 7, 1, 1), dtype)
    ends = jnp.floor(2 + 5 * draws[:2])
    width = jnp.where(draws[2] < 0.6, 1, jnp.where(draws[2] < 0.9, 3, 5)).astype(dtype)
    deviation, mirrored = 0.41 + 0.19 * draws[3], draws[4, 0] < 0.5
    down, across = jnp.mgrid[-6:7, -6:7].astype(dtype)[:, None]
    steep = ends[0] > ends[1]
    # along the longer leg, and off it
    along, off = jnp.where(steep, down, across), jnp.where(steep, across, down)
    slope = jnp.min(ends, 0) / jnp.max(ends, 0)
    width = width * jnp.sqrt(1 + slope) / 2
    line = jnp.clip(1 + width / 2 - jnp.abs(off - slope * along), 0, 1)
    line = jnp.where((along >= 0) & (along <= jnp.max(ends, 0)) & (off >= 0), line, 0)
    line = jnp.maximum(line, line[:, ::-1, ::-1])
    line = jnp.where(mirrored[None], line[:, :, ::-1], line)
    bell = jnp.exp(-jnp.square(jnp.arange(-1, 2, dtype=dtype)[None] / deviation[:, 0]) / 2)
    bell = bell / jnp.sum(bell, 1, keepdims=True)
    for axis in (1, 2):
        padded = jnp.pad(line, [(0, 0) if a != axis else (1, 1) for a in range(3)])
        shifted = jnp.stack([lax.slice_in_dim(padded, i, i + 13, axis=axis) for i in range(3)])
        line = jnp.sum(bell.T[:, :, None, None] * shifted, 0)
    return line


register("fog", lambda: Fog(512.0))
# larger images: with two or three places, steps along the gradient that `noise` takes ascend less than always
register("gabor", lambda: Gabor(25.0), shapes=((16, 32, 3), (32, 16, 1)))
register("snow", lambda: Snow(0.25))
