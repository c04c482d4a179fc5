"""The exact projections onto a hyperplane within the box, against general-purpose solvers."""

import functools

import jax
import numpy as np
import pytest

from jaxrobust.attacks.core.hyperplane import to_hyperplane
from tests.compiled import compiled
from tests.references import hyperplane

NORMS = [1, 2, np.inf]
SHAPE = (3, 2, 1)


@functools.cache
def move(p):
    return compiled(functools.partial(to_hyperplane, p=p))


def project(x, normal, offset, p):
    """In float64, whatever the session's default."""
    with jax.enable_x64(True):
        return move(p)(x, normal, np.float64(offset))


@pytest.mark.parametrize("p", NORMS)
def test_it_is_the_nearest_point(p, rng):
    met_the_box = 0
    for _ in range(12):
        x, w = rng.random(SHAPE), rng.normal(size=SHAPE)
        offset = rng.normal() * 0.8
        expected = hyperplane.nearest(x, w, offset, p)
        if expected is None:
            continue
        found = project(x, w, offset, p)
        assert abs(np.sum(w * found) - offset) < 1e-12
        assert ((x + found >= -1e-12) & (x + found <= 1 + 1e-12)).all()
        # the l1 and l∞ problems may have several solutions, of one size
        assert abs(np.linalg.norm(found.ravel(), p) - np.linalg.norm(expected, p)) < 1e-9
        if p == 2:
            np.testing.assert_allclose(found.ravel(), expected, atol=1e-9)
        met_the_box += ((x + found < 1e-9) | (x + found > 1 - 1e-9)).any()
    assert met_the_box >= 2


@pytest.mark.parametrize("p", NORMS)
def test_out_of_reach_gives_the_nearest_corner(p, rng):
    x, w = rng.random(SHAPE), rng.normal(size=SHAPE)
    w[0, 0, 0] = 0
    for offset in (100.0, -100.0):
        found = project(x, w, offset, p)
        corner = np.where(np.sign(offset) * w > 0, 1.0, 0.0)
        np.testing.assert_allclose((x + found)[w != 0], corner[w != 0], atol=1e-15)
        assert found[0, 0, 0] == 0


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("offset", [0.0, 1.0, -1e30])
def test_without_a_normal_nothing_moves(p, offset, rng):
    assert (project(rng.random(SHAPE), np.zeros(SHAPE), offset, p) == 0).all()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_normal_does_not_matter(p, scale, rng):
    x, w = rng.random(SHAPE).astype(np.float32), rng.normal(size=SHAPE).astype(np.float32)
    plain = move(p)(x, w, np.float32(0.3))
    scaled = move(p)(x, w * np.float32(scale), np.float32(0.3 * scale))
    np.testing.assert_allclose(scaled, plain, atol=1e-6)
