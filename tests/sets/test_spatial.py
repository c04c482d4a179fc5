"""Flows, rotations and elastic deformations against SciPy, closed forms and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxrobust.sets import _interpolation
from jaxrobust.sets._bounded import roughness
from jaxrobust.sets.spatial import Elastic, Flow, RotationTranslation
from tests.compiled import call, compiled, mapped
from tests.references import spatial as reference

SHAPES = [(6, 5, 3), (8, 8, 1), (1, 4, 2), (1, 1, 1)]

warp = compiled(_interpolation.warp, static_argnums=2)
rough = compiled(roughness)
rough_gradient = compiled(jax.grad(roughness))


@functools.partial(compiled, static_argnums=3)
def warp_slopes(weights, x, displacement, outside):
    """Gradients of <weights, warp> in the image and in the displacement."""
    return jax.grad(lambda *a: jnp.sum(weights * _interpolation.warp(*a, outside)), (0, 1))(x, displacement)


def image(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def smooth(height=9, width=12):
    rows, columns = np.mgrid[:height, :width]
    return (0.5 + 0.3 * np.sin(rows / 2)[..., None] * np.cos(columns / 3)[..., None] * np.ones(2)).astype(np.float32)


# The sampler


@pytest.mark.parametrize("outside", ["zero", "reflect"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sampling_equals_scipy(shape, outside):
    rng = np.random.default_rng(1)
    for scale in (0.4, 2.0, 9.0):
        displacement = (rng.normal(size=(*shape[:2], 2)) * scale).astype(np.float32)
        displacement[0, 0] = np.round(displacement[0, 0])
        ours = warp(image(shape), displacement, outside)
        np.testing.assert_allclose(ours, reference.warp(image(shape), displacement, outside), atol=2e-6)


@pytest.mark.parametrize("outside", ["zero", "reflect"])
def test_no_displacement_gives_the_same_bits(outside):
    x = image((37, 29, 3))
    np.testing.assert_array_equal(warp(x, np.zeros((37, 29, 2), np.float32), outside), x)


def test_sampled_images_stay_in_the_box():
    for seed in range(20):
        x = np.round(image((16, 16, 3), seed) * 3).clip(0, 2) / 2
        displacement = np.random.default_rng(seed).normal(size=(16, 16, 2)).astype(np.float32)
        for outside in ("zero", "reflect"):
            out = np.asarray(warp(x, displacement, outside))
            assert out.min() >= 0
            assert out.max() <= 1


def test_absurd_displacements_are_finite():
    for size in (1e9, 1e30):
        for outside in ("zero", "reflect"):
            assert np.isfinite(warp(image((5, 4, 1)), np.full((5, 4, 2), size, np.float32), outside)).all()


@pytest.mark.parametrize("outside", ["zero", "reflect"])
def test_gradient_equals_finite_differences_between_pixels(outside):
    """Central differences, at displacements whose fractions are far enough from the kinks."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        x, weights = rng.random((5, 4, 2)), rng.normal(size=(5, 4, 2))
        displacement = rng.integers(-2, 2, (5, 4, 2)) + rng.uniform(0.1, 0.9, (5, 4, 2))

        def loss(x, d):
            return np.sum(weights * warp(x, d, outside))

        for argument, start in enumerate((x, displacement)):
            gradient = warp_slopes(weights, x, displacement, outside)[argument]
            for _ in range(5):
                direction = rng.normal(size=start.shape)
                ends = [[x, displacement] for _ in range(2)]
                for sign, end in zip((1, -1), ends, strict=True):
                    end[argument] = start + sign * 1e-6 * direction
                slope = (loss(*ends[0]) - loss(*ends[1])) / 2e-6
                np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("outside", ["zero", "reflect"])
def test_gradient_at_a_pixel_is_the_mean_of_both_sides(outside):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        x, weights = rng.random((5, 4, 2)), rng.normal(size=(5, 4, 2))
        whole = rng.integers(-2, 3, (5, 4, 2)).astype(float)
        whole[::2] = 0

        def moved(d):
            return warp(x, d, outside)

        gradient = warp_slopes(weights, x, whole, outside)[1]
        for axis in (0, 1):
            step = np.zeros(2)
            step[axis] = 1e-4
            slopes = [(moved(whole + step) - moved(whole)) / 1e-4, (moved(whole) - moved(whole - step)) / 1e-4]
            np.testing.assert_allclose(gradient[..., axis], np.sum(weights * np.mean(slopes, 0), -1), atol=1e-8)
        # at the identity, away from the border, that is the central difference of the image
        gradient = warp_slopes(np.ones_like(weights), x, np.zeros((5, 4, 2)), outside)[1]
        np.testing.assert_allclose(gradient[1:-1, :, 0], np.sum(x[2:] - x[:-2], -1) / 2, atol=1e-12)
        np.testing.assert_allclose(gradient[:, 1:-1, 1], np.sum(x[:, 2:] - x[:, :-2], -1) / 2, atol=1e-12)


def test_forward_mode_agrees_with_reverse_mode():
    x = image((5, 4, 3))
    displacement = np.random.default_rng(4).normal(size=(5, 4, 2)).astype(np.float32)
    displacement[0] = 0
    tangents = (image((5, 4, 3), 5), image((5, 4, 2), 6))

    def sample(x, displacement):
        return _interpolation.warp(x, displacement, "zero")

    cotangent = image((5, 4, 3), 7)
    tangent = compiled(lambda primals, tangents: jax.jvp(sample, primals, tangents)[1])((x, displacement), tangents)
    pulled = compiled(lambda primals, along: jax.vjp(sample, *primals)[1](along))((x, displacement), cotangent)
    expected = sum(np.vdot(a, b) for a, b in zip(pulled, tangents, strict=True))
    np.testing.assert_allclose(np.vdot(tangent, cotangent), expected, rtol=1e-5)


# Flows


def test_flow_identity_is_exact():
    for shape in ((28, 28, 1), (33, 17, 3)):
        x = image(shape)
        np.testing.assert_array_equal(call(Flow(), "apply", x, call(Flow(), "init", x)), x)


@pytest.mark.parametrize(("axis", "pixels"), [(0, 1), (0, -2), (1, 1), (1, -2)])
def test_whole_flows_roll_the_interior(axis, pixels):
    x = image((10, 7, 3))
    flow = np.zeros((10, 7, 2), np.float32)
    flow[..., axis] = pixels * 2 / x.shape[axis]
    inside = np.s_[2:-2, 2:-2]
    moved = call(Flow(), "apply", x, flow)
    np.testing.assert_allclose(moved[inside], np.roll(x, -pixels, axis)[inside], atol=2e-6)


def test_half_a_pixel_on_a_ramp():
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 11, dtype=np.float32)[None, :, None], (4, 11, 1))
    flow = np.zeros((4, 11, 2), np.float32)
    flow[..., 1] = 0.5 * 2 / 11
    np.testing.assert_allclose(call(Flow(), "apply", ramp, flow)[:, :-1], ramp[:, :-1] + 0.03, atol=1e-6)


def test_the_radius_is_in_half_image_sides():
    """0.05 is 0.8 pixels on CIFAR-10 and 5.6 on ImageNet."""
    for side, pixels in ((32, 0.8), (224, 5.6)):
        x, theta = np.zeros((side, side, 1), np.float32), np.full((side, side, 2), 0.05, np.float32)
        displacement = call(Flow(), "displacement", x, theta)
        np.testing.assert_allclose(displacement, pixels, rtol=1e-6)


def test_coordinates_stay_on_the_image():
    x = image((6, 5, 3))
    far = (np.random.default_rng(0).normal(size=(6, 5, 2)) * 10).astype(np.float32)
    wide = Flow(radius=2.0)
    near = call(wide, "project", x, far)
    assert call(wide, "contains", x, near)
    assert not call(wide, "contains", x, far)
    places = call(wide, "displacement", x, near) + np.stack(np.mgrid[:6, :5], -1)
    np.testing.assert_allclose(places.min((0, 1)), -0.5, atol=1e-5)
    np.testing.assert_allclose(places.max((0, 1)), [5.5, 4.5], atol=1e-5)
    # so even the strongest flow leaves half of a border pixel
    assert np.asarray(call(wide, "apply", np.ones((6, 5, 1), np.float32), near)).min() >= 0.25 - 1e-5


def test_flow_moves_by_its_step():
    x, gradient = image((6, 5, 3)), np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    moved = call(Flow(), "ascend", x, np.zeros((6, 5, 2), np.float32), gradient, np.float32(0.01))
    np.testing.assert_allclose(moved, 0.01 * np.sign(gradient), rtol=1e-6)
    np.testing.assert_allclose(call(Flow(), "size", x, moved), 0.01, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5, 2), (4, 3, 5, 3), (1, 1, 2), (2, 2, 2, 3)])
def test_roughness_equals_the_sum_over_replicated_borders(shape):
    field = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(rough(field), reference.roughness(field), rtol=1e-5)
    assert rough(np.full(shape, 0.3, np.float32)) == 0


def test_roughness_has_a_gradient_everywhere():
    """Zero where the field is constant; elsewhere as finite differences say."""
    np.testing.assert_array_equal(rough_gradient(np.full((3, 4, 2), 0.3, np.float32)), np.zeros((3, 4, 2)))
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        field, direction = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4, 2))
        slope = (reference.roughness(field + 1e-6 * direction) - reference.roughness(field - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(np.sum(rough_gradient(field) * direction), slope, rtol=1e-7)


def test_penalty_weights():
    x = image((6, 5, 3))
    flow = (np.random.default_rng(0).normal(size=(6, 5, 2)) * 0.02).astype(np.float32)
    sum_ = reference.roughness(flow)
    for made, weight in (
        (Flow(), 0.05),
        (Flow(0.1), 0.025),
        (Flow(0.1, 0.3), 0.3),
        (Flow(0.05).with_radius(0.01), 0.25),
    ):
        np.testing.assert_allclose(call(made, "penalty", x, flow), weight * sum_, rtol=1e-5)
    assert np.isfinite(call(Flow(0.0), "penalty", x, np.zeros((6, 5, 2), np.float32)))


def test_penalised_stadv_counts_in_pixels():
    made, side = Flow.penalised(8, tau=0.05), 8
    x, flow = np.zeros((side, side, 1), np.float32), image((side, side, 2)) / 10
    in_pixels = reference.roughness(flow * side / 2)
    # the root's constant is not scaled along, which is of order 1e-5 a pair
    np.testing.assert_allclose(call(made, "penalty", x, flow), 0.05 * in_pixels, rtol=1e-3)
    assert call(made, "contains", x, call(made, "project", x, 100 * flow))


def test_flow_refuses_bad_numbers():
    with pytest.raises(ValueError, match="weight must be finite and >= 0; got -1"):
        Flow(weight=-1)
    with pytest.raises(ValueError, match="tau must be finite and >= 0; got -1"):
        Flow.penalised(32, tau=-1)
    with pytest.raises(ValueError, match="side must be >= 1; got 0"):
        Flow.penalised(0)


# Rotations and translations


@pytest.mark.parametrize("outside", ["zero", "reflect"])
def test_no_rotation_and_no_translation_is_exact(outside):
    x, made = image((28, 31, 3)), RotationTranslation(outside=outside)
    np.testing.assert_array_equal(call(made, "apply", x, np.zeros(3, np.float32)), x)


@pytest.mark.parametrize("side", [7, 8, 32])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns_are_rot90(side, turns):
    x = image((side, side, 3))
    turned = call(RotationTranslation(rotation=90.0, radius=3.0), "apply", x, np.float32([turns, 0.0, 0.0]))
    np.testing.assert_allclose(turned, np.rot90(x, turns), atol=1e-5)


def test_half_a_turn_of_any_shape():
    x = image((6, 9, 2))
    turned = call(RotationTranslation(rotation=180.0), "apply", x, np.float32([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(turned, x[::-1, ::-1], atol=1e-5)


def test_translations_shift_and_fill_with_black():
    x = image((6, 5, 3))
    down = call(RotationTranslation(translation=2.0), "apply", x, np.float32([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(down[2:], x[:-2], atol=1e-6)
    np.testing.assert_array_equal(down[:2], 0)
    left = call(RotationTranslation(translation=1.0), "apply", x, np.float32([0.0, 0.0, -1.0]))
    np.testing.assert_allclose(left[:, :-1], x[:, 1:], atol=1e-6)
    np.testing.assert_array_equal(left[:, -1], 0)


@pytest.mark.parametrize("outside", ["zero", "reflect"])
@pytest.mark.parametrize(("degrees", "shift"), [(30.0, (3, -3)), (-17.0, (0, 2)), (5.0, (0, 0)), (-30.0, (-3, -1))])
def test_equals_rotation_then_translation(degrees, shift, outside):
    """With whole pixels of translation the second resampling of the original code does nothing."""
    x, made = image((14, 17, 2)), RotationTranslation(outside=outside)
    theta = np.float32([degrees / 30, shift[0] / 3, shift[1] / 3])
    expected = reference.rotate_then_shift(x, degrees, shift, outside=outside)
    np.testing.assert_allclose(call(made, "apply", x, theta), expected, atol=2e-5)


def test_size_is_the_largest_share_of_a_limit():
    x, made = image((5, 5, 1)), RotationTranslation()
    np.testing.assert_allclose(call(made, "size", x, np.float32([0.2, -0.7, 0.1])), 0.7)
    assert call(made.with_radius(0.7), "contains", x, np.float32([0.2, -0.7, 0.1]))
    assert not call(made.with_radius(0.6), "contains", x, np.float32([0.2, -0.7, 0.1]))


def test_rotation_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        x, made = smooth().astype(np.float64), RotationTranslation()
        weights = np.random.default_rng(0).normal(size=x.shape)
        theta = np.array([0.31, 0.23, -0.41])
        gradient = call(made, "pullback", x, theta, weights)

        def loss(theta):
            return np.sum(weights * call(made, "apply", x, theta))

        for i in range(3):
            step = 1e-7 * np.eye(3)[i]
            np.testing.assert_allclose(gradient[i], (loss(theta + step) - loss(theta - step)) / 2e-7, rtol=1e-5)


def test_the_grid_has_775_points_and_the_identity():
    x, made = jnp.asarray(image((5, 5, 1))), RotationTranslation(0.5)
    grid = compiled(RotationTranslation.grid)(made, x)
    assert grid.shape == (775, 3)
    assert len(np.unique(grid, axis=0)) == 775
    assert (grid == 0).all(1).sum() == 1
    np.testing.assert_allclose([grid.min(0), grid.max(0)], [[-0.5] * 3, [0.5] * 3])
    np.testing.assert_allclose(np.unique(grid[:, 0]), np.linspace(-0.5, 0.5, 31), atol=1e-7)
    assert mapped(made, "contains", (None, 0), x, grid).all()
    assert made.grid(x, (1, 3, 1)).tolist() == [[0, -0.5, 0], [0, 0, 0], [0, 0.5, 0]]
    for points in ((30, 5, 5), (0, 1, 1), (5, 5)):
        with pytest.raises(ValueError, match="points must"):
            made.grid(x, points)


def test_the_limits_are_traced():
    x, theta, traces = jnp.asarray(image((5, 5, 1))), jnp.asarray([0.5, 0.5, 0.5]), 0

    @jax.jit
    def apply(made):
        nonlocal traces
        traces += 1
        return made.apply(x, theta)

    first, second = (apply(RotationTranslation(1.0, rotation, 3)) for rotation in (10, 40.0))
    assert traces == 1
    assert not np.array_equal(first, second)
    for field in ("rotation", "translation"):
        with pytest.raises(ValueError, match=f"{field} must be finite and >= 0; got -1"):
            RotationTranslation(**{field: -1})
    with pytest.raises(ValueError, match=r"outside must be one of .*got 'wrap'"):
        RotationTranslation(outside="wrap")


# Elastic deformations


def elastic_reference(x, theta, sigma, reach):
    """Smooth by SciPy, then scale to the corner convention and sample."""
    height, width = x.shape[:2]
    smooth = [
        ndimage.gaussian_filter(theta[..., i].astype(float), sigma, mode="mirror", radius=reach) for i in range(2)
    ]
    scale = [(height - 1) / height, (width - 1) / width]
    return reference.warp(x, np.stack(smooth, -1) * scale)


@pytest.mark.parametrize(("side", "sigma", "reach"), [(32, 3 * 32 / 224, 2), (64, 3 * 64 / 224, 4)])
def test_elastic_equals_the_original_recipe(side, sigma, reach):
    x = image((side, side, 2))
    theta = np.random.default_rng(0).uniform(-2, 2, (side, side, 2)).astype(np.float32)
    moved = call(Elastic(2.0), "apply", x, theta)
    np.testing.assert_allclose(moved, elastic_reference(x, theta, sigma, reach), atol=2e-5)


def test_elastic_kernel_on_imagenet_is_25_by_25():
    impulse = np.zeros((224, 224, 2), np.float32)
    impulse[100, 100, 0] = 1
    spread = call(Elastic(1.0), "displacement", np.zeros((224, 224, 1), np.float32), impulse)[..., 0]
    rows, columns = np.nonzero(spread > 1e-9)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (88, 112, 88, 112)
    np.testing.assert_allclose(spread.sum(), 223 / 224, rtol=1e-5)
    np.testing.assert_allclose(spread[103, 100] / spread[100, 100], np.exp(-0.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "sigma"), [((6, 5, 3), None), ((6, 5, 3), 0.0), ((1, 4, 2), 1.5), ((1, 1, 1), 1.5), ((2, 9, 1), 1.5)]
)
def test_elastic_on_small_images(shape, sigma):
    """The kernel never reaches further than the mirrored border; constant fields stay constant."""
    x, made = image(shape), Elastic(1.0, sigma)
    np.testing.assert_array_equal(call(made, "apply", x, call(made, "init", x)), x)
    constant = np.ones((*shape[:2], 2), np.float32)
    expected = np.broadcast_to(1 - 1 / np.array(shape[:2]), constant.shape)
    np.testing.assert_allclose(call(made, "displacement", x, constant), expected, atol=1e-6)


def test_elastic_identity_is_exact():
    """Sampled half a pixel off, the original's unperturbed image changes by up to 0.45."""
    x = image((32, 32, 3))
    np.testing.assert_array_equal(call(Elastic(1.0), "apply", x, np.zeros((32, 32, 2), np.float32)), x)


def test_elastic_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, made = smooth().astype(np.float64), Elastic(1.0, 1.0)
        weights, direction = rng.normal(size=x.shape), rng.normal(size=(*x.shape[:2], 2))
        theta = rng.uniform(-1, 1, (*x.shape[:2], 2))
        gradient = call(made, "pullback", x, theta, weights)

        def loss(theta):
            return np.sum(weights * call(made, "apply", x, theta))

        slope = (loss(theta + 1e-7 * direction) - loss(theta - 1e-7 * direction)) / 2e-7
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-5)
