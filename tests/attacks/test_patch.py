"""Patches and stickers: they change nothing outside of their mask, and they reach their target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.attacks.physical.patch import Placement, adversarial_patch, patch_success
from jaxrobust.attacks.physical.rp2 import non_printability, rp2, sticker_mask
from jaxrobust.types import Classifier

KEY = jax.random.key(0)
SHAPE = (12, 10, 2)


@pytest.fixture(scope="module")
def problem():
    """Class 1 where the first channel outshines the second somewhere by enough: a patch can say so anywhere."""
    model = Classifier.from_function(_brightness)
    images = (0.4 + 0.2 * np.random.default_rng(0).random((24, *SHAPE))).astype(np.float32)
    assert (np.asarray(model(images)).argmax(-1) == 0).all()
    return model, images[:16], images[16:]


def _brightness(images):
    excess = (images[..., 0] - images[..., 1]).sum((1, 2))
    return jnp.stack([jnp.zeros_like(excess), excess - 6, -excess - 9], 1)


def test_a_patch_is_pasted_inside_of_its_mask_only(rng):
    image = jnp.asarray(rng.random(SHAPE), jnp.float32)
    patch, mask = jnp.full((6, 6, 2), 2.0), jnp.ones((6, 6, 1))
    placement = Placement(0.3, 0.3, 0)  # a side of 3 pixels
    paste = jax.jit(placement.paste)
    places = set()
    for number in range(20):
        pasted = np.asarray(paste(jax.random.key(number), image, patch, mask))
        changed = (pasted != np.asarray(image)).any(-1)
        rows, columns = np.nonzero(changed)
        # 3 pixels and the soft edges on both sides of them
        assert 1 <= np.ptp(rows) + 1 <= 5
        assert 1 <= np.ptp(columns) + 1 <= 5
        assert (pasted[changed] > np.asarray(image)[changed]).all()
        assert (pasted == 2).any()  # opaque inside
        places.add((rows.min(), columns.min()))
    assert len(places) > 10


def test_the_whole_image_and_no_mask(rng):
    """A patch as large as a square image lies on it exactly; with an empty mask nothing changes, to the bit."""
    image, patch = (jnp.asarray(rng.random((6, 6, 1)), jnp.float32) for _ in range(2))
    paste = jax.jit(Placement(1.0, 1.0, 0).paste)
    np.testing.assert_allclose(paste(KEY, image, patch, jnp.ones((6, 6, 1))), patch, atol=1e-6)
    np.testing.assert_array_equal(paste(KEY, image, patch, jnp.zeros((6, 6, 1))), image)
    turned = jax.jit(Placement(0.5, 0.5, 45.0).paste)(KEY, image, 0 * patch, jnp.ones((6, 6, 1)))
    darkened = float(1 - turned.sum() / image.sum())
    assert 0.1 < darkened < 0.4  # a quarter of the area
    assert float(turned.max()) <= 1


def test_gradients_reach_the_patch_only_through_its_mask(rng):
    image, patch = (jnp.asarray(rng.random((8, 8, 1)), jnp.float32) for _ in range(2))
    mask = jnp.zeros((8, 8, 1)).at[2:5, 3:6].set(1)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(Placement(0.9, 0.9, 10.0).paste(KEY, image, p, mask))))(patch)
    assert (np.asarray(gradient)[np.asarray(mask) == 0] == 0).all()
    assert (np.asarray(gradient)[np.asarray(mask) == 1] > 0).all()


@pytest.mark.slow
def test_a_patch_works_on_unseen_images(problem):
    model, seen, unseen = problem
    placement = Placement(0.5, 0.8, 10.0)
    found = adversarial_patch(
        model, seen, 1, key=KEY, placement=placement, steps=30, batch_size=8, learning_rate=0.05, side=8
    )
    assert found.pattern.shape == (8, 8, 2)
    assert (found.pattern[found.mask[..., 0] == 0] == 0).all()
    assert found.pattern.min() >= 0
    assert found.pattern.max() <= 1
    assert found.history[-1] < found.history[0]
    grey = patch_success(
        model, unseen, 1, 0.5 * found.mask + 0 * found.pattern, found.mask, key=KEY, placement=placement
    )
    there = patch_success(model, unseen, 1, found.pattern, found.mask, key=KEY, placement=placement)
    assert grey == 0
    assert there > 0.7
    # channel 0 bright, channel 1 dark: what the model looks at
    inside = found.mask[..., 0] == 1
    assert found.pattern[inside][:, 0].mean() > 0.6 > 0.4 > found.pattern[inside][:, 1].mean()


def test_stickers_stay_on_their_mask_and_fool_all_photographs(problem):
    model, seen, _ = problem
    mask = np.zeros((*SHAPE[:2], 1), bool)
    mask[2:8, 2:8] = True
    shifted = lambda key, stickers: jnp.roll(stickers, jax.random.randint(key, (), -1, 2), 1)  # noqa: E731
    found = rp2(model, seen, 1, mask, key=KEY, steps=40, transform=shifted)
    assert found.success > 0.9
    assert (found.pattern[~mask[..., 0]] == 0).all()
    assert found.history[-1] < found.history[0]
    heavy = rp2(model, seen, 1, mask, key=KEY, steps=40, transform=shifted, penalty_weight=1.0)
    assert np.linalg.norm(heavy.pattern) < np.linalg.norm(found.pattern)


def test_printable_colours_are_sought(problem):
    model, seen, _ = problem
    mask = np.ones((*SHAPE[:2], 1))
    tones = np.array([[0.8, 0.2], [0.2, 0.8]], np.float32)
    scores = []
    for weight in (0.0, 30.0):
        found = rp2(model, seen, 1, mask, key=KEY, steps=40, printable=tones, printability_weight=weight, penalty="l1")
        colours = jnp.clip(seen.mean(0) + found.pattern, 0, 1)
        scores.append(float(non_printability(colours, jnp.asarray(tones)).mean()))
        assert found.success > 0.9
    assert scores[1] < 0.7 * scores[0]


def test_non_printability_is_zero_on_printable_colours():
    tones = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    colours = jnp.array([[[1.0, 0.0], [0.5, 0.0]]])
    np.testing.assert_allclose(non_printability(colours, tones), [[0.0, 0.25]], atol=1e-7)
    gradient = jax.jit(jax.grad(lambda c: non_printability(c, tones).sum()))(colours)
    assert np.isfinite(gradient).all()


def test_strongest_takes_the_largest_moves():
    change = np.array([[[0.1, -0.1], [0.0, 0.0]], [[0.0, 0.5], [0.3, 0.0]]])
    np.testing.assert_array_equal(sticker_mask(change, share=0.5)[..., 0], [[False, False], [True, True]])
    assert sticker_mask(change, share=1.0).sum() == 3


def test_bad_input_is_refused(problem):
    model, seen, _ = problem
    with pytest.raises(ValueError, match="target must lie in"):
        adversarial_patch(model, seen, 3, key=KEY)
    with pytest.raises(ValueError, match="side must not exceed the image, 10; got 11"):
        adversarial_patch(model, seen, 1, key=KEY, side=11)
    with pytest.raises(ValueError, match="smallest must be positive and not above largest"):
        Placement(0.5, 0.2)
    with pytest.raises(ValueError, match="mask must have shape"):
        rp2(model, seen, 1, np.ones((3, 3, 1)), key=KEY)
    with pytest.raises(ValueError, match="printable must have shape"):
        rp2(model, seen, 1, np.ones((12, 10, 1)), key=KEY, printable=np.ones((4, 3)))
