"""The lanes: the host drives one compiled step over a fixed number of lanes and refills each as soon as it is done.

No step is spent on a finished example and no shape ever changes, so nothing recompiles. Every example has its own
key, so its result is the same as from `attacks.run`, whatever else is in the lanes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from jaxrobust import _compile
from jaxrobust._borrow import borrowed
from jaxrobust._repr import represented
from jaxrobust.attacks import Attack
from jaxrobust.attacks.core import engine
from jaxrobust.evaluate import _hosts
from jaxrobust.evaluate._programs import (
    Books,
    fitting,
    forward,
    met,
    pad,
    programs,
    rows_of,
)
from jaxrobust.evaluate.host import HostModel
from jaxrobust.types import AttackResult, Classifier, Criterion, Key

__all__ = ["LaneCounts", "LaneResult", "Watch", "drive", "undisturbed", "unwatched"]

# Steps between two looks at the lanes. An accelerator works ahead of the host, at the price of a few idle steps of
# lanes that are done; where lanes run in step, none is done before the others.
PEEK = {"cpu": 1}
PEEK_ELSEWHERE = 4
PEEK_IN_STEP = 16
# Floating point operations that the last lanes must spare before it pays to compile narrower ones for them. Not
# seconds, which change from run to run, and with them, in the last bits, results.
NARROWER = {"cpu": 1e12}
NARROWER_ELSEWHERE = 1e15


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


# What looks on as a run of the lanes is played: opened on the run before its first step and closed after its last, it
# gives what is to be called after every round.
Watch = Callable[["_Run"], contextlib.AbstractContextManager[Callable[[], None]]]


def unwatched(run: _Run) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Nobody looks on."""
    return contextlib.nullcontext(lambda: None)


def drive(
    attack: Attack,
    model: Classifier | HostModel,
    images: np.ndarray,
    goal: Criterion,
    *,
    key: Key,
    indices: np.ndarray,
    logits: np.ndarray,
    lanes: int,
    early_stop: bool,
    everywhere: NamedSharding,
    progress: bool | str,
    watch: Watch = unwatched,
) -> LaneResult:
    """`run_lanes` of what has passed the door and its clean logits; the model lies `everywhere`, see `replicated`."""
    stop = engine.stop_of(attack, early_stop)
    run = _Run(attack, model, images, goal, key, indices, logits, lanes, stop, everywhere)
    with watch(run) as after_round:
        run.play(progress, after_round)
        result, prediction = run.conclude()
    return LaneResult(result, LaneCounts(run.executed, run.needed, run.seconds), prediction)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until the context ends, so that what belongs together is done together.

    Only the main thread may handle signals, and only there does Ctrl-C raise; elsewhere nothing is held back.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    received: list[Any] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            before(*received[0])


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
        self.earlier = 0.0  # seconds, of sessions before this one
        self.began: float | None = time.perf_counter()
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

    @property
    def seconds(self) -> float:
        """Wall time over all sessions; one in which nothing is left to do takes none."""
        return self.earlier + (0.0 if self.began is None else time.perf_counter() - self.began)

    def play(self, progress: bool | str, after_round: Callable[[], None]) -> None:
        """Rounds until nothing waits."""
        if not self.waits:
            self.began = None
        label = progress if isinstance(progress, str) else "attack"
        with tqdm(total=len(self.images), desc=label, unit="img", disable=not progress, initial=self.finished) as bar:
            while self.waits:
                before = self.finished
                self.round()
                if self.finished > before:
                    bar.update(self.finished - before)
                    bar.set_postfix(fooled=int(self.best["success"].sum()), refresh=False)
                after_round()

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
            with undisturbed():
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

    @undisturbed()
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
        return _compile.operations(self.there.model, like) * self.attack.width * passes

    def _step(self, live: np.ndarray, gradient: bool) -> Callable[[], tuple[Any, Any]]:
        """What takes a step; a host model has answered then, to live lanes and points that are meant only."""
        attack, model = self._attack_on(self.lane_example), self.there.model
        if not isinstance(model, HostModel):
            return lambda: self.programs.step(attack, model, self.states, stop=self.stop, gradient=gradient)
        points, meant = jax.device_get(self.programs.ask(attack, self.states))
        directions = functools.partial(self.programs.followed, attack, self.states, stop=self.stop)
        told = _hosts.answers(model, points, meant & live[:, None], directions if gradient else None)
        return lambda: self.programs.tell(attack, self.states, *told, stop=self.stop)

    @undisturbed()
    def _refill(self, slots: np.ndarray) -> None:
        rows = np.array([self.queue.popleft() for _ in range(min(len(slots), len(self.queue)))])
        slots = slots[: len(rows)]
        new = self._fresh(rows, self.runs_done[rows])
        if self.states is None:
            self.states = self._filled(new)
        self.states = self.programs.refill(self.states, pad(slots, self.chunk, fill=self.width), new)
        # only now, since lanes that failed to be filled hold nothing of these examples
        self.lane_example[slots], self.lane_age[slots] = rows, 0

    @undisturbed()
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
        """Success confirmed by a fresh forward pass, as in `attacks.run`, and the classes it saw; stops the clock."""
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
        self.earlier, self.began = self.seconds, None
        return result, logits.argmax(-1)

    def example_states(self) -> Any:
        """States of the lanes' layout, to restore saved ones like them."""
        row = np.zeros(1, np.int64)
        return self._filled(self._fresh(row, row))


def _write(best: Books, rows: np.ndarray, new: Books) -> None:
    for name, values in new.items():
        best[name][rows] = values
