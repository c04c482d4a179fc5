"""The lp balls against general-purpose solvers and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust.sets import L0, L1, L2, GroupL20, GroupL21, Linf, Patch, Union
from tests.references import lp

# some radii are such as nobody would mean
pytestmark = pytest.mark.filterwarnings("ignore:.* of radius .* holds")

SETS = {"linf": Linf, "l2": L2, "l1": L1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}

_project = jax.jit(lambda ball, x, theta: ball.project(x, theta))
_maximise = jax.jit(lambda ball, x, g: ball.maximise(x, g))
_along = jax.jit(
    lambda ball, x, thetas: jax.vmap(
        lambda theta: (ball.size(x, theta), ball.project(x, theta), ball.size(x, ball.project(x, theta)))
    )(thetas)
)
_samples = jax.jit(lambda ball, keys, x: jax.vmap(ball.sample, (0, None))(keys, x))


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
            ours = np.asarray(_project(SETS[norm](radius), jnp.asarray(x), jnp.asarray(z)))
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
            x, z = jnp.asarray(x), jnp.asarray(z)
            ball = SETS[norm](radius)
            nearest = _project(ball, x, z)
            keys = jax.random.split(jax.random.key(seed), 50)
            others = _samples(ball, keys, x)
            products = jnp.einsum("hwc,nhwc->n", z - nearest, others - nearest[None])
            assert float(products.max()) <= 1e-9


@pytest.mark.parametrize("norm", SETS)
def test_float32_projection_is_near_float64(norm):
    for seed in range(20):
        x, z, radius = random_problem(seed)
        single = _project(SETS[norm](radius), jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32))
        with jax.enable_x64(True):
            double = _project(SETS[norm](radius), jnp.asarray(x), jnp.asarray(z))
        np.testing.assert_allclose(single, double, atol=2e-6 * max(1, radius))


@pytest.mark.parametrize("norm", SETS)
def test_maximiser_equals_the_solver(norm):
    with jax.enable_x64(True):
        for seed in range(20):
            x, g, radius = random_problem(seed)
            best = _maximise(SETS[norm](radius), jnp.asarray(x), jnp.asarray(g))
            value = float(np.sum(g * np.asarray(best)))
            assert value >= lp.maximise(g, x, norm, radius) - 1e-6 * np.abs(g).sum()
            assert SETS[norm](radius).contains(jnp.asarray(x), best)


@pytest.mark.parametrize("norm", SETS)
def test_steepest_ascent_has_the_dual_norm(norm):
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=(4, 4, 2)), jnp.float32)
    x = jnp.full_like(g, 0.5)
    ball = L1(1.0, quantile=1.0) if norm == "l1" else SETS[norm](1.0)
    step = ball.ascend(x, ball.init(x), g, jnp.asarray(0.3)) - ball.init(x)
    np.testing.assert_allclose(jnp.vdot(g, step), 0.3 * np.linalg.norm(np.ravel(g), DUAL[norm]), rtol=1e-5)
    np.testing.assert_allclose(ball.size(x, step), 0.3, rtol=1e-5)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_samplers_are_uniform(norm, order):
    """The mean size of a uniform member is d/(d+1) of the radius; deep inside the box the projection does nothing."""
    x = jnp.full((3, 2, 1), 0.5)
    keys = jax.random.split(jax.random.key(0), 4000)
    sample = jax.vmap(SETS[norm](0.2).sample, (0, None))(keys, x)
    sizes = np.linalg.norm(np.asarray(sample).reshape(4000, -1), order, axis=1)
    np.testing.assert_allclose(sizes.mean() / 0.2, 6 / 7, atol=4 * sizes.std() / 0.2 / np.sqrt(4000))


def test_linf_sampler_is_uniform():
    x = jnp.full((3, 2, 1), 0.5)
    sample = jax.vmap(Linf(0.2).sample, (0, None))(jax.random.split(jax.random.key(0), 4000), x)
    np.testing.assert_allclose(np.var(np.asarray(sample)), 0.2**2 / 3, rtol=0.03)


@pytest.mark.parametrize(("quantile", "moved"), [(1.0, 1), (0.99, 1), (0.9, 10), (0.0, 100)])
def test_slide_moves_the_largest_entries(quantile, moved):
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=(10, 10, 1)), jnp.float32)
    step = L1(1.0, quantile=quantile).ascend(jnp.full_like(g, 0.5), jnp.zeros_like(g), g, jnp.asarray(1.0))
    # the entries at or above NumPy's own quantile
    chosen = np.abs(g) >= np.quantile(np.abs(np.asarray(g, np.float64)), quantile) - 1e-7
    assert chosen.sum() == moved
    np.testing.assert_allclose(step, np.where(chosen, np.sign(g) / moved, 0), atol=1e-6)


def test_slide_leaves_stuck_pixels():
    x = jnp.array([[[0.0], [1.0], [0.5]]])
    g = jnp.array([[[-5.0], [4.0], [1.0]]])
    step = L1(1.0, quantile=1.0).ascend(x, jnp.zeros_like(x), g, jnp.asarray(0.2))
    np.testing.assert_allclose(step, [[[0], [0], [0.2]]], atol=1e-7)


def test_a_tiny_gradient_keeps_its_direction():
    g = jnp.array([[[3e-30], [4e-30]]])
    x = jnp.full_like(g, 0.5)
    np.testing.assert_allclose(L2(1.0).ascend(x, jnp.zeros_like(x), g, jnp.asarray(1.0)), [[[0.6], [0.8]]], rtol=1e-5)
    np.testing.assert_allclose(L2(0.1).maximise(x, g), [[[0.06], [0.08]]], rtol=1e-5)


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
    x = jnp.full((4, 4, 2), 0.5)
    direction = jax.random.normal(jax.random.key(0), x.shape)
    pair = direction.at[0, 0].set(-jnp.max(jnp.abs(direction)))  # two equal largest entries
    scales = np.float32([1e-30, 1e-20, 1e-10, 1.0, 1e4, 1e6, 1e8, 1e12, 1e20, 1e30])
    given = jnp.concatenate([scales[:, None, None, None] * theta[None] for theta in (direction, pair)])
    before, near, after = _along(ball(radius), x, given)
    np.testing.assert_allclose(after, jnp.minimum(before, jnp.float32(radius)), rtol=2e-6)
    inside = np.asarray(before) <= radius
    np.testing.assert_array_equal(near[inside], given[inside])


@pytest.mark.parametrize("ball", [L0(3), GroupL20(2), Patch(2)], ids=["l0", "group_l20", "patch"])
def test_sparse_projections_keep_the_same_places_at_any_scale(ball):
    x = jnp.full((6, 6, 1), 0.5)
    theta = jax.random.normal(jax.random.key(0), x.shape)
    places = [np.asarray(_project(ball, x, jnp.float32(scale) * theta)) != 0 for scale in (1e-30, 1e-20, 1e-10, 1e-2)]
    assert all((found == places[-1]).all() for found in places)


def test_the_nearest_part_of_a_union_is_found_at_any_scale():
    x = jnp.full((6, 6, 1), 0.5)
    theta = jax.random.normal(jax.random.key(0), x.shape)
    union = Union((L1(0.3), L2(0.3)))  # of which the second holds the first
    for scale in (1e2, 1e5, 1e8, 1e20):
        near = _project(union, x, jnp.float32(scale) * theta)
        np.testing.assert_allclose(near, _project(L2(0.3), x, jnp.float32(scale) * theta), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e3),
    radius=st.floats(1e-3, 1e2),
    norm=st.sampled_from(sorted(SETS)),
)
def test_projection_is_feasible_and_does_not_expand(seed, scale, radius, norm):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(np.round(rng.random((3, 3, 1)), rng.integers(0, 3)), jnp.float32)
    first, second = (jnp.asarray(rng.normal(size=x.shape) * scale, jnp.float32) for _ in range(2))
    ball = SETS[norm](radius)
    a, b = _project(ball, x, first), _project(ball, x, second)
    assert ball.contains(x, a)
    assert ball.contains(x, b)
    assert float(jnp.linalg.norm(a - b)) <= float(jnp.linalg.norm(first - second)) * (1 + 1e-4) + 1e-5
