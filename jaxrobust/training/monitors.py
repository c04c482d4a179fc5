"""What shows that one-step training has overfitted to its own attack."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrobust import _checks, _compile, _inputs, attacks
from jaxrobust.sets import Linf
from jaxrobust.training.objectives.core import correct, cross_entropies
from jaxrobust.training.objectives.fast import turns
from jaxrobust.types import Classifier, Images, Key, Misclassified, Number

__all__ = ["overfitting_metrics"]


def overfitting_metrics(
    model: Classifier, images: Images, labels: Int[Array, " batch"], radius: Number, *, key: Key
) -> dict[str, Float[Array, ""]]:
    """How locally linear a network is in l∞, and what a single step of ascent overlooks.

    In catastrophic overfitting FGSM accuracy rises while PGD accuracy falls to 0, since gradients turn within the
    ball: a gap above 0.4, or PGD accuracy that falls by more than 0.2 between two looks, says so. Look at the same
    examples each time; 256 are enough.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1].
        labels: (N,).
        radius: ε of the l∞ ball, in pixel units of [0, 1].
        key: draws η ~ U[−ε, ε].

    Returns:
        Means over the examples: `gradient_cosine` of ∇ℓ(x) and ∇ℓ(x + η), `perturbation_cosine` of what FGSM and PGD
        find (both 0 where one of the two vanishes), `fgsm_acc`, `pgd_acc` after 10 steps of ε/4, and their difference
        `gap`.

    Raises:
        TypeError: `model` is no classifier, images or labels are of a wrong type, `key` is no key.
        ValueError: shapes that do not fit, images outside of [0, 1] or NaN, labels that are no classes, a negative
            `radius`.

    Example:
        >>> import jaxrobust as jr
        >>> model = jr.Classifier.from_function(lambda x: x.reshape(len(x), -1) @ jnp.eye(4)[:, :2])
        >>> images, labels = jnp.full((3, 2, 2, 1), 0.5), jnp.array([0, 1, 0])
        >>> found = overfitting_metrics(model, images, labels, 0.1, key=jax.random.key(0))
        >>> sorted(found), float(found["gap"])
        (['fgsm_acc', 'gap', 'gradient_cosine', 'perturbation_cosine', 'pgd_acc'], 0.0)

    Reference:
        Wong, Rice and Kolter, 2020, arXiv:2001.03994; Andriushchenko and Flammarion, 2020, arXiv:2007.02617. The
        thresholds are ours.
    """
    _inputs.classifier(model)
    _checks.key(key)
    _inputs.image_shape(images)
    _inputs.label_shape("labels", labels, images)
    images, goal = _inputs.batch(images, labels)
    classes = _inputs.logits_shape(model, images)
    if not _checks.is_traced(model, images, labels, key):
        _inputs.image_values(images)
        _inputs.label_values(goal, classes)
    radius = jnp.asarray(_checks.number("radius", radius), jnp.float32)
    return _metrics(model, jnp.asarray(images), jnp.asarray(labels), radius, key)


@_compile.jit
def _metrics(model: Classifier, images: Images, labels: Array, radius: Array, key: Key) -> dict[str, Array]:
    own = attacks.example_keys(key, jnp.arange(len(images)))

    def gradient(images: Images) -> Array:
        return jax.grad(lambda x: cross_entropies(model(x), labels).sum())(images)

    noise = jax.vmap(lambda k: jax.random.uniform(k, images.shape[1:], minval=-radius, maxval=radius))(own)
    here = gradient(images)
    once = jnp.clip(images + radius * jnp.sign(here), 0, 1)
    ascent = attacks.pgd(Linf(radius), steps=10, relative_step_size=0.25, random_start=False)
    often = attacks.last_iterate(ascent, model, images, Misclassified(labels), own)
    right = [correct(model(found), labels).mean() for found in (once, often)]
    return {
        "gradient_cosine": _cosines(here, gradient(images + noise)).mean(),
        "perturbation_cosine": _cosines(once - images, often - images).mean(),
        "fgsm_acc": right[0],
        "pgd_acc": right[1],
        "gap": right[0] - right[1],
    }


def _cosines(first: Array, second: Array) -> Array:
    """Of each pair of images; 0 where one of them is 0."""
    turned, known = turns(*(images.reshape(len(images), -1) for images in (first, second)))
    return known - turned
