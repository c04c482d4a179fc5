"""How networks of Flax, Equinox and Haiku become pure functions to attack."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxrobust.models import _names, _nnx
from jaxrobust.types import Classifier

__all__ = ["from_equinox", "from_haiku", "from_linen", "from_nnx"]


def from_nnx(network: Any) -> Classifier:
    """A classifier from a Flax NNX network, in evaluation mode.

    The numbers are copied out as a nested dict named as the network's attributes are, so that neither later training
    of the network changes the classifier nor the classifier the network. Random streams (dropout) hold nothing that
    evaluation needs and are left out.

    Args:
        network: an `nnx.Module` that maps images (N, H, W, C) to logits (N, K). Its method `activations(images)`, if
            it has one, becomes the classifier's.

    Returns:
        The classifier. Two networks of one architecture give equal `apply`, hence share one compilation.

    Raises:
        TypeError: if `network` is not a callable `nnx.Module`.
        ValueError: when called, if the network draws random numbers although it is in evaluation mode.

    Example:
        >>> from jaxrobust.models import MnistNet
        >>> model = from_nnx(MnistNet(rngs=nnx.Rngs(0)))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
        >>> model.params["conv1"]["kernel"].shape
        (4, 4, 1, 16)
    """
    _, evaluation, params, state = _nnx.apart(network)
    return _nnx.classifier(evaluation, params, state)


def from_linen(module: Any, variables: Any, **kwargs: Any) -> Classifier:
    """A classifier from a Flax Linen module and its variables.

    Args:
        module: a `linen.Module` that maps images (N, H, W, C) to logits (N, K). Its method `activations(images,
            **kwargs)`, if it has one, becomes the classifier's.
        variables: what `module.init` returned, trained: `{"params": ..., "batch_stats": ...}`.
        **kwargs: static arguments that put the call in evaluation mode, such as `train=False`.

    Returns:
        The classifier. Equal modules with equal `kwargs` share one compilation.

    Raises:
        TypeError: if `module` is not a Linen module, `variables` is not a mapping, or anything static has no hash.
        ValueError: if `variables` has no collection "params".

    Example:
        >>> module = linen.Dense(3)
        >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 4)))
        >>> from_linen(module, variables)(jnp.zeros((2, 4))).shape
        (2, 3)
    """
    if not isinstance(module, linen.Module):
        advice = " (Classifier.from_nnx takes it)" if isinstance(module, nnx.Module) else ""
        raise TypeError(f"module must be a flax.linen.Module; got {_names.kind(module)}{advice}")
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"variables must be a mapping such as {{'params': ..., 'batch_stats': ...}}; got {_names.kind(variables)}"
        )
    if "params" not in variables:
        raise ValueError(f"variables must hold the collection 'params'; got the collections {sorted(variables)}")
    options = tuple(sorted(kwargs.items()))
    _names.check_hashable(module=module, kwargs=options)
    maps = _LinenForward(module, options, "activations") if _names.has_activations(type(module)) else None
    return Classifier(_LinenForward(module, options), variables, maps)


def from_equinox(module: Any, *, state: Any = None, channels_first: bool = True) -> Classifier:
    """A classifier from an Equinox module of one image, in inference mode.

    Arrays of the module and of its state are the parameters, the rest is structure; the state is read, never kept.

    Args:
        module: an `equinox.Module` that maps one image to logits (K,), called as `module(image)`, or
            `module(image, state)` where there is a state; it may not want a key.
        state: the `equinox.nn.State` of a stateful module (BatchNorm), trained.
        channels_first: whether the module takes images (C, H, W), as Equinox's convolutions do, or (H, W, C).

    Returns:
        The classifier. Two modules of one architecture share one compilation.

    Raises:
        TypeError: `module` is no callable Equinox module, or something static in it has no hash.

    Example:
        >>> import equinox
        >>> module = equinox.nn.Sequential(
        ...     [equinox.nn.Lambda(jnp.ravel), equinox.nn.Dropout(), equinox.nn.Linear(12, 3, key=jax.random.key(0))]
        ... )
        >>> from_equinox(module)(jnp.zeros((5, 2, 2, 3))).shape
        (5, 3)
    """
    import equinox

    if not isinstance(module, equinox.Module) or not callable(module):
        raise TypeError(f"module must be an equinox.Module with a __call__ (an instance); got {_names.kind(module)}")
    whole = (equinox.nn.inference_mode(module), state)
    params, static = equinox.partition(whole, lambda leaf: isinstance(leaf, (jax.Array, np.ndarray)))
    leaves, structure = jax.tree.flatten(static)
    _names.check_hashable(module=(tuple(leaves), structure))
    return Classifier(_EquinoxForward(tuple(leaves), structure, channels_first), params)


def from_haiku(transformed: Any, params: Any, *, state: Any = None, **kwargs: Any) -> Classifier:
    """A classifier from a transformed Haiku function of images (N, H, W, C).

    Args:
        transformed: what `haiku.transform` or `haiku.transform_with_state` returned; where it takes a random key it is
            given None, so that it cannot draw.
        params: the parameters, trained.
        state: the state, if it was transformed with one; what it becomes is not kept.
        **kwargs: static arguments that put the call in evaluation mode, such as `is_training=False`.

    Returns:
        The classifier.

    Raises:
        TypeError: `transformed` has no function `apply`, or an argument has no hash, or a state is missing or too much.

    Example:
        >>> network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([100, 10])(hk.Flatten()(x))))
        ... # doctest: +SKIP
        >>> model = from_haiku(network, network.init(key, images))  # doctest: +SKIP
    """
    apply = getattr(transformed, "apply", None)
    if not (hasattr(transformed, "init") and callable(apply)) or isinstance(transformed, (type, linen.Module)):
        raise TypeError(f"transformed must be what haiku.transform returns; got {_names.kind(transformed)}")
    options = tuple(sorted(kwargs.items()))
    _names.check_hashable(kwargs=options)
    takes = inspect.signature(apply).parameters
    if ("state" in takes) != (state is not None):
        raise TypeError(
            "state must be given where the function was transformed with one, by haiku.transform_with_state, and only "
            f"there; got {_names.kind(state)}"
        )
    takes_key = "rng" in takes
    return Classifier(_HaikuForward(apply, takes_key, state is not None, options), (params, state))


@dataclasses.dataclass(frozen=True)
class _LinenForward:
    """The forward pass of a Linen module as a function of its variables."""

    module: linen.Module
    options: tuple[tuple[str, Any], ...]
    method: str = "__call__"

    def __repr__(self) -> str:
        return _names.called(type(self.module), self.method)

    def __call__(self, params: Any, images: Any) -> Any:
        return self.module.apply(params, images, method=self.method, **dict(self.options))


@dataclasses.dataclass(frozen=True)
class _EquinoxForward:
    """The forward pass of an Equinox module, and its state if it has one, as a function of their arrays."""

    leaves: tuple[Any, ...]
    structure: Any
    channels_first: bool

    def __call__(self, params: Any, images: Any) -> Any:
        import equinox

        module, state = equinox.combine(params, jax.tree.unflatten(self.structure, self.leaves))
        if self.channels_first:
            images = jnp.transpose(images, (0, 3, 1, 2))
        return jax.vmap(module if state is None else lambda image: module(image, state)[0])(images)


@dataclasses.dataclass(frozen=True)
class _HaikuForward:
    """The forward pass of a transformed Haiku function, as a function of its parameters and state."""

    function: Any
    takes_key: bool
    stateful: bool
    options: tuple[tuple[str, Any], ...]

    def __call__(self, params: Any, images: Any) -> Any:
        params, state = params
        arguments = (params, *((state,) if self.stateful else ()), *((None,) if self.takes_key else ()), images)
        found = self.function(*arguments, **dict(self.options))
        return found[0] if self.stateful else found
