import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.data import augment


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


def test_bad_padding(key):
    with pytest.raises(ValueError, match="padding must be >= 0"):
        augment.random_crop(key, distinct(4, 4), padding=-1)
