"""Every command line says what it does, and refuses what it cannot do in one line."""

import subprocess
import sys

import pytest

COMMANDS = {
    "jaxrobust.report": "RUN_DIR",
    "jaxrobust.data.prepare": "--from",
    "experiments.quickstart": "--run-dir",
    "benchmarks.run": "--output",
}


def run(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.parametrize("module", COMMANDS)
def test_help(module):
    done = run(module, "--help")
    assert done.returncode == 0, done.stderr
    assert COMMANDS[module] in done.stdout
    assert "Traceback" not in done.stderr


def test_report_of_a_run_that_does_not_exist(tmp_path):
    done = run("jaxrobust.report", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_quickstart_refuses_bad_settings(tmp_path):
    done = run("experiments.quickstart", "--linf", "-1", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "radius must be finite and >= 0; got -1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
