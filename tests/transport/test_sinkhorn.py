"""Projected Sinkhorn against its float64 dual and an exact QP, and certified distances against an LP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jaxrobust.transport import plans
from jaxrobust.transport.distances import bounds, certificate
from jaxrobust.transport.sinkhorn import sinkhorn_projection, wright_omega
from jaxrobust.transport.windowed import Window
from tests.references import transport as reference

STATIC = ("p", "kernel")


@functools.partial(jax.jit, static_argnames=STATIC)
def project(x, w, radius, *, p=1, kernel=3, regularisation=1000.0, capacity=1.0, rounds=2000, tolerance=1e-5):
    settings = {"p": p, "kernel": kernel, "rounds": rounds, "tolerance": tolerance}
    return sinkhorn_projection(x, w, radius, regularisation=regularisation, capacity=capacity, **settings)


@functools.partial(jax.jit, static_argnames=("p", "kernel"))
def bracket(x, z, *, p, kernel):
    return bounds(x, z, p=p, kernel=kernel)


def float32(*arrays):
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def moved(rng, x, kernel, share):
    """What becomes of x when a share of its mass moves at random within its windows."""
    inside = np.broadcast_to(plans.allowed(x.shape, kernel), (kernel**2, *x.shape))
    parts = rng.random(inside.shape) ** 8 * inside
    plan = share * x * parts / parts.sum(0)
    plan[kernel**2 // 2] += (1 - share) * x
    return np.asarray(plans.columns(jnp.asarray(plan, jnp.float32)))


def test_wright_omega_is_scipys():
    y = np.concatenate([np.linspace(-80, 80, 4001), -np.logspace(0, 1.9, 100), np.logspace(0, 30, 100)])
    y = y.astype(np.float32)
    expected = special.wrightomega(y.astype(np.float64))
    np.testing.assert_allclose(jax.jit(wright_omega)(y), expected, rtol=1e-6)
    np.testing.assert_array_equal(wright_omega(jnp.asarray([-200.0, -jnp.inf], jnp.float32)), [0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("p", "kernel"), [pytest.param(1, 3, marks=pytest.mark.slow), (2, 5)])
def test_window_sums_are_the_plans(rng, p, kernel, plain):
    left, right = float32(rng.normal(size=(5, 7, 2)), rng.normal(size=(5, 7, 2)))
    left, right, price = left.at[1, 2].set(-jnp.inf), right.at[0].set(-jnp.inf), jnp.asarray(0.7)
    window = Window(kernel, p)
    plan = np.asarray(window.plan(left, right, price), np.float64)
    rows = np.exp(np.asarray(left + window.log_sum(right, price, plain=plain), np.float64))
    columns = np.exp(np.asarray(right + window.log_sum(left, price, plain=plain), np.float64))
    np.testing.assert_allclose(rows, plan.sum(0), rtol=1e-5)
    np.testing.assert_allclose(columns, plans.columns(jnp.asarray(plan, jnp.float32)), rtol=1e-5, atol=1e-7)
    masses = plan.sum((1, 2, 3))
    moments = window.moments(left, right, price, plain=plain)
    np.testing.assert_allclose(moments, [masses @ window.costs, masses @ window.costs**2], rtol=1e-5)


def dual_optimum(x, w, radius, p, kernel, strength, capacity):
    """The maximum of the entropic dual and its z, by L-BFGS in float64; nothing is shared with the library."""
    moves, mass = reference.Moves(x.shape, p, kernel), x.sum()
    source, wanted = x.ravel() / mass, w.ravel() / mass

    def loss(v):
        a, b, price = v[: source.size], v[source.size : -1], v[-1]
        plan = np.exp(a[moves.source] + b[moves.target] - price * moves.cost)
        z = np.minimum(wanted - b / strength, capacity / mass)
        value = (strength / 2 * (wanted - z) ** 2 + b * z).sum() + a @ source - price * radius - plan.sum()
        slope = [source - moves.rows @ plan, z - moves.columns @ plan, [moves.cost @ plan - radius]]
        return -value, -np.concatenate(slope)

    free = [(None, None)] * (2 * source.size)
    start = np.concatenate([np.log(source) - 2, np.zeros(source.size), [1.0]])
    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 0, "gtol": 1e-10, "maxcor": 30}
    found = optimize.minimize(loss, start, jac=True, bounds=[*free, (0, None)], method="L-BFGS-B", options=options)
    return -found.fun, mass * np.minimum(wanted - found.x[source.size : -1] / strength, capacity / mass).reshape(
        x.shape
    )


@pytest.mark.parametrize(
    ("p", "radius", "capacity"),
    [
        (2, 0.3, 1.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 0.05, 1.0), (1, 10.0, 0.99), (2, 0.1, np.inf)]),
    ],
)
def test_the_projection_reaches_the_dual_optimum(rng, p, radius, capacity):
    x = rng.uniform(0.2, 0.95, (4, 5, 2)).astype(np.float32)
    w = (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32)
    value, z = dual_optimum(x.astype(float), w.astype(float), radius, p, 3, 300.0, capacity)
    found = project(*float32(x, w, radius), p=p, regularisation=300.0, capacity=capacity)
    np.testing.assert_allclose(found.dual, value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.image, z, atol=2e-4)
    np.testing.assert_allclose(found.plan.sum(0), x, atol=1e-6)
    np.testing.assert_allclose(found.image.sum((0, 1)), x.sum((0, 1)), rtol=1e-5)
    assert float(found.cost) <= radius * (1 + 1e-4)


def test_every_round_raises_the_dual(rng):
    """The released code's convergence test watches another number; this is the dual itself."""
    for radius in (0.02, 0.5, 3.0):
        x = rng.random((4, 5, 1)).astype(np.float32)
        x, w = float32(x, x + 0.2 * rng.normal(size=x.shape))
        duals = [
            float(project(x, w, jnp.asarray(radius), rounds=rounds, tolerance=0.0).dual) for rounds in range(1, 15)
        ]
        assert (np.diff(duals) >= -1e-5 * np.abs(duals[:-1])).all()
        assert duals[-1] > duals[0]


@pytest.mark.slow
def test_the_reported_error_is_that_of_the_rows(rng):
    """More rounds change nothing once the error is small, and it is small only then."""
    x = rng.random((4, 5, 1)).astype(np.float32)
    x, w = float32(x, x + 0.2 * rng.normal(size=x.shape))
    best = project(x, w, jnp.asarray(0.1), tolerance=0.0, rounds=3000).image
    gaps, errors = [], []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        found = project(x, w, jnp.asarray(0.1), tolerance=tolerance)
        assert float(found.error) <= tolerance
        gaps.append(float(jnp.max(jnp.abs(found.image - best))))
        errors.append(float(found.error))
    assert (np.diff(gaps) <= 0).all()
    assert gaps[-1] <= 1e-3


@pytest.mark.slow
def test_an_image_does_not_wait_for_its_neighbours(rng):
    x = rng.random((3, 4, 5, 1)).astype(np.float32)
    w = x + np.array([0.001, 0.1, 3.0]).reshape(3, 1, 1, 1) * rng.normal(size=x.shape)
    x, w = float32(x, w)
    together = jax.vmap(lambda x, w: project(x, w, jnp.asarray(0.1), tolerance=1e-4))(x, w)
    for i in range(3):
        alone = project(x[i], w[i], jnp.asarray(0.1), tolerance=1e-4)
        assert int(alone.rounds) == int(together.rounds[i])
        np.testing.assert_allclose(alone.image, together.image[i], atol=1e-5)
    assert len(set(np.asarray(together.rounds).tolist())) > 1


def test_capacity_keeps_the_mass_that_clamping_destroys(rng):
    x = (rng.random((6, 6, 1)) > 0.4).astype(np.float32)
    x, w = float32(x, x + 0.5 * rng.normal(size=x.shape))
    clamped = jnp.clip(project(x, w, jnp.asarray(0.3), capacity=jnp.inf).image, 0, 1)
    kept = project(x, w, jnp.asarray(0.3)).image
    assert float(x.sum() - clamped.sum()) > 0.1
    np.testing.assert_allclose(kept.sum(), x.sum(), rtol=1e-5)
    assert float(kept.max()) <= 1 + 1e-4


def exact_distance(x, w, radius, p, kernel):
    """min ‖w − z‖² of masses normalised to 1, by SLSQP in float64."""
    moves, mass = reference.Moves(x.shape, p, kernel), x.sum()
    source, wanted = x.ravel() / mass, w.ravel() / mass
    rows, columns = moves.rows.toarray(), moves.columns.toarray()
    start = np.where(moves.cost == 0, source[moves.source], 0)
    limits = [
        {"type": "eq", "fun": lambda v: rows @ v - source, "jac": lambda v: rows},
        {"type": "ineq", "fun": lambda v: radius - moves.cost @ v, "jac": lambda v: -moves.cost},
    ]

    def loss(v):
        gap = columns @ v - wanted
        return 100 * gap @ gap, 200 * gap @ columns

    options = {"maxiter": 500, "ftol": 1e-13}
    bounds = [(0, None)] * len(start)
    return (
        optimize.minimize(loss, start, jac=True, bounds=bounds, constraints=limits, method="SLSQP", options=options).fun
        / 100
    )


@pytest.mark.slow
def test_the_entropic_projection_is_no_nearer_than_the_exact_one_and_sharpens(rng):
    x = rng.uniform(0.3, 0.7, (4, 4, 1)).astype(np.float32)
    x, w = float32(x, x + 0.3 * rng.normal(size=x.shape))
    best = exact_distance(np.asarray(x, float), np.asarray(w, float), 0.05, 1, 3)
    found = {}
    for strength in (100.0, 1000.0):
        result = project(x, w, jnp.asarray(0.05), regularisation=strength, capacity=jnp.inf, rounds=5000)
        found[strength] = float(jnp.sum(jnp.square(result.image - w)) / jnp.sum(x) ** 2)
        true = reference.distance(np.asarray(x), np.asarray(result.image), 1, 3)
        assert true <= 0.05 * (1 + 1e-4)
    assert best - 1e-6 <= found[1000.0] < found[100.0]
    assert found[1000.0] <= 1.15 * best


@pytest.mark.parametrize("tau", [-0.5, -0.02, 0.03, 0.5])
def test_two_pixels_in_closed_form(tau):
    """The ball of (a, b) is {(a − τ, b + τ) : |τ| ≤ ε s, −b ≤ τ ≤ a}, and the projection clips τ."""
    x, radius = np.array([0.6, 0.2]), 0.1
    w = x + np.array([-tau, tau])
    clipped = np.clip(tau, -min(0.2, radius * 0.8), min(0.6, radius * 0.8))
    x, w = float32(x.reshape(1, 2, 1), w.reshape(1, 2, 1))
    found = project(x, w, jnp.asarray(radius), regularisation=300.0, rounds=4000)
    np.testing.assert_allclose(found.image.ravel(), [0.6 - clipped, 0.2 + clipped], atol=2e-3)


@pytest.mark.slow
def test_sparse_images_need_logarithms(rng):
    """Exponents of ±λ w/s far beyond float32; the plan's rows hold all the same."""
    x = np.zeros((6, 5, 1))
    x[2, 2], x[3, 3] = 1.0, 1e-6
    x, w = float32(x, x + 0.5 * rng.normal(size=x.shape))
    found = project(x, w, jnp.asarray(0.3), regularisation=1e4, p=2, kernel=5, rounds=300, tolerance=1e-4)
    assert np.isfinite(np.asarray(found.plan)).all()
    np.testing.assert_allclose(found.plan.sum(0), x, rtol=1e-5)


@pytest.mark.parametrize(("p", "kernel"), [(1, 3), pytest.param(2, 5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("share", "full"), [(0.02, 1.0), (0.5, 1.0), (0.3, 0.4)])
def test_bounds_bracket_the_distance(rng, p, kernel, share, full):
    x = rng.random((5, 6, 2)) * (rng.random((5, 6, 2)) < full)
    z = moved(rng, x, kernel, share)
    found = bracket(*float32(x, z), p=p, kernel=kernel)
    true = reference.distance(x, z, p, kernel)
    assert float(found.lower) <= true + 1e-5
    np.testing.assert_allclose(found.upper, true, rtol=5e-3)
    assert float(found.upper) >= true - 1e-4


@pytest.mark.parametrize(("p", "cost"), [(1, np.sqrt(2)), pytest.param(2, 2.0, marks=pytest.mark.slow)])
def test_a_diagonal_move_costs_what_it_should(p, cost):
    x = jnp.zeros((4, 4, 1)).at[1, 1].set(0.8).at[2, 3].set(0.2)
    z = x.at[1, 1].add(-0.3).at[2, 2].add(0.3)
    np.testing.assert_allclose(certificate(x, z, p=p, kernel=3), 0.3 * cost, rtol=1e-3)


def test_certificates_of_degenerate_pairs(rng):
    (x,) = float32(rng.random((4, 5, 2)))
    measure = jax.jit(functools.partial(certificate, p=2, kernel=3))
    black = jnp.zeros_like(x)
    assert float(measure(x, x)) == 0
    assert float(measure(black, black)) == 0
    assert np.isinf(measure(x, 0.9 * x))
    assert np.isinf(measure(black, x))
    assert np.isinf(measure(x, x.at[0, 0].set(x[0, 0, ::-1])))  # mass changes channel
    far = black.at[0, 0].set(0.5)
    assert np.isinf(measure(far, black.at[0, 3].set(0.5)))  # beyond the window
    assert np.isfinite(measure(far, black.at[1, 1].set(0.5)))


@pytest.mark.slow
def test_the_gradient_of_a_certificate_is_a_subgradient_of_the_distance(rng):
    x = rng.uniform(0.2, 0.8, (4, 5, 1))
    z = moved(rng, x, 3, 0.4)
    x32, z32 = float32(x, z)
    slope = jax.jit(jax.grad(lambda z: certificate(x32, z, p=2, kernel=3)))(z32)
    slope = np.asarray(slope, float)
    lower = float(bracket(x32, z32, p=2, kernel=3).lower)
    assert lower >= 0.8 * reference.distance(x, z, 2, 3)
    for other in (x, moved(rng, x, 3, 0.4), moved(rng, x, 3, 0.05), moved(rng, z, 3, 0.02)):
        there = reference.distance(x, other, 2, 3)
        assert there >= lower + np.sum(slope * (other - z)) - 1e-5
    step = 0.02 * slope / np.abs(slope).max()
    assert reference.distance(x, z - step, 2, 3) < reference.distance(x, z, 2, 3) - 0.5 * np.sum(slope * step)
