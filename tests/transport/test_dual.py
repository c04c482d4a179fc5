"""Nearest and best plans against quadratic and linear programs in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.transport import capacity, columns, dual, identity, linear, offsets, windows
from tests.references import transport as reference

# Shapes, windows and powers. One program takes seconds to compile, so tests share them, and larger ones are slow.
CASE = ((4, 4, 1), 3, 1)
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in [((6, 6, 1), 5, 1), ((6, 5, 2), 3, 2)]]
STATIC = ("p", "rounds", "capacity")
project = jax.jit(dual.project, static_argnames=STATIC)
maximise = jax.jit(linear.maximise, static_argnames=STATIC)
repair = jax.jit(capacity.repair, static_argnames=("p", "capacity"))


def problem(seed, shape, kernel, full=0.3, scale=None):
    """An image with empty and full pixels, an array to project, a radius."""
    rng = np.random.default_rng(seed)
    x = rng.random(shape)
    x[rng.random(shape) < full] = 1
    x[rng.random(shape) < 0.2] = 0
    plan = rng.normal(size=(kernel**2, *shape)) * (0.5 if scale is None else scale)
    plan[kernel**2 // 2] += x
    return x.astype(np.float32), plan.astype(np.float32), [0.03, 0.1, 0.4][seed % 3]


def measures(plan, x, p):
    """How far a plan is from having rows x and from columns ≤ 1, what it costs, its least entry, what leaves."""
    kernel = round(len(plan) ** 0.5)
    plan = np.asarray(plan, float)
    moves = reference.Moves(x.shape, p, kernel)
    inside = plan[moves.entry]
    received = moves.columns @ inside
    outside = np.abs(plan).sum() - np.abs(inside).sum()
    return np.abs(plan.sum(0) - x).max(), received.max() - 1, moves.cost @ inside, plan.min(), outside


def assert_feasible(plan, x, budget, p, limit=True):
    rows, excess, cost, least, outside = measures(plan, x, p)
    assert rows < 1e-6
    assert cost <= budget * (1 + 1e-5) + 1e-6
    assert least >= 0
    assert outside < 1e-6
    assert not limit or excess < 1e-6


@pytest.mark.parametrize("limit", [True, False])
@pytest.mark.parametrize(("shape", "kernel", "p"), [CASE, ((4, 4, 1), 3, 2), *SLOW])
def test_projection_is_the_quadratic_programs(shape, kernel, p, limit):
    for seed in range(6):
        x, plan, radius = problem(seed, shape, kernel)
        budget = np.float32(radius * x.sum())
        ours = project(plan, x, budget, p=p, rounds=60, capacity=limit)
        theirs = reference.project(x, plan, radius, p, kernel, limit)
        assert_feasible(ours, x, budget, p, limit)
        moved = np.linalg.norm(theirs - plan)
        assert np.linalg.norm(ours - theirs) <= 2e-5 * moved  # the reference stops near 1e-5 itself


def test_default_rounds_come_near():
    """With half of all pixels full, where most prices matter."""
    errors = []
    for seed in range(12):
        x, plan, radius = problem(seed, (4, 4, 1), 3, full=0.5)
        theirs = reference.project(x, plan, radius, 1, 3)
        ours = project(plan, x, np.float32(radius * x.sum()), p=1)
        errors.append(np.linalg.norm(ours - theirs) / np.linalg.norm(plan - theirs))
    assert np.median(errors) < 1e-4
    assert max(errors) < 5e-2


@pytest.mark.parametrize(("shape", "kernel", "p"), [CASE, *SLOW])
def test_projection_meets_the_variational_inequality(shape, kernel, p):
    """<G − Π, Π' − Π> ≤ 0 for the member Π' that a linear program finds worst: the definition of the nearest point."""
    with jax.enable_x64(True):
        for seed in range(6):
            x, plan, radius = problem(seed, shape, kernel)
            x, plan = x.astype(float), plan.astype(float)
            ours = np.asarray(project(plan, x, np.float64(radius * x.sum()), p=p, rounds=300))
            worst = reference.maximise(x, plan - ours, radius, p, kernel)
            assert np.sum((plan - ours) * (worst - ours)) <= 1e-5


@pytest.mark.parametrize("scale", [1e-4, 1e2, 1e5])
@pytest.mark.parametrize("rounds", [0, 2])
def test_projection_is_feasible_however_far_and_however_soon_it_stops(rounds, scale):
    for seed in range(9):
        x, plan, radius = problem(seed, (6, 5, 2), 3, full=0.6, scale=scale)
        assert_feasible(project(plan, x, np.float32(radius * x.sum()), rounds=rounds), x, radius * x.sum(), 1)


@pytest.mark.parametrize("side", [1, -1])
def test_two_pixels_in_closed_form(side):
    """The ball is {(a − τ, b + τ)}: −b ≤ τ ≤ a, |τ| ≤ εs, and 1 − b ≥ τ ≥ a − 1."""
    for a, b, radius in [(0.5, 0.5, 0.2), (0.5, 0.1, 0.9), (0.6, 0.9, 0.5), (1.0, 1.0, 0.5), (0.3, 0.0, 0.0)]:
        x = jnp.array([[[a], [b]]], jnp.float32)
        wish = jnp.array([[[0.0], [1.0]]], jnp.float32) * side
        moved = min(radius * (a + b), *((a, 1 - b) if side > 0 else (b, 1 - a))) * side
        for found in (
            project(identity(x, 3) + 50 * windows(wish, 3), x, radius * x.sum(), rounds=60),
            maximise(windows(wish, 3), x, radius * x.sum(), sharpness=50.0),
        ):
            np.testing.assert_allclose(columns(found).ravel(), [a - moved, b + moved], atol=1e-5)


@pytest.mark.parametrize(("shape", "kernel", "p"), [CASE, ((4, 4, 1), 3, 2), ((6, 6, 1), 5, 1), ((6, 5, 2), 3, 1)])
def test_unlimited_maximiser_is_the_linear_programs(shape, kernel, p):
    for seed in range(6):
        x, _, radius = problem(seed, shape, kernel)
        gradient = np.random.default_rng(seed + 100).normal(size=(kernel**2, *shape)).astype(np.float32)
        if seed == 5:
            gradient = np.sign(gradient)  # ties everywhere
        ours = maximise(gradient, x, np.float32(radius * x.sum()), p=p, capacity=False)
        assert_feasible(ours, x, radius * x.sum(), p, limit=False)
        theirs = reference.maximise(x, gradient, radius, p, kernel, capacity=False)
        np.testing.assert_allclose(np.sum(gradient * ours), np.sum(gradient * theirs), rtol=1e-5)


def gains(seed, shape, kernel, p, **settings):
    """What the maximiser gains over the identity, as a fraction of the most that can be gained."""
    x, _, radius = problem(seed, shape, kernel)
    gradient = windows(jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32), kernel)
    start = float(jnp.vdot(gradient, identity(jnp.asarray(x), kernel)))
    ours = maximise(gradient, x, np.float32(radius * x.sum()), p=p, **settings)
    assert_feasible(ours, x, radius * x.sum(), p)
    theirs = reference.maximise(x, gradient, radius, p, kernel)
    return (np.sum(gradient * ours) - start) / (np.sum(gradient * theirs) - start)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kernel", "p"), [CASE, *SLOW])
def test_limited_maximiser_comes_near_the_linear_programs(shape, kernel, p):
    found = [gains(seed, shape, kernel, p) for seed in range(6)]
    assert max(found) <= 1 + 1e-5
    assert np.mean(found) > 0.9
    sharp = [gains(seed, shape, kernel, p, rounds=500) for seed in range(6)]
    assert min(sharp) > 0.97


@pytest.mark.slow
def test_frank_wolfe_closes_its_gap():
    """On −‖columns(Π) − z‖² with z in the ball, the duality gap is ≥ 0, but for smoothing, and falls to nothing."""
    x, wish, _ = map(jnp.asarray, problem(3, (4, 4, 1), 3))
    budget = 0.3 * x.sum()
    goal = columns(project(wish, x, budget / 2, rounds=60))
    best = linear.maximise

    @jax.jit
    def step(plan, t):
        gradient = windows(2 * (goal - columns(plan)), 3)
        target = best(gradient, x, budget)
        return plan + 2 / (t + 2) * (target - plan), jnp.vdot(gradient, target - plan)

    plan, all_gaps = identity(x, 3), []
    for t in range(200):
        plan, gap = step(plan, jnp.float32(t))
        all_gaps.append(float(gap))
    assert min(all_gaps) > -0.1 * all_gaps[0]
    assert max(all_gaps[-20:]) < 0.1 * all_gaps[0]
    assert float(jnp.sum(jnp.square(columns(plan) - goal))) < 1e-2 * float(jnp.sum(jnp.square(goal - x)))


def test_repair_keeps_what_is_feasible():
    for seed in range(4):
        x, plan, radius = problem(seed, (4, 4, 1), 3)
        budget = np.float32(radius * x.sum())
        good = project(plan, x, budget, p=1, rounds=60, capacity=True)
        np.testing.assert_allclose(repair(good, x, budget), good, atol=2e-6)


def test_repair_mends_anything():
    for seed in range(6):
        x, plan, radius = problem(seed, (6, 5, 2), 3, scale=3.0)
        assert_feasible(repair(plan, x, np.float32(radius * x.sum()), p=2), x, radius * x.sum(), 2)


def test_repair_gives_excess_back_and_nothing_else():
    """(0.4, 0.8, 0.4), of which the middle receives 0.3 from each side: 0.2 from each goes back."""
    x = jnp.array([[[0.4], [0.8], [0.4]]], jnp.float32)
    number = {tuple(offset): j for j, offset in enumerate(offsets(3).tolist())}
    plan = identity(x, 3).at[4, 0, [0, 2], 0].set(0.1)
    plan = plan.at[number[0, 1], 0, 0, 0].set(0.3).at[number[0, -1], 0, 2, 0].set(0.3)
    np.testing.assert_allclose(columns(repair(plan, x, jnp.float32(9))).ravel(), [0.3, 1.0, 0.3], atol=1e-6)


def test_repair_ends_among_full_pixels_that_swap_mass():
    """A ring of full pixels passes mass on, one link a little wider: excess goes round, nothing can absorb it."""
    x = jnp.ones((2, 2, 1))
    number = {tuple(offset): j for j, offset in enumerate(offsets(3).tolist())}
    ring = [((0, 0), (0, 1)), ((0, 1), (1, 0)), ((1, 1), (0, -1)), ((1, 0), (-1, 0))]
    plan = jnp.zeros((9, 2, 2, 1))
    for n, ((row, column), offset) in enumerate(ring):
        plan = plan.at[number[offset], row, column, 0].set(0.5 + 1e-4 * (n == 0))
    assert_feasible(repair(plan, x, jnp.float32(9)), np.asarray(x), 9, 1)


def test_zero_gradient_has_the_identity_for_maximiser(rng):
    x = jnp.asarray(rng.random((4, 4, 1)), jnp.float32)
    zero = jnp.zeros((9, 4, 4, 1))
    for limit in (True, False):
        np.testing.assert_allclose(maximise(zero, x, x.sum(), capacity=limit), identity(x, 3), atol=1e-6)


def test_lanes_do_not_disturb_each_other():
    """Loops run as long as the slowest lane needs; the others must stand still."""
    problems = [problem(seed, (4, 4, 1), 3) for seed in range(6)]
    x, plan = (jnp.stack([jnp.asarray(p[n]) for p in problems]) for n in (0, 1))
    budget = jnp.asarray([p[2] * p[0].sum() for p in problems], jnp.float32)
    together = jax.jit(jax.vmap(functools.partial(dual.project, rounds=60)))(plan, x, budget)
    for n in range(6):
        alone = project(plan[n], x[n], budget[n], p=1, rounds=60, capacity=True)
        np.testing.assert_allclose(together[n], alone, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"p": 3}, ValueError, r"p must be one of \[1, 2\]; got 3"),
        ({"rounds": -1}, ValueError, "rounds must be >= 0; got -1"),
        ({"rounds": True}, TypeError, "rounds must be an integer; got True"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    x = jnp.ones((2, 2, 1))
    with pytest.raises(error, match=message):
        dual.project(identity(x, 3), x, jnp.float32(1), **settings)


def test_the_plain_algorithm_agrees():
    """Sorting every row at each of fifty bisections, as the released code does, finds the same plan."""
    for seed in range(6):
        x, plan, radius = problem(seed, (4, 4, 1), 3)
        ours = project(plan, x, np.float32(radius * x.sum()), p=1, rounds=60, capacity=False)
        theirs = reference.project_by_bisection(x, plan, radius, 1, 3, halvings=50)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
