"""Backward pass differentiable approximation: gradients through what has none, such as a quantiser or a JPEG codec."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrobust.types import Classifier, pytree

__all__ = ["BPDA", "bpda", "identity"]


def identity(images: Any) -> Any:
    """The images themselves, the usual stand-in of a defence that hardly changes them.

    Args:
        images: any array.

    Returns:
        The same.
    """
    return images


@pytree()
class BPDA:
    """A function whose gradient is another's; see `bpda`."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] = identity

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function of images; got {getattr(self, name)!r}")

    def __call__(self, images: Any) -> Any:
        """g(x), with the gradient of the stand-in.

        Args:
            images: (N, H, W, C).

        Returns:
            g(images).

        Raises:
            ValueError: the two functions give different shapes or dtypes.
        """
        images = jnp.asarray(images)
        ours, theirs = (jax.eval_shape(function, images) for function in (self.forward, self.backward))
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise ValueError(
                f"backward must give what forward gives, {ours.dtype}{list(ours.shape)}; got "
                f"{theirs.dtype}{list(theirs.shape)}"
            )
        return _straight_through(self.forward, self.backward, images)

    def before(self, model: Classifier) -> Classifier:
        """The classifier that sees g(x): what the defence amounts to, and what is attacked.

        Args:
            model: the classifier behind the defence.

        Returns:
            The classifier, with the same parameters.
        """
        activations = None if model.activations is None else _Before(self, model.activations)
        return Classifier(_Before(self, model.apply), model.params, activations)


@dataclasses.dataclass(frozen=True)
class _Before:
    defence: BPDA
    apply: Callable[..., Any]

    def __call__(self, params: Any, images: Any) -> Any:
        return self.apply(params, self.defence(images))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _straight_through(forward: Callable[..., Any], backward: Callable[..., Any], images: Array) -> Array:
    return forward(images)


def _forward(forward: Callable[..., Any], backward: Callable[..., Any], images: Array) -> tuple[Array, Array]:
    return forward(images), images


def _backward(forward: Callable[..., Any], backward: Callable[..., Any], images: Array, cotangent: Array) -> Any:
    return jax.vjp(backward, images)[1](cotangent)


_straight_through.defvjp(_forward, _backward)


def bpda(forward: Callable[..., Any], *, backward: Callable[..., Any] = identity) -> BPDA:
    """A defence that white-box attacks can see through: g(x) in the forward pass, the gradient of a stand-in backward.

    Cost: that of both functions; forwards and backwards are the attack's.

    Args:
        forward: g, images (N, H, W, C) -> images or features; it may have no useful gradient, or none at all.
        backward: a differentiable stand-in with outputs of the same shape; the identity suits g(x) ≈ x.

    Returns:
        The function of images; `.before(model)` puts it in front of a classifier.

    Raises:
        TypeError: not functions.
        ValueError: when called, outputs of different shapes or dtypes.

    Example:
        >>> quantise = bpda(lambda x: jnp.round(8 * x) / 8)
        >>> jax.grad(lambda x: quantise(x).sum())(jnp.ones((1, 2, 2, 1))).ravel()
        Array([1., 1., 1., 1.], dtype=float32)

    Reference:
        Athalye, Carlini and Wagner, 2018, arXiv:1802.00420.
    """
    return BPDA(forward, backward)
