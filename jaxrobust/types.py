"""The few types every room shares: the classifier, what counts as success, and what an attack returns."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import Key as TypedKey

from jaxrobust import _checks
from jaxrobust._repr import represented, short

__all__ = [
    "CRITERIA",
    "AttackResult",
    "Classifier",
    "Code",
    "Confident",
    "Criterion",
    "Image",
    "Images",
    "Key",
    "Logits",
    "Misclassified",
    "Number",
    "Targeted",
    "TopK",
    "Towards",
    "pytree",
]

Key = TypedKey[Array, "..."]
Image = Float[Array, "height width channels"]
Images = Float[Array, "batch height width channels"]
Logits = Float[Array, " classes"]
# A Python number, a NumPy scalar, an array or a tracer. `Any`, because JAX rebuilds pytrees around placeholders too.
Number = Any


@typing.dataclass_transform(frozen_default=True)
def pytree(*data: str) -> Callable[[type], type]:
    """Make a class a frozen dataclass and a pytree: the named fields are numbers (traced), all others structure.

    Printed, it shows its first field and those that have not their default, arrays by type and shape.

    Args:
        *data: names of the fields that hold arrays, numbers or pytrees of them.

    Returns:
        A class decorator.

    Example:
        >>> @pytree("radius")
        ... class Ball:
        ...     radius: float
        ...     norm: str = "linf"
        >>> jax.tree.leaves(Ball(0.5))
        [0.5]
    """

    def decorate(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True, repr=False)(cls)
        if cls.__repr__ is object.__repr__:
            cls.__repr__ = represented  # type: ignore[method-assign, assignment]
        meta = tuple(field.name for field in dataclasses.fields(cls) if field.name not in data)

        def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
            return [getattr(value, name) for name in data], tuple(getattr(value, name) for name in meta)

        def with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
            leaves, structure = flatten(value)
            return list(zip(keys, leaves, strict=True)), structure

        def unflatten(structure: tuple[Any, ...], leaves: Any) -> Any:
            return cls(**dict(zip(data, leaves, strict=True)), **dict(zip(meta, structure, strict=True)))

        keys = [jax.tree_util.GetAttrKey(name) for name in data]
        # Not `register_dataclass`: in JAX 0.10 to 0.12 structures of two such classes with equal static fields compare
        # equal, so that `jit`, wherever their hashes come near each other, runs the program of one on the other.
        jax.tree_util.register_pytree_with_keys(cls, with_keys, unflatten, flatten)
        return cls

    return decorate


class Code(IntEnum):
    """How one example's attack ended. The member's `message` says it in words."""

    RAN = 0
    ALREADY = 1
    NON_FINITE = 2
    DISAGREED = 3
    OUTSIDE = 4
    NO_START = 5

    @property
    def message(self) -> str:
        """The code in words."""
        return {
            Code.RAN: "the attack ran",
            Code.ALREADY: "the clean image already met the criterion; it is returned unchanged",
            Code.NON_FINITE: "the model returned NaN or infinite logits; counted neither as robust nor as a success",
            Code.DISAGREED: "success was seen during the attack, but a fresh forward pass did not confirm it",
            Code.OUTSIDE: "a success that its own set does not contain, or outside of [0, 1]; not counted as one",
            Code.NO_START: "the attack found no adversarial start to search from; give it `starts`",
        }[self]


class _Adapter:
    """A function of `models.adapters`, found by its name when it is asked for: this room needs no Flax."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Callable[..., Classifier]:
        return getattr(importlib.import_module("jaxrobust.models.adapters"), self.name)


@pytree("params")
class Classifier:
    """What is attacked: a pure function from images to logits, and its parameters.

    Images are NHWC float32 in [0, 1]; normalisation belongs inside `apply`, and so does a cast to a narrower type such
    as bfloat16. The parameters are the only traced
    part, so two classifiers of one architecture share one compilation.

    Args:
        apply: `(params, images (N, H, W, C)) -> logits (N, K)`. Must be deterministic and treat every image alone
            (BatchNorm and dropout in evaluation mode).
        params: a pytree of arrays.
        activations: `(params, images) -> tuple of feature maps`, needed by perceptual distances; optional.

    Example:
        >>> model = Classifier(lambda w, x: x.reshape(x.shape[0], -1) @ w, jnp.ones((4, 3)))
        >>> model(jnp.zeros((2, 2, 2, 1))).shape
        (2, 3)

    Raises:
        TypeError: `apply` or `activations` is no function.
    """

    apply: Callable[..., Any]
    params: Any
    activations: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name in ("apply", "activations"):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name == "activations"):
                raise TypeError(f"{name} must be a function of (params, images); got {value!r}")

    # One classifier is another only if it is the same object: arrays do not compare to one truth value, and
    # `jax.jit(model)` wants to hash it.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, images: Any) -> Any:
        """Logits (N, K) of images (N, H, W, C), in the images' own precision, and at least in float32."""
        return _as_precise(self.apply(self.params, images), images)

    def with_activations(self, images: Any) -> tuple[Any, Any]:
        """Logits (N, K) of images (N, H, W, C) and their feature maps, by one pass where the network gives both.

        Two passes in one program are one after XLA has looked, but their derivatives stay two.
        """
        joined = getattr(self.apply, "joined", lambda activations: None)(self.activations)
        if joined is None and self.activations is not None:
            return self(images), self.activations(self.params, images)
        if joined is None:
            raise ValueError("activations must be a function of (params, images) for feature maps; got None")
        logits, maps = joined(self.params, images)
        return _as_precise(logits, images), maps

    @staticmethod
    def from_function(function: Callable[..., Any], params: Any = None) -> Classifier:
        """A classifier from `images -> logits`, or from `(params, images) -> logits` when `params` is given.

        Args:
            function: the forward pass. Weights that it closes over become constants of the compiled program; pass
                them as `params` to change them without recompiling.
            params: a pytree of arrays, or None.

        Returns:
            The classifier.

        Raises:
            TypeError: `function` is no function.
        """
        if not callable(function):
            raise TypeError(f"function must map images to logits; got {function!r}")
        if params is not None:
            return Classifier(function, params)
        return Classifier(_WithoutParams(function), ())

    from_nnx = _Adapter()
    from_linen = _Adapter()
    from_equinox = _Adapter()
    from_haiku = _Adapter()


def _as_precise(logits: Any, images: Any) -> Any:
    """Logits in the precision of the images, float32 or float64, so that whoever compares both has one type."""
    given, wanted = (getattr(values, "dtype", None) for values in (logits, images))
    if given is None or wanted is None or not all(jnp.issubdtype(t, jnp.floating) for t in (given, wanted)):
        return logits
    wanted = jax.dtypes.canonicalize_dtype(wanted) if jnp.finfo(wanted).bits > 16 else jnp.float32
    return logits if given == wanted else logits.astype(wanted)


@dataclasses.dataclass(frozen=True)
class _WithoutParams:
    """Compares equal for the same function, so that wrapping it twice does not compile twice."""

    function: Callable[..., Any]

    def __call__(self, params: Any, images: Any) -> Any:
        return self.function(images)


class Criterion(abc.ABC):
    """What counts as success, as a value: a batch's is one criterion whose arrays have a leading axis.

    Losses ask `targeted`, `label`, `target` and `k`: they move away from the label, until it is not among the k classes
    of largest logits, or towards the target.
    """

    label: Any
    target: Any
    k: int
    # whether losses move towards `target` rather than away from `label`; static
    targeted = False

    @abc.abstractmethod
    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion."""


@pytree("label")
class Misclassified(Criterion):
    """Success is any label but the true one: argmax_k z_k ≠ y, with finite logits. Ties go to the lowest index.

    Args:
        label: true labels, integer, () for one image or (N,) for a batch.
    """

    label: Any
    target = None
    k = 1

    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion."""
        return jnp.all(jnp.isfinite(logits)) & (_predicted(logits) != _class(self.label))


@pytree("target", "label")
class Targeted(Criterion):
    """Success is the target label: argmax_k z_k = t, with finite logits.

    Args:
        target: target labels, integer, () or (N,).
        label: true labels, same shape, or None; only losses that compare the two need them. Where they are given and
            can be looked at, attacks refuse a target that is its image's own label.
    """

    target: Any
    label: Any = None
    targeted = True

    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion."""
        return jnp.all(jnp.isfinite(logits)) & (_predicted(logits) == _class(self.target))


@pytree("label")
class TopK(Criterion):
    """Success is that the true label is not among the k classes of largest logits, all of them finite.

    Of equal logits those of lower index come first, so k = 1 is `Misclassified`.

    Args:
        label: true labels, integer, () or (N,).
        k: from 1 to the number of classes less one (static).

    Raises:
        TypeError: k is no integer.
        ValueError: k below 1; when met with logits, k not below the number of classes.

    Example:
        >>> [bool(TopK(0, k).met(jnp.array([3.0, 4.0, 1.0]))) for k in (1, 2)]
        [True, False]
    """

    label: Any
    k: int
    target = None

    def __post_init__(self) -> None:
        _checks.count("k", self.k)

    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion."""
        if self.k >= logits.shape[0]:
            raise ValueError(f"k must be below the number of classes, {logits.shape[0]}; got {self.k}")
        label = _class(self.label)
        own = logits[label]
        before = jnp.arange(logits.shape[0], dtype=jnp.int32) < label
        ahead = (logits > own) | ((logits == own) & before)
        return jnp.all(jnp.isfinite(logits)) & (jnp.sum(ahead, dtype=jnp.int32) >= self.k)


class _Around(Criterion):
    """A criterion around another, `goal`, whose label and k it has."""

    goal: Any

    @property
    def label(self) -> Any:
        """The label of the criterion within."""
        return self.goal.label

    @property
    def k(self) -> int:  # type: ignore[override]
        """The k of the criterion within, which must not be targeted."""
        return self.goal.k


@pytree("goal", "probability")
class Confident(_Around):
    """Success is another criterion, met with confidence: max_k softmax_k(z) ≥ p besides.

    Args:
        goal: `Misclassified`, `Targeted` or `TopK`.
        probability: p in [0, 1], one number or one an image.

    Raises:
        TypeError, ValueError: a probability that is no number in [0, 1].

    Example:
        >>> [bool(Confident(Misclassified(0), p).met(jnp.array([0.0, 2.0]))) for p in (0.8, 0.9)]
        [True, False]
    """

    goal: Any
    probability: Number

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", _checks.number("probability", self.probability, high=1.0))

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        """Whether the criterion within is."""
        return self.goal.targeted

    @property
    def target(self) -> Any:
        """The target of the criterion within."""
        return self.goal.target

    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion."""
        least = jnp.asarray(self.probability).astype(logits.dtype)
        return self.goal.met(logits) & (jnp.max(jax.nn.softmax(logits)) >= least)


@pytree("target", "goal")
class Towards(_Around):
    """Success is what another criterion says, sought by losses towards a target; see `attacks.targeted_each`.

    Args:
        target: target labels, integer, () or (N,).
        goal: `Misclassified`, `TopK`, or `Confident` around one of them.

    Example:
        >>> bool(Towards(2, Misclassified(0)).met(jnp.array([0.0, 1.0, 0.0])))
        True
    """

    target: Any
    goal: Any
    targeted = True

    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion within."""
        return self.goal.met(logits)


# name -> how the criterion is made from labels and targets; every law about criteria runs over it
CRITERIA: dict[str, Callable[[Any, Any], Criterion]] = {
    "misclassified": lambda label, target: Misclassified(label),
    "targeted": lambda label, target: Targeted(target, label),
    "top_2": lambda label, target: TopK(label, 2),
    "confident": lambda label, target: Confident(Misclassified(label), 0.8),
    "confident_targeted": lambda label, target: Confident(Targeted(target, label), 0.8),
    "confident_top_2": lambda label, target: Confident(TopK(label, 2), 0.8),
    "towards": lambda label, target: Towards(target, Misclassified(label)),
}


def _class(label: Any) -> Int[Array, ""]:
    """A label of any integer type, to compare with one of another."""
    return jnp.asarray(label).astype(jnp.int32)


def _predicted(logits: Logits) -> Int[Array, ""]:
    return jnp.argmax(logits).astype(jnp.int32)


@pytree("images", "success", "loss", "size", "forwards", "backwards", "code", "parameters")
class AttackResult:
    """What an attack returns, one entry an example.

    Args:
        images: (N, H, W, C), the best point found: one that meets the criterion before one that does not, then the
            highest loss. The clean image where nothing better was found.
        success: (N,) bool, confirmed by a fresh forward pass on `images`, and by the set's own `contains`.
        loss: (N,) the attack's own loss at `images`.
        size: (N,) the perturbation's size, in the unit of the set's radius.
        forwards: (N,) int, images of this example that were classified for the attack's own purposes.
        backwards: (N,) int, gradients of this example that the attack used.
        code: (N,) int, a `Code`.
        parameters: the set's parameters θ of `images`, for an additive set the perturbation; None from the lanes.
    """

    images: Float[Array | np.ndarray, "*batch height width channels"]
    success: Bool[Array | np.ndarray, "*batch"]
    loss: Float[Array | np.ndarray, "*batch"]
    size: Float[Array | np.ndarray, "*batch"]
    forwards: Int[Array | np.ndarray, "*batch"]
    backwards: Int[Array | np.ndarray, "*batch"]
    code: Int[Array | np.ndarray, "*batch"]
    parameters: Any = None

    def __repr__(self) -> str:
        shape, name = np.shape(self.images), type(self).__name__
        known = all(isinstance(field, (np.ndarray, jax.Array)) for field in (self.images, self.success, self.size))
        if not known or isinstance(self.success, jax.core.Tracer) or len(shape) != 4:
            return f"{name}(images={short(self.images)}, success={short(self.success)}, size={short(self.size)}, …)"
        success, size = np.asarray(self.success), np.asarray(self.size)
        found = f"{int(success.sum())} of {shape[0]} succeeded"
        if success.any():
            found += f", mean size {float(size[success].mean()):.4g}"
        passes = [f"{float(np.mean(getattr(self, what))):.4g} {what}" for what in ("forwards", "backwards")]
        return f"{name}({found}; images {'x'.join(map(str, shape[1:]))}, {', '.join(passes)} each)"
