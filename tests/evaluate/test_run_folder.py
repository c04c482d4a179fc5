"""Run folders: one valid JSON, the pictures, and the page made from both."""

import argparse
import dataclasses
import json
import sys
import threading
import types

import jax
import numpy as np
import pytest

from jaxrobust import __version__, _store, attacks, report, sets
from jaxrobust._store import versions
from jaxrobust.evaluate import curves, is_finished, robustness, save_run, trajectories
from tests.evaluate.models import ONE_DEVICE, NanWhere, classifier, examples

ATTACKS = {"linf": attacks.bim(sets.Linf(0.02), steps=5), "l2": attacks.fgsm(sets.L2(0.1))}
MODELS = {"first": classifier(0), "second": classifier(1), "nan": classifier(0, NanWhere(above=0.5))}
LANES = {"lanes": 8, "devices": ONE_DEVICE}


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 5
    radii: tuple = (0.02, 0.1)


@pytest.fixture(scope="module")
def data():
    return examples(40, wrong=5)


@pytest.fixture(scope="module")
def evaluations(data):
    return [
        robustness(m, data, ATTACKS, key=jax.random.key(0), name=name, trained_on=["l2"], progress=False, **LANES)
        for name, m in MODELS.items()
    ]


@pytest.fixture(scope="module")
def saved(data, evaluations, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "new" / "run"
    key = jax.random.key(1)
    page = save_run(
        run_dir,
        evaluations,
        title="A title",
        models=MODELS,
        data={"name": "noise", "split": "test"},
        config=Config(),
        curves=curves(MODELS, data, ATTACKS, {"linf": [0.0, 0.02, np.float32(0.5)]}, key=key, **LANES),
        trajectories=trajectories(MODELS, data, ATTACKS, key=key),
        seconds=1.5,
        pictures=6,
    )
    return run_dir, page


def results(run_dir):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads((run_dir / "results.json").read_text(), parse_constant=refuse)


def test_the_page_and_its_parts_are_written(saved):
    run_dir, page = saved
    assert sorted(p.name for p in run_dir.iterdir()) == ["pictures.npz", "report.html", "results.json"]
    assert page == run_dir / "report.html"
    text = page.read_text()
    assert all(word in text for word in ("A title", "first", "second", "linf", "l2"))
    page.unlink()
    assert report.render(run_dir).read_text() == text


def test_the_json_says_what_was_found(saved, evaluations, data):
    found = results(saved[0])
    assert found["complete"] is True
    assert found["title"] == "A title"
    assert len(found["data"].pop("images")) == 64
    assert found["data"] == {
        "name": "noise", "split": "test", "class_names": None, "count": 40, "shape": [6, 5, 2], "classes": 4
    }  # fmt: skip
    assert found["config"] == {"type": "Config", "steps": 5, "radii": [0.02, 0.1]}
    assert found["key"] == evaluations[0].key == [0, 0]
    assert found["attacks"]["l2"]["radius"] == 0.1
    assert found["attacks"]["linf"]["set"] == "Linf"
    assert found["attacks"]["linf"]["settings"]["steps"] == 5
    for entry, evaluation in zip(found["models"], evaluations, strict=True):
        assert entry["name"] == evaluation.name
        assert entry["clean"]["accuracy"] == evaluation.clean.accuracy
        assert entry["union"]["accuracy"] == evaluation.union.accuracy
        assert entry["unseen_mean"] == evaluation.accuracy("linf").accuracy
        assert entry["examples"]["label"] == data[1].tolist()
        for name, outcome in evaluation.outcomes.items():
            assert entry["attacks"][name]["accuracy"] == outcome.robust.mean()
            assert entry["examples"]["outcome"][name] == outcome.outcome.tolist()
            np.testing.assert_allclose(entry["examples"]["size"][name], outcome.size)
    curve = found["curves"][0]
    assert (curve["attack"], curve["radii"], curve["count"]) == ("linf", [0.0, 0.02, 0.5], 40)
    assert curve["accuracy"]["first"][0] == evaluations[0].clean.accuracy
    assert [len(found["trajectories"][i]["mean"]["first"]) for i in (0, 1)] == [6, 2]


def test_nan_becomes_null(saved):
    entry = results(saved[0])["models"][2]
    assert entry["name"] == "nan"
    assert entry["attacks"]["linf"]["non_finite"] > 0
    # half of the examples still have a loss
    assert None not in results(saved[0])["trajectories"][0]["mean"]["nan"]


def test_a_trajectory_is_of_the_examples_with_a_loss(data):
    nowhere = {"first": MODELS["first"], "nan": classifier(0, NanWhere(above=-1.0))}
    found = trajectories(nowhere, data, {"l2": ATTACKS["l2"]}, key=jax.random.key(1))[0]
    losses = np.asarray(attacks.trajectory(ATTACKS["l2"], MODELS["first"], *data, key=jax.random.key(1)))
    np.testing.assert_allclose(found["mean"]["first"], losses.mean(1))
    np.testing.assert_allclose(found["low"]["first"], np.quantile(losses, 0.1, axis=1))
    np.testing.assert_allclose(found["high"]["first"], np.quantile(losses, 0.9, axis=1))
    assert np.isnan(found["mean"]["nan"]).all()


def test_the_pictures_are_the_points_and_their_predictions(saved, evaluations, data):
    images, labels = data
    with np.load(saved[0] / "pictures.npz", allow_pickle=False) as stored:
        pictures = dict(stored)
    assert pictures["clean"].shape == (6, 6, 5, 2)
    rows = [int(np.flatnonzero((images == clean).all((1, 2, 3)))[0]) for clean in pictures["clean"]]
    assert len(set(rows)) == 6
    np.testing.assert_array_equal(pictures["label"], labels[rows])
    # as many classes as there are come before any comes twice
    assert len(set(pictures["label"][: len(set(labels.tolist()))].tolist())) == len(set(labels.tolist()))
    for place, evaluation in enumerate(evaluations):
        np.testing.assert_array_equal(pictures[report.picture_key("prediction", place)], evaluation.prediction[rows])
        for number, outcome in enumerate(evaluation.outcomes.values()):
            shown = pictures[report.picture_key("images", place, attack=number)]
            np.testing.assert_array_equal(shown, outcome.images[rows])
            prediction = pictures[report.picture_key("prediction", place, attack=number)]
            np.testing.assert_array_equal(prediction, MODELS[evaluation.name](shown).argmax(-1))
            fooled = outcome.outcome[rows] == 1
            assert (prediction[fooled] != pictures["label"][fooled]).all()


def test_predictions_are_kept_from_the_attack(evaluations):
    """A captioned picture needs no further forward pass."""
    for evaluation in evaluations[:2]:
        for outcome in evaluation.outcomes.values():
            seen = MODELS[evaluation.name](outcome.images).argmax(-1)
            np.testing.assert_array_equal(outcome.prediction, seen)
            assert (outcome.prediction != evaluation.prediction).any()


def test_an_evaluation_saved_by_itself_says_what_its_pictures_became(evaluations, tmp_path):
    page = evaluations[0].save(tmp_path).read_text(encoding="utf-8")
    assert "→" in page
    assert "→ –" not in page


def test_pictures_of_models_whose_names_hold_others_are_kept_apart(evaluations, tmp_path):
    """Images of "cnn" under "linf", and what "cnn/linf" says without an attack, had one name."""
    twins = [
        dataclasses.replace(evaluations[0], name="cnn"),
        dataclasses.replace(evaluations[1], name="cnn/linf"),
    ]
    save_run(tmp_path, twins, title="Twins")
    run = report.load(tmp_path)
    rows = [int(np.flatnonzero((twins[0].images == clean).all((1, 2, 3)))[0]) for clean in run.pictures["clean"]]
    for place, evaluation in enumerate(twins):
        np.testing.assert_array_equal(run.picture("prediction", place), evaluation.prediction[rows])
        for name, outcome in evaluation.outcomes.items():
            np.testing.assert_array_equal(run.picture("images", place, attack=name), outcome.images[rows])
            np.testing.assert_array_equal(run.picture("prediction", place, attack=name), outcome.prediction[rows])


def test_the_legend_explains_every_field(saved):
    found = results(saved[0])
    mine = {"settings", "config", "identity", "versions", "notes", "legend"}  # what is in these has names of its own
    names = {*MODELS, *ATTACKS}

    def fields(value):
        if isinstance(value, list):
            return set().union(*map(fields, value))
        if not isinstance(value, dict):
            return set()
        return set(value).union(*(fields(item) for name, item in value.items() if name not in mine))

    assert fields(found) - names - {"legend"} == set(found["legend"])


def test_a_finished_run_is_not_overwritten(saved, evaluations):
    run_dir, _ = saved
    before = {p.name: p.read_bytes() for p in run_dir.iterdir()}
    with pytest.raises(ValueError, match="run_dir must not hold a run already; got"):
        save_run(run_dir, evaluations, title="Another")
    assert {p.name: p.read_bytes() for p in run_dir.iterdir()} == before


def test_a_run_can_be_overwritten_on_demand(evaluations, tmp_path):
    save_run(tmp_path, evaluations[:1], title="One", pictures=2)
    save_run(tmp_path, evaluations[1:2], title="Two", pictures=2, overwrite=True)
    assert results(tmp_path)["title"] == "Two"
    assert results(tmp_path)["models"][0]["name"] == "second"


PARTS = ("results.json", "pictures.npz", "report.html")


@pytest.mark.parametrize("place", range(4))
def test_a_kill_while_overwriting_never_mixes_two_runs(place, evaluations, tmp_path, monkeypatch):
    """After each thing done to the folder it holds the old run, the new one, or no results."""
    save_run(tmp_path, evaluations[:1], title="One", pictures=2)
    old = {name: (tmp_path / name).read_bytes() for name in PARTS}
    left = [place]

    def killed(real):
        def act(*arguments, **keywords):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*arguments, **keywords)

        return act

    with monkeypatch.context() as patch:
        for name in ("remove", "atomically"):
            patch.setattr(_store, name, killed(getattr(_store, name)))
        with pytest.raises(KeyboardInterrupt):
            save_run(tmp_path, evaluations[1:2], title="Two", pictures=1, overwrite=True)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == old if place == 0 else "results.json" not in found
    # what was left stands in nobody's way
    save_run(tmp_path, evaluations[1:2], title="Two", pictures=0, overwrite=True)
    assert results(tmp_path)["title"] == "Two"
    assert report.load(tmp_path).results["pictures"] is None


def test_the_pictures_of_an_older_run_do_not_stay(evaluations, tmp_path):
    save_run(tmp_path, evaluations[:1], title="One", pictures=2)
    save_run(tmp_path, evaluations[1:2], title="Two", pictures=0, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]


def settings(**changed):
    usual = {"loss": lambda z, y: z[0], "steps": 5, "radii": (0.02, 0.1), "shade": np.True_}
    return usual | changed


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"loss": lambda z, y: -z[0]}, "loss"),
        ({"steps": 6}, "steps"),
        ({"radii": [0.02, 0.1]}, "radii"),
        ({"shade": np.False_}, "shade"),
        ({"more": None}, "more"),
    ],
)
def test_a_finished_run_is_known_by_its_settings(changed, named, evaluations, tmp_path):
    assert not is_finished(tmp_path, settings())
    save_run(tmp_path, evaluations[:1], title="One", pictures=0, config=settings())
    assert is_finished(tmp_path, settings())
    with pytest.raises(ValueError, match=f"run_dir must be new for new settings; .* with another {named}$"):
        is_finished(tmp_path, settings(**changed))


def test_settings_that_cannot_be_known_again_are_saved_and_then_refused(evaluations, tmp_path):
    config = settings(lock=threading.Lock())
    save_run(tmp_path, evaluations[:1], title="One", pictures=0, config=config)
    with pytest.raises(ValueError, match=r"^config\.lock must be something that can be recognised") as found:
        is_finished(tmp_path, config)
    assert "Keep it out of config" in str(found.value)
    assert "run_id" not in str(found.value)


@pytest.mark.parametrize(
    "kind",
    [lambda **all: argparse.Namespace(**all), lambda **all: types.SimpleNamespace(**all), types.MappingProxyType],
    ids=["argparse", "simple", "a mapping that is no dict"],
)
def test_settings_come_as_any_names_with_values(kind, evaluations, tmp_path):
    made = {"steps": 5, "inner": types.MappingProxyType({"rate": 0.5})}
    config = kind(made) if kind is types.MappingProxyType else kind(**made)
    save_run(tmp_path, evaluations[:1], title="One", pictures=0, config=config)
    assert report.load(tmp_path).results["config"] == {"steps": 5, "inner": {"rate": 0.5}}
    assert is_finished(tmp_path, config)
    assert is_finished(tmp_path, made)
    with pytest.raises(ValueError, match=r"with another steps$"):
        is_finished(tmp_path, made | {"steps": 6})


@pytest.mark.parametrize("config", [[1, 2], "abc", 3, Config])
def test_settings_without_names_are_refused_before_anything_is_written(config, evaluations, tmp_path):
    with pytest.raises(TypeError, match=r"config must be a dataclass, a dictionary or a namespace.*; got"):
        save_run(tmp_path / "new", evaluations[:1], title="One", config=config)
    with pytest.raises(TypeError, match="config must be a dataclass"):
        is_finished(tmp_path / "new", config)
    assert not (tmp_path / "new").exists()


def test_a_run_of_another_version_is_not_this_one(evaluations, tmp_path):
    save_run(tmp_path, evaluations[:1], title="One", pictures=0, config=Config())
    assert is_finished(tmp_path, Config())
    found = results(tmp_path)
    found["identity"]["version of jaxrobust"] = "0.0.1"
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"a run with another version of jaxrobust$"):
        is_finished(tmp_path, Config())
    del found["identity"]
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"holds a run of another version"):
        is_finished(tmp_path, Config())


def test_an_evaluation_saves_itself(evaluations, tmp_path):
    page = evaluations[0].save(tmp_path / "mine")
    assert results(tmp_path / "mine")["title"] == "first"
    assert "first" in page.read_text()
    with pytest.raises(ValueError, match="must not hold a run already"):
        evaluations[0].save(tmp_path / "mine")


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_any_number_of_pictures(count, evaluations, tmp_path):
    save_run(tmp_path, evaluations, title="Pictures", models=MODELS, pictures=count)
    assert (results(tmp_path)["pictures"] is None) == (count == 0)
    assert (tmp_path / "pictures.npz").exists() == (count > 0)
    if count:
        with np.load(tmp_path / "pictures.npz") as pictures:
            assert len(pictures["label"]) == min(count, 40)


DIFFERENT = {
    "labels": lambda e: dataclasses.replace(e, labels=np.roll(e.labels, 1)),
    "images": lambda e: dataclasses.replace(e, images=e.images * np.float32(0.5)),
    "attacks": lambda e: dataclasses.replace(e, outcomes={"linf": e.outcomes["linf"]}),
    "radii": lambda e: dataclasses.replace(
        e, outcomes={n: dataclasses.replace(o, attack=o.attack.with_radius(0.3)) for n, o in e.outcomes.items()}
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_evaluations_that_differ_are_refused(what, evaluations, tmp_path):
    other = DIFFERENT[what](evaluations[1])
    with pytest.raises(ValueError, match="evaluations must share examples and attacks; got 'first' and 'second'"):
        save_run(tmp_path, [evaluations[0], other], title="Two")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluations": []}, "evaluations must hold at least one evaluation; got none"),
        ({"pictures": -1}, "pictures must be >= 0; got -1"),
    ],
)
def test_bad_input_writes_nothing(change, message, evaluations, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_run(tmp_path, **({"evaluations": evaluations, "title": "Bad"} | change))
    assert not list(tmp_path.iterdir())


def test_two_models_of_one_name_are_refused(evaluations, tmp_path):
    with pytest.raises(ValueError, match=r"evaluations must have different names; got \['first', 'first'\]"):
        save_run(tmp_path, [evaluations[0], evaluations[0]], title="Twins")
    assert not list(tmp_path.iterdir())


def test_versions_are_those_that_run():
    found = versions()
    assert found["jax"] == jax.__version__
    assert found["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["jaxrobust"] == __version__
