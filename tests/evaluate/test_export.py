"""Results in forms that people use: rows, CSV, data frames, image files, and tests between models."""

import csv
import dataclasses
import io
import os
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jaxrobust import attacks, evaluate, report, sets
from jaxrobust.evaluate import export
from jaxrobust.evaluate.outcomes import FOOLED
from tests import tiny

SHAPE = (6, 5, 3)
MODEL = tiny.dense_classifier(shape=SHAPE)
IMAGES, LABELS = tiny.images_and_labels(MODEL, 12, shape=SHAPE)
ATTACKS = {"pgd": attacks.pgd(sets.Linf(8 / 255), steps=3), "fmn": attacks.fmn(sets.L2(2.0), steps=10)}


@pytest.fixture(scope="module")
def found():
    key = jax.random.key(0)
    return evaluate.robustness(MODEL, (IMAGES, LABELS), ATTACKS, key=key, name="tiny", progress=False)


def test_an_evaluation_is_asked_by_name(found):
    assert found["fmn"] is found.outcomes["fmn"]
    assert list(found) == ["pgd", "fmn"]
    with pytest.raises(ValueError, match=r"attack must be one of .* \(did you mean 'pgd'"):
        found["pdg"]
    assert repr(found).startswith("Evaluation('tiny', 12 examples; accuracy in %: clean 91.7, pgd ")
    assert repr(found["pgd"]).startswith("AttackOutcome(gradient ascent in Linf(8/255)")
    np.testing.assert_array_equal(found.robust(), found.robust("pgd") & found.robust("fmn"))
    assert found.robust("clean").mean() == found.clean.accuracy


def test_rows_are_the_numbers_of_the_results(found, tmp_path):
    rows = found.rows()
    assert [row["attack"] for row in rows] == ["clean", "pgd", "fmn", "union"]
    assert rows[1]["set"] == "Linf"
    assert rows[1]["radius"] == 8 / 255
    told = found.to_dict()
    assert rows[2].items() >= told["attacks"]["fmn"].items()
    assert set(rows[1]) - {"model"} <= set(report.LEGEND)
    with found.to_csv(tmp_path / "new" / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in read] == [row["accuracy"] for row in rows]
    examples = found.rows(examples=True)
    assert len(examples) == 2 * len(LABELS)
    assert [row["outcome"] == "robust" for row in examples[:12]] == found.robust("pgd").tolist()


def test_results_hold_what_to_dict_gives(found, tmp_path):
    found.save(tmp_path / "run")
    written = report.load(tmp_path / "run").results["models"][0]
    assert written["examples"]["outcome"]["fmn"] == found.to_dict()["examples"]["outcome"]["fmn"]
    assert written["attacks"]["fmn"]["fooled_8bit"] == int(found["fmn"].fooled_8bit.sum())
    page = (tmp_path / "run" / "report.html").read_text()
    outcome = found["fmn"]
    assert f"<td>{outcome.fooled_8bit.sum()} of {(outcome.outcome == FOOLED).sum()}</td>" in page


def test_frames_need_pandas(found, monkeypatch):
    frames = []

    class Pandas:
        DataFrame = staticmethod(frames.append)

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    found.to_frame()
    found.to_frame(examples=True)
    assert [len(rows) for rows in frames] == [4, 24]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        found.to_frame()


def test_eight_bits_are_counted(found):
    for name, outcome in found.outcomes.items():
        fooled = outcome.outcome == FOOLED
        rounded = (np.rint(outcome.images * 255) / 255).astype(np.float32)
        still = fooled & (np.asarray(MODEL(rounded)).argmax(-1) != LABELS)
        np.testing.assert_array_equal(outcome.fooled_8bit, still, err_msg=name)
    lost = int((found["fmn"].outcome == FOOLED).sum() - found["fmn"].fooled_8bit.sum())
    assert lost > 0, "a minimum-norm attack that stops at the boundary loses some"
    assert f"{lost} of {(found['fmn'].outcome == FOOLED).sum()} successes lost by rounding to 8 bits" in str(found)


def test_survivors_keep_what_was_found_of_them(found):
    options = {"key": jax.random.key(0), "progress": False}
    chained = evaluate.robustness(MODEL, (IMAGES, LABELS), ATTACKS, only_survivors=True, **options)
    first = chained["pgd"].outcome == FOOLED
    np.testing.assert_array_equal(chained["fmn"].fooled_8bit[first], chained["pgd"].fooled_8bit[first])
    assert chained["fmn"].inherits == first.any()
    assert chained["fmn"].fooled_8bit.sum() >= chained["pgd"].fooled_8bit.sum()


def test_host_models_are_not_asked(found):
    calls = []

    def function(images):
        calls.append(len(images))
        return np.asarray(MODEL(images))

    host = evaluate.HostModel(function, classes=tiny.CLASSES)
    attack = attacks.worst_of_k(sets.Linf(0.3), samples=2, chunk=1)
    answered = evaluate.robustness(host, (IMAGES, LABELS), attack, key=jax.random.key(0), progress=False)
    (outcome,) = answered.outcomes.values()
    assert outcome.fooled_8bit is None
    assert outcome.summary()["fooled_8bit"] is None


def test_image_files_are_what_was_counted(found, tmp_path):
    folder = found.save_images(tmp_path / "images")
    with (folder / "images.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == sum(int((outcome.outcome == FOOLED).sum()) for outcome in found.outcomes.values())
    assert len(list(folder.glob("*/*.png"))) == len(listed)
    for row in listed:
        pixels = np.asarray(Image.open(folder / row["file"]), np.uint8)
        logits = MODEL((pixels[None] / np.float32(255)).astype(np.float32))
        fooled = int(logits.argmax()) != int(row["label"])
        assert str(fooled) == row["fooled_8bit"]
        assert row["file"].endswith("_lost.png") != fooled


def test_image_files_of_one_attack_and_of_a_model_asked_anew(found, tmp_path):
    unasked = dataclasses.replace(
        found, outcomes={name: dataclasses.replace(o, fooled_8bit=None) for name, o in found.outcomes.items()}
    )
    folder = unasked.save_images(tmp_path / "unknown", attack="fmn")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["fmn"]
    assert not list(folder.glob("*/*_lost.png"))
    asked = unasked.save_images(tmp_path / "asked", attack="fmn", model=MODEL)
    lost = int((found["fmn"].outcome == FOOLED).sum() - found["fmn"].fooled_8bit.sum())
    assert len(list(asked.glob("*/*_lost.png"))) == lost
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        dataclasses.replace(found, images=found.images[..., :2]).save_images(tmp_path / "two")


def test_image_files_are_those_that_are_listed(found, tmp_path):
    folder = found.save_images(tmp_path / "images")
    first = found["pgd"]
    hit = np.flatnonzero((first.outcome == FOOLED) & (first.forwards > 0))
    fate = first.outcome.copy()
    fate[hit[0]] = 0
    fewer = dataclasses.replace(found, outcomes={"pgd": dataclasses.replace(first, outcome=fate)})
    (folder / "pgd" / "mine.png").touch()
    fewer.save_images(folder, attack="pgd")
    with (folder / "images.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert {row["file"] for row in listed} | {"pgd/mine.png"} == {
        path.relative_to(folder).as_posix() for path in folder.glob("*/*.png")
    }
    assert sum(row["attack"] == "pgd" for row in listed) == len(hit) - 1
    assert any(row["attack"] == "fmn" for row in listed)
    (folder / "images.csv").write_text("file,attack\n../out.png,pgd\n")
    (tmp_path / "out.png").touch()
    assert export.remove_images(folder) == []
    assert (tmp_path / "out.png").exists()
    assert not (folder / "images.csv").exists()


def test_image_files_of_an_interrupted_call_are_taken_away(found, tmp_path, monkeypatch):
    folder, replace, calls = tmp_path / "images", os.replace, []

    def stopping(*paths):
        calls.append(paths)
        if len(calls) == 3:  # the list's own among them
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        found.save_images(folder)
    monkeypatch.undo()
    assert len(list(folder.glob("*/*.png"))) == 1
    assert export.remove_images(folder) == []
    assert not list(folder.iterdir())


def test_csv_takes_rows_of_other_names(tmp_path):
    path = export.write_csv(tmp_path / "a.csv", [{"a": 1}, {"b": 'x,"y"'}])
    assert list(csv.DictReader(io.StringIO(path.read_text()))) == [{"a": "1", "b": ""}, {"a": "", "b": 'x,"y"'}]


@pytest.mark.parametrize("counts", [(0, 0), (1, 9), (9, 1), (5, 5), (0, 7), (200, 263), (3, 5000)])
def test_mcnemar_is_the_exact_binomial_test(counts):
    from jaxrobust._statistics import sign_test

    expected = stats.binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1.0
    assert sign_test(*counts) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_two_evaluations(found):
    outcome = found["pgd"]
    worse = outcome.outcome.copy()
    hit = np.flatnonzero(outcome.robust)[:3]
    worse[hit] = FOOLED
    other = dataclasses.replace(found, outcomes={"pgd": dataclasses.replace(outcome, outcome=worse)})
    test = evaluate.mcnemar(found, other, attack="pgd")
    assert test == (3, 0, 0.25)
    assert str(test) == "3 examples only the first, 0 only the second: p = 0.25"
    assert evaluate.mcnemar(found, other, attack="clean").p_value == 1
    with pytest.raises(ValueError, match="first and second must be of the same examples"):
        evaluate.mcnemar(found, dataclasses.replace(other, labels=found.labels[::-1]))
