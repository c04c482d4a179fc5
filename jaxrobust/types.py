"""The few types every room shares: the classifier, what counts as success, and what an attack returns."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import Key as TypedKey

__all__ = [
    "AttackResult",
    "Classifier",
    "Code",
    "Criterion",
    "Image",
    "Images",
    "Key",
    "Logits",
    "Misclassified",
    "Number",
    "Targeted",
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
        cls = dataclasses.dataclass(frozen=True)(cls)
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

    @property
    def message(self) -> str:
        """The code in words."""
        return {
            Code.RAN: "the attack ran",
            Code.ALREADY: "the clean image already met the criterion; it is returned unchanged",
            Code.NON_FINITE: "the model returned NaN or infinite logits; counted neither as robust nor as a success",
            Code.DISAGREED: "success was seen during the attack, but a fresh forward pass did not confirm it",
        }[self]


@pytree("params")
class Classifier:
    """What is attacked: a pure function from images to logits, and its parameters.

    Images are NHWC float32 in [0, 1]; normalisation belongs inside `apply`. The parameters are the only traced
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
    """

    apply: Callable[..., Any]
    params: Any
    activations: Callable[..., Any] | None = None

    # One classifier is another only if it is the same object: arrays do not compare to one truth value, and
    # `jax.jit(model)` wants to hash it.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, images: Any) -> Any:
        """Logits (N, K) of images (N, H, W, C)."""
        return self.apply(self.params, images)

    @staticmethod
    def from_function(function: Callable[..., Any], params: Any = None) -> Classifier:
        """A classifier from `images -> logits`, or from `(params, images) -> logits` when `params` is given.

        Args:
            function: the forward pass. Weights that it closes over become constants of the compiled program; pass
                them as `params` to change them without recompiling.
            params: a pytree of arrays, or None.

        Returns:
            The classifier.
        """
        if params is not None:
            return Classifier(function, params)
        return Classifier(_WithoutParams(function), ())

    @staticmethod
    def from_nnx(network: Any) -> Classifier:
        """A classifier from a Flax NNX module, in evaluation mode; the module itself is left as it is.

        Args:
            network: an `nnx.Module` whose call maps images to logits. A method `activations(images)` is used if it
                has one.

        Returns:
            The classifier.
        """
        from jaxrobust.models.adapters import from_nnx

        return from_nnx(network)

    @staticmethod
    def from_linen(module: Any, variables: Any, **kwargs: Any) -> Classifier:
        """A classifier from a Flax Linen module and its variables.

        Args:
            module: the `linen.Module`.
            variables: what `module.init` returned, trained (`{"params": ..., "batch_stats": ...}`).
            **kwargs: static arguments of the call in evaluation mode, such as `train=False`.

        Returns:
            The classifier.
        """
        from jaxrobust.models.adapters import from_linen

        return from_linen(module, variables, **kwargs)


@dataclasses.dataclass(frozen=True)
class _WithoutParams:
    """Compares equal for the same function, so that wrapping it twice does not compile twice."""

    function: Callable[..., Any]

    def __call__(self, params: Any, images: Any) -> Any:
        return self.function(images)


@pytree("label")
class Misclassified:
    """Success is any label but the true one: argmax_k z_k ≠ y, with finite logits. Ties go to the lowest index.

    Args:
        label: true labels, integer, () for one image or (N,) for a batch.
    """

    label: Any

    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion."""
        return jnp.all(jnp.isfinite(logits)) & (jnp.argmax(logits) != self.label)


@pytree("target", "label")
class Targeted:
    """Success is the target label: argmax_k z_k = t, with finite logits.

    Args:
        target: target labels, integer, () or (N,).
        label: true labels, same shape, or None; only losses that compare the two need them.
    """

    target: Any
    label: Any = None

    def met(self, logits: Float[Array, " classes"]) -> Bool[Array, ""]:
        """Whether one example's logits (K,) meet the criterion."""
        return jnp.all(jnp.isfinite(logits)) & (jnp.argmax(logits) == self.target)


Criterion = Misclassified | Targeted


@pytree("images", "success", "loss", "size", "forwards", "backwards", "code", "parameters")
class AttackResult:
    """What an attack returns, one entry an example.

    Args:
        images: (N, H, W, C), the best point found: one that meets the criterion before one that does not, then the
            highest loss. The clean image where nothing better was found.
        success: (N,) bool, confirmed by a fresh forward pass on `images`.
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
