import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.data import augment
from jaxrobust.data._images import to_float


def distinct(height, width, channels=1):
    """An image of distinct positive values, so that every pixel tells where it came from."""
    return jnp.arange(1, 1 + height * width * channels, dtype=jnp.float32).reshape(height, width, channels)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_is_a_shift_and_every_shift_is_as_likely(padding):
    image = distinct(5, 6)
    keys = jax.random.split(jax.random.key(1), 4000)
    crops = np.asarray(jax.vmap(lambda key: augment.random_crop(key, image, padding=padding))(keys))
    padded = np.pad(np.asarray(image), ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 6, 1)).reshape(-1, 5, 6, 1)
    matches = (crops[:, None] == windows[None]).all((2, 3, 4))
    assert (matches.sum(1) == 1).all()
    expected = len(crops) / len(windows)
    assert (abs(matches.sum(0) - expected) < 5 * np.sqrt(expected) + 1e-9).all()


def test_flip_mirrors_half(key):
    image = distinct(3, 4, 2)
    flipped = np.asarray(jax.vmap(lambda key: augment.random_flip(key, image))(jax.random.split(key, 1000)))
    mirrored = (flipped == np.asarray(image)[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == np.asarray(image)).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 0.08


def test_an_example_depends_on_nothing_but_itself(key):
    transform = augment.chain(augment.random_crop, augment.random_flip)
    images = jax.random.uniform(key, (16, 8, 8, 3))
    index = jnp.arange(100, 116)
    batch = jax.jit(augment.batch, static_argnums=3)
    whole = batch(key, images, index, transform)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(batch(key, images[order], index[order], transform), whole[order])
    alone = jax.jit(transform)
    for row in (0, 7):
        np.testing.assert_array_equal(alone(jax.random.fold_in(key, 100 + row), images[row]), whole[row])
    other_epoch = batch(jax.random.fold_in(key, 1), images, index, transform)
    assert (other_epoch != whole).any()


def test_new_keys_and_positions_do_not_retrace(key):
    compiled = jax.jit(chex.assert_max_traces(augment.batch, n=1), static_argnums=3)
    images = jax.random.uniform(key, (4, 8, 8, 1))
    results = [
        compiled(jax.random.fold_in(key, step), images, jnp.arange(step, step + 4), augment.chain(augment.random_crop))
        for step in range(3)
    ]
    assert len({result.tobytes() for result in map(np.asarray, results)}) == 3


def test_chains_compare_by_their_transforms():
    chains = [augment.chain(augment.random_crop, augment.random_flip) for _ in range(2)]
    assert chains[0] == chains[1]
    assert hash(chains[0]) == hash(chains[1])
    assert chains[0] != augment.chain(augment.random_flip)


def test_steps_of_a_chain_have_their_own_keys(key):
    image = distinct(4, 4)
    flips = augment.chain(augment.random_flip, augment.random_flip)
    results = jax.vmap(lambda key: flips(key, image))(jax.random.split(key, 200))
    mirrored = (np.asarray(results) == np.asarray(image)[:, ::-1]).all((1, 2, 3))
    assert 0.3 < mirrored.mean() < 0.7  # one key for both would always give the image back


def many(function):
    """One program for a transform, its numbers arguments: of keys, an image and numbers, the images."""

    def run(key, image, count, **numbers):
        keys = jax.random.split(key, 400)
        return np.asarray(program(keys, image, numbers))[:count]

    @jax.jit
    def program(keys, image, numbers):
        return jax.vmap(lambda key: function(key, image, **numbers))(keys)

    return run


jitter, rotation = many(augment.random_jitter), many(augment.random_rotation)
GREY = np.array([0.299, 0.587, 0.114])


def strengths(brightness=0.0, contrast=0.0, saturation=0.0):
    return {"brightness": brightness, "contrast": contrast, "saturation": saturation}


def test_brightness_scales_uniformly(key):
    found = jitter(key, jnp.full((1, 2, 3), 0.5), 400, **strengths(brightness=0.25)) / 0.5
    assert (np.ptp(found, axis=(1, 2, 3)) < 1e-6).all()
    found = found[:, 0, 0, 0]
    assert found.min() >= 0.75 - 1e-6
    assert found.max() <= 1.25 + 1e-6
    assert abs(found.mean() - 1) < 0.03
    assert abs(found.std() - 0.5 / np.sqrt(12)) < 0.02


def test_contrast_and_saturation_keep_what_they_must(key):
    image = jnp.asarray([[[0.4, 0.6, 0.5], [0.45, 0.4, 0.6]]])  # so that nothing clips
    contrast = jitter(key, image, 20, **strengths(contrast=0.25))
    np.testing.assert_allclose((contrast @ GREY).mean((1, 2)), (image @ GREY).mean(), rtol=1e-5)
    saturation = jitter(key, image, 20, **strengths(saturation=0.25))
    np.testing.assert_allclose(saturation @ GREY, np.broadcast_to(image @ GREY, (20, 1, 2)), rtol=1e-5)
    for changed in (contrast, saturation):
        assert (np.abs(changed - image[None]).max((1, 2, 3)) > 1e-4).all()


def test_jitter_takes_every_order(key):
    """What clips last tells which came first."""
    image = jnp.asarray([[[0.9, 0.1, 0.2], [0.2, 0.8, 0.1]]])
    found = jitter(key, image, 60, **strengths(0.5, 0.5, 0.5))
    drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.split(key)[0], (3,)))(jax.random.split(key, 400))
    orders = set()
    for one, factors in zip(found, 0.5 + np.asarray(drawn), strict=False):
        fitting = [order for order in itertools.permutations(range(3)) if _fits(one, image, factors, order)]
        assert fitting, "no order of the three gives this image"
        orders |= set(fitting[:1])
    assert len(orders) == 6


def _fits(found, image, factors, order):
    x = np.asarray(image)
    for kind in order:
        target = (0, (x @ GREY).mean(), (x @ GREY)[..., None])[kind]
        x = np.clip(factors[kind] * x + (1 - factors[kind]) * target, 0, 1)
    return np.allclose(x, found, atol=1e-5)


def test_lighting_adds_one_colour_along_the_components(key):
    image = 0.5 * jnp.ones((2, 2, 3))
    added = many(augment.random_lighting)(key, image, 400) - 0.5
    assert (added == added[:, :1, :1]).all()
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    along = added[:, 0, 0] @ vectors
    np.testing.assert_allclose(along.std(0), 0.05 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.15)


def test_rotation_turns_about_the_centre(key):
    image = distinct(17, 17)
    values = np.asarray(image)
    np.testing.assert_array_equal(rotation(key, image, 3, degrees=0.0), np.broadcast_to(values, (3, 17, 17, 1)))
    turned = rotation(key, image, 400, degrees=180.0)
    assert (turned[:, 8, 8] == values[8, 8]).all()
    assert set(np.unique(turned).tolist()) <= {0.0, *values.ravel().tolist()}
    above = set(turned[:, 5, 8, 0].tolist())  # three above the centre comes what stood three from it, on any side
    assert {float(values[row, column, 0]) for row, column in ((8, 5), (8, 11), (11, 8), (5, 8))} <= above
    little = rotation(key, image, 400, degrees=5.0)
    assert (little[:, 5:12, 5:12] == values[5:12, 5:12]).all()  # sin 5° · 5 is less than half a pixel
    assert 0.02 < (little != values).mean() < 0.5


@pytest.mark.parametrize("compiled", [False, True])
def test_bytes_become_the_loaders_floats(compiled):
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    found = (jax.jit(augment.to_float) if compiled else augment.to_float)(images)
    np.testing.assert_array_equal(np.asarray(found), to_float(images))
    np.testing.assert_array_equal(augment.to_float(to_float(images)), to_float(images))


@pytest.mark.parametrize("transform", [augment.CIFAR, augment.IMAGENET])
def test_the_papers_transforms_stay_in_the_box_and_take_bytes(key, transform):
    raw = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    found = jax.jit(functools.partial(augment.batch, transform=transform))(key, jnp.asarray(raw), jnp.arange(4))
    assert found.dtype == jnp.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (found != to_float(raw)).any()


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (augment.random_crop, {"padding": -1}, "padding must be >= 0"),
        (augment.random_jitter, {"contrast": -0.1}, "contrast must be finite and >= 0; got -0.1"),
        (augment.random_lighting, {"std": float("nan")}, "std must be finite and >= 0; got nan"),
        (augment.random_lighting, {}, r"image must have 3 channels; got the shape \(4, 4, 2\)"),
        (augment.random_jitter, {}, r"image must have 1 channel or 3; got the shape \(4, 4, 2\)"),
        (augment.random_rotation, {"degrees": -1}, "degrees must be finite and >= 0; got -1"),
    ],
)
def test_bad_arguments(key, function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(key, distinct(4, 4, 2), **arguments)
