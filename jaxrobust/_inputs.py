"""Checks of images, labels and models at the door: each says what came, and what would do in its place."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _compile
from jaxrobust._checks import is_traced, number, slip, told
from jaxrobust.types import Classifier, Confident, Criterion, Misclassified, Towards

_HOST = (
    "wrap a function of NumPy arrays that calls it, and its pullback if it has gradients: HostModel(function, classes)"
)
# What to do with a model of another library, which need not be installed: by where its type, or a base of it, is.
_MODELS = {
    "flax.nnx": "wrap it: Classifier.from_nnx(network)",
    "flax.linen": "wrap it with its variables: Classifier.from_linen(module, variables)",
    "equinox": "wrap it: Classifier.from_equinox(module)",
    "haiku": "wrap it with its parameters: Classifier.from_haiku(transformed, params)",
    "torch": "wrap it, and attack it by evaluate.robustness or evaluate.run_lanes: evaluate.TorchModel(module)",
    **dict.fromkeys(("tensorflow", "keras", "sklearn"), _HOST),
    "jaxrobust.evaluate.host.HostModel": "JAX cannot trace it: attack it by evaluate.robustness or evaluate.run_lanes",
    "jaxrobust.attacks.compose.eot.RandomClassifier": "attack its mean prediction: random_classifier.mean(key)",
}
_ARRAYS = {"torch": "pass {name}.detach().cpu().numpy()", "tensorflow": "pass {name}.numpy()"}

# how far apart, in spreads of the logits, one image's logits may be in two batches
APART = 1e-2


@_compile.jit
def all_finite(leaves: list[Any]) -> Any:
    """Of each array whether all of it is finite, by one program."""
    return jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def _advice(value: Any, known: dict[str, str]) -> str:
    """What to do with a thing of another library, or nothing."""
    kind = value if isinstance(value, type) else type(value)
    kinds = [f"{base.__module__}.{base.__qualname__}." for base in kind.__mro__]
    return next((advice for home, advice in known.items() if any(base.startswith(f"{home}.") for base in kinds)), "")


def classifier(value: Any, *, name: str = "model") -> None:
    """A model that JAX can trace, wrapped; else an error that says how to wrap it."""
    if isinstance(value, Classifier):
        return
    advice = _advice(value, _MODELS)
    if isinstance(value, type):
        advice = f"of an instance: {advice}" if advice else ""
    elif not advice and callable(value):
        advice = "wrap it: Classifier.from_function(function)"
    raise TypeError(f"{name} must be a Classifier; got {told(value)}{_in_brackets(advice)}")


def pair(data: Any, *, criteria: bool = False) -> tuple[np.ndarray, Any]:
    """Images and labels as NumPy arrays, from a pair of them or a data set; or a criterion, where one is taken."""
    wanted = "data must be a pair of images and labels"
    if isinstance(data, Mapping):
        names = ", ".join(f"data[{name!r}]" for name in itertools.islice(data, 2))
        raise TypeError(f"{wanted}; got {told(data)} (pass two of its arrays, such as ({names}))")
    # no more of an iterator, which may be endless, than shows that it is no pair
    iterates = hasattr(data, "__iter__") and not isinstance(data, (np.ndarray, jax.Array, str))
    parts = list(itertools.islice(data, 3)) if iterates else []
    first = parts[0] if parts else None
    if isinstance(first, (tuple, list)) and len(first) == 2 and getattr(first[1], "ndim", 0) == 1:
        raise TypeError(
            f"{wanted}; got {told(data)} of batches (join them: np.concatenate([x for x, _ in data]) and "
            "np.concatenate([y for _, y in data]))"
        )
    if len(parts) != 2:
        raise TypeError(f"{wanted}; got {told(data)}")
    images, labels = parts
    if criteria and isinstance(labels, Criterion):
        return widened(as_array("images", images)), labels
    if isinstance(labels, Criterion) or (isinstance(labels, type) and issubclass(labels, Criterion)):
        raise TypeError(
            f"labels must be an array of integers, the true classes; got {told(labels)} (of the criteria, "
            "evaluate.robustness and attacks.run take instances, in the place of labels)"
        )
    return widened(as_array("images", images)), as_array("labels", labels)


def as_array(name: str, value: Any) -> np.ndarray:
    """A NumPy array of what is one or can be made one."""
    try:
        return np.asarray(value)
    except Exception as error:
        advice = _advice(value, _ARRAYS).format(name=name)
        if isinstance(value, (list, tuple)):
            advice = f"of batches: np.concatenate({name})"
        raise TypeError(f"{name} must be one array; got {told(value)}{_in_brackets(advice)}") from error


def _is_array(name: str, value: Any, kind: str) -> None:
    """Something that has a shape, and a dtype of NumPy's."""
    advice = _advice(value, _ARRAYS).format(name=name)
    if not advice and hasattr(value, "shape") and hasattr(value, "dtype"):
        return
    if isinstance(value, (list, tuple)):
        advice = f"pass np.asarray({name})"
    raise TypeError(f"{name} must be {kind}; got {told(value)}{_in_brackets(advice)}")


def image_shape(images: Any) -> None:
    """Rank, dtype and batch size of images."""
    _is_array("images", images, "an array")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floating point in [0, 1]; got dtype {images.dtype}{_in_brackets(_to_floats(images))}"
        )
    shape = tuple(images.shape)
    axes(shape)
    if 0 in shape:
        raise ValueError(f"images must hold at least one image and pixel; got shape {shape}")


def _to_floats(images: Any) -> str:
    """What is to be done to images that are not floating point, as far as their type and values tell."""
    whole = np.issubdtype(images.dtype, np.integer)
    if not whole and images.dtype != bool:
        return ""
    largest = 255 if is_traced(images) else np.max(images, initial=0)
    if images.dtype == bool or largest == 1:
        return "pass images.astype(np.float32)"
    return "divide by 255: images.astype(np.float32) / 255" if largest <= 255 else "divide by the value of white"


def axes(shape: tuple[int, ...]) -> None:
    """That images have four axes; a warning where they seem to be in another order."""
    if len(shape) != 4:
        raise ValueError(f"images must have shape (N, H, W, C); got {shape}{_in_brackets(_missing(shape))}")
    if shape[1] in (1, 3) and shape[2] == shape[3] > 4:
        slip(
            f"images of shape (N, {shape[1]}, {shape[2]}, {shape[3]}) look like NCHW, but are taken as (N, H, W, C), "
            f"of {shape[3]} channels: pass images.transpose(0, 2, 3, 1), and transpose back inside a model that wants "
            "NCHW"
        )


def _missing(shape: tuple[int, ...]) -> str:
    """What is to be done to the axes of images that are not four, as far as the shape tells."""
    if len(shape) == 5:
        return "join the batches: images.reshape(-1, *images.shape[2:])"
    if len(shape) == 2:
        return "images that were flattened need their axes back: images.reshape(-1, H, W, C)"
    if len(shape) != 3:
        return ""
    batch, channel = "add the batch axis, images[None]", "add the channel axis, images[..., None]"
    if shape[2] > 4:
        first = shape[0] in (1, 3) and "; of one image with channels first: images.transpose(1, 2, 0)[None]"
        return f"{channel}{first or ''}"
    # images of a width up to 4 are none, unless they are as high
    return batch if shape[1] > 4 else f"of one image {batch}; of grey images {channel}"


def _in_brackets(advice: str) -> str:
    return f" ({advice})" if advice else ""


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


def batch(images: Any, labels: Any) -> tuple[Any, Criterion]:
    """Images of a type in which attacks run, and the criterion, both of fitting shapes."""
    image_shape(images)
    images = widened(images)
    return images, criterion(labels, images)


def criterion(labels: Any, images: Any) -> Criterion:
    """A criterion with one of all its numbers an image; integer labels stand for misclassification."""
    if not isinstance(labels, Criterion):
        label_shape("labels", labels, images)
        return Misclassified(_as_int32(labels))
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
    whole = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) else jnp.broadcast_to(leaf, count), labels)
    return jax.tree.map(_as_int32, whole)


def _as_int32(leaf: Any) -> Any:
    """Classes in one type, so that labels of any make one program and one saved run; no value is changed."""
    if not jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == np.int32:
        return leaf
    fits = leaf.dtype.itemsize < 4
    if isinstance(leaf, np.ndarray) and leaf.size and not fits:
        limits = np.iinfo(np.int32)
        fits = limits.min <= leaf.min() and leaf.max() <= limits.max
    return leaf.astype(np.int32) if fits else leaf


def _parts(goal: Any) -> list[Any]:
    """A criterion, the one that it is around, and so on."""
    return [goal, *_parts(goal.goal)] if hasattr(goal, "goal") else [goal]


def _classes(goal: Any) -> list[tuple[str, Any]]:
    """The classes that a criterion names, of all images."""
    named = [(name, getattr(goal, name, None)) for name in ("label", "target")]
    return [(name, value) for name, value in named if value is not None]


def label_shape(name: str, labels: Any, images: Any) -> None:
    """Rank, dtype and number of labels."""
    _is_array(name, labels, "an array of integers")
    wanted, shape = (images.shape[0],), tuple(labels.shape)
    advice = ""
    if len(shape) == 2 and shape[0] == wanted[0]:
        advice = f"{name}[:, 0]" if shape[1] == 1 else f"of one-hot rows: {name}.argmax(-1)"
    if not np.issubdtype(labels.dtype, np.integer):
        advice = advice or (shape == wanted and f"{name}.astype(np.int32)") or ""
        raise TypeError(f"{name} must be an array of integers; got {labels.dtype}{list(shape)}{_in_brackets(advice)}")
    if shape != wanted:
        raise ValueError(f"{name} must have shape {wanted}, one an image; got {shape}{_in_brackets(advice)}")


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
    classifier(model)
    shape = tuple(images.shape)
    try:
        out = _compile.forward.eval_shape(model, images)
    except Exception as error:
        own = next((line.rstrip(".") for line in str(error).splitlines() if line.strip()), "no message")
        advice = _untraceable(error) or _mutable(error) or _narrow(error, images) or _transposed(model, images)
        where = f"the model failed on images of shape {shape}, NHWC{advice and f'; {advice}'}"
        raise ValueError(f"{type(error).__name__}: {own} ({where})") from error
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"the model must return floating logits (N, K); got {out}")
    if len(out.shape) != 2 or out.shape[0] != shape[0]:
        raise ValueError(f"the model must return logits of shape ({shape[0]}, K); got {tuple(out.shape)}")
    if out.shape[1] < 2:
        raise ValueError(f"the model must have at least 2 classes; got logits of shape {tuple(out.shape)}")
    return int(out.shape[1])


def _untraceable(error: Exception) -> str:
    """What to do with a model that leaves JAX."""
    if not isinstance(error, jax.errors.JAXTypeError) or isinstance(error, jax.errors.UnexpectedTracerError):
        return ""
    return "JAX must be able to trace a model; a function of NumPy arrays is a HostModel(function, classes)"


def _mutable(error: Exception) -> str:
    """What to do with a Flax NNX network that counts its calls or averages batches while it is traced."""
    if type(error).__name__ != "TraceContextError":
        return ""
    return "a Flax NNX network in training mode changes as it is called: network.eval() first, or from_nnx(network)"


def _narrow(error: Exception, images: Any) -> str:
    """What to do with a model that wants images of its own, narrower type."""
    speaks = "float16" in str(error)  # or bfloat16
    return f"images come as {images.dtype}: a model of narrower weights must cast them inside" if speaks else ""


def _transposed(model: Any, images: Any) -> str:
    """Whether the model fails on the order of axes alone: if it takes the same images with axes in the other order."""
    n, h, w, c = images.shape
    # the channels are the shorter axis
    if c <= h:
        other, advice = (n, c, h, w), "a model that wants NCHW needs a transpose inside: images.transpose(0, 3, 1, 2)"
    else:
        other, advice = (n, w, c, h), "images that are NCHW need a transpose: images.transpose(0, 2, 3, 1)"
    try:
        out = _compile.forward.eval_shape(model, jax.ShapeDtypeStruct(other, images.dtype))
    except Exception:
        return ""
    return f"it takes {other}, and {advice}" if len(getattr(out, "shape", ())) == 2 and out.shape[0] == n else ""


def model_values(model: Any, images: Any) -> None:
    """What only running the model on some images can tell: no probabilities, no randomness, every image treated alone,
    not NaN throughout.
    """
    images = _in_company(model, np.asarray(images))
    kept = len(images) - len(images) // 2
    first = np.asarray(_compile.forward(model, images))
    # the same images in other places and beside others: negatives have other statistics in every batch
    second = np.asarray(_compile.forward(model, np.concatenate([1 - images[kept:], images[:kept]])))[-kept:]
    if not np.isfinite(first).any():
        raise ValueError("the model must return finite logits; got only NaN or infinity")
    if not np.array_equal(first[:kept], second, equal_nan=True):
        again = np.asarray(_compile.forward(model, images))
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


def _in_company(model: Any, images: np.ndarray) -> np.ndarray:
    """The images, a single one twice: only in batches of one size are an image's logits rounded alike."""
    if len(images) > 1:
        return images
    twice = np.concatenate([images, images])
    try:
        _compile.forward.eval_shape(model, twice)
    except Exception:  # of a model that takes one image at a time, which has none to mix
        return images
    return twice


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
    for (path, _), finite in zip(leaves, np.asarray(all_finite([leaf for _, leaf in leaves])), strict=True):
        if not finite:
            raise ValueError(f"model.params must be finite; got NaN or infinity at {jax.tree_util.keystr(path)}")
