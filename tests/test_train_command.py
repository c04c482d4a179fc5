"""`jaxrobust train`: what it refuses before any compute, and one run that is evaluated by its weights."""

import json

import numpy as np
import pytest
from flax import nnx

from jaxrobust import _store, cli, training
from jaxrobust.cli import objectives, specs
from tests.bucket import standing_in
from tests.training.tiny import Linear

MODEL = "tests.test_train_command:network"
COUNT = 24


def network():
    return Linear(64, 3, rngs=nnx.Rngs(0))


@pytest.fixture
def data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(COUNT) % 3)
    return tmp_path / "mine.npz"


def train(data, out, *more, model=MODEL):
    command = ["train", "--model", model, "--data", data, "--out", out, "--epochs", 1, "--batch-size", 8, "--no-cache"]
    return cli.main(list(map(str, [*command, *more])))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run", "gs://bucket/run"])
def test_a_network_of_ones_own(place, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with standing_in(tmp_path):
        train_and_evaluate(_store.place(place), data, tmp_path, capsys)
    assert not (tmp_path / "gs:").exists()


def train_and_evaluate(out, data, tmp_path, capsys):
    assert train(data, out, "--set", "linf", "--radius", "8/255", "--steps", "1", "--objective", "mixed") == 0
    said = capsys.readouterr().out
    assert f"--weights {out}" in said
    assert json.loads((out / "training" / "config.json").read_text())["objective"]
    command = ["evaluate", "--model", MODEL, "--weights", out, "--data", data, "--attack", "fgsm:linf:8/255"]
    assert cli.main(list(map(str, [*command, "--out", tmp_path / "attacked", "--no-cache"]))) == 0
    (model,) = json.loads((tmp_path / "attacked" / "results.json").read_text())["models"]
    assert [row["epoch"] for row in model["notes"]["training"]] == [1]
    assert train(data, out, "--set", "linf", "--radius", "8/255", "--steps", "2", "--objective", "mixed") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out ")
    assert "belongs to a run that differs in objective" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "trade"), "did you mean 'trades'?"),
        (("--objective", "trades"), "takes one attack; got 0"),
        (("--objective", "standard", "--set", "linf", "--radius", "1"), "takes no attack; got 1"),
        (("--objective", "free", "--set", "l2", "--radius", "1"), "free is for linf; got L2(1)"),
        (("--objective", "distilled"), "needs arrays, and so Python"),
        (("--objective", "reweighted_cvar"), "needs --option amount=..."),
        (("--objective", "standard", "--option", "beta=2"), "an option of standard must be one of"),
        (("--objective", "standard", "--option", "label_smoothing=2"), "standard: label_smoothing must be"),
        (
            ("--objective", "several_max", "--attack", "pgd:linf:0.1:steps=1", "--option", "combine=random"),
            "an option of",
        ),
        (("--radius", "0.1"), "--set, which is missing"),
        (("--set", "linf"), "needs a radius"),
        (("--attack", "pgd:linf:0.1,0.2"), "one radius to be trained on"),
        (("--schedule", "warp"), "schedule must be one of"),
        (("--augment", "warp"), "--augment must be one of"),
        (("--seed", "-1"), "--seed must be from 0"),
    ],
)
def test_bad_input(arguments, message, data, tmp_path, capsys):
    assert train(data, tmp_path / "run", *arguments) == 2
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_models_that_are_no_modules(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", model="tests.tiny:dense_classifier") == 2
    assert "must return a Flax NNX module here; got" in capsys.readouterr().err
    command = [
        "evaluate",
        "--model",
        MODEL,
        "--weights",
        tmp_path / "nowhere",
        "--data",
        data,
        "--attack",
        "fgsm:linf:1",
    ]
    assert cli.main(list(map(str, [*command, "--out", tmp_path / "attacked", "--no-cache"]))) == 2
    assert "--weights must be an .npz or the folder of a finished training run" in capsys.readouterr().err


def test_every_objective_has_a_command_line():
    """By its own name, and with what it stands for; those that need arrays say so."""
    attack = specs.attack("pgd:linf:0.1:steps=2")
    needs = {"gradient_penalty": {"weight": 1}, "reweighted": {"amount": 0.5}, "label_smoothing": {"amount": 0.1}}
    for name, entry in training.REGISTRY.items():
        options = needs.get(entry.factory.__name__, {})
        if name in ("distilled", "group_dro", "group_smoothing"):
            continue
        takes = entry.factory.__name__ not in needs and name not in ("standard", "cure", "wrm", "extreme_norms")
        made = objectives.objective(name, [attack] * (takes and name != "logit_squeezing"), options)
        assert isinstance(made, training.Objective), name
        for option, value in entry.options.items():
            assert getattr(made, option, value) == value
    assert type(objectives.objective("awp", [attack], {"inner": "trades"}).objective).__name__ == "TRADES"
    inner = {"inner": "trades", "beta": 3, "gamma": 0.01}
    both = objectives.objective("awp", [attack], inner)
    assert (float(both.gamma), float(both.objective.beta)) == pytest.approx((0.01, 3.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "tradse"}, "--option inner must be one of .*'tradse'"),
        ({"inner": "trades", "bete": 3}, "an option of trades must be one of .*'bete'"),
        ({"inner": "standard"}, "--option inner=standard takes no attack"),
    ],
)
def test_what_is_within_awp_is_blamed_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.objective("awp", [specs.attack("pgd:linf:0.1:steps=2")], options)


def test_the_usual_attack_on_a_set():
    assert "Lagrangian" in str(objectives.against("perceptual", "0.5", None))
    assert str(objectives.against("cifar10.flow", None, 3)).startswith("Adam")
    assert objectives.against("linf", "0.1", None).steps == 10
