"""JSMA: the pair it takes is the best of all, its path on a linear model is known, and so are its counts."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.minimum_norm.jsma import _most_salient, jsma
from jaxrobust.types import Classifier, Targeted
from tests import tiny

KEY = jax.random.key(5)
# as an attribute of the package, the name is the function's
MODULE = sys.modules["jaxrobust.attacks.minimum_norm.jsma"]
WIDE = sets.L0(1e4, "coordinate")


def best_pair(rise, fall, domain):
    """By looking at all pairs."""
    best, found = 0, None
    for p, q in itertools.combinations(np.flatnonzero(domain), 2):
        up, down = rise[p] + rise[q], fall[p] + fall[q]
        if up > 0 and down > 0 and up * down > best:
            best, found = up * down, {p, q}
    return found


@pytest.mark.parametrize("shortlist", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_pair_is_the_best_of_all(shortlist, rng, monkeypatch):
    if shortlist:
        monkeypatch.setattr(MODULE, "EXACT", 10)
        monkeypatch.setattr(MODULE, "SHORTLIST", 15)
    for _ in range(10):
        rise, fall = rng.normal(size=(2, 5, 4, 2)).astype(np.float32)
        domain = rng.random((5, 4, 2)) < 0.7
        pair, found = _most_salient(jnp.asarray(rise), jnp.asarray(fall), jnp.asarray(domain))
        assert found
        assert set(np.flatnonzero(pair)) == best_pair(rise.ravel(), fall.ravel(), domain.ravel())


def test_no_pair_is_found_where_there_is_none(rng):
    rise = jnp.asarray(np.abs(rng.normal(size=(2, 2, 1))), jnp.float32)
    one = jnp.zeros((2, 2, 1), bool).at[0, 0, 0].set(True)
    for up, down, domain in ((rise, rise, one), (rise, -rise, ~one), (0 * rise, rise, ~one)):
        pair, found = _most_salient(up, down, domain)
        assert not found
        assert not pair.any()


def path(weights, bias, x, label, target, sign):
    """How many coordinates change on a linear model, pair by pair, and whether that does."""
    image, domain, rows = x.ravel().astype(float).copy(), x.ravel() < 1 if sign > 0 else x.ravel() > 0, weights
    others = rows.sum(1) - rows[:, target]
    changed = 0
    while (image @ rows + bias).argmax() == label:
        pair = best_pair(sign * rows[:, target], -sign * others, domain)
        if pair is None:
            return changed, False
        for p in pair:
            image[p], domain[p] = (1.0 if sign > 0 else 0.0), False
        changed += 2
    return changed, True


@pytest.mark.parametrize("direction", ["increase", pytest.param("decrease", marks=pytest.mark.slow)])
def test_a_linear_model(direction, rng):
    weights = rng.normal(size=(60, 3)).astype(np.float32)
    images = rng.uniform(0.2, 0.8, (4, *tiny.SHAPE)).astype(np.float32)
    # the first class is so strong that it takes several pairs to leave it
    logits = images.reshape(4, -1) @ weights
    bias = np.array([(logits - logits[:, :1]).max() + 5, 0, 0], np.float32)
    model = Classifier(tiny.linear, (jnp.asarray(weights), jnp.asarray(bias)))
    labels = np.zeros(len(images), np.int32)
    sign = 1 if direction == "increase" else -1
    found = attacks.run(jsma(WIDE, steps=30, direction=direction), model, images, labels, key=KEY)
    paths = [[path(weights, bias, x, 0, t, sign) for t in (1, 2)] for x in images]
    expected = [min(changed for changed, won in both if won) for both in paths]
    assert max(expected) > 2
    np.testing.assert_array_equal(found.size, expected)
    assert found.success.all()
    # one run a target, of which there are two: the clean image and each pair, with gradients where it is not yet over
    pairs = np.array([sum(changed // 2 for changed, _ in both) for both in paths])
    lost = np.array([sum(not won for _, won in both) for both in paths])
    np.testing.assert_array_equal(found.forwards, 1 + pairs + 2)
    np.testing.assert_array_equal(found.backwards, 2 * (pairs + lost))


@pytest.mark.slow
def test_probabilities_and_targets(rng):
    model = tiny.linear_classifier(rng, scale=0.3)
    images = rng.uniform(0.2, 0.8, (4, *tiny.SHAPE)).astype(np.float32)
    labels = np.asarray(model(images).argmax(-1))
    targets = (labels + 1) % tiny.CLASSES
    for outputs, gradients in (("logits", 2), ("probabilities", 1)):
        found = attacks.run(jsma(WIDE, steps=30, outputs=outputs), model, images, Targeted(targets), key=KEY)
        assert found.success.all()
        np.testing.assert_array_equal(model(found.images).argmax(-1), targets)
        # the other runs have nothing to aim at and cost nothing
        np.testing.assert_array_equal(found.forwards, 2 + np.asarray(found.size) / 2)
        np.testing.assert_array_equal(found.backwards, gradients * np.asarray(found.size) / 2)


@pytest.mark.slow
def test_it_stays_within_the_radius_and_the_change(rng):
    model = tiny.linear_classifier(rng)
    model = Classifier(tiny.linear, (model.params[0], jnp.asarray([1e3, 0, 0, 0])))
    images = rng.uniform(0.2, 0.5, (2, *tiny.SHAPE)).astype(np.float32)
    labels = np.zeros(2, np.int32)
    far = attacks.run(jsma(sets.L0(5, "coordinate"), targets=1), model, images, labels, key=KEY)
    assert not far.success.any()
    # of three pairs the third would be too many
    np.testing.assert_array_equal(far.forwards, 1 + 3)
    model = Classifier(tiny.linear, (model.params[0], jnp.asarray([6.0, 0, 0, 0])))
    weak = attacks.run(jsma(WIDE, change=0.3), model, images, labels, key=KEY)
    moved = np.abs(weak.parameters[np.asarray(weak.success)])
    assert np.allclose(moved[moved > 0], 0.3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("most", [10, 1024])
def test_float64(most, monkeypatch):
    monkeypatch.setattr(MODULE, "EXACT", most)
    monkeypatch.setattr(MODULE, "SHORTLIST", 10)
    with jax.enable_x64(True):
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(60, 3)))
        model = Classifier(tiny.linear, (weights, jnp.zeros(3)))
        images = np.random.default_rng(1).random((2, *tiny.SHAPE))
        # other steps are another program, so that the settings are read again
        made = jsma(WIDE, steps=20 + most % 7)
        found = attacks.run(made, model, images, np.asarray(model(images).argmax(-1)), key=KEY)
        assert found.success.all()
        assert found.images.dtype == np.float64
        assert found.size.dtype == np.float64


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="set must be L0 for jsma"):
        jsma(sets.L2(1.0))
    with pytest.raises(ValueError, match="targets must be >= 1; got 0"):
        jsma(WIDE, targets=0)
    with pytest.raises(ValueError, match=r"change must be finite and in \[0, 1\]; got 2"):
        jsma(WIDE, change=2.0)
