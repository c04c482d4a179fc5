"""Sparse sets against enumeration of all supports, and the group ball against a general-purpose solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust.sets import L1
from jaxrobust.sets.sparse import L0, GroupL20, GroupL21, L0Linf, first_largest, group_sums, spread, whole
from tests.compiled import call, compiled
from tests.references import sparse

# some radii are such as nobody would mean
pytestmark = pytest.mark.filterwarnings("ignore:.* of radius .* holds")

HARD = {
    "pixel": (lambda k: L0(k), 1, np.inf),
    "coordinate": (lambda k: L0(k, "coordinate"), 0, np.inf),
    "pixel and bound": (lambda k: L0Linf(k, 0.3), 1, 0.3),
    "coordinate and bound": (lambda k: L0Linf(k, 0.3, "coordinate"), 0, 0.3),
    "blocks": (lambda k: GroupL20(k, 2), 2, np.inf),
}

_samples = compiled(lambda s, keys, x: jax.vmap(s.sample, (0, None))(keys, x))
_group_sums = compiled(group_sums, static_argnums=1)


@compiled
def _project(s, x, theta):
    """The projection, whether it is a member, and its size."""
    near = s.project(x, theta)
    return near, s.contains(x, near), s.size(x, near)


def project(s, x, theta):
    return _project(s, x, theta)[0]


def maximise(s, x, g):
    return call(s, "maximise", x, g)


def size(s, x, theta):
    return call(s, "size", x, theta)


@functools.cache
def keys(count):
    return jax.random.split(jax.random.key(0), count)


def problem(seed, shape):
    rng = np.random.default_rng(seed)
    x = rng.random(shape)
    if seed % 3 == 0:
        x = np.round(x)
    z = rng.normal(size=shape) * 10.0 ** rng.uniform(-1, 0.7)
    if seed % 4 == 0:
        z = np.round(z)  # equal gains
    return x, z


@pytest.mark.parametrize("kind", HARD)
def test_projection_equals_enumeration(kind):
    make, side, bound = HARD[kind]
    shape = (2, 4, 1) if side != 2 else (3, 5, 2)  # at most 8 groups
    with jax.enable_x64(True):
        for seed in range(25):
            x, z = problem(seed, shape)
            count = seed % 5
            ours = project(make(count), x, z)
            cost, theirs = sparse.project(z, x, side, count, bound)
            np.testing.assert_allclose(np.sum((ours - z) ** 2), cost, rtol=1e-12)
            if seed % 4 and seed % 3:  # without ties the point is the same
                np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("kind", HARD)
def test_maximiser_equals_enumeration(kind):
    make, side, bound = HARD[kind]
    shape = (2, 4, 1) if side != 2 else (3, 5, 2)
    with jax.enable_x64(True):
        for seed in range(15):
            x, g = problem(seed, shape)
            best = maximise(make(seed % 5), x, g)
            np.testing.assert_allclose(np.sum(g * best), sparse.maximise(g, x, side, seed % 5, bound), rtol=1e-12)


def test_ties_go_to_the_lowest_index_and_never_keep_more():
    x = np.full((2, 3, 1), 0.5, np.float32)
    kept = project(L0(2), x, np.full_like(x, 0.2))
    np.testing.assert_array_equal(kept.reshape(-1) != 0, [True, True, False, False, False, False])


@pytest.mark.parametrize(
    ("radius", "count"), [(0, 0), (0.99, 0), (2.5, 2), (3, 3), (100, 6), (1e30, 6), (np.float32(0.29) * 100, 6)]
)
def test_fractions_count_as_their_floor(radius, count):
    x, theta = np.full((2, 3, 1), 0.5, np.float32), np.arange(1, 7, dtype=np.float32).reshape(2, 3, 1) / 20
    kept, inside, found = _project(L0(radius), x, theta)
    assert int(found) == count
    assert inside
    if count < 6:
        kept = kept.copy()
        kept[0, 0, 0] = 0.1
        assert not call(L0(radius), "contains", x, kept)


def test_whole_forgives_rounding():
    rounded = compiled(whole, static_argnums=1)
    assert int(rounded(np.float32(0.29) * np.float32(100), 1000)) == 29
    assert int(rounded(np.float32(28.99), 1000)) == 28


def test_pixels_and_coordinates_are_counted_differently():
    x, theta = np.full((2, 2, 3), 0.5, np.float32), np.zeros((2, 2, 3), np.float32)
    theta[0, 0], theta[1, 1, 2] = 0.1, -0.1
    assert size(L0(1), x, theta) == 2
    assert size(L0(1, "coordinate"), x, theta) == 4
    assert size(GroupL20(1, 2), x, theta) == 1


_first_largest = compiled(first_largest)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-30, 1e30]), min_size=9, max_size=9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_first_largest_equals_a_stable_sort(values, count):
    scores = np.asarray(values, np.float32)
    chosen = _first_largest(scores, count)
    expected = np.zeros(len(values), bool)
    expected[np.argsort(-scores, kind="stable")[:count]] = True
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("side", [0, 1, 2, 3, 9])
def test_groups_partition_the_image(side, rng):
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    masks = sparse.blocks(x.shape, side)
    sums = _group_sums(x, side).ravel()
    np.testing.assert_allclose(sums, [x[mask].sum() for mask in masks], rtol=1e-5, atol=1e-6)
    grid = np.arange(sums.size, dtype=np.float32).reshape(_grid(x, side))
    labels = compiled(spread, static_argnums=2)(grid, x, side)
    labels = np.broadcast_to(labels, x.shape)
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(labels == i, mask)


def _grid(x, side):
    return x.shape if side == 0 else (-(-x.shape[0] // side), -(-x.shape[1] // side), 1)


@pytest.mark.parametrize("kind", ["pixel", "coordinate and bound", "blocks"])
def test_starts_are_corners_on_distinct_groups(kind):
    """Exactly k groups, colours black or white; and every group is chosen about equally often."""
    make, side, bound = HARD[kind]
    x = np.full((4, 4, 2), 0.4, np.float32)
    theta = _samples(make(2), keys(600), x)
    masks = np.stack(sparse.blocks(x.shape, side))
    touched = (theta[:, None] != 0) & masks[None]
    assert (touched.any((2, 3, 4)).sum(1) == 2).all()
    values = np.unique(np.round(theta[theta != 0], 5))
    np.testing.assert_allclose(values, [-min(0.4, bound), min(0.6, bound)], atol=1e-5)
    frequency = touched.any((2, 3, 4)).mean(0)
    expected = 2 / len(masks)
    assert np.abs(frequency - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 600) + 1e-9


def test_steps_reach_across_the_range():
    rng = np.random.default_rng(0)
    x, g = np.full((4, 4, 2), 0.5, np.float32), (rng.normal(size=(4, 4, 2)) * 1e-30).astype(np.float32)
    step = call(L0(3), "ascend", x, np.zeros_like(x), g, np.float32(0.7))
    np.testing.assert_allclose(np.abs(step).max(), 0.7, rtol=1e-6)
    np.testing.assert_allclose(step, 0.7 * g / np.abs(g).max(), rtol=1e-5)


def test_a_traced_bound_does_not_retrace():
    x = np.full((3, 3, 1), 0.5, np.float32)
    project = jax.jit(lambda k, bound, x: L0Linf(k, bound).project(x, jnp.ones_like(x)))
    for bound in (0.1, 0.3):
        assert float(np.max(project(2.0, bound, x))) == pytest.approx(bound)
    assert project._cache_size() == 1


def ball_problem(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((3, 2, 2))  # a block of eight coordinates and one of four
    if seed % 4 == 0:
        x = np.round(x)
    z = rng.normal(size=x.shape) * 10.0 ** rng.uniform(-1, 0.7)
    if seed % 5 == 0:
        z[2] = 0
    return x, z, 10.0 ** rng.uniform(-1.3, 0.5)


def test_group_ball_projection_equals_alternating_projections():
    with jax.enable_x64(True):
        for seed in range(30):
            x, z, radius = ball_problem(seed)
            ours = project(GroupL21(radius), x, z)
            theirs = sparse.group_ball(z, x, 2, radius)
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
            sizes = [np.sqrt(np.sum(ours[mask] ** 2)) for mask in sparse.blocks(x.shape, 2)]
            assert np.sum(sizes) <= radius * (1 + 1e-12)


def test_group_ball_projection_meets_the_variational_inequality():
    with jax.enable_x64(True):
        for seed in range(20):
            x, z, radius = ball_problem(seed)
            ball = GroupL21(radius)
            nearest, others = project(ball, x, z), _samples(ball, keys(50), x)
            assert np.einsum("hwc,nhwc->n", z - nearest, others - nearest).max() <= 1e-9


def test_group_ball_is_block_soft_thresholding_where_the_box_is_far():
    """Duchi's projection of the vector of block norms, every block rescaled to its new norm."""
    rng = np.random.default_rng(0)
    x, z = np.full((4, 6, 2), 0.5), rng.normal(size=(4, 6, 2)) * 0.05
    norms = np.sqrt(_group_sums(z**2, 2)).ravel().astype(float)
    ordered = np.sort(norms)[::-1]
    excess = (np.cumsum(ordered) - 0.3) / np.arange(1, norms.size + 1)
    threshold = excess[np.flatnonzero(ordered > excess)[-1]]
    scale = np.maximum(1 - threshold / norms, 0).reshape(2, 3).repeat(2, 0).repeat(2, 1)[:, :, None]
    ours = project(GroupL21(0.3), x.astype(np.float32), z.astype(np.float32))
    np.testing.assert_allclose(ours, scale * z, atol=2e-7)


def test_blocks_of_one_coordinate_are_the_l1_ball():
    for seed in range(8):
        x, z, radius = ball_problem(seed)
        x, z = (v[:, :, :1].astype(np.float32) for v in (x, z))
        group, plain = GroupL21(radius, 1), L1(radius)
        np.testing.assert_allclose(project(group, x, z), project(plain, x, z), atol=3e-6)
        np.testing.assert_allclose(np.vdot(z, maximise(group, x, z)), np.vdot(z, maximise(plain, x, z)), rtol=1e-5)


def test_group_ball_float32_projection_is_near_float64():
    for seed in range(20):
        x, z, radius = ball_problem(seed)
        single = project(GroupL21(radius), x.astype(np.float32), z.astype(np.float32))
        with jax.enable_x64(True):
            double = project(GroupL21(radius), x, z)
        np.testing.assert_allclose(single, double, atol=5e-6 * max(1, radius))


def test_group_ball_maximiser_is_stationary():
    """δ maximises <g, ·> over a convex set if and only if the projection of δ + g is δ."""
    with jax.enable_x64(True):
        for seed in range(20):
            x, g, radius = ball_problem(seed)
            best = maximise(GroupL21(radius), x, g)
            np.testing.assert_allclose(project(GroupL21(radius), x, best + g), best, atol=1e-9)
            np.testing.assert_allclose(sparse.group_ball(best + g, x, 2, radius), best, atol=1e-5)


def test_group_ball_maximiser_splits_ties():
    """Equal blocks far from the box: any split of the budget earns radius · ‖g_G‖₂, and none may be left over."""
    x, g = np.full((2, 6, 1), 0.5, np.float32), np.ones((2, 6, 1), np.float32)
    best = maximise(GroupL21(0.6), x, g)
    np.testing.assert_allclose(np.vdot(g, best), 0.6 * 2, rtol=1e-5)


def test_group_ball_samples_are_uniform():
    """The mean size of a uniform member is d/(d+1) of the radius, and no block is favoured beyond its dimension."""
    x = np.full((3, 2, 1), 0.5, np.float32)  # blocks of 4 and 2 coordinates
    theta = _samples(GroupL21(0.2), keys(4000), x)
    theta = theta.reshape(4000, 6) / 0.2
    norms = np.stack([np.linalg.norm(theta[:, :4], axis=1), np.linalg.norm(theta[:, 4:], axis=1)], 1)
    sizes = norms.sum(1)
    np.testing.assert_allclose(sizes.mean(), 6 / 7, atol=4 * sizes.std() / np.sqrt(4000))
    np.testing.assert_allclose(norms.mean(0), [4 / 7, 2 / 7], atol=0.02)


def test_group_ball_steepest_ascent_has_the_dual_norm():
    """<g, step> = size · max_G ‖g_G‖₂ for the exact steepest step, which one block takes."""
    rng = np.random.default_rng(0)
    x, g = np.full((4, 4, 2), 0.5, np.float32), rng.normal(size=(4, 4, 2)).astype(np.float32)
    ball = GroupL21(1.0, quantile=1.0)
    step = call(ball, "ascend", x, np.zeros_like(x), g, np.float32(0.3))
    largest = float(np.sqrt(_group_sums(g**2, 2)).max())
    np.testing.assert_allclose(np.vdot(g, step), 0.3 * largest, rtol=1e-5)
    np.testing.assert_allclose(size(ball, x, step), 0.3, rtol=1e-5)
    assert size(GroupL20(1), x, step) == 1
    half = call(GroupL21(1.0, quantile=0.5), "ascend", x, np.zeros_like(x), g, np.float32(0.3))
    assert size(GroupL20(1), x, half) == 2
    np.testing.assert_allclose(size(ball, x, half), 0.3, rtol=1e-5)


def test_group_ball_size_has_a_finite_gradient_at_zero():
    x = np.full((4, 4, 1), 0.5, np.float32)
    assert np.isfinite(compiled(jax.grad(lambda t, x: GroupL21(1.0).size(x, t)))(np.zeros_like(x), x)).all()


@given(
    seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e4), radius=st.floats(1e-3, 1e2), block=st.sampled_from([1, 2])
)
@settings(max_examples=40, deadline=None)
def test_group_ball_projection_is_feasible_and_does_not_expand(seed, scale, radius, block):
    rng = np.random.default_rng(seed)
    x = np.round(rng.random((3, 3, 1)), rng.integers(0, 3)).astype(np.float32)
    first, second = ((rng.normal(size=x.shape) * scale).astype(np.float32) for _ in range(2))
    (a, a_inside, *_), (b, b_inside, *_) = (_project(GroupL21(radius, block), x, theta) for theta in (first, second))
    assert a_inside
    assert b_inside
    assert float(np.linalg.norm(a - b)) <= float(np.linalg.norm(first - second)) * (1 + 1e-4) + 1e-5


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e4),
    radius=st.floats(0, 20),
    kind=st.sampled_from(sorted(HARD)),
)
@settings(max_examples=60, deadline=None)
def test_hard_thresholds_are_feasible_and_idempotent(seed, scale, radius, kind):
    rng = np.random.default_rng(seed)
    x = np.round(rng.random((3, 3, 2)), rng.integers(0, 3)).astype(np.float32)
    made = HARD[kind][0](radius)
    once, inside, _ = _project(made, x, (rng.normal(size=x.shape) * scale).astype(np.float32))
    assert inside
    np.testing.assert_array_equal(project(made, x, once), once)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: L0(-1), ValueError, "radius must be finite and >= 0; got -1"),
        (lambda: L0Linf(3, -0.1), ValueError, "bound must be finite and >= 0"),
        (lambda: L0Linf(3, "0.1"), TypeError, "bound must be a real number"),
        (lambda: GroupL20(3, 0), ValueError, "block must be >= 1; got 0"),
        (lambda: GroupL20(3, True), TypeError, "block must be an integer"),
        (lambda: GroupL21(3, 2, quantile=1.5), ValueError, "quantile must be finite and in"),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_text():
    assert [str(s) for s in (L0(5), L0(5, "coordinate"), L0Linf(5, 0.1), GroupL20(2), GroupL21(0.5))] == [
        "L0(5)",
        "L0 by coordinate(5)",
        "L0Linf(5)",
        "GroupL20(2)",
        "GroupL21(0.5)",
    ]
