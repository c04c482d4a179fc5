"""Strict settings for every test: four CPU devices, no silent rank or dtype promotion."""

import collections
import ctypes
import gc
import importlib.metadata
import itertools
import os
import pathlib
import resource

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The programs of the tests are many and small, so that compiling them is most of the work. XLA:CPU's first emitters by
# MLIR, of jaxlib up to 0.10, take three times as long as those before them, and later ones know no such flag.
if "xla_cpu_use_fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
    if tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2]) < (0, 11):
        FLAGS.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(FLAGS).strip()

import jax
import jaxtyping
import numpy as np
import pytest

# seconds that the tests of a room may take on two cores, see tests/README.md
BUDGET, SLOW_BUDGET = 45.0, 240.0
PEAKS = []  # MiB of every worker

MAPS = pathlib.Path("/proc/self/maps")
TESTS = itertools.count(1)

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    """Checks annotations as the library runs, but not in the slow run, which calls the same functions more often."""
    if "not slow" in (config.option.markexpr or ""):
        jaxtyping.install_import_hook("jaxrobust", "beartype.beartype")


def pytest_runtest_setup(item):
    """Skips most of XLA's optimisations, whose time would be half of the whole, where a test compiles much and small.

    The slow tests of rooms that train or solve, and those on real data, have all of them, where the mark `optimised`
    does not say otherwise, and `JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest` lets all do so.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        many = (
            item.path.parent.name in ("sets", "attacks", "evaluate", "testing") or item.path.name == "test_criteria.py"
        )
        slow, realdata = (item.get_closest_marker(name) is not None for name in ("slow", "realdata"))
        mark = item.get_closest_marker("optimised")
        optimised = mark.args[0] if mark else slow and (realdata or not many)
        jax.config.update("jax_disable_most_optimizations", not optimised)


def pytest_runtest_logfinish():
    """Gives compiled programs back before Linux refuses the process more memory maps, which ends it."""
    finished = next(TESTS)
    if finished % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:  # of 65,530
        jax.clear_caches()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Gives compiled programs back after a file, where they take much memory."""
    if (nextitem is None or nextitem.path != item.path) and MAPS.exists():
        pages = int(MAPS.with_name("statm").read_text().split()[1])
        if pages * resource.getpagesize() > 2 * 2**30:
            jax.clear_caches()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)


def pytest_sessionfinish(session):
    """Tells the controller how much memory a worker took at most."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Keeps what a worker told."""
    PEAKS.append(getattr(node, "workeroutput", {}).get("peak", 0.0))


def pytest_terminal_summary(terminalreporter, config):
    """Prints what every room took, so that one that outgrows its budget is seen."""
    rooms = collections.Counter()
    for report in itertools.chain(*terminalreporter.stats.values()):
        if hasattr(report, "duration"):
            place = pathlib.PurePath(report.nodeid.partition("::")[0]).parts
            rooms[place[1] if len(place) > 2 else "top level"] += report.duration
    allowed = config.option.numprocesses or 1
    budget = allowed * (BUDGET if "not slow" in (config.option.markexpr or "") else SLOW_BUDGET)
    terminalreporter.section("seconds of all workers, by room", sep="-")
    for room, seconds in rooms.most_common():
        over = f"  over the {budget:.0f} of its budget" if seconds > budget else ""
        terminalreporter.line(f"{room:12} {seconds:8.1f}{over}")
    if PEAKS:
        terminalreporter.line(f"memory of the workers at most: {max(PEAKS):,.0f} MiB")


@pytest.fixture
def rng():
    """NumPy randomness for test inputs."""
    return np.random.default_rng(0)


@pytest.fixture
def key():
    """A JAX key for test inputs."""
    return jax.random.key(0)
