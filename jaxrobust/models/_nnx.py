"""A Flax NNX network taken apart: its structure in training or evaluation mode, and its numbers as nested dicts."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrobust.models import _names
from jaxrobust.types import Classifier, Key

BOTH = "with_activations"

__all__ = ["Structure", "apart", "classifier", "numbers"]


def apart(network: Any) -> tuple[Structure, Structure, Any, Any]:
    """The structure in training and in evaluation mode, the parameters and the state; the network is left as it is.

    Args:
        network: an `nnx.Module` that maps images to logits.

    Returns:
        The two structures, and copies of the parameters (`nnx.Param`) and of every other number as nested dicts.

    Raises:
        TypeError: if `network` is not a callable `nnx.Module`.
    """
    if not isinstance(network, nnx.Module) or not callable(network):
        advice = " (from_linen takes it)" if isinstance(network, linen.Module) else ""
        raise TypeError(
            f"network must be an nnx.Module with a __call__ (an instance); got {_names.kind(network)}{advice}"
        )
    training, evaluation = _structure(network, evaluate=False), _structure(network, evaluate=True)
    # A trainer may donate its buffers, and then the network's own must not be among them, nor the other way.
    params, state = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, numbers(network))
    return training, evaluation, params, state


def classifier(evaluation: Structure, params: Any, state: Any) -> Classifier:
    """The network in evaluation mode."""
    together = unflatten_dict(flatten_dict(params) | flatten_dict(state))
    maps = Forward(evaluation, "activations") if _names.has_activations(evaluation.kind) else None
    return Classifier(Forward(evaluation), together, maps)


@dataclasses.dataclass(frozen=True)
class Structure:
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
class Forward:
    """The evaluation-mode forward pass of an NNX network as a function of its numbers."""

    structure: Structure
    method: str = "__call__"

    def joined(self, activations: Any) -> Forward | None:
        """The pass that gives logits and activations, if those are of the same network."""
        same = isinstance(activations, Forward) and activations.structure == self.structure
        return Forward(self.structure, BOTH) if same else None

    def __repr__(self) -> str:
        return _names.called(self.structure.kind, self.method)

    def __call__(self, params: Any, images: Any) -> Any:
        network = self.structure.network(jax.random.key(0), params)
        for _, node in nnx.iter_graph(network):
            if isinstance(node, nnx.bridge.ToNNX):
                # it draws a key of every stream for the Linen module, which need not want any, and says so if it does
                node.to_nnx__rngs = None
            elif isinstance(node, nnx.RngStream):
                node.__class__ = _Silent
        try:
            return _both(network, images) if self.method == BOTH else getattr(network, self.method)(images)
        except errors.InvalidRngError as error:
            raise ValueError(_NOT_SILENT) from error


def _both(network: Any, images: Any) -> tuple[Any, Any]:
    """Logits and activations; of a network that computes the former from the latter, in one pass."""
    found: list[Any] = []
    own = network.activations

    def listening(given: Any) -> Any:
        maps = own(given)
        if given is images and not found:
            found.append(maps)
        return maps

    vars(network)["activations"] = listening
    logits = network(images)
    return logits, found[0] if found else own(images)


class _Silent(nnx.RngStream):
    """A random stream of which nothing may be drawn: with the same key every time, noise would look deterministic."""

    def __call__(self) -> Any:
        raise ValueError(_NOT_SILENT)


def _structure(network: nnx.Module, *, evaluate: bool) -> Structure:
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
    return Structure(type(network), graphdef, streams)


def numbers(network: nnx.Module) -> tuple[Any, Any]:
    # What a call sows is dropped, so that the state keeps its structure from step to step.
    _, params, _, state = nnx.split(network, nnx.Param, (nnx.RngState, nnx.Intermediate), ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(state)
