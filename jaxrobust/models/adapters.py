"""How networks of Flax, Equinox and Haiku become pure functions: a `Classifier` to attack, a `Trainable` to train."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrobust.types import Classifier, Images, Key, pytree

__all__ = ["Trainable", "from_equinox", "from_haiku", "from_linen", "from_nnx"]


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
    trainable, params, state = Trainable.from_nnx(network)
    return trainable.classifier(params, state)


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
        raise TypeError(f"module must be a flax.linen.Module; got {_kind(module)}{advice}")
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"variables must be a mapping such as {{'params': ..., 'batch_stats': ...}}; got {_kind(variables)}"
        )
    if "params" not in variables:
        raise ValueError(f"variables must hold the collection 'params'; got the collections {sorted(variables)}")
    options = tuple(sorted(kwargs.items()))
    _check_hashable(module=module, kwargs=options)
    maps = _LinenForward(module, options, "activations") if _has_activations(type(module)) else None
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
        raise TypeError(f"module must be an equinox.Module with a __call__ (an instance); got {_kind(module)}")
    whole = (equinox.nn.inference_mode(module), state)
    params, static = equinox.partition(whole, lambda leaf: isinstance(leaf, (jax.Array, np.ndarray)))
    leaves, structure = jax.tree.flatten(static)
    _check_hashable(module=(tuple(leaves), structure))
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
        raise TypeError(f"transformed must be what haiku.transform returns; got {_kind(transformed)}")
    options = tuple(sorted(kwargs.items()))
    _check_hashable(kwargs=options)
    takes = inspect.signature(apply).parameters
    if ("state" in takes) != (state is not None):
        raise TypeError(
            "state must be given where the function was transformed with one, by haiku.transform_with_state, and only "
            f"there; got {_kind(state)}"
        )
    takes_key = "rng" in takes
    return Classifier(_HaikuForward(apply, takes_key, state is not None, options), (params, state))


def _check_hashable(**statics: Any) -> None:
    for name, static in statics.items():
        try:
            hash(static)
        except TypeError as error:
            raise TypeError(
                f"{name} must be hashable, because it becomes part of the compiled program: {error}"
            ) from None


@pytree()
class Trainable:
    """A network without its numbers, as pure functions for a trainer: hashable, equal for equal architectures.

    It is a pytree without leaves, so it may be closed over, passed through `jit` as it is, or named as static.
    Parameters are what gradients are taken of (`nnx.Param`); the state is every other number, such as batch
    statistics. Both are nested dicts. Random streams are in neither: `train` seeds them anew from its key.

    Args:
        training: the structure in training mode.
        evaluation: the structure in evaluation mode.

    Example:
        >>> from jaxrobust.models import SmallCNN
        >>> trainable, params, state = Trainable.from_nnx(SmallCNN(rngs=nnx.Rngs(0)))
        >>> logits, state = trainable.train(params, state, jnp.zeros((2, 8, 8, 1)), jax.random.key(0))
        >>> model = trainable.classifier(params, state)
    """

    training: _Structure
    evaluation: _Structure

    @staticmethod
    def from_nnx(network: Any) -> tuple[Trainable, Any, Any]:
        """Take a network apart; the network itself is left as it is.

        Args:
            network: an `nnx.Module` that maps images (N, H, W, C) to logits (N, K).

        Returns:
            The trainable, the parameters and the state.

        Raises:
            TypeError: if `network` is not a callable `nnx.Module`.
        """
        if not isinstance(network, nnx.Module) or not callable(network):
            advice = " (Classifier.from_linen takes it)" if isinstance(network, linen.Module) else ""
            raise TypeError(
                f"network must be an nnx.Module with a __call__ (an instance); got {_kind(network)}{advice}"
            )
        training, evaluation = _structure(network, evaluate=False), _structure(network, evaluate=True)
        # A trainer may donate its buffers, and then the network's own must not be among them, nor the other way.
        params, state = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, _numbers(network))
        return Trainable(training, evaluation), params, state

    def train(self, params: Any, state: Any, images: Images, key: Key, axis_name: str | None = None) -> tuple[Any, Any]:
        """The forward pass in training mode: batch statistics of this batch, dropout drawn from `key`.

        Args:
            params: the parameters.
            state: the state.
            images: (N, H, W, C) in [0, 1].
            key: seeds every random stream of the network.
            axis_name: the axis over which devices are mapped, or None; `nnx.BatchNorm` has its statistics of the
                images of all of them.

        Returns:
            Logits (N, K) and the new state, of the same structure.
        """
        network = self.training.network(key, params, state)
        if axis_name is not None:
            for _, node in nnx.iter_graph(network):
                if isinstance(node, nnx.BatchNorm):
                    node.axis_name = axis_name
        logits = network(images)
        return logits, _numbers(network)[1]

    def classifier(self, params: Any, state: Any) -> Classifier:
        """The network in evaluation mode.

        Args:
            params: the parameters.
            state: the state.

        Returns:
            The classifier, the same as `jaxrobust.models.adapters.from_nnx` gives.
        """
        numbers = unflatten_dict(flatten_dict(params) | flatten_dict(state))
        maps = _Forward(self.evaluation, "activations") if _has_activations(self.evaluation.kind) else None
        return Classifier(_Forward(self.evaluation), numbers, maps)

    def merge(self, params: Any, state: Any) -> nnx.Module:
        """A new network with these numbers, in evaluation mode (its `train()` switches it back).

        Args:
            params: the parameters.
            state: the state.

        Returns:
            The network. Its random streams start from `jax.random.key(0)`.
        """
        return self.evaluation.network(jax.random.key(0), params, state)


@dataclasses.dataclass(frozen=True)
class _Structure:
    """All of a network but its numbers. `rngs` says where its random streams are: (path, shape, whether a key)."""

    kind: type
    graphdef: nnx.GraphDef
    rngs: tuple[tuple[tuple[Any, ...], tuple[int, ...], bool], ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        # Every call of a jitted function hashes its static parts, and a deep graph takes long to hash.
        return hash((self.graphdef, self.rngs))

    def __repr__(self) -> str:
        return self.kind.__name__

    def network(self, key: Key, *numbers: Any) -> nnx.Module:
        """Put the network together, each random stream with its own key and a count of zero."""
        streams = {}
        for index, (path, shape, is_key) in enumerate(self.rngs):
            own = jax.random.fold_in(key, index)
            fresh = own if shape == () else jax.random.split(own, shape)
            streams[path] = fresh if is_key else jnp.zeros(shape, jnp.uint32)
        return nnx.merge(self.graphdef, *numbers, unflatten_dict(streams))


_NOT_SILENT = (
    "network must be deterministic in evaluation mode, but one of its layers draws random numbers; it needs an "
    "attribute `deterministic` (or a method `set_view`) that switches them off"
)


@dataclasses.dataclass(frozen=True)
class _Forward:
    """The evaluation-mode forward pass of an NNX network as a function of its numbers."""

    structure: _Structure
    method: str = "__call__"

    def __repr__(self) -> str:
        return _called(self.structure.kind, self.method)

    def __call__(self, params: Any, images: Any) -> Any:
        network = self.structure.network(jax.random.key(0), params)
        for _, node in nnx.iter_graph(network):
            if isinstance(node, nnx.bridge.ToNNX):
                # it draws a key of every stream for the Linen module, which need not want any, and says so if it does
                node.to_nnx__rngs = None
            elif isinstance(node, nnx.RngStream):
                node.__class__ = _Silent
        try:
            return getattr(network, self.method)(images)
        except errors.InvalidRngError as error:
            raise ValueError(_NOT_SILENT) from error


class _Silent(nnx.RngStream):
    """A random stream of which nothing may be drawn: with the same key every time, noise would look deterministic."""

    def __call__(self) -> Any:
        raise ValueError(_NOT_SILENT)


@dataclasses.dataclass(frozen=True)
class _LinenForward:
    """The forward pass of a Linen module as a function of its variables."""

    module: linen.Module
    options: tuple[tuple[str, Any], ...]
    method: str = "__call__"

    def __repr__(self) -> str:
        return _called(type(self.module), self.method)

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


def _structure(network: nnx.Module, *, evaluate: bool) -> _Structure:
    mode = {"deterministic": evaluate, "use_running_average": evaluate}
    # Without `only`, a view calls `set_view` of `nnx.Rngs` too, which has any attribute and draws a key from it.
    view = nnx.view(network, only=lambda _, node: isinstance(node, nnx.Module), raise_if_not_found=False, **mode)
    # A view reaches only modules that define `set_view`; a user's own layer may just have the attribute.
    view.set_attributes(raise_if_not_found=False, **mode)
    nnx.pop(view, nnx.Intermediate)
    graphdef, rngs, _ = nnx.split(view, nnx.RngState, ...)
    streams = tuple(
        (path, variable.shape, isinstance(variable, nnx.RngKey)) for path, variable in nnx.to_flat_state(rngs)
    )
    return _Structure(type(network), graphdef, streams)


def _numbers(network: nnx.Module) -> tuple[Any, Any]:
    # What a call sows is dropped, so that the state keeps its structure from step to step.
    _, params, _, state = nnx.split(network, nnx.Param, (nnx.RngState, nnx.Intermediate), ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(state)


def _has_activations(kind: type) -> bool:
    return callable(getattr(kind, "activations", None))


def _called(kind: type, method: str) -> str:
    return kind.__name__ + ("" if method == "__call__" else f".{method}")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
