"""Batches of a fixed shape, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxrobust import _checks, _inputs
from jaxrobust.data._dataset import Dataset, LazyDataset
from jaxrobust.data._images import to_float

__all__ = ["Batch", "Loader"]


class Batch(NamedTuple):
    """A batch, on the host.

    Args:
        images: (B, H, W, C) float32 in [0, 1], or uint8 where the loader's `as_bytes` is True.
        labels: (B,) int32.
        mask: (B,) bool, False for rows that only fill the batch. They repeat other examples whole, index included.
        index: (B,) int32, the examples' positions in the data set (or the loader's `places` of them), from which
            per-example keys are made.
    """

    images: Any
    labels: Any
    mask: Any
    index: Any


class Loader:
    """Reads a data set in batches of a fixed shape, ahead of time in background threads.

    Epoch e goes through the permutation that (seed, e) determines, batch after batch. Host k of n reads the k-th of n
    equal parts of every batch: all hosts have as many batches, and their parts, one after another, are the batch of a
    single host, whatever n is.

    Args:
        dataset: a `Dataset`, a `LazyDataset`, a pair (images, labels) of arrays, or anything with `__len__` and
            `__getitem__(int) -> (image, label)`, images being (H, W, C) uint8, or float32 in [0, 1].
        batch_size: rows of a batch, of all hosts together.
        seed: of the permutations and of random crops; needed when `shuffle` is True. Without one, crops are central.
        shuffle: False keeps the data set's own order.
        drop_last: leave out the last batch if it is not full; else it is filled up and `mask` says so.
        host: this host's number, 0..hosts-1, such as `jax.process_index()`.
        hosts: how many hosts read, such as `jax.process_count()`; a divisor of `batch_size`.
        as_bytes: leave uint8 images as they are, a quarter of the memory and of the transfer to a device, where
            `augment.to_float` makes the same floats of them.
        prefetch: how many batches to read ahead; 0 reads in the caller's thread.
        workers: threads that read the examples of a batch; default: one a CPU for images on disk, else 1.
        places: (N,) integers, what `Batch.index` says of each example, such as where it stands in the data that
            `dataset` is a part of; default: 0..N-1.

    Raises:
        TypeError: `dataset` is none of these, or a count is not an integer.
        ValueError: a number out of its range, a data set too small for a batch, or `places` of another length.

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
        host: int = 0,
        hosts: int = 1,
        as_bytes: bool = False,
        prefetch: int = 2,
        workers: int | None = None,
        places: Any = None,
    ) -> None:
        if isinstance(dataset, tuple) and len(dataset) == 2:
            dataset = Dataset.from_arrays(*dataset)
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(f"dataset must have __len__ and __getitem__; got {type(dataset).__name__}")
        batch_size = _checks.count("batch_size", batch_size)
        hosts = _checks.count("hosts", hosts)
        host = _checks.count("host", host, low=0)
        prefetch = _checks.count("prefetch", prefetch, low=0)
        if workers is None:
            workers = (os.cpu_count() or 1) if isinstance(dataset, LazyDataset) else 1
        workers = _checks.count("workers", workers)
        if host >= hosts:
            raise ValueError(f"host must be 0..{hosts - 1}; got {host}")
        if batch_size % hosts:
            raise ValueError(f"batch_size must be a multiple of hosts, {hosts}; got {batch_size}")
        if shuffle and seed is None:
            raise ValueError("seed must be given when shuffle is True; got None")
        if len(dataset) < (batch_size if drop_last else 1):
            raise ValueError(
                f"dataset must fill a batch; got {len(dataset)} examples for batch_size {batch_size} with "
                f"drop_last={drop_last}"
            )
        self.places = np.arange(len(dataset)) if places is None else _inputs.as_array("places", places)
        if self.places.shape != (len(dataset),) or not np.issubdtype(self.places.dtype, np.integer):
            raise ValueError(f"places must be integers of shape ({len(dataset)},); got {_checks.told(places)}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed: Any = None if seed is None else _checks.count("seed", seed, low=0)
        self.shuffle = shuffle
        self.host, self.hosts, self.as_bytes = host, hosts, as_bytes
        self.prefetch, self.workers = prefetch, workers
        self._batches = len(dataset) // batch_size if drop_last else -(-len(dataset) // batch_size)

    def __len__(self) -> int:
        """The number of batches of an epoch, the same on every host."""
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
        read = functools.partial(self._batch, number, self.order(number))
        steps = range(start, len(self))
        return self._ahead(read, steps) if self.prefetch else (read(step, map) for step in steps)

    def _ahead(self, read: Any, steps: range) -> Iterator[Batch]:
        # The examples of a batch are shared among threads, not batches: so memory does not grow with the threads. Two
        # batches are under way, so that no thread waits for the end of one. Pillow decodes without Python's lock.
        # Grain's threads took 1.4 times the CPU time for the same images; its processes want the program's own flags.
        workers = ThreadPoolExecutor(self.workers, thread_name_prefix="jaxrobust-loader-worker")
        pool = ThreadPoolExecutor(1 if self.workers == 1 else 2, thread_name_prefix="jaxrobust-loader")
        mapped = map if self.workers == 1 else workers.map
        pending: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                pending.append(pool.submit(read, step, mapped))
                if len(pending) > self.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for threads in (workers, pool):
                threads.shutdown(wait=True, cancel_futures=True)

    def _batch(self, number: int, order: np.ndarray, step: int, mapped: Any) -> Batch:
        rows = self.batch_size // self.hosts
        places = step * self.batch_size + self.host * rows + np.arange(rows)
        index = order[places % len(order)]
        images, labels = self._fetch(index, None if self.seed is None else (self.seed, number), mapped)
        if not (self.as_bytes and images.dtype == np.uint8):
            images = to_float(images)
        return Batch(images, labels, places < len(order), self.places[index].astype(np.int32))

    def _fetch(self, index: np.ndarray, key: tuple[int, int] | None, mapped: Any) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.dataset, LazyDataset):
            return self.dataset.fetch(index, key=key, mapped=mapped)
        if isinstance(self.dataset, Dataset):
            return self.dataset.fetch(index)
        images, labels = zip(*mapped(self.dataset.__getitem__, index.tolist()), strict=True)
        return np.stack(images), np.asarray(labels, np.int32)
