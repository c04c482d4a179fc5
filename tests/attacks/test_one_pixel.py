"""One-pixel and CornerSearch against every change of one pixel, and what they count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.queries.corner_search import corner_search
from jaxrobust.attacks.queries.one_pixel import one_pixel
from jaxrobust.types import Classifier, Misclassified, Targeted
from tests import tiny

KEY = jax.random.key(9)
SHAPE = (4, 4, 2)


def problem(count=6, scale=0.35):
    """A small network, images and labels."""
    rng = np.random.default_rng(3)
    params = tiny.dense_params(0, SHAPE)
    model = Classifier(tiny.dense_net, jax.tree.map(lambda leaf: leaf * scale, params))
    images = rng.random((count, *SHAPE)).astype(np.float32)
    return model, images, np.asarray(model(images).argmax(-1))


def singles(model, x):
    """The logits of every image with one pixel at a corner of the colour cube."""
    changed = []
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            for corner in range(2 ** SHAPE[2]):
                image = x.copy()
                image[row, column] = [(corner >> c) & 1 for c in range(SHAPE[2])]
                changed.append(image)
    return np.asarray(model(np.stack(changed)), float)


def margins(logits, label):
    return np.delete(logits, label, -1).max(-1) - logits[..., label]


def margins_of(logits, labels):
    return np.array([margins(z, label) for z, label in zip(np.asarray(logits, float), labels, strict=True)])


@pytest.mark.slow
def test_corners_bound_differential_evolution_from_below():
    model, images, labels = problem()
    # so large that no probability ends the search
    made = one_pixel(sets.L0(1), population=120, generations=30, chunk=60, loss="margin")
    found = attacks.run(made, model, images, labels, key=KEY)
    best = np.array([margins(singles(model, x), label).max() for x, label in zip(images, labels, strict=True)])
    loss = np.asarray(found.loss)
    clean = margins_of(model(images), labels)
    assert (np.asarray(found.size) <= 1).all()
    # colours between the corners are no better for most pixels of a network this small
    assert (loss >= best - 0.05 * np.abs(best - clean)).all(), (loss, best)
    np.testing.assert_array_equal(found.forwards, 1 + 120 * 31)
    np.testing.assert_array_equal(found.backwards, 0)


@pytest.mark.slow
def test_chunks_do_not_matter():
    model, images, labels = problem(3)
    made = one_pixel(sets.L0(2), pixels=3, population=12, generations=4, chunk=12)
    first, second = (
        attacks.run(dataclasses.replace(made, chunk=chunk), model, images, labels, key=KEY) for chunk in (12, 4)
    )
    np.testing.assert_allclose(first.images, second.images, atol=1e-6)
    np.testing.assert_array_equal(first.forwards, second.forwards)
    # three pixels, of which the radius allows two
    assert (np.asarray(first.size) <= 2).all()


def test_parents_are_distinct_and_evenly_drawn():
    """Of a population whose one gene is 1 for individual j: a child is 1 if j is the base, ½ away if a difference."""
    made = one_pixel(sets.L0(1), population=5, generations=1, chunk=5)
    x = jnp.zeros((2, 2, 1))
    counts = np.zeros((5, 3), int)
    genes = jnp.zeros((5, 1, 3)).at[:, 0, 0].set(jnp.asarray([0.0, 1.0, 4.0, 16.0, 64.0]) / 1000 + 0.1)

    @jax.jit
    def children(key):
        state = made.init(key, x, Misclassified(jnp.asarray(0)), jnp.asarray([1.0, 0]))
        memory = dataclasses.replace(state.memory, genes=genes)
        return made._children(dataclasses.replace(state, memory=memory, asked=jnp.asarray(1)))[:, 0, 0]

    values = np.array([0.0, 1.0, 4.0, 16.0, 64.0])
    made_of = {
        round(float(values[a] + 0.5 * (values[b] - values[c])), 3): (a, b, c)
        for a in range(5)
        for b in range(5)
        for c in range(5)
        if len({a, b, c}) == 3
    }
    drawn = np.asarray(jax.vmap(children)(jax.random.split(KEY, 300))).ravel()
    for child in drawn:
        exact = round(2 * (float(child) - 0.1) * 1000) / 2
        if exact > -100:  # clipped ones, if any, tell nothing
            for role, individual in enumerate(made_of[exact]):
                counts[individual, role] += 1
    assert counts.sum() == 3 * 1500
    # each of the five has each of the three roles 300 times, give or take four deviations of 15.5
    assert (np.abs(counts - 300) < 62).all()


@pytest.mark.slow
def test_fitness_never_falls_and_certainty_ends_the_search():
    model, images, labels = problem()
    made = one_pixel(sets.L0(16), pixels=5, population=20, generations=30, chunk=20)
    goal, keys = Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, np.arange(len(images)))
    model = Classifier(tiny.dense_net, jax.tree.map(lambda leaf: 3 * leaf, model.params))

    @jax.jit
    def fitness(model):
        def step(states, _):
            states = engine.advance(made, model, states, stop="never", gradient=False)
            return states, (states.memory.fitness, states.memory.over)

        return jax.lax.scan(step, engine.begin(made, jnp.asarray(images), goal, keys, model(images), 0), length=31)[1]

    values, over = (np.asarray(value) for value in fitness(model))
    assert (np.diff(values, axis=0) >= 0).all()
    assert over.any()
    # over exactly where the true class is below 5 %
    np.testing.assert_array_equal(over[-1], np.exp(-values[-1].max(-1)) < 0.05)
    found = attacks.run(made, model, images, labels, key=KEY)
    np.testing.assert_array_equal(np.asarray(found.forwards) < 1 + 20 * 31, over[-2])


@pytest.mark.slow
def test_one_pixel_meets_targets():
    model, images, _ = problem()
    targets = np.argsort(np.asarray(model(images)), -1)[:, -2]
    made = one_pixel(sets.L0(8), pixels=8, population=20, generations=20, chunk=20)
    found = attacks.run(made, model, images, Targeted(targets), key=KEY)
    assert np.asarray(found.success).mean() > 0.5
    np.testing.assert_array_equal(np.asarray(model(found.images).argmax(-1)) == targets, found.success)


def test_corner_search_asks_every_pixel_and_finds_what_there_is():
    model, images, labels = problem(300)
    order = np.argsort(-margins_of(model(images), labels))
    # some at the boundary and some away from it
    images, labels = (values[np.concatenate([order[:6], order[100:106]])] for values in (images, labels))
    every = np.array([margins(singles(model, x), label).max() for x, label in zip(images, labels, strict=True)])
    found = attacks.run(corner_search(sets.L0(1), queries=1000, chunk=10), model, images, labels, key=KEY)
    assert 0 < (every > 0).sum() < len(images)
    np.testing.assert_array_equal(found.success, every > 0)
    assert (np.asarray(found.size)[every > 0] == 1).all()
    # 64 changes, of which the seventh chunk holds four; success ends a search earlier
    np.testing.assert_array_equal(np.asarray(found.forwards)[every <= 0], 1 + 64)
    early = np.asarray(found.forwards)[every > 0] - 1
    assert ((early % 10 == 0) | (early == 64)).all()


@pytest.mark.slow
def test_corner_search_combines_the_best():
    """On a linear model the best k changes together are the best of k pixels."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(32, 2)).astype(np.float32)
    images = rng.uniform(0.3, 0.7, (4, *SHAPE)).astype(np.float32)
    gains = np.maximum((weights[:, 1] - weights[:, 0]) * (1 - images.reshape(4, -1)), 0)
    gains += np.maximum((weights[:, 0] - weights[:, 1]) * images.reshape(4, -1), 0)
    gains = -np.sort(-gains.reshape(4, 16, 2).sum(-1))
    clean = images.reshape(4, -1) @ (weights[:, 1] - weights[:, 0])
    # the second best change alone does not do, the three best do
    bias = np.array([np.max(clean) + gains[:, :2].sum(1).min() * 0.98, 0], np.float32)
    model = Classifier(tiny.linear, (jnp.asarray(weights), jnp.asarray(bias)))
    needed = (np.cumsum(gains, 1) <= (bias[0] - clean)[:, None]).sum(1) + 1
    assert needed.min() == 2
    assert needed.max() > 2
    labels = np.zeros(4, np.int32)
    made = corner_search(sets.L0(8), queries=20_000, best=16, samples=400, chunk=100)
    found = attacks.run(made, model, images, labels, key=KEY)
    assert found.success.all()
    assert (np.asarray(found.size) >= needed).all()
    assert (np.asarray(found.size) <= needed + 1).all(), (found.size, needed)
    # levels come one after the other: 64 single pixels, then 400 samples for each of two classes
    forwards = np.asarray(found.forwards) - 1
    assert (forwards > 64 + (np.asarray(found.size) - 2) * 800).all()


@pytest.mark.slow
def test_corner_search_spends_its_budget_and_no_more():
    model, images, _ = problem(3, scale=0.01)
    model = Classifier(lambda params, x: tiny.dense_net(params, x) + jnp.asarray([99.0, 0, 0, 0])[None], model.params)
    labels = np.zeros(3, np.int32)
    for ball, queries, spent in ((sets.L0(3), 207, 207), (sets.L0(3), 40, 40), (sets.L0(2), 999, 64 + 4 * 30)):
        made = corner_search(ball, queries=queries, best=5, samples=30, chunk=25)
        found = attacks.run(made, model, images, labels, key=KEY)
        assert not found.success.any()
        np.testing.assert_array_equal(found.forwards, 1 + spent)


@pytest.mark.slow
def test_float64():
    with jax.enable_x64(True):
        model = Classifier(tiny.linear, (jnp.asarray(np.random.default_rng(0).normal(size=(32, 3))), jnp.zeros(3)))
        images = np.random.default_rng(1).random((2, *SHAPE))
        labels = np.asarray(model(images).argmax(-1))
        for made in (
            one_pixel(sets.L0(1), population=6, generations=2, chunk=3),
            corner_search(sets.L0(2), queries=120, samples=10),
        ):
            assert attacks.run(made, model, images, labels, key=KEY).images.dtype == np.float64


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="set must be L0 by pixel; got L0 by coordinate"):
        one_pixel(sets.L0(1, "coordinate"))
    with pytest.raises(ValueError, match="chunk must divide the population of 10; got 4"):
        one_pixel(sets.L0(1), population=10, chunk=4)
    with pytest.raises(ValueError, match="population must be >= 4; got 3"):
        one_pixel(sets.L0(1), population=3)
    with pytest.raises(TypeError, match="set must be L0 or L0Linf by pixel; got L1"):
        corner_search(sets.L1(1.0))
    with pytest.raises(ValueError, match="samples must be >= 1; got 0"):
        corner_search(sets.L0(1), samples=0)
    model, images, labels = problem(2)
    with pytest.raises(ValueError, match=r"the criterion must be Misclassified for corner_search, .*got Targeted"):
        attacks.run(corner_search(sets.L0(1), queries=10), model, images, Targeted(1 - labels % 2), key=KEY)
