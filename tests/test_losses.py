"""Losses of one example: the specification's values, closed forms, and hostile logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import losses
from jaxrobust.types import Misclassified, Targeted

Z = jnp.array([4.0, 2.0, 1.0, 0.0])


_cross_entropy = jax.jit(jax.value_and_grad(losses.cross_entropy))


@pytest.mark.parametrize(("label", "value"), [(0, -2 / 3), (1, 2 / 3), (3, 4 / 3)])
def test_dlr_values(label, value):
    np.testing.assert_allclose(losses.dlr(Z, label), value, rtol=1e-6)


def test_targeted_dlr_values():
    np.testing.assert_allclose(losses.targeted_dlr(Z, 0, 2), -3 / 3.5, rtol=1e-6)
    np.testing.assert_allclose(losses.targeted_dlr(Z[:3], 0, 2), -3 / 3, rtol=1e-6)
    np.testing.assert_allclose(losses.targeted_dlr(Z[:2], 0, 1), -2, rtol=1e-6)


def test_margin_values():
    assert float(losses.margin(Z, 0)) == -2
    assert float(losses.margin(Z, 2)) == 3
    assert float(losses.margin(Z, 2, confidence=1.0)) == 1
    assert float(losses.targeted_margin(Z, 2)) == -3
    assert float(losses.targeted_margin(Z, 0, confidence=0.5)) == 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(-50, 50))
def test_dlr_ignores_scale_and_shift(seed, scale, shift):
    z = np.random.default_rng(seed).normal(size=5).astype(np.float32)
    scaled = jnp.asarray(scale * z + shift, jnp.float32)
    np.testing.assert_allclose(losses.dlr(scaled, 1), losses.dlr(jnp.asarray(z), 1), rtol=5e-2, atol=1e-3)
    correct = int(z.argmax())
    assert -1 - 1e-5 <= float(losses.dlr(jnp.asarray(z), correct)) <= 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 10]))
def test_cross_entropy_is_the_log_softmax(seed, classes):
    z = jnp.asarray(np.random.default_rng(seed).normal(size=classes) * 5, jnp.float32)
    for label in range(classes):
        value, gradient = _cross_entropy(z, label)
        np.testing.assert_allclose(value, -jax.nn.log_softmax(z)[label], atol=1e-5)
        np.testing.assert_allclose(gradient, jax.nn.softmax(z) - jax.nn.one_hot(label, classes), atol=1e-6)


@pytest.mark.parametrize("gap", [20.0, 40.0, 80.0])
def test_cross_entropy_keeps_its_gradient_when_saturated(gap):
    z = jnp.array([gap, 0.0, -1.0])
    ours = jax.grad(losses.cross_entropy)(z, 0)
    np.testing.assert_allclose(ours[0], -np.exp(-gap) * (1 + np.exp(-1)), rtol=1e-4)
    assert jax.grad(lambda z: -jax.nn.log_softmax(z)[0])(z)[0] == 0  # what the textbook form gives


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("kind", ["zeros", "huge", "tied", "saturated"])
@pytest.mark.parametrize("loss", sorted(losses.LOSSES))
def test_hostile_logits_are_finite(classes, kind, loss):
    z = {
        "zeros": jnp.zeros(classes),
        "huge": 1e30 * jnp.arange(classes, dtype=jnp.float32),
        "tied": jnp.ones(classes) * 3,
        "saturated": jnp.where(jnp.arange(classes) == 0, 1e4, -1e4),
    }[kind]
    for goal in (Misclassified(jnp.array(0)), Targeted(jnp.array(1), jnp.array(0))):
        value, gradient = jax.value_and_grad(lambda z, goal=goal: losses.attack_loss(loss, z, goal))(z)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_kl_is_zero_with_zero_gradient_at_the_reference():
    value, gradient = jax.value_and_grad(losses.kl_divergence)(Z, Z)
    assert abs(float(value)) < 1e-7
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    p, q = np.asarray(jax.nn.softmax(Z)), np.asarray(jax.nn.softmax(2 * Z))
    np.testing.assert_allclose(losses.kl_divergence(2 * Z, Z), np.sum(p * np.log(p / q)), rtol=1e-5)


def test_a_function_is_a_loss():
    value = losses.attack_loss(lambda z, goal: z[goal.label] * 2, Z, Misclassified(jnp.array(1)))
    assert float(value) == 4


def test_unknown_and_incomplete_losses_are_refused():
    with pytest.raises(ValueError, match=r"loss must be one of \['cross_entropy', 'dlr', 'margin'\].*got 'hinge'"):
        losses.attack_loss("hinge", Z, Misclassified(jnp.array(0)))
    with pytest.raises(ValueError, match="needs the true labels"):
        losses.attack_loss("dlr", Z, Targeted(jnp.array(0)))


def test_criteria_need_finite_logits():
    broken = jnp.array([jnp.nan, 1.0])
    assert not Misclassified(jnp.array(0)).met(broken)
    assert not Targeted(jnp.array(0)).met(broken)
    assert Misclassified(jnp.array(1)).met(jnp.array([0.0, 0.0]))  # ties go to the lowest index
    assert not Misclassified(jnp.array(0)).met(jnp.array([0.0, 0.0]))
