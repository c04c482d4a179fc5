"""Half-written, foreign and missing runs are refused with a clear word, and nothing but a report is overwritten."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxrobust import report
from jaxrobust.report import __main__ as cli
from tests.report import fake


@pytest.fixture
def folder(tmp_path):
    return fake.write(tmp_path / "run", fake.results(count=40) | {"curves": [], "trajectories": []})


def rewrite(folder, **changes):
    content = json.loads((folder / "results.json").read_text()) | changes
    (folder / "results.json").write_text(json.dumps(content))
    return content


def without(folder, *path):
    content = json.loads((folder / "results.json").read_text())
    entry = content
    for step in path[:-1]:
        entry = entry[step]
    del entry[path[-1]]
    (folder / "results.json").write_text(json.dumps(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def drop_array(folder):
    arrays = fake.pictures(json.loads((folder / "results.json").read_text()))
    del arrays["label"]
    np.savez(folder / "pictures.npz", **arrays)


def bare(folder):
    with (folder / "pictures.npz").open("wb") as file:
        np.save(file, np.ones(3))


def misshape(folder):
    arrays = fake.pictures(json.loads((folder / "results.json").read_text()))
    arrays["standard/pgd-l2/images"] = arrays["standard/pgd-l2/images"][:3]
    np.savez(folder / "pictures.npz", **arrays)


def extra_outcome(folder):
    content = json.loads((folder / "results.json").read_text())
    content["models"][1]["examples"]["outcome"]["square"] = [0] * 40
    rewrite(folder, models=content["models"])


def test_versions_may_be_missing(folder):
    rewrite(folder, versions={})
    assert "Written by jaxrobust from" in report.render(folder).read_text()


def long_outcome(folder):
    content = json.loads((folder / "results.json").read_text())
    content["models"][1]["examples"]["outcome"]["pgd-l2"].append(0)
    rewrite(folder, models=content["models"])


def strange_outcome(folder):
    content = json.loads((folder / "results.json").read_text())
    content["models"][1]["examples"]["outcome"]["pgd-l2"][0] = 7
    rewrite(folder, models=content["models"])


def same_names(folder):
    content = json.loads((folder / "results.json").read_text())
    rewrite(folder, models=[content["models"][0]] * 2)


AGAIN = "rerunning the same command resumes it: python -m experiments.quickstart --out runs/digits"
SHORT_CURVE = {"attack": "a", "radii": [1], "accuracy": {"m": []}}
BROKEN = {
    "no results": (lambda f: (f / "results.json").unlink(), FileNotFoundError, "must hold results.json"),
    "cut off": (lambda f: truncate(f / "results.json"), ValueError, "half-written, not valid JSON"),
    "incomplete": (lambda f: rewrite(f, complete=False), ValueError, AGAIN),
    "no pictures": (lambda f: (f / "pictures.npz").unlink(), FileNotFoundError, AGAIN),
    "cut pictures": (lambda f: truncate(f / "pictures.npz"), ValueError, AGAIN),
    "pictures elsewhere": (
        lambda f: rewrite(f, pictures="../pictures.npz"),
        ValueError,
        "pictures must name a file of the run's own folder, got '../pictures.npz'",
    ),
    "pictures by a path": (lambda f: rewrite(f, pictures=str(f / "pictures.npz")), ValueError, "the run's own folder"),
    "bare array": (bare, ValueError, AGAIN),
    "no labels": (drop_array, ValueError, "missing ['label']"),
    "misshapen": (misshape, ValueError, "'standard/pgd-l2/images' must have the shape (8, 8, 8, 1), got (3, 8, 8, 1)"),
    "future": (lambda f: rewrite(f, format=2), ValueError, "format must be 1, the one this version"),
    "not an object": (lambda f: (f / "results.json").write_text("[1]"), ValueError, "format must be 1"),
    "no device": (lambda f: without(f, "device"), ValueError, "device is missing"),
    "title": (lambda f: rewrite(f, title=3), ValueError, "title must be str, got 3"),
    "no models": (lambda f: rewrite(f, models=[]), ValueError, "at least one model"),
    "same names": (same_names, ValueError, "must have different names, got ['standard', 'standard']"),
    "no clean": (lambda f: without(f, "models", 2, "clean"), ValueError, "models[2].clean is missing"),
    "no attack": (lambda f: without(f, "models", 2, "attacks", "pgd-l2"), ValueError, "'pgd-l2' has none"),
    "attack": (lambda f: rewrite(f, attacks={"a": 1}), ValueError, "attacks['a'] must be an object, got 1"),
    "lengths": (long_outcome, ValueError, "got lengths [40, 41]"),
    "other attack": (extra_outcome, ValueError, "'pgd-l1'], got 'square'"),
    "codes": (strange_outcome, ValueError, "must hold 0 to 3, got [7]"),
    "curve": (lambda f: rewrite(f, curves=[SHORT_CURVE]), ValueError, "1 values, got 0"),
    "trajectory": (lambda f: rewrite(f, trajectories=[5]), ValueError, "trajectories[0] must be an object, got 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_runs_are_refused(folder, case, monkeypatch, capsys):
    breaks, kind, words = BROKEN[case]
    (folder / "report.html").write_text("<!doctype html>\n<!-- jaxrobust report -->\nthe last good one")
    breaks(folder)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(kind) as caught:
        report.render(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {caught.value}\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_no_such_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        report.render(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_only_reports_are_overwritten(folder, tmp_path):
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match="another file, left as is"):
        report.render(folder, output=folder / "results.json")
    assert (folder / "results.json").read_bytes() == before
    with pytest.raises(ValueError, match="must be a file, got the folder"):
        report.render(folder, output=tmp_path)
    with pytest.raises(FileNotFoundError, match="folder that exists"):
        report.render(folder, output=tmp_path / "no" / "page.html")
    (folder / "report.html").write_text("my own notes")
    with pytest.raises(ValueError, match="another file, left as is"):
        report.render(folder)
    assert (folder / "report.html").read_text() == "my own notes"
    page = report.render(str(folder), output=str(tmp_path / "page.html"))
    assert page == tmp_path / "page.html"
    rewrite(folder, title="second")
    assert "second" in report.render(folder, output=page).read_text()


def test_a_failed_write_leaves_the_old_page(folder, monkeypatch):
    page = report.render(folder)
    before, files = page.read_bytes(), sorted(folder.iterdir())
    rewrite(folder, title="second")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.render(folder)
    assert page.read_bytes() == before
    assert sorted(folder.iterdir()) == files


def test_command_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    cli.main()
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--output", str(tmp_path / "p.html")])
    cli.main()
    assert (tmp_path / "p.html").read_bytes() == (folder / "report.html").read_bytes()


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "jaxrobust.report", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "RUN_DIR" in done.stdout
    assert "--output" in done.stdout
    assert "python -m jaxrobust.report" in done.stdout
