"""Two runs that would save the same attacks in one folder: the second is refused while the first goes on."""

import os
import platform
import signal
import subprocess
import sys

import jax
import pytest

from jaxrobust import _store, attacks, sets
from jaxrobust.evaluate import robustness, run_lanes
from tests.evaluate.models import ONE_DEVICE, classifier, examples

ATTACK = attacks.fgsm(sets.Linf(0.1))
OPTIONS = {"key": jax.random.key(0), "lanes": 8, "devices": ONE_DEVICE}

HOLDER = """
import pathlib, sys
from jaxrobust import _store
with _store.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that saves the attack `fgsm`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "fgsm.npz")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_two_runs_of_one_name_in_one_folder(holder, tmp_path):
    data = examples(9)
    owner = rf"fgsm.npz is in use by another run, process {holder.pid} on {platform.node()}"
    with pytest.raises(BlockingIOError, match=owner):
        robustness(classifier(), data, {"other": ATTACK, "fgsm": ATTACK}, save_dir=tmp_path, progress=False, **OPTIONS)
    with pytest.raises(BlockingIOError, match=owner):
        run_lanes(ATTACK, classifier(), *data, save=tmp_path / "fgsm.npz", **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == [".fgsm.npz.lock"]
    robustness(classifier(), data, {"other": ATTACK}, save_dir=tmp_path, progress=False, **OPTIONS)
    # what a killed run leaves behind holds nobody up
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(30)
    assert (tmp_path / ".fgsm.npz.lock").exists()
    robustness(classifier(), data, {"fgsm": ATTACK}, save_dir=tmp_path, progress=False, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fgsm.npz", "other.npz"]


def test_a_lock_ends_with_its_block_and_is_nobody_elses(tmp_path):
    path = tmp_path / "deep" / "a.npz"

    def hold_twice():
        with _store.locked(path), _store.locked(path):
            pass

    with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
        hold_twice()
    assert not list(path.parent.iterdir())
    with _store.locked(path), _store.locked(path.with_name("b.npz")):
        assert len(list(path.parent.iterdir())) == 2


def test_a_folder_that_is_only_read_needs_no_lock(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "open", refused)
    with _store.locked(tmp_path / "a.npz"):
        pass


def test_a_full_disk_gives_no_lock_up(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with (
        _store.locked(tmp_path / "a.npz"),
        pytest.raises(BlockingIOError, match="in use by another run: wait"),
        _store.locked(tmp_path / "a.npz"),
    ):
        pass
