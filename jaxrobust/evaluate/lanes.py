"""The lanes: the host drives one compiled step over a fixed number of lanes and refills each as soon as it is done.

No step is spent on a finished example and no shape ever changes, so nothing recompiles. Every example has its own
key, so its result is the same as from `attacks.run`, whatever else is in the lanes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

from jaxrobust import _checks
from jaxrobust.attacks import Attack, Best, engine
from jaxrobust.evaluate import _store
from jaxrobust.types import AttackResult, Classifier, Code, Criterion, Key

__all__ = ["LaneCounts", "LaneResult", "predict", "run_lanes"]

# An accelerator works ahead of the host, which looks at the lanes only every few steps; a CPU gains nothing by it.
PEEK = 4
SAVE_EVERY = 30.0  # seconds between two saves, or more where a save itself takes long


@dataclasses.dataclass(frozen=True)
class LaneCounts:
    """What a run of the lanes cost.

    Args:
        executed: lane-steps the machine ran, lanes · steps.
        needed: lane-steps the attacked examples needed.
        seconds: wall time, over all sessions of a resumed run.
    """

    executed: int
    needed: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class LaneResult:
    """The result (NumPy arrays, one entry an example) and what it cost."""

    result: AttackResult
    counts: LaneCounts


class _Programs(NamedTuple):
    """The four compiled programs of the lanes, shared by all runs of one layout over devices."""

    refill: Callable[..., Any]
    step: Callable[..., Any]
    book: Callable[..., Any]
    harvest: Callable[..., Any]


@functools.lru_cache(maxsize=16)
def _programs(lanes: NamedSharding, stop: engine.Stop) -> _Programs:
    def fresh(attack: Attack, images: Any, goal: Criterion, key: Key, indices: Any, restarts: Any, logits: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in)(engine.example_keys(key, indices), restarts)
        return jax.vmap(attack.init)(keys, images, goal, logits)

    def refill(attack: Attack, states: Any, slots: Any, *jobs: Any) -> Any:
        new = fresh(attack, *jobs)
        if states is None:
            return new
        return jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), states, new)

    def step(attack: Attack, model: Classifier, states: Any, gradient: bool) -> tuple[Any, Any]:
        states = engine.advance(attack, model, states, stop=stop, gradient=gradient)
        return states, jax.vmap(lambda state: engine.is_finished(attack, state, stop))(states)

    def harvest(attack: Attack, states: Any, slots: Any) -> Best:
        return jax.vmap(attack.best)(jax.tree.map(lambda leaf: leaf[slots], states))

    everywhere = NamedSharding(lanes.mesh, PartitionSpec())
    return _Programs(
        jax.jit(refill, donate_argnums=1, out_shardings=lanes),
        jax.jit(functools.partial(step, gradient=True), donate_argnums=2, out_shardings=(lanes, everywhere)),
        jax.jit(functools.partial(step, gradient=False), donate_argnums=2, out_shardings=(lanes, everywhere)),
        jax.jit(harvest, out_shardings=everywhere),
    )


def predict(model: Classifier, images: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
    """Logits of many images, batch by batch, the last one padded to the same shape.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1].
        batch_size: images a forward pass, ≥ 1.

    Returns:
        (N, K) logits, NumPy.
    """
    pieces = []
    for start in range(0, len(images), batch_size):
        piece = np.asarray(images[start : start + batch_size])
        pieces.append(np.asarray(_checks.forward(model, _pad(piece, batch_size)))[: len(piece)])
    return np.concatenate(pieces)


def run_lanes(
    attack: Attack,
    model: Classifier,
    images: Any,
    labels: Any,
    *,
    key: Key,
    indices: Any = None,
    logits: Any = None,
    lanes: int = 128,
    early_stop: bool = True,
    devices: Sequence[Any] | None = None,
    save: str | pathlib.Path | None = None,
    progress: bool | str = False,
) -> LaneResult:
    """Attack a whole data set, as `attacks.run` would but without wasting a step; see this module's first lines.

    Args:
        attack: the attack.
        model: the classifier.
        images: (N, H, W, C) floating point in [0, 1], held on the host.
        labels: (N,) true labels, or a criterion.
        key: makes all randomness; example i uses fold_in(key, indices[i]).
        indices: (N,) integers, by default 0 … N−1.
        logits: (N, K) clean logits, computed here if not given.
        lanes: examples in flight at once, ≥ 1; rounded up to a multiple of the number of devices.
        early_stop: whether an example's first success frees its lane.
        devices: where to run; by default all local devices, the lanes split evenly among them.
        save: a file to which finished examples and the lanes' state are saved from time to time; a run that finds the
            file of a killed run of the same attack, model and data goes on from there, one that finds another's
            raises.
        progress: whether to show a progress bar; a string is its label.

    Returns:
        The result and its costs.

    Raises:
        ValueError: as `attacks.run`, or the save file belongs to a different run.
    """
    began = time.perf_counter()
    _checks.image_shape(images)
    goal = jax.tree.map(np.asarray, _checks.criterion(labels, images))
    engine.check_values(attack, model, images, goal, _checks.logits_shape(model, images))
    images = np.clip(np.asarray(images), 0, 1)
    count = len(images)
    indices = np.arange(count, dtype=np.uint32) if indices is None else np.asarray(indices, np.uint32)
    devices = tuple(jax.local_devices() if devices is None else devices)
    width = -(-_checks.count("lanes", lanes) // len(devices)) * len(devices)
    mesh = jax.make_mesh((len(devices),), ("lanes",), axis_types=(AxisType.Auto,), devices=devices)
    model = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    if logits is None:
        logits = predict(model, images, batch_size=width)
    stop: engine.Stop = "success" if early_stop else "clean"
    job = _Run(attack, model, images, goal, key, indices, np.asarray(logits), width, stop, mesh)
    if save is not None:
        job.resume(pathlib.Path(save))
    label = progress if isinstance(progress, str) else "attack"
    with tqdm(total=count, desc=label, unit="img", disable=not progress, initial=job.finished, leave=True) as bar:
        saved, pause = time.perf_counter(), SAVE_EVERY
        while job.busy or job.queue:
            job.round()
            bar.update(job.finished - bar.n)
            bar.set_postfix(fooled=int(job.success.sum()), steps=job.steps, refresh=False)
            if save is not None and time.perf_counter() - saved > pause:
                saving = time.perf_counter()
                job.save(pathlib.Path(save), job.seconds + saving - began)
                saved = time.perf_counter()
                pause = max(SAVE_EVERY, 20 * (saved - saving))
    result = job.conclude()
    seconds = job.seconds + time.perf_counter() - began
    if save is not None:
        job.save(pathlib.Path(save), seconds)
    needed = int((result.forwards - 1).sum()) // attack.queries
    return LaneResult(result, LaneCounts(executed=job.steps * width, needed=needed, seconds=seconds))


class _Run:
    """The host's books of one run: which example is in which lane, what is booked, what waits."""

    def __init__(
        self,
        attack: Attack,
        model: Classifier,
        images: np.ndarray,
        goal: Criterion,
        key: Key,
        indices: np.ndarray,
        logits: np.ndarray,
        width: int,
        stop: engine.Stop,
        mesh: Any,
    ) -> None:
        self.attack, self.model, self.images, self.goal = attack, model, images, goal
        self.key, self.indices, self.logits, self.width, self.stop = key, indices, logits, width, stop
        self.programs = _programs(NamedSharding(mesh, PartitionSpec("lanes")), stop)
        # refills and harvests go in chunks of fixed shape, small enough not to cost a step
        self.chunk = max(width // 4, 1)
        self.peek = 1 if mesh.devices.flat[0].platform == "cpu" else PEEK
        self.states: Any = None
        self.steps = 0
        self.seconds = 0.0
        self.lane_example = np.full(width, -1)
        self.lane_restart = np.zeros(width, np.int64)
        self.lane_age = np.zeros(width, np.int64)
        self.best = self._clean()
        self.restarts_done = np.where(self.best.success, attack.restarts, 0).astype(np.int32)
        self.queue = collections.deque((int(i), 0) for i in np.flatnonzero(~self.success))

    def _clean(self) -> Best:
        """The books before any attack: of an example that meets its criterion already, what `init` books."""
        count, dtype = len(self.images), self.images.dtype
        finite = np.isfinite(self.logits).all(-1)
        met = np.array(jax.vmap(lambda goal, z: goal.met(z))(self.goal, jnp.asarray(self.logits)))
        zero = np.zeros(count, np.int32)
        best = Best(self.images.copy(), met, np.zeros(count, dtype), np.zeros(count, dtype), zero, zero.copy(), ~finite)
        already = np.flatnonzero(met)
        for start in range(0, len(already), self.chunk):
            rows = already[start : start + self.chunk]
            padded = _pad(rows, self.chunk)
            states = self._refill_states(None, padded, padded, np.zeros_like(padded))
            booked = jax.device_get(self.programs.harvest(self.attack, states, np.arange(self.chunk)))
            best.loss[rows] = booked.loss[: len(rows)]
        return best

    @property
    def success(self) -> np.ndarray:
        """Which examples have met their criterion so far."""
        return np.asarray(self.best.success)

    @property
    def busy(self) -> bool:
        """Whether any lane holds an example."""
        return bool((self.lane_example >= 0).any())

    @property
    def finished(self) -> int:
        """How many examples need no further attack."""
        return int((self.restarts_done >= self.attack.restarts).sum())

    def round(self) -> None:
        """Refill the free lanes, take a step or a few, harvest what is done."""
        free = np.flatnonzero(self.lane_example < 0)
        while len(free) and self.queue:
            self._refill(free[: self.chunk if self.states is not None else self.width])
            free = np.flatnonzero(self.lane_example < 0)
        live = self.lane_example >= 0
        left = self.attack.asks - self.lane_age[live]
        if (left == 1).all():
            self.states, finished = self.programs.book(self.attack, self.model, self.states)
            taken = 1
        else:
            taken = min(self.peek, max(int(left.min()) - 1, 1))
            for _ in range(taken):
                self.states, finished = self.programs.step(self.attack, self.model, self.states)
        self.steps += taken
        self.lane_age += taken
        done = np.flatnonzero(np.asarray(finished) & live)
        for start in range(0, len(done), self.chunk):
            self._harvest(done[start : start + self.chunk])

    def _refill(self, slots: np.ndarray) -> None:
        jobs = [self.queue.popleft() for _ in range(min(len(slots), len(self.queue)))]
        slots = slots[: len(jobs)]
        examples, restarts = (np.array(column) for column in zip(*jobs, strict=True))
        self.lane_example[slots], self.lane_restart[slots], self.lane_age[slots] = examples, restarts, 0
        size = self.width if self.states is None else self.chunk
        slots = _pad(slots, size, fill=self.width)
        self.states = self._refill_states(self.states, slots, _pad(examples, size), _pad(restarts, size))

    def _refill_states(self, states: Any, slots: np.ndarray, rows: np.ndarray, restarts: np.ndarray) -> Any:
        """States with fresh runs of some examples in some lanes; without states, just the fresh runs."""
        return self.programs.refill(
            self.attack,
            states,
            slots,
            self.images[rows],
            jax.tree.map(lambda leaf: leaf[rows], self.goal),
            self.key,
            self.indices[rows],
            restarts.astype(np.uint32),
            self.logits[rows],
        )

    def _harvest(self, slots: np.ndarray) -> None:
        found = jax.device_get(self.programs.harvest(self.attack, self.states, _pad(slots, self.chunk)))
        found = jax.tree.map(lambda leaf: leaf[: len(slots)], found)
        rows = self.lane_example[slots]
        merged = found
        if self.attack.restarts > 1:
            later = self.lane_restart[slots] > 0
            known = jax.tree.map(lambda leaf: leaf[rows], self.best)
            both = jax.device_get(engine.merge(known, found, stop=self.stop))
            merged = jax.tree.map(lambda b, f: np.where(_column(later, f), b, f), both, found)
        for old, new in zip(jax.tree.leaves(self.best), jax.tree.leaves(merged), strict=True):
            old[rows] = new
        self.restarts_done[rows] += 1
        self.lane_example[slots] = -1
        won = self.success[rows] & (self.stop == "success")
        self.restarts_done[rows[won]] = self.attack.restarts
        for row in rows[self.restarts_done[rows] < self.attack.restarts]:
            self.queue.append((int(row), int(self.restarts_done[row])))

    def conclude(self) -> AttackResult:
        """Success confirmed by a fresh forward pass, as in `attacks.run`."""
        best = self.best
        claimed = np.flatnonzero(best.success)
        confirmed = np.zeros(len(self.images), bool)
        if len(claimed):
            logits = predict(self.model, best.image[claimed], batch_size=self.width)
            goal = jax.tree.map(lambda leaf: jnp.asarray(leaf[claimed]), self.goal)
            confirmed[claimed] = jax.vmap(lambda goal, z: goal.met(z))(goal, jnp.asarray(logits))
        failed = np.where(best.success, Code.DISAGREED, np.where(best.non_finite, Code.NON_FINITE, Code.RAN))
        won = np.where(best.forwards == 0, Code.ALREADY, Code.RAN)
        return AttackResult(
            images=best.image,
            success=confirmed,
            loss=best.loss,
            size=best.size,
            forwards=best.forwards + 1,
            backwards=best.backwards,
            code=np.where(confirmed, won, failed).astype(np.int32),
        )

    def _fingerprint(self) -> str:
        return _store.fingerprint(
            _store.describe(self.attack),
            self.stop,
            [self.model.params, self.images, self.goal, self.indices, jax.random.key_data(self.key)],
        )

    def save(self, path: pathlib.Path, seconds: float) -> None:
        """The books and the lanes, atomically."""
        leaves = jax.tree.leaves(self.states) if self.busy else []
        _store.write_arrays(
            path,
            fingerprint=self._fingerprint(),
            seconds=seconds,
            steps=self.steps,
            restarts_done=self.restarts_done,
            lane_example=self.lane_example,
            lane_restart=self.lane_restart,
            lane_age=self.lane_age,
            **{f"best_{field.name}": getattr(self.best, field.name) for field in dataclasses.fields(self.best)},
            **{f"lane_{i}": _store.raw(leaf) for i, leaf in enumerate(leaves)},
        )

    def resume(self, path: pathlib.Path) -> None:
        """Goes on from a saved run, if there is one: with its lanes if as many are asked for, else without."""
        if not path.exists():
            return
        stored = _store.read_arrays(path)
        if str(stored["fingerprint"]) != self._fingerprint():
            raise ValueError(
                f"save must name a file of this very run; {path} was written by another attack, model, data set or key"
            )
        self.best = Best(**{field.name: stored[f"best_{field.name}"].copy() for field in dataclasses.fields(Best)})
        self.restarts_done = stored["restarts_done"].copy()
        self.steps, self.seconds = int(stored["steps"]), float(stored["seconds"])
        in_lanes: set[int] = set()
        if len(stored["lane_example"]) == self.width and "lane_0" in stored:
            self.lane_example, self.lane_restart, self.lane_age = (
                stored[name].copy() for name in ("lane_example", "lane_restart", "lane_age")
            )
            in_lanes = set(self.lane_example[self.lane_example >= 0].tolist())
            self.states = self._restored(stored)
        waiting = [int(i) for i in np.flatnonzero(self.restarts_done < self.attack.restarts) if i not in in_lanes]
        self.queue = collections.deque((i, int(self.restarts_done[i])) for i in waiting)

    def _restored(self, stored: dict[str, np.ndarray]) -> Any:
        """Lane states from their saved leaves; a throw-away refill gives the structure, shapes and placement."""
        rows = np.zeros(self.width, np.int64)
        like = self._refill_states(None, rows, rows, rows)
        leaves, tree = jax.tree.flatten(like)
        return tree.unflatten([_store.restored(stored[f"lane_{i}"], leaf) for i, leaf in enumerate(leaves)])


def _pad(rows: np.ndarray, size: int, fill: int | None = None) -> np.ndarray:
    """Rows repeated (the first one), or filled, up to a fixed size."""
    if len(rows) == size:
        return rows
    tail = np.broadcast_to(
        rows[:1] if fill is None else np.full_like(rows[:1], fill), (size - len(rows), *rows.shape[1:])
    )
    return np.concatenate([rows, tail])


def _column(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
