"""What must not matter: the scale and shift of logits to the DLR losses, and the batch in which an image comes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.types import Classifier
from tests import tiny

KEY = jax.random.key(9)


def scaled_net(params, images):
    """`tiny.dense_net`, its logits scaled and shifted."""
    network, scale, shift = params
    return scale * tiny.dense_net(network, images) + shift


def problem(scale=1.0, shift=0.0):
    """In float64, so that rounding decides nothing."""
    network = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tiny.dense_params())
    model = Classifier(scaled_net, (network, jnp.asarray(scale), jnp.asarray(shift)))
    images, labels = tiny.images_and_labels(tiny.dense_classifier(), 6)
    return model, images.astype(np.float64), labels.astype(np.int64)


DLR = {
    "pgd": attacks.pgd(sets.Linf(0.02), steps=6, loss="dlr"),
    "apgd": attacks.apgd(sets.L2(0.2), steps=8, loss="dlr"),
    "apgd_t": attacks.apgd_t(sets.Linf(0.02), steps=8, targets=2),
    "square": attacks.square(sets.Linf(0.05), queries=40, loss="dlr"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "pgd" else [pytest.mark.slow]) for n in DLR])
def test_dlr_attacks_see_neither_scale_nor_shift_of_logits(name):
    with jax.enable_x64(True):
        plain, other = (attacks.run(DLR[name], *problem(*change), key=KEY) for change in ((), (7.0, -3.0)))
        moved = np.abs(np.asarray(plain.images) - problem()[1]).max((1, 2, 3))
        assert (moved[:-1] > 1e-3).any()
        np.testing.assert_allclose(plain.images, other.images, atol=1e-8, rtol=0)
        np.testing.assert_allclose(plain.loss, other.loss, atol=1e-8, rtol=0)
        np.testing.assert_array_equal(plain.success, other.success)


ALONE = {
    "square-linf": attacks.square(sets.Linf(0.05), queries=60),
    "square-l2": attacks.square(sets.L2(0.5), queries=60),
    "square-l1": attacks.square(sets.L1(3.0), queries=60),
    "boundary": attacks.boundary(sets.L2(2.0), queries=200),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "square-linf" else [pytest.mark.slow]) for n in ALONE]
)
@pytest.mark.parametrize("early_stop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_image_alone_goes_the_same_way(name, early_stop):
    """Every image by itself, with the key of its place: the same result, count for count."""
    with jax.enable_x64(True):
        model, images, labels = problem()
        together = attacks.run(ALONE[name], model, images, labels, key=KEY, early_stop=early_stop)
        assert (np.asarray(together.success)[:-1]).any()
        for i in range(len(images)):
            one = slice(i, i + 1)
            alone = attacks.run(
                ALONE[name],
                model,
                images[one],
                labels[one],
                key=KEY,
                indices=np.arange(len(images))[one],
                early_stop=early_stop,
            )
            np.testing.assert_allclose(alone.images, together.images[one], atol=1e-9, rtol=0)
            for field in ("success", "forwards", "backwards", "code"):
                np.testing.assert_array_equal(getattr(alone, field), getattr(together, field)[one], err_msg=field)
