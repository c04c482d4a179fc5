"""The page says what results.json says, and nothing reaches out of it."""

import copy
import re

import matplotlib
import numpy as np
import pytest

from jaxrobust import report
from tests.report import fake
from tests.report.html import Page

# What a test of the words and the table need not wait for.
BARE = fake.BARE


def opened(tmp_path, content, **kwargs):
    return Page(report.render(fake.write(tmp_path / "run", content, **kwargs)).read_text())


@pytest.fixture(scope="module")
def content():
    return fake.results()


@pytest.fixture(scope="module")
def page(tmp_path_factory, content):
    return opened(tmp_path_factory.mktemp("report"), content)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    content = fake.large()
    text = report.render(fake.write(folder, content, kept=2)).read_text()
    return content, text, Page(text)


def test_every_section_is_there(page):
    sections = [attrs["id"] for attrs in page.attributes("section")]
    assert sections == ["summary", "table", "radius", "steps", "pictures", "examples", "cost", "settings"]
    links = [attrs["href"] for attrs in page.attributes("a")]
    assert links == [f"#{name}" for name in sections[1:]]


@pytest.mark.parametrize("which", ["small", "hostile"])
def test_well_formed(which, page, hostile):
    page = page if which == "small" else hostile[2]
    assert page.unbalanced == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    uses = {attrs["href"].removeprefix("#") for attrs in page.attributes("use")}
    assert uses
    assert uses <= set(ids)


@pytest.mark.parametrize("which", ["small", "hostile"])
def test_nothing_is_loaded(which, page, hostile):
    page = page if which == "small" else hostile[2]
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
        assert not re.search(r"url\((?!#)", attrs.get("style") or "")
    assert not page.attributes("script")
    assert not page.attributes("link")
    assert not re.search(r"url\(|@import", page.text[""])


def test_table_holds_every_number(page, content):
    head, *rows = page.table("table")
    assert [words for words, _ in head] == [
        "Model", "Clean", "pgd-linfLinf 0.2", "pgd-l2L2 1", "pgd-l1L1 4", "Union", "Unseen mean",
    ]  # fmt: skip
    for model, row in zip(content["models"], rows, strict=True):
        entries = [model["clean"], *model["attacks"].values(), model["union"]]
        wanted = [f"{100 * e['accuracy']:.1f} {100 * e['low']:.1f}–{100 * e['high']:.1f}" for e in entries]
        wanted.append(f"{100 * model['unseen_mean']:.1f}")
        assert [words.replace("†", "") for words, _ in row] == [model["name"], *wanted]


def test_trained_against_and_best_are_marked(page, content):
    _, *rows = page.table("table")
    for model, row in zip(content["models"], rows, strict=True):
        marked = [name for name, (words, kinds) in zip(content["attacks"], row[2:-2], strict=True) if "†" in words]
        assert marked == model["trained_on"]
        assert [
            name for name, (_, kinds) in zip(content["attacks"], row[2:-2], strict=True) if "seen" in kinds
        ] == marked
    for column in range(1, len(rows[0])):
        values = [float(re.match(r"[\d.]+", row[column][0])[0]) for row in rows]
        best = ["best" in row[column][1] for row in rows]
        assert best == [value == max(values) for value in values]


def test_one_model_is_best_of_nothing(tmp_path):
    page = opened(tmp_path, fake.results(models=("only",)) | BARE)
    assert not any("best" in kinds for row in page.table("table") for _, kinds in row)


def test_what_was_not_measured_is_a_dash(tmp_path, content):
    content = copy.deepcopy(content)
    content["models"][0]["unseen_mean"] = None
    content["models"][1]["union"] = None
    content["models"][2]["attacks"]["pgd-l1"] = dict.fromkeys(content["models"][2]["attacks"]["pgd-l1"])
    content["models"][2]["clean"] = {"accuracy": float("nan"), "low": None, "high": None}
    content["attacks"]["pgd-l1"]["radius"] = None
    page = opened(tmp_path, content)
    rows = page.table("table")
    assert [rows[1][-1][0], rows[2][-2][0], rows[3][4][0], rows[3][1][0]] == ["–"] * 4
    assert "–: not measured" in page.words("table")
    assert [words for words, _ in page.table("cost")[-1]] == ["pgd-l1"] + ["–"] * 11
    assert "nan" not in "".join(page.text.values()).lower().replace("non-finite", "").replace("returned nan", "")


def test_sections_without_content_are_left_out(tmp_path, content):
    bare = content | BARE
    bare["models"] = [model | {"examples": {}} for model in content["models"]]
    page = opened(tmp_path, bare)
    assert [attrs["id"] for attrs in page.attributes("section")] == ["summary", "table", "cost", "settings"]


def test_without_attacks(tmp_path):
    content = fake.results(attacks={"x": ("Linf", 0.1)}) | {"attacks": {}, "pictures": None}
    for model in content["models"]:
        model["examples"]["outcome"] = {}
    page = opened(tmp_path, content)
    assert [words for words, _ in page.table("table")[0]] == ["Model", "Clean", "Union", "Unseen mean"]


def test_names_are_escaped(hostile):
    content, text, page = hostile
    assert "<script>" not in text
    assert "<b>bold" not in text
    assert "<i>Large" not in text
    names = [words for words, _ in next(iter(zip(*page.table("table")[1:], strict=True)))]
    assert names == [model["name"] for model in content["models"]]
    assert any("<script>alert(1)</script> & \"quotes\" 'n' $x_1$" in words for words, _ in page.table("table")[0])
    assert "$x_1$" in "".join(attrs.get("aria-label", "") for attrs in page.attributes("svg"))


def test_a_model_has_one_colour_everywhere(page, content):
    for name in ("radius", "steps", "examples", "cost", "pictures", "table"):
        assert all(model["name"] in page.words(name) for model in content["models"])
    assert {attrs["href"] for attrs in page.attributes("use") if "swatch" in attrs["href"]} == {
        f"#swatch-{place}" for place in range(3)
    }
    strokes = "".join(attrs.get("style") or "" for _, attrs in page.tags)
    assert {int(place) for place in re.findall(r"stroke: var\(--model-(\d+)\)", strokes)} == {0, 1, 2}
    assert not re.search(r"#f[de]0", strokes)
    assert all(f"--model-{place}:" in page.text[""] for place in range(3))


def test_matrix_agrees_with_the_table(page, content):
    words = page.words("examples")
    for model in content["models"]:
        block = words[words.index(model["name"]) :]
        for name, entry in (*model["attacks"].items(), ("worst case", model["union"])):
            block = block[block.index(name) :]
            assert re.match(rf"{name} ([\d.]+) %", block)[1] == f"{100 * entry['accuracy']:.1f}"
    robust = np.array([codes for model in content["models"] for codes in model["examples"]["outcome"].values()]) == 0
    assert (
        f"{robust.all(0).sum()} hold for every model under every attack and {(~robust).all(0).sum()} for none" in words
    )


def test_ten_thousand_examples_stay_small(hostile):
    content, _, page = hostile
    strips = [a for a in page.attributes("img") if "clean error" in a["alt"]]
    assert len(strips) == len(content["models"]) * (len(content["attacks"]) + 1)
    assert sum(len(strip["src"]) for strip in strips) < 600_000


def test_cost_holds_every_number(page, content):
    _, *rows = page.table("cost")
    assert len(rows) == 9
    entry = content["models"][1]["attacks"]["pgd-l2"]
    assert [words for words, _ in rows[4]] == [
        "pgd-l2", f"{100 * entry['success_rate']:.1f}", "–", "0.93", "1", "22.4", "21.4", "8,000", "1.12", "1.0 s",
        "0", "0",
    ]  # fmt: skip
    assert "alarm" in rows[0][-2][1]
    assert [words for words, _ in rows[0][-2:]] == ["2", "0"]


@pytest.mark.parametrize(("field", "heading"), [("outside", "Outside"), ("no_start", "No start")])
def test_rare_ends_of_a_search_have_a_column_and_a_sentence_where_they_occur(field, heading, tmp_path, content, page):
    assert heading not in page.words("cost")
    content = copy.deepcopy(content)
    content["models"][1]["attacks"]["pgd-l2"][field] = 7
    head, *rows = opened(tmp_path, content | BARE).table("cost")
    assert head[3][0] == f"{heading}images"
    assert rows[4][2][0] == "7"
    assert "alarm" in rows[4][2][1]
    assert rows[5][2][0] == "–"
    assert "alarm" not in rows[5][2][1]
    assert f"{heading} " in Page((tmp_path / "run" / "report.html").read_text()).words("cost").replace(heading, "", 1)


def test_pictures(tmp_path, content):
    content = content | {"curves": [], "trajectories": []}
    page = opened(tmp_path, content, kept=11)
    words = page.words("pictures")
    assert "The first 8 of 11 images" in words
    assert words.count("✗") + words.count("✓") + words.count("○") == 3 + 3 * 3 * 8
    assert "difference × 5" in words  # 0.2 × 5 = 1
    named = opened(tmp_path / "named", content | {"data": content["data"] | {"class_names": [*"abcdefghij"]}})
    assert re.search(r"true [a-j]", named.words("pictures"))


def test_statement(tmp_path, content):
    best = max(content["models"], key=lambda model: model["union"]["accuracy"])
    said = opened(tmp_path, content | BARE).words("summary")
    assert f"{best['name']} resists best: it is right on {100 * best['union']['accuracy']:.1f} %" in said
    unnamed = content | BARE | {"data": content["data"] | {"name": None, "split": None}}
    assert "On 359 images of the data, " in opened(tmp_path / "unnamed", unnamed).words("summary")
    alone = opened(tmp_path / "alone", fake.results(models=("only",)) | BARE).words("summary")
    assert "The strongest single attack, pgd-" in alone
    assert "Next comes" not in alone
    fallen = copy.deepcopy(content)
    for model in fallen["models"]:
        model["union"] = fake.wilson(0.0, 359)
    assert "no model holds under all 3 attacks at once" in opened(tmp_path / "fallen", fallen | BARE).words("summary")


def test_settings_and_command(page, content):
    assert content["command"] in page.words("summary")
    assert "cpu x4 (made up)" in page.words("summary")
    assert "21 November 2026, 15:26 UTC" in page.words("")
    words = page.words("settings")
    for wanted in ("PGD on L2, 40 steps", "step_size = 0.02", "[0, 42]", '"epochs": 20', "training seconds = 32.4"):
        assert wanted in words


def test_the_same_run_gives_the_same_bytes_whatever_the_users_style(tmp_path, content):
    folder = fake.write(tmp_path / "run", content)
    first = report.render(folder).read_bytes()
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "text.usetex": True}):
        second = report.render(folder).read_bytes()
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert first == second
    assert dict(matplotlib.rcParams) == before
