"""LPIPS and its square root without weights, the metric of the neural perceptual threat model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.types import Classifier

__all__ = ["distance", "features", "lpips", "normalised", "separation"]

Images = Float[Any, "*batch height width channels"]
Maps = tuple[Float[Array, "*batch _h _w _c"], ...]

EPSILON = 1e-10


def features(network: Classifier, images: Images) -> Maps:
    """φ(x): the network's activations, normalised over channels and weighted so that every layer counts alike.

    With activations a_l of h_l x w_l positions, φ_l = a_l / (‖a_l‖₂ + 1e-10) / √(h_l w_l), the norm at each position
    over the channels, which are the last axis. A position without activation has φ = 0 and derivative 0, where the
    formula's own derivative is 1e10.

    Args:
        network: a classifier with `activations`.
        images: (H, W, C) or (N, H, W, C) in [0, 1].

    Returns:
        φ, a tuple of (h_l, w_l, c_l) or (N, h_l, w_l, c_l), one a layer. Its Euclidean norm is at most √L for L
        layers.

    Raises:
        ValueError: the network has no activations.

    Example:
        >>> [maps.shape for maps in features(filter_bank(), jnp.zeros((8, 6, 1)))]
        [(8, 6, 10), (4, 3, 10), (2, 2, 10)]

    Reference:
        Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655.
    """
    return normalised(_activations(network, images))


def normalised(activations: Sequence[Float[Any, "*batch _h _w _c"]]) -> Maps:
    """φ from activations that are at hand, such as `Classifier.with_activations` gives; see `features`.

    Args:
        activations: (h_l, w_l, c_l) or (N, h_l, w_l, c_l), one a layer.

    Returns:
        As many of the same shapes.
    """
    return tuple(_unit(maps) / math.sqrt(maps.shape[-3] * maps.shape[-2]) for maps in activations)


def distance(network: Classifier, images: Images, others: Images) -> Float[Array, "*batch"]:
    """The neural perceptual distance d(x, z) = ‖φ(x) − φ(z)‖₂, see `features`.

    It is the square root of LPIPS without learned weights: a metric wherever φ tells images apart, at most √(2 L)
    for L layers of non-negative activations, and unchanged when a layer's activations are scaled.

    Args:
        network: a classifier with `activations`.
        images: (H, W, C) or (N, H, W, C) in [0, 1].
        others: as many, of the same shape.

    Returns:
        () or (N,), exactly 0 for equal images, and with gradient 0 wherever it is 0.

    Raises:
        ValueError: the network has no activations.

    Example:
        >>> image = jnp.full((8, 8, 3), 0.5)
        >>> float(distance(filter_bank(), image, image))
        0.0

    Reference:
        Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655.
    """
    equal = jnp.all(jnp.asarray(images) == jnp.asarray(others), (-3, -2, -1))
    # two passes over one image may round differently in one program
    return jnp.where(equal, 0, separation(features(network, images), features(network, others)))


def separation(first: Maps, second: Maps) -> Float[Array, "*batch"]:
    """‖φ − φ'‖₂ of features that are at hand, so that those of a clean image need be computed only once.

    Args:
        first: what `features` gave.
        second: what `features` gave for as many images.

    Returns:
        () or (N,), with gradient 0 where the features are equal.
    """
    total = _total([jnp.square(a - b) for a, b in zip(first, second, strict=True)])
    apart = total != 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, total, 1)), 0)


def lpips(
    network: Classifier, images: Images, others: Images, weights: Sequence[Float[Any, " _c"]]
) -> Float[Array, "*batch"]:
    """The original LPIPS: Σ_l mean_{h,w} Σ_c w_lc (â_l(x) − â_l(z))², â the activations normalised over channels.

    Not a metric: it is not square-rooted. With weights of one it is `distance`².

    Args:
        network: a classifier with `activations`; the published weights are for AlexNet, VGG-16 and SqueezeNet.
        images: (H, W, C) or (N, H, W, C) in [0, 1].
        others: as many, of the same shape.
        weights: w ≥ 0, one (c_l,) a layer; see `models.load_lpips`.

    Returns:
        () or (N,).

    Raises:
        ValueError: the network has no activations, or the weights do not fit them.

    Reference:
        Zhang, Isola, Efros, Shechtman and Wang, 2018, arXiv:1801.03924.
    """
    first, second = ([_unit(maps) for maps in _activations(network, each)] for each in (images, others))
    wanted, found = [maps.shape[-1:] for maps in first], [jnp.shape(weight) for weight in weights]
    if found != wanted:
        raise ValueError(f"weights must have shapes {wanted}, one a layer; got {found}")
    terms = [
        jnp.matmul(jnp.square(a - b), jnp.asarray(weight, a.dtype), precision="highest") / (a.shape[-3] * a.shape[-2])
        for a, b, weight in zip(first, second, weights, strict=True)
    ]
    return _total([term[..., None] for term in terms])


def _activations(network: Classifier, images: Images) -> Maps:
    """The activations of images (..., H, W, C)."""
    if network.activations is None:
        raise ValueError(
            "network must have activations: Classifier(apply, params, activations), or a Flax network with a method "
            "activations(images)"
        )
    images = jnp.asarray(images)
    batch = images.shape[:-3]
    every = network.activations(network.params, images.reshape(-1, *images.shape[-3:]))
    return tuple(maps.reshape(*batch, *maps.shape[1:]) for maps in every)


def _unit(maps: Array) -> Array:
    """Activations of length one at every position."""
    total = jnp.sum(jnp.square(maps), -1, keepdims=True)
    active = total != 0  # NaN is active, and stays
    return jnp.where(active, maps / (jnp.sqrt(jnp.where(active, total, 1)) + EPSILON), 0)


def _total(terms: list[Array]) -> Array:
    """The sum over layers, positions and channels."""
    return sum((jnp.sum(term, (-3, -2, -1)) for term in terms[1:]), jnp.sum(terms[0], (-3, -2, -1)))
