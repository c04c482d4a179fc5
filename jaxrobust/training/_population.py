"""Who is trained by `fit_many`: each member's examples, labels, numbers and keys; and the program of a chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrobust import _checks, _compile, _inputs
from jaxrobust.data import Batch, Dataset, Loader
from jaxrobust.models.trainable import Trainable
from jaxrobust.training import _held_out
from jaxrobust.training._job import apart, check_augment, check_examples, check_fit, is_objective
from jaxrobust.training._placement import chosen_devices, mesh_of, numbered_step
from jaxrobust.training.config import TrainConfig, transformation
from jaxrobust.training.objectives.core import inner_attacks, warmed_up
from jaxrobust.training.step import Augment, TrainState, first_memory
from jaxrobust.types import Classifier, Key

__all__ = ["Plan", "Population", "assemble", "in_lanes", "is_made"]

AXIS = "members"
WIDEST = {"cpu": 16}  # members of one program; by platform
WIDEST_ELSEWHERE = 64
# operations of a program's step, beyond which a wider one gains nothing: there a member alone keeps the device busy
ENOUGH = {"cpu": 4e7}
ENOUGH_ELSEWHERE = 2e10
BLOCK = 1024  # steps of a schedule that are computed together


Lanes = Sequence[int]  # the members of a chunk


class Plan(NamedTuple):
    """What the members of a chunk do in one step, or in those of an epoch with one axis more in front.

    Args:
        rows: (L, B) int32, places in the data set.
        index: (L, B) int32, the same as places in the member's own subset.
        mask: (L, B) bool, False for padding; all False for a member that has finished its epoch.
        rate: (L,) float32, the learning rate.
        share: (L,) float32, of the radius, while it warms up.
    """

    rows: Any
    index: Any
    mask: Any
    rate: Any
    share: Any


class Population(NamedTuple):
    """All of a run that does not change."""

    data: Dataset
    network: Any
    trainable: Trainable
    objectives: list[Any]  # one, of all members, or one a member
    config: TrainConfig
    augment: Augment | None
    subsets: list[np.ndarray]  # of each member the places of its examples
    labels: np.ndarray | None  # (M, N)
    keys: Key  # (M,)
    seeds: list[int]  # of the orders
    step_keys: np.ndarray  # (M, ...), their data
    replays: int
    width: int  # members of one program
    devices: list[Any]

    def __len__(self) -> int:
        return len(self.subsets)

    @property
    def lanes(self) -> int:
        """Members that are trained at a time."""
        return self.width * len(self.devices)

    def steps(self, member: int) -> int:
        """Steps of an epoch of a member."""
        return len(self._loader(member)) * self.replays

    def _loader(self, member: int) -> Loader:
        """The batches that `fit` would make of the member's subset, as places in it."""
        places, config = range(len(self.subsets[member])), self.config
        return Loader(places, config.batch_size, seed=self.seeds[member], drop_last=config.drop_last)

    def plan(self, members: Lanes, epoch: int) -> Plan:
        """An epoch of some members, which lasts as long as the longest of theirs.

        Args:
            members: one a lane.
            epoch: from 0.

        Returns:
            The plan, with steps in front.
        """
        size, length = self.config.batch_size, max(self.steps(member) for member in members)
        shape = (length, len(members))
        rows, index = np.zeros((2, *shape, size), np.int32)
        mask, rate, share = np.zeros((*shape, size), bool), np.zeros(shape, np.float32), np.ones(shape, np.float32)
        for lane, member in enumerate(members):
            loader, subset, steps = self._loader(member), self.subsets[member], self.steps(member)
            places = np.arange(len(loader) * size)
            order = loader.order(epoch)[places % len(subset)]
            for part, values in ((index, order), (rows, subset[order]), (mask, places < len(subset))):
                part[:steps, lane] = np.repeat(values.reshape(-1, size), self.replays, 0)
            done = epoch * steps
            rate[:steps, lane] = _rates(self.config.rates(self.config.epochs * steps), done, steps)
            warm = np.float32(self.config.radius_warmup * steps)
            if warm:
                share[:steps, lane] = np.minimum(np.arange(done + 1, done + steps + 1, dtype=np.float32) / warm, 1)
        return Plan(rows, index, mask, rate, share)

    def start(self, members: Lanes) -> TrainState:
        """The state of some members before their first step."""
        if is_made(self.network):
            numbers = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(members)), _numbers(self.network))
        else:
            numbers = stacked([_born(self.network)(self.keys[member]) for member in members])
        objective, axis = self._objective(members)
        first = _first(self.trainable, self.config.transformation(1), axis, self.config.ema_decay is not None)
        return self.placed(first(objective, *numbers, np.zeros((self.config.batch_size, *self.data.shape), np.float32)))

    def _objective(self, members: Lanes) -> tuple[Any, int | None]:
        """The objective of some members, and its axis for them."""
        if len(self.objectives) == 1:
            return self.objectives[0], None
        return stacked([self.objectives[member] for member in members]), 0

    def placed(self, tree: Any, *, shared: bool = False) -> Any:
        """Arrays on the devices: one part of the members each, or all of it on each."""
        if len(self.devices) == 1:
            return jax.device_put(tree, self.devices[0])
        return jax.device_put(tree, NamedSharding(mesh_of(self.devices, AXIS), P() if shared else P(AXIS)))

    def step(self, members: Lanes) -> Callable[[TrainState, Plan], tuple[TrainState, dict[str, Any]]]:
        """The compiled step of some members, as a function of their state and plan."""
        config = self.config
        objective, axis = self._objective(members)
        labels = self.data.labels if self.labels is None else self.labels[np.asarray(members)]
        axes = (axis, None, None if self.labels is None else 0, 0, None, 0, 0)
        told = (
            config.optimizer,
            float(config.weight_decay),
            config.clip_value,
            config.decayed,
            self.augment,
            config.accumulate,
            config.radius_warmup > 0,
            self.lanes > 1,
        )
        trainable = self.trainable.computing(config.compute_dtype)
        program = _program(trainable, told, axes, self.width, tuple(self.devices) if len(self.devices) > 1 else ())
        fixed = (
            self.placed(objective, shared=axis is None),
            self.placed(self.data.raw, shared=True),
            self.placed(labels, shared=self.labels is None),
            self.placed(
                jax.random.wrap_key_data(self.step_keys[np.asarray(members)], impl=jax.random.key_impl(self.keys))
            ),
            np.float32(config.ema_decay or 0.0),
        )
        return lambda state, plan: program(*fixed, state, plan if len(self.devices) == 1 else self.placed(plan))


def is_made(network: Any) -> bool:
    """Whether it is a network itself, and not a function that makes one."""
    return isinstance(network, nnx.Module) or (isinstance(network, tuple) and not callable(network))


def stacked(trees: Sequence[Any]) -> Any:
    """Equal trees as one, with an axis more in front."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def in_lanes(function: Callable[..., Any], axes: tuple[int | None, ...], width: int) -> Callable[..., Any]:
    """`jax.vmap`; but of one lane the function itself, since XLA:CPU has no fast convolution of mapped kernels."""
    if width > 1:
        return jax.vmap(function, axes)

    def alone(*args: Any) -> Any:
        first = [a if axis is None else jax.tree.map(lambda x: x[0], a) for a, axis in zip(args, axes, strict=True)]
        return jax.tree.map(lambda leaf: leaf[None], function(*first))

    return alone


@functools.lru_cache(maxsize=16)
def _first(trainable: Trainable, optimizer: Any, axis: int | None, with_ema: bool) -> Any:
    """States before the first step. That of the optimiser does not depend on its rate."""

    def one(objective: Any, params: Any, state: Any, images: Any) -> TrainState:
        count = len(images)
        batch = Batch(images, jnp.zeros(count, jnp.int32), jnp.ones(count, bool), jnp.zeros(count, jnp.int32))
        memory = first_memory(objective, trainable, params, state, batch)
        return TrainState.create(params, state, optimizer, with_ema=with_ema, memory=memory)

    return jax.jit(jax.vmap(one, (axis, 0, 0, None)))


@functools.lru_cache(maxsize=16)
def _program(trainable: Trainable, told: Any, axes: Any, width: int, devices: tuple[Any, ...]) -> Any:
    optimizer, weight_decay, clip, decayed, augment, accumulate, warms_up, waits = told

    def one(
        objective: Any, images: Any, labels: Any, key: Key, decay: Any, state: TrainState, plan: Plan
    ) -> tuple[TrainState, dict[str, Any]]:
        objective = warmed_up(objective, plan.share) if warms_up else objective
        batch = Batch(images[plan.rows], labels[plan.rows], plan.mask, plan.index)
        own = transformation(optimizer, lambda count: plan.rate, weight_decay, clip, decayed)
        new, metrics = numbered_step(objective, trainable, own, state, batch, key, decay, augment, accumulate)
        if not waits:  # for no other member
            return new, metrics
        trains = plan.mask.any()
        return jax.tree.map(lambda after, before: jnp.where(trains, after, before), new, state), metrics

    mapped = in_lanes(one, axes, width)
    if devices:
        specs = tuple(P() if axis is None else P(AXIS) for axis in axes)
        mapped = jax.shard_map(mapped, mesh=mesh_of(devices, AXIS), in_specs=specs, out_specs=P(AXIS), check_vma=False)
    return _compile.jit(mapped, donate_argnums=(5,))


def _rates(rates: Any, start: int, count: int) -> np.ndarray:
    """Learning rates of some steps. Each is computed in a block of fixed place and size, whatever others are asked."""
    first = start // BLOCK
    blocks = [_block(rates, number) for number in range(first, (start + count - 1) // BLOCK + 1)]
    return np.concatenate(blocks)[start - first * BLOCK :][:count]


@functools.lru_cache(maxsize=256)
def _block(rates: Any, number: int) -> np.ndarray:
    steps = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int32)
    return np.asarray(jax.jit(jax.vmap(lambda step: jnp.asarray(rates(step), jnp.float32)))(steps))


def _numbers(network: Any) -> tuple[Any, Any]:
    return apart(network)[1:]


@functools.lru_cache(maxsize=16)
def _born(make: Callable[[Key], nnx.Module]) -> Callable[[Key], tuple[Any, Any]]:
    """Parameters and state of a member's network, from the member's key."""
    return jax.jit(lambda key: _numbers(make(jax.random.fold_in(key, BIRTH))))


BIRTH = 4  # folded into a member's key; the four keys of a run are split from it


def assemble(
    network: Any,
    train_data: Any,
    objective: Any,
    key: Any,
    config: TrainConfig,
    augment: Augment | None,
    *,
    members: int | None,
    subsets: Any,
    labels: Any,
    chunk: int | None,
    devices: int | list[Any] | None,
) -> Population:
    """Check everything before any compute, and say who is trained on what."""
    objectives = list(objective) if isinstance(objective, (list, tuple)) else [objective]
    _check_objectives(objectives)
    check_augment(augment)
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig; got {type(config).__name__}")
    if config.validation or config.stop_on_overfitting:
        raise ValueError(
            "config must have validation=0 and no stop_on_overfitting: members train to the end, no epoch is chosen; "
            f"got validation={config.validation}, stop_on_overfitting={config.stop_on_overfitting}"
        )
    for name, static in (("augment", augment), ("network", network)):
        try:
            hash(None if is_made(static) else static)
        except TypeError as error:
            raise TypeError(f"{name} must be hashable, because the compiled program is kept by it: {error}") from None
    data = _held_out.as_dataset("train_data", train_data)
    if not isinstance(data, Dataset):
        raise TypeError("train_data must be in memory: load(..., in_memory=True); got a LazyDataset")
    each = _several_keys(key)
    if labels is not None:
        labels = _inputs.as_array("labels", labels)
        if labels.ndim != 2 or labels.shape[1] != len(data) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers (M, {len(data)}); got {labels.dtype}{list(labels.shape)}")
    for one in objectives:
        check_examples(one, len(data))
        if subsets is not None and getattr(one, "examples", None) is not None:
            raise ValueError(
                f"objective: {type(one).__name__} speaks of examples by their place in the data, so subsets must be "
                f"None, since members know theirs by place in their own subset; got {_checks.told(subsets)}"
            )
    chosen = None if subsets is None else _positions(subsets, len(data))
    count = _agreed(
        members=members,
        subsets=None if chosen is None else len(chosen),
        labels=None if labels is None else len(labels),
        key=None if each is None else len(each),
        objective=len(objectives) if isinstance(objective, (list, tuple)) else None,
    )
    # by folding, so that a member's key does not depend on how many there are
    keys = each if each is not None else _folded(key, count)
    chosen = [np.arange(len(data))] * count if chosen is None else chosen
    for member, places in enumerate(chosen):
        if len(places) < (config.batch_size if config.drop_last else 1):
            raise ValueError(
                f"subsets: member {member} must have at least batch_size={config.batch_size} examples (drop_last "
                f"leaves out incomplete batches); got {len(places)}"
            )
    sample = network if is_made(network) else _sample(network, keys[0])
    trainable, params, state = apart(sample)
    classifier = trainable.classifier(params, state)
    check_fit(classifier, data, None)
    if labels is not None:
        classes = _inputs.logits_shape(classifier, jax.ShapeDtypeStruct((2, *data.shape), jnp.float32))
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"labels must lie in [0, {classes}), the network's classes; got {labels.min()}..{labels.max()}"
            )
        labels = labels.astype(np.int32)
    if config.batch_size % config.accumulate:
        raise ValueError(f"batch_size must be divisible by accumulate, {config.accumulate}; got {config.batch_size}")
    devices = chosen_devices(devices)
    seeds, step_keys = jax.device_get(_split(keys))
    return Population(
        data=data,
        network=network,
        trainable=trainable,
        objectives=objectives,
        config=config,
        augment=augment,
        subsets=chosen,
        labels=labels,
        keys=keys,
        seeds=seeds.tolist(),
        step_keys=step_keys,
        replays=getattr(objectives[0], "replays", 1),
        width=_width(classifier, data, objectives[0], config, devices[0].platform)
        if chunk is None
        else _checks.count("chunk", chunk),
        devices=devices,
    )


@functools.partial(jax.jit, static_argnums=1)
def _folded(key: Key, count: int) -> Key:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


@jax.jit
def _split(keys: Key) -> tuple[Any, Any]:
    """The seeds of the members' orders and the data of the keys of their steps, split off as `fit` does."""
    split = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    bits = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(split[:, 0])
    return bits, jax.random.key_data(split[:, 2])


def _sample(network: Any, key: Key) -> Any:
    """The network of one key, from which its structure is known."""
    if isinstance(network, type) or not callable(network):
        raise TypeError(
            "network must be what fit takes, such as an nnx.Module, or a function of a key that makes it; "
            f"got {network!r}"
        )
    return network(jax.random.fold_in(key, BIRTH))


def _check_objectives(objectives: list[Any]) -> None:
    for objective in objectives or [None]:
        if not is_objective(objective):
            raise TypeError(
                f"objective must be an Objective such as adversarial(attack), or M of them; got {objective!r}"
            )
    shapes = [(jax.tree.structure(one), [np.shape(leaf) for leaf in jax.tree.leaves(one)]) for one in objectives]
    for member, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                "objective: those of all members must have one structure and differ in numbers alone; got "
                f"{objectives[member]!r} for member {member} beside {objectives[0]!r}"
            )


def _several_keys(key: Any) -> Any:
    """The members' own keys; None if there is one key for all."""
    if isinstance(key, jax.Array) and key.ndim == 1 and len(key):
        _checks.key(key[0])
        return key
    _checks.key(key)
    return None


def _positions(subsets: Any, total: int) -> list[np.ndarray]:
    """Each member's examples: of a mask in the data's order, of a list in its own."""
    if not hasattr(subsets, "__len__") or not len(subsets):
        raise TypeError(f"subsets must be M masks or lists of positions; got {_checks.told(subsets)}")
    found = []
    for member, subset in enumerate(subsets):
        subset = _inputs.as_array(f"subsets[{member}]", subset)
        if subset.ndim != 1 or not (subset.dtype == bool or np.issubdtype(subset.dtype, np.integer) or not subset.size):
            raise ValueError(
                f"subsets[{member}] must be a mask ({total},) of booleans or a list of integers, positions; "
                f"got {subset.dtype}{list(subset.shape)}"
            )
        if len(subset) == total > 2 and subset.dtype != bool and subset.min() >= 0 and subset.max() <= 1:
            raise ValueError(
                f"subsets[{member}] must be a mask of booleans or positions; got {total} integers 0 and 1 "
                "(of a mask: .astype(bool))"
            )
        if subset.dtype == bool and len(subset) != total:
            raise ValueError(f"subsets[{member}] must have one boolean for each of {total} examples; got {len(subset)}")
        places = np.flatnonzero(subset) if subset.dtype == bool else subset.astype(np.int64)
        if not len(places):
            raise ValueError(f"subsets[{member}] must hold at least one example; got none")
        if places.min() < 0 or places.max() >= total:
            raise ValueError(f"subsets[{member}] must lie in 0..{total - 1}; got {places.min()}..{places.max()}")
        found.append(places)
    return found


def _agreed(**counts: int | None) -> int:
    """M, of which all that say it must say the same."""
    said = {name: count for name, count in counts.items() if count is not None}
    if not said:
        raise ValueError("members must say how many there are where there are no subsets, labels, keys or objectives")
    if said.get("members") is not None:
        _checks.count("members", said["members"])
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in said.items())
        raise ValueError(f"members: all arguments must agree in how many there are; got {listed}")
    return next(iter(said.values()))


def _width(classifier: Classifier, data: Dataset, objective: Any, config: TrainConfig, platform: str) -> int:
    """Members of one program: a power of two, from the cost of a member's step and nothing that others decide."""
    image = jax.ShapeDtypeStruct((1, *data.shape), jnp.float32)
    # mapped over kernels a convolution is a grouped one, which XLA:CPU computes by naive loops
    if platform == "cpu" and "conv_general_dilated" in str(jax.make_jaxpr(classifier)(image)):
        return 1
    passes = 3 * (1 + sum(getattr(attack, "steps", 1) for attack in inner_attacks(objective)))
    cost = _compile.operations(classifier, image) * config.batch_size * passes
    fits = ENOUGH.get(platform, ENOUGH_ELSEWHERE) / max(cost, 1.0)
    return int(2 ** np.floor(np.log2(np.clip(fits, 1, WIDEST.get(platform, WIDEST_ELSEWHERE)))))
