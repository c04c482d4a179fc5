"""The hand-made feature network: what it sees, and that it takes any image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import perceptual


def maps_of(image, **options):
    maps = activations(perceptual.filter_bank(**options), jnp.asarray(image, jnp.float32)[None])
    return [np.asarray(each[0]) for each in maps]


@jax.jit
def activations(bank, images):
    return bank.activations(bank.params, images)


distance = jax.jit(perceptual.distance)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 3), (13, 4, 2)])
def test_any_size_and_channels(shape, rng):
    maps = maps_of(rng.random(shape))
    height, width, channels = shape
    sizes = [(-(-height // k), -(-width // k), 9 * channels + 1) for k in (1, 2, 4)]
    assert [each.shape for each in maps] == sizes
    logits = jax.eval_shape(perceptual.filter_bank(), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert logits.shape == (2, 3 * (9 * channels + 1))


def test_responses_are_the_derivative_in_their_direction():
    rows, columns = np.mgrid[:9, :11]
    ramp = (0.03 * columns + 0.05 * rows)[..., None]
    angles = np.arange(8) * np.pi / 4
    wanted = np.maximum(0.03 * np.cos(angles) + 0.05 * np.sin(angles), 0)
    first, second, _ = maps_of(ramp)
    np.testing.assert_allclose(first[3, 4], [ramp[3, 4, 0], *wanted, 0.1], atol=1e-6)
    # a blurred ramp is the ramp, and at half the resolution it is twice as steep
    np.testing.assert_allclose(second[2, 2], [ramp[4, 4, 0], *2 * wanted, 0.1], atol=1e-6)


def test_colours_keep_their_own_responses(rng):
    image = rng.random((4, 5, 3))
    together, apart = maps_of(image)[0], [maps_of(image[..., c : c + 1])[0] for c in range(3)]
    np.testing.assert_allclose(together[..., :3], np.concatenate([maps[..., :1] for maps in apart], -1), atol=1e-6)
    edges = np.concatenate([maps[..., 1:9] for maps in apart], -1)
    np.testing.assert_allclose(together[..., 3:27], edges, atol=1e-6)


def test_a_constant_image_has_no_edges_anywhere():
    for maps in maps_of(np.full((6, 5, 1), 0.7)):
        np.testing.assert_allclose(maps[..., 0], 0.7, rtol=1e-6)
        np.testing.assert_allclose(maps[..., 1:9], 0, atol=1e-6)


def test_it_tells_brightness_and_single_pixels_apart():
    grey = jnp.full((8, 8, 3), 0.5)
    bank = perceptual.filter_bank()
    for other in (grey + 0.01, grey.at[3, 4, 1].add(0.01), grey.at[::2, ::2].add(0.01)):
        assert distance(bank, grey, other) > 1e-4


def test_dark_changes_count_more_and_by_the_contrast():
    dark, light = jnp.full((6, 6, 1), 0.05), jnp.full((6, 6, 1), 0.8)
    by = {c: perceptual.filter_bank(contrast=c) for c in (0.05, 0.5)}
    assert distance(by[0.05], dark, dark + 0.1) > 3 * distance(by[0.05], light, light + 0.1)
    assert distance(by[0.5], dark, dark + 0.1) < distance(by[0.05], dark, dark + 0.1)


def test_equal_banks_share_one_compilation():
    traces = 0

    @jax.jit
    def size(bank, image):
        nonlocal traces
        traces += 1
        return perceptual.distance(bank, image, 1 - image)

    for _ in range(2):
        size(perceptual.filter_bank(scales=1), jnp.ones((3, 3, 1)))
    assert traces == 1


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"scales": 0}, "scales must be >= 1; got 0"),
        ({"contrast": 0}, "contrast must be > 0; got 0"),
        ({"contrast": -1}, "contrast must be finite and >= 0; got -1"),
    ],
)
def test_refused_at_the_door(options, rule):
    with pytest.raises(ValueError, match=rule):
        perceptual.filter_bank(**options)
