"""The Boundary attack: always adversarial, never further away, and where the boundary is known, close to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.queries.boundary import SEARCH, WALK, Record, boundary
from jaxrobust.types import Classifier, Misclassified, Targeted
from tests import tiny

KEY = jax.random.key(11)


def half_space(scale=1.0):
    """Two classes, apart at a mean pixel of 0.6: from an image of 0.5 the margin is 0.1 √d."""
    return Classifier(_half_space, jnp.asarray(scale))


def _half_space(scale, images):
    gap = scale * (images.mean((1, 2, 3)) - 0.6)
    return jnp.stack([-gap, gap], 1)


@functools.partial(jax.jit, static_argnames="count")
def walked(attack, model, images, goal, keys, count):
    states = engine.begin(attack, images, goal, keys, model(images), 0)

    def step(states, _):
        states = engine.advance(attack, model, states, stop="never", gradient=False)
        return states, (states.memory.phase, states.memory.place, jax.vmap(attack.best)(states))

    return jax.lax.scan(step, states, length=count)[1]


@pytest.fixture(scope="module")
def walk():
    """The phases, places and books after each ask of a walk, with the model that it was on."""
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 6)
    images, labels = images[:-1], labels[:-1]
    goal, keys = Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, np.arange(len(images)))
    attack = boundary(sets.L2(100.0), queries=400)
    return model, images, labels, *walked(attack, model, images, goal, keys, 400)


def test_every_place_is_adversarial_and_none_is_further_than_the_one_before(walk):
    model, images, labels, phase, place, _ = walk
    found = np.asarray(phase) != SEARCH
    assert found[-1].all()
    classes = np.stack([np.asarray(model(np.clip(images + step, 0, 1)).argmax(-1)) for step in np.asarray(place)])
    assert (classes != labels)[found].all()
    sizes = np.linalg.norm(np.asarray(place).reshape(*found.shape, -1), axis=-1)
    walking = np.asarray(phase)[:-1] == WALK
    assert (np.diff(sizes, axis=0)[walking] <= 0).all()
    assert (sizes[-1] < 0.8 * sizes[found.argmax(0), np.arange(len(images))]).all()


def test_the_closest_point_is_booked(walk):
    _, _, _, _, place, best = walk
    sizes = np.linalg.norm(np.asarray(place[-1]).reshape(place.shape[1], -1), axis=-1)
    assert np.asarray(best.success[-1]).all()
    assert (np.asarray(best.size[-1]) <= sizes + 1e-5).all()
    np.testing.assert_allclose(best.loss[-1], -np.asarray(best.size[-1]))
    np.testing.assert_array_equal(best.forwards[-1], 400)


@pytest.mark.slow
def test_a_half_space_is_approached():
    """At d = 12, where a random direction is not yet orthogonal to every other."""
    images = np.full((4, 2, 2, 3), 0.5, np.float32)
    found = attacks.run(boundary(sets.L2(10.0), queries=3000), half_space(), images, np.zeros(4, np.int32), key=KEY)
    assert found.success.all()
    assert (np.asarray(found.size) >= 0.1 * np.sqrt(12) - 1e-5).all()
    assert (np.asarray(found.size) <= 1.1 * 0.1 * np.sqrt(12)).all()
    assert (np.asarray(found.forwards) <= 3001).all()


@pytest.mark.slow
def test_the_radius_says_what_counts():
    images = np.full((2, 2, 2, 3), 0.5, np.float32)
    labels = np.zeros(2, np.int32)
    near = attacks.run(boundary(sets.L2(0.3), queries=3000), half_space(), images, labels, key=KEY)
    assert not near.success.any()
    np.testing.assert_array_equal(near.images, images)
    early = attacks.run(boundary(sets.L2(0.6), queries=3000), half_space(), images, labels, key=KEY, early_stop=True)
    assert early.success.all()
    assert (np.asarray(early.size) <= 0.6).all()
    assert (np.asarray(early.forwards) < 3000).all()


@pytest.mark.slow
def test_targets_are_met_from_images_given():
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 30)
    predicted = np.asarray(model(images).argmax(-1))
    starts = np.stack([images[np.flatnonzero(predicted == k)[0]] for k in np.unique(predicted)])
    first, second = np.unique(predicted)[:2]
    goal = Targeted(np.where(labels[:5] == first, second, first).astype(np.int32), labels[:5])
    attack = boundary(sets.L2(100.0), queries=150, starts=starts)
    found = attacks.run(attack, model, images[:5], goal, key=KEY)
    assert found.success.all()
    np.testing.assert_array_equal(model(found.images).argmax(-1), goal.target)
    begun = np.linalg.norm((starts[(goal.target == second).astype(int)] - images[:5]).reshape(5, -1), axis=1)
    assert (np.asarray(found.size) < begun).all()


@pytest.mark.slow
def test_gradients_that_vanish_do_not_stop_it():
    model = Classifier(lambda params, x: tiny.dense_net(params, jnp.round(x * 8) / 8), tiny.dense_params())
    images, labels = tiny.images_and_labels(model, 5)
    found = attacks.run(boundary(sets.L2(2.5), queries=2400), model, images, labels, key=KEY)
    blind = attacks.run(attacks.pgd(sets.L2(2.5), steps=5, random_start=False), model, images, labels, key=KEY)
    assert not blind.success[:-1].any()
    assert found.success.all()


def test_records_are_judged_when_full():
    record, judged = Record.empty(4), []
    for outcome in (1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0):
        record, often, seldom = record.judged(jnp.asarray(bool(outcome)), 0.2, 0.5, jnp.float32)
        judged.append((bool(often), bool(seldom), int(record.count)))
    # three of the first four; then cleared, and none of the next four, and so on
    assert [judged[i] for i in (2, 3, 6, 7, 11)] == [
        (False, False, 3),
        (True, False, 0),
        (False, False, 3),
        (False, True, 0),
        (False, True, 0),
    ]


@pytest.mark.slow
def test_float64_stays():
    with jax.enable_x64(True):
        images = np.full((1, 2, 2, 3), 0.5)
        found = attacks.run(
            boundary(sets.L2(10.0), queries=20), half_space(np.float64(1)), images, np.zeros(1, np.int64), key=KEY
        )
        assert found.images.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"set": sets.Linf(0.1)}, "set must be L2 for Boundary attack; got Linf"),
        ({"queries": 0}, "queries must be >= 1; got 0"),
        ({"adaptation": 0.5}, "adaptation must be finite and >= 1; got 0.5"),
        ({"starts": np.zeros((6, 5, 2), np.float32)}, r"starts must have shape \(M, H, W, C\); got \(6, 5, 2\)"),
    ],
)
def test_bad_settings_are_refused(arguments, says):
    arguments = {"set": sets.L2(0.1), **arguments}
    with pytest.raises(ValueError, match=says):
        boundary(arguments.pop("set"), **arguments)


def test_starts_of_another_shape_are_refused():
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 2)
    attack = boundary(sets.L2(1.0), starts=np.zeros((3, 5, 6, 2), np.float32))
    with pytest.raises(ValueError, match="starts must be of the images' shape"):
        attacks.run(attack, model, images, labels, key=KEY)
