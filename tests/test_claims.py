"""The experiments run at their smallest scale, their exact claims hold, and what was found is written down."""

import json
import types

import jax
import numpy as np
import pytest

from experiments.claims import common
from experiments.claims.__main__ import EXPERIMENTS, main
from jaxrobust.data import sources


@pytest.fixture
def folders(tmp_path_factory):
    """One folder of runs for all, so that networks are trained once; compiling is most of the work."""
    jax.config.update("jax_disable_most_optimizations", True)  # every test's setup sets it anew
    base = tmp_path_factory.getbasetemp()
    return ["--runs", str(base / "runs"), "--results", str(base / "results")], base / "results"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "X3"])  # below, without its training
def test_smoke(name, folders, capsys):
    options, results = folders
    assert main([name, "--scale", "smoke", *options]) == 0
    (found,) = results.glob(f"*-{name}-smoke.json")
    facts = json.loads(found.read_text(encoding="utf-8"))
    assert facts["command"] == f"python -m experiments.claims {name} --scale smoke"
    assert facts["rows"]
    assert facts["claims"]
    page = found.with_suffix(".md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert all(claim["text"] in page for claim in facts["claims"])


def test_a_claim_that_fails_is_the_exit_status(tmp_path, monkeypatch, capsys):
    for exact, status in ((False, 0), (True, 1)):
        claim = common.Claim("one is at least two", 1.0, "≥", 2.0, exact)
        monkeypatch.setitem(EXPERIMENTS, "X1", lambda bench, c=claim: common.Result("a title", [{"a": 0.5}], [c]))
        assert main(["X1", "--scale", "smoke", "--results", str(tmp_path)]) == status
    assert "| one is at least two | 1 | ≥ 2 | NO |" in capsys.readouterr().out
    assert main(["X1", "--results", str(tmp_path)]) == 1


def test_what_is_not_prepared_is_no_claim_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sources, "_has_tensorflow", lambda: False)
    assert main(["X1", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]) == 2
    assert "error: 'fashion_mnist' is not prepared in" in capsys.readouterr().err


def test_one_epoch_has_a_time(monkeypatch, tmp_path):
    """At `smoke`, where the epoch that compiles is the only one."""
    rows = types.SimpleNamespace(robust=np.ones(4, bool))

    class Found(dict):
        clean = types.SimpleNamespace(accuracy=1.0)
        outcomes = property(dict.keys)

    fitted = types.SimpleNamespace(last=None, history=[{"seconds": 2.0}])
    monkeypatch.setattr(common.Bench, "train", lambda *_, **__: fitted)
    monkeypatch.setattr(
        common.Bench, "evaluate", lambda self, name, network, columns, *_: Found.fromkeys(columns, rows)
    )
    assert main(["X3", "--scale", "smoke", "--runs", str(tmp_path), "--results", str(tmp_path)]) == 0
    (page,) = tmp_path.glob("*-X3-smoke.md")
    assert "| training time: E-AT over MSD | 1 |" in page.read_text(encoding="utf-8")


def test_seeds_are_averaged():
    row = common.average([{"a": 0.0}, {"a": 1.0}], training="none")
    assert row == {"training": "none", "a": 0.5, "a sd": pytest.approx(0.5**0.5), "seeds": 2}


@pytest.mark.parametrize("arguments", [["X0"], ["X1", "--scale", "huge"], ["X1", "--seeds", "0"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[-1] in capsys.readouterr().err
