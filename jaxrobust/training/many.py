"""Many networks of one architecture trained in one program, each as if it were alone."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from jaxrobust import _checks, _compile, _inputs, _store
from jaxrobust.models.trainable import Trainable
from jaxrobust.training import _run
from jaxrobust.training._job import FREE, apart
from jaxrobust.training._population import Plan, Population, assemble, in_lanes, is_made
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.objectives.core import Objective
from jaxrobust.training.step import Augment
from jaxrobust.types import Classifier, Key

__all__ = ["Members", "fit_many"]

READ_EVERY = 64  # steps whose metrics are fetched together
SAVE_EVERY = 30.0  # seconds


@dataclasses.dataclass(frozen=True)
class Members:
    """What `fit_many` returns: M networks in evaluation mode, their numbers with an axis for members in front.

    Args:
        trainable: the architecture.
        params: parameters after the last step, each leaf (M, ...); the moving average where one is kept.
        state: their batch statistics.
        keys: (M,), the members' own.
        history: metric -> (M, epochs), means over a member's own steps of an epoch, counts added up: `loss`,
            `grad_norm` and those of the objective.
        chunk: the members of one program.
    """

    trainable: Trainable
    params: Any
    state: Any
    keys: Key
    history: dict[str, np.ndarray]
    chunk: int

    def __len__(self) -> int:
        return len(self.history["loss"])

    @property
    def stack(self) -> Classifier:
        """All of them as one classifier of stacked parameters: `jax.vmap(lambda model: model(images))(stack)`."""
        return self.trainable.classifier(self.params, self.state)

    @property
    def classifiers(self) -> list[Classifier]:
        """Each as a classifier; all share one compilation."""
        return [jax.tree.map(lambda leaf, place=place: leaf[place], self.stack) for place in range(len(self))]

    @property
    def finite(self) -> Bool[np.ndarray, " members"]:
        """Which of them kept finite losses, gradients and parameters; one that did not has disturbed no other."""
        # the last update shows in the parameters alone
        leaves = [np.asarray(leaf).astype(np.float64).reshape(len(self), -1) for leaf in jax.tree.leaves(self.params)]
        leaves += [self.history["loss"], self.history["grad_norm"]]
        return np.all([np.isfinite(leaf).all(1) for leaf in leaves], 0)

    def network(self, member: int) -> Any:
        """One of them, as `Trainable.merge` gives it: of NNX a module in evaluation mode.

        Args:
            member: 0..M-1.

        Returns:
            A new network.

        Raises:
            ValueError: there is no such member.
        """
        if _checks.count("member", member, low=0) >= len(self):
            raise ValueError(f"member must be below {len(self)}, the members; got {member}")
        return self.trainable.merge(*jax.tree.map(lambda leaf: leaf[member], (self.params, self.state)))

    def logits(self, images: Any, *, batch_size: int = 128) -> Float[np.ndarray, "members batch classes"]:
        """The logits of all members, by one program of always as many members and images, padded.

        Args:
            images: (N, H, W, C), floating in [0, 1], of JAX or NumPy.
            batch_size: images of one call.

        Returns:
            (M, N, K), on the host.

        Raises:
            TypeError: images are not floating.
            ValueError: they are none, or lie outside [0, 1].
        """
        size, pixels = _checks.count("batch_size", batch_size), np.asarray(images)
        _inputs.image_shape(pixels)
        _inputs.image_values(pixels)
        pixels = pixels.astype(np.float32)
        stack, found = self.stack, []
        rows = [np.arange(first, first + size) % len(pixels) for first in range(0, len(pixels), size)]
        for start in range(0, len(self), self.chunk):
            lanes = np.minimum(np.arange(start, start + self.chunk), len(self) - 1)
            models = jax.tree.map(lambda leaf, lanes=lanes: leaf[lanes], stack)
            parts = [np.asarray(_logits(models, pixels[places], self.chunk)) for places in rows]
            found.append(np.concatenate(parts, 1)[: len(self) - start, : len(pixels)])
        return np.concatenate(found)


def _forward(models: Classifier, images: Any, width: int) -> Any:
    return in_lanes(lambda model: model(images), (0,), width)(models)


_logits = _compile.jit(_forward, static_argnums=(2,))


def fit_many(
    network: Any,
    train_data: Any,
    *,
    objective: Objective | Sequence[Objective],
    key: Key,
    members: int | None = None,
    subsets: Any = None,
    labels: Any = None,
    config: TrainConfig = TrainConfig(validation=0.0),
    augment: Augment | None = None,
    chunk: int | None = None,
    devices: int | list[Any] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    progress: bool = True,
) -> Members:
    """Train M networks of one architecture together: on subsets, labels, keys or objectives of their own.

    Member m ends as `fit` ends that is given its network, its subset, its labels, its key and `config`, to rounding
    (which signs of gradients may then magnify, in attacks and in Adam). It is **bit for bit the same whatever the
    others are**: how many, on what data and labels, before or after it, and whether one of them diverges. Its order of
    examples and all its noise come from its key and its subset alone, an example being known by its place in the
    subset; steps that others need longer leave it untouched; and a program always has `chunk` members, the last one
    being filled up with repeats, since XLA may round otherwise in another width. So with other members give the same
    `chunk` and `devices`, and labels or objectives of their own to all populations or to none; the chosen `chunk` goes
    by the cost of a step and never by M. Certificates of partitions, and comparisons of models with and without an
    example, rest on that; where they must not depend on the order of the data either, give lists of positions that are
    sorted by content.

    On CPU networks with convolutions are trained one after another, since mapped over kernels these are slow there;
    all others gain where a step alone is too short to keep the machine busy. Of `several` the combinations that take
    one attack a batch run all m of them, m times the cost of a member alone.

    Args:
        network: all members' start, as for `fit`; or a function from a key to such a network, given
            `jax.random.fold_in(key_m, 4)`.
        train_data: a `jaxrobust.data.Dataset`, or a pair of images (N, H, W, C), uint8 or float in [0, 1], and integer
            labels (N,).
        objective: what to minimise; or M of them, of one structure and other numbers.
        key: one key, of which member m has `jax.random.fold_in(key, m)`, or M keys (M,).
        members: M, where nothing else says it.
        subsets: (M, N) booleans, or M lists of positions in the data, which may repeat and are taken in their order;
            None for all examples.
        labels: (M, N) integers, in place of the data's; None for the data's own.
        config: the settings; every member has its own steps and schedule. `validation` must be 0; `checkpoint_every`,
            `log_every` and those of validation are not used.
        augment: `(key, images, index) -> images`, as for `fit`.
        chunk: how many members a device trains at a time; None chooses a power of two, from the cost of a step.
        devices: how many of the local devices take chunks, or which; None for all of an accelerator's and one of a
            CPU's.
        run_dir: where to keep what is done: finished members, and every half a minute, and on SIGTERM, the state of
            those in training; the same call goes on from there and ends with the same numbers. A local folder, or one
            in a bucket, as for `fit`; None for nowhere.
        run_id: as for `fit`.
        progress: whether to show a progress bar.

    Returns:
        The members. One whose numbers are no longer finite stays in its place, see `Members.finite`.

    Raises:
        TypeError: if network, images, objective or key are not what they should be, or something static has no hash.
        ValueError: if masks, positions or labels have another shape or lie outside, a member has too few examples,
            arguments disagree in M, or `run_dir` holds something else than this very run.
        BlockingIOError: another run is in `run_dir`.
        OSError: `run_dir` cannot be read or written; what was whole there stays so.
        InterruptedError: on SIGTERM, with a `run_dir`, once all is saved.

    Example:
        >>> import jaxrobust as jr
        >>> from jaxrobust.training import standard
        >>> train = jr.data.load("digits", "train[:60]")
        >>> halves = [range(0, 30), range(30, 60)]
        >>> class Linear(nnx.Linear):
        ...     def __call__(self, images):
        ...         return super().__call__(images.reshape(len(images), -1))
        >>> made = lambda key: Linear(64, 10, rngs=nnx.Rngs(key))
        >>> config = TrainConfig(epochs=1, batch_size=10, validation=0)
        >>> options = {"key": jax.random.key(0), "config": config, "progress": False}
        >>> result = fit_many(made, train, objective=standard(), subsets=halves, **options)
        >>> len(result), result.history["loss"].shape, result.logits(train.images).shape
        (2, (2, 1), (2, 60, 10))

    Reference:
        Partitions: Levine and Feizi, 2021, arXiv:2006.14768.
    """
    population = assemble(
        network,
        train_data,
        objective,
        key,
        config,
        augment,
        members=members,
        subsets=subsets,
        labels=labels,
        chunk=chunk,
        devices=devices,
    )
    count, lanes = len(population), population.lanes
    finished: dict[int, dict[str, np.ndarray]] = {}
    with contextlib.ExitStack() as stack:
        disk = None
        if run_dir is not None:
            told_to_end = stack.enter_context(_run.sigterm_deferred())
            folder = stack.enter_context(_run.opened(run_dir, *_identified(population, objective, run_id)))
            disk = _Disk(folder, told_to_end)
            finished = disk.finished(population)
        done = {first + number for first, found in finished.items() for number in range(len(found["row loss"]))}
        chunks, start = [], 0
        while start < count:
            gap = list(itertools.takewhile(lambda member: member not in done, range(start, min(start + lanes, count))))
            if gap:
                chunks.append(gap + gap[-1:] * (lanes - len(gap)))
            start += len(gap) or 1
        total = sum(max(population.steps(member) for member in chunk) for chunk in chunks) * config.epochs
        bar = stack.enter_context(tqdm(total=total, disable=not progress, unit="step", dynamic_ncols=True))
        for chosen in chunks:
            bar.set_postfix(members=f"{chosen[0] + 1}-{chosen[-1] + 1}/{count}", refresh=False)
            found = _train(population, chosen, disk, bar)
            found = {name: values[: len(set(chosen))] for name, values in found.items()}
            if disk is not None:
                disk.finish(chosen[0], found)
            finished[chosen[0]] = found
    return _result(population, [finished[first] for first in sorted(finished)])


@dataclasses.dataclass
class _Chunk:
    """Members in training, and what their metrics add up to: `rows` of whole epochs, `sums` of the one they are in."""

    state: Any
    epoch: int = 0
    step: int = 0  # of the epoch
    sums: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    rows: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def read(self, metrics: list[dict[str, Any]], trains: np.ndarray) -> None:
        """Add metrics of the latest steps up, of members that did train in them (steps, L)."""
        for number, row in enumerate(jax.device_get(metrics)):
            for name, values in row.items():
                wide = values.astype(np.int64 if np.issubdtype(values.dtype, np.integer) else np.float64)
                self.sums[name] = self.sums.get(name, 0) + np.where(trains[number], wide, 0)
        metrics.clear()

    def end_epoch(self, steps: np.ndarray) -> None:
        """The means over each member's steps, counts as they are."""
        for name, sums in self.sums.items():
            mean = (sums if np.issubdtype(sums.dtype, np.integer) else sums / steps)[:, None]
            self.rows[name] = np.concatenate([self.rows.get(name, mean[:, :0]), mean], 1)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}


def _train(population: Population, members: list[int], disk: _Disk | None, bar: Any) -> dict[str, np.ndarray]:
    """Train a chunk to the end: leaves of what is evaluated, and the history, with an axis for members in front."""
    chunk = _Chunk(population.start(members))
    if disk is not None:
        disk.restore(chunk, members)
    own_steps = np.array([population.steps(member) for member in members])
    bar.update(chunk.epoch * own_steps.max() + chunk.step)
    step = population.step(members)
    saved, unread = time.monotonic(), []
    while chunk.epoch < population.config.epochs:
        plan = population.plan(members, chunk.epoch)
        trains = plan.mask.any(-1)
        for number in range(chunk.step, len(trains)):
            chunk.state, metrics = step(chunk.state, Plan(*(part[number] for part in plan)))
            unread.append(metrics)
            chunk.step += 1
            bar.update()
            stops = disk is not None and disk.terminated()
            due = disk is not None and time.monotonic() - saved >= SAVE_EVERY
            if len(unread) == READ_EVERY or chunk.step == len(trains) or due or stops:
                chunk.read(unread, trains[chunk.step - len(unread) : chunk.step])
            if disk is not None and (due or stops):
                disk.save(chunk, members)
                saved = time.monotonic()
            if stops:
                raise InterruptedError(
                    f"SIGTERM: saved and stopped in epoch {chunk.epoch + 1} of members {members[0]}..{members[-1]}; "
                    "the same call resumes"
                )
        chunk.end_epoch(own_steps)
    leaves = {f"leaf {number}": _store.raw(x) for number, x in enumerate(jax.tree.leaves(chunk.state.evaluated))}
    return leaves | {f"row {name}": values for name, values in chunk.rows.items()}


@dataclasses.dataclass(frozen=True)
class _Disk:
    """The run folder in use: a file for every finished chunk, one for the chunk in training."""

    folder: _store.Path
    terminated: Callable[[], bool]

    def finished(self, population: Population) -> dict[int, dict[str, np.ndarray]]:
        """What is done, by the first member of each file."""
        found: dict[int, dict[str, np.ndarray]] = {}
        like, end = jax.tree.leaves(_shapes(population)), 0
        for path in sorted(self.folder.glob("members-*.npz")):
            place, arrays = path.stem.removeprefix("members-"), _store.read_arrays(path)
            first, many = int(place) if place.isdecimal() else -1, len(arrays.get("row loss", ()))
            leaves = [arrays.get(f"leaf {number}") for number in range(len(like))]
            fits = all(
                x is not None and x.shape[: leaf.ndim] == (many, *leaf.shape[1:])
                for x, leaf in zip(leaves, like, strict=True)
            )
            if not (many and fits and end <= first <= len(population) - many):
                raise ValueError(
                    f"run_dir: {str(path)!r} does not hold members of this run; remove it to train them anew"
                )
            found[first], end = arrays, first + many
        return found

    def finish(self, first: int, found: dict[str, np.ndarray]) -> None:
        # in this order, and with the members in both, so that a kill in between leaves nothing wrong
        with _store.reached(self.folder):
            _store.write_arrays(self.folder / f"members-{first:08d}.npz", **found)
            _store.remove(self.folder / "running.npz")

    def save(self, chunk: _Chunk, members: list[int]) -> None:
        arrays = {f"leaf {number}": _store.raw(leaf) for number, leaf in enumerate(jax.tree.leaves(chunk.state))}
        for kind in ("sums", "rows"):
            arrays |= {f"{kind} {name}": values for name, values in getattr(chunk, kind).items()}
        place = np.array([chunk.epoch, chunk.step])
        with _store.reached(self.folder):
            _store.write_arrays(self.folder / "running.npz", members=np.array(members), place=place, **arrays)

    def restore(self, chunk: _Chunk, members: list[int]) -> None:
        path = self.folder / "running.npz"
        if not path.exists():
            return
        arrays = _store.read_arrays(path)
        # other members are in training where the number of devices has changed, or the chunk was finished
        if not np.array_equal(arrays.get("members", members), members):
            return
        leaves, structure = jax.tree.flatten(chunk.state)
        if not {"place", *(f"leaf {number}" for number in range(len(leaves)))} <= arrays.keys():
            raise ValueError(
                f"run_dir: {str(path)!r} lacks arrays of the members in training; remove it to train them anew"
            )
        stored = [_store.restored(arrays[f"leaf {number}"], leaf) for number, leaf in enumerate(leaves)]
        chunk.state = jax.tree.unflatten(structure, stored)
        chunk.epoch, chunk.step = map(int, arrays["place"])
        for kind in ("sums", "rows"):
            part = {name.removeprefix(f"{kind} "): array for name, array in arrays.items() if name.startswith(kind)}
            setattr(chunk, kind, part)


def _identified(population: Population, objective: Any, run_id: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """What the run's numbers depend on, for people and as digests; not the devices."""
    config = {name: value for name, value in vars(population.config).items() if name not in FREE}
    shared = is_made(population.network)
    start = _run.describe_parameters(*apart(population.network)[1:]) if shared else None
    parts = {"objective": objective, "augment": population.augment}
    description = {
        "version": _store.versions()["jaxrobust"],
        "run_id": run_id,
        "config": _store.describe(config),
        **{name: _store.describe(value) for name, value in parts.items()},
        "network": _store.describe(population.trainable.kind if shared else population.network),
        "parameters": start,
        "train_data": _run.describe_data(population.data),
        "subsets": _store.identity(population.subsets),
        "labels": _store.identity(population.labels),
        "members": len(population),
        "keys": _store.identity(jax.random.key_data(population.keys)),
        "chunk": population.width,
    }
    parts |= {f"config.{name}": value for name, value in config.items()} | {"network": population.trainable}
    if not shared:
        parts["network"] = (population.trainable, population.network)
    return description, {name: _store.identity(value, what=name, run_id=run_id) for name, value in parts.items()}


def _shapes(population: Population) -> Any:
    """What is evaluated of a chunk, as shapes."""
    return jax.eval_shape(lambda: population.start([0] * population.lanes).evaluated)


def _result(population: Population, finished: list[dict[str, np.ndarray]]) -> Members:
    joined = {name: np.concatenate([found[name] for found in finished]) for name in finished[0]}
    like, structure = jax.tree.flatten(_shapes(population))
    leaves = [_store.restored(joined[f"leaf {number}"], leaf) for number, leaf in enumerate(like)]
    params, state = jax.tree.unflatten(structure, leaves)
    history = {name.removeprefix("row "): values for name, values in joined.items() if name.startswith("row ")}
    return Members(population.trainable, params, state, population.keys, history, population.width)
