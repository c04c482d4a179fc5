"""Batches of a fixed shape, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxrobust import _checks
from jaxrobust.data._dataset import Dataset, LazyDataset
from jaxrobust.data._images import to_float

__all__ = ["Batch", "Loader"]


class Batch(NamedTuple):
    """A batch, on the host.

    Args:
        images: (B, H, W, C) float32 in [0, 1].
        labels: (B,) int32.
        mask: (B,) bool, False for rows that only fill the batch. They repeat other examples whole, index included.
        index: (B,) int32, the examples' positions in the data set, from which per-example keys are made.
    """

    images: Any
    labels: Any
    mask: Any
    index: Any


class Loader:
    """Reads a data set in batches of a fixed shape, ahead of time in background threads.

    Epoch e goes through the permutation that (seed, e) determines. Shard k of n takes every n-th example of it,
    from k: shards are disjoint and complete, all have as many batches, and the n batches of one step are together the
    same examples whatever n is.

    Args:
        dataset: a `Dataset`, a `LazyDataset`, a pair (images, labels) of arrays, or anything with `__len__` and
            `__getitem__(int) -> (image, label)`, images being (H, W, C) uint8, or float32 in [0, 1].
        batch_size: rows of a batch, in this shard.
        seed: of the permutations; needed when `shuffle` is True.
        shuffle: False keeps the data set's own order.
        drop_last: leave out the last batch if it is not full; else it is filled up and `mask` says so.
        shard_index: this host's number, 0..shard_count-1.
        shard_count: the number of hosts.
        prefetch: how many batches to read ahead; 0 reads in the caller's thread.
        workers: threads that read ahead; more than one helps where images are decoded from disk.

    Raises:
        TypeError: `dataset` is none of these, or a count is not an integer.
        ValueError: a number out of its range, or a data set too small for a batch on every shard.

    Example:
        >>> loader = Loader((np.zeros((5, 2, 2, 1), np.uint8), np.arange(5)), 2, shuffle=False)
        >>> [batch.mask.tolist() for batch in loader.epoch(0)]
        [[True, True], [True, True], [True, False]]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        shard_index: int = 0,
        shard_count: int = 1,
        prefetch: int = 2,
        workers: int = 1,
    ) -> None:
        if isinstance(dataset, tuple) and len(dataset) == 2:
            dataset = Dataset.from_arrays(*dataset)
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(f"dataset must have __len__ and __getitem__; got {type(dataset).__name__}")
        batch_size = _checks.count("batch_size", batch_size)
        shard_count = _checks.count("shard_count", shard_count)
        prefetch = _checks.count("prefetch", prefetch, low=0)
        workers = _checks.count("workers", workers)
        shard_index = _checks.count("shard_index", shard_index, low=0)
        if shard_index >= shard_count:
            raise ValueError(f"shard_index must be 0..{shard_count - 1}; got {shard_index}")
        if shuffle and seed is None:
            raise ValueError("seed must be given when shuffle is True; got None")
        seed = 0 if seed is None else _checks.count("seed", seed, low=0)
        smallest_shard = len(dataset) // shard_count
        if smallest_shard < (batch_size if drop_last else 1):
            raise ValueError(
                f"dataset must fill a batch on every shard; got {len(dataset)} examples for {shard_count} shards "
                f"of batch_size {batch_size} with drop_last={drop_last}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed, self.shuffle = seed, shuffle
        self.shard_index, self.shard_count = shard_index, shard_count
        self.prefetch, self.workers = prefetch, workers
        largest_shard = -(-len(dataset) // shard_count)
        self._batches = smallest_shard // batch_size if drop_last else -(-largest_shard // batch_size)

    def __len__(self) -> int:
        """The number of batches of an epoch, the same on every shard."""
        return self._batches

    def order(self, number: int) -> Int[np.ndarray, " examples"]:
        """The order of the whole data set in one epoch: a function of (seed, epoch).

        Args:
            number: the epoch, from 0.

        Returns:
            A permutation of 0..N-1.
        """
        number = _checks.count("number", number, low=0)
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return np.random.default_rng([self.seed, number]).permutation(len(self.dataset))

    def epoch(self, number: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Threads end when the iterator is exhausted, closed or dropped; what they raise is raised here.

        Args:
            number: the epoch, from 0.
            start: skip to this step of it; the batches before are not read.

        Returns:
            An iterator over `len(self) - start` batches.

        Raises:
            ValueError: a negative epoch, or a start outside 0..len(self).
        """
        if _checks.count("start", start, low=0) > len(self):
            raise ValueError(f"start must be 0..{len(self)}, a step of the epoch; got {start}")
        rows = self.order(number)[self.shard_index :: self.shard_count]
        return self._ahead(rows, start) if self.prefetch else self._now(rows, start)

    def _now(self, rows: np.ndarray, start: int) -> Iterator[Batch]:
        for step in range(start, len(self)):
            yield self._batch(rows, step)

    def _ahead(self, rows: np.ndarray, start: int) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="jaxrobust-loader")
        pending: deque[Future[Batch]] = deque()
        try:
            for step in range(start, len(self)):
                pending.append(pool.submit(self._batch, rows, step))
                if len(pending) > self.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, rows: np.ndarray, step: int) -> Batch:
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        index = rows[places % len(rows)]
        images, labels = _fetch(self.dataset, index)
        return Batch(to_float(images), labels, places < len(rows), index.astype(np.int32))


def _fetch(dataset: Any, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(dataset, (Dataset, LazyDataset)):
        return dataset.fetch(index)
    images, labels = zip(*(dataset[int(position)] for position in index), strict=True)
    return np.stack(images), np.asarray(labels, np.int32)
