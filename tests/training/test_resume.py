"""A run that is stopped, in whatever way, and started again ends with equal numbers."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrobust import attacks
from jaxrobust.data import Dataset
from jaxrobust.sets import Linf
from jaxrobust.training import TrainConfig, adversarial, fit, standard
from tests.training.tiny import Mlp, assert_equal, without_times

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.01, ema_decay=0.9, checkpoint_every=2, log_every=2)
OBJECTIVE = adversarial(attacks.rs_fgsm(Linf(0.1)))


class Interrupted(Exception):
    """What befalls the run."""


class Fragile(Dataset):
    """A data set at whose n-th reading something happens."""

    readings = 0
    event = staticmethod(lambda number: None)

    def fetch(self, positions):
        Fragile.readings += 1
        Fragile.event(Fragile.readings)
        return super().fetch(positions)


def train_data(event=lambda number: None):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (90, 4, 4, 1)).astype(np.float32)
    labels = (images.mean((1, 2, 3)) > 0.5).astype(np.int32)
    Fragile.readings, Fragile.event = 0, staticmethod(event)
    return Fragile(images, labels, ("dark", "bright"))


def run(run_dir, *, event=lambda number: None, config=CONFIG, objective=OBJECTIVE, key=0, seed=0):
    network = Mlp(16, 2, nnx.Rngs(seed), norm=True, dropout=0.1)
    key = jax.random.key(key)
    return fit(
        network,
        train_data(event),
        objective=objective,
        config=config,
        key=key,
        validation_attack=attacks.fgsm(Linf(0.1)),
        run_dir=run_dir,
        progress=False,
    )


def outcome(result):
    networks = (result.network, result.last, result.ema)
    states = [nnx.to_pure_dict(nnx.state(network, (nnx.Param, nnx.BatchStat))) for network in networks]
    return states, result.best_epoch, without_times(result.history)


@pytest.fixture(scope="module")
def undisturbed():
    return outcome(run(None))


@pytest.mark.parametrize("reading", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8, 12))])
def test_an_exception_in_the_middle(reading, undisturbed, tmp_path):
    def event(number):
        if number == reading:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, event=event)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) < 3
    result = run(tmp_path)
    networks, best, history = outcome(result)
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == result.history


def test_rows_after_the_last_checkpoint_are_not_kept_twice(undisturbed, tmp_path):
    run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 4}\n{"ep')
    assert outcome(run(tmp_path))[2] == undisturbed[2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_finished_run_is_only_read(undisturbed, tmp_path):
    run(tmp_path)
    readings = Fragile.readings
    again = run(tmp_path)
    assert readings > 0
    assert Fragile.readings == 0
    assert_equal(outcome(again)[0], undisturbed[0])


def test_sigterm_saves_and_takes_its_course(undisturbed, tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    config = dataclasses.replace(CONFIG, checkpoint_every=None)
    try:
        with pytest.raises(InterruptedError, match=r"SIGTERM: saved and stopped after step [1-9]"):
            run(tmp_path, config=config, event=lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == 3 else None)
        assert received == [signal.SIGTERM]  # handed on to whoever wanted it before
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] != []
        networks, best, history = outcome(run(tmp_path, config=config))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": dataclasses.replace(CONFIG, epochs=4)}, r"differs in config\.epochs: 3 there, 4 here$"),
        ({"objective": adversarial(attacks.rs_fgsm(Linf(0.2)))}, r"attack\.set\.radius: 0\.1 there, 0\.2 here"),
        ({"objective": standard()}, r"objective\.type: 'Adversarial' there, 'Standard' here"),
        ({"key": 1}, r"differs in key: "),
        ({"seed": 1}, r"differs in network: "),
    ],
)
def test_another_runs_folder_is_refused(changes, message, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        run(finished, **changes)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


def test_logging_may_differ(undisturbed, finished):
    config = dataclasses.replace(CONFIG, log_every=1, checkpoint_every=1)
    assert_equal(outcome(run(finished, config=config))[0], undisturbed[0])


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"run_dir must be new, empty, or the folder of a training run"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="run_dir must be a folder"):
        run(tmp_path / "thesis.tex")


def test_a_damaged_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1, "con')
    with pytest.raises(ValueError, match="is damaged, not valid JSON"):
        run(tmp_path)
    (tmp_path / "config.json").write_text('{"complete": true}')
    with pytest.raises(ValueError, match="not of a training run"):
        run(tmp_path)


def test_a_folder_killed_before_its_first_checkpoint_starts_over(undisturbed, tmp_path):
    (tmp_path / ".config.json.1.partial").write_text("{")  # killed while the very first file was written
    assert_equal(outcome(run(tmp_path))[0], undisturbed[0])


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from tests.training.test_resume import run
run(sys.argv[1], event=lambda n: os.kill(os.getpid(), int(sys.argv[2])) if n == int(sys.argv[3]) else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "reading"), [(signal.SIGKILL, 9), (signal.SIGTERM, 9)])
def test_a_killed_process(number, reading, undisturbed, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), str(int(number)), str(reading)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run(arguments, cwd=root, env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -number, killed.stderr.decode()
    assert list((tmp_path / "checkpoints").iterdir())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) < 3
    networks, best, history = outcome(run(tmp_path))
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]
