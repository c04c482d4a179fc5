"""Small models of the evaluation's tests: plain, counting, and answering with NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.testing.attacks import product
from jaxrobust.types import Classifier
from tests.tiny import CLASSES, SHAPE, images_and_labels

ONE_DEVICE = jax.local_devices()[:1]
FIELDS = ("images", "success", "loss", "size", "forwards", "backwards", "code")
EXACT = ("success", "forwards", "backwards", "code")


def network(params, images):
    """A network without convolutions, so that the compiled loops of `attacks.run` compile fast."""
    hidden = jnp.tanh(product(images.reshape(images.shape[0], -1), params["in"]))
    return product(hidden, params["out"])


def classifier(seed=0, apply=network):
    """A classifier with random weights."""
    rng = np.random.default_rng(seed)
    inputs = int(np.prod(SHAPE))
    params = {"in": rng.normal(size=(inputs, 16)) / 4, "out": rng.normal(size=(16, CLASSES))}
    return Classifier(apply, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))


def examples(count, *, seed=1, wrong=2):
    """Images with the labels of `classifier()`, the last few of them wrong."""
    images, labels = images_and_labels(classifier(), count, seed)
    labels[-wrong:-1] = (labels[-wrong:-1] + 1) % CLASSES
    return images, labels


class Counting:
    """A forward pass that counts how often it was traced and how often it ran."""

    def __init__(self):
        self.traces = self.runs = 0

    def __call__(self, params, images):
        self.traces += 1
        jax.debug.callback(self._ran)
        return network(params, images)

    def _ran(self):
        self.runs += 1


@dataclasses.dataclass(frozen=True)
class NanWhere:
    """`network`, but NaN for some images.

    Args:
        above: NaN where the mean pixel is above this.
        off_grid: NaN where any pixel is no multiple of 1/256; clean images may all be.
    """

    above: float = 2.0
    off_grid: bool = False

    def __call__(self, params, images):
        bad = images.mean((1, 2, 3)) > self.above
        if self.off_grid:
            bad |= jnp.any(jnp.abs(images * 256 - jnp.round(images * 256)) > 1e-3, (1, 2, 3))
        return jnp.where(bad[:, None], jnp.nan, network(params, images))


def assert_equal_results(found, expected, rows=slice(None), atol=2e-6):
    """Lane results equal others, the counted things exactly."""
    for field in FIELDS:
        ours, theirs = np.asarray(getattr(found, field)), np.asarray(getattr(expected, field))[rows]
        assert ours.shape == theirs.shape, field
        if field in EXACT:
            np.testing.assert_array_equal(ours, theirs, err_msg=field)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol, err_msg=field)
