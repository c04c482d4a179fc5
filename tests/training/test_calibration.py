"""Calibration: what it measures, and what mends it."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrobust import report
from jaxrobust.training import (
    adapted_targets,
    calibration,
    distance_groups,
    group_smoothing,
    standard,
    temperature,
)
from tests.training.tiny import SGD, Linear, compiled_step, make_batch, start


def calibrated(count, rng):
    """Logits whose labels are drawn from them."""
    logits = 2 * rng.normal(size=(count, 4))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return logits, np.array([rng.choice(4, p=share) for share in shares])


def test_what_is_calibrated_measures_so(rng):
    logits, labels = calibrated(4000, rng)
    found = calibration(logits, labels)
    assert found.ece < 3 / np.sqrt(4000)
    assert found.counts.sum() == 4000
    assert temperature(logits, labels) == pytest.approx(1, abs=0.06)


def test_temperature_goes_with_the_logits(rng):
    logits, labels = calibrated(500, rng)
    once = temperature(logits, labels)
    for scale in (1e-8, 5.0, 1e9):
        assert temperature(scale * logits, labels) == pytest.approx(scale * once, rel=1e-6)
    assert temperature(logits + 1e3, labels) == pytest.approx(once, rel=1e-6)
    before, after = (calibration(5 * logits / t, labels) for t in (1, 5 * once))
    assert after.nll < before.nll
    assert after.ece < before.ece
    for scale in (1, 1e6):
        assert temperature(scale * np.eye(3), np.arange(3)) == pytest.approx(scale / 100)
    for useless in (np.roll(np.eye(3), 1, axis=0), np.eye(3)[[1, 1, 1]]):  # never right, and right once by chance
        assert temperature(useless, np.arange(3)) == np.inf


def test_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.2, 0.8]])
    found = calibration(np.log(probabilities), np.array([0, 0, 1, 0]), bins=10)
    # bins (.5, .6], (.7, .8], (.8, .9]: gaps .1, .8, .1
    assert found.ece == pytest.approx((2 * 0.1 + 0.8 + 0.1) / 4)
    assert found.mce == pytest.approx(0.8)
    assert found.nll == pytest.approx(-np.log([0.9, 0.6, 0.4, 0.2]).mean())
    assert found.brier == pytest.approx(2 * np.mean([0.01, 0.16, 0.36, 0.64]))
    assert found.counts[[5, 7, 8]].tolist() == [2, 1, 1]
    assert np.isnan(found.accuracy[0])


def test_a_reliability_diagram_is_drawn(tmp_path, rng):
    found = calibration(*calibrated(50, rng))
    page = report.reliability_diagram(tmp_path / "some" / "diagram.svg", {"one": found, "two": found})
    assert page.read_text().count("<svg") == 1
    with pytest.raises(TypeError, match=r"measured\['one'\] must be what training.calibration gives; got"):
        report.reliability_diagram(tmp_path / "diagram.svg", {"one": 0.5})
    with pytest.raises(ValueError, match="at least one calibration"):
        report.reliability_diagram(tmp_path / "diagram.svg", {})


def test_groups_are_equal_and_in_order(rng):
    distances = rng.permutation(23).astype(float)
    groups = distance_groups(distances, groups=5)
    assert (np.diff(groups[np.argsort(distances)]) >= 0).all()
    assert set(np.bincount(groups)) <= {4, 5}


def test_targets_stay_between_chance_and_certainty():
    assert adapted_targets([1.0, 0.1], [0.5, 1.0], [1.0, 0.0], classes=10, rate=1.0).tolist() == [1.0, 0.1]


def test_smoothed_groups_are_uniform_smoothing_in_each():
    batch, key = make_batch(), jax.random.key(0)
    trainable, _, state = start(Linear(16, 3, nnx.Rngs(0)))
    amount = 0.3
    equal = group_smoothing(np.zeros(8, int), [1 - amount * 2 / 3])
    states = [compiled_step(o, trainable, SGD, state, batch, key)[0] for o in (equal, standard(label_smoothing=amount))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *(s.params for s in states))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: calibration(np.zeros((2, 3)), np.zeros(2)), TypeError, "labels must be integers; got float64"),
        (
            lambda: calibration(np.zeros((2, 3)), np.array([0, 3])),
            ValueError,
            r"labels must lie in \[0, 3\); got 0 to 3",
        ),
        (lambda: temperature(np.full((1, 2), np.nan), np.array([0])), ValueError, "logits must be finite"),
        (lambda: calibration(np.zeros((2, 3)), np.array([0])), ValueError, r"got \(2, 3\) and \(1,\)"),
        (lambda: distance_groups([1.0, np.nan]), ValueError, "distances must be numbers"),
        (lambda: distance_groups([1.0, 2.0], groups=3), ValueError, "groups must not exceed the 2 examples; got 3"),
        (lambda: adapted_targets([1.0], [1.0, 2.0], [1.0], classes=3), ValueError, "of one shape"),
        (lambda: group_smoothing([0.5], [1.0]), TypeError, "groups must be integers; got float64"),
        (lambda: group_smoothing([0, 1], [1.0]), ValueError, r"values in \[0, 1\)"),
        (lambda: group_smoothing([0], [1.5]), ValueError, r"targets must be numbers in \[0, 1\]"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
