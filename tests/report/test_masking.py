"""The section on masked gradients: a verdict a check, and the curves behind them, for models that were diagnosed."""

import copy
import re

import pytest

from jaxrobust import report
from tests.report import fake
from tests.report.html import Page


def noted(*masking):
    return fake.noted("masking", *masking)


def opened(tmp_path, content):
    return Page(report.render(fake.write(tmp_path / "run", content)).read_text())


def test_every_check_has_its_verdict(tmp_path):
    flagged, sound = fake.masking("black box", "steps"), fake.masking()
    page = opened(tmp_path, noted(flagged, sound))
    head, *rows = page.table("masking")
    assert [words for words, _ in head] == ["Model", "Check", "Verdict", "What was found"]
    wanted = [
        [check["name"], {True: "FLAG", False: "ok", None: "not applicable"}[check["flagged"]], check["verdict"]]
        for notes in (flagged, sound)
        for check in notes["checks"]
    ]
    assert [[words for words, _ in row[-3:]] for row in rows] == wanted
    words = page.words("masking")
    assert "standard2 of 4 checks flagged" in words
    assert "adv-linfno flag" in words
    assert words.count("FLAG") == 2


def test_the_curves_have_a_line_a_model_and_a_tick_a_point(tmp_path):
    page = opened(tmp_path, noted(fake.masking("steps"), fake.masking()))
    labels = [attrs["aria-label"] for attrs in page.attributes("svg") if "aria-label" in attrs]
    attack = fake.masking()["attack"]
    assert labels == [f"Accuracy against {against} of {attack}" for against in ("steps", "radius")]
    strokes = "".join(attrs.get("style") or "" for tag, attrs in page.tags if tag == "path")
    assert {int(place) for place in re.findall(r"stroke: var\(--model-(\d+)\)", strokes)} >= {0, 1}
    words = page.words("masking")
    assert re.search(r"1 2 20 40 .*4/255 8/255 16/255 1 ", words)


def test_models_diagnosed_by_different_attacks_have_charts_of_their_own(tmp_path):
    page = opened(tmp_path, noted(fake.masking(), fake.masking(radius=4 / 255)))
    assert len([attrs for attrs in page.attributes("svg") if "aria-label" in attrs]) == 4


def test_the_result_warns_of_flags_and_the_settings_do_not_repeat_them(tmp_path):
    page = opened(tmp_path, noted(fake.masking("steps"), fake.masking()))
    assert "FLAG The gradients of standard may be masked" in page.words("summary")
    assert "#masking" in {attrs["href"] for attrs in page.attributes("a")}
    assert "training seconds" in page.words("settings")
    assert "masking =" not in page.words("settings")
    assert "FLAG" not in opened(tmp_path / "sound", noted(fake.masking())).words("summary")


def test_without_diagnostics_there_is_no_section(tmp_path):
    page = opened(tmp_path, noted("see the paper"))
    assert "masking" not in [attrs["id"] for attrs in page.attributes("section")]
    assert "masking = see the paper" in page.words("settings")


def test_words_are_escaped(tmp_path):
    notes = fake.masking()
    notes["attack"] = notes["checks"][0]["verdict"] = notes["checks"][0]["name"] = "<b>bold</b> & $x_1$"
    content = noted(notes)
    assert "<b>bold" not in report.render(fake.write(tmp_path / "run", content)).read_text()
    page = opened(tmp_path, content)
    assert page.unbalanced == []
    assert page.words("masking").count("<b>bold</b> & $x_1$") >= 4


def test_half_of_a_diagnosis_is_refused(tmp_path):
    for place, change in enumerate(({"checks": [{"name": "loss"}]}, {"radius": "wide"})):
        content = noted(copy.deepcopy(fake.masking()) | change)
        with pytest.raises(ValueError, match=r"models\[0\].notes.masking"):
            opened(tmp_path / str(place), content)
