"""Two processes of two devices each make the run of one, and what they saved any number of devices takes up."""

import dataclasses
import os
import pathlib
import pickle
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxrobust.data import Loader
from tests.training.test_devices import ATTACKS, CONFIG, assert_near, numbers, run
from tests.training.tiny import assert_equal, without_times

ROOT = pathlib.Path(__file__).parents[2]
# what is held out and what is watched is shared among processes, which decide alike
WATCHING = {
    "config": dataclasses.replace(CONFIG, validation=0.2, stop_on_overfitting=True),
    "validation_attack": ATTACKS[0],
}
STEPS = 8


def main(address, index, folder, pause):
    """One of the processes: the run by both mappings, and what came of it."""
    jax.distributed.initialize(address, 2, int(index))
    slow_down(float(pause))
    found = run(**WATCHING, run_dir=pathlib.Path(folder) / "run")
    assert_near(run(mapping="pmap"), run())
    rows = without_times(found.history)
    (pathlib.Path(folder) / f"{index}.pickle").write_bytes(pickle.dumps((rows, jax.device_get(numbers(found)))))


def slow_down(pause):
    """Sleep before every batch, since a signal is seen but once a second."""
    epoch = Loader.epoch

    def paused(*args, **options):
        for batch in epoch(*args, **options):
            time.sleep(pause)
            yield batch

    Loader.epoch = paused


def begin(folder, *, pause=0.0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {**os.environ, **settings}
    command = [sys.executable, "-m", "tests.training.test_processes", address]
    return [
        subprocess.Popen(
            [*command, str(index), str(folder), str(pause)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


def end(workers):
    told = [worker.communicate(timeout=240)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(told)


def results(folder):
    return [pickle.loads((folder / f"{index}.pickle").read_bytes()) for index in range(2)]


def terminate_one_at_a_checkpoint(workers, run_dir):
    """SIGTERM to one of them; the step after which each said that it stopped."""
    until = time.monotonic() + 240
    while not list((run_dir / "checkpoints").glob("[0-9]*")) and time.monotonic() < until:
        assert all(worker.poll() is None for worker in workers), workers[0].communicate()[0]
        time.sleep(0.01)
    workers[1].send_signal(signal.SIGTERM)
    told = [worker.communicate(timeout=240)[0] for worker in workers]
    stopped = [re.findall(r"SIGTERM: saved and stopped after step (\d+)", text) for text in told]
    assert all(len(steps) == 1 for steps in stopped), "\n".join(told)
    return [int(steps[0]) for steps in stopped]


@pytest.mark.slow
@pytest.mark.optimised(False)
def test_processes_make_the_run_of_one(tmp_path):
    first, second = terminate_one_at_a_checkpoint(begin(tmp_path, pause=0.5), tmp_path / "run")
    assert first == second < STEPS
    assert (tmp_path / "run" / "checkpoints" / str(first)).is_dir()
    end(begin(tmp_path))
    alone = run(**WATCHING)
    assert alone.history[-1]["step"] == STEPS
    (rows, first), (same_rows, second) = results(tmp_path)
    assert rows == same_rows
    assert_equal(first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), first, numbers(alone))
    for row, expected in zip(rows, without_times(alone.history), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    # finished, and so read from its checkpoint by a single process with one device
    assert_near(run(**WATCHING, run_dir=tmp_path / "run"), alone)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == CONFIG.epochs


if __name__ == "__main__":
    main(*sys.argv[1:])
