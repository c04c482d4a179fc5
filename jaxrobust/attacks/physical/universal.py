"""Universal perturbations: one change that fools a model on most images of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import _checks, _compile, _inputs
from jaxrobust.attacks.core.ascent import finite, scaled
from jaxrobust.attacks.core.engine import run
from jaxrobust.attacks.minimum_norm.deepfool import deepfool
from jaxrobust.losses import log_cross_entropy
from jaxrobust.sets import L2, PerturbationSet
from jaxrobust.sets.lp import AdditiveBall
from jaxrobust.types import Classifier, Image, Key, Number

__all__ = ["UniversalResult", "fooling_rate", "universal_gradient", "universal_perturbation"]

# no image is as far as that from a decision boundary
ANY_DISTANCE = 1e6
# how many times as wide as [0, 1] the box is, about the same centre, in which DeepFool moves
WIDTH = 8


@dataclasses.dataclass(frozen=True)
class UniversalResult:
    """One perturbation for a data set.

    Args:
        perturbation: v (H, W, C); the perturbed image is x + v, clipped to [0, 1].
        size: its size, in the unit of the set's radius.
        fooling_rate: the share in [0, 1] of the images it was made from whose prediction it changes; see `fooling_rate`
            for others.
        history: the fooling rate after each pass over the images.
    """

    perturbation: np.ndarray
    size: float
    fooling_rate: float
    history: tuple[float, ...]

    def __str__(self) -> str:
        return f"universal perturbation of size {self.size:.3g}, fools {100 * self.fooling_rate:.1f} %"


def fooling_rate(model: Classifier, images: Any, perturbation: Any, *, batch_size: int = 128) -> float:
    """The share of images whose prediction a perturbation changes: mean_i [f(x_i + v) ≠ f(x_i)]; labels do not count.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1], as a rule other ones than v was made from.
        perturbation: v (H, W, C); x + v is clipped to [0, 1].
        batch_size: images a forward pass, ≥ 1.

    Returns:
        The share in [0, 1].

    Raises:
        TypeError: images that are not floating point.
        ValueError: images of another rank or range, or a perturbation of another shape than an image.

    Example:
        >>> model = Classifier.from_function(lambda x: x.reshape(x.shape[0], -1)[:, :2])
        >>> fooling_rate(model, jnp.array([[[[0.4], [0.3]]], [[[0.9], [0.3]]]]), jnp.array([[[0.0], [0.2]]]))
        0.5
    """
    images = _images(images)
    if np.shape(perturbation) != images.shape[1:]:
        raise ValueError(f"perturbation must have shape {images.shape[1:]}; got {np.shape(perturbation)}")
    clean = _predictions(model, images, batch_size)
    return _rate(model, images, np.asarray(perturbation, images.dtype), clean, batch_size)


def universal_perturbation(
    model: Classifier,
    images: Any,
    set: PerturbationSet,
    *,
    key: Key,
    target: Number = 0.8,
    passes: int = 10,
    steps: int = 10,
    candidates: int = 10,
    overshoot: Number = 0.02,
    batch_size: int = 128,
) -> UniversalResult:
    """A universal perturbation by DeepFool, image after image.

    For every x in random order with f(x + v) = f(x): Δ = DeepFool(x + v) in l2, taken only if it needed fewer than
    steps − 1 steps, and v ← P(v + Δ). It ends after the pass that reaches the fooling rate. DeepFool may leave [0, 1],
    since one image's bounds say nothing about the next; x + v itself is clipped.

    Cost: at most `passes` · N · (steps + 4) forwards and `passes` · N · steps · (min(candidates, K) − 1) backwards, and
    N forwards a pass for the rate; nothing but one forward for an image that is fooled already.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1]; labels are not needed.
        set: an additive set, such as `Linf(10 / 255)` or `L2(2000 / 255)`, the published radii for ImageNet. Its
            projection is the one about a grey image, so entries of v lie in [−1/2, 1/2] besides.
        key: makes the orders.
        target: 1 − δ in [0, 1], the fooling rate that is enough.
        passes: at most so many over the images, ≥ 1.
        steps: DeepFool's, ≥ 3.
        candidates: DeepFool's, ≥ 2.
        overshoot: DeepFool's, ≥ 0.
        batch_size: images a forward pass when the rate is measured.

    Returns:
        The last v and its fooling rate.

    Raises:
        TypeError: images that are not floating point, a set that is not additive, or no key.
        ValueError: images of another rank or range, or a number out of its range.

    Example:
        >>> ball = jr.sets.Linf(10 / 255)
        >>> found = universal_perturbation(model, images, ball, key=jax.random.key(0))  # doctest: +SKIP

    Reference:
        Moosavi-Dezfooli et al., 2017, arXiv:1610.08401. The original lets x + v leave [0, 1] too.
    """
    images = _images(images)
    _check(model, images, set, key)
    target = float(_checks.number("target", target, high=1.0))
    _checks.count("passes", passes)
    _checks.count("steps", steps, low=3)
    finder = deepfool(L2(ANY_DISTANCE), steps=steps, candidates=candidates, overshoot=overshoot)
    wide = Classifier(_Widened(model.apply), model.params)
    clean = _predictions(model, images, batch_size)
    v, history = np.zeros_like(images[0]), []
    for number in range(passes):
        for place in np.asarray(jax.random.permutation(jax.random.fold_in(key, number), len(images))):
            point = np.clip(images[place] + v, 0, 1)[None]
            label = clean[place : place + 1]
            if np.asarray(_compile.forward(model, point)).argmax(-1) != label:
                continue
            start = ((point - 0.5) / WIDTH + 0.5).astype(images.dtype)
            found = run(finder, wide, start, label, key=key, check=False)
            # the clean image and the confirming pass are no steps
            if found.success[0] and int(found.forwards[0]) - 2 < steps - 1:
                v = np.asarray(_projected(set, v + WIDTH * np.asarray(found.parameters[0])))
        history.append(_rate(model, images, v, clean, batch_size))
        if history[-1] >= target:
            break
    return UniversalResult(v, float(set.size(jnp.asarray(images[0]), jnp.asarray(v))), history[-1], tuple(history))


def universal_gradient(
    model: Classifier,
    images: Any,
    set: PerturbationSet,
    *,
    key: Key,
    passes: int = 10,
    limit: Number = 9.0,
    step_size: Number | None = None,
    batch_size: int = 128,
) -> UniversalResult:
    """A universal perturbation by stochastic gradient ascent of a clipped loss.

    v ← P(ascend(v, Σ_i ∇ min(CE(x_i + v, f(x_i)), β), α)) over minibatches: the clip keeps single images from
    dominating the sum.

    Cost: `passes` · N forwards and as many backwards, and N forwards a pass for the rate.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1]; labels are not needed, the model's own predictions take their place.
        set: an additive set, as in `universal_perturbation`; its steps are the set's own, signs for `Linf`.
        key: makes the minibatches.
        passes: over the images, ≥ 1.
        limit: β > 0, in nats.
        step_size: α in the unit of the radius; by default a tenth of the radius, our choice.
        batch_size: images a minibatch; what is left over in a pass waits for the next one.

    Returns:
        The last v and its fooling rate.

    Raises:
        TypeError: images that are not floating point, a set that is not additive, or no key.
        ValueError: images of another rank or range, or a number out of its range.

    Reference:
        Shafahi et al., 2020, arXiv:1811.11304, with true labels in place of f(x).
    """
    images = _images(images)
    _check(model, images, set, key)
    _checks.count("passes", passes)
    _checks.count("batch_size", batch_size)
    limit, step_size = _checks.number("limit", limit), _checks.number("step_size", step_size)
    clean, size = _predictions(model, images, batch_size), min(batch_size, len(images))
    v, history = jnp.zeros_like(images[0]), []
    for number in range(passes):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, number), len(images)))
        for start in range(0, len(images) - size + 1, size):
            rows = order[start : start + size]
            v = _ascended(model, set, v, images[rows], clean[rows], limit, step_size)
        history.append(_rate(model, images, np.asarray(v), clean, batch_size))
    return UniversalResult(np.asarray(v), float(set.size(jnp.asarray(images[0]), v)), history[-1], tuple(history))


@dataclasses.dataclass(frozen=True)
class _Widened:
    """The model on a box of images shrunk into [0, 1]; DeepFool's steps shrink with it."""

    apply: Callable[..., Any]

    def __call__(self, params: Any, images: Any) -> Any:
        return self.apply(params, (images - 0.5) * WIDTH + 0.5)


@_compile.jit
def _ascended(
    model: Classifier, set: Any, v: Image, images: Any, labels: Any, limit: Number, step_size: Number | None
) -> Image:
    def objective(points: Array) -> Float[Array, ""]:
        losses = jax.vmap(log_cross_entropy)(model(points), labels)
        # the logarithm of the sum: its gradient has the same direction, but not where every loss has vanished
        return jax.nn.logsumexp(jnp.minimum(losses, jnp.log(jnp.asarray(limit).astype(losses.dtype))))

    # the gradient at the points themselves: that of the clip would be zero at black and white pixels
    gradient = jnp.sum(finite(jax.grad(objective)(jnp.clip(images + v[None], 0, 1))), 0)
    size = scaled(step_size, 0.1, jnp.asarray(set.radius).astype(v.dtype))
    grey = jnp.full_like(v, 0.5)
    return set.project(grey, set.ascend(grey, v, gradient, size))


@_compile.jit
def _projected(set: Any, v: Image) -> Image:
    return set.project(jnp.full_like(v, 0.5), v)


def _images(images: Any) -> np.ndarray:
    _inputs.image_shape(images)
    images = _inputs.widened(images)
    _inputs.image_values(images)
    return np.clip(np.asarray(images, jax.dtypes.canonicalize_dtype(images.dtype)), 0, 1)


def _check(model: Classifier, images: np.ndarray, set: PerturbationSet, key: Any) -> None:
    if not isinstance(set, AdditiveBall):
        raise TypeError(f"set must be additive, such as Linf(10 / 255); got {set!r}")
    _checks.one_radius(set)
    _checks.key(key)
    _inputs.logits_shape(model, images[:8])
    _inputs.finite_params(model)
    _inputs.model_values(model, jnp.asarray(images[:8]))


def _rate(model: Classifier, images: np.ndarray, v: np.ndarray, clean: np.ndarray, batch_size: int) -> float:
    return float((_predictions(model, images, batch_size, v) != clean).mean())


def _predictions(model: Classifier, images: np.ndarray, batch_size: int, v: np.ndarray | None = None) -> np.ndarray:
    """(N,) predictions; all batches have one shape."""
    size, found = min(_checks.count("batch_size", batch_size), len(images)), []
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        if v is not None:
            piece = np.clip(piece + v[None], 0, 1)
        rows = np.minimum(np.arange(size), len(piece) - 1)
        found.append(np.asarray(_compile.forward(model, piece[rows])).argmax(-1)[: len(piece)])
    return np.concatenate(found).astype(jax.dtypes.canonicalize_dtype(np.int64))
