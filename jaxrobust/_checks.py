"""Checks at the door: each raises an error that names the argument, the rule and the received value."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _compile
from jaxrobust.types import Confident, Criterion, Misclassified, Number, Towards

# how far apart, in spreads of the logits, one image's logits may be in two batches
APART = 1e-2


@_compile.jit
def forward(model: Any, images: Any) -> Any:
    """The compiled forward pass, one for all who need one."""
    return model(images)


def operations(model: Any, images: Any) -> float:
    """Floating point operations of one image's forward pass, as far as the compiler knows before it compiles."""
    return float((forward.cost(model, images) or {}).get("flops", 0.0)) / images.shape[0]


@_compile.jit
def _all_finite(leaves: list[Any]) -> Any:
    return jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def number(name: str, value: Any, *, low: float = 0.0, high: float = np.inf) -> Number:
    """A Python or NumPy number made canonical (strongly typed, so that it never retraces); anything else as it is."""
    if isinstance(value, (bool, np.bool_, str, complex)):
        raise TypeError(f"{name} must be a real number; got {value!r}")
    if isinstance(value, jax.Array) and jax.typeof(value).weak_type:
        return jnp.asarray(value, value.dtype)
    if not isinstance(value, (int, float, np.ndarray, np.number)):
        return value  # an array or tracer, or a placeholder by which JAX rebuilds a pytree
    array = np.asarray(value, np.float64)
    if not (np.all(np.isfinite(array)) and np.all(array >= low) and np.all(array <= high)):
        bounds = f" and in [{low:g}, {high:g}]" if high < np.inf else f" and >= {low:g}" if low > -np.inf else ""
        raise ValueError(f"{name} must be finite{bounds}; got {value!r}")
    return array[()]


def count(name: str, value: Any, *, low: int = 1) -> int:
    """A static whole number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be >= {low}; got {value}")
    return int(value)


def choice(name: str, value: Any, known: Any) -> Any:
    """One of the known names."""
    if value not in known:
        raise ValueError(f"{name} must be one of {sorted(known)}; got {value!r}")
    return value


def key(value: Any) -> None:
    """A typed random key, one of them."""
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.shape:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, jax.Array) else repr(value)
        raise TypeError(f"key must be one typed key such as jax.random.key(0); got {found}")
    if "rbg" in str(value.dtype):
        raise ValueError(f"key must be like jax.random.key(0); got {value.dtype}, and its numbers change under vmap")


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer, so that values cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def image_shape(images: Any) -> None:
    """Rank, dtype and batch size of images."""
    if not hasattr(images, "dtype") or not hasattr(images, "shape"):
        raise TypeError(f"images must be an array; got {type(images).__name__}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floating point in [0, 1]; got dtype {images.dtype} (divide uint8 by 255)")
    if images.ndim != 4:
        hint = "; add the batch axis: images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images must have shape (N, H, W, C); got {tuple(images.shape)}{hint}")
    if 0 in images.shape:
        raise ValueError(f"images must hold at least one image and pixel; got shape {tuple(images.shape)}")


def widened(images: Any) -> Any:
    """Images of less than 32 bits as float32, in which attacks run: steps in float16 may end outside of the set."""
    narrow = jnp.issubdtype(images.dtype, jnp.floating) and images.dtype.itemsize < 4
    return images.astype(np.float32) if narrow else images


def image_values(images: Any) -> None:
    """The range of concrete images; float error of 1e-6 outside of [0, 1] is let pass (and clipped by the sets)."""
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(
            f"images must lie in [0, 1] without NaN; got values in [{low:g}, {high:g}] "
            "(put the model's normalisation inside the model)"
        )


def criterion(labels: Any, images: Any) -> Criterion:
    """A criterion with one of all its numbers an image; integer labels stand for misclassification."""
    if not isinstance(labels, Criterion):
        label_shape("labels", labels, images)
        return Misclassified(labels)
    parts = _parts(labels)
    for around, part in itertools.pairwise(parts):
        if not isinstance(part, Criterion):
            raise TypeError(f"goal of {type(around).__name__} must be a criterion; got {type(part).__name__}")
        if isinstance(around, Towards) and part.targeted:
            raise TypeError(f"goal of Towards must have no target of its own; got {type(part).__name__}")
    for name, value in _classes(labels):
        label_shape(f"{name}s", value, images)
    count = (images.shape[0],)
    for leaf in jax.tree.leaves(labels):
        if jnp.shape(leaf) not in ((), count):
            raise ValueError(f"probability must have shape () or {count}, one an image; got {jnp.shape(leaf)}")
    return jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) else jnp.broadcast_to(leaf, count), labels)


def _parts(goal: Any) -> list[Any]:
    """A criterion, the one that it is around, and so on."""
    return [goal, *_parts(goal.goal)] if hasattr(goal, "goal") else [goal]


def _classes(goal: Any) -> list[tuple[str, Any]]:
    """The classes that a criterion names, of all images."""
    named = [(name, getattr(goal, name, None)) for name in ("label", "target")]
    return [(name, value) for name, value in named if value is not None]


def label_shape(name: str, labels: Any, images: Any) -> None:
    """Rank, dtype and number of labels."""
    if not hasattr(labels, "dtype") or not np.issubdtype(labels.dtype, np.integer):
        found = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{name} must be an array of integers; got {found}")
    if labels.shape != (images.shape[0],):
        raise ValueError(f"{name} must have shape ({images.shape[0]},), one an image; got {tuple(labels.shape)}")


def label_values(goal: Criterion, classes: int) -> None:
    """The range of a concrete criterion's numbers."""
    for name, labels in _classes(goal):
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(
                f"{name}s must lie in [0, {classes}), the model's classes; got values in "
                f"[{int(labels.min())}, {int(labels.max())}]"
            )
    named = dict(_classes(goal))
    if len(named) == 2:
        same = int((np.asarray(named["label"]) == np.asarray(named["target"])).sum())
        if same:
            raise ValueError(
                f"targets must be other classes than the labels; got {same} of {np.size(named['label'])} images whose "
                "target is their own label, which would count as successes without an attack"
            )
    for part in _parts(goal):
        if isinstance(part, Confident):
            number("probability", np.asarray(part.probability), high=1.0)


def logits_shape(model: Any, images: Any) -> int:
    """The number of classes, from the abstract forward pass; errors are put in the user's terms."""
    shape = tuple(images.shape)
    try:
        out = forward.eval_shape(model, images)
    except (TypeError, ValueError) as error:
        hint = ""
        if shape[1] > shape[3] and shape[1] == shape[2]:
            hint = f" A model that wants NCHW, here {(shape[0], shape[3], *shape[1:3])}, needs a transpose inside."
        if "float16" in str(error):  # or bfloat16
            hint += f" Images come as {images.dtype}: a model of narrower weights must cast them inside."
        raise ValueError(f"the model failed on images of shape {shape} (NHWC).{hint} Its own error: {error}") from error
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"the model must return floating logits (N, K); got {out}")
    if len(out.shape) != 2 or out.shape[0] != shape[0]:
        raise ValueError(f"the model must return logits of shape ({shape[0]}, K); got {tuple(out.shape)}")
    if out.shape[1] < 2:
        raise ValueError(f"the model must have at least 2 classes; got logits of shape {tuple(out.shape)}")
    return int(out.shape[1])


def model_values(model: Any, images: Any) -> None:
    """What only running the model on some images can tell: no probabilities, no randomness, every image treated alone,
    not NaN throughout.
    """
    images = np.asarray(images)
    kept = len(images) - len(images) // 2
    first = np.asarray(forward(model, images))
    # the same images in other places and beside others: negatives have other statistics in every batch
    second = np.asarray(forward(model, np.concatenate([1 - images[kept:], images[:kept]])))[-kept:]
    if not np.isfinite(first).any():
        raise ValueError("the model must return finite logits; got only NaN or infinity")
    if not np.array_equal(first[:kept], second, equal_nan=True):
        again = np.asarray(forward(model, images))
        if not np.array_equal(first, again, equal_nan=True):
            raise ValueError(
                "the model must be deterministic; got different logits for the same images (dropout or BatchNorm in "
                f"training mode?), differing by up to {np.nanmax(np.abs(first - again)):.3g}"
            )
        same_logits(first[:kept], second)
    if first.min() >= 0 and first.max() <= 1 and np.allclose(first.sum(-1), 1, atol=1e-5):
        raise ValueError(
            "the model must return logits; got what look like probabilities (all in [0, 1], rows sum to 1): "
            "drop the softmax, or attack its logarithm"
        )


def same_logits(alone: np.ndarray, beside: np.ndarray) -> None:
    """That images have the same logits (n, K) in two batches, up to what rounding in half precision explains."""
    apart = np.where((alone == beside) | (np.isnan(alone) & np.isnan(beside)), 0, np.abs(alone - beside))
    finite = alone[np.isfinite(alone)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    if not (apart <= APART * spread).all():
        raise ValueError(
            "the model must treat every image alone; got other logits for the same images beside others, differing by "
            f"up to {np.max(apart):.3g}, of a spread of {spread:.3g} (BatchNorm on the batch's statistics, another "
            "normalisation by the batch, noise by the place in it?): attack it in inference mode, such as "
            "use_running_average=True in Flax"
        )


def finite_params(model: Any) -> None:
    """Concrete parameters without NaN or infinity."""
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if not leaves:
        return
    for (path, _), finite in zip(leaves, np.asarray(_all_finite([leaf for _, leaf in leaves])), strict=True):
        if not finite:
            raise ValueError(f"model.params must be finite; got NaN or infinity at {jax.tree_util.keystr(path)}")
