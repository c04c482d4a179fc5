"""What the lanes run on devices: the compiled programs, and forward passes over many images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrobust import _checks, _compile
from jaxrobust.attacks import Attack, Best, engine
from jaxrobust.evaluate.host import HostModel
from jaxrobust.types import Classifier, Criterion, Key

# the fields of `Best` but its parameters, each with one entry an example
Books = dict[str, Any]


class Programs(NamedTuple):
    """The compiled programs of the lanes, shared by all runs of one layout over devices."""

    fresh: Callable[..., Any]
    fill: Callable[..., Any]
    refill: Callable[..., Any]
    ask: Callable[..., Any]
    step: Callable[..., Any]
    harvest: Callable[..., Any]


@functools.lru_cache(maxsize=16)
def programs(lanes: NamedSharding) -> Programs:
    """The programs of lanes that are split over devices in this way."""
    everywhere = NamedSharding(lanes.mesh, PartitionSpec())
    # straight to JAX: the host calls these at every step, and never inside another program
    jit = functools.partial(jax.jit, compiler_options=_compile.compiler_options(lanes.mesh.devices.flat[0].platform))

    @functools.partial(jit, out_shardings=everywhere)
    def fresh(attack: Attack, images: Any, goal: Criterion, key: Key, indices: Any, restarts: Any, logits: Any) -> Any:
        return engine.begin(attack, images, goal, engine.example_keys(key, indices), logits, restarts)

    @functools.partial(jit, out_shardings=lanes)
    def fill(rows: Any, new: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[rows], new)

    @functools.partial(jit, out_shardings=lanes, donate_argnames="states")
    def refill(states: Any, slots: Any, new: Any) -> Any:
        return jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), states, new)

    @functools.partial(jit, out_shardings=everywhere)
    def ask(attack: Attack, states: Any) -> tuple[Any, Any]:
        return jax.vmap(attack.ask)(states), jax.vmap(attack.meant)(states)

    @functools.partial(
        jit, out_shardings=(lanes, everywhere), donate_argnames="states", static_argnames=("stop", "gradient")
    )
    def step(attack: Attack, model: Classifier, states: Any, *, stop: engine.Stop, gradient: bool) -> tuple[Any, Any]:
        states = engine.advance(attack, model, states, stop=stop, gradient=gradient)
        return states, jax.vmap(lambda state: engine.is_finished(attack, state, stop))(states)

    @functools.partial(jit, out_shardings=everywhere, static_argnames="stop")
    def harvest(attack: Attack, states: Any, slots: Any, known: Books | None, *, stop: engine.Stop) -> Books:
        best = jax.vmap(attack.best)(jax.tree.map(lambda leaf: leaf[slots], states))
        best = Best(**{**vars(best), "parameters": None})
        if known is not None:
            best = engine.merge(Best(**known), best, stop=stop)
        return {name: values for name, values in vars(best).items() if values is not None}

    return Programs(fresh, fill, refill, ask, step, harvest)


def known(logits: Any) -> Classifier:
    """A model that has answered already: a step with it only tells the logits (N, K)."""
    return Classifier(_answers, logits)


def _answers(logits: Any, images: Any) -> Any:
    return logits


@_compile.jit
def met(goal: Criterion, logits: Any) -> Any:
    """Which of N examples meet their criterion, from logits (N, K)."""
    return jax.vmap(lambda goal, logits: goal.met(logits))(goal, logits)


def replicated(devices: Sequence[Any] | None) -> NamedSharding:
    """The layout of what every device of the lanes needs whole.

    Args:
        devices: the devices, at least one; None takes all local ones.

    Returns:
        The sharding, over a mesh of one axis.

    Raises:
        ValueError: no devices.
    """
    devices = tuple(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices must hold at least one device; got none")
    mesh = jax.make_mesh((len(devices),), ("lanes",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec())


@_checks.off_mesh
def predict(model: Classifier | HostModel, images: Any, *, batch_size: int = 128) -> np.ndarray:
    """Logits of many images, batch by batch, the last one padded to the same shape.

    Args:
        model: the classifier, or a host model, to which nothing is padded.
        images: (N, H, W, C) in [0, 1].
        batch_size: images a forward pass, ≥ 1.

    Returns:
        (N, K) logits, NumPy.

    Raises:
        TypeError: images that are not floating point.
        ValueError: images of another rank, none at all, or batch_size below 1.
    """
    _checks.image_shape(images)
    _checks.count("batch_size", batch_size)
    if not isinstance(model, HostModel):
        _checks.classifier(model)
    pieces = []
    for start in range(0, len(images), batch_size):
        piece = np.asarray(images[start : start + batch_size])
        if isinstance(model, HostModel):
            pieces.append(model(piece))
            continue
        pieces.append(np.asarray(_checks.forward(model, pad(piece, batch_size)))[: len(piece)])
    return np.concatenate(pieces)


def pad(rows: np.ndarray, size: int, fill: int | None = None) -> np.ndarray:
    """Rows repeated (the first one), or filled, up to a fixed size."""
    if len(rows) == size:
        return rows
    tail = np.broadcast_to(
        rows[:1] if fill is None else np.full_like(rows[:1], fill), (size - len(rows), *rows.shape[1:])
    )
    return np.concatenate([rows, tail])
