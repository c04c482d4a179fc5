"""Searches without gradients: exact counts, brute force, nested draws, and every engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.queries.search import grid_search, worst_of_k
from jaxrobust.sets.spatial import RotationTranslation
from jaxrobust.types import Classifier, Code, Misclassified
from tests import tiny

KEY = jax.random.key(0)
TURNS = RotationTranslation(1.0, rotation=30.0, translation=2.0)


@pytest.fixture(scope="module")
def problem():
    network = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(network, 5)
    return network, images, labels


@pytest.fixture(scope="module")
def everything(problem):
    """The logits of every image of the grid of 775, one after the other."""
    network, images, _ = problem
    grid = TURNS.grid(jnp.asarray(images[0]))

    @jax.jit
    def of_one(image):
        return network(jax.vmap(TURNS.apply, (None, 0))(image, grid))

    return np.asarray(grid), np.stack([of_one(jnp.asarray(image)) for image in images])


def test_the_grid_is_775_and_holds_the_identity(everything):
    made = grid_search(TURNS)
    assert (made.width, made.asks, made.gradients) == (25, 31, 0)
    grid, _ = everything
    assert len(grid) == 775
    assert (grid == 0).all(-1).sum() == 1


def test_the_grid_is_searched_exactly(problem, everything):
    """Against brute force: the point of highest loss among the misclassified ones, else among all."""
    network, images, labels = problem
    grid, logits = everything
    loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(5)[:, None], np.arange(775)[None], labels[:, None]]
    wrong = logits.argmax(-1) != labels[:, None]
    found = attacks.run(grid_search(TURNS), network, images, labels, key=KEY)
    assert (np.asarray(found.forwards[:-1]) == 1 + 775).all()
    assert (np.asarray(found.backwards) == 0).all()
    for i in range(4):
        assert found.success[i] == wrong[i].any()
        best = loss[i][wrong[i] if wrong[i].any() else slice(None)].max()
        np.testing.assert_allclose(found.loss[i], best, rtol=1e-4, atol=1e-5)
        assert (np.abs(grid - np.asarray(found.parameters[i])).max(-1) < 1e-6).any()
    assert found.code[4] == Code.ALREADY


def test_the_last_chunk_is_masked_and_not_counted(problem):
    network, images, labels = problem
    whole = attacks.run(grid_search(TURNS, points=(5, 3, 3), chunk=45), network, images, labels, key=KEY)
    parts = attacks.run(grid_search(TURNS, points=(5, 3, 3), chunk=7), network, images, labels, key=KEY)
    assert (np.asarray(parts.forwards[:-1]) == 1 + 45).all()
    np.testing.assert_array_equal(whole.success, parts.success)
    np.testing.assert_allclose(whole.loss, parts.loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole.images, parts.images, atol=1e-5)


@pytest.mark.slow
def test_more_samples_never_help_the_defender(problem):
    """Draws are nested: the worst of k is the worst of the first k, whatever the chunk."""
    network, images, labels = problem
    ball = sets.Linf(0.2)
    success, loss = np.zeros(5, bool), np.full(5, -np.inf)
    for samples, chunk in ((1, 1), (8, 5), (20, 20)):
        found = attacks.run(worst_of_k(ball, samples=samples, chunk=chunk), network, images, labels, key=KEY)
        assert (np.asarray(found.forwards[:-1]) == 1 + samples).all()
        now, higher = np.asarray(found.success), np.asarray(found.loss)
        assert (now >= success).all()
        assert ((now & ~success) | (higher >= loss - 1e-6)).all()
        success, loss = now, higher
    assert success[:-1].any()


@pytest.mark.slow
def test_engines_agree_without_gradients(problem):
    """Scanned, stepped from the host, and in lanes."""
    network, images, labels = problem
    made = worst_of_k(sets.Linf(0.1), samples=7, chunk=3)
    goal, keys = Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, np.arange(5))
    arguments = (made, network, jnp.asarray(images), goal, keys)
    scanned = engine._search(*arguments, stop="clean", unroll=False)
    stepped = engine._stepped(*arguments, stop="clean")
    for left, right in zip(jax.tree.leaves(scanned), jax.tree.leaves(stepped), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    lanes = evaluate.run_lanes(made, network, images, labels, key=KEY, lanes=4, early_stop=False, progress=False)
    np.testing.assert_allclose(lanes.result.images, scanned.images, atol=1e-5)
    np.testing.assert_array_equal(lanes.result.forwards, scanned.forwards)
    np.testing.assert_array_equal(lanes.result.backwards, 0)


@pytest.mark.slow
def test_training_gets_the_worst_of_all_samples(problem):
    network, images, labels = problem
    made = worst_of_k(sets.Linf(0.1), samples=10)
    assert made.asks == 1
    keys = attacks.example_keys(KEY, np.arange(5))
    goal = Misclassified(jnp.asarray(labels))
    last = jax.jit(engine.last_iterate)(made, network, jnp.asarray(images), goal, keys)
    found = attacks.run(made, network, images, labels, key=KEY)
    np.testing.assert_allclose(last[:-1], found.images[:-1], atol=1e-6)
    assert (np.abs(np.asarray(last[:-1]) - images[:-1]).max((1, 2, 3)) > 0.05).any()


def test_points_that_are_not_meant_are_not_looked_at():
    """NaN beyond the last point is nobody's fault."""

    def dark(images):
        logits = images.reshape(len(images), -1)[:, :3] + jnp.array([[9.0, 0.0, 0.0]])
        return jnp.where(jnp.arange(len(images))[:, None] % 4 == 3, jnp.nan, logits)

    images = np.full((1, *tiny.SHAPE), 0.5, np.float32)
    made = worst_of_k(sets.Linf(0.1), samples=7, chunk=4)  # the eighth point is NaN, and the fourth is too
    found = attacks.run(made, Classifier.from_function(dark), images, np.zeros(1, int), key=KEY, check=False)
    assert found.code[0] == Code.NON_FINITE
    made = worst_of_k(sets.Linf(0.1), samples=3, chunk=4)
    found = attacks.run(made, Classifier.from_function(dark), images, np.zeros(1, int), key=KEY, check=False)
    assert found.code[0] == Code.RAN


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: grid_search(sets.Linf(0.1)), TypeError, "set must have a grid of parameters"),
        (lambda: grid_search(TURNS, chunk=0), ValueError, "chunk must be >= 1; got 0"),
        (lambda: grid_search(TURNS, points=(3, 0, 3)), ValueError, "points must be >= 1; got 0"),
        (lambda: worst_of_k(TURNS, samples=0), ValueError, "samples must be >= 1; got 0"),
    ],
)
def test_bad_settings_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
