"""ReColorAdv: colour spaces by known values, the lookup by a loop, both modes by an independent recipe."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.sets import _interpolation
from jaxrobust.sets._colour_spaces import SPACES
from jaxrobust.sets.colour import ReColor
from tests.compiled import call, compiled
from tests.references import spatial as reference

RED, GREEN, BLUE, WHITE, BLACK, GREY = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5]], np.float32
)
NAMED = np.stack([RED, GREEN, BLUE, WHITE, BLACK, GREY])
SMALL = (4, 5, 6)

lookup = compiled(_interpolation.lookup)
ZEROS, ONES = np.zeros((*SMALL, 3), np.float32), np.ones((*SMALL, 3), np.float32)


@functools.cache
def cube(points=33):
    """All colours of a regular grid, as an image."""
    axis = np.linspace(0, 1, points)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(points, -1, 3).astype(np.float32)


def image(shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def displacements(radius, seed=0):
    return np.random.default_rng(seed).uniform(-radius, radius, (*SMALL, 3)).astype(np.float32)


@functools.cache
def to(space):
    return compiled(SPACES[space].to)


@functools.cache
def back(space):
    return compiled(SPACES[space].back)


# Colour spaces


def test_luv_reference_values():
    expected = [
        [0.5323, 1.3754, 0.6889],
        [0.8774, 0.0848, 1.0372],
        [0.3230, 0.4531, -0.1517],
        [1, 0.5003, 0.5002],
        [0, 0.5, 0.5],
        [0.5339, 0.5002, 0.5001],
    ]
    np.testing.assert_allclose(to("luv")(NAMED), expected, atol=6e-5)


def test_ypbpr_reference_values():
    """The primaries of ITU-R BT.601, whose chroma ends at the borders of [0, 1]."""
    expected = [[0.299, 0.5 - 0.168736, 1], [0.587, 0.5 - 0.331264, 0.5 - 0.418688], [0.114, 1, 0.5 - 0.081312]]
    np.testing.assert_allclose(to("ypbpr")(NAMED[:3]), expected, atol=1e-6)
    np.testing.assert_allclose(to("ypbpr")(NAMED[3:]), [[1, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]], atol=1e-6)


def test_xyz_of_white_and_of_the_gamma_threshold():
    np.testing.assert_allclose(to("xyz")(NAMED[3:4]), [[0.9505, 1.0, 1.0889]], atol=1e-6)
    below, above = np.full((1, 3), 0.040449, np.float32), np.full((1, 3), 0.040451, np.float32)
    np.testing.assert_allclose(to("xyz")(below), to("xyz")(above), rtol=2e-4)


def test_hsv_cone_equals_the_standard_library():
    colours = np.concatenate([NAMED, image((200, 3))])
    for rgb, cone in zip(colours, np.asarray(to("hsv_cone")(colours)), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, rgb))
        angle, chroma = 2 * np.pi * hue, saturation * value
        expected = [(chroma * np.cos(angle) + 1) / 2, (chroma * np.sin(angle) + 1) / 2, value]
        np.testing.assert_allclose(cone, expected, atol=1e-6)


@pytest.mark.parametrize(("space", "tolerance"), [(s, 2e-3 if s in ("luv", "xyz") else 2e-6) for s in SPACES])
def test_round_trips(space, tolerance):
    """The matrices of sRGB have four digits, which is what the first tolerance is for."""
    error = np.abs(np.asarray(back(space)(to(space)(cube()))).clip(0, 1) - cube())
    assert error.max() <= tolerance
    assert error.mean() <= tolerance / 10


@pytest.mark.parametrize("space", SPACES)
def test_gradients_are_finite_on_the_whole_cube(space):
    def both_ways(colours):
        return jnp.sum(SPACES[space].back(SPACES[space].to(colours)))

    def out_of_gamut(colours):
        mapped = SPACES[space].back(colours)
        return jnp.sum(mapped), mapped

    colours = np.concatenate([cube(9).reshape(-1, 3), 1e-6 * image((50, 3))])
    inside = compiled(jax.grad(both_ways))(colours)
    outside, mapped = compiled(jax.grad(out_of_gamut, has_aux=True))(3 * colours - 1)
    assert all(np.isfinite(found).all() for found in (inside, outside, mapped))


# The lookup


def test_lookup_equals_the_loop():
    rng = np.random.default_rng(0)
    table, points = rng.random((*SMALL, 3)), rng.uniform(-0.3, 1.3, (60, 3))
    points[:8] = [list(map(float, corner)) for corner in np.ndindex(2, 2, 2)]
    ours = lookup(table.astype(np.float32), points.astype(np.float32))
    np.testing.assert_allclose(ours, [reference.trilinear(table, point) for point in points], atol=2e-6)


@pytest.mark.parametrize("lattice", [SMALL, (2, 2, 2), (16, 32, 32)])
def test_lookup_reproduces_affine_functions(lattice):
    matrix, offset = np.random.default_rng(0).normal(size=(3, 3)), np.array([0.1, -0.2, 0.3])
    axes = [np.linspace(0, 1, n) for n in lattice]
    table = np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ matrix.T + offset
    points = cube(9)
    np.testing.assert_allclose(lookup(table.astype(np.float32), points), points @ matrix.T + offset, atol=3e-6)


def test_lookup_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        table, points, weights = rng.random((*SMALL, 3)), rng.uniform(0.01, 0.99, (4, 5, 3)), rng.normal(size=(4, 5, 3))
        gradients = jax.jit(jax.grad(lambda *a: jnp.sum(weights * _interpolation.lookup(*a)), (0, 1)))(table, points)
        for argument in (0, 1):
            direction = rng.normal(size=(table, points)[argument].shape)
            ends = [[table, points] for _ in range(2)]
            for sign, end in zip((1, -1), ends, strict=True):
                end[argument] = end[argument] + sign * 1e-7 * direction
            slope = sum(s * np.sum(weights * lookup(*end)) for s, end in zip((1, -1), ends, strict=True)) / 2e-7
            np.testing.assert_allclose(np.sum(gradients[argument] * direction), slope, rtol=1e-5)


# Displacements


@pytest.mark.parametrize("space", SPACES)
def test_no_displacement_is_the_identity(space):
    made = ReColor(space=space)
    np.testing.assert_allclose(call(made, "apply", cube(), call(made, "init", cube())), cube(), atol=6e-8, rtol=1e-6)


@pytest.mark.parametrize("space", ["luv", "ypbpr", "rgb", "smooth_hsv_cone", "hsv_cone", "xyz"])
def test_constant_displacements_shift_every_colour(space):
    """In the colour space, of colours that stay in the gamut."""
    made, shift = ReColor(space=space, lattice=SMALL), np.array([0.02, -0.01, 0.015], np.float32)
    theta = np.broadcast_to(shift, (*SMALL, 3))
    x = 0.4 + 0.2 * image()
    if space == "hsv_cone":
        x = (x * [1, 0.7, 0.5]).astype(np.float32)  # away from grey, where the hue turns quickly
    moved = call(made, "apply", x, theta)
    np.testing.assert_allclose(to(space)(moved) - to(space)(x), np.broadcast_to(shift, x.shape), atol=5e-4)


def test_displacements_equal_the_definition():
    """z = Φ⁻¹(Φ(x) + T(clip(Φ(x)))), to the error of Φ⁻¹ ∘ Φ, which ours takes off."""
    x, theta = image((9, 7, 3)), displacements(0.06)
    colours = np.asarray(to("luv")(x))
    table = np.array([reference.trilinear(theta, c) for c in colours.reshape(-1, 3).clip(0, 1)]).reshape(x.shape)
    expected = np.asarray(back("luv")((colours + table).astype(np.float32))).clip(0, 1)
    np.testing.assert_allclose(call(ReColor(lattice=SMALL), "apply", x, theta), expected, atol=2e-3)


@pytest.mark.parametrize("space", ["luv", "rgb", "ypbpr", "xyz", "smooth_hsv_cone"])
def test_gradient_equals_finite_differences(space):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, made = rng.uniform(0.3, 0.7, (4, 5, 3)), ReColor(space=space, lattice=SMALL)
        theta, direction = rng.uniform(-0.03, 0.03, (2, *SMALL, 3))
        weights = rng.normal(size=x.shape)
        gradient = call(made, "pullback", x, theta, weights)

        def loss(theta):
            return np.sum(weights * call(made, "apply", x, theta))

        slope = (loss(theta + 1e-5 * direction) - loss(theta - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6)


@pytest.mark.parametrize("colour", [BLACK, WHITE, RED, BLUE])
def test_saturated_colours_can_move(colour):
    """The gradient at black and white is the one into the box, neither zero nor NaN nor half of it."""
    x, made = np.broadcast_to(colour, (1, 1, 3)), ReColor(lattice=(2, 2, 2), radius=0.1)
    inwards = np.where(x > 0.5, -1, 1).astype(np.float32)
    theta = np.zeros((2, 2, 2, 3), np.float32)
    gradient = call(made, "pullback", x, theta, inwards)
    assert np.isfinite(gradient).all()
    moved = call(made, "ascend", x, theta, gradient, np.float32(0.02))
    assert np.sum(inwards * (np.asarray(call(made, "apply", x, moved)) - x)) > 0.01


def test_one_function_for_all_pixels():
    """Equal colours stay equal, wherever they are."""
    x = np.tile(image((3, 4, 3)), (2, 2, 1))
    made = ReColor(lattice=SMALL)
    out = np.asarray(call(made, "apply", x, displacements(0.06)))
    np.testing.assert_array_equal(out[:3, :4], out[3:, 4:])
    assert np.abs(out - x).max() > 0.02


def test_channels_have_their_own_radii():
    x, made = image(), ReColor(0.1, scale=(0.5, 0.0, 2.0), lattice=SMALL)
    theta = call(made, "project", x, ONES)
    np.testing.assert_allclose(theta[0, 0, 0], [0.05, 0, 0.2])
    np.testing.assert_allclose(call(made, "size", x, theta), 0.1, rtol=1e-6)
    assert call(made, "contains", x, theta)
    assert not call(made, "contains", x, theta + 0.01)
    moved = call(made, "ascend", x, ZEROS, ONES, np.float32(0.01))
    np.testing.assert_allclose(moved[0, 0, 0], [0.005, 0, 0.02])
    drawn = np.abs(np.asarray(call(made, "sample", jax.random.key(0), x))).max((0, 1, 2))
    assert (drawn <= np.array([0.05, 0, 0.2]) + 1e-7).all()


def test_numbers_are_traced():
    x, traces = jnp.asarray(image()), 0

    @jax.jit
    def project(made):
        nonlocal traces
        traces += 1
        return made.project(x, jnp.ones((*SMALL, 3)))

    for made in (
        ReColor(0.1, 0.2, lattice=SMALL),
        ReColor(1, 0, scale=(1, 2.0, np.float32(3)), lattice=SMALL),
    ):
        project(made)
    assert traces == 1


def test_penalty_is_the_weighted_roughness():
    x = image()
    theta = displacements(0.05)
    rough = reference.roughness(theta)
    cases = [(ReColor(lattice=SMALL), 0.06), (ReColor(0.1, lattice=SMALL), 0.036)]
    for made, weight in [*cases, (ReColor(0.06, 0.05, lattice=SMALL), 0.05)]:
        np.testing.assert_allclose(call(made, "penalty", x, theta), weight * rough, rtol=1e-5)
    assert call(ReColor(lattice=SMALL), "penalty", x, np.full((*SMALL, 3), 0.03, np.float32)) == 0


# The official form


def official_by_hand(x, theta, radius):
    """The released recipe: clip to [0, 1], into the gamut and back, within the radius, look up, map to RGB."""
    axes = [np.linspace(0, 1, n) for n in theta.shape[:3]]
    identity = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    grid = (identity + theta).clip(0, 1).astype(np.float32)
    grid = np.asarray(to("luv")(np.asarray(back("luv")(grid)).clip(0, 1)))
    grid = grid.clip(identity - radius, identity + radius)
    colours = np.asarray(to("luv")(x)).reshape(-1, 3)
    found = np.array([reference.trilinear(grid, colour) for colour in colours]).reshape(x.shape)
    return np.asarray(back("luv")(found.astype(np.float32))).clip(0, 1)


def test_official_form_equals_the_released_recipe():
    x, made = image(), ReColor(mode="official", lattice=SMALL)
    theta = displacements(0.06)
    np.testing.assert_allclose(call(made, "apply", x, theta), official_by_hand(x, theta, 0.06), atol=5e-5)


def test_the_official_identity_is_none():
    """14.6 % of the cube moves by more than 0.01, after the grid's clean-up 41 %, by 0.027 in the mean."""
    made = ReColor(mode="official")
    assert not made.contains_clean
    colours, table = to("luv")(cube()), call(made, "_identity", cube())
    looked_up = np.asarray(back("luv")(lookup(table, colours))).clip(0, 1)
    np.testing.assert_allclose((np.abs(looked_up - cube()).max(-1) > 0.01).mean(), 0.146, atol=5e-4)
    red = np.asarray(back("luv")(lookup(table, to("luv")(RED[None]))))[0]
    np.testing.assert_allclose(red, [0.833, 0.345, 0.188], atol=5e-4)
    moved = np.abs(np.asarray(call(made, "apply", cube(), call(made, "init", cube()))) - cube()).max(-1)
    np.testing.assert_allclose((moved > 0.01).mean(), 0.41, atol=5e-3)
    np.testing.assert_allclose(moved.mean(), 0.027, atol=5e-4)


def test_official_gradient_is_that_of_the_lookup():
    """The clean-up of the grid is skipped: a grid value pushed out of the gamut keeps its gradient."""
    x, made = np.float32(0.3) + np.float32(0.4) * image(), ReColor(mode="official", lattice=SMALL)
    gradient = call(made, "pullback", x, ZEROS, np.ones_like(x))
    colours, identity = to("luv")(x), call(made, "_identity", x)
    cleaned = np.asarray(to("luv")(np.asarray(back("luv")(identity)).clip(0, 1)))
    cleaned = cleaned.clip(identity - np.float32(0.06), identity + np.float32(0.06))

    def loss(table, colours):
        return jnp.sum(_interpolation.clamp(SPACES["luv"].back(_interpolation.lookup(table, colours))))

    np.testing.assert_allclose(gradient, jax.jit(jax.grad(loss))(cleaned, colours), rtol=2e-3, atol=1e-4)


# At the door


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "other"}, "mode must be one of .*; got 'other'"),
        ({"space": "lab"}, "space must be one of .*; got 'lab'"),
        ({"weight": -1}, "weight must be finite and >= 0; got -1"),
        ({"scale": (1.0, -1.0, 1.0)}, "scale must be finite and >= 0; got -1"),
        ({"lattice": (1, 4, 4)}, "lattice must be >= 2; got 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReColor(**arguments)


def test_images_must_be_rgb():
    with pytest.raises(ValueError, match=r"images must have 3 channels .*got shape \(4, 4, 1\)"):
        ReColor().init(jnp.zeros((4, 4, 1)))
    with pytest.raises(ValueError, match=r"images must have 3 channels .*got shape \(4, 4, 1\)"):
        ReColor(lattice=SMALL).apply(jnp.zeros((4, 4, 1)), jnp.zeros((*SMALL, 3)))
