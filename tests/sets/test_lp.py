"""The lp balls against general-purpose solvers and closed forms."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust.sets import L0, L1, L2, GroupL20, GroupL21, Linf, Patch, Union
from tests.compiled import call, compiled
from tests.references import lp

# some radii are such as nobody would mean
pytestmark = pytest.mark.filterwarnings("ignore:.* of radius .* holds")

SETS = {"linf": Linf, "l2": L2, "l1": L1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}

_along = compiled(
    lambda ball, x, thetas: jax.vmap(
        lambda theta: (ball.size(x, theta), ball.project(x, theta), ball.size(x, ball.project(x, theta)))
    )(thetas)
)
_samples = compiled(lambda ball, keys, x: jax.vmap(ball.sample, (0, None))(keys, x))


@compiled
def _project(ball, x, theta):
    near = ball.project(x, theta)
    return near, ball.contains(x, near)


@compiled
def _maximise(ball, x, g):
    best = ball.maximise(x, g)
    return best, ball.contains(x, best)


def project(ball, x, theta):
    return _project(ball, x, theta)[0]


@functools.cache
def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def random_problem(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((2, 3, 1))
    if seed % 3 == 0:
        x = np.round(x)  # pixels on the faces of the box
    z = rng.normal(size=x.shape) * 10.0 ** rng.uniform(-1.5, 1)
    if seed % 4 == 0:
        z.flat[:3] = z.flat[0]  # equal entries
    if seed % 5 == 0:
        z.flat[3:] = 0
    return x, z, 10.0 ** rng.uniform(-1.5, 0.8)


@pytest.mark.parametrize("norm", SETS)
def test_projection_equals_the_solver(norm):
    with jax.enable_x64(True):
        worst = 0
        for seed in range(40):
            x, z, radius = random_problem(seed)
            ours = project(SETS[norm](radius), x, z)
            theirs = lp.project(z, x, norm, radius).reshape(x.shape)
            # the solver's point may be the worse one: compare objectives too
            gain = np.sum((ours - z) ** 2) - np.sum((theirs - z) ** 2)
            assert gain <= 1e-9
            worst = max(worst, np.abs(ours - theirs).max())
    assert worst < 2e-5


@pytest.mark.parametrize("norm", SETS)
def test_projection_meets_the_variational_inequality(norm):
    """<z − P(z), δ − P(z)> ≤ 0 for every member δ: the definition of the nearest point of a convex set."""
    with jax.enable_x64(True):
        for seed in range(20):
            x, z, radius = random_problem(seed)
            ball = SETS[norm](radius)
            nearest = project(ball, x, z)
            others = _samples(ball, keys(50, seed), x)
            products = np.einsum("hwc,nhwc->n", z - nearest, others - nearest[None])
            assert float(products.max()) <= 1e-9


@pytest.mark.parametrize("norm", SETS)
def test_float32_projection_is_near_float64(norm):
    for seed in range(20):
        x, z, radius = random_problem(seed)
        single = project(SETS[norm](radius), x.astype(np.float32), z.astype(np.float32))
        with jax.enable_x64(True):
            double = project(SETS[norm](radius), x, z)
        np.testing.assert_allclose(single, double, atol=2e-6 * max(1, radius))


@pytest.mark.parametrize("norm", SETS)
def test_maximiser_equals_the_solver(norm):
    with jax.enable_x64(True):
        for seed in range(20):
            x, g, radius = random_problem(seed)
            best, inside = _maximise(SETS[norm](radius), x, g)
            value = float(np.sum(g * best))
            assert value >= lp.maximise(g, x, norm, radius) - 1e-6 * np.abs(g).sum()
            assert inside


@pytest.mark.parametrize("norm", SETS)
def test_steepest_ascent_has_the_dual_norm(norm):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(4, 4, 2)).astype(np.float32)
    x = np.full_like(g, 0.5)
    ball = L1(1.0, quantile=1.0) if norm == "l1" else SETS[norm](1.0)
    step = call(ball, "ascend", x, call(ball, "init", x), g, np.float32(0.3)) - call(ball, "init", x)
    np.testing.assert_allclose(np.vdot(g, step), 0.3 * np.linalg.norm(np.ravel(g), DUAL[norm]), rtol=1e-5)
    np.testing.assert_allclose(call(ball, "size", x, step), 0.3, rtol=1e-5)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_samplers_are_uniform(norm, order):
    """The mean size of a uniform member is d/(d+1) of the radius; deep inside the box the projection does nothing."""
    x = np.full((3, 2, 1), 0.5, np.float32)
    sizes = np.linalg.norm(_samples(SETS[norm](0.2), keys(4000), x).reshape(4000, -1), order, axis=1)
    np.testing.assert_allclose(sizes.mean() / 0.2, 6 / 7, atol=4 * sizes.std() / 0.2 / np.sqrt(4000))


def test_linf_sampler_is_uniform():
    x = np.full((3, 2, 1), 0.5, np.float32)
    np.testing.assert_allclose(np.var(_samples(Linf(0.2), keys(4000), x)), 0.2**2 / 3, rtol=0.03)


@pytest.mark.parametrize(("quantile", "moved"), [(1.0, 1), (0.99, 1), (0.9, 10), (0.0, 100)])
def test_slide_moves_the_largest_entries(quantile, moved):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(10, 10, 1)).astype(np.float32)
    ball = L1(1.0, quantile=quantile)
    step = call(ball, "ascend", np.full_like(g, 0.5), np.zeros_like(g), g, np.float32(1.0))
    # the entries at or above NumPy's own quantile
    chosen = np.abs(g) >= np.quantile(np.abs(np.asarray(g, np.float64)), quantile) - 1e-7
    assert chosen.sum() == moved
    np.testing.assert_allclose(step, np.where(chosen, np.sign(g) / moved, 0), atol=1e-6)


def test_slide_leaves_stuck_pixels():
    x = np.float32([[[0.0], [1.0], [0.5]]])
    g = np.float32([[[-5.0], [4.0], [1.0]]])
    step = call(L1(1.0, quantile=1.0), "ascend", x, np.zeros_like(x), g, np.float32(0.2))
    np.testing.assert_allclose(step, [[[0], [0], [0.2]]], atol=1e-7)


def test_a_tiny_gradient_keeps_its_direction():
    g = np.float32([[[3e-30], [4e-30]]])
    x = np.full_like(g, 0.5)
    step = call(L2(1.0), "ascend", x, np.zeros_like(x), g, np.float32(1.0))
    np.testing.assert_allclose(step, [[[0.6], [0.8]]], rtol=1e-5)
    np.testing.assert_allclose(_maximise(L2(0.1), x, g)[0], [[[0.06], [0.08]]], rtol=1e-5)


GROUPS = functools.partial(GroupL21, block=2)


@pytest.mark.parametrize(
    "ball",
    [
        pytest.param(Linf, id="linf"),
        pytest.param(L2, id="l2"),
        pytest.param(L1, id="l1"),
        pytest.param(GROUPS, id="group_l21", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("radius", [1e-25, 1e-8, 0.3])
def test_projection_spends_the_radius_whatever_the_scale(ball, radius):
    """Squares of 1e20 overflow, those of 1e-25 are 0, and at 1e8 neighbouring floats lie further apart than radii."""
    x = np.full((4, 4, 2), 0.5, np.float32)
    direction = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    pair = direction.copy()
    pair[0, 0] = -np.abs(direction).max()  # two equal largest entries
    scales = np.float32([1e-30, 1e-20, 1e-10, 1.0, 1e4, 1e6, 1e8, 1e12, 1e20, 1e30])
    given = np.concatenate([scales[:, None, None, None] * theta[None] for theta in (direction, pair)])
    before, near, after = _along(ball(radius), x, given)
    np.testing.assert_allclose(after, np.minimum(before, np.float32(radius)), rtol=2e-6)
    inside = before <= radius
    np.testing.assert_array_equal(near[inside], given[inside])


@pytest.mark.parametrize("ball", [L0(3), GroupL20(2), Patch(2)], ids=["l0", "group_l20", "patch"])
def test_sparse_projections_keep_the_same_places_at_any_scale(ball):
    x = np.full((6, 6, 1), 0.5, np.float32)
    theta = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    places = [project(ball, x, np.float32(scale) * theta) != 0 for scale in (1e-30, 1e-20, 1e-10, 1e-2)]
    assert all((found == places[-1]).all() for found in places)


def test_the_nearest_part_of_a_union_is_found_at_any_scale():
    x = np.full((6, 6, 1), 0.5, np.float32)
    theta = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    union = Union((L1(0.3), L2(0.3)))  # of which the second holds the first
    for scale in (1e2, 1e5, 1e8, 1e20):
        near = project(union, x, np.float32(scale) * theta)
        np.testing.assert_allclose(near, project(L2(0.3), x, np.float32(scale) * theta), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e3),
    radius=st.floats(1e-3, 1e2),
    norm=st.sampled_from(sorted(SETS)),
)
def test_projection_is_feasible_and_does_not_expand(seed, scale, radius, norm):
    rng = np.random.default_rng(seed)
    x = np.round(rng.random((3, 3, 1)), rng.integers(0, 3)).astype(np.float32)
    first, second = ((rng.normal(size=x.shape) * scale).astype(np.float32) for _ in range(2))
    (a, a_inside), (b, b_inside) = (_project(SETS[norm](radius), x, theta) for theta in (first, second))
    assert a_inside
    assert b_inside
    assert float(np.linalg.norm(a - b)) <= float(np.linalg.norm(first - second)) * (1 + 1e-4) + 1e-5
