"""Two processes of two devices each make the run of one, and what they saved any number of devices takes up."""

import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.training.test_devices import CONFIG, assert_near, numbers, run
from tests.training.tiny import assert_equal

ROOT = pathlib.Path(__file__).parents[2]


def main(address, index, folder):
    """One of the processes: the run by both mappings, and what came of it."""
    jax.distributed.initialize(address, 2, int(index))
    found = run(run_dir=pathlib.Path(folder) / "run")
    assert_near(run(mapping="pmap"), found)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in found.history]
    (pathlib.Path(folder) / f"{index}.pickle").write_bytes(pickle.dumps((rows, jax.device_get(numbers(found)))))


def begin(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.test_processes", address]
    return [
        subprocess.Popen(
            [*command, str(index), str(folder)],
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


def kill_at_a_checkpoint(workers, run_dir):
    """kill -9 once a checkpoint of the first epoch is whole."""
    until = time.monotonic() + 240
    while not list((run_dir / "checkpoints").glob("[0-9]*")) and time.monotonic() < until:
        assert all(worker.poll() is None for worker in workers), workers[0].communicate()[0]
        time.sleep(0.01)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()


@pytest.mark.slow
def test_processes_make_the_run_of_one(tmp_path):
    kill_at_a_checkpoint(begin(tmp_path), tmp_path / "run")
    end(begin(tmp_path))
    alone = run()
    (rows, first), (same_rows, second) = results(tmp_path)
    assert rows == same_rows
    assert_equal(first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), first, numbers(alone))
    for row, expected in zip(rows, alone.history, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    # finished, and so read from its checkpoint by a single process with one device
    assert_near(run(run_dir=tmp_path / "run"), alone)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == CONFIG.epochs


if __name__ == "__main__":
    main(*sys.argv[1:])
