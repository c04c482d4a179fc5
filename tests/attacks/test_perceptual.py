"""PPGD: its authors' constants, its loss, and that it is PGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks
from jaxrobust.attacks.gradient.perceptual import clamped_margin, ppgd
from jaxrobust.sets.perceptual import Perceptual
from jaxrobust.types import Misclassified, Targeted
from tests import tiny
from tests.sets.test_perceptual import SHAPE, network


def test_the_margin_is_clamped_at_one_and_then_has_no_gradient():
    logits = jnp.array([2.0, 0.5, -1.0])
    slope = jax.grad(clamped_margin)
    for goal, value, gradient in (
        (Misclassified(0), -1.5, [-1, 1, 0]),
        (Misclassified(2), 1.0, [0, 0, 0]),
        (Targeted(1), -1.5, [-1, 1, 0]),
        (Targeted(0), 1.0, [0, 0, 0]),
    ):
        assert clamped_margin(logits, goal) == value
        np.testing.assert_array_equal(slope(logits, goal), gradient)


def test_constants_are_the_papers():
    attack = ppgd(Perceptual(0.5))
    assert (attack.steps, attack.start, attack.restarts) == (40, "random", 1)
    assert attack.relative_step_size == pytest.approx(2 / 40)
    assert ppgd(Perceptual(0.5), steps=5).relative_step_size == pytest.approx(2 / 5)
    assert ppgd(Perceptual(0.5), step_size=0.1).relative_step_size is None
    assert str(attack) == "gradient ascent in Perceptual(0.5), 40 steps, random start, clamped-margin"
    with pytest.raises(ValueError, match="steps must be >= 1; got 0"):
        ppgd(Perceptual(0.5), steps=0)


@pytest.mark.slow
def test_its_steps_beat_plain_gradient_steps_of_the_same_perceptual_size():
    """One round of conjugate gradients is the plain gradient; five should find a higher margin on nearly all."""
    model = network()
    images, labels = tiny.images_and_labels(model, 17, shape=SHAPE)
    losses = []
    for rounds in (1, 5):
        ball = Perceptual(0.2, iterations=rounds)
        attack = ppgd(ball, steps=5, loss="margin")
        losses.append(attacks.run(attack, model, images, labels, key=jax.random.key(0)).loss[:-1])
    plain, five = map(np.asarray, losses)
    assert (five > plain).mean() > 0.8
    assert five.mean() > plain.mean()
