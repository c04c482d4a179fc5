"""Transfer: the numbers agree with the points, and with what models that are equal must give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.evaluate.transfer import ensemble, transfer
from jaxrobust.types import Classifier
from tests import tiny
from tests.evaluate.models import ONE_DEVICE
from tests.evaluate.test_masking import maybe_quantised

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def models():
    first, second = (tiny.dense_classifier(seed) for seed in (0, 1))
    twin = Classifier(first.apply, first.params)
    return {"first": first, "second": second, "twin": twin}


@pytest.fixture(scope="module")
def found(models):
    data = tiny.images_and_labels(models["first"], 24)
    sources = {"first": models["first"], "second": models["second"]}
    attack = attacks.mi_fgsm(sets.Linf(0.1), steps=4)
    return transfer(sources, models, data, attack, key=KEY, lanes=8, devices=ONE_DEVICE), data


def test_the_numbers_are_those_of_the_points(found, models):
    result, (images, labels) = found
    for source, points in result.images.items():
        assert np.abs(points - images).max() <= 0.1 + 1e-6
        for target, model in models.items():
            wrong = np.asarray(model(points)).argmax(-1) != labels
            np.testing.assert_array_equal(result.right[source, target], ~wrong)
            both = result.clean[source] & result.clean[target]
            assert result.rate(source, target) == pytest.approx(wrong[both].mean())
            assert result.accuracy(source, target) == pytest.approx((~wrong & result.clean[target]).mean())


def test_a_twin_is_fooled_like_the_source_itself(found):
    result, _ = found
    assert result.surrogate_rate("first") > 0
    assert result.rate("first", "twin") == result.rate("first", "first") == result.surrogate_rate("first")
    assert result.surrogate_rate("second") >= 0


def test_an_attack_that_is_blind_is_said_to_be(rng):
    """A model on quantised images: its own gradients are zero, those of the model behind are not."""
    weights = tiny.linear_classifier(rng).params[0]
    models = {
        name: Classifier(maybe_quantised, (weights, jnp.asarray(levels)))
        for name, levels in (("open", 0.0), ("masked", 8.0))
    }
    data = tiny.images_and_labels(models["open"], 16)
    attack = attacks.mi_fgsm(sets.Linf(0.2), steps=4)
    result = transfer(models, {"masked": models["masked"]}, data, attack, key=KEY, lanes=8, devices=ONE_DEVICE)
    assert result.stronger_than_white_box == [("open", "masked")]
    assert "masked gradients?" in str(result)
    assert result.summary()["stronger_than_white_box"] == [("open", "masked")]
    assert result.accuracy("open", "masked") < 0.5 < result.accuracy("masked", "masked")


def test_an_ensemble_has_the_mean_logits(models, rng):
    images = rng.random((3, *tiny.SHAPE)).astype(np.float32)
    both = ensemble([models["first"], models["second"]])
    expected = (np.asarray(models["first"](images)) + np.asarray(models["second"](images))) / 2
    np.testing.assert_allclose(both(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="models must hold at least one"):
        ensemble([])


def test_bad_input_is_refused(models):
    data = tiny.images_and_labels(models["first"], 4)
    attack = attacks.mi_fgsm(sets.Linf(0.1))
    with pytest.raises(ValueError, match="sources must be a dictionary"):
        transfer({}, models, data, attack, key=KEY)
    with pytest.raises(ValueError, match="got two called 'first'"):
        transfer({"first": models["second"]}, models, data, attack, key=KEY)
    with pytest.raises(TypeError, match="data must be a pair"):
        transfer(models, models, data[0], attack, key=KEY)
