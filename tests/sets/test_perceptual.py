"""The perceptual ball: PPGD's step against its lemma, projections that are feasible, and what measures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, perceptual
from jaxrobust.sets.perceptual import Perceptual
from jaxrobust.types import Classifier
from tests import tiny

SHAPE = (4, 3, 2)


def activations(params, images):
    first = jax.nn.silu(images @ params["first"] + 0.3)
    return first, jax.nn.silu(first.reshape(len(images), 1, 1, -1) @ params["second"])


def logits(params, images):
    return activations(params, images)[1][:, 0, 0] @ params["out"]


@functools.cache
def network(seed=0, pixels=12):
    """A small smooth classifier with activations of more numbers than an image has pixels."""
    rng = np.random.default_rng(seed)
    params = {
        "first": jnp.asarray(rng.normal(size=(2, 5)), jnp.float32),
        "second": jnp.asarray(rng.normal(size=(5 * pixels, 40)) / 4, jnp.float32),
        "out": jnp.asarray(rng.normal(size=(40, 4)), jnp.float32),
    }
    return Classifier(logits, params, activations)


@functools.partial(jax.jit, static_argnums=1)
def call(ball, method, *arguments):
    return getattr(ball, method)(*arguments)


@functools.partial(jax.jit, static_argnums=1)
def mapped(ball, method, *arguments):
    return jax.vmap(getattr(ball, method))(*arguments)


@pytest.fixture
def image(rng):
    return jnp.asarray(0.2 + 0.6 * rng.random(SHAPE), jnp.float32)


def far_batch(rng, count=24):
    images = rng.random((count, *SHAPE)).astype(np.float32)
    return images, rng.normal(size=images.shape).astype(np.float32)


def measured(net, images, others):
    """d recomputed in float64 from the activations, away from the set's code."""
    total = 0
    for a, b in zip(*(net.activations(net.params, jnp.asarray(each)) for each in (images, others)), strict=True):
        a, b = (np.asarray(maps, np.float64) for maps in (a, b))
        a, b = (maps / (np.linalg.norm(maps, axis=-1, keepdims=True) + 1e-10) for maps in (a, b))
        total += ((a - b) ** 2).sum(-1).mean((1, 2))
    return np.sqrt(total)


def jacobian(net, image):
    """J as a matrix, in float64."""

    def flat(image):
        return jnp.concatenate([maps.reshape(-1) for maps in perceptual.features(net, image)])

    return np.asarray(jax.jit(jax.jacobian(flat))(image), np.float64).reshape(-1, image.size)


def test_the_step_is_the_lemmas_maximiser(rng):
    """η (JᵀJ)⁻¹ g / ‖(J⁺)ᵀ g‖, and ‖(J⁺)ᵀ g‖² = gᵀ (JᵀJ)⁻¹ g."""
    image, net, size = jnp.asarray(rng.random((2, 2, 2)), jnp.float32), network(pixels=4), 0.02
    gradient = rng.normal(size=image.shape).astype(np.float32)
    matrix, g = jacobian(net, image), gradient.astype(np.float64).ravel()
    solution = np.linalg.solve(matrix.T @ matrix + 1e-6 * np.eye(len(g)), g)
    root = np.linalg.norm(np.linalg.pinv(matrix).T @ g)
    np.testing.assert_allclose(root**2, g @ np.linalg.solve(matrix.T @ matrix, g), rtol=1e-9)
    exact = Perceptual(0.5, net, iterations=12)
    step = np.asarray(call(exact, "ascend", image, 0 * image, gradient, jnp.float32(size)), np.float64).ravel()
    wanted = size * solution / np.linalg.norm(matrix @ solution)
    assert np.linalg.norm(step - wanted) < 0.02 * np.linalg.norm(wanted)
    np.testing.assert_allclose(np.linalg.norm(matrix @ step), size, rtol=1e-3)
    np.testing.assert_allclose(g @ step, size * root, rtol=1e-2)


def test_no_move_of_the_same_perceptual_size_gains_more(image, rng):
    gradient, size = rng.normal(size=SHAPE).astype(np.float32), 0.02
    matrix, g = jacobian(network(), image), gradient.ravel().astype(np.float64)
    others = np.concatenate([rng.normal(size=(2000, len(g))), g[None], np.sign(g)[None]])
    others *= (size / np.linalg.norm(others @ matrix.T, axis=1))[:, None]
    gains = {}
    for rounds in (1, 2, 5):
        ball = Perceptual(0.5, network(), iterations=rounds)
        step = np.asarray(call(ball, "ascend", image, jnp.zeros(SHAPE), gradient, jnp.float32(size))).ravel()
        np.testing.assert_allclose(np.linalg.norm(matrix @ step), size, rtol=1e-3)
        gains[rounds] = g @ step
    assert gains[1] == pytest.approx(others[-2] @ g, rel=1e-3)  # one round is the plain gradient
    assert gains[1] < gains[2] < gains[5]
    assert (others @ g).max() < gains[5]


@pytest.mark.parametrize("size", [0.003, 0.01])
def test_a_step_has_its_size_in_the_unit_of_the_radius(image, rng, size):
    ball, gradient = Perceptual(0.5, network()), rng.normal(size=SHAPE).astype(np.float32)
    start = call(ball, "sample", jax.random.key(0), image)
    moved = call(ball, "ascend", image, start, gradient, jnp.float32(size))
    np.testing.assert_allclose(call(ball, "distance", image, start, moved), size, rtol=0.1)


def test_the_gradients_length_does_not_matter_but_zero_is_zero(image, rng):
    ball, gradient = Perceptual(0.5, network()), rng.normal(size=SHAPE).astype(np.float32)
    zero, size = jnp.zeros(SHAPE), jnp.float32(0.02)
    step = call(ball, "ascend", image, zero, gradient, size)
    for factor in (1e-25, 1e25):
        np.testing.assert_allclose(call(ball, "ascend", image, zero, factor * gradient, size), step, rtol=1e-3)
    np.testing.assert_array_equal(call(ball, "ascend", image, step, zero, size), step)


@pytest.mark.parametrize("projection", ["newton", "bisection"])
@pytest.mark.parametrize("radius", [0.02, 0.3])
def test_projections_are_feasible_and_near_the_boundary(projection, radius, rng):
    images, theta = far_batch(rng)
    ball = Perceptual(radius, network(), projection=projection)
    near = np.asarray(mapped(ball, "project", images, theta))
    found = np.clip(images + near, 0, 1)
    np.testing.assert_allclose(found, images + near, atol=1e-6)
    sizes = measured(network(), images, found)
    assert (sizes <= radius + 1e-5).all()
    assert np.median(sizes) > 0.7 * radius
    np.testing.assert_allclose(sizes, mapped(ball, "size", images, near), rtol=1e-3)


def test_bisection_returns_a_feasible_point_of_the_segment(rng):
    images, theta = far_batch(rng)
    radius = 0.1
    near = np.asarray(mapped(Perceptual(radius, network(), projection="bisection"), "project", images, theta))
    clipped = np.clip(theta, -images, 1 - images)
    scale = (near * clipped).sum((1, 2, 3)) / (clipped**2).sum((1, 2, 3))
    np.testing.assert_allclose(near, scale[:, None, None, None] * clipped, atol=1e-6)
    np.testing.assert_allclose(scale * 2**10, np.round(scale * 2**10), atol=1e-2)
    beyond = (scale + 2**-10)[:, None, None, None] * clipped
    assert (measured(network(), images, images + beyond) > radius).all()


def test_newton_comes_nearer_than_bisection(rng):
    """Less of the move is lost, on average."""
    images, theta = far_batch(rng)
    lost = {}
    for projection in ("newton", "bisection"):
        near = mapped(Perceptual(0.3, network(), projection=projection), "project", images, theta)
        clipped = np.clip(theta, -images, 1 - images)
        lost[projection] = np.linalg.norm((np.asarray(near) - clipped).reshape(len(images), -1), axis=1)
    assert lost["newton"].mean() < 0.95 * lost["bisection"].mean()


def test_newton_falls_back_to_bisection_where_the_distance_has_no_slope(rng):
    def stairs(params, images):
        return (jnp.concatenate([jnp.round(8 * images), jnp.ones_like(images)], -1),)

    images, theta = far_batch(rng)
    steps = Classifier(lambda params, images: images.mean((1, 2)), (), stairs)
    newton, bisection = (Perceptual(0.3, steps, projection=each) for each in ("newton", "bisection"))
    near = mapped(newton, "project", images, theta)
    assert (measured(steps, images, np.clip(images + near, 0, 1)) <= 0.3 + 1e-5).all()
    np.testing.assert_allclose(near, mapped(bisection, "project", images, theta), atol=1e-6)
    assert (np.abs(near).max((1, 2, 3)) > 0).all()


def test_one_examples_fallback_does_not_touch_the_others(rng):
    images, theta = far_batch(rng, 8)
    ball = Perceptual(0.1, network())
    near = mapped(ball, "project", images, theta)
    theta = np.concatenate([theta[:4], 0.001 * theta[4:6], np.full_like(theta[6:], np.nan)])
    again = mapped(ball, "project", images, theta)
    np.testing.assert_array_equal(again[:4], near[:4])
    np.testing.assert_allclose(again[4:6], np.clip(theta[4:6], -images[4:6], 1 - images[4:6]), atol=1e-7)


def test_without_projection_only_the_box_holds(rng):
    images, theta = far_batch(rng)
    free = mapped(Perceptual(0.1, network(), projection="none"), "project", images, theta)
    np.testing.assert_allclose(free, np.clip(theta, -images, 1 - images), atol=1e-7)


def test_a_network_that_sees_nothing_lets_everything_pass_and_steps_stay_in_scale(image, rng):
    blind = Classifier(lambda p, x: x.mean((1, 2)), (), lambda p, x: (jnp.ones_like(x), jnp.zeros_like(x)))
    ball, gradient = Perceptual(0.5, blind), rng.normal(size=SHAPE).astype(np.float32)
    step = call(ball, "ascend", image, jnp.zeros(SHAPE), gradient, jnp.float32(0.02))
    np.testing.assert_allclose(step, gradient / np.abs(gradient).max(), rtol=1e-5)
    inside = call(ball, "project", image, step)
    assert call(ball, "contains", image, inside)
    np.testing.assert_array_equal(call(ball.with_radius(0.0), "project", image, step), 0)


def test_nan_activations_give_the_clean_image(image):
    broken = Classifier(lambda p, x: x.mean((1, 2)), (), lambda p, x: (jnp.full_like(x, jnp.nan),))
    near = call(Perceptual(0.5, broken), "project", image, jnp.full(SHAPE, 0.1))
    np.testing.assert_array_equal(near, 0)


@pytest.mark.slow
def test_self_bounded_attack_measures_with_the_attacked_model():
    net = network(3)
    images, labels = tiny.images_and_labels(net, 6, shape=SHAPE)
    attack = attacks.pgd(Perceptual(0.2), steps=4, loss="margin", relative_step_size=0.5)
    found = attacks.run(attack, net, images, labels, key=jax.random.key(0))
    sizes = measured(net, images, found.images)
    assert (sizes <= 0.2 + 1e-5).all()
    assert sizes[:-1].max() > 0.15
    np.testing.assert_allclose(found.size, sizes, rtol=1e-3, atol=1e-6)
    external = attacks.run(
        attack.bound_to(network(4)), net, images, labels, key=jax.random.key(0)
    )  # a set that has a network keeps it
    assert (measured(network(4), images, external.images) <= 0.2 + 1e-5).all()
    assert not np.allclose(external.images, found.images, atol=1e-3)


def test_gradients_reach_the_radius_and_other_networks_need_no_new_program(image):
    traces = 0

    @jax.jit
    def project(ball, theta):
        nonlocal traces
        traces += 1
        return ball.project(image, theta)

    theta = jnp.full(SHAPE, 0.3)
    near = [project(Perceptual(radius, network(seed)), theta) for radius, seed in ((0.1, 0), (0.2, 0), (0.1, 1))]
    assert traces == 1
    assert not np.allclose(near[0], near[1])
    assert not np.allclose(near[0], near[2])


def test_an_unbound_set_says_what_to_do(image):
    ball = Perceptual(0.5)
    assert str(ball) == "Perceptual(0.5)"
    for method, arguments in {
        "size": (ball.init(image),),
        "project": (ball.init(image),),
        "ascend": (ball.init(image), image, jnp.float32(0.1)),
    }.items():
        with pytest.raises(ValueError, match=r"network is None.*call bound_to\(model\) first"):
            getattr(ball, method)(image, *arguments)


def test_refused_at_the_door():
    bare = Classifier.from_function(lambda x: x.mean((1, 2)))
    with pytest.raises(ValueError, match="network must have activations"):
        Perceptual(0.5, bare)
    with pytest.raises(ValueError, match="network must have activations"):
        Perceptual(0.5).bound_to(bare)
    with pytest.raises((TypeError, ValueError), match=r"projection.*linear"):  # the tests' type checker is first
        Perceptual(0.5, projection="linear")
    with pytest.raises(ValueError, match="iterations must be >= 1; got 0"):
        Perceptual(0.5, iterations=0)
    with pytest.raises(TypeError, match=r"network must be a Classifier.*got"):
        Perceptual(0.5, lambda images: images)
