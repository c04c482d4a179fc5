"""Monitors of catastrophic overfitting on functions whose gradients turn in a known way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import Classifier
from jaxrobust.training import overfitting_metrics

IMAGES, LABELS, RADIUS = jnp.full((4, 2, 2, 1), 0.5), jnp.array([0, 1, 0, 1]), 0.2


def linear(images):
    return images.reshape(len(images), -1)[:, :2]


def turning(waves, images):
    """Margins for class 0 that fall a little, and in waves of which one fills the ball."""
    share = (images.mean((1, 2, 3)) - 0.5) / RADIUS
    margin = waves * (jnp.cos(2 * jnp.pi * share) - 0.5) - 0.1 * share
    return jnp.stack([margin, jnp.zeros_like(margin)], axis=1)


@pytest.mark.parametrize(("waves", "gap", "aligned"), [(0.0, 0.0, True), (1.0, 1.0, False)])
def test_what_one_step_overlooks(waves, gap, aligned):
    """FGSM ends where the wave is at its top again; ten steps of a quarter end at its bottom."""
    model = Classifier(turning, jnp.float32(waves))
    labels = LABELS if waves == 0 else jnp.zeros(4, jnp.int32)
    found = overfitting_metrics(model, IMAGES, labels, RADIUS, key=jax.random.key(0))
    assert set(found) == {"gradient_cosine", "perturbation_cosine", "fgsm_acc", "pgd_acc", "gap"}
    if aligned:
        np.testing.assert_allclose(found["gradient_cosine"], 1, rtol=1e-5)
        np.testing.assert_allclose(found["perturbation_cosine"], 1, rtol=1e-5)
        assert found["gap"] == gap
    else:
        assert (found["fgsm_acc"], found["pgd_acc"]) == (1, 0)
        assert found["gradient_cosine"] < 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": linear}, TypeError, "model must be a"),
        ({"images": IMAGES.at[0, 0].set(jnp.nan)}, ValueError, "images must"),
        ({"images": 255 * IMAGES}, ValueError, "images must"),
        ({"labels": LABELS[:3]}, ValueError, "labels must"),
        ({"labels": LABELS + 1}, ValueError, "labels must"),
        ({"radius": -0.1}, ValueError, "radius must"),
        ({"key": 0}, TypeError, "key must"),
    ],
)
def test_bad_input(changes, error, message):
    given = {"images": IMAGES, "labels": LABELS, "radius": RADIUS, "key": jax.random.key(0)}
    given = {"model": Classifier.from_function(linear), **given} | changes
    with pytest.raises((error, TypeError), match=f"{message}|Type-check error"):
        overfitting_metrics(**given)
