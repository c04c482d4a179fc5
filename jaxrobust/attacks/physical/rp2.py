"""Robust physical perturbations: stickers on an object that fool in many photographs of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import _checks, _compile
from jaxrobust.attacks.core.ascent import adam_step, finite, no_moments
from jaxrobust.attacks.physical.patch import PhysicalResult, _images, _mean_cost
from jaxrobust.sets.balls import norm
from jaxrobust.types import Classifier, Image, Key, Number, pytree

__all__ = ["non_printability", "rp2", "sticker_mask"]

Scalar = Float[Array, ""]


def non_printability(
    colours: Float[Array, "height width channels"], printable: Float[Array, "tones channels"]
) -> Array:
    """The non-printability score of every pixel, Π_p ‖c − p‖₂ over the printable colours p: 0 for those themselves.

    Args:
        colours: (H, W, C) in [0, 1].
        printable: (P, C) in [0, 1].

    Returns:
        (H, W).

    Reference:
        Sharif et al., 2016, doi:10.1145/2976749.2978392.
    """
    square = jnp.sum(jnp.square(colours[..., None, :] - printable[None, None]), -1)
    return jnp.prod(jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0), -1)


def rp2(
    model: Classifier,
    images: Any,
    target: int,
    mask: Any,
    *,
    key: Key,
    transform: Callable[..., Any] | None = None,
    printable: Any = None,
    penalty: Literal["l1", "l2"] = "l2",
    penalty_weight: Number = 1e-3,
    printability_weight: Number = 1.0,
    steps: int = 300,
    learning_rate: Number = 0.1,
) -> PhysicalResult:
    """Robust physical perturbations (RP2): stickers on one object that fool in all photographs of it.

    min_δ λ ‖M δ‖_p + ν NPS + (1/N) Σ_i CE(f(x_i + T_i(M δ)), target) by Adam, x_i + T_i(M δ) clipped to [0, 1]. T_i
    brings the stickers, drawn in the object's frame, into photograph i. NPS is the mean over the mask of
    `non_printability` of the colours that the stickers take on the mean photograph. In two stages: with
    `penalty="l1"` and a mask of ones the change concentrates; `sticker_mask` of it masks the second, with "l2".

    Cost: `steps` · N forwards and as many backwards.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1], photographs of the object at many distances and angles.
        target: the class that they are to show.
        mask: (H, W, 1), not zero where stickers may be.
        key: makes the transforms, new ones each step.
        transform: `(key, M δ (H, W, C)) -> (H, W, C)`, differentiable; by default the identity, for photographs that
            are aligned.
        printable: (P, C) colours that the printer has; None leaves NPS out.
        penalty: p.
        penalty_weight: λ ≥ 0. Published: 0.001 with l2.
        printability_weight: ν ≥ 0.
        steps: ≥ 1. Published: 300 (LISA) and 1000 (GTSRB).
        learning_rate: Adam's. Published: 0.1 and 0.25.

    Returns:
        The stickers; their success is on all photographs, under new transforms.

    Raises:
        TypeError: images that are not floating point, or no key.
        ValueError: images of another rank or range, a mask or colours of the wrong shape, a target that is no class, or
            a number out of its range.

    Example:
        >>> sign = rp2(model, photographs, 12, mask, key=jax.random.key(0))  # doctest: +SKIP

    Reference:
        Eykholt et al., 2018, arXiv:1707.08945.
    """
    images = _images(model, images, target, key)
    expected = (*images.shape[1:3], 1)
    if np.shape(mask) != expected:
        raise ValueError(f"mask must have shape {expected}; got {np.shape(mask)}")
    if printable is not None and (np.ndim(printable) != 2 or np.shape(printable)[1] != images.shape[3]):
        raise ValueError(f"printable must have shape (P, {images.shape[3]}); got {np.shape(printable)}")
    _checks.choice("penalty", penalty, ("l1", "l2"))
    _checks.count("steps", steps)
    named = {"penalty_weight": penalty_weight, "printability_weight": printability_weight}
    named["learning_rate"] = learning_rate
    weights = tuple(_checks.number(name, value) for name, value in named.items())
    support = jnp.asarray(np.asarray(mask) != 0, images.dtype)
    tones = None if printable is None else jnp.asarray(printable, images.dtype)
    delta, history = jnp.zeros(images.shape[1:], images.dtype), []
    moments = no_moments(delta)
    scene = _Scene(transform, penalty, jnp.asarray(images), support, tones, jnp.asarray(target))
    for step in range(steps):
        own = jax.random.fold_in(key, step)
        delta, moments, value = _sticker_step(model, scene, own, delta, moments, np.int32(step), weights)
        history.append(value)
    seen = _sticker_scene(scene, jax.random.fold_in(key, steps), delta)
    success = float((np.asarray(_compile.forward(model, seen)).argmax(-1) == target).mean())
    return PhysicalResult(np.asarray(delta * support), np.asarray(support), np.asarray(jnp.stack(history)), success)


@pytree("images", "support", "tones", "target")
class _Scene:
    """What the stickers are for: the photographs, how stickers come to lie in them, and where they may be."""

    transform: Callable[..., Any] | None
    penalty: str
    images: Any
    support: Any
    tones: Any
    target: Any

    def with_stickers(self, key: Key, delta: Image) -> Array:
        """The photographs with the stickers on the object."""
        stickers = self.support * delta
        if self.transform is None:
            return jnp.clip(self.images + stickers[None], 0, 1)
        keys = jax.random.split(key, len(self.images))
        return jnp.clip(self.images + jax.vmap(self.transform, (0, None))(keys, stickers), 0, 1)

    def regular(self, delta: Image, weight: Scalar, printability: Scalar) -> Scalar:
        """The penalties on the size and on the colours."""
        stickers = self.support * delta
        cost = weight * (norm(stickers) if self.penalty == "l2" else jnp.sum(jnp.abs(stickers)))
        if self.tones is not None:
            colours = jnp.clip(jnp.mean(self.images, 0) + stickers, 0, 1)
            scores = self.support[..., 0] * non_printability(colours, self.tones)
            cost += printability * jnp.sum(scores) / jnp.maximum(jnp.sum(self.support), 1)
        return cost


_sticker_scene = _compile.jit(lambda scene, key, delta: scene.with_stickers(key, delta))


@_compile.jit
def _sticker_step(
    model: Classifier, scene: _Scene, key: Key, delta: Image, moments: Any, step: Any, weights: tuple[Number, ...]
) -> tuple[Image, Any, Scalar]:
    weight, printability, rate = (jnp.asarray(value).astype(delta.dtype) for value in weights)

    def objective(delta: Image) -> Scalar:
        fooled = _mean_cost(model(scene.with_stickers(key, delta)), scene.target)
        return fooled + scene.regular(delta, weight, printability)

    value, gradient = jax.value_and_grad(objective)(delta)
    direction, moments = adam_step(finite(gradient), moments, step)
    return delta - rate * direction, moments, value


def sticker_mask(change: Any, *, share: Number = 0.1) -> np.ndarray:
    """The pixels that a change moves most, as a mask: between the two stages of `rp2`.

    Args:
        change: (H, W, C).
        share: of all pixels, in [0, 1]; pixels that do not move are left out.

    Returns:
        (H, W, 1) bool.

    Raises:
        ValueError: a change of another rank, or a share outside of [0, 1].

    Example:
        >>> sticker_mask(np.array([[[0.1], [0.0], [0.3]]]), share=0.34).ravel()
        array([False, False,  True])
    """
    share = _checks.number("share", share, high=1.0)
    if np.ndim(change) != 3:
        raise ValueError(f"change must have shape (H, W, C); got {np.shape(change)}")
    strength = np.abs(np.asarray(change)).sum(-1)
    first = np.argsort(-strength.ravel(), kind="stable")[: round(float(share) * strength.size)]
    mask = np.zeros(strength.size, bool)
    mask[first] = True
    return (mask.reshape(strength.shape) & (strength > 0))[..., None]
