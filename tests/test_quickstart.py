"""The main job, small: every part of it runs, it is done once, and nothing is overwritten."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def quickstart(folder, *options):
    command = [sys.executable, "-m", "experiments.quickstart", "--run-dir", str(folder), "--no-progress", *options]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # much is compiled for little work
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)


SMALL = ["--epochs", "1", "--train-steps", "1", "--steps", "3", "--restarts", "1", "--examples", "20"]


def test_quickstart_from_end_to_end(tmp_path):
    first = quickstart(tmp_path / "run", *SMALL)
    assert first.returncode == 0, first.stderr
    assert "union" in first.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == ["standard", "AT linf", "AT l2"]
    assert list(results["attacks"]) == ["linf", "l2", "l1", "StAdv", "Wasserstein", "rotation", "PPGD", "LPA"]
    for model in results["models"]:
        assert model["union"]["accuracy"] <= min(a["accuracy"] for a in model["attacks"].values())
    assert "AT linf" in (tmp_path / "run" / "report.html").read_text()

    again = quickstart(tmp_path / "run", *SMALL)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results

    other = quickstart(tmp_path / "run", *SMALL, "--linf", "0.3")
    assert other.returncode == 2
    assert "another linf" in other.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
