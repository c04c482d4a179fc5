"""Networks and batches small enough to train in milliseconds."""

from collections.abc import Callable

import jax
import numpy as np
import optax
from flax import nnx

from jaxrobust.data import Batch
from jaxrobust.models.trainable import Trainable
from jaxrobust.training import TrainState, train_step


class Linear(nnx.Module):
    """logits = flatten(x) @ kernel."""

    def __init__(self, size: int, classes: int, rngs: nnx.Rngs):
        self.dense = nnx.Linear(size, classes, rngs=rngs)

    def __call__(self, images):
        return self.dense(images.reshape(images.shape[0], -1))


class Mlp(nnx.Module):
    """Two layers, with BatchNorm and dropout between them where asked for; counts how often it is traced."""

    def __init__(
        self, size: int, classes: int, rngs: nnx.Rngs, norm: bool = False, dropout: float = 0.0, traces: Callable = int
    ):
        self.first = nnx.Linear(size, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.second = nnx.Linear(16, classes, rngs=rngs)
        self.traces = traces

    def __call__(self, images):
        self.traces()
        hidden = nnx.relu(self.first(images.reshape(images.shape[0], -1)))
        hidden = hidden if self.norm is None else self.norm(hidden)
        return self.second(self.dropout(hidden))


def make_batch(seed=0, count=8, shape=(4, 4, 1), classes=3, mask=None):
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 1, (count, *shape)).astype(np.float32)
    labels = rng.integers(0, classes, count).astype(np.int32)
    mask = np.ones(count, np.float32) if mask is None else mask
    return Batch(images, labels, mask, np.arange(count, dtype=np.int32))


SGD = optax.sgd(0.1)
compiled_step = jax.jit(train_step, static_argnames=("optimizer", "augment"))


def start(network, *, optimizer=SGD, with_ema=False):
    """(trainable, optimizer, state) before the first step."""
    trainable, params, state = Trainable.from_nnx(network)
    return trainable, optimizer, TrainState.create(params, state, optimizer, with_ema=with_ema)


def take_steps(objective, network, batch, *, steps=1, seed=0, with_ema=False, optimizer=SGD, **options):
    """The state and the metrics after a few compiled steps on one batch."""
    trainable, optimizer, state = start(network, optimizer=optimizer, with_ema=with_ema)
    metrics = {}
    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(seed), number)
        state, metrics = compiled_step(objective, trainable, optimizer, state, batch, key, **options)
    return state, metrics


def assert_equal(first, second):
    """Two pytrees are bit for bit the same."""
    jax.tree.map(np.testing.assert_array_equal, first, second)


def without_times(history):
    """A run's rows without the one number that is never the same twice."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]
