"""Distances by OTT-JAX against an LP, their gradients, and that OTT is imported only when it is needed."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.transport import plans
from jaxrobust.transport.ott import ott_distance, ott_plan
from tests.references import transport as reference

STATIC = ("p", "kernel", "epsilon", "iterations", "threshold")
measure = jax.jit(ott_distance, static_argnames=STATIC)


def pair(rng, kernel=3, share=0.4, shape=(4, 5, 2)):
    """An image and what becomes of it when a share of its mass moves within its windows."""
    x = rng.uniform(0.2, 0.8, shape)
    inside = np.broadcast_to(plans.allowed(shape, kernel), (kernel**2, *shape))
    parts = rng.random(inside.shape) ** 8 * inside
    plan = share * x * parts / parts.sum(0)
    plan[kernel**2 // 2] += (1 - share) * x
    return jnp.asarray(x, jnp.float32), plans.columns(jnp.asarray(plan, jnp.float32))


@pytest.mark.parametrize(
    ("p", "kernel"), [(2, None), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 3), (2, 3), (1, None)])]
)
def test_a_cold_distance_is_the_exact_one(rng, p, kernel):
    x, z = pair(rng)
    found = measure(x, z, p=p, kernel=kernel, epsilon=0.07, iterations=5000, threshold=3e-4)
    assert bool(found.converged)
    np.testing.assert_allclose(found.distance, reference.distance(x, z, p, kernel), rtol=0.03)


@pytest.mark.slow
def test_a_warm_distance_is_above_the_exact_one(rng):
    x, z = pair(rng)
    distances = [float(measure(x, z, p=2, kernel=3, epsilon=e, iterations=2000).distance) for e in (1.0, 0.5, 0.25)]
    assert distances[0] > distances[1] > distances[2] > reference.distance(x, z, 2, 3)


@pytest.mark.parametrize(("p", "cost", "kernel"), [(1, np.sqrt(2), None), (2, 2.0, 3)])
def test_a_diagonal_move_costs_what_it_should(p, cost, kernel):
    """Not what OTT's grid would make of `Euclidean`, 2 pixels."""
    x = jnp.zeros((3, 3, 1)).at[0, 0].set(0.8).at[2, 2].set(0.2)
    z = x.at[0, 0].add(-0.3).at[1, 1].add(0.3)
    np.testing.assert_allclose(measure(x, z, p=p, kernel=kernel, epsilon=0.1).distance, 0.3 * cost, rtol=0.02)


def test_what_is_not_matched_is_said_and_priced():
    x = jnp.zeros((3, 6, 1)).at[1, 0].set(1.0)
    z = jnp.zeros((3, 6, 1)).at[1, 5].set(1.0)
    beyond = measure(x, z, p=2, kernel=3)
    assert not bool(beyond.converged)
    assert float(beyond.unmatched) > 0.9
    assert float(beyond.distance) > 1.8
    early, x = measure(*pair(np.random.default_rng(0)), p=2, kernel=3, epsilon=0.1, iterations=10), None
    assert not bool(early.converged)
    assert float(early.unmatched) > 1e-4


@pytest.mark.parametrize("kernel", [5, pytest.param(None, marks=pytest.mark.slow)])
def test_gradients_are_finite_on_images_with_many_zeros(rng, kernel):
    stroke = np.zeros((10, 9, 1), np.float32)
    stroke[2:8, 4] = 1
    stroke[2, 3:6] = 0.5
    x = jnp.asarray(stroke)
    z = x.at[4, 4].set(0.4).at[4, 5].set(0.6)
    slope = jax.jit(jax.grad(lambda z: measure(x, z, p=2, kernel=kernel).distance))
    for point in (z, x, jnp.zeros_like(x)):
        assert np.isfinite(np.asarray(slope(point))).all()
    assert (np.asarray(slope(z)) != 0).any()
    assert float(measure(x, x, p=2, kernel=kernel).distance) == 0


@pytest.mark.parametrize("kernel", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_the_entropic_cost(rng, kernel):
    """Central differences of the distance move with it: at a low temperature the two costs have one slope."""
    x, z = pair(rng)
    value = functools.partial(measure, x, p=2, kernel=kernel, epsilon=0.1, iterations=5000)
    slope = np.asarray(jax.grad(lambda z: value(z).distance)(z), float)
    for _ in range(3):
        direction = rng.normal(size=z.shape)
        direction -= direction.mean((0, 1))
        step = jnp.asarray(5e-3 * direction, jnp.float32)
        change = float(value(z + step).distance - value(z - step).distance) / 1e-2
        np.testing.assert_allclose(np.sum(slope * direction), change, rtol=0.25, atol=0.05)


@pytest.mark.slow
def test_the_plan_stays_in_the_window_and_goes_where_it_can(rng):
    x, z = pair(rng)
    plan = jax.jit(functools.partial(ott_plan, p=2, kernel=3, iterations=1000))(x, z)
    np.testing.assert_allclose(plan.sum(0), x, atol=1e-5)
    np.testing.assert_allclose(plans.columns(plan), z, atol=2e-3)
    far = jnp.zeros((3, 6, 1)).at[1, 5].set(1.0)
    reached = plans.columns(ott_plan(far[:, ::-1], far, p=2, kernel=3))
    np.testing.assert_allclose(reached.sum(), 1, atol=1e-5)
    assert float(reached[:, 2:].max()) <= 1e-6


@pytest.mark.slow
def test_low_temperatures_take_logarithms():
    """A corner of the window costs 18, 180 temperatures: e^-180 is beyond float32."""
    x = jnp.zeros((5, 5, 1)).at[0, 0].set(1.0)
    z = x.at[0, 0].set(0.5).at[3, 3].set(0.5)
    found = measure(x, z, p=2, kernel=7, epsilon=0.1)
    np.testing.assert_allclose(found.distance, 9.0, rtol=0.02)
    assert float(found.unmatched) <= 1e-3


def test_bad_arguments_are_refused():
    x = jnp.ones((65, 64, 1))
    with pytest.raises(ValueError, match="kernel must be given for p = 1 on more than 4096 pixels; got 4160"):
        ott_distance(x, x, p=1)
    with pytest.raises(
        ValueError, match=r"epsilon must be finite and in \[0.0001|epsilon must be finite and >= 0.0001"
    ):
        ott_distance(x[:4], x[:4], p=1, epsilon=0.0)
    with pytest.raises(ValueError, match="p must be one of"):
        ott_distance(x[:4], x[:4], p=3)


def test_ott_is_imported_only_when_needed():
    code = "import sys, jaxrobust.sets, jaxrobust.transport.ott; assert 'ott' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
