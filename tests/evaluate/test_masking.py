"""Masked gradients: on a quantised model the signs show that must, on an honest linear one none."""

import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.evaluate.masking import (
    _black_box,
    _full_radius,
    _losses,
    _one_step,
    _radius,
    _random_points,
    _steps,
    masking,
)
from jaxrobust.types import Classifier
from tests import tiny
from tests.evaluate.models import ONE_DEVICE

KEY = jax.random.key(0)
BALL = sets.Linf(0.06)


def maybe_quantised(params, images):
    """Linear, behind a quantiser of so many levels; 0 for none."""
    weights, levels = params
    coarse = jnp.round(images * levels) / jnp.where(levels > 0, levels, 1)
    seen = jnp.where(levels > 0, coarse, images)
    return seen.reshape(len(images), -1) @ weights


@pytest.fixture(scope="module")
def reports():
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(int(np.prod(tiny.SHAPE)), 3)), jnp.float32)
    images = (0.5 + 0.4 * (rng.random((24, *tiny.SHAPE)) - 0.5)).astype(np.float32)
    found = {}
    for name, levels in (("honest", 0.0), ("quantised", 8.0)):
        model = Classifier(maybe_quantised, (weights, jnp.asarray(levels, jnp.float32)))
        labels = np.asarray(model(images)).argmax(-1)
        options = {"steps": 10, "queries": 150, "samples": 100, "lanes": 24, "devices": ONE_DEVICE}
        found[name] = masking(model, (images, labels), BALL, key=KEY, name=name, **options)
    return found


def test_an_honest_model_shows_no_sign(reports):
    report = reports["honest"]
    assert report.flags == ()
    assert all(check.flagged is False for check in report.checks)
    # some examples withstand the gradients, so that the other attacks had their chance
    assert 0.1 < report["one step"].numbers["iterative"] < 0.9
    assert report["full radius"].numbers["accuracy"] == 0
    assert report["gradients"].numbers["share"] == 0


def test_a_quantised_model_shows_the_signs_that_it_must(reports):
    report = reports["quantised"]
    assert {"black box", "full radius", "loss", "gradients"} <= set(report.flags)
    assert report["gradients"].numbers["share"] == 1
    assert report["loss"].numbers["never_rises"] == 1
    assert report["loss"].numbers["first"] == report["loss"].numbers["last"]
    assert report["black box"].numbers["square"] > 0.3
    # both losses lead nowhere, from the same starts
    assert report["losses"].flagged is False


def test_accuracy_against_steps_and_radius(reports):
    for report in reports.values():
        assert report.steps.tolist() == [1, 2, 4, 5, 8, 10]
        assert (np.diff(report.steps_accuracy) <= 0).all()
        assert report.steps_accuracy[-1] == report.evaluation.accuracy("iterative").accuracy
        np.testing.assert_allclose(report.radii, [0.03, 0.06, 0.12, 1.0])
    assert (np.diff(reports["honest"].radii_accuracy) <= 0).all()


def some(count, of=1000):
    """Of which examples something is true: the first ones."""
    return np.arange(of) < count


SIGNS = {
    "one step": (lambda single: _one_step(some(single), some(500)), 490, 500),
    "black box": (lambda gain: _black_box({"square": gain, "other": 0}, 1000), 8, 4),
    "random points": (lambda gain: _random_points(gain, 1000, 10), 8, 4),
    "full radius": (lambda left: _full_radius(some(left)), 25, 12),
    "radius": (lambda left: _radius(np.stack([some(900), some(500), some(left), some(0)])), 510, 501),
    "losses": (lambda fooled: _losses(some(fooled), some(600)), 420, 500),
    "steps": (lambda half: _steps(half, 400, 600, 1000, 40), 490, 450),
}


@pytest.mark.parametrize("name", SIGNS)
def test_where_a_sign_begins(name):
    check, beyond, within = SIGNS[name]
    assert check(beyond).name == name
    assert check(beyond).flagged is True
    assert check(within).flagged is False


def test_few_successes_are_no_evidence():
    """Three of three would be significant if they were independent."""
    assert _losses(some(2), some(5)).flagged is False
    assert _losses(some(0), some(19)).flagged is False
    assert _losses(some(0), some(20)).flagged is True
    assert _steps(1000, 981, 19, 1000, 40).flagged is False
    assert _steps(1000, 980, 20, 1000, 40).flagged is True


def test_a_model_that_nothing_changes_is_a_sign():
    assert _radius(np.stack([some(900)] * 3)).flagged is True


@pytest.mark.parametrize("count", [20, 200, 2000])
def test_chance_alone_makes_few_signs(count):
    """Two attacks alike that differ in every twentieth example, and as many surprises as the shares allow."""
    rng = np.random.default_rng(0)
    flags = np.zeros(3)
    for _ in range(300):
        both = rng.random(count) < 0.5
        first, second = (np.where(rng.random(count) < 0.05, ~both, both) for _ in range(2))
        gain = int(rng.binomial(count, 0.002))
        checks = (_one_step(first, second), _losses(first, second), _black_box({"square": gain}, count))
        flags += [check.flagged for check in checks]
    assert flags.max() / 300 <= 0.025  # each at most 1 %, as far as 300 draws tell


def test_it_can_be_read_and_kept(reports):
    report = reports["quantised"]
    text = str(report)
    assert text.startswith("quantised: ")
    assert sum(line.startswith("  FLAG") for line in text.splitlines()) == len(report.flags)
    assert "accuracy in % against radius" in text
    kept = json.loads(json.dumps(report.summary()))
    assert kept["flags"] == list(report.flags)
    assert [check["name"] for check in kept["checks"]] == [check.name for check in report.checks]


def test_the_page_of_an_evaluation_shows_it(reports, tmp_path):
    report = reports["quantised"]
    found = report.evaluation.with_notes(seconds=1.5).with_notes(masking=report.summary())
    assert set(found.notes) == {"seconds", "masking"}
    assert not report.evaluation.notes
    page = found.save(tmp_path / "run").read_text(encoding="utf-8")
    assert 'id="masking"' in page
    assert all(check.verdict in html.unescape(page) for check in report.checks)
    assert page.count('<span class="verdict flag">FLAG</span>') == len(report.flags) + 1


def test_bad_input_is_refused():
    model = tiny.dense_classifier()
    data = tiny.images_and_labels(model, 4)
    with pytest.raises(ValueError, match="must use no gradients"):
        masking(model, data, BALL, key=KEY, black_box={"pgd": attacks.pgd(BALL)})
    with pytest.raises(ValueError, match="steps must be >= 2; got 1"):
        masking(model, data, BALL, key=KEY, steps=1)


@pytest.mark.slow
def test_sets_without_a_black_box_attack_or_a_full_radius():
    model = tiny.dense_classifier()
    report = masking(model, tiny.images_and_labels(model, 4), sets.RotationTranslation(), key=KEY, steps=4, samples=10)
    assert report["black box"].flagged is None
    assert report["full radius"].flagged is None
    assert len(report.radii) == 3
