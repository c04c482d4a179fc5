"""The search for the smallest radius, on attacks whose success at a radius is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.compose.minimal import minimal
from jaxrobust.evaluate import HostModel, run_lanes
from jaxrobust.types import Classifier
from tests import tiny

KEY = jax.random.key(3)


def brightness(params, images):
    """The second class where the image is brighter than half on average."""
    mean = images.mean((1, 2, 3))
    return jnp.stack([jnp.full_like(mean, params), mean], 1)


MODEL = Classifier(brightness, jnp.float32(0.5))
IMAGES = np.stack([np.full(tiny.SHAPE, level, np.float32) for level in (0.45, 0.3, 0.1, 0.6)])
LABELS = np.zeros(4, np.int32)
DISTANCES = np.array([0.05, 0.2, 0.4, 0.0])


@pytest.mark.parametrize("high", [None, 0.01])
def test_it_brackets_the_smallest_radius(high):
    # FGSM reaches the corner of its ball, so it succeeds at all radii above the distance and at no other
    attack = minimal(attacks.fgsm(sets.Linf(1.0)), steps=16, high=high)
    found = attacks.run(attack, MODEL, IMAGES, LABELS, key=KEY)
    assert found.success.all()
    np.testing.assert_allclose(found.size, DISTANCES, atol=2e-3)
    assert (np.asarray(found.size) >= DISTANCES - 1e-6).all()
    np.testing.assert_allclose(found.loss, -np.asarray(found.size))


def test_the_set_bounds_the_radius():
    attack = minimal(attacks.fgsm(sets.Linf(0.25)), steps=10)
    found = attacks.run(attack, MODEL, IMAGES, LABELS, key=KEY)
    np.testing.assert_array_equal(found.success, [True, True, False, True])
    np.testing.assert_array_equal(found.images[2], IMAGES[2])
    assert int(found.forwards[2]) == 1 + attack.asks
    assert int(found.backwards[2]) == attack.gradients


def test_all_radii_share_one_compilation():
    traces = 0

    def counting(params, images):
        nonlocal traces
        traces += 1
        return brightness(params, images)

    model = Classifier(counting, MODEL.params)
    attack = minimal(attacks.pgd(sets.Linf(1.0), steps=3), steps=6, high=0.1)
    attacks.run(attack, model, IMAGES, LABELS, key=KEY)
    first = traces
    attacks.run(minimal(attack.attack, steps=6, high=0.2).with_radius(0.7), model, IMAGES, LABELS, key=KEY)
    assert traces == first


@pytest.mark.slow
def test_restarts_search_apart_and_the_smallest_is_kept():
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 4)
    once, twice = (minimal(attacks.pgd(sets.L2(3.0), steps=5, restarts=n), steps=8) for n in (1, 2))
    first, both = (attacks.run(attack, model, images, labels, key=KEY) for attack in (once, twice))
    assert both.success.all()
    assert (np.asarray(both.size) <= np.asarray(first.size)).all()
    assert (np.asarray(both.forwards[:3]) > np.asarray(first.forwards[:3])).all()


def test_bad_input_is_refused():
    with pytest.raises(TypeError):
        minimal(sets.Linf(0.1))
    with pytest.raises(ValueError, match="steps must be >= 1; got 0"):
        minimal(attacks.fgsm(sets.Linf(0.1)), steps=0)
    with pytest.raises(ValueError, match="high must be finite and >= 0; got -1"):
        minimal(attacks.fgsm(sets.Linf(0.1)), high=-1)


@pytest.mark.slow
def test_only_points_that_are_meant_are_sent():
    """A chunk that is not full is filled up; a service must not be asked about the filling."""
    sent = 0

    def service(images):
        nonlocal sent
        sent += len(images)
        return np.asarray(MODEL(jnp.asarray(images)))

    made = minimal(attacks.worst_of_k(sets.Linf(0.5), samples=5, chunk=3), steps=3)
    found = run_lanes(made, HostModel(service, classes=2), IMAGES, LABELS, key=KEY, early_stop=False)
    attacked = found.result.forwards[:3]  # the last image is misclassified already
    # two of the images are asked again, each beside a companion, see `HostModel`
    clean, again, confirmed = len(IMAGES), 2 * min(4, (len(IMAGES) + 1) // 2), int(found.result.success.sum())
    assert sent == clean + again + (attacked - 1).sum() + confirmed
