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


SIGNS = {
    "one step": (_one_step, {"one step": 0.4, "iterative": 0.5}, {"one step": 0.5, "iterative": 0.5}),
    "black box": (_black_box, {"square": 0.003, "other": 0.0}, {"square": 0.001}),
    "random points": (lambda gain: _random_points(gain, 10), 0.01, 0.0),
    "full radius": (_full_radius, 0.02, 0.005),
    "radius": (lambda falls: _radius(0.9, np.array(falls)), [0.5, 0.52, 0.0], [0.5, 0.505, 0.0]),
    "losses": (_losses, {"iterative": 0.5, "iterative, DLR": 0.47}, {"iterative": 0.5, "iterative, DLR": 0.49}),
    "steps": (lambda half: _steps(half, 0.4, 40), 0.42, 0.405),
}


@pytest.mark.parametrize("name", SIGNS)
def test_where_a_sign_begins(name):
    check, beyond, within = SIGNS[name]
    assert check(beyond).name == name
    assert check(beyond).flagged is True
    assert check(within).flagged is False


def test_a_model_that_nothing_changes_is_a_sign():
    assert _radius(0.9, np.array([0.9, 0.9])).flagged is True


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
