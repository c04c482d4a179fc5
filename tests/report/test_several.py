"""Several runs on one page."""

import json

import numpy as np
import pytest

from jaxrobust import report
from jaxrobust.report import sections
from jaxrobust.report.several import merged, render_several
from tests.report import fake
from tests.report.html import Page


def folder(path, content, images=True):
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps(content | {"pictures": "pictures.npz" if images else None}))
    if images:
        rng = np.random.default_rng(0)
        count, shape = 6, tuple(content["data"]["shape"])
        arrays = {"clean": rng.random((count, *shape)), "label": rng.integers(0, 10, count)}
        for place, _ in enumerate(content["models"]):
            arrays[report.picture_key("prediction", place)] = arrays["label"]
            for number, _ in enumerate(content["attacks"]):
                arrays[report.picture_key("images", place, attack=number)] = rng.random((count, *shape))
                arrays[report.picture_key("prediction", place, attack=number)] = rng.integers(0, 10, count)
        np.savez(path / "pictures.npz", **arrays)
    return path


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Two runs of one model each, under the same attacks on the same examples."""
    root = tmp_path_factory.mktemp("alike")
    return [folder(root / name, fake.results(models=(name,))) for name in ("standard", "adv")]


def test_models_are_rows_and_attacks_columns(alike, tmp_path):
    page = Page((render_several(alike, output=tmp_path / "both.html")).read_text())
    header, *rows = page.table("table")
    names = ["Model", "Clean", *fake.ATTACKS, "Union", "Unseen mean"]
    assert all(words.startswith(name) for (words, _), name in zip(header, names, strict=True))
    assert [row[0][0] for row in rows[:2]] == ["standard", "adv"]
    assert "resists best" in page.words("summary") or "no model holds" in page.words("summary")
    assert "McNemar" in page.words("table")
    # eight pictures in a run's own page, half as many here
    assert len(page.table("pictures")[0]) == 1 + 4


def test_alike_models_do_not_differ(alike):
    both = merged([report.load(path) for path in alike])
    assert both.comparable
    assert both.names == ["standard", "adv"]
    (pair,) = sections.table(both)["pairs"]
    assert pair["alone"] == (0, 0)
    assert pair["p_value"] == 1


def test_runs_of_other_attacks_and_data(alike, tmp_path):
    attacks = {"pgd-linf": ("Linf", 0.1), "square": ("Linf", 0.2)}
    other = folder(tmp_path / "other", fake.results(models=("standard",), attacks=attacks, count=50), images=False)
    both = merged([report.load(alike[0]), report.load(other)])
    # models of one name are told apart, and so is one attack of two radii
    assert both.names == ["standard (standard)", "standard (other)"]
    assert list(both.attacks) == [*fake.ATTACKS, "pgd-linf (other)", "square"]
    assert not both.comparable
    page = Page((render_several([alike[0], other], output=tmp_path / "both.html")).read_text())
    assert "not the same" in page.words("summary")
    assert "McNemar" not in page.words("table")
    assert "–" in page.words("table")
    # no matrix of examples that are not the same
    assert "examples" not in page.text


def test_names_stay_apart_and_equal_settings_together(tmp_path):
    made = [
        ("a", {"pgd (c)": ("Linf", 0.3), "pgd": ("Linf", 0.1)}),
        ("a", {"pgd": ("Linf", 0.2)}),
        ("a (0)", {"pgd": ("Linf", 0.2)}),
        ("d", {"fgsm": ("Linf", 0.1), "pgd": ("Linf", 0.1)}),
    ]
    contents = [fake.results(models=(name,), attacks=attacks, count=5) for name, attacks in made]
    contents[3]["models"][0]["attacks"]["pgd"]["inherits"] = True
    both = merged([report.load(folder(tmp_path / str(i), content, images=False)) for i, content in enumerate(contents)])
    assert both.names == ["a (0) 2", "a (1)", "a (0)", "d"]
    assert list(both.attacks) == ["pgd (c)", "pgd", "pgd (1)", "fgsm", "pgd (3)"]
    measured = [[name for name, entry in model["attacks"].items() if entry] for model in both.models]
    assert measured == [["pgd (c)", "pgd"], ["pgd (1)"], ["pgd (1)"], ["fgsm", "pgd (3)"]]


def test_images_of_one_name_may_differ(tmp_path):
    """As those of a corrupted copy do."""
    runs = []
    for images in ("clean", "corrupted"):
        results = fake.results(models=(images,), count=5)
        results["data"]["images"] = images
        runs.append(report.load(folder(tmp_path / images, results, images=False)))
    assert not merged(runs).comparable
    for run in runs:
        del run.results["data"]["images"]
    assert merged(runs).comparable


def test_what_is_no_set_of_runs_is_refused(alike, tmp_path):
    with pytest.raises(ValueError, match="different folders"):
        render_several([alike[0], alike[0]], output=tmp_path / "both.html")
    with pytest.raises(ValueError, match="at least one"):
        merged([])
    assert merged([report.load(alike[0])]).parts == ()
