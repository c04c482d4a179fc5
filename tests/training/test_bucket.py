"""A run in a bucket, a place that gives out, and two runs in one place: nothing is lost, and what is said names it."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils.epath.testing import mock_epath
from flax import nnx

from jaxrobust import _store
from jaxrobust.training import TrainConfig, _run, fit, fit_many, many, standard
from tests.bucket import FORBIDDEN, standing_in
from tests.training.test_resume import Fragile, Interrupted, train_data
from tests.training.tiny import Linear, assert_equal, without_times

RUN = "gs://bucket/run"
CONFIG = TrainConfig(epochs=3, batch_size=16, optimizer="sgd", validation=0.0)  # of 5 steps each
OPTIONS = {"objective": standard(), "config": CONFIG, "progress": False}


def run(run_dir, event=lambda number: None, key=0):
    return fit(Linear(16, 2, nnx.Rngs(0)), train_data(event), key=jax.random.key(key), run_dir=run_dir, **OPTIONS)


def run_many(run_dir):
    subsets = [range(40), range(40, 90)]
    return fit_many(
        Linear(16, 2, nnx.Rngs(0)),
        train_data(),
        key=jax.random.key(0),
        subsets=subsets,
        chunk=2,
        run_dir=run_dir,
        **OPTIONS,
    )


def outcome(result):
    return [nnx.to_pure_dict(nnx.state(network)) for network in (result.network, result.last)], without_times(
        result.history
    )


@pytest.fixture(scope="module")
def undisturbed():
    return outcome(run(None))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with standing_in(tmp_path) as found:
        yield found
    assert [path.name for path in tmp_path.iterdir() if ":" in path.name] == []


def assert_ends_as(undisturbed, run_dir):
    networks, history = outcome(run(run_dir))
    assert_equal(networks, undisturbed[0])
    assert history == undisturbed[1]
    assert Fragile.readings < 15  # it went on, and did not start over


def at(number, act):
    """An event of `run`: what happens at the n-th batch."""
    return lambda reading: act() if reading == number else None


def interrupt():
    raise Interrupted


def test_a_run_in_a_bucket_goes_on(bucket, undisturbed):
    with pytest.raises(Interrupted):
        run(RUN, event=at(12, interrupt))
    assert "bucket/run/checkpoints/10/commit_success.txt" in bucket.names()
    assert_ends_as(undisturbed, RUN)
    rows = _store.place(RUN).joinpath("metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]
    steps = {name.split("/")[3] for name in bucket.names() if "/checkpoints/" in name}
    assert steps == {"10", "15"}  # the newest two
    with pytest.raises(ValueError, match=r"run_dir 'gs://bucket/run' belongs to a run that differs in key"):
        run(RUN, key=1)


def test_members_in_a_bucket_go_on(bucket, monkeypatch):
    alone = run_many(None)
    monkeypatch.setattr(many, "SAVE_EVERY", 0.0)
    saves, save = [], many._Disk.save
    with monkeypatch.context() as patched:
        patched.setattr(many._Disk, "save", lambda *a: interrupt() if len(saves) == 2 else saves.append(save(*a)))
        with pytest.raises(Interrupted):
            run_many(RUN)
    assert bucket.names() == ["bucket/run/config.json", "bucket/run/running.npz"]
    found = run_many(RUN)
    assert_equal((found.params, found.history), (alone.params, alone.history))
    assert bucket.names() == ["bucket/run/config.json", "bucket/run/members-00000000.npz"]


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from tests.bucket import standing_in
from tests.training.test_bucket import RUN, at, run
with standing_in(sys.argv[1]):
    run(RUN, event=at(12, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.mark.slow
def test_another_process_takes_up_what_a_killed_one_left_in_a_bucket(bucket, undisturbed, tmp_path):
    root, environment = pathlib.Path(__file__).parents[2], {**os.environ, "JAX_PLATFORMS": "cpu"}
    for name in ("TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING"):
        environment.pop(name)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert any("/checkpoints/" in name for name in bucket.names())
    assert_ends_as(undisturbed, RUN)


# what is still being written when a save fails tells an event loop that Orbax has closed by then
late = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@late
def test_a_bucket_without_permission(bucket, undisturbed):
    bucket.forbidden = True
    for call in (run, run_many):
        with pytest.raises(PermissionError, match=f"^run_dir must be .*'{RUN}': PermissionError: {FORBIDDEN}"):
            call(RUN)
    assert bucket.names() == []
    bucket.forbidden = False
    with pytest.raises(OSError, match=rf"^run_dir must be .*'{RUN}.*403.*goes on from what is whole there"):
        run(RUN, event=at(12, lambda: setattr(bucket, "forbidden", True)))
    bucket.forbidden = False
    assert_ends_as(undisturbed, RUN)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (pathlib.Path(RUN), "a string that begins with one of gs://.*; got 'gs:/bucket/run'"),
        ("ftp://host/run", "a path must be local, or .*; got 'ftp://host/run'"),
        ("s3://bucket/run", "run_dir must be a local folder or begin with gs://; got 's3://bucket/run'"),
    ],
)
def test_what_is_no_place_for_a_run(place, message, bucket):
    with pytest.raises(ValueError, match=message):
        run(place)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def full_disk(file):
    """No more space when this file is to be written: of the log, or of Orbax, before or behind the run's back."""

    def opened(original, path, mode):
        return full() if "w" in mode and pathlib.Path(path).name == file else original(path, mode)

    with pytest.MonkeyPatch.context() as patched, mock_epath(open=opened):
        if file == "metrics.jsonl":
            patched.setattr(os, "fsync", full)
        yield


@late
@pytest.mark.parametrize("file", ["metrics.jsonl", "_CHECKPOINT_METADATA", "_METADATA"])
def test_a_full_disk_leaves_the_last_checkpoint(file, undisturbed, tmp_path):
    message = rf"^run_dir must be .*'{tmp_path}.*No space left on device.*goes on from what"
    with contextlib.ExitStack() as stack, pytest.raises(OSError, match=message):
        run(tmp_path, event=at(12, lambda: stack.enter_context(full_disk(file))))
    # that of step 10 may still be on its way as the disk fills up
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"5"}
    assert_ends_as(undisturbed, tmp_path)


def test_no_process_waits_for_one_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(_run.multihost_utils, "process_allgather", lambda fine: np.array([fine, False]))
    with pytest.raises(OSError, match="run_dir: process 1 could not begin"), _run.opened(tmp_path / "run", {}, {}):
        pass
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="run_dir must be new, empty"), _run.opened(tmp_path, {}, {}):
        pass


def test_a_run_holds_its_folder(tmp_path):
    def second():
        with _store.locked(tmp_path / "config.json"):
            pass

    with pytest.raises(BlockingIOError, match=rf"config.json is in use by another run, process {os.getpid()} on "):
        run(tmp_path, event=at(2, second))
    with _store.locked(tmp_path / "config.json"):
        for call in (run, run_many):
            with pytest.raises(BlockingIOError, match=r"is in use by another run.*wait for it, or save elsewhere"):
                call(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]
