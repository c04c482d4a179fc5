"""FAB against the released code, its targets, starts and counts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.minimum_norm.fab import fab
from jaxrobust.types import Misclassified, Targeted
from tests import tiny

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "fab.npz"
SETS = {"Linf": sets.Linf(100.0), "L2": sets.L2(100.0), "L1": sets.L1(100.0)}
KEY = jax.random.key(3)


@pytest.mark.parametrize("targeted", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("norm", SETS)
def test_iterates_are_those_of_the_released_code(norm, targeted):
    fixture = np.load(FIXTURE)
    expected = fixture[norm + "_t" * targeted]
    attack = fab(SETS[norm], steps=len(expected), targets=int(targeted))
    with jax.enable_x64(True):
        hidden, out = jnp.asarray(fixture["hidden"]), jnp.asarray(fixture["out"])

        def network(images):
            return jnp.tanh(images.reshape(images.shape[0], -1) @ hidden) @ out

        @jax.jit
        def advance(state):
            logits, pull = jax.vjp(network, attack.ask(state))
            columns = attack.cotangents(state, logits)[0]
            gradients = jnp.stack([pull(column[None])[0][0] for column in columns])[None]
            return attack.tell(state, logits, gradients)

        for i, (image, label) in enumerate(zip(fixture["images"], fixture["labels"], strict=True)):
            x = jnp.asarray(image)
            state = attack.init(KEY, x, Misclassified(jnp.asarray(label)), network(x[None])[0])
            iterates = []
            while not attack.done(state):
                if state.memory[1]:  # a new iterate, not one that was drawn back
                    iterates.append(np.asarray(attack.ask(state)[0]))
                state = advance(state)
            np.testing.assert_allclose(iterates, expected[:, i], atol=1e-8, rtol=0)
            # no farther than what the released code found: points drawn back are booked too
            released = attack.set.size(x, jnp.asarray(fixture[f"{norm}{'_t' * targeted}_found"][i]) - x)
            assert attack.best(state).success
            assert attack.best(state).size <= released * (1 + 1e-12)


def begun(attack, logits, run):
    x = jnp.full(tiny.SHAPE, 0.5)
    return attack.begin(KEY, x, Misclassified(jnp.int32(1)), logits, jnp.int32(run))


def test_every_run_has_its_target_by_rank():
    attack = fab(sets.L2(1.0), steps=2, targets=9)
    logits = jnp.asarray([1.0, 5.0, 3.0, 2.0])
    # three other classes: then they come again, from random starts
    targets = [int(begun(attack, logits, run).memory[0][0]) for run in range(6)]
    assert targets == [2, 3, 0, 2, 3, 0]
    moved = [bool((begun(attack, logits, run).theta != 0).any()) for run in range(6)]
    assert moved == [False] * 3 + [True] * 3


@pytest.mark.parametrize("ball", [sets.L1(0.3), sets.L2(0.3), sets.Linf(0.3)])
def test_random_starts_have_half_the_radius(ball):
    attack = fab(ball, steps=2, restarts=2)
    logits = jnp.asarray([1.0, 5.0, 3.0, 2.0])
    assert attack.restarts == 2
    assert (begun(attack, logits, 0).theta == 0).all()
    np.testing.assert_allclose(ball.size(jnp.zeros(tiny.SHAPE), begun(attack, logits, 1).theta), 0.15, rtol=1e-5)


@pytest.mark.slow
def test_every_classification_is_counted(rng):
    model = tiny.linear_classifier(rng)
    images, labels = tiny.images_and_labels(model, 4)
    attack = fab(sets.L2(100.0), steps=5, candidates=3)
    found = attacks.run(attack, model, images, labels, key=KEY)
    assert (np.asarray(found.backwards) == [10, 10, 10, 0]).all()
    assert (np.asarray(found.forwards[:3]) <= 1 + attack.asks).all()
    assert (np.asarray(found.forwards[:3]) > 1 + attack.steps).all()
    assert int(found.forwards[3]) == 1


def test_a_target_is_reached(rng):
    model = tiny.linear_classifier(rng)
    images, _ = tiny.images_and_labels(model, 4)
    targets = (np.asarray(model(images).argmax(-1)) + 2) % tiny.CLASSES
    found = attacks.run(fab(sets.L2(100.0), steps=20, targets=1), model, images, Targeted(targets), key=KEY)
    assert found.success.all()
    with pytest.raises(ValueError, match=r"must be Misclassified for fab without targets, .*got Targeted"):
        attacks.run(fab(sets.L2(100.0)), model, images, Targeted(targets), key=KEY)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="set must be L1 or L2 or Linf for fab"):
        fab(sets.L0(3))
    with pytest.raises(ValueError, match="targets must be >= 0; got -1"):
        fab(sets.L2(1.0), targets=-1)
    with pytest.raises(ValueError, match="candidates must be >= 2; got 1"):
        fab(sets.L2(1.0), candidates=1)
    with pytest.raises(ValueError, match="bias must be finite and in"):
        fab(sets.L2(1.0), bias=1.5)
