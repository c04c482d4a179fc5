"""A suite that was cheapened for a first look says so wherever its figures stand."""

import json
import sys

import jax
import numpy as np
import pytest

from jaxrobust import attacks, cli, evaluate, sets
from jaxrobust.attacks.suites import Suite
from tests import tiny

SAYS = "20 steps of 100, 500 queries of 5,000; not the standard suite"
LINE = f"cheapened: {SAYS}"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A cheap stand-in, in the place of AutoAttack at so few steps, which would compile for long."""
    made = Suite({"fgsm": attacks.fgsm(sets.Linf(0.1))})
    made.cheapened = SAYS
    return made


@pytest.fixture(scope="module")
def data():
    return tiny.images_and_labels(tiny.dense_classifier())


def test_the_result_says_so(few, data, tmp_path):
    model, options = tiny.dense_classifier(), {"key": jax.random.key(0), "progress": False}
    found = evaluate.robustness(model, data, few, **options)
    assert str(found).splitlines()[-1] == LINE
    assert repr(found).endswith("; cheapened)")
    assert found.to_dict()["notes"]["cheapened"] == SAYS
    assert f"model: {LINE}" in found.save(tmp_path / "run").read_text()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["models"][0]["notes"]["cheapened"] == SAYS
    whole = evaluate.robustness(model, data, dict(few), **options)
    assert "cheapened" not in str(whole)
    assert "cheapened" not in whole.notes
    assert "cheapened:" not in whole.save(tmp_path / "whole").read_text()


def test_autoattack(monkeypatch, few, data):
    asked = {}
    room = sys.modules["jaxrobust.evaluate.autoattack"]
    monkeypatch.setattr(room, "suite", lambda name, **options: asked.update(options, name=name) or few)
    options = {"key": jax.random.key(0), "progress": False}
    found = evaluate.autoattack(tiny.dense_classifier(), data, steps=20, queries=500, **options)
    assert asked == {"name": "autoattack-linf", "radius": None, "steps": 20, "queries": 500}
    assert LINE in str(found).splitlines()
    with pytest.raises(ValueError, match="steps and queries must be None beside attacks"):
        evaluate.autoattack(tiny.dense_classifier(), data, attacks=few, steps=20, **options)


def test_the_command_line(monkeypatch, few, data, tmp_path, capsys):
    asked = []

    def suite(name, *, radius=None, steps=None, queries=None):
        asked.append((name, radius, steps, queries))
        return few

    monkeypatch.setattr(attacks, "suite", suite)
    np.savez(tmp_path / "mine.npz", images=data[0], labels=data[1])
    line = ["evaluate", "--model", "tests.tiny:dense_classifier", "--data", str(tmp_path / "mine.npz"), "--no-cache"]
    line += ["--suite", "autoattack-linf:0.1", "--steps", "20", "--queries", "500", "--out", str(tmp_path / "run")]
    for words in ("worst case", "finished already"):
        assert cli.main(line) == 0
        assert LINE in capsys.readouterr().out, words
    assert asked[0] == ("autoattack-linf", 0.1, 20, 500)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["models"][0]["notes"]["cheapened"] == SAYS
    other = ["--attack", "fgsm:linf:0.1", "--steps", "20", "--out", str(tmp_path / "other")]
    assert cli.main([*line[:6], *other]) == 2
    assert "--steps must be left out without --suite" in capsys.readouterr().err
