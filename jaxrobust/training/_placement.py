"""One step on several devices: the same function of a shard, mapped by `jax.shard_map` or by `jax.pmap`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust import _checks, _compile
from jaxrobust.training.step import train_step

__all__ = ["MAPPINGS", "Placement", "chosen_devices", "numbered_step", "placement"]

MAPPINGS = ("shard_map", "pmap")
AXIS = "data"


def numbered_step(
    objective: Any,
    trainable: Any,
    optimizer: Any,
    state: Any,
    batch: Any,
    key: Any,
    ema_decay: Any,
    augment: Any,
    axis_name: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """`train_step` with the run's key, from which the step's own comes."""
    # all steps on one batch see one augmentation of it
    key = jax.random.fold_in(key, state.step // getattr(objective, "replays", 1))
    options = {"axis_name": axis_name, "augment": augment, "ema_decay": ema_decay}
    return train_step(objective, trainable, optimizer, state, batch, key, **options)


def placement(devices: int | list[Any] | None, mapping: str, batch_size: int) -> Placement | None:
    """How a step is mapped over devices; None where there is but one.

    Args:
        devices: how many of the local devices, or which; None for all of an accelerator's and one of a CPU's.
        mapping: the function of JAX that maps.
        batch_size: must be divisible by their number.

    Returns:
        The mapping.

    Raises:
        ValueError: more devices than there are, or a batch that they cannot share.
    """
    _checks.choice("mapping", mapping, MAPPINGS)
    chosen = chosen_devices(devices)
    if batch_size % len(chosen):
        raise ValueError(f"batch_size must be divisible by the {len(chosen)} devices; got {batch_size}")
    if len(chosen) == 1 and mapping == "shard_map":
        return None
    return Placement(tuple(chosen), mapping)


def chosen_devices(devices: int | list[Any] | None) -> list[Any]:
    """The devices that a count or a list of them means; None: all of an accelerator's and one of a CPU's."""
    local = jax.local_devices()
    if devices is None:
        devices = 1 if local[0].platform == "cpu" else len(local)
    if isinstance(devices, list):
        return devices
    count = _checks.count("devices", devices)
    if count > len(local):
        raise ValueError(f"devices must be at most {len(local)}, the local devices; got {count}")
    return local[:count]


class Placement:
    """Where a training state lies and how its step runs.

    Args:
        devices: the devices.
        mapping: "shard_map" or "pmap".
    """

    def __init__(self, devices: tuple[Any, ...], mapping: str) -> None:
        self.devices, self.mapping = devices, mapping
        self.mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))

    def place(self, state: Any) -> Any:
        """A state onto all devices, equal on each."""
        if self.mapping == "pmap":
            state = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(self.devices)), state)
            return jax.device_put(state, NamedSharding(self.mesh, P(AXIS)))
        return jax.device_put(state, NamedSharding(self.mesh, P()))

    def gathered(self, state: Any) -> Any:
        """The state as one device has it."""
        if self.mapping == "pmap":
            state = jax.tree.map(lambda leaf: leaf[0], state)
        # a copy, since the next step is given the placed state's own buffers
        return jax.tree.map(jnp.copy, jax.device_put(state, self.devices[0]))

    def step(
        self, objective: Any, trainable: Any, optimizer: Any, state: Any, batch: Any, key: Any, decay: Any, augment: Any
    ) -> tuple[Any, dict[str, Any]]:
        """One step on a placed state and a batch of all devices; metrics are of one device, all being equal."""
        program = _program(self.mapping, self.mesh, optimizer, augment)
        if self.mapping == "shard_map":
            rows = NamedSharding(self.mesh, P(AXIS))
            batch = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), rows), batch)
            return program(objective, trainable, state, batch, key, decay)
        count = len(self.devices)
        batch = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(count, -1, *np.shape(leaf)[1:]), batch)
        state, metrics = program(objective, trainable, state, batch, key, decay)
        return state, jax.tree.map(lambda leaf: leaf[0], metrics)


@functools.lru_cache(maxsize=16)
def _program(mapping: str, mesh: Mesh, optimizer: Any, augment: Any) -> Any:
    def shard(objective: Any, trainable: Any, state: Any, batch: Any, key: Any, decay: Any) -> Any:
        return numbered_step(objective, trainable, optimizer, state, batch, key, decay, augment, axis_name=AXIS)

    if mapping == "pmap":
        axes, devices = (None, None, 0, 0, None, None), tuple(mesh.devices)
        return jax.pmap(shard, axis_name=AXIS, in_axes=axes, devices=devices, donate_argnums=(2,))
    specs = (P(), P(), P(), P(AXIS), P(), P())
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return _compile.jit(mapped, donate_argnums=(2,))
