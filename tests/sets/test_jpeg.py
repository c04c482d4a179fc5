"""JPEG against a float64 implementation of all its steps, and its balls against general-purpose solvers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft

from jaxrobust.sets import jpeg
from jaxrobust.sets.jpeg import JPEG
from tests.references import lp, unforeseen

CASES = [((16, 32, 3), True), ((8, 16, 3), False), ((16, 8, 1), True), ((8, 8, 1), False)]
GREY = np.full((8, 8, 1), 0.5, np.float32)


@functools.partial(jax.jit, static_argnums=1)
def call(perturbation_set, method, *arguments):
    return getattr(perturbation_set, method)(*arguments)


@pytest.mark.parametrize(("shape", "subsample"), CASES)
def test_all_steps_of_jpeg(rng, shape, subsample):
    """The short way, which never encodes the image, against encoding, perturbing and decoding it."""
    x = jnp.asarray(rng.random(shape), jnp.float32)
    perturbation_set = JPEG(1.0, subsample=subsample)
    theta = call(perturbation_set, "sample", jax.random.key(0), x)
    expected = unforeseen.decoded(x, theta, subsample)
    assert np.abs(expected - np.asarray(x)).max() > 0.05
    np.testing.assert_allclose(call(perturbation_set, "apply", x, theta), expected.clip(0, 1), atol=2e-6)


def test_tables():
    np.testing.assert_allclose(jpeg.DCT @ jpeg.DCT.T, np.eye(8), atol=1e-7)
    np.testing.assert_allclose(jpeg.DCT, fft.dct(np.eye(8), axis=0, norm="ortho"), atol=1e-7)
    np.testing.assert_allclose(jpeg.TO_YCC.astype(float) @ jpeg.TO_RGB, np.eye(3), atol=2e-6)
    assert jpeg.LUMINANCE[7, 0] == 72  # the highest vertical frequency
    assert jpeg.LUMINANCE[0, 7] == 61


def test_without_subsampling_the_identity_is_exact(rng):
    x = jnp.asarray(rng.random((16, 8, 3)), jnp.float32)
    perturbation_set = JPEG(1.0, subsample=False)
    np.testing.assert_array_equal(call(perturbation_set, "apply", x, perturbation_set.init(x)), x)
    np.testing.assert_allclose(unforeseen.decoded(x, perturbation_set.init(x), False), x, atol=2e-6)


def test_subsampling_changes_colours_only(rng):
    noise = jnp.asarray(rng.random((64, 64, 3)), jnp.float32)
    grey = jnp.repeat(noise[..., :1], 3, -1)
    perturbation_set = JPEG(1.0)
    np.testing.assert_allclose(call(perturbation_set, "apply", grey, perturbation_set.init(grey)), grey, atol=3e-7)
    change = np.abs(call(perturbation_set, "apply", noise, perturbation_set.init(noise)) - noise)
    assert 0.6 < change.max() < 1
    assert 0.14 < change.mean() < 0.2


@pytest.mark.parametrize(("row", "column"), [(7, 0), (0, 7), (2, 3)])
def test_one_coefficient_is_half_a_step(row, column):
    """v = ε at one place adds ε/2 quantisation steps of a cosine of vertical frequency `row`."""
    theta = {"y": jnp.zeros((8, 8)).at[row, column].set(0.5)}
    change = call(JPEG(0.5), "apply", GREY, theta) - GREY
    spectrum = fft.dctn(255 * np.asarray(change, float)[..., 0], norm="ortho")
    expected = np.zeros((8, 8))
    expected[row, column] = 0.25 * jpeg.LUMINANCE[row, column]
    np.testing.assert_allclose(spectrum, expected, atol=1e-4)


@pytest.mark.parametrize(("norm", "radius"), [("l2", 1.5), ("l2", 6.0), ("l1", 5.0), ("l1", 40.0)])
def test_projection_and_maximiser_solve_their_problems(rng, norm, radius):
    """Over ‖v‖ ≤ radius and |v_i| ≤ 2, both of which bind."""
    z = np.zeros((8, 8))
    z[:3, :4] = rng.normal(size=(3, 4)) * 4
    perturbation_set, theta = JPEG(radius, norm=norm), {"y": jnp.asarray(z, jnp.float32)}
    found = call(perturbation_set, "project", GREY, theta)["y"]
    middle = np.full(12, 0.5)  # the references' box is [−x, 1 − x]
    expected = 4 * lp.project(z[:3, :4] / 4, middle, norm, radius / 4)
    np.testing.assert_allclose(found[:3, :4].ravel(), expected, atol=2e-3)
    best = call(perturbation_set, "maximise", GREY, theta)["y"]
    np.testing.assert_allclose(np.sum(best * z), 4 * lp.maximise(z[:3, :4], middle, norm, radius / 4), rtol=1e-4)
    assert jnp.max(jnp.abs(best)) <= 2


def test_linf_is_not_limited():
    theta = {"y": jnp.full((8, 8), 7.0)}
    assert call(JPEG(5.0), "size", GREY, theta) == 7
    np.testing.assert_allclose(call(JPEG(5.0), "project", GREY, theta)["y"], 5.0, rtol=1e-6)
    assert not call(JPEG(5.0), "contains", GREY, theta)
    assert not call(JPEG(50.0, norm="l1"), "contains", GREY, {"y": jnp.zeros((8, 8)).at[0, 0].set(3.0)})


def test_pixels_on_the_edge_of_the_box_keep_their_gradient():
    black = jnp.zeros((8, 8, 1))
    gradient = call(JPEG(1.0), "pullback", black, {"y": jnp.zeros((8, 8))}, jnp.ones((8, 8, 1)))["y"]
    np.testing.assert_allclose(gradient[0, 0], 8 * 16 / 510, rtol=1e-5)
    clipped = call(JPEG(1.0), "pullback", black, {"y": jnp.zeros((8, 8)).at[0, 0].set(-1.0)}, jnp.ones((8, 8, 1)))["y"]
    np.testing.assert_array_equal(clipped, 0)


@pytest.mark.parametrize(
    ("shape", "subsample", "message"),
    [
        ((16, 24, 3), True, "height and width must be multiples of 16 for JPEG; got \\(16, 24\\)"),
        ((12, 16, 1), True, "multiples of 8"),
        ((12, 16, 3), False, "multiples of 8"),
        ((16, 16, 2), True, "1 or 3 channels for JPEG; got 2"),
    ],
)
def test_shapes_at_the_door(shape, subsample, message):
    with pytest.raises(ValueError, match=message):
        JPEG(1.0, subsample=subsample).init(jnp.zeros(shape))


def test_bad_arguments():
    with pytest.raises(ValueError, match="norm must be one of"):
        JPEG(1.0, norm="l0")
    with pytest.raises(ValueError, match=r"theta must have planes {'y': \(8, 8\)}; got {'y': \(8, 16\)}"):
        JPEG(1.0).apply(jnp.asarray(GREY), {"y": jnp.zeros((8, 16))})
