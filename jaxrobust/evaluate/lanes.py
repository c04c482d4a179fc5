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
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from jaxrobust import _checks, _store
from jaxrobust.attacks import Attack, engine
from jaxrobust.evaluate._programs import Books, known, met, pad, predict, programs, replicated
from jaxrobust.evaluate.host import HostModel
from jaxrobust.types import AttackResult, Classifier, Criterion, Key

__all__ = ["LaneCounts", "LaneResult", "check", "predict", "replicated", "run_lanes"]

# Steps between two looks at the lanes. An accelerator works ahead of the host, at the price of a few idle steps of
# lanes that are done; where lanes run in step, none is done before the others.
PEEK = {"cpu": 1}
PEEK_ELSEWHERE = 4
PEEK_IN_STEP = 16
WIDTHS = 8  # numbers of lanes for small data sets
SAVE_EVERY = 30.0  # seconds between two saves
SAVE_SHARE = 0.05  # of the wall time at most goes into saves


@dataclasses.dataclass(frozen=True)
class LaneCounts:
    """What a run of the lanes cost.

    Args:
        executed: lane-steps the machine ran, lanes · steps, over all sessions of a resumed run.
        needed: lane-steps the attacked examples needed.
        seconds: wall time, over all sessions of a resumed run.
    """

    executed: int
    needed: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class LaneResult:
    """The result, in NumPy arrays since a data set need not fit on a device, and what it cost."""

    result: AttackResult
    counts: LaneCounts


@_checks.off_mesh
def run_lanes(
    attack: Attack,
    model: Classifier | HostModel,
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
        attack: the attack; for a host model one that uses no gradients.
        model: the classifier, or a `HostModel`.
        images: (N, H, W, C) floating point in [0, 1], held on the host.
        labels: (N,) true labels, or a criterion.
        key: makes all randomness; example i uses fold_in(key, indices[i]).
        indices: (N,) integers ≥ 0, by default 0 … N−1.
        logits: (N, K) clean logits, computed here if not given.
        lanes: examples in flight at once, ≥ 1; fewer where there are not so many, rounded up to a multiple of the
            number of devices.
        early_stop: whether an example's first success frees its lane.
        devices: where to run; by default all local devices, the lanes split evenly among them.
        save: a file to which finished examples and the lanes' state are saved from time to time; a run that finds the
            file of a killed run of the same attack, model and data goes on from there, one that finds another's
            raises.
        progress: whether to show a progress bar, on standard error; a string is its label.

    Returns:
        The result and its costs.

    Raises:
        TypeError: as `attacks.run`.
        ValueError: as `attacks.run`, or the save file belongs to a different run or is damaged.
    """
    began = time.perf_counter()
    everywhere = replicated(devices)
    split = len(everywhere.mesh.devices)
    part = max(_checks.count("lanes", lanes) // WIDTHS, 1)
    if _checks.explicit_mesh(images, labels) is not None:
        images, labels = jax.device_get((images, labels))  # of which slices can be taken
    indices, classes = check(attack, model, images, labels, key=key, indices=indices)
    # no wider than there are examples, in few sizes, since each is a program of its own
    width = -(-min(lanes, -(-len(images) // part) * part) // split) * split
    if logits is not None and np.shape(logits) != (len(images), classes):
        raise ValueError(f"logits must have shape {(len(images), classes)}; got {np.shape(logits)}")
    goal = jax.tree.map(np.asarray, _checks.criterion(labels, images))
    images = np.clip(np.asarray(images, jax.dtypes.canonicalize_dtype(images.dtype)), 0, 1)
    model = jax.device_put(model, everywhere)
    if logits is None:
        logits = predict(model, images, batch_size=lanes)
    stop: engine.Stop = "success" if early_stop else "clean"
    job = _Run(attack, model, images, goal, key, indices, np.asarray(logits), width, lanes, stop, everywhere)
    path = None if save is None else pathlib.Path(save)
    if path is not None:
        job.resume(path)
    ran = job.waits
    label = progress if isinstance(progress, str) else "attack"
    with tqdm(total=len(images), desc=label, unit="img", disable=not progress, initial=job.finished) as bar:
        saved, pause = time.perf_counter(), SAVE_EVERY
        while job.waits:
            before = job.finished
            job.round()
            if job.finished > before:
                bar.update(job.finished - before)
                bar.set_postfix(fooled=int(job.best["success"].sum()), refresh=False)
            if path is not None and time.perf_counter() - saved > pause:
                saving = time.perf_counter()
                job.save(path, job.seconds + saving - began)
                saved = time.perf_counter()
                pause = max(SAVE_EVERY, (saved - saving) / SAVE_SHARE)
    result = job.conclude()
    seconds = job.seconds + (time.perf_counter() - began if ran else 0.0)
    if path is not None and (ran or not path.exists()):
        job.save(path, seconds)
    needed = int(job.best["forwards"].sum()) // attack.queries
    return LaneResult(result, LaneCounts(executed=job.executed, needed=needed, seconds=seconds))


def check(
    attack: Any, model: Classifier | HostModel, images: Any, labels: Any, *, key: Any, indices: Any = None
) -> tuple[np.ndarray, int]:
    """All checks at the door of the lanes, the cheap ones first.

    Args:
        attack: the attack.
        model: the classifier.
        images: (N, H, W, C).
        labels: (N,) labels, or a criterion.
        key: the random key.
        indices: (N,) integers, or None for 0 … N−1.

    Returns:
        The indices, (N,) unsigned, and the number of the model's classes.

    Raises:
        TypeError: as `attacks.run`.
        ValueError: as `attacks.run`, indices that are negative or not one an image, or an attack that uses gradients
            on a host model.
    """
    engine.check_attack(attack)
    _checks.key(key)
    _checks.image_shape(images)
    goal = _checks.criterion(labels, images)
    if indices is None:
        indices = np.arange(len(images))
    indices = np.asarray(indices)
    _checks.label_shape("indices", indices, images)
    if indices.min() < 0 or indices.max() >= 2**32:
        raise ValueError(f"indices must lie in [0, 2**32); got values in [{indices.min()}, {indices.max()}]")
    if isinstance(model, HostModel):
        if attack.gradients:
            raise ValueError(f"attack must use no gradients on a HostModel; got {attack}")
        _checks.number("radius", jax.device_get(attack.set.radius))
        _checks.image_values(images)
        _checks.label_values(goal, model.classes)
        return indices.astype(np.uint32), model.classes
    # of the shape at which the values are checked too, so that the model is traced once for both
    classes = _checks.logits_shape(model, images[:8])
    engine.check_values(attack, model, images, goal, classes)
    return indices.astype(np.uint32), classes


class _There(NamedTuple):
    """What the programs are given in every call."""

    attack: Attack
    model: Classifier | HostModel
    key: Key


class _Run:
    """What the host knows of one run: which example is in which lane, what is booked, what waits."""

    def __init__(
        self,
        attack: Attack,
        model: Classifier | HostModel,
        images: np.ndarray,
        goal: Criterion,
        key: Key,
        indices: np.ndarray,
        logits: np.ndarray,
        width: int,
        batch: int,
        stop: engine.Stop,
        everywhere: NamedSharding,
    ) -> None:
        if isinstance(model, Classifier):
            attack = attack.bound_to(model)
        self.attack, self.model, self.images, self.goal = attack, model, images, goal
        self.key, self.indices, self.logits, self.width, self.stop = key, indices, logits, width, stop
        self.batch = batch  # of plain forward passes, the same for all widths
        # on every device once, not again with every call
        self.there = _There(*jax.device_put((attack, model, key), everywhere))
        mesh = everywhere.mesh
        self.programs = programs(NamedSharding(mesh, PartitionSpec("lanes")))
        # refills and harvests go in chunks of fixed shape, small enough not to cost a step
        self.chunk = max(width // 4, 1)
        # Where lanes run in step, they come to their last ask together, and it needs no gradients. Elsewhere that is
        # luck, and not worth the compilation of another program.
        self.in_step = stop == "clean" or attack.asks <= 2
        elsewhere = PEEK.get(mesh.devices.flat[0].platform, PEEK_ELSEWHERE)
        self.peek = PEEK_IN_STEP if self.in_step else elsewhere
        if isinstance(model, HostModel):
            self.peek = 1  # the host is there at every step anyway
        self.executed = 0
        self.seconds = 0.0
        self.lane_example = np.full(width, -1)
        self.lane_age = np.zeros(width, np.int64)
        self.states: Any = None
        self.best = self._clean()
        self.runs_done = np.where(self.best["success"], attack.restarts, 0).astype(np.int32)
        self._line_up()

    def _clean(self) -> Books:
        """The books before any attack: of an example that meets its criterion already, what `init` books."""
        count, dtype = len(self.images), self.images.dtype
        best = {
            "image": self.images.copy(),
            "success": np.array(met(self.goal, self.logits)),
            "loss": np.full(count, -np.inf, dtype),
            "size": np.zeros(count, dtype),
            "forwards": np.zeros(count, np.int32),
            "backwards": np.zeros(count, np.int32),
            "non_finite": ~np.isfinite(self.logits).all(-1),
        }
        already = np.flatnonzero(best["success"])
        for start in range(0, len(already), self.chunk):
            rows = already[start : start + self.chunk]
            _write(best, rows, self._best(self._fresh(rows, np.zeros_like(rows)), np.arange(len(rows))))
        return best

    def _line_up(self) -> None:
        """Lists the examples that are in no lane and have runs before them."""
        waiting = self.runs_done < self.attack.restarts
        waiting[self.lane_example[self.lane_example >= 0]] = False
        self.queue = collections.deque(np.flatnonzero(waiting).tolist())

    @property
    def waits(self) -> bool:
        """Whether any example still has something before it."""
        return bool(self.queue) or bool((self.lane_example >= 0).any())

    @property
    def finished(self) -> int:
        """How many examples need no further attack."""
        return int((self.runs_done >= self.attack.restarts).sum())

    def round(self) -> None:
        """Refill the free lanes, take a step or a few, harvest what is done."""
        free = np.flatnonzero(self.lane_example < 0)
        for start in range(0, min(len(free), len(self.queue)), self.chunk):
            self._refill(free[start : start + self.chunk])
        live = self.lane_example >= 0
        left = self.attack.asks - self.lane_age[live]
        gradient = not (self.in_step and (left == 1).all())
        taken = min(self.peek, max(int(left.min()) - 1, 1))
        for _ in range(taken):
            model, gradient = self._answered(live), gradient and isinstance(self.model, Classifier)
            self.states, finished = self.programs.step(
                self.there.attack, model, self.states, stop=self.stop, gradient=gradient
            )
        self.executed += taken * self.width
        self.lane_age += taken
        done = np.flatnonzero(np.asarray(finished) & live)
        for start in range(0, len(done), self.chunk):
            self._harvest(done[start : start + self.chunk])

    def _answered(self, live: np.ndarray) -> Classifier:
        """The classifier; of a host model its answers, asked of live lanes and points that are meant only."""
        if isinstance(self.there.model, Classifier):
            return self.there.model
        points, meant = jax.device_get(self.programs.ask(self.there.attack, self.states))
        asked = meant & live[:, None]
        logits = np.zeros((*asked.shape, self.there.model.classes), points.dtype)
        logits[asked] = self.there.model(points[asked])
        return known(logits.reshape(-1, logits.shape[-1]))

    def _refill(self, slots: np.ndarray) -> None:
        rows = np.array([self.queue.popleft() for _ in range(min(len(slots), len(self.queue)))])
        slots = slots[: len(rows)]
        self.lane_example[slots], self.lane_age[slots] = rows, 0
        new = self._fresh(rows, self.runs_done[rows])
        if self.states is None:
            self.states = self._filled(new)
        self.states = self.programs.refill(self.states, pad(slots, self.chunk, fill=self.width), new)

    def _harvest(self, slots: np.ndarray) -> None:
        rows = self.lane_example[slots]
        known = None
        if self.attack.restarts > 1:
            known = {name: pad(values[rows], self.chunk) for name, values in self.best.items()}
        _write(self.best, rows, self._best(self.states, slots, known))
        self.lane_example[slots] = -1
        won = self.best["success"][rows] & (self.stop == "success")
        self.runs_done[rows] = np.where(won, self.attack.restarts, self.runs_done[rows] + 1)
        self.queue.extend(rows[self.runs_done[rows] < self.attack.restarts].tolist())

    def _fresh(self, rows: np.ndarray, runs: np.ndarray) -> Any:
        """States of the given runs of some examples, at most a chunk, and padded to one."""
        rows, runs = pad(rows, self.chunk), pad(runs, self.chunk).astype(np.uint32)
        goal = jax.tree.map(lambda leaf: leaf[rows], self.goal)
        jobs = (self.images[rows], goal, self.there.key, self.indices[rows], runs, self.logits[rows])
        return self.programs.fresh(self.there.attack, *jobs)

    def _filled(self, new: Any) -> Any:
        """Lanes that all hold a copy of the first of some states: a state of zeros might be one no attack knows."""
        return self.programs.fill(np.zeros(self.width, np.int32), new)

    def _best(self, states: Any, slots: np.ndarray, known: Books | None = None) -> Books:
        found = self.programs.harvest(self.there.attack, states, pad(slots, self.chunk), known, stop=self.stop)
        return {name: values[: len(slots)] for name, values in jax.device_get(found).items()}

    def conclude(self) -> AttackResult:
        """Success confirmed by a fresh forward pass, as in `attacks.run`."""
        best = self.best
        claimed = np.flatnonzero(best["success"])
        logits = self.logits.copy()
        if len(claimed):
            logits[claimed] = predict(self.there.model, best["image"][claimed], batch_size=self.batch)
        confirmed = best["success"] & np.asarray(met(self.goal, logits))
        booked = (best["success"], confirmed, best["non_finite"], best["forwards"])
        return AttackResult(
            images=best["image"],
            success=confirmed,
            loss=best["loss"],
            size=best["size"],
            forwards=best["forwards"] + 1,
            backwards=best["backwards"],
            code=engine.verdict(*booked, where=np.where),
        )

    @functools.cached_property
    def _fingerprint(self) -> str:
        return _store.fingerprint(
            _store.describe(self.attack),
            self.stop,
            [self.model.params, self.images, self.goal, self.indices, self.key],
        )

    def save(self, path: pathlib.Path, seconds: float) -> None:
        """The books and the lanes, atomically."""
        leaves = jax.tree.leaves(self.states) if self.waits else []
        _store.write_arrays(
            path,
            fingerprint=self._fingerprint,
            logits=self.logits,
            seconds=seconds,
            executed=self.executed,
            runs_done=self.runs_done,
            lane_example=self.lane_example,
            lane_age=self.lane_age,
            **{f"best_{name}": values for name, values in self.best.items()},
            **{f"lane_{i}": _store.raw(leaf) for i, leaf in enumerate(leaves)},
        )

    def resume(self, path: pathlib.Path) -> None:
        """Goes on from a saved run, if there is one: with its lanes if as many are asked for, else without."""
        if path.is_dir():
            raise ValueError(f"save must name a file; got the folder {path}")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        stored = _store.read_arrays(path)
        # a model's function has no fingerprint, only what it says; other batch shapes round it otherwise
        same_model = "logits" in stored and np.allclose(stored["logits"], self.logits, 1e-3, 1e-3, equal_nan=True)
        if not same_model or str(stored.get("fingerprint")) != self._fingerprint:
            raise ValueError(
                f"save must name a file of this very run; {path} was written by another attack, model, data set or key"
            )
        self.best = {name: stored[f"best_{name}"] for name in self.best}
        self.runs_done = stored["runs_done"]
        self.executed, self.seconds = int(stored["executed"]), float(stored["seconds"])
        if len(stored["lane_example"]) == self.width and "lane_0" in stored:
            self.lane_example, self.lane_age = stored["lane_example"], stored["lane_age"]
            row = np.zeros(1, np.int64)
            like = self._filled(self._fresh(row, row))
            saved = [_store.restored(stored[f"lane_{i}"], leaf) for i, leaf in enumerate(jax.tree.leaves(like))]
            self.states = jax.tree.unflatten(jax.tree.structure(like), saved)
        self._line_up()


def _write(best: Books, rows: np.ndarray, new: Books) -> None:
    for name, values in new.items():
        best[name][rows] = values
