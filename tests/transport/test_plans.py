"""Local plans on the grid against loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.transport import plans

SHAPE = (4, 5, 2)


@pytest.fixture
def image(rng):
    return jnp.asarray(rng.random(SHAPE), jnp.float32)


@pytest.fixture
def plan(rng):
    return jnp.asarray(rng.random((9, *SHAPE)), jnp.float32)


def moves(kernel):
    """All (offset number, source row, source column, target row, target column) that stay inside."""
    for j, (dr, dc) in enumerate(plans.offsets(kernel)):
        for r in range(SHAPE[0]):
            for c in range(SHAPE[1]):
                if 0 <= r + dr < SHAPE[0] and 0 <= c + dc < SHAPE[1]:
                    yield j, r, c, r + dr, c + dc


def test_offsets_go_row_by_row_around_the_middle():
    assert plans.offsets(3).tolist() == [[a, b] for a in (-1, 0, 1) for b in (-1, 0, 1)]
    assert plans.offsets(7)[24].tolist() == [0, 0]


@pytest.mark.parametrize(("kernel", "message"), [(4, "kernel must be odd; got 4"), (0, "kernel must be >= 1; got 0")])
def test_window_is_odd(kernel, message):
    with pytest.raises(ValueError, match=message):
        plans.offsets(kernel)


def test_costs_are_powers_of_the_distance():
    np.testing.assert_allclose(plans.costs(3, 1)[[0, 1, 4]], [2**0.5, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(plans.costs(5, 2)[[0, 1, 2, 12]], [8, 5, 4, 0])


def test_allowed_moves_stay_inside():
    expected = np.zeros((9, *SHAPE[:2], 1), bool)
    for j, r, c, _, _ in moves(3):
        expected[j, r, c] = True
    np.testing.assert_array_equal(plans.allowed(SHAPE, 3), expected)


def test_identity_moves_nothing(image):
    identity = plans.identity(image, 5)
    np.testing.assert_array_equal(plans.columns(identity), image)
    assert plans.costs(5, 1) @ np.asarray(identity).sum((1, 2, 3)) == 0


def test_windows_look_along_the_offsets(image):
    seen = np.zeros((9, *SHAPE), np.float32)
    for j, r, c, to_r, to_c in moves(3):
        seen[j, r, c] = image[to_r, to_c]
    np.testing.assert_array_equal(plans.windows(image, 3), seen)


def test_columns_gather_what_arrives(plan):
    arriving = np.zeros(SHAPE)
    for j, r, c, to_r, to_c in moves(3):
        arriving[to_r, to_c] += plan[j, r, c]
    np.testing.assert_allclose(plans.columns(plan), arriving, rtol=1e-5)


def test_windows_are_the_transpose_of_columns(image, plan):
    np.testing.assert_allclose(jnp.vdot(plans.windows(image, 3), plan), jnp.vdot(image, plans.columns(plan)), rtol=1e-5)
    pulled = jax.vjp(plans.columns, plan)[1](image)[0]
    np.testing.assert_array_equal(pulled, plans.windows(image, 3))


def test_sums_over_the_window(plan, image):
    terms = [lambda a, j: a[0][j] * a[1], lambda a, j: jnp.where(a[0][j] > 0.5, float(j), 0)]
    first, second = jax.jit(lambda p, x: plans.window_sums(terms, 3, (p, x)))(plan, image)
    np.testing.assert_allclose(first, (plan * image[None]).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(second, (np.asarray(plan > 0.5) * np.arange(9)[:, None, None, None]).sum(0))
    np.testing.assert_allclose(plans.grand_total(image), image.sum(), rtol=1e-6)
