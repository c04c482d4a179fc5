"""Adam on parameters against optax, and what a penalty does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.gradient.adam import Adam, adam, recoloradv, stadv
from jaxrobust.sets.colour import ReColor
from jaxrobust.sets.spatial import Flow
from jaxrobust.types import Classifier, Misclassified, pytree
from tests import tiny

KEY = jax.random.key(0)


@pytree("radius")
class Ridge(sets.Linf):
    """An l∞ ball whose perturbations cost ten times their squared norm."""

    def penalty(self, x, theta):
        """10 ‖δ‖²."""
        return 10 * jnp.sum(jnp.square(theta))


def test_steps_are_optax_adam(rng):
    """The ascent of −½‖δ − c‖² where nothing is projected, step by step."""
    x = jnp.full(tiny.SHAPE, 0.5)
    middle = jnp.asarray(rng.uniform(-0.2, 0.2, tiny.SHAPE), jnp.float32)
    made = adam(sets.Linf(0.5), steps=5, step_size=0.03)
    logits = jnp.zeros(tiny.CLASSES)
    tell = jax.jit(made.tell)
    state = made.init(KEY, x, Misclassified(jnp.asarray(0)), logits)
    optimiser = optax.adam(0.03)
    theirs = jnp.zeros_like(x)
    memory = optimiser.init(theirs)
    for _ in range(5):
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimiser.update(theirs - middle, memory)
        theirs = theirs + updates
        state = tell(state, logits[None], (middle - state.theta)[None, None])
        np.testing.assert_allclose(state.theta, theirs, atol=1e-6)
    assert float(jnp.abs(theirs).max()) > 0.1


@pytest.fixture(scope="module")
def linear():
    weights = np.random.default_rng(0).normal(size=int(np.prod(tiny.SHAPE))).astype(np.float32)
    columns = jnp.stack([jnp.zeros_like(weights), jnp.asarray(weights)], 1)
    return Classifier(tiny.linear, (columns, jnp.zeros(2))), weights


def test_the_penalty_is_part_of_what_is_ascended_but_not_of_the_loss(linear):
    """max <w, δ> − 10 ‖δ‖² is at δ = w/20, well inside of the ball."""
    network, weights = linear
    images = np.full((1, *tiny.SHAPE), 0.5, np.float32)
    made = adam(Ridge(0.3), steps=200, step_size=0.005)
    found = attacks.run(made, network, images, Misclassified(jnp.array([1])), key=KEY)
    np.testing.assert_allclose(found.parameters[0].reshape(-1), np.clip(-weights / 20, -0.3, 0.3), atol=3e-3)
    margin = -np.sum(weights * np.asarray(found.images[0]).reshape(-1))
    np.testing.assert_allclose(found.loss[0], margin, rtol=1e-4)
    state = made.init(KEY, jnp.asarray(images[0]), Misclassified(jnp.array(1)), jnp.array([0.0, 1.0]))
    state = dataclasses.replace(state, theta=state.theta + 0.1)
    told = made.tell(state, jnp.array([[0.0, 2.0]]), jnp.zeros((1, 1, *tiny.SHAPE)))
    assert float(made.loss_of(told)) == -2
    assert float(made.best(told).rank) == -1  # the penalty makes the point the worse one
    plain = attacks.run(adam(sets.Linf(0.3), steps=200), network, images, Misclassified(jnp.array([1])), key=KEY)
    np.testing.assert_allclose(np.abs(plain.parameters), 0.3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "functional"), [(stadv, Flow(0.2)), (recoloradv, ReColor(0.1, lattice=(4, 5, 6)))])
def test_functional_adversaries(make, functional):
    """On their own sets: members, success confirmed, and no worse than the clean image."""
    shape = (6, 5, 3)
    network = tiny.dense_classifier(shape=shape)
    images, labels = tiny.images_and_labels(network, 6, shape=shape)
    found = attacks.run(make(functional, steps=8), network, images, labels, key=KEY)
    assert jax.vmap(functional.contains)(images, found.parameters).all()
    np.testing.assert_array_equal(network(found.images).argmax(-1) != labels, found.success)
    clean = np.sort(np.asarray(network(images)), -1)
    penalty = float(functional.penalty(jnp.asarray(images[0]), functional.init(jnp.asarray(images[0]))))
    clean = clean[:, -2] - clean[:, -1] - penalty
    assert (np.asarray(found.loss)[:-1] > clean[:-1] + 0.01).all()


def test_published_constants():
    assert (stadv(Flow(0.05)).steps, float(stadv(Flow(0.05)).step_size)) == (100, 0.01)
    assert float(recoloradv(ReColor(0.06)).step_size) == 0.001
    made = adam(sets.Linf(0.1))
    values = (made.decay, made.square_decay, made.epsilon, made.relative_step_size)
    assert tuple(map(float, values)) == (0.9, 0.999, 1e-8, 0.1)
    assert (made.loss, made.start) == ("margin", "clean")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: adam(sets.Linf(0.1), steps=0), ValueError, "steps must be >= 1; got 0"),
        (lambda: adam(sets.Linf(0.1), step_size=1, relative_step_size=1), ValueError, "exclude each other"),
        (lambda: adam(sets.Linf(0.1), restarts=2), ValueError, "restarts must be 1 without a random start; got 2"),
        (lambda: Adam(sets.Linf(0.1), 3, decay=1.0), ValueError, "decay must be finite and in"),
        (lambda: Adam(sets.Linf(0.1), 3, start="noise"), ValueError, "start must be one of|Type-check error"),
    ],
)
def test_bad_settings_are_refused(build, error, message):
    # a type checker that sees the same fault first raises its own error
    with pytest.raises((error, TypeError), match=message):
        build()
