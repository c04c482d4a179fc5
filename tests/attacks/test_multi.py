"""Multi steepest descent and the affine adversary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.gradient.multi import affine, msd
from jaxrobust.sets.affine import Affine
from jaxrobust.sets.combine import Union
from jaxrobust.types import Classifier, Misclassified
from tests import tiny

KEY = jax.random.key(0)
BALLS = Union((sets.Linf(0.03), sets.L2(0.3), sets.L1(2.0)))
IMAGE = np.full((1, *tiny.SHAPE), 0.5, np.float32)
GOAL = Misclassified(jnp.array([1]))


@pytest.fixture(scope="module")
def problem():
    network = tiny.dense_classifier(3)
    images, labels = tiny.images_and_labels(network, 10)
    return network, images, labels


def binary(weights):
    columns = jnp.stack([jnp.zeros_like(weights), jnp.asarray(weights)], 1)
    return Classifier(tiny.linear, (columns, jnp.zeros(2)))


@pytest.mark.parametrize("dominant", range(3))
def test_msd_finds_the_worst_ball_of_a_linear_model(rng, dominant):
    """Where one ball is far larger than the others, its exact maximum ε ‖w‖_q."""
    weights = rng.normal(size=int(np.prod(tiny.SHAPE))).astype(np.float32)
    radii = np.array([0.03, 0.3, 0.4]) * np.where(np.arange(3) == dominant, 1, 0.1)
    balls = Union((sets.Linf(radii[0]), sets.L2(radii[1]), sets.L1(radii[2])))
    made = msd(balls, steps=60, loss="margin", sparsity=(1, 1))
    found = attacks.run(made, binary(weights), IMAGE, GOAL, key=KEY)
    most = radii[dominant] * [np.abs(weights).sum(), np.linalg.norm(weights), np.abs(weights).max()][dominant]
    gained = float(found.loss[0]) + 0.5 * weights.sum()
    np.testing.assert_allclose(gained, most, rtol=0.01)
    assert bool(balls.parts[dominant].contains(jnp.asarray(IMAGE[0]), found.parameters[0]))


@pytest.mark.slow
def test_msd_results_are_in_the_union_and_beat_the_starts(problem):
    network, images, labels = problem
    made = msd(BALLS, steps=5)
    found = attacks.run(made, *problem, key=KEY)
    sizes = np.asarray(found.parameters).reshape(10, -1)
    shares = [np.abs(sizes).max(1) / 0.03, np.linalg.norm(sizes, axis=1) / 0.3, np.abs(sizes).sum(1) / 2]
    assert (np.min(shares, 0) <= 1 + 1e-5).all()
    assert (np.min(shares, 0)[:-1] > 0.5).any()
    keys = attacks.example_keys(KEY, np.arange(10))
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    goal = Misclassified(jnp.asarray(labels))
    starts = jax.jit(lambda *arguments: jax.vmap(lambda *one: made.ask(made.init(*one)))(*arguments))
    points = starts(keys, jnp.asarray(images), goal, network(images))
    assert points.shape == (10, 3, *tiny.SHAPE)
    logits = network(points.reshape(-1, *tiny.SHAPE)).reshape(10, 3, -1)
    start = -np.asarray(jax.nn.log_softmax(logits))[np.arange(10), :, labels].max(1)
    better = np.asarray(found.success) | (np.asarray(found.loss) >= start - 1e-6)
    assert better[:-1].all()
    assert (np.asarray(found.forwards[:-1]) == 1 + 3 * 6).all()
    assert (np.asarray(found.backwards[:-1]) == 5).all()


@pytest.mark.slow
def test_msd_follows_the_worst_points_gradient(rng):
    """One step told by hand: every ball's own step and projection from the point of highest loss."""
    x = jnp.asarray(rng.uniform(0.3, 0.7, tiny.SHAPE), jnp.float32)
    made = msd(BALLS, steps=3, sparsity=None, loss="margin")
    goal = Misclassified(jnp.asarray(0))
    state = jax.jit(made.init)(KEY, x, goal, jnp.zeros(tiny.CLASSES))
    logits = jnp.asarray([[3.0, 0, 0, 0], [1.0, 0, 2.0, 0], [2.0, 0, 0, 1.0]])
    cotangents = np.asarray(made.cotangents(state, logits))
    assert cotangents.shape == (3, 1, tiny.CLASSES)
    np.testing.assert_array_equal(cotangents[[0, 2]], 0)
    np.testing.assert_array_equal(cotangents[1, 0], [-1, 0, 1, 0])
    gradients = jnp.asarray(rng.normal(size=(3, 1, *tiny.SHAPE)), jnp.float32)
    after = jax.jit(made.tell)(state, logits, gradients)
    sizes = 0.1 * jnp.asarray([0.03, 0.3, 2.0])
    expected = jax.jit(BALLS.candidates)(x, state.theta[1], gradients[1, 0], sizes)
    np.testing.assert_allclose(after.theta, expected, atol=1e-6)
    assert bool(after.success)
    np.testing.assert_allclose(after.best_theta, state.theta[1], atol=0)


def test_msd_l1_steps_move_five_to_twenty_entries(rng):
    """k is drawn anew at every step; entries that would leave the box by their share stay."""
    x = rng.uniform(0.3, 0.7, tiny.SHAPE).astype(np.float32)
    x[:2] = 0.999
    made = msd(Union((sets.L1(2.0),)), steps=12, relative_step_sizes=(0.2,), random_start=False)
    state = made.init(KEY, jnp.asarray(x), Misclassified(jnp.asarray(0)), jnp.zeros(tiny.CLASSES))
    gradient = jnp.asarray(1 + rng.random((1, 1, *tiny.SHAPE)), jnp.float32)
    tell, numbers = jax.jit(made.tell), []
    for _ in range(4):
        before = np.asarray(state.theta[0])
        state = tell(state, jnp.zeros((1, tiny.CLASSES)), gradient)
        step = np.asarray(state.theta[0]) - before
        moved = np.abs(step) > 1e-6
        numbers.append(int(moved.sum()))
        np.testing.assert_allclose(step[moved], 0.4 / moved.sum(), rtol=1e-3)
        assert not moved[:2].any()
    assert all(5 <= number <= 20 for number in numbers)
    assert len(set(numbers)) > 1


@pytest.mark.slow
def test_affine_results_share_one_budget(problem):
    """Σ_i ‖δ_i‖_i/ε_i ≤ 1, and part t mod m moves in step t."""
    _, images, _ = problem
    both = Affine((sets.Linf(0.05), sets.L1(3.0)))
    found = attacks.run(affine(both, steps=6, restarts=3), *problem, key=KEY)
    _, (first, second) = found.parameters
    shares = np.abs(first).max((1, 2, 3)) / 0.05 + np.abs(second).sum((1, 2, 3)) / 3
    assert (shares <= 1 + 1e-5).all()
    assert (shares[:-1] > 0.5).any()
    np.testing.assert_allclose(np.clip(images + first + second, 0, 1), found.images, atol=1e-6)
    assert (np.asarray(found.forwards[:-1]) == 1 + 7 * 3).all()


def test_affine_moves_part_after_part(rng):
    both = Affine((sets.Linf(0.05), sets.L2(1.0)))
    made = affine(both, steps=4, random_start=False)
    x, logits = jnp.asarray(IMAGE[0]), jnp.zeros((1, tiny.CLASSES))
    state = made.init(KEY, x, Misclassified(jnp.asarray(0)), logits[0])
    weights = np.asarray(state.theta[0])
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    tell = jax.jit(made.tell)
    for turn in range(4):
        before = [np.asarray(part) for part in state.theta[1]]
        state = tell(state, logits, jnp.asarray(rng.normal(size=(1, 1, *tiny.SHAPE)), jnp.float32))
        after = [np.asarray(part) for part in state.theta[1]]
        np.testing.assert_array_equal(after[1 - turn % 2], before[1 - turn % 2])
        assert (after[turn % 2] != before[turn % 2]).any()
        np.testing.assert_allclose(state.theta[0], weights, rtol=1e-6)


def test_affine_restarts_draw_weights_of_their_own(problem):
    network, images, labels = problem
    made = affine(Affine((sets.Linf(0.05), sets.L2(0.5))), steps=2, random_start=False, restarts=4)
    goal = Misclassified(jnp.asarray(labels[0]))
    weights = [
        made.init(jax.random.fold_in(KEY, r), jnp.asarray(images[0]), goal, network(images)[0]).theta[0]
        for r in range(4)
    ]
    assert len(np.unique(np.asarray(weights)[:, 0])) == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: msd(BALLS, relative_step_sizes=(0.1, 0.1)), "relative_step_sizes must be one a part, 3"),
        (lambda: msd(BALLS, relative_step_sizes=(0.1, 0.1, -1)), "relative_step_sizes must be finite and >= 0"),
        (lambda: msd(BALLS, sparsity=(7, 5)), r"sparsity must be \(least, most\); got \(7, 5\)"),
        (lambda: msd(BALLS, restarts=2, random_start=False), "restarts must be 1"),
        (lambda: affine(Affine((sets.Linf(0.1),)), steps=0), "steps must be >= 1; got 0"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
