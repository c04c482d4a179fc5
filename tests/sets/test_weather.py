"""Fog, Gabor noise and snow against slow float64 implementations of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxrobust.sets import weather
from jaxrobust.sets.weather import Fog, Gabor, Snow
from tests.compiled import call, compiled
from tests.references import unforeseen

KEY = jax.random.key(4)
STILL = np.zeros((7, 13, 13), np.float32)
X = (np.random.default_rng(0).random((9, 12, 3)) * [0.9, 0.5, 0.7]).astype(np.float32)


# with the numbers that they draw
kernel_of = compiled(lambda key: (weather._gabor_kernel(key, jnp.float32), jax.random.uniform(key, (4,))))
streaks_of = compiled(lambda key: (weather._streaks(key, jnp.float32), jax.random.uniform(key, (5, 7, 1, 1))))


def like(tree, value):
    """A pytree of these shapes, all of one number."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), tree)


def test_fog_is_diamond_square():
    """Each new height is the mean of its four neighbours, plus its displacement."""
    fog, (levels, drawn) = Fog(512.0, decay=1.75), call(Fog(512.0), "sample", KEY, X)
    heights = unforeseen.heights(levels, 1.75)
    density = (heights - heights.min()) / (heights.max() - heights.min())
    density = density[3:12, 2:14]  # the centre of 16 x 16
    np.testing.assert_allclose(call(fog, "density", X, levels), density, atol=2e-6)
    strength = 512 / 255
    expected = (np.asarray(X) + strength * density[..., None]) / (np.asarray(X).max((0, 1)) + strength)
    np.testing.assert_allclose(call(fog, "apply", X, (levels, drawn)), expected, atol=2e-6)


def test_fog_map_has_the_published_sizes():
    for side, levels in ((32, 6), (224, 8), (1, 1)):
        shapes = jax.eval_shape(Fog(1.0).init, jnp.zeros((side, side, 3)))[0]
        assert [leaf.shape for leaf in shapes] == [(3, 2**i, 2**i) for i in range(levels)]


def test_fog_without_displacements_or_light_is_finite():
    flat = like(jax.eval_shape(Fog(128.0).init, X), 0.5)
    np.testing.assert_array_equal(call(Fog(128.0), "density", X, flat[0]), 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(call(Fog(128.0), "pullback", X, flat, X)))
    black = np.zeros_like(X)
    np.testing.assert_array_equal(call(Fog(0.0), "apply", black, flat), black)
    np.testing.assert_allclose(call(Fog(0.0), "apply", X, flat), X / X.max((0, 1), keepdims=True), rtol=1e-6)


@pytest.mark.slow
def test_fog_gradients_do_not_depend_on_the_batch():
    """Nor do they lose the share of the lowest and the highest point."""
    images = jnp.asarray(np.random.default_rng(0).random((8, 6, 5, 1)), jnp.float32)
    fog = Fog(512.0)
    theta = jax.vmap(fog.sample)(jax.random.split(jax.random.key(1), 8), images)
    pull = jax.jit(lambda x, theta: jax.vmap(fog.pullback)(x, theta, x)[0])
    together = jax.tree.map(lambda leaf: leaf[2:3], pull(images, theta))
    alone = pull(images[2:3], jax.tree.map(lambda leaf: leaf[2:3], theta))
    for left, right in zip(together, alone, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-3)
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(images[2]), jnp.float64)
        levels = [jnp.asarray(np.asarray(leaf[2]), jnp.float64) for leaf in theta[0]]

        def loss(first):
            return jnp.sum(x * call(fog, "apply", x, ((first, *levels[1:]), ())))

        for i in range(3):
            step = jnp.zeros((3, 1, 1)).at[i].set(1e-6)
            slope = (loss(levels[0] + step) - loss(levels[0] - step)) / 2e-6
            np.testing.assert_allclose(together[0][0, i, 0, 0], slope, rtol=1e-4)


def test_gabor_noise():
    gabor, (values, drawn) = Gabor(25.0), call(Gabor(25.0), "sample", KEY, X)
    noise = unforeseen.gabor_noise(np.asarray(values, float), np.asarray(drawn["kernel"], float))
    # dividing by the local deviation makes float32 noise of the convolution a thousandfold near its mean
    np.testing.assert_allclose(call(gabor, "noise", values, drawn), noise, atol=2e-3)
    expected = np.clip(np.asarray(X) + 25 / 255 * np.asarray(call(gabor, "noise", values, drawn))[..., None], 0, 1)
    np.testing.assert_allclose(call(gabor, "apply", X, (values, drawn)), expected, atol=1e-6)


def test_gabor_kernel_is_a_sum_of_gabor_functions():
    seen = set()
    for seed in range(8):
        key = jax.random.key(seed)
        kernel, drawn = kernel_of(key)
        side, width, wave, turn = drawn.astype(float)
        sides = int(1 + 10 * side)
        expected = unforeseen.gabor_kernel(sides, 0.1 + 0.3 * width, 3 + 2.75 * wave, np.pi * turn)
        np.testing.assert_allclose(kernel, expected, atol=2e-5)
        seen.add(sides)
    assert len(seen) > 3


def test_gabor_moves_only_its_places():
    gabor, x = Gabor(25.0), np.zeros((28, 14, 1), np.float32)
    values, drawn = call(gabor, "sample", KEY, x)
    assert np.sum(drawn["mask"]) == 28  # one in fourteen
    assert np.all((values == 0) == (drawn["mask"] == 0))
    ones = like((values, drawn), 1)
    moved = call(gabor, "project", x, call(gabor, "ascend", x, (values, drawn), ones, np.float32(50.0)))
    np.testing.assert_array_equal(moved[0], drawn["mask"])
    np.testing.assert_array_equal(moved[1]["kernel"], drawn["kernel"])
    assert not call(gabor, "contains", x, (moved[0] + np.float32(0.5) * (1 - drawn["mask"]), drawn))
    nothing = call(gabor, "apply", x, (np.zeros_like(values), drawn))
    np.testing.assert_array_equal(nothing, x)


def test_snow():
    snow, (intensity, streaks) = Snow(2.0), call(Snow(2.0), "sample", KEY, X)
    flakes = unforeseen.snow(np.asarray(intensity, float), np.asarray(streaks, float), X.shape[:2])
    np.testing.assert_allclose(call(snow, "flakes", X, intensity, streaks), flakes, atol=1e-6)
    image = np.asarray(X, float)
    grey = image @ [0.2126, 0.7152, 0.0722]
    pale = 0.75 * image + 0.25 * np.maximum(image, 1.5 * grey[..., None] + 0.5)
    expected = np.clip(pale + 2 * flakes[..., None], 0, 1)
    np.testing.assert_allclose(call(snow, "apply", X, (intensity, streaks)), expected, atol=2e-6)


def test_snow_streaks_are_lines():
    for seed in range(5):
        key = jax.random.key(seed)
        streaks, draws = streaks_of(key)
        draws = draws.astype(float)[..., 0, 0]
        for found, (down, across, width, blur, _) in zip(streaks, draws.T, strict=True):
            width = [1, 3, 5][int(width >= 0.6) + int(width >= 0.9)]
            line = unforeseen.streak(int(2 + 5 * down), int(2 + 5 * across), width)
            line = line[:, ::-1] if draws[4, 0] < 0.5 else line
            np.testing.assert_allclose(found, unforeseen.blurred(line, 0.41 + 0.19 * blur), atol=1e-5)


def test_snow_projection_is_nearest(rng):
    """On one lattice of 3 x 2 flakes, against a quadratic programme."""
    x = np.zeros((12, 8, 1), np.float32)
    far = rng.normal(0.4, 0.4, (7, 3, 2))
    found = np.asarray(call(Snow(1.0), "project", x, (far.astype(np.float32), STILL))[0])
    for plane, near in zip(far, found, strict=True):
        budget = {"type": "ineq", "fun": lambda v: 0.2 - v.mean()}
        solved = optimize.minimize(
            lambda v, z=plane.ravel(): np.sum((v - z) ** 2), np.full(6, 0.1), bounds=[(0, 1)] * 6, constraints=[budget]
        )
        np.testing.assert_allclose(near.ravel(), solved.x, atol=1e-3)


def test_snow_budget_holds_in_every_block():
    """13 x 9 flakes make blocks of 8 x 8, 8 x 1, 5 x 8 and 5 x 1."""
    x = np.zeros((52, 36, 1), np.float32)
    intensity = call(Snow(1.0), "project", x, (np.ones((7, 13, 9), np.float32), STILL))[0]
    np.testing.assert_allclose(intensity, 0.2, atol=1e-6)


def test_snow_takes_colour_or_grey():
    grey, theta = np.full((4, 4, 1), 0.2, np.float32), (np.zeros((7, 1, 1), np.float32), STILL)
    np.testing.assert_allclose(call(Snow(1.0), "apply", grey, theta), 0.75 * 0.2 + 0.25 * 0.8, rtol=1e-6)
    with pytest.raises(ValueError, match="1 or 3 channels for Snow; got 2"):
        call(Snow(1.0), "apply", np.zeros((4, 4, 2), np.float32), theta)


@pytest.mark.parametrize("perturbation_set", [Fog(512.0), Gabor(25.0), Snow(0.25)], ids=str)
def test_the_strength_is_given_and_steps_are_relative(perturbation_set):
    theta = call(perturbation_set, "sample", KEY, X)
    assert call(perturbation_set, "size", X, theta) == perturbation_set.radius
    ones = like(theta, 1)
    moved = call(perturbation_set, "ascend", X, theta, ones, np.float32(0.01 * perturbation_set.radius))
    for before, after in zip(jax.tree.leaves(theta[0]), jax.tree.leaves(moved[0]), strict=True):
        np.testing.assert_allclose(after - before, 0.01, atol=1e-6)
    for before, after in zip(jax.tree.leaves(theta[1]), jax.tree.leaves(moved[1]), strict=True):
        np.testing.assert_array_equal(after, before)
    still = call(perturbation_set.with_radius(0.0), "ascend", X, theta, ones, np.float32(0.0))
    np.testing.assert_array_equal(still[0][0], theta[0][0])
    pulled = call(perturbation_set, "pullback", X, theta, X)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(pulled[0]))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(pulled[1]))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"decay must be finite and >= 1; got 0.5"):
        Fog(1.0, decay=0.5)
    with pytest.raises(ValueError, match=r"budget must be finite and in \[1e-06, 1\]; got 2.0"):
        Snow(1.0, budget=2.0)
