"""A patch that works wherever it lies, and what physical attacks share."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import _checks, _compile, _inputs
from jaxrobust.attacks.core.ascent import adam_step, finite, no_moments
from jaxrobust.losses import targeted_cross_entropy
from jaxrobust.sets._interpolation import pixels, warp
from jaxrobust.types import Classifier, Image, Key, Number, pytree

__all__ = ["PhysicalResult", "Placement", "adversarial_patch", "patch_success"]

Scalar = Float[Array, ""]
Patch = Float[Array, "side side channels"]
Mask = Float[Array, "side side 1"]


@dataclasses.dataclass(frozen=True)
class PhysicalResult:
    """What is to be printed.

    Args:
        pattern: a patch (S, S, C) in [0, 1], or the stickers' change of the object, δ (H, W, C), zero off the mask.
        mask: (S, S, 1) or (H, W, 1): 1 where the pattern counts.
        history: (steps,) the objective that was minimised, before each step.
        success: the share of images that are classified as the target, under transforms that were not optimised.
    """

    pattern: np.ndarray
    mask: np.ndarray
    history: np.ndarray
    success: float


@pytree("smallest", "largest", "rotation")
class Placement:
    """Where a patch lies, at random.

    Its side is uniform in [smallest, largest] · min(H, W), its angle in ±rotation, and its place among those where it
    fits into the image.

    Args:
        smallest: in (0, 1].
        largest: in (0, 1].
        rotation: in degrees, ≥ 0.

    Reference:
        Brown et al., 2017, arXiv:1712.09665; the defaults are those of the usual ports.
    """

    smallest: Number = 0.1
    largest: Number = 1.0
    rotation: Number = 22.5

    def __post_init__(self) -> None:
        for name, high in (("smallest", 1.0), ("largest", 1.0), ("rotation", np.inf)):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name), high=high))
        ends = (self.smallest, self.largest)
        if all(isinstance(end, (float, np.floating)) for end in ends) and not 0 < self.smallest <= self.largest:
            raise ValueError(f"smallest must be positive and not above largest; got {ends[0]} and {ends[1]}")

    def paste(self, key: Key, x: Image, patch: Patch, mask: Mask) -> Image:
        """A(p, x): x (1 − m) + p m with the patch and its mask at a random place, bilinear; elsewhere x to the bit.

        Args:
            key: makes the place.
            x: (H, W, C).
            patch: (S, S, C) in [0, 1], S ≤ min(H, W).
            mask: (S, S, 1) in [0, 1].

        Returns:
            (H, W, C).
        """
        size_key, angle_key, place_key = jax.random.split(key, 3)
        smallest, largest, rotation = (
            jnp.asarray(value).astype(x.dtype) for value in (self.smallest, self.largest, self.rotation)
        )
        side = min(x.shape[:2]) * jax.random.uniform(size_key, (), x.dtype, smallest, largest)
        angle = jnp.deg2rad(rotation) * jax.random.uniform(angle_key, (), x.dtype, -1, 1)
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        shape = jnp.asarray(x.shape[:2], x.dtype)
        room = jnp.maximum(shape - side * (jnp.abs(cosine) + jnp.abs(sine)), 0)
        centre = (shape - 1) / 2 + room * jax.random.uniform(place_key, (2,), x.dtype, -0.5, 0.5)
        grid = jnp.asarray(pixels(*x.shape[:2]), x.dtype)
        row, column = jnp.moveaxis(grid - centre[None, None], -1, 0)
        turned = jnp.stack([cosine * row + sine * column, cosine * column - sine * row], -1)
        source = turned * (patch.shape[0] / side) + (patch.shape[0] - 1) / 2
        canvas = jnp.concatenate([patch * mask, mask], -1)
        canvas = jnp.pad(canvas, [(0, n - patch.shape[0]) for n in x.shape[:2]] + [(0, 0)])
        moved = warp(canvas, source - grid, "zero")
        return x * (1 - moved[..., -1:]) + moved[..., :-1]


def adversarial_patch(
    model: Classifier,
    images: Any,
    target: int,
    *,
    key: Key,
    placement: Placement | None = None,
    side: int | None = None,
    shape: Literal["disc", "square"] = "disc",
    steps: int = 500,
    batch_size: int = 16,
    learning_rate: Number = 5 / 255,
) -> PhysicalResult:
    """A patch that makes whatever it lies on a picture of the target, at any place, size and angle.

    max_p E_{x, t} log softmax_target(A(p, x, t)) over images x and placements t, by Adam on p, clipped to [0, 1]; the
    gradient reaches p only through the mask. For robust accuracy against squares at places chosen for each image,
    attack `sets.Patch` instead.

    Cost: `steps` · `batch_size` forwards and as many backwards.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1]; labels are not needed.
        target: the class.
        key: makes minibatches and placements.
        placement: the placements; by default `Placement()`.
        side: S, the patch's resolution in pixels; by default min(H, W).
        shape: of the patch.
        steps: ≥ 1.
        batch_size: images a step, drawn with replacement.
        learning_rate: Adam's, in units of [0, 1].

    Returns:
        The patch; its success is on all images, one placement each, those of the target class among them.

    Raises:
        TypeError: images that are not floating point, or no key.
        ValueError: images of another rank or range, a target that is no class, or a number out of its range.

    Example:
        >>> found = adversarial_patch(model, images, 3, key=jax.random.key(0))  # doctest: +SKIP

    Reference:
        Brown et al., 2017, arXiv:1712.09665.
    """
    images = _images(model, images, target, key)
    placement = Placement() if placement is None else placement
    smaller = min(images.shape[1:3])
    side = smaller if side is None else _checks.count("side", side)
    if side > smaller:
        raise ValueError(f"side must not exceed the image, {smaller}; got {side}")
    _checks.choice("shape", shape, ("disc", "square"))
    _checks.count("steps", steps)
    _checks.count("batch_size", batch_size)
    learning_rate = _checks.number("learning_rate", learning_rate)
    away = pixels(side, side) - (side - 1) / 2
    inside = np.ones((side, side)) if shape == "square" else (away**2).sum(-1) <= (side / 2) ** 2
    mask = jnp.asarray(inside[..., None], images.dtype)
    patch, history = jnp.full((side, side, images.shape[-1]), 0.5, images.dtype), []
    moments = no_moments(patch)
    aim = jnp.asarray(target)
    for step in range(steps):
        own, drawing = jax.random.split(jax.random.fold_in(key, step))
        rows = np.asarray(jax.random.randint(drawing, (batch_size,), 0, len(images)))
        jobs = (own, images[rows], patch, mask, moments, np.int32(step), learning_rate)
        patch, moments, value = _patch_step(model, placement, aim, *jobs)
        history.append(value)
    fresh = jax.random.fold_in(key, steps)
    success = patch_success(model, images, target, patch, mask, key=fresh, placement=placement)
    return PhysicalResult(np.asarray(patch * mask), np.asarray(mask), np.asarray(jnp.stack(history)), success)


@_compile.jit
def _patch_step(
    model: Classifier,
    placement: Placement,
    target: Any,
    key: Key,
    images: Any,
    patch: Patch,
    mask: Mask,
    moments: Any,
    step: Any,
    learning_rate: Number,
) -> tuple[Patch, Any, Scalar]:
    def objective(patch: Patch) -> Scalar:
        return _mean_cost(model(_pasted(placement, key, images, patch, mask)), target)

    value, gradient = jax.value_and_grad(objective)(patch)
    direction, moments = adam_step(finite(gradient), moments, step)
    rate = jnp.asarray(learning_rate).astype(patch.dtype)
    return jnp.clip(patch - rate * direction, 0, 1), moments, value


def _pasted(placement: Placement, key: Key, images: Any, patch: Patch, mask: Mask) -> Array:
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(placement.paste, (0, 0, None, None))(keys, jnp.asarray(images), patch, mask)


def _mean_cost(logits: Array, target: Any) -> Scalar:
    return -jnp.mean(jax.vmap(lambda z: targeted_cross_entropy(z, target))(logits))


_paste_all = _compile.jit(_pasted)


def patch_success(
    model: Classifier,
    images: Any,
    target: int,
    patch: Any,
    mask: Any,
    *,
    key: Key,
    placement: Placement | None = None,
    batch_size: int = 128,
) -> float:
    """The share of images that a patch, at one random place each, turns into the target.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1], as a rule other ones than the patch was made from.
        target: the class.
        patch: (S, S, C) in [0, 1].
        mask: (S, S, 1) in [0, 1].
        key: makes the places.
        placement: the placements; by default `Placement()`.
        batch_size: images a forward pass.

    Returns:
        The share in [0, 1].

    Raises:
        TypeError: images that are not floating point, or no key.
        ValueError: images of another rank or range, a target that is no class, or a patch larger than the image.
    """
    images = _images(model, images, target, key)
    placement = Placement() if placement is None else placement
    _checks.count("batch_size", batch_size)
    if np.ndim(patch) != 3 or max(np.shape(patch)[:2]) > min(images.shape[1:3]):
        raise ValueError(f"patch must have shape (S, S, C) and fit into {images.shape[1:]}; got {np.shape(patch)}")
    patch, mask = jnp.asarray(patch, images.dtype), jnp.asarray(mask, images.dtype)
    hits = 0
    for start in range(0, len(images), batch_size):
        piece = _paste_all(placement, jax.random.fold_in(key, start), images[start : start + batch_size], patch, mask)
        hits += int((np.asarray(_compile.forward(model, piece)).argmax(-1) == target).sum())
    return hits / len(images)


def _images(model: Classifier, images: Any, target: Any, key: Any) -> np.ndarray:
    _inputs.image_shape(images)
    images = _inputs.widened(images)
    _inputs.image_values(images)
    _checks.key(key)
    images = np.clip(np.asarray(images, jax.dtypes.canonicalize_dtype(images.dtype)), 0, 1)
    classes = _inputs.logits_shape(model, images[:8])
    if not 0 <= _checks.count("target", target, low=0) < classes:
        raise ValueError(f"target must lie in [0, {classes}), the model's classes; got {target}")
    _inputs.finite_params(model)
    _inputs.model_values(model, jnp.asarray(images[:8]))
    return images
