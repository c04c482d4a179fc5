"""DeepFool where it is exact, and what it refuses."""

import jax
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.minimum_norm.deepfool import deepfool
from jaxrobust.types import Targeted
from tests import tiny

KEY = jax.random.key(3)


def test_one_step_is_exact_on_a_linear_model_and_then_it_is_done(rng):
    model = tiny.linear_classifier(rng, scale=0.5)
    images = rng.uniform(0.4, 0.6, (4, *tiny.SHAPE)).astype(np.float32)
    logits, weights = np.asarray(model(images), float), np.asarray(model.params[0], float)
    labels = logits.argmax(-1)
    found = attacks.run(deepfool(sets.L2(10.0), overshoot=0.1), model, images, labels, key=KEY)
    for i, label in enumerate(labels):
        others = [k for k in range(tiny.CLASSES) if k != label]
        normals = weights[:, others] - weights[:, [label]]
        distances = (logits[i, label] - logits[i, others]) / np.linalg.norm(normals, axis=0)
        k = distances.argmin()
        expected = 1.1 * distances[k] * normals[:, k] / np.linalg.norm(normals[:, k])
        np.testing.assert_allclose(found.parameters[i].ravel(), expected, atol=1e-5)
    # the clean image, once more with its gradients, and the first iterate
    assert (np.asarray(found.forwards) == 3).all()
    assert (np.asarray(found.backwards) == tiny.CLASSES - 1).all()


@pytest.mark.parametrize("ball", [sets.L2(1e3), sets.Linf(1.0)], ids=str)
def test_the_box_does_not_keep_it_from_crossing(ball, rng):
    """On black and white pixels half of every step is clipped away, so that exact steps would only creep up."""
    model = tiny.linear_classifier(rng, scale=0.5)
    images = rng.integers(0, 2, (16, *tiny.SHAPE)).astype(np.float32)
    labels = np.asarray(model(images)).argmax(-1)
    found = attacks.run(deepfool(ball), model, images, labels, key=KEY)
    assert found.success.all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="set must be L2 or Linf for deepfool"):
        deepfool(sets.L1(1.0))
    with pytest.raises(ValueError, match="candidates must be >= 2; got 1"):
        deepfool(sets.L2(1.0), candidates=1)
    with pytest.raises(ValueError, match="overshoot must be finite and >= 0"):
        deepfool(sets.L2(1.0), overshoot=-0.1)
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model)
    with pytest.raises(ValueError, match=r"the criterion must be Misclassified for deepfool, .*got Targeted"):
        attacks.run(deepfool(sets.L2(1.0)), model, images, Targeted(labels), key=KEY)
