"""Sparse sets against enumeration of all supports, and the group ball against a general-purpose solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust.sets import L1
from jaxrobust.sets.sparse import L0, GroupL20, GroupL21, L0Linf, first_largest, group_sums, spread, whole
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

_project = jax.jit(lambda s, x, theta: s.project(x, theta))
_maximise = jax.jit(lambda s, x, g: s.maximise(x, g))
_samples = jax.jit(lambda s, keys, x: jax.vmap(s.sample, (0, None))(keys, x))
KEYS = jax.random.split(jax.random.key(0), 50)


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
            ours = np.asarray(_project(make(count), jnp.asarray(x), jnp.asarray(z)))
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
            best = np.asarray(_maximise(make(seed % 5), jnp.asarray(x), jnp.asarray(g)))
            np.testing.assert_allclose(np.sum(g * best), sparse.maximise(g, x, side, seed % 5, bound), rtol=1e-12)


def test_ties_go_to_the_lowest_index_and_never_keep_more():
    x = jnp.full((2, 3, 1), 0.5)
    theta = jnp.full_like(x, 0.2)
    kept = _project(L0(2), x, theta)
    np.testing.assert_array_equal(np.asarray(kept).reshape(-1) != 0, [True, True, False, False, False, False])


@pytest.mark.parametrize(
    ("radius", "count"), [(0, 0), (0.99, 0), (2.5, 2), (3, 3), (100, 6), (1e30, 6), (np.float32(0.29) * 100, 6)]
)
def test_fractions_count_as_their_floor(radius, count):
    x, theta = jnp.full((2, 3, 1), 0.5), jnp.arange(1.0, 7.0).reshape(2, 3, 1) / 20
    kept = _project(L0(radius), x, theta)
    assert int(L0(radius).size(x, kept)) == count
    assert L0(radius).contains(x, kept)
    if count < 6:
        assert not L0(radius).contains(x, kept.at[0, 0, 0].set(0.1))


def test_whole_forgives_rounding():
    assert int(whole(jnp.float32(0.29) * 100, 1000)) == 29
    assert int(whole(jnp.float32(28.99), 1000)) == 28


def test_pixels_and_coordinates_are_counted_differently():
    x = jnp.full((2, 2, 3), 0.5)
    theta = jnp.zeros_like(x).at[0, 0].set(0.1).at[1, 1, 2].set(-0.1)
    assert L0(1).size(x, theta) == 2
    assert L0(1, "coordinate").size(x, theta) == 4
    assert GroupL20(1, 2).size(x, theta) == 1


_first_largest = jax.jit(first_largest)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-30, 1e30]), min_size=9, max_size=9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_first_largest_equals_a_stable_sort(values, count):
    scores = np.asarray(values, np.float32)
    chosen = np.asarray(_first_largest(jnp.asarray(scores), jnp.asarray(count)))
    expected = np.zeros(len(values), bool)
    expected[np.argsort(-scores, kind="stable")[:count]] = True
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("side", [0, 1, 2, 3, 9])
def test_groups_partition_the_image(side, rng):
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    masks = sparse.blocks(x.shape, side)
    sums = np.asarray(group_sums(jnp.asarray(x), side)).ravel()
    np.testing.assert_allclose(sums, [x[mask].sum() for mask in masks], rtol=1e-5, atol=1e-6)
    labels = spread(jnp.arange(float(sums.size)).reshape(_grid(x, side)), jnp.asarray(x), side)
    labels = np.broadcast_to(labels, x.shape)
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(labels == i, mask)


def _grid(x, side):
    return x.shape if side == 0 else (-(-x.shape[0] // side), -(-x.shape[1] // side), 1)


@pytest.mark.parametrize("kind", ["pixel", "coordinate and bound", "blocks"])
def test_starts_are_corners_on_distinct_groups(kind):
    """Exactly k groups, colours black or white; and every group is chosen about equally often."""
    make, side, bound = HARD[kind]
    x = jnp.full((4, 4, 2), 0.4)
    theta = np.asarray(_samples(make(2), jax.random.split(jax.random.key(0), 600), x))
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
    x, g = jnp.full((4, 4, 2), 0.5), jnp.asarray(rng.normal(size=(4, 4, 2)) * 1e-30, jnp.float32)
    step = L0(3).ascend(x, jnp.zeros_like(x), g, jnp.asarray(0.7))
    np.testing.assert_allclose(jnp.abs(step).max(), 0.7, rtol=1e-6)
    np.testing.assert_allclose(step, 0.7 * g / np.abs(g).max(), rtol=1e-5)


def test_a_traced_bound_does_not_retrace():
    x = jnp.full((3, 3, 1), 0.5)
    project = jax.jit(lambda k, bound: L0Linf(k, bound).project(x, jnp.ones_like(x)))
    for bound in (0.1, 0.3):
        assert float(project(2.0, bound).max()) == pytest.approx(bound)
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
            ours = np.asarray(_project(GroupL21(radius), jnp.asarray(x), jnp.asarray(z)))
            theirs = sparse.group_ball(z, x, 2, radius)
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
            sizes = [np.sqrt(np.sum(ours[mask] ** 2)) for mask in sparse.blocks(x.shape, 2)]
            assert np.sum(sizes) <= radius * (1 + 1e-12)


def test_group_ball_projection_meets_the_variational_inequality():
    with jax.enable_x64(True):
        for seed in range(20):
            x, z, radius = ball_problem(seed)
            x, z, ball = jnp.asarray(x), jnp.asarray(z), GroupL21(radius)
            nearest, others = (np.asarray(a) for a in (_project(ball, x, z), _samples(ball, KEYS, x)))
            assert np.einsum("hwc,nhwc->n", np.asarray(z) - nearest, others - nearest).max() <= 1e-9


def test_group_ball_is_block_soft_thresholding_where_the_box_is_far():
    """Duchi's projection of the vector of block norms, every block rescaled to its new norm."""
    rng = np.random.default_rng(0)
    x, z = np.full((4, 6, 2), 0.5), rng.normal(size=(4, 6, 2)) * 0.05
    norms = np.asarray(jnp.sqrt(group_sums(jnp.asarray(z**2), 2))).ravel().astype(float)
    ordered = np.sort(norms)[::-1]
    excess = (np.cumsum(ordered) - 0.3) / np.arange(1, norms.size + 1)
    threshold = excess[np.flatnonzero(ordered > excess)[-1]]
    scale = np.maximum(1 - threshold / norms, 0).reshape(2, 3).repeat(2, 0).repeat(2, 1)[:, :, None]
    ours = _project(GroupL21(0.3), jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(ours, scale * z, atol=2e-7)


def test_blocks_of_one_coordinate_are_the_l1_ball():
    for seed in range(8):
        x, z, radius = ball_problem(seed)
        x, z = (jnp.asarray(v[:, :, :1], jnp.float32) for v in (x, z))
        group, plain = GroupL21(radius, 1), L1(radius)
        np.testing.assert_allclose(_project(group, x, z), _project(plain, x, z), atol=3e-6)
        np.testing.assert_allclose(jnp.vdot(z, _maximise(group, x, z)), jnp.vdot(z, _maximise(plain, x, z)), rtol=1e-5)


def test_group_ball_float32_projection_is_near_float64():
    for seed in range(20):
        x, z, radius = ball_problem(seed)
        single = _project(GroupL21(radius), jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32))
        with jax.enable_x64(True):
            double = _project(GroupL21(radius), jnp.asarray(x), jnp.asarray(z))
        np.testing.assert_allclose(single, double, atol=5e-6 * max(1, radius))


def test_group_ball_maximiser_is_stationary():
    """δ maximises <g, ·> over a convex set if and only if the projection of δ + g is δ."""
    with jax.enable_x64(True):
        for seed in range(20):
            x, g, radius = ball_problem(seed)
            best = _maximise(GroupL21(radius), jnp.asarray(x), jnp.asarray(g))
            np.testing.assert_allclose(_project(GroupL21(radius), jnp.asarray(x), best + g), best, atol=1e-9)
            np.testing.assert_allclose(sparse.group_ball(np.asarray(best) + g, x, 2, radius), best, atol=1e-5)


def test_group_ball_maximiser_splits_ties():
    """Equal blocks far from the box: any split of the budget earns radius · ‖g_G‖₂, and none may be left over."""
    x, g = jnp.full((2, 6, 1), 0.5), jnp.ones((2, 6, 1))
    best = _maximise(GroupL21(0.6), x, g)
    np.testing.assert_allclose(jnp.vdot(g, best), 0.6 * 2, rtol=1e-5)


def test_group_ball_samples_are_uniform():
    """The mean size of a uniform member is d/(d+1) of the radius, and no block is favoured beyond its dimension."""
    x = jnp.full((3, 2, 1), 0.5)  # blocks of 4 and 2 coordinates
    theta = _samples(GroupL21(0.2), jax.random.split(jax.random.key(0), 4000), x)
    theta = np.asarray(theta).reshape(4000, 6) / 0.2
    norms = np.stack([np.linalg.norm(theta[:, :4], axis=1), np.linalg.norm(theta[:, 4:], axis=1)], 1)
    sizes = norms.sum(1)
    np.testing.assert_allclose(sizes.mean(), 6 / 7, atol=4 * sizes.std() / np.sqrt(4000))
    np.testing.assert_allclose(norms.mean(0), [4 / 7, 2 / 7], atol=0.02)


def test_group_ball_steepest_ascent_has_the_dual_norm():
    """<g, step> = size · max_G ‖g_G‖₂ for the exact steepest step, which one block takes."""
    rng = np.random.default_rng(0)
    x, g = jnp.full((4, 4, 2), 0.5), jnp.asarray(rng.normal(size=(4, 4, 2)), jnp.float32)
    ball = GroupL21(1.0, quantile=1.0)
    step = ball.ascend(x, jnp.zeros_like(x), g, jnp.asarray(0.3))
    largest = float(jnp.sqrt(group_sums(g**2, 2)).max())
    np.testing.assert_allclose(jnp.vdot(g, step), 0.3 * largest, rtol=1e-5)
    np.testing.assert_allclose(ball.size(x, step), 0.3, rtol=1e-5)
    assert GroupL20(1).size(x, step) == 1
    half = GroupL21(1.0, quantile=0.5).ascend(x, jnp.zeros_like(x), g, jnp.asarray(0.3))
    assert GroupL20(1).size(x, half) == 2
    np.testing.assert_allclose(ball.size(x, half), 0.3, rtol=1e-5)


def test_group_ball_size_has_a_finite_gradient_at_zero():
    x = jnp.full((4, 4, 1), 0.5)
    assert np.isfinite(jax.grad(lambda t: GroupL21(1.0).size(x, t))(jnp.zeros_like(x))).all()


@given(
    seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e4), radius=st.floats(1e-3, 1e2), block=st.sampled_from([1, 2])
)
@settings(max_examples=40, deadline=None)
def test_group_ball_projection_is_feasible_and_does_not_expand(seed, scale, radius, block):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(np.round(rng.random((3, 3, 1)), rng.integers(0, 3)), jnp.float32)
    first, second = (jnp.asarray(rng.normal(size=x.shape) * scale, jnp.float32) for _ in range(2))
    ball = GroupL21(radius, block)
    a, b = _project(ball, x, first), _project(ball, x, second)
    assert ball.contains(x, a)
    assert ball.contains(x, b)
    assert float(jnp.linalg.norm(a - b)) <= float(jnp.linalg.norm(first - second)) * (1 + 1e-4) + 1e-5


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e4),
    radius=st.floats(0, 20),
    kind=st.sampled_from(sorted(HARD)),
)
@settings(max_examples=60, deadline=None)
def test_hard_thresholds_are_feasible_and_idempotent(seed, scale, radius, kind):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(np.round(rng.random((3, 3, 2)), rng.integers(0, 3)), jnp.float32)
    perturbation_set = HARD[kind][0](radius)
    once = _project(perturbation_set, x, jnp.asarray(rng.normal(size=x.shape) * scale, jnp.float32))
    assert perturbation_set.contains(x, once)
    np.testing.assert_array_equal(_project(perturbation_set, x, once), once)


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
