"""One step on several devices: the same function of a shard, mapped by `jax.shard_map` or by `jax.pmap`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust import _checks, _compile, _store
from jaxrobust.training.step import train_step

__all__ = [
    "MAPPINGS",
    "Placement",
    "chosen_devices",
    "everywhere",
    "fine_in_each",
    "mesh_of",
    "numbered_step",
    "placement",
]

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
    accumulate: int,
    axis_name: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """`train_step` with the run's key, from which the step's own comes."""
    # all steps on one batch see one augmentation of it
    key = jax.random.fold_in(key, state.step // getattr(objective, "replays", 1))
    return train_step(
        objective,
        trainable,
        optimizer,
        state,
        batch,
        key,
        axis_name=axis_name,
        augment=augment,
        ema_decay=ema_decay,
        accumulate=accumulate,
    )


def fine_in_each(fine: bool) -> np.ndarray:
    """What each process says of itself, in their order, known to all."""
    return np.asarray(multihost_utils.process_allgather(np.array(fine)) if jax.process_count() > 1 else [fine])


def placement(
    devices: int | list[Any] | None, mapping: str, *, batch_size: int, accumulate: int = 1
) -> Placement | None:
    """How a step is mapped over devices; None where there is but one.

    Args:
        devices: how many of each process's devices, or which of all; None for all, but one of a single process's CPU.
        mapping: the function of JAX that maps.
        batch_size: must be divisible by their number times `accumulate`.
        accumulate: parts of a device's rows.

    Returns:
        The mapping.

    Raises:
        ValueError: more devices than there are, or a batch that they cannot share.
    """
    _checks.choice("mapping", mapping, MAPPINGS)
    chosen = chosen_devices(devices, processes=jax.process_count())
    if batch_size % (len(chosen) * accumulate):
        parts = f" times accumulate, {accumulate}" if accumulate > 1 else ""
        raise ValueError(f"batch_size must be divisible by the {len(chosen)} devices{parts}; got {batch_size}")
    # where a step runs by itself
    if chosen == jax.local_devices()[:1] and mapping == "shard_map":
        return None
    return Placement(tuple(chosen), mapping)


def chosen_devices(devices: int | list[Any] | None, *, processes: int = 1) -> list[Any]:
    """The devices that a count, of each process's own, or a list of them means.

    Args:
        devices: None for all, but one of a single process's CPU.
        processes: whose devices; with 1 this one's alone.

    Returns:
        The devices.

    Raises:
        ValueError: more than there are, or a list of something else.
    """
    local = jax.local_devices()
    if isinstance(devices, (list, tuple)):
        known = jax.local_devices() if processes == 1 else jax.devices()
        if not devices or any(device not in known for device in devices) or len(set(devices)) < len(devices):
            raise ValueError(f"devices must be a count or different devices of jax.devices(); got {devices!r}")
        return list(devices)
    if devices is None:
        devices = 1 if local[0].platform == "cpu" and processes == 1 else len(local)
    count = _checks.count("devices", devices)
    if count > len(local):
        raise ValueError(f"devices must be at most {len(local)}, the local devices; got {count}")
    if processes == 1:
        return local[:count]
    owned = [[device for device in jax.devices() if device.process_index == i] for i in range(processes)]
    return [device for own in owned for device in own[:count]]


def mesh_of(devices: Sequence[Any], axis: str) -> Mesh:
    """Devices in a row."""
    return Mesh(np.asarray(devices), (axis,), axis_types=(AxisType.Auto,))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Arrays onto all devices of a mesh, equal on each."""
    # other processes' devices are reached from the host alone
    return jax.device_put(tree if jax.process_count() == 1 else jax.device_get(tree), NamedSharding(mesh, P()))


class Placement:
    """Where a training state lies and how its step runs.

    Args:
        devices: the devices, of all processes; each process gives those of its own their rows.
        mapping: "shard_map" or "pmap".
    """

    def __init__(self, devices: tuple[Any, ...], mapping: str) -> None:
        self.mapping = mapping
        self.mesh = mesh_of(devices, AXIS)
        self.rows = NamedSharding(self.mesh, P(AXIS))
        self.here = sum(device.process_index == jax.process_index() for device in devices)

    def place(self, state: Any) -> Any:
        """A state onto all devices, equal on each."""
        if self.mapping == "pmap":
            return jax.tree.map(lambda leaf: self._stacked(leaf), state)
        return everywhere(state, self.mesh)

    def gathered(self, state: Any) -> Any:
        """The state as the process's first device has it, until the placed state is given to the next step."""
        return jax.tree.map(self._own, state)

    def step(
        self,
        objective: Any,
        trainable: Any,
        optimizer: Any,
        state: Any,
        batch: Any,
        key: Any,
        decay: Any,
        augment: Any,
        accumulate: int,
    ) -> tuple[Any, dict[str, Any]]:
        """One step on a placed state and this process's rows of a batch; metrics are of one device, all being equal."""
        program = _program(self.mapping, self.mesh, optimizer, augment, accumulate)
        if self.mapping == "pmap":
            batch = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(self.here, -1, *np.shape(leaf)[1:]), batch)
        batch = jax.tree.map(self._shared, batch)
        state, metrics = program(objective, trainable, state, batch, key, decay)
        return state, jax.tree.map(self._own, metrics)

    def _shared(self, rows: Any) -> Any:
        return jax.make_array_from_process_local_data(self.rows, np.asarray(rows))

    def _stacked(self, leaf: Any) -> Any:
        # NumPy has no random keys, only their data
        stacked = self._shared(np.stack([_store.raw(leaf)] * self.here))
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return stacked
        return jax.random.wrap_key_data(stacked, impl=jax.random.key_impl(leaf))

    def _own(self, leaf: Any) -> Any:
        own = leaf.addressable_data(0)
        return own[0] if self.mapping == "pmap" else own


@functools.lru_cache(maxsize=16)
def _program(mapping: str, mesh: Mesh, optimizer: Any, augment: Any, accumulate: int) -> Any:
    def shard(objective: Any, trainable: Any, state: Any, batch: Any, key: Any, decay: Any) -> Any:
        return numbered_step(objective, trainable, optimizer, state, batch, key, decay, augment, accumulate, AXIS)

    if mapping == "pmap":
        axes, devices = (None, None, 0, 0, None, None), tuple(mesh.devices)
        return jax.pmap(shard, axis_name=AXIS, in_axes=axes, devices=devices, donate_argnums=(2,))
    specs = (P(), P(), P(), P(AXIS), P(), P())
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return _compile.jit(mapped, donate_argnums=(2,))
