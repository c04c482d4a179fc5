"""What a training run is made of: the job, which does not change, and the loop's state, which checkpoints hold."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrobust import _checks, _inputs, _store, attacks
from jaxrobust.data import Batch, Loader
from jaxrobust.models.trainable import Trainable
from jaxrobust.training import _held_out, _run
from jaxrobust.training._checkpoint import Checkpoints
from jaxrobust.training._placement import Placement, placement
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.objectives.core import Objective, inner_attacks, inner_sets
from jaxrobust.training.step import Augment, TrainState, first_memory
from jaxrobust.types import Classifier, Key

__all__ = [
    "FREE",
    "Disk",
    "Job",
    "Loop",
    "Progress",
    "apart",
    "check_augment",
    "check_examples",
    "check_fit",
    "is_objective",
    "prepare",
]

# settings that change no number
FREE = ("log_every", "checkpoint_every")


class Job(NamedTuple):
    """All of a run that does not change."""

    config: TrainConfig
    objective: Any
    trainable: Trainable
    optimizer: optax.GradientTransformation
    rates: optax.Schedule
    loader: Loader
    held_out: Any
    attack: Any
    augment: Augment | None
    placement: Placement | None  # over several devices
    step_key: Key
    validation_key: Key
    steps_per_epoch: int
    replays: int  # steps that one batch is trained on
    description: dict[str, Any]  # for a run folder, as is the identity; else both are empty
    identity: dict[str, str]


@dataclasses.dataclass
class Progress:
    """Where the run stands, as JSON. `sums` are of the current epoch's metrics, over the steps read so far."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    read: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    best_score: list[float] = dataclasses.field(default_factory=lambda: [-1.0, -1.0])
    overfit_acc: float = 0.0
    overfitted: bool = False
    finished: bool = False

    def read_metrics(self, metrics: list[dict[str, Any]], where: str) -> None:
        """Fetch the metrics of steps and add them up; this waits for the last of them to be computed."""
        for row in jax.device_get(metrics):
            self.read += 1
            for name in ("loss", "grad_norm"):
                if not math.isfinite(row[name]):
                    raise FloatingPointError(
                        f"{name} must stay finite; got {row[name]} at step {self.read} (epoch {self.epoch + 1}). "
                        f"{where}Lower the learning rate, or warm the radius up."
                    )
            for name, value in row.items():
                self.sums[name] = self.sums.get(name, 0) + value.item()


@dataclasses.dataclass
class Loop:
    """All of a run that changes: arrays, which a checkpoint holds as a tree, and progress, which it holds as JSON."""

    train: TrainState
    best: Any  # (params, state)
    previous: TrainState | None  # at the end of the epoch before, kept with `stop_on_overfitting`
    progress: Progress

    @property
    def tree(self) -> dict[str, Any]:
        return {"train": self.train, "best": self.best, "previous": self.previous}


class Disk(NamedTuple):
    """The run folder in use."""

    folder: _store.Path
    checkpoints: Checkpoints
    terminated: Any

    def save(self, loop: Loop) -> None:
        _run.write_rows(self.folder, loop.progress.history)
        self.checkpoints.save(loop.progress.step, loop.tree, dataclasses.asdict(loop.progress))

    def stop(self, loop: Loop) -> None:
        if not loop.progress.finished:
            self.checkpoints.wait()
            raise InterruptedError(f"SIGTERM: saved and stopped after step {loop.progress.step}; the same call resumes")

    def restore(self, loop: Loop) -> None:
        if self.checkpoints.latest is not None:
            tree, progress = self.checkpoints.load(loop.tree)
            loop.train, loop.best, loop.previous = tree["train"], tree["best"], tree["previous"]
            loop.progress = Progress(**progress)
        # Rows written after the checkpoint will be written again.
        _run.write_rows(self.folder, loop.progress.history)


def prepare(
    network: Any,
    train_data: Any,
    objective: Any,
    key: Key,
    config: TrainConfig,
    validation_data: Any,
    validation_attack: Any,
    augment: Augment | None,
    *,
    devices: int | list[Any] | None,
    mapping: str,
    saved: bool,
    run_id: str | None,
) -> tuple[Job, Loop]:
    """Check everything before any compute, and lay out the run; `saved` says whether it will have a folder."""
    if not is_objective(objective):
        raise TypeError(f"objective must be an Objective such as adversarial(attack); got {objective!r}")
    if not (validation_attack is None or isinstance(validation_attack, attacks.Attack)):
        raise TypeError(f"validation_attack must be an Attack such as attacks.pgd(...); got {validation_attack!r}")
    check_augment(augment)
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig; got {type(config).__name__}")
    _checks.key(key)
    trainable, params, state = apart(network)
    train = given = _held_out.as_dataset("train_data", train_data)
    order_key, split_key, step_key, validation_key = jax.random.split(key, 4)
    if validation_data is None:
        separate = None
        train, held_out, places = _held_out.split(train, config, _seed(split_key))
    else:
        places = np.arange(len(train))
        separate = held_out = _held_out.as_dataset("validation_data", validation_data)
    check_fit(trainable.classifier(params, state), train, held_out)
    check_examples(objective, len(given))
    own = inner_attacks(objective)
    if not own and config.stop_on_overfitting:
        raise ValueError(f"stop_on_overfitting needs an objective with an attack; got {objective!r}")
    sets = inner_sets(objective)
    if validation_attack is None and sets:
        each = [attacks.pgd(one, steps=10) for one in sets]
        validation_attack = each[0] if len(each) == 1 else attacks.worst_of(*each)
    if len(train) < config.batch_size and config.drop_last:
        raise ValueError(
            f"batch_size must not exceed the {len(train)} training examples (drop_last leaves out incomplete batches); "
            f"got {config.batch_size}"
        )
    placed = placement(devices, mapping, batch_size=config.batch_size, accumulate=config.accumulate)
    loader = Loader(
        train,
        config.batch_size,
        seed=_seed(order_key),
        drop_last=config.drop_last,
        host=jax.process_index(),
        hosts=jax.process_count(),
        as_bytes=True,
        places=places,
    )
    replays = getattr(objective, "replays", 1)
    total = config.epochs * len(loader) * replays
    optimizer = config.transformation(total)
    description, identity = {}, {}
    if saved:
        settings = {f"config.{name}": value for name, value in vars(config).items() if name not in FREE}
        parts = {"objective": objective, "validation_attack": validation_attack, "augment": augment}
        description = {
            "version": _store.versions()["jaxrobust"],
            "run_id": run_id,
            "config": _store.describe({name: value for name, value in vars(config).items() if name not in FREE}),
            **{name: _store.describe(value) for name, value in parts.items()},
            "network": _store.describe(trainable.kind),
            "parameters": _run.describe_parameters(params, state),
            "train_data": _run.describe_data(given),
            "validation_data": None if separate is None else _run.describe_data(separate),
            "key": [str(jax.random.key_impl(key)), jax.random.key_data(key).tolist()],
        }
        parts = {**settings, **parts, "network": trainable}
        identity = {name: _store.identity(value, what=name, run_id=run_id) for name, value in parts.items()}
    job = Job(
        config=config,
        objective=objective,
        trainable=trainable,
        optimizer=optimizer,
        rates=config.rates(total),
        loader=loader,
        held_out=held_out,
        attack=validation_attack,
        augment=augment,
        placement=placed,
        step_key=step_key,
        validation_key=validation_key,
        steps_per_epoch=len(loader) * replays,
        replays=replays,
        description=description,
        identity=identity,
    )
    count = config.batch_size
    rows = np.zeros((count, *train.shape), np.float32), np.zeros(count, np.int32), np.ones(count, bool)
    memory = first_memory(objective, trainable, params, state, Batch(*rows, np.zeros(count, np.int32)))
    start = TrainState.create(params, state, optimizer, with_ema=config.ema_decay is not None, memory=memory)
    # Bound to its device, as what a checkpoint restores is; else a resumed run would compile its step a second time.
    start = jax.device_put(start, jax.tree.map(lambda array: array.sharding, start))
    previous = jax.tree.map(jnp.array, start) if config.stop_on_overfitting else None
    return job, Loop(start, jax.tree.map(jnp.array, start.evaluated), previous, Progress())


def check_augment(augment: Any) -> None:
    """That images can be put through it."""
    if not (augment is None or callable(augment)):
        raise TypeError(f"augment must be a function of (key, images, index), or None; got {augment!r}")


def is_objective(objective: Any) -> bool:
    """Whether it is one, and not a function that makes one."""
    if not isinstance(objective, Objective) or isinstance(objective, type):
        return False
    try:
        inspect.signature(objective).bind("key", "learner", "batch")
    except TypeError:
        return False
    return True


def apart(network: Any) -> tuple[Trainable, Any, Any]:
    """The network as it is trained, and copies of its numbers."""
    if isinstance(network, tuple) and len(network) == 3 and isinstance(network[0], Trainable):
        return network[0], *jax.tree.map(jnp.array, network[1:])
    try:
        return Trainable.from_nnx(network)
    except TypeError as error:
        raise TypeError(f"{error}; fit also takes what Trainable.from_linen and Trainable.from_function give") from None


def check_fit(classifier: Classifier, train: Any, held_out: Any) -> None:
    """The network against the data."""
    image = jax.ShapeDtypeStruct((2, *train.shape), jnp.float32)
    classes = _inputs.logits_shape(classifier, image)
    _inputs.finite_params(jax.device_get(classifier))
    for name, data in (("train_data", train), ("validation_data", held_out)):
        if data is None:
            continue
        if data.shape != train.shape:
            raise ValueError(f"{name} must hold images of shape {train.shape} as train_data does; got {data.shape}")
        if data.classes > classes:
            raise ValueError(
                f"{name}: labels must lie in [0, {classes}), the network's classes; got {data.classes} classes"
            )


def check_examples(objective: Any, count: int) -> None:
    """An objective that speaks of each example by its place against the data."""
    examples = getattr(objective, "examples", None)
    if examples not in (None, count):
        raise ValueError(
            f"objective: {type(objective).__name__} must speak of all {count} examples of train_data, those held out "
            f"too; got groups of {examples}"
        )


def _seed(key: Key) -> int:
    return int(jax.random.bits(key, dtype=jnp.uint32))
