"""Sparse-RS: its schedule, what its proposals change, what it accepts, and what it counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.queries.sparse_rs import _painted, sparse_rs
from jaxrobust.types import Classifier, Misclassified, Targeted
from tests import tiny

KEY = jax.random.key(13)
SHAPE = (9, 7, 2)
QUERIES = 60


def frame(width=1):
    mask = np.ones((*SHAPE[:2], 1), bool)
    mask[width:-width, width:-width] = False
    return mask


ON = {
    "pixels": lambda: sets.L0(6),
    "all pixels": lambda: sets.L0(63),
    "masked": lambda: sets.Masked(sets.L0(5), frame()),
    "frame": lambda: sets.Masked(sets.Linf(1.0), frame()),
    "faint frame": lambda: sets.Masked(sets.Linf(0.2), frame()),
    "patch": lambda: sets.Patch(4),
}
FEW = {"pixels", "patch"}
CASES = [pytest.param(name, id=name, marks=[] if name in FEW else [pytest.mark.slow]) for name in ON]


@functools.cache
def setting():
    """A network that is hard to mislead, so that a search goes on."""
    params = tiny.dense_params(0, SHAPE)
    model = Classifier(shifted, params)
    images = np.random.default_rng(2).random((4, *SHAPE)).astype(np.float32)
    return model, images, np.zeros(4, np.int32)


def shifted(params, images):
    return tiny.dense_net(params, images) + jnp.asarray([200.0, 0, 0, 0])[None]


@functools.cache
def followed(name):
    """The points asked, the losses told and the places, ask by ask."""
    model, images, labels = setting()
    attack = sparse_rs(ON[name](), queries=QUERIES)
    goal, keys = Misclassified(jnp.asarray(labels)), attacks.example_keys(KEY, np.arange(len(images)))

    @jax.jit
    def follow(model):
        def step(states, _):
            points, current = jax.vmap(attack.ask)(states)[:, 0], states.memory.current
            states = engine.advance(attack, model, states, stop="never", gradient=False)
            return states, (points, jax.vmap(attack.loss_of)(states), states.memory.loss, current)

        return jax.lax.scan(
            step, engine.begin(attack, jnp.asarray(images), goal, keys, model(images), 0), length=QUERIES
        )[1]

    return attack, [jax.tree.map(np.asarray, part) for part in follow(model)]


def test_the_schedule_is_the_published_one():
    its = [0, 1, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6000, 6001, 8000, 8001]
    pixels = [1, 2, 2, 4, 4, 5, 5, 6, 6, 8, 8, 10, 10, 12, 12, 15, 15, 20]
    attack = sparse_rs(sets.L0(150), share=0.3)
    found = [float(attack.share_at(jnp.asarray(it, jnp.int32))) for it in its]
    np.testing.assert_allclose(found, 0.3 / np.array(pixels), rtol=1e-6)
    its = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 8000, 8001]
    squares = [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32, 32, 32, 64, 64, 128]
    attack = sparse_rs(sets.Patch(20))
    found = [float(attack.share_at(jnp.asarray(it, jnp.int32))) for it in its]
    np.testing.assert_allclose(found, 0.4 / np.array(squares), rtol=1e-6)


@pytest.mark.parametrize("queries", [77, 12_345])
def test_the_schedule_is_stretched_to_the_budget(queries):
    its = np.unique(np.linspace(0, queries - 1, 60).astype(int))
    stretched, fixed = sparse_rs(sets.L0(5), queries=queries), sparse_rs(sets.L0(5), queries=queries)
    fixed = dataclasses.replace(fixed, rescale_schedule=False)
    at = jax.vmap(lambda attack, it: attack.share_at(it), (None, 0))
    np.testing.assert_allclose(
        at(stretched, its.astype(np.int32)), at(fixed, (its * 10_000 // queries).astype(np.int32)), rtol=1e-6
    )


@pytest.mark.parametrize("name", CASES)
def test_a_better_proposal_is_taken_and_no_other(name):
    _, (_, told, kept, _) = followed(name)
    assert (np.diff(kept, axis=0) >= 0).all()
    np.testing.assert_allclose(kept, np.maximum.accumulate(told, 0))
    assert (kept[-1] > kept[0]).all()


@pytest.mark.parametrize("name", CASES)
def test_every_point_asked_is_a_member_at_the_corners(name):
    attack, (points, _, _, _) = followed(name)
    _, images, _ = setting()
    deltas = points - images[None]
    inside = jax.vmap(jax.vmap(attack.set.contains), (None, 0))(images, np.where(np.abs(deltas) < 1e-6, 0, deltas))
    assert inside.all()
    changed = np.abs(deltas) > 1e-6
    if name == "faint frame":
        expected = np.clip(images + 0.2 * np.sign(deltas), 0, 1)
        np.testing.assert_allclose(points[changed], expected[changed], atol=1e-6)
    else:
        assert np.isin(np.round(points[changed], 6), [0, 1]).all()


def test_pixels_are_exchanged_by_the_schedule():
    attack, (points, _, _, (_, taken)) = followed("pixels")
    _, images, _ = setting()
    assert (taken.sum((2, 3, 4)) == 6).all()
    for it in range(1, QUERIES):
        moved = max(int(float(attack.share_at(jnp.asarray(it, jnp.int32))) * 6 + 1e-6), 1)
        # the proposal against where the search stood: at most `moved` pixels go back and as many come
        stood = (np.abs(points[it] - images) > 1e-6).any(-1) & ~taken[it][..., 0]
        assert (stood.sum((1, 2)) <= moved).all()
        # a single one comes with a colour that is not its own
        if moved == 1:
            assert (stood.sum((1, 2)) == 1).all()


def test_a_patch_moves_every_fourth_time_by_ever_less():
    _, (_, _, _, (patches, corners)) = followed("patch")
    moved = (np.diff(corners, axis=0) != 0).any(-1)
    painted = (np.diff(patches, axis=0) != 0).any((2, 3, 4))
    # place i is that before query i is told, so a change from i to i + 1 was proposed for query i
    left = 0.75 * (1 - np.arange(QUERIES - 1) / QUERIES)
    reach = np.floor(left[:, None] * np.array(SHAPE[:2]))
    # at the end no move is left, and it paints at every turn
    turns = (np.arange(QUERIES - 1) % 4 == 0) & (reach.max(1) > 0)
    assert 0 < turns.sum() < QUERIES // 4
    assert not moved[~turns].any()
    assert not painted[1:][turns[1:]].any()
    assert moved[1:].any()
    assert painted.any()
    assert (corners >= 0).all()
    assert (corners <= np.array(SHAPE[:2]) - 4).all()
    assert (np.abs(np.diff(corners, axis=0)) <= reach[:, None])[1:].all()


def test_squares_are_painted_inside_the_patch():
    patch, draws = jnp.zeros((6, 5, 2)), np.random.default_rng(0).random((200, 4)).astype(np.float32)
    for size in (1, 2, 4):
        painted = jax.vmap(lambda d, size=size: _painted(patch, jnp.asarray(4), jnp.asarray(size), d))(draws)
        painted = np.asarray(painted)
        assert (painted[:, 4:] == 0).all()
        assert (painted[:, :, 4:] == 0).all()
        number = painted.any(-1).sum((1, 2))
        # white in one channel at least for a single pixel, which was black
        assert (number == size**2).all() if size == 1 else np.isin(number, [0, size**2]).all()
        places = {tuple(np.argwhere(p.any(-1))[0]) for p in painted if p.any()}
        assert len(places) == (4 - size + 1) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_queries_are_counted(name):
    model, images, labels = setting()
    found = attacks.run(sparse_rs(ON[name](), queries=12, restarts=2), model, images, labels, key=KEY)
    np.testing.assert_array_equal(found.forwards, 1 + 24)
    np.testing.assert_array_equal(found.backwards, 0)


@pytest.mark.slow
def test_targets_are_met(rng):
    model = tiny.linear_classifier(rng, scale=0.5)
    images = rng.random((4, *tiny.SHAPE)).astype(np.float32)
    targets = (np.asarray(model(images).argmax(-1)) + 1) % tiny.CLASSES
    made = sparse_rs(sets.L0(15), queries=150, loss="cross_entropy", share=0.1)
    found = attacks.run(made, model, images, Targeted(targets), key=KEY)
    assert found.success.all()
    np.testing.assert_array_equal(model(found.images).argmax(-1), targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON)
def test_float64(name):
    with jax.enable_x64(True):
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(126, 3)))
        model = Classifier(tiny.linear, (weights, jnp.zeros(3)))
        images = np.random.default_rng(1).random((2, *SHAPE))
        labels = np.asarray(model(images).argmax(-1))
        found = attacks.run(sparse_rs(ON[name](), queries=5), model, images, labels, key=KEY)
        assert found.images.dtype == np.float64


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="set must be L0 by pixel, Patch, or Masked"):
        sparse_rs(sets.L0(3, "coordinate"))
    with pytest.raises(TypeError, match="set must be L0 by pixel, Patch, or Masked"):
        sparse_rs(sets.Linf(0.1))
    with pytest.raises(ValueError, match="queries must be >= 1; got 0"):
        sparse_rs(sets.L0(3), queries=0)
    with pytest.raises(ValueError, match=r"share must be finite and in \[0, 1\]; got 1.5"):
        sparse_rs(sets.Patch(3), share=1.5)
    with pytest.raises(ValueError, match="move_every must be >= 1; got 0"):
        sparse_rs(sets.Patch(3), move_every=0)
