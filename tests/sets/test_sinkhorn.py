"""The two entropic Wasserstein balls: membership by an LP, steps, and what is made of images in trouble."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.sets.sinkhorn import WassersteinOTT, WassersteinSinkhorn
from jaxrobust.transport import plans
from tests.references import transport as reference

SETS = {
    "sinkhorn": lambda radius: WassersteinSinkhorn(radius, kernel=3, rounds=100),
    "ott": lambda radius: WassersteinOTT(radius, kernel=3, iterations=200),
}


@functools.partial(jax.jit, static_argnums=1)
def call(perturbation_set, method, *arguments):
    return getattr(perturbation_set, method)(*arguments)


def stroke():
    """Saturated pixels on black, as handwriting is."""
    image = np.zeros((7, 6, 1), np.float32)
    image[1:6, 2:4] = 1
    image[1, 1:5] = 0.4
    return jnp.asarray(image)


def distance(x, theta):
    """The LP's distance to the columns of a plan, without its dust and with exact rows: the LP forgives no rounding."""
    x, plan = np.asarray(x, float), np.asarray(theta, float)
    plan = np.where(plan > 1e-7, plan, 0)
    plan[plan.shape[0] // 2] += x - plan.sum(0)
    z = np.zeros_like(x)
    for mass, (r, c) in zip(plan, plans.offsets(3), strict=True):
        for i, j in np.argwhere(mass.sum(-1) > 0):
            z[i + r, j + c] += mass[i, j]
    np.testing.assert_allclose(z, plans.columns(theta), atol=5e-6)
    return reference.distance(x, z, 2, 3)


def stepped(perturbation_set, x, gradient, size, steps=1):
    theta = perturbation_set.init(x)
    for _ in range(steps):
        pulled = call(perturbation_set, "pullback", x, theta, gradient)
        theta = call(perturbation_set, "project", x, call(perturbation_set, "ascend", x, theta, pulled, size))
    return theta


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("radius", [0.05, pytest.param(0.4, marks=pytest.mark.slow)])
def test_the_exact_distance_of_what_projects_is_inside(rng, name, radius):
    perturbation_set = SETS[name](radius)
    for x in (stroke(), jnp.asarray(rng.random((7, 6, 1)), jnp.float32)):
        gradient = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        theta = stepped(perturbation_set, x, gradient, jnp.asarray(radius), steps=3)
        image = call(perturbation_set, "apply", x, theta)
        true = distance(x, theta)
        assert true <= radius * (1 + 1e-4) + 1e-5
        assert true >= 0.1 * radius
        assert true <= float(call(perturbation_set, "size", x, theta)) + 1e-5
        np.testing.assert_allclose(image.sum(), x.sum(), rtol=1e-5)
        assert float(jnp.sum(gradient * (image - x))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SETS))
def test_colours_keep_their_mass(rng, name):
    x = jnp.asarray(rng.random((6, 5, 3)), jnp.float32).at[..., 1].set(0)
    gradient = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    image = call(SETS[name](0.3), "apply", x, stepped(SETS[name](0.3), x, gradient, jnp.asarray(0.3)))
    np.testing.assert_allclose(image.sum((0, 1)), x.sum((0, 1)), rtol=1e-5)
    assert float(jnp.max(jnp.abs(image - x)[..., 0])) > 1e-2


@pytest.mark.parametrize("name", sorted(SETS))
def test_white_has_no_room_and_black_nothing_to_move(rng, name):
    gradient = jnp.asarray(rng.normal(size=(7, 6, 1)), jnp.float32)
    for x in (jnp.ones((7, 6, 1)), jnp.zeros((7, 6, 1))):
        theta = stepped(SETS[name](0.3), x, gradient, jnp.asarray(0.3))
        np.testing.assert_allclose(call(SETS[name](0.3), "apply", x, theta), x, atol=2e-6)


@pytest.mark.parametrize("name", sorted(SETS))
def test_gradients_that_vanish_or_are_tiny_do_no_harm(name):
    x = stroke()
    for gradient in (jnp.zeros_like(x), jnp.full_like(x, 1e-30)):
        theta = stepped(SETS[name](0.3), x, gradient, jnp.asarray(0.1))
        assert np.isfinite(np.asarray(theta)).all()
        assert call(SETS[name](0.3), "contains", x, theta)


def test_a_sinkhorn_step_is_a_sign_step_of_the_image(rng):
    """Half of what it changes is `size` of all mass: that much mass, if it moves by one pixel."""
    perturbation_set, x = SETS["sinkhorn"](0.3), jnp.asarray(rng.random((7, 6, 1)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    pulled = call(perturbation_set, "pullback", x, perturbation_set.init(x), gradient)
    moved = plans.columns(call(perturbation_set, "ascend", x, perturbation_set.init(x), pulled, jnp.asarray(0.2))) - x
    np.testing.assert_array_equal(jnp.sign(moved), jnp.sign(gradient))
    np.testing.assert_allclose(jnp.abs(moved), jnp.abs(moved).mean(), atol=1e-6)
    np.testing.assert_allclose(jnp.abs(moved).sum() / 2, 0.2 * x.sum(), rtol=1e-5)


def test_a_sinkhorn_projection_is_no_further_than_where_the_step_began(rng):
    """The entropic term alone would throw a member back: here a step that is too small for it stays."""
    perturbation_set, x = SETS["sinkhorn"](0.3), jnp.asarray(rng.random((7, 6, 1)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    theta = stepped(perturbation_set, x, gradient, jnp.asarray(0.3), steps=2)
    for size in (1e-4, 1e-2, 0.5):
        pulled = call(perturbation_set, "pullback", x, theta, gradient)
        far = call(perturbation_set, "ascend", x, theta, pulled, jnp.asarray(size))
        wanted, near = plans.columns(far), plans.columns(call(perturbation_set, "project", x, far))
        began = plans.columns(theta)
        assert (
            float(jnp.linalg.norm((near - wanted).ravel())) <= float(jnp.linalg.norm((began - wanted).ravel())) + 1e-5
        )
        assert float(jnp.sum(jnp.sign(gradient) * (near - began))) >= -1e-4


@pytest.mark.slow
def test_an_unfinished_iteration_is_mended(rng):
    """Exponents of thousands and three rounds: the plan is a member all the same, by the LP too."""
    x = np.zeros((6, 5, 1), np.float32)
    x[2, 2], x[3, 3] = 1.0, 0.01
    x = jnp.asarray(x)
    perturbation_set = WassersteinSinkhorn(0.3, kernel=3, regularisation=1e5, rounds=3)
    theta = stepped(perturbation_set, x, jnp.asarray(rng.normal(size=x.shape), jnp.float32), jnp.asarray(2.0))
    assert call(perturbation_set, "contains", x, theta)
    assert distance(x, theta) <= 0.3 * (1 + 1e-4)


def test_an_ott_step_costs_what_it_says(rng):
    """Moving mass by `size`, best gain per cost first, is feasible as it is, and nearly the best there is."""
    perturbation_set, x = SETS["ott"](1.0), jnp.asarray(rng.uniform(0.1, 0.5, (7, 6, 1)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    pulled = call(perturbation_set, "pullback", x, perturbation_set.init(x), gradient)
    image = plans.columns(call(perturbation_set, "ascend", x, perturbation_set.init(x), pulled, jnp.asarray(0.1)))
    assert reference.distance(x, image, 2, 3) <= 0.1 * (1 + 1e-4)
    np.testing.assert_allclose(image.sum(), x.sum(), rtol=1e-5)
    assert float(image.min()) >= -1e-6
    assert float(image.max()) <= 1 + 1e-6
    best = reference.maximise(x, plans.windows(gradient, 3), 0.1, 2, 3)
    most = np.sum(np.asarray(plans.windows(gradient, 3)) * best) - float(jnp.sum(gradient * x))
    assert float(jnp.sum(gradient * (image - x))) >= 0.8 * most


def test_an_ott_projection_uses_its_radius_and_keeps_what_is_inside(rng):
    x = stroke()
    gradient = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    start = SETS["ott"](1.0).init(x)
    pulled = call(SETS["ott"](1.0), "pullback", x, start, gradient)
    far = call(SETS["ott"](1.0), "ascend", x, start, pulled, jnp.asarray(0.3))
    for radius in (0.02, 0.1):
        near = call(SETS["ott"](radius), "project", x, far)
        assert 0.7 * radius <= distance(x, near) <= radius * (1 + 1e-4)
    image = call(SETS["ott"](1.0), "apply", x, call(SETS["ott"](1.0), "project", x, far))
    np.testing.assert_allclose(image, plans.columns(far), atol=5e-3)


def test_the_ott_size_can_be_a_penalty(rng):
    """Descending it off the plans brings an image back to the ball, with gradients finite where pixels are black."""
    perturbation_set, x = SETS["ott"](0.05), stroke()
    gradient = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    pulled = call(perturbation_set, "pullback", x, perturbation_set.init(x), gradient)
    theta = call(perturbation_set, "ascend", x, perturbation_set.init(x), pulled, jnp.asarray(0.3))
    slope = jax.jit(jax.grad(lambda theta: perturbation_set.size(x, theta)))
    before = float(call(perturbation_set, "size", x, theta))
    np.testing.assert_allclose(before, reference.distance(x, plans.columns(theta), 2, 3), rtol=0.1)
    middle = perturbation_set.kernel**2 // 2
    for _ in range(20):
        found = slope(theta)
        assert np.isfinite(np.asarray(found)).all()
        step = 0.02 * found[middle] / jnp.max(jnp.abs(found[middle]))
        theta = theta.at[middle].add(jnp.clip(plans.columns(theta) - step, 0, 1) - plans.columns(theta))
    assert float(call(perturbation_set, "size", x, theta)) < 0.9 * before


@pytest.mark.parametrize("make", [WassersteinSinkhorn, WassersteinOTT])
def test_bad_settings_are_refused(make):
    for settings, message in (
        ({"p": 3}, "p must be one of"),
        ({"kernel": 4}, "kernel must be odd; got 4"),
        ({"kernel": 0}, "kernel must be >= 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(0.1, **settings)
    name = "rounds" if make is WassersteinSinkhorn else "iterations"
    with pytest.raises(ValueError, match=f"{name} must be >= 1; got 0"):
        make(0.1, **{name: 0})
