"""AutoAttack: never above its parts, and it says when its figure may mislead."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.types import Classifier, Targeted
from tests import tiny
from tests.evaluate.models import ONE_DEVICE, NanWhere, classifier
from tests.tiny import CLASSES

KEY = jax.random.key(0)
BALL = sets.Linf(0.1)


def short(**more):
    """The standard version in small."""
    return {
        "apgd-ce": attacks.apgd(BALL, steps=5),
        "fab-t": attacks.fab(BALL, steps=4, targets=2),
        "square": attacks.square(BALL, queries=30),
        **more,
    }


@pytest.fixture(scope="module")
def problem():
    model = tiny.dense_classifier()
    return model, tiny.images_and_labels(model, 24)


@pytest.mark.slow
def test_it_is_never_above_its_parts(problem):
    model, data = problem
    found = evaluate.autoattack(model, data, attacks=short(), key=KEY, progress=False)
    alone = evaluate.robustness(model, data, short(), key=KEY, progress=False)
    lowest = min(alone.accuracy(name).accuracy for name in alone.outcomes)
    assert found.union.accuracy <= lowest
    left = [found.accuracy(name).accuracy for name in found.outcomes]
    assert left == sorted(left, reverse=True)
    assert left[-1] == found.union.accuracy
    text = str(found)
    assert text.startswith("initial accuracy")
    assert "robust accuracy after fab-t" in text
    assert not found.warnings


def test_the_breakdown_knows_nan_and_the_criterion(problem):
    _, (images, _) = problem
    images, model = np.round(images * 64) / 64, classifier(apply=NanWhere(off_grid=True))
    labels = np.asarray(model(images).argmax(-1))
    only = {"fgsm": attacks.fgsm(sets.Linf(0.1))}
    found = evaluate.autoattack(model, (images, labels), attacks=only, key=KEY, progress=False)
    assert f"(0 of {len(labels)} fooled" in str(found)
    assert f"; {len(labels)} with NaN or infinite logits)" in str(found)
    goal = Targeted((labels + 1) % CLASSES, labels)
    text = str(evaluate.autoattack(problem[0], (images, goal), attacks=only, key=KEY, progress=False))
    assert text.startswith("initial accuracy against given targets: ")
    assert "\nrobust accuracy against given targets: " in text


def test_masked_gradients_are_said():
    """A model on quantised images: no gradient, so only Square gets anywhere."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(int(np.prod(tiny.SHAPE)), 3)))
    weights = weights.astype(jnp.float32)

    def quantised(images):
        return jnp.round(images.reshape(len(images), -1) * 8) @ weights

    model = Classifier.from_function(quantised)
    images = rng.random((16, *tiny.SHAPE)).astype(np.float32)
    labels = np.asarray(model(images)).argmax(-1)
    labels[:2] = (labels[:2] + 1) % 3  # of which nothing is said, though their gradients are zero too
    white_first = {"pgd": attacks.pgd(BALL, steps=3, random_start=False), "square": attacks.square(BALL, queries=100)}
    with pytest.warns(RuntimeWarning) as caught:
        found = evaluate.autoattack(model, (images, labels), attacks=white_first, key=KEY, progress=False)
    assert len(caught) == 2
    zero, gain = found.warnings
    assert "gradient of the DLR loss is zero at 14 of 14" in zero
    assert "square lowers the robust accuracy" in gain
    assert found.accuracy("pgd").accuracy == 14 / 16


def test_gradients_that_are_nan_are_said():
    """Finite logits, and nothing for an attack to follow."""
    base = tiny.dense_classifier()
    rooted = Classifier.from_function(lambda x: base(x) + jnp.sqrt(jnp.sum(x - x, (1, 2, 3)))[:, None])
    images, labels = tiny.images_and_labels(base, 8)
    options = {"attacks": {"fgsm": attacks.fgsm(BALL)}, "devices": ONE_DEVICE, "progress": False}
    with pytest.warns(RuntimeWarning, match="of the DLR loss is NaN or infinite at 7 of 7 clean images"):
        found = evaluate.autoattack(rooted, (images, labels), key=KEY, **options)
    assert "\nwarning: gradients: NaN or infinite at 7 of 7 images" in str(found)
    sound = evaluate.robustness(base, (images, labels), **options, key=KEY)
    assert not sound.robust().all()
    assert not sound.notes


def test_an_error_whose_label_comes_third_is_no_sign_of_masked_gradients(recwarn):
    """Its ratio is constant in any model."""
    model = tiny.dense_classifier()
    images, _ = tiny.images_and_labels(model, 8)
    order = np.argsort(-np.asarray(model(images)), -1)
    labels = np.where(np.arange(8) < 4, order[:, 2], order[:, 0]).astype(np.int32)
    options = {"attacks": {"fgsm": attacks.fgsm(BALL)}, "devices": ONE_DEVICE, "progress": False}
    assert not evaluate.autoattack(model, (images, labels), key=KEY, **options).warnings
    assert not recwarn


@pytest.mark.slow
def test_rand_runs_on_the_mean_of_a_random_classifier_and_stops_at_no_lucky_draw(problem, monkeypatch):
    base, (images, _) = problem
    short = {"eot": attacks.eot(attacks.pgd(BALL, steps=3), samples=2)}
    asked = []

    def suite(name, *, radius, steps, queries):
        asked.append((name, radius))
        return short

    def shift(key, image):
        return image + 0.1 * jax.random.normal(key, image.shape, image.dtype)

    monkeypatch.setattr(importlib.import_module("jaxrobust.evaluate.autoattack"), "suite", suite)
    model = attacks.RandomClassifier.transformed(base, shift).mean(KEY, samples=3)
    images = images[:4]
    labels = np.asarray(model(images)).argmax(-1)
    options = {"key": KEY, "lanes": 4, "devices": ONE_DEVICE}
    found = evaluate.autoattack(model, (images, labels), version="rand", radius=0.1, **options)
    assert asked == [("autoattack-rand-linf", 0.1)]
    # radius 0.1 fools some of them before the last step, and yet all steps are taken
    assert not found.outcomes["eot"].robust.all()
    assert (found.outcomes["eot"].backwards == 2 * 3).all()
    with pytest.raises(ValueError, match="model must be a RandomClassifier's mean"):
        evaluate.autoattack(base, (images, labels), version="rand", **options)


def test_unknown_versions_are_refused(problem):
    model, data = problem
    with pytest.raises(ValueError, match="version must be one of"):
        evaluate.autoattack(model, data, key=KEY, version="strong")
    with pytest.raises(ValueError, match="norm must be one of"):
        evaluate.autoattack(model, data, key=KEY, norm="l0")
