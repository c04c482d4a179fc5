"""Data at the trainer's door: what trains, what is held out, and how accurate a classifier is on it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxrobust import _compile, _inputs, attacks
from jaxrobust.data import Dataset, LazyDataset, Loader
from jaxrobust.data.augment import to_float
from jaxrobust.training.config import TrainConfig
from jaxrobust.types import Classifier, Code, Key

__all__ = ["accuracy", "as_dataset", "batch_correct", "split"]

Data = Dataset | LazyDataset


def as_dataset(name: str, data: Any) -> Data:
    """A data set as it is, or from a pair of arrays, whose values are checked."""
    if isinstance(data, Dataset | LazyDataset):
        return data
    if isinstance(data, tuple | list):
        try:
            return Dataset.from_arrays(*_inputs.pair(data))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    raise TypeError(f"{name} must be a jaxrobust.data.Dataset or a pair (images, labels); got {type(data).__name__}")


def split(train: Data, config: TrainConfig, seed: int) -> tuple[Data, Data | None, np.ndarray]:
    """What trains, what `TrainConfig.validation` holds out of it at random, and the places of what trains."""
    count = min(round(config.validation * len(train)), config.validation_limit)
    if count == 0:
        return train, None, np.arange(len(train))
    order = np.random.default_rng(seed).permutation(len(train))
    places = np.sort(order[count:])
    return train[places], train[np.sort(order[:count])], places


def accuracy(classifier: Classifier, data: Data, attack: Any, key: Key, batch_size: int) -> dict[str, float]:
    """`val_clean_acc` and, with an attack, `val_adv_acc` over a data set, of which each process takes a share."""
    hosts = jax.process_count()
    rows = -(-min(batch_size, len(data)) // hosts) * hosts
    totals: dict[str, int] = {}
    for batch in Loader(data, rows, shuffle=False, host=jax.process_index(), hosts=hosts).epoch(0):
        for name, correct in _outcomes(classifier, batch, attack, key).items():
            totals[name] = totals.get(name, 0) + int((correct & batch.mask).sum())
    return {name: total / len(data) for name, total in zip(totals, _summed(*totals.values()), strict=True)}


def batch_correct(classifier: Classifier, batch: Any, attack: Any, key: Key) -> tuple[int, int]:
    """How many examples of one batch are classified right under attack, and how many it has, in all processes."""
    correct = _outcomes(classifier, batch, attack, key)["val_adv_acc"]
    right, count = _summed(int((correct & batch.mask).sum()), int(batch.mask.sum()))
    return right, count


def _summed(*counts: int) -> list[int]:
    """Counts of all processes together, the same in each, so that they decide alike."""
    if jax.process_count() == 1:
        return list(counts)
    return multihost_utils.process_allgather(np.asarray(counts)).sum(0).tolist()


def _outcomes(classifier: Classifier, batch: Any, attack: Any, key: Key) -> dict[str, np.ndarray]:
    """For each example, whether it is classified right, and whether it still is under attack."""
    found = {"val_clean_acc": np.asarray(_correct(classifier, batch.images, batch.labels))}
    if attack is not None:
        found["val_adv_acc"] = np.asarray(_robust(attack, classifier, batch, key))
    return found


@_compile.jit
def _correct(classifier: Classifier, images: Any, labels: Any) -> Any:
    logits = classifier(to_float(images))
    return (jnp.argmax(logits, axis=1) == labels) & jnp.isfinite(logits).all(axis=1)


@_compile.jit
def _robust(attack: Any, classifier: Classifier, batch: Any, key: Key) -> Any:
    images = to_float(batch.images)
    result = attacks.run(attack, classifier, images, batch.labels, key=key, indices=batch.index, early_stop=True)
    return ~result.success & ((result.code == Code.RAN) | (result.code == Code.NO_START))
