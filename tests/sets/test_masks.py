"""Patches against all places by brute force, and fixed supports against solvers on the support alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks
from jaxrobust.sets import L1, L2, Linf
from jaxrobust.sets.combine import Union
from jaxrobust.sets.masks import Masked, Patch
from jaxrobust.sets.sparse import L0, GroupL21, L0Linf
from jaxrobust.sets.spatial import Flow
from tests import tiny
from tests.compiled import call, compiled
from tests.references import lp, sparse

# some radii are such as nobody would mean
pytestmark = pytest.mark.filterwarnings("ignore:.* of radius .* holds")

_extremes = compiled(lambda s, x, z: (s.project(x, z), s.maximise(x, z)))
_samples = compiled(lambda s, keys, x: jax.vmap(s.sample, (0, None))(keys, x))

MASK = np.array([[1, 0, 1], [0, 1, 1]], bool)[:, :, None]


@pytest.mark.parametrize("shape", [(5, 4, 2), (3, 7, 1)])
def test_patch_projection_and_maximiser_equal_brute_force(shape):
    with jax.enable_x64(True):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            x, side = rng.random(shape), seed % 6
            if seed % 4 == 0:
                x = np.round(x)
            z = rng.normal(size=shape) * 10.0 ** rng.uniform(-1, 0.5)
            clipped = np.clip(z, -x, 1 - x)
            gain, _ = sparse.patch(z**2 - (z - clipped) ** 2, side)
            ours, best = _extremes(Patch(side), x, z)
            np.testing.assert_allclose(np.sum((ours - z) ** 2), np.sum(z**2) - gain, rtol=1e-12)
            value, mask = sparse.patch(np.maximum(z * (1 - x), -z * x), side)
            np.testing.assert_allclose(np.sum(z * best), value, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(best, np.where(mask, np.where(z > 0, 1 - x, -x), 0))


def test_patch_size_is_the_side_of_the_smallest_square():
    x, theta = np.full((5, 6, 2), 0.5, np.float32), np.zeros((5, 6, 2), np.float32)
    theta[1, 2, 0] = 0.1
    assert call(Patch(3), "size", x, theta) == 1
    theta[3, 5, 1] = -0.1
    assert call(Patch(3), "size", x, theta) == 4
    assert call(Patch(4), "contains", x, theta)
    assert not call(Patch(3.9), "contains", x, theta)
    theta[1, 2, 0] = 0.6
    assert not call(Patch(5), "contains", x, theta)


def test_patch_keeps_a_member_with_faint_edges():
    """Sums of gains cannot tell a window that misses a change of 1e-5 from one that holds it; members stay whole."""
    x, theta = np.full((6, 6, 1), 0.5, np.float32), np.zeros((6, 6, 1), np.float32)
    theta[2:4, 2:4], theta[4, 4] = 0.5, 1e-5
    np.testing.assert_array_equal(call(Patch(3), "project", x, theta), theta)


def test_patch_starts_are_uniform_over_places():
    x = np.full((4, 3, 1), 0.5, np.float32)
    theta = _samples(Patch(2), jax.random.split(jax.random.key(0), 1200), x)[..., 0] != 0
    assert (theta.sum((1, 2)) == 4).all()
    corners = np.array([np.argwhere(t)[0] for t in theta])
    counts = np.array([[(corners == (i, j)).all(1).sum() for j in range(2)] for i in range(3)])
    assert counts.sum() == 1200
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


@pytest.mark.parametrize("side", [5, 7, 1e6])
def test_a_patch_longer_than_the_image_covers_it(side):
    x = np.full((4, 5, 1), 0.5, np.float32)
    np.testing.assert_allclose(call(Patch(side), "project", x, np.ones_like(x)), 0.5)


@pytest.mark.parametrize(("norm", "ball"), [("linf", Linf), ("l2", L2), ("l1", L1)])
def test_masked_projection_is_the_ball_of_the_support(norm, ball):
    """Against a solver that knows only the coordinates of the support."""
    inside = np.broadcast_to(MASK, (2, 3, 2))
    with jax.enable_x64(True):
        for seed in range(8):
            rng = np.random.default_rng(seed)
            x, z, radius = rng.random((2, 3, 2)), rng.normal(size=(2, 3, 2)), 10.0 ** rng.uniform(-1.5, 0.3)
            ours, best = _extremes(Masked(ball(radius), MASK), x, z)
            assert (ours[~inside] == 0).all()
            theirs = lp.project(z[inside], x[inside], norm, radius)
            np.testing.assert_allclose(ours[inside], theirs, atol=2e-5)
            assert (best[~inside] == 0).all()
            value = lp.maximise(z[inside], x[inside], norm, radius)
            np.testing.assert_allclose(np.sum(z * best), value, rtol=1e-5)


@compiled
def _points(restricted, x, g):
    """Some members from every method that makes one, and whether they are members."""
    stepped = restricted.ascend(x, restricted.init(x), g, jnp.asarray(0.5))
    samples = jax.vmap(restricted.sample, (0, None))(jax.random.split(jax.random.key(0), 5), x)
    made = [restricted.project(x, 3 * g), restricted.maximise(x, g), restricted.project(x, stepped)]
    points = jnp.concatenate([samples, jnp.stack(made)])
    return points, jax.vmap(restricted.contains, (None, 0))(x, points)


@pytest.mark.parametrize(
    "inner",
    [
        L0(2),
        GroupL21(0.5),
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in (L0Linf(2, 0.2, "coordinate"), Patch(2), Masked(Linf(0.1), MASK))
        ),
    ],
    ids=str,
)
def test_masked_sets_stay_in_the_support(inner):
    rng = np.random.default_rng(0)
    x, g = ((rng.random((2, 3, 2)) - shift).astype(np.float32) for shift in (0, 0.5))
    points, members = _points(Masked(inner, MASK), x, g)
    outside = ~np.broadcast_to(MASK, x.shape)
    assert members.all()
    assert (points[:, outside] == 0).all()
    assert (np.abs(points[-3:]).max((1, 2, 3)) > 0).all()
    assert not call(Masked(inner, MASK), "contains", x, np.where(outside, np.float32(1e-3), np.float32(0)))


def test_masked_sparse_starts_use_the_whole_budget():
    x = np.full((5, 5, 1), 0.4, np.float32)
    mask = np.zeros((5, 5, 1), bool)
    mask[:2] = True
    theta = _samples(Masked(L0(3), mask), jax.random.split(jax.random.key(0), 50), x)
    assert ((theta != 0).sum((1, 2, 3)) == 3).all()


@pytest.mark.parametrize("ball", [L2, L1])
def test_masked_samples_are_uniform_in_the_support(ball):
    """The mean size of a uniform member is d/(d+1) of the radius with d the dimension of the support."""
    x = np.full((2, 3, 2), 0.5, np.float32)
    restricted = Masked(ball(0.2), MASK)
    theta = _samples(restricted, jax.random.split(jax.random.key(0), 3000), x)
    sizes = np.linalg.norm(theta.reshape(3000, -1), 2 if ball is L2 else 1, axis=1) / 0.2
    np.testing.assert_allclose(sizes.mean(), 8 / 9, atol=4 * sizes.std() / np.sqrt(3000))


def test_the_mask_is_traced():
    x = np.full((2, 3, 1), 0.5, np.float32)
    project = jax.jit(lambda mask, x: Masked(Linf(0.1), mask).project(x, jnp.ones_like(x)))
    for mask in (MASK, ~MASK):
        np.testing.assert_allclose(project(mask, x), np.where(mask, 0.1, 0), atol=1e-7)
    assert project._cache_size() == 1


def test_numbers_and_booleans_are_the_same_mask():
    x = np.full((2, 3, 1), 0.5, np.float32)
    expected = call(Masked(Linf(0.1), MASK), "project", x, np.ones_like(x))
    for mask in (MASK, MASK.astype(np.float32), MASK.astype(np.uint8), jnp.asarray(MASK, jnp.float32)):
        found = call(Masked(Linf(0.1), mask), "project", x, np.ones_like(x))
        np.testing.assert_array_equal(found, expected)


def test_attacks_run_on_a_frame():
    network = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(network)
    frame = np.ones((*tiny.SHAPE[:2], 1), bool)
    frame[1:-1, 1:-1] = False
    found = attacks.run(attacks.pgd(Masked(Linf(1.0), frame), steps=5), network, images, labels, key=jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(found.images)[:, 1:-1, 1:-1], images[:, 1:-1, 1:-1])
    assert found.success[:-1].any()


@pytest.mark.parametrize("inner", [Flow(), Union((Linf(0.1),)), Linf, "linf"])
def test_other_sets_are_refused(inner):
    with pytest.raises(TypeError, match="set must be an lp ball, a sparse set, a patch"):
        Masked(inner, MASK)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 1), (2, 3, 3), (1, 2, 3, 1)])
def test_a_mask_that_does_not_fit_is_refused(shape):
    x = jnp.asarray(np.full((2, 3, 2), 0.5), jnp.float32)
    with pytest.raises(ValueError, match="mask must have shape"):
        Masked(Linf(0.1), np.ones(shape, bool)).project(x, x)


def test_text_and_radius():
    restricted = Masked(L2(0.5), MASK)
    assert str(restricted) == "masked L2(0.5)"
    assert restricted.with_radius(0.25).radius == 0.25
    with pytest.raises(ValueError, match="radius must be finite and >= 0; got -1"):
        restricted.with_radius(-1)
