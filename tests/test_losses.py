"""Losses of one example: the specification's values, closed forms, and hostile logits."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import losses
from jaxrobust.types import Misclassified, Targeted
from tests.compiled import call, compiled

Z = np.array([4.0, 2.0, 1.0, 0.0], np.float32)

# with their slopes
_cross_entropy = compiled(jax.value_and_grad(losses.cross_entropy))
_log_cross_entropy = compiled(jax.value_and_grad(losses.log_cross_entropy))
_dlr = compiled(jax.value_and_grad(losses.dlr))
_targeted_dlr = compiled(jax.value_and_grad(losses.targeted_dlr))
_kl_divergence = compiled(jax.value_and_grad(losses.kl_divergence))

_margin = compiled(losses.margin, static_argnames="confidence")
_targeted_margin = compiled(losses.targeted_margin, static_argnames="confidence")
_textbook = compiled(jax.grad(lambda z: -jax.nn.log_softmax(z)[0]))


def log_softmax(z):
    """In float64."""
    z = np.asarray(z, np.float64)
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


@pytest.mark.parametrize(("label", "value"), [(0, -2 / 3), (1, 2 / 3), (3, 4 / 3)])
def test_dlr_values(label, value):
    np.testing.assert_allclose(_dlr(Z, label)[0], value, rtol=1e-6)


def test_targeted_dlr_values():
    np.testing.assert_allclose(_targeted_dlr(Z, 0, 2)[0], -3 / 3.5, rtol=1e-6)
    np.testing.assert_allclose(_targeted_dlr(Z[:3], 0, 2)[0], -3, rtol=1e-6)
    np.testing.assert_allclose(_targeted_dlr(Z[:2], 0, 1)[0], -2, rtol=1e-6)


def test_margin_values():
    assert float(_margin(Z, 0)) == -2
    assert float(_margin(Z, 2)) == 3
    assert float(_margin(Z, 2, confidence=1.0)) == 1
    assert float(_targeted_margin(Z, 2)) == -3
    assert float(_targeted_margin(Z, 0, confidence=0.5)) == 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(-50, 50))
def test_dlr_ignores_scale_and_shift(seed, scale, shift):
    z = np.random.default_rng(seed).normal(size=5).astype(np.float32)
    scaled = (scale * z + shift).astype(np.float32)
    np.testing.assert_allclose(_dlr(scaled, 1)[0], _dlr(z, 1)[0], rtol=5e-2, atol=1e-3)
    correct = int(z.argmax())
    assert -1 - 1e-5 <= _dlr(z, correct)[0] <= 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 10]))
def test_cross_entropy_is_the_log_softmax(seed, classes):
    z = (np.random.default_rng(seed).normal(size=classes) * 5).astype(np.float32)
    for label in range(classes):
        value, gradient = _cross_entropy(z, label)
        np.testing.assert_allclose(value, -log_softmax(z)[label], atol=1e-5)
        np.testing.assert_allclose(gradient, np.exp(log_softmax(z)) - np.eye(classes)[label], atol=1e-6)


@pytest.mark.parametrize("gap", [20.0, 40.0, 80.0])
def test_cross_entropy_keeps_its_gradient_when_saturated(gap):
    z = np.array([gap, 0.0, -1.0], np.float32)
    ours = _cross_entropy(z, 0)[1]
    np.testing.assert_allclose(ours[0], -np.exp(-gap) * (1 + np.exp(-1)), rtol=1e-4)
    assert _textbook(z)[0] == 0  # what the textbook form gives


@functools.partial(compiled, static_argnums=0)
def _attack_losses(loss, z, goals):
    """For every goal the value, and the gradient."""
    return [jax.value_and_grad(lambda z, goal=goal: losses.attack_loss(loss, z, goal))(z) for goal in goals]


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("kind", ["zeros", "huge", "tied", "saturated"])
@pytest.mark.parametrize("loss", sorted(losses.LOSSES))
def test_hostile_logits_are_finite(classes, kind, loss):
    z = {
        "zeros": np.zeros(classes, np.float32),
        "huge": np.float32(1e30) * np.arange(classes, dtype=np.float32),
        "tied": np.full(classes, 3, np.float32),
        "saturated": np.where(np.arange(classes) == 0, np.float32(1e4), np.float32(-1e4)),
    }[kind]
    for value, gradient in _attack_losses(loss, z, (Misclassified(0), Targeted(1, 0))):
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_kl_is_zero_with_zero_gradient_at_the_reference():
    value, gradient = _kl_divergence(Z, Z)
    assert abs(float(value)) < 1e-7
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    p, q = np.exp(log_softmax(Z)), np.exp(log_softmax(2 * Z))
    np.testing.assert_allclose(_kl_divergence(2 * Z, Z)[0], np.sum(p * np.log(p / q)), rtol=1e-5)


def test_a_function_is_a_loss():
    ((value, _),) = _attack_losses(lambda z, goal: z[goal.label] * 2, Z, (Misclassified(1),))
    assert value == 4


def test_unknown_and_incomplete_losses_are_refused():
    with pytest.raises(ValueError, match=r"loss must be one of \['cross_entropy', 'dlr', 'margin'\].*got 'hinge'"):
        losses.attack_loss("hinge", jnp.asarray(Z), Misclassified(jnp.array(0)))
    with pytest.raises(ValueError, match="needs the true labels"):
        losses.attack_loss("dlr", jnp.asarray(Z), Targeted(jnp.array(0)))


def test_criteria_need_finite_logits():
    broken, tied = np.array([np.nan, 1.0], np.float32), np.zeros(2, np.float32)
    assert not call(Misclassified(0), "met", broken)
    assert not call(Targeted(0), "met", broken)
    assert call(Misclassified(1), "met", tied)  # ties go to the lowest index
    assert not call(Misclassified(0), "met", tied)


BATCHES = [
    ("cross_entropy", 1),
    ("dlr", 1),
    ("log_cross_entropy", 1),
    ("log_odds", 1),
    ("margin", 1),
    ("targeted_cross_entropy", 1),
    ("targeted_margin", 1),
    ("targeted_dlr", 2),
]


@pytest.mark.parametrize(("name", "labels"), BATCHES)
def test_batches_are_refused_and_mapped(name, labels):
    loss = inspect.unwrap(getattr(losses, name))  # without the type checks of the tests, which users do not have
    z, classes = np.stack([Z, -Z, 2 * Z]), np.array([0, 1, 2])
    given = [(classes + i) % 4 for i in range(labels)]
    for rows, named in ((z, given), (z, [0] * labels), (Z, given)):
        with pytest.raises(ValueError, match=rf"logits must have shape \(K,\).*jax.vmap\(losses.{name}\)"):
            loss(rows, *named)
    with pytest.raises(ValueError, match="at least 2 classes"):
        loss(np.zeros(1, np.float32), *[0] * labels)
    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss)))(z, *given)[0]
    alone = jax.jit(loss)
    np.testing.assert_allclose(mapped, [alone(z[i], *(c[i] for c in given)) for i in range(3)], rtol=1e-6)


def test_divergences_of_batches_are_refused():
    for pair in ((Z[None], Z[None]), (Z, Z[None])):
        with pytest.raises(ValueError, match=r"jax.vmap\(losses.kl_divergence\)"):
            inspect.unwrap(losses.kl_divergence)(*pair)
    with pytest.raises(ValueError, match=r"jax.vmap\(losses.attack_loss\)"):
        inspect.unwrap(losses.attack_loss)("margin", Z[None], Misclassified(jnp.array([0])))


GOALS = [Misclassified(1), Targeted(1, 0)]


@functools.partial(compiled, static_argnums=0)
def _followed(loss, rows, goal):
    """Of every row: what is followed and the loss, with their gradients, and both ways from one to the other."""
    form = losses.followed(loss)

    def one(z):
        value, slope = jax.value_and_grad(form.value)(z, goal)
        plain, gradient = jax.value_and_grad(lambda z: losses.attack_loss(loss, z, goal))(z)
        reported = form.loss(value, goal)
        return value, slope, plain, gradient, reported, form.reached(reported, goal)

    return jax.vmap(one)(rows)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("loss", sorted(losses.FOLLOWED))
def test_what_is_followed_never_vanishes_and_knows_the_loss(loss, goal):
    """Rises with the loss, has its gradient's direction wherever the loss has any, and another one nowhere."""
    rows = (np.random.default_rng(0).normal(size=(40, 5)) * np.geomspace(0.1, 300, 40)[:, None]).astype(np.float32)
    value, slope, plain, gradient, reported, back = _followed(loss, rows, goal)
    np.testing.assert_allclose(reported, plain, rtol=1e-6, atol=1e-37)
    assert (np.diff(np.asarray(plain)[np.argsort(value)]) >= 0).all()
    length, flat = (np.linalg.norm(np.asarray(g, np.float64), axis=1) for g in (slope, gradient))
    assert (length > 1e-6).all()
    along = np.sum(np.asarray(slope, np.float64) * np.asarray(gradient, np.float64), 1)
    np.testing.assert_allclose(along[flat > 0], (length * flat)[flat > 0], rtol=1e-4)
    shown = (np.abs(reported) > 1e-3) & (np.abs(value) < 10)
    np.testing.assert_allclose(back[shown], value[shown], rtol=1e-2, atol=1e-3)


def test_saturated_cross_entropy_is_followed_by_its_log_odds():
    z = np.array([[1e4, 0.0, -1.0]], np.float32)
    _, slope, _, gradient, _, _ = _followed("cross_entropy", z, Misclassified(0))
    assert (gradient == 0).all()
    np.testing.assert_allclose(slope[0], [-1, 1 / (1 + np.exp(-1)), 1 / (1 + np.e)], rtol=1e-5)
    form = losses.followed("cross_entropy")
    assert float(form.loss(jnp.asarray(-jnp.inf), Misclassified(0))) == -np.inf  # of NaN logits


@pytest.mark.parametrize("gap", [-50.0, -1.0, 0.0, 14.0, 16.0, 80.0])
def test_the_logarithm_of_cross_entropy(gap):
    z = np.array([gap, 0.0, -1.0], np.float32)
    value, slope = _cross_entropy(z, 0)
    log, steep = _log_cross_entropy(z, 0)
    np.testing.assert_allclose(log, np.log(value), rtol=1e-6)
    np.testing.assert_allclose(steep, slope / value, rtol=1e-5)
    assert (_log_cross_entropy(np.float32([2000, 1000, 1000]), 0)[1] != 0).all()


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e6, 1e20])
@pytest.mark.parametrize("z", [[4.0, 2.0, 1.0, 0.0], [1.0, 4.0, 4.0, 3.0]])
def test_dlr_is_the_same_at_every_scale(z, scale):
    z = np.array(z, np.float32)
    for loss, *classes in ((_dlr, 0), (_dlr, 3), (_targeted_dlr, 0, 3)):
        (value, slope), (scaled, steep) = (loss(c * z, *classes) for c in (np.float32(1), np.float32(scale)))
        np.testing.assert_allclose(scaled, value, rtol=1e-5)
        np.testing.assert_allclose(steep * np.float32(scale), slope, rtol=1e-4, atol=1e-5 * np.abs(slope).max())


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_targeted_dlr_has_a_gradient_towards_every_target(classes):
    """For every order of the logits; with three classes a ratio of their differences would have none for some."""
    orders = np.array(list(itertools.permutations(np.arange(classes, dtype=np.float32) ** 2)))
    slopes = jax.jit(jax.vmap(jax.grad(losses.targeted_dlr), (0, None, None)))
    for label, target in itertools.permutations(range(classes), 2):
        slope = np.asarray(slopes(orders, label, target))
        assert (np.abs(slope).max(1) > 1e-3).all()
        if classes < 4:  # a ratio may rise with its denominator, too
            assert (slope[:, target] == 1).all()
