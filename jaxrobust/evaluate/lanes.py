"""The lanes: the host drives one compiled step over a fixed number of lanes and refills each as soon as it is done.

No step is spent on a finished example and no shape ever changes, so nothing recompiles. Every example has its own
key, so its result is the same as from `attacks.run`, whatever else is in the lanes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from jaxrobust import _checks
from jaxrobust._borrow import borrowed
from jaxrobust._repr import represented
from jaxrobust.attacks import Attack
from jaxrobust.attacks.core import engine
from jaxrobust.evaluate import _hosts, _saved
from jaxrobust.evaluate._programs import (
    Books,
    clean_logits,
    fitting,
    forward,
    met,
    pad,
    predict,
    programs,
    replicated,
    rows_of,
)
from jaxrobust.evaluate.host import HostModel
from jaxrobust.types import AttackResult, Classifier, Criterion, Key

__all__ = ["LaneCounts", "LaneResult", "check", "predict", "replicated", "run_lanes"]

# Steps between two looks at the lanes. An accelerator works ahead of the host, at the price of a few idle steps of
# lanes that are done; where lanes run in step, none is done before the others.
PEEK = {"cpu": 1}
PEEK_ELSEWHERE = 4
PEEK_IN_STEP = 16
# Floating point operations that the last lanes must spare before it pays to compile narrower ones for them. Not
# seconds, which change from run to run, and with them, in the last bits, results.
NARROWER = {"cpu": 1e12}
NARROWER_ELSEWHERE = 1e15
SAVE_EVERY = 30.0  # seconds between two saves
SAVE_SHARE = 0.05  # of the wall time at most goes into saves


@dataclasses.dataclass(frozen=True)
class LaneCounts:
    """What a run of the lanes cost.

    Args:
        executed: lane-steps the machine ran, lanes · steps, over all sessions of a resumed run.
        needed: lane-steps the attacked examples needed: their asks, of however many points, until each was done.
        seconds: wall time, over all sessions of a resumed run.
    """

    executed: int
    needed: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class LaneResult:
    """The result, in NumPy arrays since a data set need not fit on a device, what it cost, and what the model says.

    Args:
        result: of the attack.
        counts: what it cost.
        prediction: (N,) the class of the point that is returned: of one that was claimed as a success by the fresh
            forward pass that confirms it, else of the clean image.
    """

    result: AttackResult
    counts: LaneCounts
    prediction: np.ndarray

    __repr__ = represented


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
    run_id: str | None = None,
    progress: bool | str = False,
) -> LaneResult:
    """Attack a whole data set, as `attacks.run` would but without wasting a step; see this module's first lines.

    Args:
        attack: the attack, of one radius or one an image; for a host model without a pullback one without gradients.
        model: the classifier, or a `HostModel`.
        images: (N, H, W, C) floating point in [0, 1], held on the host.
        labels: (N,) true labels, or a criterion.
        key: makes all randomness; example i uses fold_in(key, indices[i]).
        indices: (N,) integers ≥ 0, by default 0 … N−1.
        logits: (N, K) clean logits, computed here if not given.
        lanes: examples in flight at once at most, ≥ 1, rounded up to a multiple of the number of devices; fewer where
            there are not so many, or where the last turn would else be mostly idle.
        early_stop: whether an example's first success frees its lane; never that of an attack under randomness.
        devices: where to run; by default all local devices, the lanes split evenly among them.
        save: a file to which finished examples and the lanes' state are saved, from time to time and whenever an
            exception or Ctrl-C ends the run; a run that finds the file of an unfinished run of the same attack, model,
            data and key goes on from there, one that finds another's raises. A model is known by its code, its
            parameters and what it answers: a `HostModel` is asked about 16 more points for that.
        run_id: a name of your own for the run, by which its file is known where functions or objects in the model or
            the attack cannot be read (a connection, a lock), or change as they are used (a count of calls). All such
            functions and objects of yours are then known by their names alone, and you vouch for them.
        progress: whether to show a progress bar, on standard error; a string is its label.

    Returns:
        The result and its costs.

    Raises:
        TypeError: as `attacks.run`; a `save` that is no path.
        ValueError: as `attacks.run`, or the save file belongs to a different run or is damaged, or something in the
            model or the attack cannot be identified and there is no `run_id`.
    """
    _checks.saving("save", save, run_id)
    known = None if save is None else _saved.of_model(model, run_id)
    options: dict[str, Any] = {"lanes": lanes, "early_stop": early_stop, "devices": devices, "progress": progress}
    options |= {"key": key, "indices": indices, "logits": logits, "save": save, "run_id": run_id}
    return drive(attack, model, images, labels, known=known, **options)


def drive(
    attack: Attack,
    model: Classifier | HostModel,
    images: Any,
    labels: Any,
    *,
    key: Key,
    indices: Any,
    logits: Any,
    lanes: int,
    early_stop: bool,
    devices: Sequence[Any] | None,
    save: str | pathlib.Path | None,
    run_id: str | None,
    progress: bool | str,
    known: dict[str, str] | None,
) -> LaneResult:
    """`run_lanes`, for those who know already what the model is: `_saved.of_model` before it was first asked."""
    began = time.perf_counter()
    everywhere = replicated(devices)
    _checks.count("lanes", lanes)
    if _checks.explicit_mesh(images, labels) is not None:
        images, labels = jax.device_get((images, labels))  # of which slices can be taken
    indices, classes = check(attack, model, images, labels, key=key, indices=indices, ask=logits is None)
    if logits is not None and np.shape(logits) != (len(images), classes):
        raise ValueError(f"logits must have shape {(len(images), classes)}; got {np.shape(logits)}")
    goal = jax.tree.map(np.asarray, _checks.criterion(labels, images))
    images = _checks.widened(images)
    images = np.asarray(images, jax.dtypes.canonicalize_dtype(images.dtype))
    if images.min() < 0 or images.max() > 1:
        images = np.clip(images, 0, 1)
    model = jax.device_put(model, everywhere)
    if logits is None:
        logits = clean_logits(model, images, batch_size=lanes)
    stop = engine.stop_of(attack, early_stop)
    job = _Run(attack, model, images, goal, key, indices, np.asarray(logits), lanes, stop, everywhere)
    file = None if save is None else _saved.File(pathlib.Path(save), job, attack, known or {}, run_id)
    ran = job.waits

    def seconds() -> float:
        return job.seconds + (time.perf_counter() - began if ran else 0.0)

    with contextlib.nullcontext() if file is None else file.rescue(seconds):
        _play(job, file, progress, seconds)
        result, prediction = job.conclude()
    spent = seconds()
    if file is not None and (ran or not file.path.exists()):
        try:
            file.save(spent)
        except OSError as error:  # such as a full disk: no reason to lose what has been computed
            warnings.warn(f"the finished run was not saved to {file.path}: {error}", RuntimeWarning, stacklevel=3)
    counts = LaneCounts(executed=job.executed, needed=job.needed, seconds=spent)
    return LaneResult(result, counts, prediction)


def _play(job: _Run, file: _saved.File | None, progress: bool | str, seconds: Callable[[], float]) -> None:
    """Rounds until nothing waits, saved from time to time."""
    label = progress if isinstance(progress, str) else "attack"
    with tqdm(total=len(job.images), desc=label, unit="img", disable=not progress, initial=job.finished) as bar:
        saved, pause = time.perf_counter(), SAVE_EVERY
        while job.waits:
            before = job.finished
            job.round()
            if job.finished > before:
                bar.update(job.finished - before)
                bar.set_postfix(fooled=int(job.best["success"].sum()), refresh=False)
            if file is not None and time.perf_counter() - saved > pause:
                saving = time.perf_counter()
                file.save(seconds())
                saved = time.perf_counter()
                pause = max(SAVE_EVERY, (saved - saving) / SAVE_SHARE)


def check(
    attack: Any,
    model: Classifier | HostModel,
    images: Any,
    labels: Any,
    *,
    key: Any,
    indices: Any = None,
    ask: bool = True,
) -> tuple[np.ndarray, int]:
    """All checks at the door of the lanes, the cheap ones first.

    Args:
        attack: the attack.
        model: the classifier, or a `HostModel`.
        images: (N, H, W, C).
        labels: (N,) labels, or a criterion.
        key: the random key.
        indices: (N,) integers, or None for 0 … N−1.
        ask: whether the model is run on a few images; False where that was done.

    Returns:
        The indices, (N,) unsigned, and the number of the model's classes.

    Raises:
        TypeError: as `attacks.run`.
        ValueError: as `attacks.run`, indices that are negative or not one an image, or an attack that wants more of a
            host model than it gives.
    """
    engine.check_attack(attack)
    _checks.key(key)
    _checks.image_shape(images)
    engine.check_radii(attack, images)
    images = _checks.widened(images)
    goal = _checks.criterion(labels, images)
    if indices is None:
        indices = np.arange(len(images))
    indices = np.asarray(indices)
    _checks.label_shape("indices", indices, images)
    if indices.min() < 0 or indices.max() >= 2**32:
        raise ValueError(f"indices must lie in [0, 2**32); got values in [{indices.min()}, {indices.max()}]")
    if isinstance(model, HostModel):
        _hosts.check_attack(attack, model)
        _checks.number("radius", jax.device_get(attack.set.radius))
        _checks.image_values(images)
        classes = model.classes_on(images)
        _checks.label_values(goal, classes)
        return indices.astype(np.uint32), classes
    # of the shape at which the values are checked too, so that the model is traced once for both
    classes = _checks.logits_shape(model, images[:8])
    engine.check_values(attack, model, images, goal, classes, ask=ask)
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
        lanes: int,
        stop: engine.Stop,
        everywhere: NamedSharding,
    ) -> None:
        lent = borrowed(model)
        if isinstance(lent, Classifier):
            attack = attack.bound_to(lent)
        self.attack, self.model, self.images, self.goal = attack, model, images, goal
        self.alike = engine.of_examples(attack, slice(0)) is attack  # on all examples
        self.runs = attack.runs(logits.shape[-1])  # of an example
        self.key, self.indices, self.logits, self.stop = key, indices, logits, stop
        self.batch = fitting(len(images), lanes)  # the clean pass's, whose program confirms successes too
        # on every device once, not again with every call
        self.there = _There(*jax.device_put((attack, lent, key), everywhere))
        mesh = everywhere.mesh
        self.split = len(mesh.devices)
        self.programs = programs(NamedSharding(mesh, PartitionSpec("lanes")), lent)
        # Where lanes run in step, they come to their last asks together, and those need no gradients. Elsewhere that is
        # luck, and not worth the compilation of another program.
        self.in_step = attack.asks <= 2 or (stop == "clean" and not attack.ends_early)
        platform = mesh.devices.flat[0].platform
        self.peek = PEEK_IN_STEP if self.in_step else PEEK.get(platform, PEEK_ELSEWHERE)
        self.narrower = NARROWER.get(platform, NARROWER_ELSEWHERE)
        if isinstance(model, HostModel):
            self.peek = 1  # the host is there at every step anyway
        self.executed = 0
        self.needed = 0  # by runs that are over
        self.seconds = 0.0
        already = np.array(met(goal, logits))
        self.lane_example = np.full(self._starting_width(lanes, int((~already).sum())), -1)
        self.lane_age = np.zeros(self.width, np.int64)
        self.lane_done = np.zeros(self.width, bool)  # and not harvested yet
        self.states: Any = None
        self.best = self._clean(already)
        self.runs_done = np.where(self.best["success"], self.runs, 0).astype(np.int32)
        self.line_up()

    @property
    def width(self) -> int:
        """The number of lanes."""
        return len(self.lane_example)

    @property
    def chunk(self) -> int:
        """How many lanes are refilled or harvested at once: of fixed shape, and small enough not to cost a step."""
        return max(self.width // 4, 1)

    def _clean(self, success: np.ndarray) -> Books:
        """The books before any attack: of an example that meets its criterion already, what `init` books."""
        count, dtype = len(self.images), self.images.dtype
        best = {
            "image": self.images.copy(),
            "success": success,
            "loss": np.full(count, -np.inf, dtype),
            "size": np.zeros(count, dtype),
            "forwards": np.zeros(count, np.int32),
            "backwards": np.zeros(count, np.int32),
            "non_finite": ~np.isfinite(self.logits).all(-1),
            "inside": np.ones(count, bool),
            "rank": np.full(count, -np.inf, dtype),
        }
        already = np.flatnonzero(success)
        chunk = max(self.chunk, len(already) // 64)  # where lanes are few for all those
        for start in range(0, len(already), chunk):
            rows = already[start : start + chunk]
            states = self._fresh(rows, np.zeros_like(rows), chunk)
            _write(best, rows, self._best(states, rows, np.arange(len(rows)), chunk))
        return best

    def line_up(self) -> None:
        """Lists the examples that are in no lane and have runs before them."""
        waiting = self.runs_done < self.runs
        waiting[self.lane_example[self.lane_example >= 0]] = False
        self.queue = collections.deque(np.flatnonzero(waiting).tolist())

    @property
    def waits(self) -> bool:
        """Whether any example still has something before it."""
        return bool(self.queue) or bool((self.lane_example >= 0).any())

    @property
    def finished(self) -> int:
        """How many examples need no further attack."""
        return int((self.runs_done >= self.runs).sum())

    def round(self) -> None:
        """Refill the free lanes, take a step or a few, harvest what is done."""
        free = np.flatnonzero(self.lane_example < 0)
        for start in range(0, min(len(free), len(self.queue)), self.chunk):
            self._refill(free[start : start + self.chunk])
        self._narrow()
        live = self.lane_example >= 0
        left = self.attack.asks - self.lane_age[live]
        booking = self.in_step and (left <= self.attack.bookings).all()
        gradient = self.attack.gradients > 0 and not booking
        taken = min(self.peek, max(int(left.min()) - self.attack.bookings, 1))
        seen = []
        for _ in range(taken):
            step = self._step(live, gradient)
            with _saved.undisturbed():
                self.states, finished = step()
                self.executed += self.width
                self.lane_age += ~self.lane_done
            seen.append(finished)
        *before, finished = jax.device_get(seen)
        # a lane that was done is frozen in the steps that follow
        self.lane_age -= np.sum(before, 0, dtype=np.int64)
        self.lane_done = finished & live
        done = np.flatnonzero(self.lane_done)
        for start in range(0, len(done), self.chunk):
            self._harvest(done[start : start + self.chunk])

    def _starting_width(self, lanes: int, waiting: int) -> int:
        """By the number of examples, which is the same for all models; by that of those to be attacked if it pays."""
        width, own = (fitting(n, lanes, self.split, self.runs) for n in (len(self.images), waiting))
        turns = (-(-waiting * self.runs // width), -(-waiting * self.runs // own))
        spared = (turns[0] * width - turns[1] * own) * self.attack.asks
        return own if self._pays(spared) else width

    def _pays(self, spared: int) -> bool:
        """Whether to spare so many lane-steps is worth another compilation."""
        return spared > 0 and spared * self._cost >= self.narrower

    @_saved.undisturbed()
    def _narrow(self) -> None:
        """Moves the last examples to fewer lanes, where that spares more than it costs to compile."""
        if self.queue:
            return
        live = np.flatnonzero(self.lane_example >= 0)
        width = self.split * (1 << (-(-len(live) // self.split) - 1).bit_length())
        if 2 * width > self.width:
            return
        left = self.attack.asks - int(self.lane_age[live].min())
        if not self._pays((self.width - width) * left):
            return
        self.states = self.programs.fill(pad(live, width), self.states)
        self.lane_example = pad(self.lane_example[live], width, fill=-1)
        self.lane_age = pad(self.lane_age[live], width, fill=0)
        self.lane_done = pad(self.lane_done[live], width, fill=0)

    @functools.cached_property
    def _cost(self) -> float:
        """Floating point operations of the model in one lane's step; 0 where they are not known."""
        if isinstance(self.model, HostModel):
            return 0.0
        passes = 3 if self.attack.gradients else 1
        # of the clean pass's shape, since that has been traced
        like = jax.ShapeDtypeStruct((self.batch, *self.images.shape[1:]), self.images.dtype)
        return _checks.operations(self.there.model, like) * self.attack.width * passes

    def _step(self, live: np.ndarray, gradient: bool) -> Callable[[], tuple[Any, Any]]:
        """What takes a step; a host model has answered then, to live lanes and points that are meant only."""
        attack, model = self._attack_on(self.lane_example), self.there.model
        if not isinstance(model, HostModel):
            return lambda: self.programs.step(attack, model, self.states, stop=self.stop, gradient=gradient)
        points, meant = jax.device_get(self.programs.ask(attack, self.states))
        directions = functools.partial(self.programs.followed, attack, self.states, stop=self.stop)
        told = _hosts.answers(model, points, meant & live[:, None], directions if gradient else None)
        return lambda: self.programs.tell(attack, self.states, *told, stop=self.stop)

    @_saved.undisturbed()
    def _refill(self, slots: np.ndarray) -> None:
        rows = np.array([self.queue.popleft() for _ in range(min(len(slots), len(self.queue)))])
        slots = slots[: len(rows)]
        new = self._fresh(rows, self.runs_done[rows])
        if self.states is None:
            self.states = self._filled(new)
        self.states = self.programs.refill(self.states, pad(slots, self.chunk, fill=self.width), new)
        # only now, since lanes that failed to be filled hold nothing of these examples
        self.lane_example[slots], self.lane_age[slots] = rows, 0

    @_saved.undisturbed()
    def _harvest(self, slots: np.ndarray) -> None:
        rows = self.lane_example[slots]
        known = None
        if self.runs > 1:
            known = {name: pad(values[rows], self.chunk) for name, values in self.best.items()}
        _write(self.best, rows, self._best(self.states, rows, slots, self.chunk, known))
        self.needed += int(self.lane_age[slots].sum())
        self.lane_example[slots], self.lane_done[slots] = -1, False
        won = self.best["success"][rows] & (self.stop == "success")
        self.runs_done[rows] = np.where(won, self.runs, self.runs_done[rows] + 1)
        self.queue.extend(rows[self.runs_done[rows] < self.runs].tolist())

    def _fresh(self, rows: np.ndarray, runs: np.ndarray, chunk: int | None = None) -> Any:
        """States of the given runs of some examples, at most a chunk, and padded to one."""
        chunk = chunk or self.chunk
        rows, runs = pad(rows, chunk), pad(runs, chunk).astype(np.uint32)
        goal = rows_of(self.goal, rows)
        jobs = (self.images[rows], goal, self.there.key, self.indices[rows], runs, self.logits[rows])
        return self.programs.fresh(self._attack_on(rows), *jobs)

    def _attack_on(self, rows: np.ndarray) -> Attack:
        """The attack on some examples, one a row."""
        return self.there.attack if self.alike else engine.of_examples(self.there.attack, rows)

    def _filled(self, new: Any) -> Any:
        """Lanes that all hold a copy of the first of some states: a state of zeros might be one no attack knows."""
        return self.programs.fill(np.zeros(self.width, np.int32), new)

    def _best(self, states: Any, rows: np.ndarray, slots: np.ndarray, chunk: int, known: Books | None = None) -> Books:
        """What the lanes `slots` have booked for the examples `rows`, at most a chunk."""
        rows = pad(rows, chunk)
        attack, images = self._attack_on(rows), self.images[rows]
        found = self.programs.harvest(attack, states, pad(slots, chunk), images, known, stop=self.stop)
        return {name: values[: len(slots)] for name, values in jax.device_get(found).items()}

    def conclude(self) -> tuple[AttackResult, np.ndarray]:
        """Success confirmed by a fresh forward pass, as in `attacks.run`, and the classes that it saw."""
        best = self.best
        claimed = np.flatnonzero(best["success"] | self.attack.sees_draws)
        logits = self.logits.copy()
        if len(claimed):
            logits[claimed] = forward(self.there.model, best["image"], claimed, self.batch)
        met_now = np.asarray(met(self.goal, logits))
        # what sees draws of the model takes for a success, and what not, may both have been luck
        success = best["success"] | (self.attack.sees_draws & met_now)
        confirmed = success & met_now
        booked = (success, confirmed, best["inside"], best["non_finite"], best["forwards"])
        outside = np.flatnonzero(~best["inside"])
        best["image"][outside] = self.images[outside]  # as if nothing had been found
        result = AttackResult(
            images=best["image"],
            success=confirmed & best["inside"],
            loss=best["loss"],
            size=best["size"],
            forwards=best["forwards"] + 1,
            backwards=best["backwards"],
            code=engine.verdict(*booked, where=np.where, started=engine.has_started(self.attack, best["loss"])),
        )
        return result, logits.argmax(-1)

    def example_states(self) -> Any:
        """States of the lanes' layout, to restore saved ones like them."""
        row = np.zeros(1, np.int64)
        return self._filled(self._fresh(row, row))


def _write(best: Books, rows: np.ndarray, new: Books) -> None:
    for name, values in new.items():
        best[name][rows] = values
