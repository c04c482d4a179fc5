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


def many(key, function, image, count=400):
    return np.asarray(jax.jit(jax.vmap(lambda key: function(key, image)))(jax.random.split(key, count)))


def test_brightness_scales_uniformly(key):
    image = 0.5 * jnp.ones((1, 1, 1))
    found = many(key, functools.partial(augment.random_jitter, brightness=0.25), image).ravel() / 0.5
    assert found.min() >= 0.75 - 1e-6
    assert found.max() <= 1.25 + 1e-6
    assert abs(found.mean() - 1) < 0.03
    assert abs(found.std() - 0.5 / np.sqrt(12)) < 0.02


def test_contrast_and_saturation_keep_what_they_must(key):
    grey = np.array([0.299, 0.587, 0.114])
    image = jnp.asarray(np.random.default_rng(0).uniform(0.4, 0.6, (3, 4, 3)), jnp.float32)  # so that nothing clips
    contrast = many(key, functools.partial(augment.random_jitter, contrast=0.25), image, 20)
    np.testing.assert_allclose((contrast @ grey).mean((1, 2)), (image @ grey).mean(), rtol=1e-5)
    saturation = many(key, functools.partial(augment.random_jitter, saturation=0.25), image, 20)
    np.testing.assert_allclose(saturation @ grey, np.broadcast_to(image @ grey, (20, 3, 4)), rtol=1e-5)
    assert (contrast.std((1, 2)).mean(-1).round(5) != saturation.std((1, 2)).mean(-1).round(5)).all()
    one = image[..., :1]
    np.testing.assert_allclose(augment.random_jitter(key, one, saturation=0.9), one, rtol=1e-6)


def test_jitter_takes_every_order(key):
    """From black and white with full strengths, all three of them: what clips last tells which came first."""
    image = jnp.asarray([[[0.9, 0.1, 0.2], [0.2, 0.8, 0.1]]])
    strengths = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5}
    found = many(key, functools.partial(augment.random_jitter, **strengths), image, 60)
    grey = np.array([0.299, 0.587, 0.114])
    orders = set()
    for one, key_ in zip(found, jax.random.split(key, 60), strict=True):
        factors = 0.5 + np.asarray(jax.random.uniform(jax.random.split(key_)[0], (3,)))
        for order in itertools.permutations(range(3)):
            x = np.asarray(image)
            for kind in order:
                target = (0, (x @ grey).mean(), (x @ grey)[..., None])[kind]
                x = np.clip(factors[kind] * x + (1 - factors[kind]) * target, 0, 1)
            if np.allclose(x, one, atol=1e-5):
                orders.add(order)
                break
        else:
            pytest.fail("no order of the three gives this image")
    assert len(orders) == 6


def test_lighting_adds_one_colour_along_the_components(key):
    image = 0.5 * jnp.ones((2, 2, 3))
    added = many(key, augment.random_lighting, image, 2000) - 0.5
    assert (added == added[:, :1, :1]).all()
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    along = added[:, 0, 0] @ vectors
    np.testing.assert_allclose(along.std(0), 0.05 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.08)


def test_rotation_turns_about_the_centre(key):
    image = distinct(7, 7)
    np.testing.assert_array_equal(augment.random_rotation(key, image, degrees=0), image)
    turned = many(key, functools.partial(augment.random_rotation, degrees=180.0), image, 200)
    assert (turned[:, 3, 3] == float(image[3, 3, 0])).all()
    assert {float(value) for value in np.unique(turned)} <= {0.0, *np.asarray(image).ravel().tolist()}
    corner = turned[:, 0, 3, 0]  # three above the centre, what stood three from it comes: left, right and below too
    assert {float(image[row, column, 0]) for row, column in ((3, 0), (3, 6), (6, 3))} <= set(corner.tolist())
    little = many(key, augment.random_rotation, distinct(33, 33), 50)
    moved = (little != np.asarray(distinct(33, 33))).mean((1, 2, 3))
    assert 0 < moved.mean() < 0.5  # tan 2° · 16 is half a pixel at the rim
    assert (little[:, 12:21, 12:21] == np.asarray(distinct(33, 33))[12:21, 12:21]).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_bytes_become_the_loaders_floats(compiled):
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    found = (jax.jit(augment.to_float) if compiled else augment.to_float)(images)
    np.testing.assert_array_equal(np.asarray(found), to_float(images))
    np.testing.assert_array_equal(augment.to_float(to_float(images)), to_float(images))


@pytest.mark.parametrize("transform", [augment.CIFAR, augment.IMAGENET])
def test_the_papers_transforms_stay_in_the_box_and_take_bytes(key, transform):
    raw = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    function = jax.jit(functools.partial(augment.batch, transform=transform))
    found = function(key, jnp.asarray(raw), jnp.arange(4))
    assert found.dtype == jnp.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (found != to_float(raw)).any()
    np.testing.assert_array_equal(function(key, jnp.asarray(to_float(raw)), jnp.arange(4)), found)


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
