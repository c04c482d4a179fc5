"""Strict settings for every test: four CPU devices, no silent rank or dtype promotion."""

import itertools
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
import pytest

# asserts in modules that hold tests but are not named so are to be explained too
pytest.register_assert_rewrite("tests.sets.laws")

MAPS = pathlib.Path("/proc/self/maps")
TESTS = itertools.count(1)

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_runtest_setup(item):
    """Skips most of XLA's optimisations, whose time would be half of the whole, where a test compiles much and small.

    The slow tests of all rooms but sets and attacks, and those on real data, compile as users do, and
    `JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest` lets all do so.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        small = "realdata" not in item.keywords and item.path.parent.name in ("sets", "attacks")
        jax.config.update("jax_disable_most_optimizations", small or "slow" not in item.keywords)


def pytest_runtest_logfinish():
    """Gives compiled programs back before Linux refuses the process more memory maps, which ends it."""
    finished = next(TESTS)
    if finished % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:  # of 65,530
        jax.clear_caches()


@pytest.fixture
def rng():
    """NumPy randomness for test inputs."""
    return np.random.default_rng(0)


@pytest.fixture
def key():
    """A JAX key for test inputs."""
    return jax.random.key(0)
