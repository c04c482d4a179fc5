"""ImageNet-100 as on a pod: two processes of two devices train by a recipe, are killed, and go on."""

import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from flax import nnx

from experiments import train
from experiments.recipes.networks import NETWORKS
from jaxrobust.data.prepare import prepare
from tests.data.trees import write_tree
from tests.training.tiny import without_times

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = ["--recipe", "imagenet100-at-linf", "--objective.attacks", "fgsm:linf:4/255", "--network.kind", "tiny"]
RECIPE += ["--data.size", "16", "--train.epochs", "2", "--train.batch-size", "20", "--train.checkpoint-every", "3"]
RECIPE += ["--train.learning-rate", "0.01", "--augment", "flip"]


class Tiny(nnx.Module):
    """A convolution, BatchNorm and a dense layer."""

    def __init__(self, *, classes: int, rngs: nnx.Rngs):
        quick = nnx.initializers.uniform(0.5)  # to compile
        self.conv = nnx.Conv(3, 8, (4, 4), 4, kernel_init=quick, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(8, classes, kernel_init=quick, rngs=rngs)

    def __call__(self, images):
        return self.dense(nnx.relu(self.norm(self.conv(images))).mean((1, 2)))


def begin(run, data):
    """The command of POD.md on each of two hosts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.experiments.test_pod", *RECIPE, "--data.folder", data, "--run-dir", run]
    command += ["--distributed", "--coordinator", address, "--processes", "2"]
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{data}/programs")
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen([*map(str, command), "--process", str(index)], cwd=ROOT, env=environment, **streams)
        for index in range(2)
    ]


def end(workers, code=0):
    told = [worker.communicate(timeout=240)[0] for worker in workers]
    assert all(worker.returncode == code for worker in workers), "\n".join(told)
    return told


def kill_at_a_checkpoint(workers, run):
    until = time.monotonic() + 240
    while not list((run / "training" / "checkpoints").glob("[0-9]*")) and time.monotonic() < until:
        assert all(worker.poll() is None for worker in workers), workers[0].communicate()[0]
        time.sleep(0.01)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    assert not (run / "weights.npz").exists()


def made(run):
    rows = [json.loads(row) for row in (run / "training" / "metrics.jsonl").read_text().splitlines()]
    return without_times(rows), dict(np.load(run / "weights.npz"))


@pytest.mark.slow
@pytest.mark.optimised(False)
def test_killed_on_two_hosts_it_ends_as_undisturbed(tmp_path, monkeypatch):
    data, killed, whole, alone = (tmp_path / name for name in ("data", "killed", "whole", "alone"))
    prepare("imagenet100", write_tree(tmp_path / "tree", classes=100, train=2, test=1), data_dir=data)
    kill_at_a_checkpoint(begin(killed, data), killed)
    first, second = end(begin(killed, data))
    assert "next: python -m experiments.evaluate" in first
    assert "step" not in second  # neither a bar nor results
    end(begin(whole, data))
    rows, weights = made(killed)
    expected_rows, expected = made(whole)
    assert rows == expected_rows
    assert [row["step"] for row in rows] == [10, 20]
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value)
    monkeypatch.setitem(NETWORKS, "tiny", Tiny)
    train.main(train.read([*RECIPE, "--data.folder", str(data), "--run-dir", str(alone), "--no-progress"]))
    rows, weights = made(alone)
    for row, other in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(other, abs=1e-3)
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, atol=1e-3)


if __name__ == "__main__":
    NETWORKS["tiny"] = Tiny
    runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
