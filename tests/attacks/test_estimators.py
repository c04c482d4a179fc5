"""NES and SPSA: their estimates are unbiased, their points and counts those of the schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.queries.estimators import nes, spsa
from jaxrobust.types import Classifier, Misclassified
from tests import tiny

KEY = jax.random.key(5)
SHAPE = (2, 3, 1)
TARGET = np.linspace(-1, 0, 6).astype(np.float32)


def quadratic(logits, goal):
    """−‖z − target‖²/2 of logits that are the pixels; its gradient is target − z."""
    return -0.5 * jnp.sum(jnp.square(logits - TARGET))


@pytest.mark.parametrize("name", ["nes", "spsa"])
def test_estimates_are_unbiased(name):
    """Of a quadratic, whose third derivatives are zero, antithetic pairs give the gradient itself on average."""
    options = {"steps": 1, "samples": 8, "spread": 0.1, "loss": quadratic}
    attack = nes(sets.Linf(1.0), momentum=0.0, **options) if name == "nes" else spsa(sets.Linf(1.0), **options)
    x = jnp.full(SHAPE, 0.5)
    expected = TARGET - 0.5

    def estimate(key):
        state = attack.init(key, x, Misclassified(jnp.asarray(0)), x.reshape(-1))
        logits = attack.ask(state).reshape(-1, 6)
        moves = attack.tell(state, logits, jnp.zeros(0)).memory.moves
        return (moves[0] if name == "nes" else moves[0] / 0.1).reshape(-1)

    estimates = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 4000)))
    error = estimates.std(0) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(0) - expected) < 3 * error).all()
    # and tight enough to tell the gradient from its half
    assert (3 * error < 0.5 * np.abs(expected)).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [nes, spsa])
def test_the_chunk_changes_nothing(make):
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 4)
    whole = make(sets.Linf(0.1), steps=3, samples=10)
    found = {
        chunk: attacks.run(dataclasses.replace(whole, chunk=chunk), model, images, labels, key=KEY)
        for chunk in (None, 4)
    }
    np.testing.assert_allclose(found[4].images, found[None].images, atol=1e-4)
    assert (np.asarray(found[None].forwards) == [1 + 3 * 11 + 1] * 3 + [1]).all()
    np.testing.assert_array_equal(found[4].forwards, found[None].forwards)
    assert not np.asarray(found[4].backwards).any()


@pytest.mark.slow
def test_points_beyond_the_samples_are_not_looked_at():
    """NaN there changes nothing, and is not counted."""
    attack = nes(sets.Linf(0.1), steps=2, samples=4, chunk=3)  # asks of 3 + 2, 3 + 2 and 1 points
    x, goal = jnp.full(SHAPE, 0.5), Misclassified(jnp.asarray(0))
    ask, tell, meant = jax.jit(attack.ask), jax.jit(attack.tell), jax.jit(attack.meant)
    state = attack.init(KEY, x, goal, x.reshape(-1) - jnp.arange(6.0))
    counts = []
    while not attack.done(state):
        logits = ask(state).reshape(-1, 6) - jnp.arange(6.0)[None]
        counts.append(int(meant(state).sum()))
        state = tell(state, jnp.where(meant(state)[:, None], logits, jnp.nan), jnp.zeros(0))
        assert int(attack.best(state).forwards) == sum(counts)
    assert counts == [3, 2, 3, 2, 1]
    assert not attack.best(state).non_finite


@pytest.mark.slow
@pytest.mark.parametrize("make", [nes, spsa])
def test_they_come_close_to_their_kind_with_true_gradients(make):
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 8)
    ball = sets.Linf(0.1)
    found = attacks.run(make(ball, steps=20, samples=240, relative_step_size=0.2), model, images, labels, key=KEY)
    true = {
        nes: attacks.pgd(ball, steps=20, random_start=False),
        spsa: attacks.adam(ball, steps=20, relative_step_size=0.2),
    }
    strong = attacks.run(true[make], model, images, labels, key=KEY)
    assert found.success.sum() >= strong.success.sum() - 1
    assert strong.success.sum() >= 3


def test_nes_halves_its_step_on_a_plateau():
    """A loss that falls from step to step halves it after five, and no further than to 1/200."""
    attack = nes(sets.Linf(0.5), steps=100, samples=2, relative_step_size=0.2)
    x = jnp.full(SHAPE, 0.5)
    state = attack.init(KEY, x, Misclassified(jnp.asarray(0)), x.reshape(-1))
    move = jax.jit(attack._move)
    sizes = []
    for step in range(60):
        _, moves = move(state, jnp.zeros(SHAPE), jnp.asarray(-float(step)))
        state = dataclasses.replace(state, memory=dataclasses.replace(state.memory, moves=moves))
        sizes.append(float(moves[1]))
    np.testing.assert_allclose(sizes[:11], [0.1] * 4 + [0.05] * 5 + [0.025] * 2, rtol=1e-6)
    np.testing.assert_allclose(sizes[-1], 0.1 / 200, rtol=1e-6)


@pytest.mark.slow
def test_any_set_will_do():
    """The estimate is pulled back to the parameters of the set."""
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 6)
    attack = nes(sets.Flow(0.3), steps=20, samples=40)
    found = attacks.run(attack, model, images, labels, key=KEY)
    assert jax.vmap(attack.set.contains)(images, found.parameters).all()
    start = jax.vmap(lambda z, y: jnp.max(jax.nn.log_softmax(z)[y]))(model(images), labels)
    assert (np.asarray(found.loss)[:-1] > -np.asarray(start)[:-1]).all()


@pytest.mark.slow
def test_float64_stays():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tiny.dense_params())
        images, labels = tiny.images_and_labels(tiny.dense_classifier(), 2)
        arguments = Classifier(tiny.dense_net, params), images.astype(np.float64), labels.astype(np.int64)
        for make in (nes, spsa):
            found = attacks.run(make(sets.L2(1.0), steps=2, samples=4), *arguments, key=KEY)
            assert found.images.dtype == np.float64


@pytest.mark.parametrize("make", [nes, spsa])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"samples": 5}, "samples must be even, since they come in pairs; got 5"),
        ({"samples": 0}, "samples must be >= 2; got 0"),
        ({"chunk": 0}, "chunk must be >= 1; got 0"),
        ({"spread": 0.0}, "spread must be > 0; got 0"),
        ({"step_size": 0.1, "relative_step_size": 0.1}, "exclude each other"),
    ],
)
def test_bad_settings_are_refused(make, arguments, says):
    with pytest.raises(ValueError, match=says):
        make(sets.Linf(0.1), **arguments)
