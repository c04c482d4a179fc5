"""The table of attacks: complete, true, and the one that is committed."""

import inspect

import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks import table
from jaxrobust.attacks.core.base import KNOWLEDGE

REGISTERED = {entry.factory.__name__: entry.factory for entry in attacks.REGISTRY.values()}
OTHERS = {factory.__name__: factory for factory in table.OTHERS}


@pytest.fixture(scope="module")
def rows():
    return {row.name.removeprefix("attacks."): row for row in table.rows()}


def test_the_committed_page_is_what_is_generated():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run python -m jaxrobust.attacks.table --write"


@pytest.mark.parametrize("name", sorted(REGISTERED | OTHERS))
def test_every_attack_is_public_and_says_its_cost_and_reference(name):
    factory = (REGISTERED | OTHERS)[name]
    assert getattr(attacks, name, None) is factory, "register(..., factory=...) must be given the public function"
    assert table.cost(factory), f"the docstring of {name} must have a paragraph that is led in by 'Cost:'"
    assert "Reference:" in inspect.getdoc(factory), f"the docstring of {name} must have a reference"


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_every_attack_says_what_it_is_for(name, rows):
    assert rows[name].use.endswith("."), f"register({name!r}, ...) must be given use='...', a sentence"
    assert rows[name].sets, f"{name} takes none of the registered sets"


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_one_set_too_many_is_refused_at_the_door(name, rows):
    """Each of the sets that the table leaves out gives an error in the user's terms, and none is let pass."""
    make = next(entry for entry in attacks.REGISTRY.values() if entry.factory.__name__ == name)
    for example in (made() for made in sets.REGISTRY.values()):
        if rows[name].sets != ("any",) and type(example).__name__ not in rows[name].sets:
            with pytest.raises((TypeError, ValueError), match="set"):
                make(example)


def test_what_the_adversary_sees(rows):
    seen = {know: {name for name, row in rows.items() if row.knowledge == know} for know in KNOWLEDGE}
    assert {"boundary", "hop_skip_jump", "pointwise"} <= seen["decisions"]
    assert {"square", "nes", "grid_search", "worst_of_k"} <= seen["scores"]
    assert {"pgd", "fab", "minimal", "worst_of"} <= seen["gradients"]


def test_wrappers_see_what_they_wrap():
    ball = sets.L2(1.0)
    labels, scores = attacks.boundary(ball), attacks.square(ball)
    assert attacks.minimal(scores).knowledge == attacks.eot(scores).knowledge == "scores"
    assert attacks.minimal(labels).knowledge == "decisions"
    assert attacks.worst_of(labels, scores).knowledge == "scores"
    assert attacks.worst_of(labels, attacks.pgd(ball)).knowledge == "gradients"


def test_columns_are_computed(rows):
    assert rows["pgd"].sets == ("any",)
    assert rows["grid_search"].sets == ("RotationTranslation",)
    assert set(rows["fmn"].sets) == {"L0", "L1", "L2", "Linf"}
    untargeted = {"apgd_t", "corner_search", "deepfool", "sparse_fool"}
    assert untargeted <= {name for name, row in rows.items() if not row.targeted}
    assert rows["pgd"].targeted
    assert rows["fab"].targeted


def test_cost_is_one_paragraph_on_one_line():
    def documented():
        """One line.

        Returns:
            Something. Cost: a
            + b forwards.

        Raises:
            Nothing.
        """

    assert table.cost(documented) == "a + b forwards."
    assert table.cost(lambda: None) == ""


def test_it_is_linked():
    readme = (table.PAGE.parents[2] / "README.md").read_text(encoding="utf-8")
    assert "](jaxrobust/attacks/README.md)" in readme


def test_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(table, "page", lambda: "the page\n")
    monkeypatch.setattr(table, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr("sys.argv", ["table"])
    table.main()
    assert capsys.readouterr().out == "the page\n"
    assert not table.PAGE.exists()
    monkeypatch.setattr("sys.argv", ["table", "--write"])
    table.main()
    assert table.PAGE.read_text(encoding="utf-8") == "the page\n"
