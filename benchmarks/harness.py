"""What every benchmark shares: its settings, its figures, how two things are timed against each other."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
import tyro

__all__ = ["REGISTRY", "Figure", "Settings", "Timing", "against", "compilations", "missing", "register", "seconds"]

ROOT = pathlib.Path(__file__).resolve().parent.parent
# others' files, which are never committed
REFERENCES = pathlib.Path(os.environ.get("JAXROBUST_REFERENCES", ROOT.parent / "shared" / "data"))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The benchmarks of jaxrobust: ratios of what is timed in one run, and numbers to be reproduced.

    Args:
        names: which benchmarks to run; by default all whose packages are installed.
        output: a new JSON file, or a folder, in which the file is named after the device and the date.
        quick: small networks, few images and steps, to see that it runs; its figures mean nothing.
        pairs: how often each timed pair is repeated; by default each benchmark's own number.
        networks: what `pgd_overhead` attacks.
        weights: parameters of the undefended MNIST network, .npz; by default below $JAXROBUST_REFERENCES.
        run_dir: where adversarial training keeps its checkpoints, so that it goes on where it was killed.
        at_epochs: epochs of adversarial training.
        at_warmup: epochs over which its radius grows from 0.
        at_steps: PGD steps of adversarial training.
        at_step_size: the size of these steps, for a radius of 0.3.
        at_width: channels of the trained network's first convolutions.
        at_examples: images it is trained on, of 60,000.
        seed: seed of all randomness.
        progress: whether to show progress bars.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    output: pathlib.Path | None = None
    quick: bool = False
    pairs: int | None = None
    networks: tuple[Literal["MnistNet", "PreActResNet-18"], ...] = ("MnistNet", "PreActResNet-18")
    weights: pathlib.Path = REFERENCES / "checkpoints" / "mnist_vanilla.npz"
    run_dir: pathlib.Path = ROOT / "runs" / "benchmarks" / "mnist_at"
    at_epochs: int = 4
    at_warmup: float = 2.0
    at_steps: int = 5
    at_step_size: float = 0.1
    at_width: int = 16
    at_examples: int = 60_000
    seed: int = 0
    progress: bool = True

    def repeats(self, default: int) -> int:
        """How often to repeat a timed pair."""
        return self.pairs or (2 if self.quick else default)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number that a benchmark found.

    Args:
        name: what it is.
        value: the number; of repeated timings the median.
        unit: of the number; "" for a ratio.
        target: what it should be, or None.
        sense: how the number is held against the target.
        low: the smallest of repeated timings.
        high: the largest of them.
        repeats: how many there were.
    """

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    low: float | None = None
    high: float | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))

    @staticmethod
    def of(name: str, values: Any, unit: str = "", **kwargs: Any) -> Figure:
        """The median of repeated measurements, with their range."""
        values = np.asarray(values, float)
        low, high = float(values.min()), float(values.max())
        return Figure(name, float(np.median(values)), unit, low=low, high=high, repeats=len(values), **kwargs)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.sense == "at most" else self.value >= self.target

    def to_json(self, benchmark: str) -> dict[str, Any]:
        """The figure's entry in a results file."""
        return {"benchmark": benchmark, **dataclasses.asdict(self), "met": self.met}


Benchmark = Callable[[Settings], Iterator[Figure]]
REGISTRY: dict[str, Benchmark] = {}


# benchmark -> packages it needs besides those of the tests; without them it is left out unless it is named
NEEDS: dict[str, tuple[str, ...]] = {}


def register(benchmark: Benchmark | None = None, *, needs: tuple[str, ...] = ()) -> Any:
    """Enter a benchmark under its function's name.

    Args:
        benchmark: the function; or None, for a decorator.
        needs: packages to be installed first.

    Returns:
        The benchmark, or the decorator.
    """
    if benchmark is None:
        return functools.partial(register, needs=needs)
    REGISTRY[benchmark.__name__] = benchmark
    NEEDS[benchmark.__name__] = needs
    return benchmark


def missing(name: str) -> list[str]:
    """The packages that a benchmark needs and that are not installed."""
    return [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one thing and of the reference timed just before it, pair by pair.

    Args:
        first: the first call, which compiles.
        measured: later calls.
        reference: the reference's calls, one a pair.
    """

    first: float
    measured: np.ndarray
    reference: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """Measured over reference, pair by pair."""
        return self.measured / self.reference

    @property
    def compile(self) -> float:
        """What the first call took longer than later ones."""
        return max(self.first - float(np.median(self.measured)), 0.0)


def seconds(work: Callable[[], Any]) -> float:
    """The wall time of a call, its arrays awaited."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def against(
    reference: Callable[[], Any], measured: Mapping[str, Callable[[], Any]], *, pairs: int
) -> dict[str, Timing]:
    """Time things against one reference, in turns after a warm-up, so that a machine's moods meet both of a pair.

    Args:
        reference: what they are compared with.
        measured: name -> work.
        pairs: turns.

    Returns:
        name -> its times.
    """
    seconds(reference)
    first = {name: seconds(work) for name, work in measured.items()}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in measured}
    for _ in range(pairs):
        for name, work in measured.items():
            rows[name].append((seconds(reference), seconds(work)))
    columns = {name: np.array(times).T for name, times in rows.items()}
    return {name: Timing(first[name], measured=times[1], reference=times[0]) for name, times in columns.items()}


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Seconds of each program that XLA compiles inside the block."""
    found: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
