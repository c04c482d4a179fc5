"""HopSkipJump: against boundaries that are known, with every query counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.queries.boundary import OVER
from jaxrobust.attacks.queries.hop_skip_jump import hop_skip_jump
from jaxrobust.types import Classifier, Code, Misclassified, Targeted
from tests import tiny
from tests.attacks.test_boundary import half_space

KEY = jax.random.key(13)
EDGE = 8  # d = 64


def images(count):
    return np.full((count, EDGE, EDGE, 1), 0.5, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("ball", "margin"), [(sets.L2(10.0), 0.8), (sets.Linf(1.0), 0.1)])
def test_a_half_space_is_reached_within_two_percent(ball, margin):
    attack = hop_skip_jump(ball, chunk=50, starts=np.ones_like(images(1)))
    found = attacks.run(attack, half_space(), images(3), np.zeros(3, np.int32), key=KEY)
    # what lies on the boundary to the last bit may lie beyond it in another program
    assert (np.asarray(found.success) | (np.asarray(found.code) == Code.DISAGREED)).all()
    assert (np.asarray(found.size) >= margin * (1 - 1e-5)).all()
    assert (np.asarray(found.size) <= 1.02 * margin).all()
    assert (np.asarray(found.forwards) <= 25_001).all()


def counted(attack, model, x, label):
    """The points meant, ask by ask, until it is done; the points that are not are told NaN."""
    state = attack.init(KEY, x, Misclassified(label), model(x[None])[0])

    @jax.jit
    def step(state):
        meant = attack.meant(state)
        logits = jnp.where(meant[:, None], model(attack.ask(state)), jnp.nan)
        return attack.tell(state, logits, jnp.zeros(0)), jnp.sum(meant)

    counts = []
    while not attack.done(state):
        state, meant = step(state)
        counts.append(int(meant))
        assert int(attack.best(state).forwards) == sum(counts)
    assert not attack.best(state).non_finite
    return state, counts


def test_queries_are_those_of_the_schedule():
    attack = hop_skip_jump(sets.L2(10.0), iterations=3, chunk=30, samples=50, starts=np.ones_like(images(1)))
    state, counts = counted(attack, half_space(), jnp.asarray(images(1)[0]), jnp.asarray(0))
    assert int(state.memory.phase) == OVER
    assert len(counts) <= attack.asks
    estimates = [30, 20, 30, 30, 10, 30, 30, 26]  # 50, ⌊50 √2⌋ and ⌊50 √3⌋ samples
    assert [count for count in counts if count > 1] == estimates
    # precision 1/512 of the line: nine halvings, and 1/1024 of the blend: ten; and the start
    assert counts[: counts.index(30)] == [1] * 20


@pytest.mark.slow
def test_the_budget_ends_it():
    attack = hop_skip_jump(sets.L2(10.0), queries=77, chunk=30)
    _, counts = counted(attack, half_space(), jnp.asarray(images(1)[0]), jnp.asarray(0))
    assert sum(counts) == 77


@pytest.mark.slow
def test_where_no_start_is_found_nothing_is_claimed():
    constant = Classifier(lambda scale, x: jnp.stack([scale * x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1), jnp.ones(()))
    attack = hop_skip_jump(sets.L2(10.0), iterations=1, queries=120)
    found = attacks.run(attack, constant, images(1), np.zeros(1, np.int32), key=KEY)
    assert not found.success.any()
    np.testing.assert_array_equal(found.forwards, 121)
    np.testing.assert_array_equal(found.images, images(1))


@pytest.mark.slow
def test_a_boundary_with_only_one_side_ends_the_jump():
    """Where only the start itself is adversarial, every jump fails, and is given up after its halvings."""
    x = images(1)
    start = np.ones_like(x)

    def lonely(params, points):
        hit = jnp.abs(points - 1).max((1, 2, 3)) < 1e-6
        return jnp.stack([~hit, hit], 1).astype(points.dtype) * params

    attack = hop_skip_jump(sets.L2(10.0), iterations=2, starts=start, samples=4, chunk=4)
    found = attacks.run(attack, Classifier(lonely, jnp.asarray(5.0)), x, np.zeros(1, np.int32), key=KEY)
    assert found.success.all()
    np.testing.assert_allclose(found.images, start)
    assert int(found.forwards[0]) < 200


@pytest.mark.slow
def test_targets_are_met_from_images_given():
    model = tiny.dense_classifier()
    pool, labels = tiny.images_and_labels(model, 30)
    predicted = np.asarray(model(pool).argmax(-1))
    starts = np.stack([pool[np.flatnonzero(predicted == k)[0]] for k in np.unique(predicted)])
    first, second = np.unique(predicted)[:2]
    goal = Targeted(np.where(labels[:4] == first, second, first).astype(np.int32), labels[:4])
    attack = hop_skip_jump(sets.L2(100.0), iterations=3, queries=500, chunk=20, starts=starts)
    found = attacks.run(attack, model, pool[:4], goal, key=KEY)
    assert found.success.all()
    np.testing.assert_array_equal(model(found.images).argmax(-1), goal.target)
    begun = np.linalg.norm((starts[(goal.target == second).astype(int)] - pool[:4]).reshape(4, -1), axis=1)
    assert (np.asarray(found.size) < begun).all()


@pytest.mark.slow
def test_the_chunk_changes_nothing():
    one = hop_skip_jump(sets.L2(10.0), iterations=2, samples=20, chunk=1, starts=np.ones_like(images(1)))
    found = [
        attacks.run(attack, half_space(), images(1), np.zeros(1, np.int32), key=KEY)
        for attack in (one, dataclasses.replace(one, chunk=7))
    ]
    np.testing.assert_allclose(found[0].images, found[1].images, atol=1e-4)
    np.testing.assert_array_equal(found[0].forwards, found[1].forwards)


@pytest.mark.slow
def test_float64_stays():
    with jax.enable_x64(True):
        for ball in (sets.L2(10.0), sets.Linf(1.0)):
            attack = hop_skip_jump(ball, iterations=1, queries=40)
            found = attacks.run(
                attack, half_space(np.float64(1)), images(1).astype(np.float64), np.zeros(1, np.int64), key=KEY
            )
            assert found.images.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"set": sets.L1(0.1)}, "set must be L2 or Linf for HopSkipJump; got L1"),
        ({"iterations": 0}, "iterations must be >= 1; got 0"),
        ({"chunk": 0}, "chunk must be >= 1; got 0"),
        ({"samples": 0}, "samples must be >= 1; got 0"),
        ({"gamma": -1.0}, "gamma must be finite and >= 0; got -1"),
    ],
)
def test_bad_settings_are_refused(arguments, says):
    arguments = {"set": sets.L2(0.1), **arguments}
    with pytest.raises(ValueError, match=says):
        hop_skip_jump(arguments.pop("set"), **arguments)
