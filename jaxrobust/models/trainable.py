"""How networks become pure functions to train: of Flax NNX, of Linen, or functions of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxrobust.models import _names, _nnx
from jaxrobust.models.adapters import from_linen
from jaxrobust.types import Classifier, Images, Key, pytree

__all__ = ["Trainable"]


@pytree()
class Trainable:
    """A network without its numbers, as pure functions for a trainer: hashable, equal for equal architectures.

    It is a pytree without leaves, so it may be closed over, passed through `jit` as it is, or named as static.
    Parameters are what gradients are taken of; the state is every other number, such as batch statistics. Make it with
    `from_nnx`, `from_linen` or `from_function`, each of which gives it with its parameters and state: what `fit` takes.

    Example:
        >>> from jaxrobust.models import SmallCNN
        >>> trainable, params, state = Trainable.from_nnx(SmallCNN(rngs=nnx.Rngs(0)))
        >>> logits, state = trainable.train(params, state, jnp.zeros((2, 8, 8, 1)), jax.random.key(0))
        >>> model = trainable.classifier(params, state)
    """

    @staticmethod
    def from_nnx(network: Any) -> tuple[Trainable, Any, Any]:
        """Take a network of Flax NNX apart; the network itself is left as it is.

        Args:
            network: an `nnx.Module` that maps images (N, H, W, C) to logits (N, K). Its parameters are `nnx.Param`s;
                random streams are in neither parameters nor state: `train` seeds them anew from its key.

        Returns:
            The trainable, the parameters and the state, as nested dicts.

        Raises:
            TypeError: if `network` is not a callable `nnx.Module`.
        """
        training, evaluation, params, state = _nnx.apart(network)
        return _Nnx(training, evaluation), params, state

    @staticmethod
    def from_linen(
        module: Any,
        variables: Any,
        *,
        training: Mapping[str, Any] = {"train": True},
        evaluation: Mapping[str, Any] = {"train": False},
        streams: tuple[str, ...] = ("dropout",),
    ) -> tuple[Trainable, Any, Any]:
        """A network of Flax Linen.

        Args:
            module: a `linen.Module` that maps images (N, H, W, C) to logits (N, K).
            variables: what `module.init` returned: `{"params": ..., "batch_stats": ...}`.
            training: static arguments that put the call in training mode.
            evaluation: static arguments that put it in evaluation mode.
            streams: the random streams that it draws from in training mode.

        Returns:
            The trainable, the parameters, and the state: all other collections. What is sown into them while training
            is dropped.

        Raises:
            TypeError: if `module` is not a Linen module, `variables` is not a mapping, or an argument has no hash.
            ValueError: if `variables` has no collection "params".
        """
        from_linen(module, variables, **evaluation)  # says what is wrong
        modes = tuple(sorted(training.items())), tuple(sorted(evaluation.items()))
        _names.check_hashable(training=modes[0])
        state = flax.core.unfreeze(dict(variables))
        return _Linen(module, modes[0], modes[1], tuple(streams)), state.pop("params"), state

    @staticmethod
    def from_function(
        apply: Callable[..., Any], params: Any, *, state: Any = None, evaluate: Callable[..., Any] | None = None
    ) -> tuple[Trainable, Any, Any]:
        """A network as one's own functions.

        Args:
            apply: `(params, images) -> logits`; with `evaluate` it is the forward pass in training mode, `(params,
                state, images, key) -> (logits, state)`. Hashable, equal for equal networks: a module's function, not
                one made anew for each.
            params: the initial parameters, a pytree of float arrays.
            state: the initial state, a pytree of arrays; what `apply` returns must have its structure, dtypes and
                shapes.
            evaluate: the forward pass in evaluation mode, `(params, state, images) -> logits`.

        Returns:
            The trainable, the parameters and the state.

        Raises:
            TypeError: if one of the functions is none or has no hash.
            ValueError: if there is a state and no `evaluate`.

        Example:
            >>> def linear(params, images):
            ...     return images.reshape(len(images), -1) @ params
            >>> trainable, params, _ = Trainable.from_function(linear, jnp.zeros((4, 3)))
            >>> trainable.classifier(params, None)(jnp.zeros((5, 2, 2, 1))).shape
            (5, 3)
        """
        for name, function in (("apply", apply), ("evaluate", evaluate)):
            if not callable(function) and not (name == "evaluate" and function is None):
                raise TypeError(f"{name} must be a function; got {_names.kind(function)}")
        if state is not None and evaluate is None:
            raise ValueError("evaluate must be given where there is a state; got None")
        _names.check_hashable(apply=apply, evaluate=evaluate)
        return _Functions(apply, evaluate), params, state

    @property
    def kind(self) -> Any:
        """The network's class, or the function that it is."""
        raise NotImplementedError

    def train(self, params: Any, state: Any, images: Images, key: Key, axis_name: str | None = None) -> tuple[Any, Any]:
        """The forward pass in training mode: batch statistics of this batch, dropout drawn from `key`.

        Args:
            params: the parameters.
            state: the state.
            images: (N, H, W, C) in [0, 1].
            key: seeds every random stream of the network.
            axis_name: the axis over which devices are mapped, or None; Flax's BatchNorms have their statistics of the
                images of all of them.

        Returns:
            Logits (N, K) and the new state, of the same structure.
        """
        raise NotImplementedError

    def classifier(self, params: Any, state: Any) -> Classifier:
        """The network in evaluation mode.

        Args:
            params: the parameters.
            state: the state.

        Returns:
            The classifier.
        """
        raise NotImplementedError

    def merge(self, params: Any, state: Any) -> Any:
        """The network with these numbers, as its own library has it.

        Args:
            params: the parameters.
            state: the state.

        Returns:
            A new NNX module in evaluation mode (its `train()` switches it back) whose random streams start from
            `jax.random.key(0)`, a Linen module's variables, or the pair (params, state) of functions.
        """
        return params, state

    def computing(self, dtype: str) -> Trainable:
        """The same network that computes in another precision: parameters and images are cast, and the logits back.

        Args:
            dtype: "float32" for the network as it is, "bfloat16" or "float16".

        Returns:
            The trainable; its parameters and state stay what they are, in float32.
        """
        return self if dtype == "float32" else _Computing(self, dtype)


@pytree()
class _Nnx(Trainable):
    training: _nnx.Structure
    evaluation: _nnx.Structure

    @property
    def kind(self) -> type:
        return self.evaluation.kind

    def train(self, params: Any, state: Any, images: Images, key: Key, axis_name: str | None = None) -> tuple[Any, Any]:
        network = self.training.network(key, params, state)
        if axis_name is not None:
            for _, node in nnx.iter_graph(network):
                if isinstance(node, nnx.BatchNorm):
                    node.axis_name = axis_name
        logits = network(images)
        return logits, _nnx.numbers(network)[1]

    def classifier(self, params: Any, state: Any) -> Classifier:
        return _nnx.classifier(self.evaluation, params, state)

    def merge(self, params: Any, state: Any) -> nnx.Module:
        return self.evaluation.network(jax.random.key(0), params, state)


@pytree()
class _Linen(Trainable):
    module: linen.Module
    training: tuple[tuple[str, Any], ...]
    evaluation: tuple[tuple[str, Any], ...]
    streams: tuple[str, ...]

    @property
    def kind(self) -> type:
        return type(self.module)

    def train(self, params: Any, state: Any, images: Images, key: Key, axis_name: str | None = None) -> tuple[Any, Any]:
        def across_devices(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, linen.BatchNorm):
                # a copy that this call made of the user's, and frozen as all Linen modules are
                object.__setattr__(context.module, "axis_name", axis_name)
            return call(*args, **kwargs)

        rngs = {name: jax.random.fold_in(key, index) for index, name in enumerate(self.streams)}
        forward = functools.partial(self.module.apply, rngs=rngs, mutable=list(state), **dict(self.training))
        with linen.intercept_methods(across_devices):
            logits, changed = forward({"params": params, **state}, images)
        # what is sown is appended to what was there before, and would grow with every step
        found = dict(jax.tree_util.tree_leaves_with_path({**state, **changed}))
        return logits, jax.tree_util.tree_map_with_path(lambda path, before: found.get(path, before), state)

    def classifier(self, params: Any, state: Any) -> Classifier:
        return from_linen(self.module, self.merge(params, state), **dict(self.evaluation))

    def merge(self, params: Any, state: Any) -> dict[str, Any]:
        return {"params": params, **state}


@pytree()
class _Functions(Trainable):
    apply: Callable[..., Any]
    evaluate: Callable[..., Any] | None

    @property
    def kind(self) -> Callable[..., Any]:
        return self.apply

    def train(self, params: Any, state: Any, images: Images, key: Key, axis_name: str | None = None) -> tuple[Any, Any]:
        if self.evaluate is None:
            return self.apply(params, images), state
        logits, after = self.apply(params, state, images, key)
        there, here = _layout(state), _layout(after)
        if there != here:
            raise ValueError(f"apply must return a state of the structure it was given, {there}; got {here}")
        return logits, after

    def classifier(self, params: Any, state: Any) -> Classifier:
        if self.evaluate is None:
            return Classifier(self.apply, params)
        return Classifier(_Evaluate(self.evaluate), (params, state))


def _layout(state: Any) -> str:
    """Structure, dtypes and shapes; floats of all precisions are alike, since `_Computing` casts them back."""
    kinds = [jax.typeof(leaf) for leaf in jax.tree.leaves(state)]
    told = [f"{'float' if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype}{list(x.shape)}" for x in kinds]
    return f"{jax.tree.structure(state)} of {', '.join(told)}"


@pytree()
class _Evaluate:
    function: Callable[..., Any]

    def __call__(self, numbers: Any, images: Any) -> Any:
        return self.function(*numbers, images)


@pytree()
class _Computing(Trainable):
    network: Trainable
    dtype: str

    @property
    def kind(self) -> Any:
        return self.network.kind

    def train(self, params: Any, state: Any, images: Images, key: Key, axis_name: str | None = None) -> tuple[Any, Any]:
        params, cast = _as(self.dtype, (params, images))
        with jax.numpy_dtype_promotion("standard"):  # running averages are in float32
            logits, after = self.network.train(params, state, cast, key, axis_name)
        like = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)
        return logits.astype(images.dtype), like

    def classifier(self, params: Any, state: Any) -> Classifier:
        # cast here, before the loop of an attack, and not in its every step
        model = self.network.classifier(_as(self.dtype, params), state)
        maps = None if model.activations is None else _Cast(model.activations, self.dtype)
        return Classifier(_Cast(model.apply, self.dtype), model.params, maps)

    def merge(self, params: Any, state: Any) -> Any:
        return self.network.merge(params, state)


@pytree()
class _Cast:
    function: Callable[..., Any]
    dtype: str

    def joined(self, activations: Any) -> _Cast | None:
        found = getattr(self.function, "joined", lambda activations: None)(getattr(activations, "function", None))
        return None if found is None else _Cast(found, self.dtype)

    def __call__(self, params: Any, images: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            found = self.function(params, images.astype(self.dtype))
        return _as(images.dtype, found)


def _as(dtype: Any, tree: Any) -> Any:
    """The floating leaves of a tree in another precision."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
