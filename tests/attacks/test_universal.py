"""Universal perturbations: on a linear model one direction fools most; they stay in their ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import sets
from jaxrobust.attacks.physical.universal import fooling_rate, universal_gradient, universal_perturbation
from jaxrobust.types import Classifier
from tests import tiny
from tests.published import published

KEY = jax.random.key(0)
METHODS = [universal_perturbation, universal_gradient]


@pytest.fixture(scope="module")
def problem():
    """A linear model with two classes, most images of class 0: the one direction w₁ − w₀ crosses for all of them."""
    rng = np.random.default_rng(0)
    direction = rng.choice([-1.0, 1.0], size=int(np.prod(tiny.SHAPE)))
    weights = jnp.asarray(np.stack([0 * direction, direction], 1), jnp.float32)
    # at the centre the margin is −3, and images vary by about 1
    bias = jnp.asarray([0.0, -3.0 - direction.sum() / 2], jnp.float32)
    model = Classifier(tiny.linear, (weights, bias))
    images = (0.5 + 0.25 * (rng.random((40, *tiny.SHAPE)) - 0.5)).astype(np.float32)
    return model, images[:30], images[30:]


@pytest.mark.parametrize("method", METHODS)
def test_one_direction_fools_most_images_seen_and_unseen(problem, method):
    model, seen, unseen = problem
    options = {} if method is universal_perturbation else {"batch_size": 10}
    # the margin falls by at most 60 times the radius: 4.8, where the images need about 3 ± 0.6
    found = method(model, seen, sets.Linf(0.08), key=KEY, passes=4, **options)
    assert np.abs(found.perturbation).max() <= 0.08 + 1e-6
    assert found.size <= 0.08 + 1e-6
    assert found.fooling_rate >= 0.8
    assert fooling_rate(model, unseen, found.perturbation) >= 0.8
    plain = np.asarray(model(np.clip(seen + found.perturbation, 0, 1))).argmax(-1)
    rate = (plain != np.asarray(model(seen)).argmax(-1)).mean()
    assert found.fooling_rate == pytest.approx(rate)
    assert found.history[-1] == found.fooling_rate


@pytest.mark.parametrize("method", METHODS)
def test_too_small_a_ball_fools_none(problem, method):
    model, seen, _ = problem
    found = method(model, seen[:6], sets.L2(0.05), key=KEY, passes=12)
    assert found.fooling_rate == 0
    assert np.linalg.norm(found.perturbation) <= 0.05 + 1e-5
    assert np.linalg.norm(found.perturbation) > 0.04  # it went to the border on the way


def test_it_ends_when_enough_are_fooled_and_the_batch_size_does_not_matter(problem):
    model, seen, _ = problem
    found = universal_perturbation(model, seen, sets.Linf(0.2), key=KEY, passes=5, target=0.5)
    assert len(found.history) == 1
    rates = {fooling_rate(model, seen, found.perturbation, batch_size=size) for size in (7, 30, 128)}
    assert len(rates) == 1


def test_bad_input_is_refused(problem):
    model, seen, _ = problem
    with pytest.raises(TypeError, match="set must be additive"):
        universal_perturbation(model, seen, sets.RotationTranslation(), key=KEY)
    with pytest.raises(ValueError, match="steps must be >= 3"):
        universal_perturbation(model, seen, sets.Linf(0.1), key=KEY, steps=2)
    with pytest.raises(ValueError, match="perturbation must have shape"):
        fooling_rate(model, seen, np.zeros((2, 2, 1)))
    with pytest.raises(ValueError, match="target must be finite and in"):
        universal_perturbation(model, seen, sets.Linf(0.1), key=KEY, target=1.5)


@pytest.mark.realdata
def test_on_mnist_both_forms_fool_unseen_digits():
    """l∞ 0.2, the undefended network; measured on unseen digits: 19 % from 200 images, 58 % from 500."""
    from flax import nnx

    from jaxrobust import data, models

    network = models.load_npz(published("mnist_vanilla.npz"), models.MnistNet(rngs=nnx.Rngs(0)))
    model = Classifier.from_nnx(network)
    images = np.asarray(data.load("mnist", split="test").images)
    ball, unseen = sets.Linf(0.2), images[5000:6000]
    by_deepfool = universal_perturbation(model, images[:200], ball, key=KEY, passes=2)
    by_gradient = universal_gradient(model, images[:500], ball, key=KEY, batch_size=50)
    noise = 0.2 * np.random.default_rng(0).choice([-1.0, 1.0], size=images.shape[1:]).astype(np.float32)
    rates = [fooling_rate(model, unseen, v) for v in (noise, by_deepfool.perturbation, by_gradient.perturbation)]
    assert rates == sorted(rates)
    assert rates[1] > 0.12
    assert rates[2] > 0.45
