"""The Square attack: its windows, its patterns, what it accepts and what it counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.queries.square import _bump, square
from jaxrobust.testing.attacks import answers
from jaxrobust.types import Classifier, Code, Misclassified, Targeted
from tests import tiny
from tests.compiled import compiled

BALLS = {"linf": sets.Linf(0.1), "l2": sets.L2(1.0), "l1": sets.L1(5.0)}
KEY = jax.random.key(3)


@functools.cache
def setting():
    model = tiny.dense_classifier()
    return model, *tiny.images_and_labels(model, 6)


@functools.partial(compiled, static_argnums=2)
def sides(attack, queries, shape):
    """The windows' sides at these queries."""
    return jax.vmap(lambda query: attack.side(query, shape))(queries)


def sides_of(attack, queries, shape):
    return sides(attack, np.asarray(queries, np.int32), shape).tolist()


bump = compiled(_bump, static_argnums=(4, 5))


@functools.partial(jax.jit, static_argnames="count")
def followed(attack, model, images, goal, keys, count):
    """The points asked, the loss told and what is booked, ask by ask, in the first run."""
    states = engine.begin(attack, images, goal, keys, model(images), 0)

    def step(states, _):
        points = jax.vmap(attack.ask)(states)[:, 0]
        states = engine.advance(attack, model, states, stop="never", gradient=False)
        return states, (points, jax.vmap(attack.loss_of)(states), jax.vmap(attack.best)(states))

    return jax.lax.scan(step, states, length=count)[1]


def follow(attack, count):
    model, images, labels = setting()
    keys = attacks.example_keys(KEY, np.arange(len(images)))
    return images, *followed(attack, model, images, Misclassified(jnp.asarray(labels)), keys, count)


def test_sides_are_those_of_the_schedule():
    attack, shape = square(BALLS["linf"]), (32, 32, 3)
    queries = np.array([1, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6001, 8001])
    assert sides_of(attack, queries, shape) == [29, 29, 20, 20, 14, 14, 10, 10, 7, 7, 5, 5, 4, 4, 3, 2, 1]


def test_a_rescaled_schedule_ends_with_the_budget():
    attack = square(BALLS["linf"], queries=1000, rescale_schedule=True)
    assert sides_of(attack, (0, 1, 2, 5, 6, 801, 999), (32, 32, 3)) == [29, 29, 20, 20, 14, 1, 1]


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("shape", [(2, 9, 1), (5, 3, 3), (8, 8, 1), (1, 1, 1)])
def test_sides_fit(name, shape):
    for p in (0.0, 0.8, 1.0):
        attack = square(BALLS[name], p=p)
        found = sides_of(attack, (1, 20, 5000), shape)
        assert all(1 <= side <= min(shape[:2]) for side in found)
        assert name == "linf" or all(side % 2 for side in found)


def rectangles(height, width, power):
    """The published pattern of a half, rectangle by rectangle."""
    pattern = np.zeros((height, width))
    for k in range(max(height, width) // 2 + 1):
        top, left = height // 2 - k, width // 2 - k
        rows, columns = (
            slice(max(top, 0), min(top + 2 * k + 1, height)),
            slice(max(left, 0), min(left + 2 * k + 1, width)),
        )
        pattern[rows, columns] += 1.0 / (k + 1) ** (2 if power == 2 else 4)
    return pattern / (np.abs(pattern) ** power).sum() ** (1 / power)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("side", [3, 4, 5, 9])
def test_the_pattern_is_the_published_one(power, side):
    expected = np.concatenate([rectangles(side // 2, side, power), -rectangles(side - side // 2, side, power)])
    expected /= (np.abs(expected) ** power).sum() ** (1 / power)
    edge = np.arange(12, dtype=np.int32)
    for turned in (False, True):
        found = bump(edge - 2, edge - 3, np.int32(side), turned, power, jnp.float32)
        window = np.zeros((12, 12))
        window[2 : 2 + side, 3 : 3 + side] = expected.T if turned else expected
        np.testing.assert_allclose(found, window, atol=1e-6)


@pytest.mark.parametrize("name", ["linf", "l2", pytest.param("l1", marks=pytest.mark.slow)])
def test_it_moves_to_better_points_only(name):
    attack = square(BALLS[name], queries=60)
    images, points, losses, best = follow(attack, 60)
    booked = np.asarray(best.success).astype(int) * 1e6 + np.asarray(best.loss)
    assert (np.diff(booked, axis=0) >= 0).all()
    assert (np.asarray(best.loss)[-1] > np.asarray(best.loss)[0]).any()
    inside = compiled(lambda ball, *a: jax.vmap(jax.vmap(ball.contains), (None, 0))(*a))
    assert inside(attack.set, images, points - images[None]).all()
    # what is booked after an ask is the best point seen up to it
    seen = np.maximum.accumulate(np.where(np.asarray(best.success)[-1], -np.inf, np.asarray(losses)), 0)[-1]
    robust = ~np.asarray(best.success)[-1]
    assert robust.any()
    assert (np.asarray(best.loss)[-1] >= seen)[robust].all()


def test_a_proposal_changes_one_window():
    attack = square(BALLS["linf"], queries=60, p=0.3)
    images, points, _, best = follow(attack, 60)
    points, held = np.asarray(points), np.asarray(best.image)
    for query, side in zip(range(1, 60), sides_of(attack, range(1, 60), images.shape[1:]), strict=True):
        for example in range(len(images)):
            if np.asarray(best.loss)[query - 1, example] == np.asarray(best.loss)[0, example]:
                continue  # the clean image may be booked, while the search stands elsewhere
            changed = np.abs(points[query, example] - held[query - 1, example]).max(-1) > 1e-6
            assert changed.any()  # signs that change nothing are drawn anew
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            assert np.ptp(rows) < side
            assert np.ptp(columns) < side


@pytest.mark.slow
def test_windows_reach_every_pixel():
    """The last row and column too."""
    _, points, _, _ = follow(square(BALLS["linf"], queries=200, p=0.02), 200)
    moved = np.abs(np.diff(np.asarray(points), axis=0)).max(-1) > 1e-6
    assert moved.any((0, 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", BALLS)
def test_it_fools_a_linear_model_within_its_budget(rng, name):
    model = tiny.linear_classifier(rng, classes=3)
    images, labels = tiny.images_and_labels(model, 8)
    attack = square(BALLS[name].with_radius({"linf": 1.0, "l2": 10.0, "l1": 100.0}[name]), queries=100)
    stopped = attacks.run(attack, model, images, labels, key=KEY, early_stop=True)
    assert stopped.success.all()
    assert (np.asarray(stopped.forwards) <= 101).all()
    assert len(set(np.asarray(stopped.forwards).tolist())) > 2
    whole = attacks.run(attack, model, images, labels, key=KEY)
    assert (np.asarray(whole.forwards[:-1]) == 101).all()
    assert not np.asarray(whole.backwards).any()


@pytest.mark.slow
def test_targets_are_met(rng):
    model = tiny.linear_classifier(rng, classes=3)
    images, labels = tiny.images_and_labels(model, 6)
    goal = Targeted((labels + 1) % 3, labels)
    found = attacks.run(square(sets.Linf(0.5), queries=300, loss="cross_entropy"), model, images, goal, key=KEY)
    assert found.success.all()
    np.testing.assert_array_equal(answers(model, found.images).argmax(-1), goal.target)


def test_gradients_that_vanish_do_not_stop_it():
    """A model of inputs rounded to 8 levels: PGD stands still, Square does not."""
    inner = tiny.dense_params()
    model = Classifier(lambda params, x: tiny.dense_net(params, jnp.round(x * 8) / 8), inner)
    images, labels = tiny.images_and_labels(model, 8)
    ball = sets.Linf(0.3)
    blind = attacks.run(attacks.pgd(ball, steps=20, random_start=False), model, images, labels, key=KEY)
    assert not np.asarray(blind.success)[:-1].any()
    found = attacks.run(square(ball, queries=300), model, images, labels, key=KEY)
    assert np.mean(found.success) > 0.8
    assert (np.asarray(found.code) != Code.DISAGREED).all()


@pytest.mark.slow
def test_float64_stays():
    with jax.enable_x64(True):
        model = Classifier(tiny.dense_net, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tiny.dense_params()))
        _, images, labels = setting()
        for ball in (BALLS["linf"], BALLS["l2"]):
            found = attacks.run(
                square(ball, queries=4), model, images.astype(np.float64), labels.astype(np.int64), key=KEY
            )
            assert found.images.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"set": sets.Flow(0.1)}, TypeError, "set must be Linf, L2 or L1"),
        ({"queries": 0}, ValueError, "queries must be >= 1; got 0"),
        ({"p": 1.5}, ValueError, r"p must be finite and in \[0, 1\]; got 1.5"),
        ({"restarts": 0}, ValueError, "restarts must be >= 1; got 0"),
    ],
)
def test_bad_settings_are_refused(arguments, error, says):
    arguments = {"set": sets.Linf(0.1), **arguments}
    with pytest.raises(error, match=says):
        square(arguments.pop("set"), **arguments)
