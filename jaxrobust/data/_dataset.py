"""Data sets: in memory, and read from disk as they are needed."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from tqdm import tqdm

from jaxrobust import _checks, _inputs
from jaxrobust.data._crops import Crop
from jaxrobust.data._images import decode, to_float

__all__ = ["Dataset", "LazyDataset", "split_range"]

_CHUNK = 512
_PIECE = 8  # records that one thread reads at a time
_MOST_CLASSES = 1_000_000  # each has a name in memory


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images in memory, as bytes where they came as bytes. `images, labels = dataset` unpacks it.

    Args:
        raw: (N, H, W, C) uint8, or float32 in [0, 1].
        labels: (N,) int32.
        class_names: one name a class.
        name: the data set's name.
        split: the part of it, such as "test[:100]".

    Example:
        >>> data = Dataset.from_arrays(np.zeros((3, 2, 2, 1), np.uint8), [0, 1, 1])
        >>> images, labels = data[:2]
        >>> images.shape, labels.tolist(), data.classes
        ((2, 2, 2, 1), [0, 1], 2)
    """

    raw: Any
    labels: Int32[np.ndarray, " examples"]
    class_names: tuple[str, ...]
    name: str = ""
    split: str = ""

    @staticmethod
    def from_arrays(images: Any, labels: Any, *, classes: int | None = None, name: str = "") -> Dataset:
        """A data set of the user's own arrays.

        Args:
            images: (N, H, W, C) uint8, or floating in [0, 1].
            labels: (N,) integers in 0..classes-1.
            classes: the number of classes; default: the highest label and one.
            name: a name for reports.

        Returns:
            The data set; uint8 images are not copied.

        Raises:
            TypeError: images or labels of another type.
            ValueError: other shapes or values.
        """
        images, labels = _inputs.as_array("images", images), _inputs.as_array("labels", labels)
        floating = np.issubdtype(images.dtype, np.floating)
        if images.dtype != np.uint8 and not floating:
            raise TypeError(f"images must be uint8, or floating in [0, 1]; got {images.dtype}")
        _inputs.axes(images.shape)
        if not images.size:
            raise ValueError(f"images must not be empty; got the shape {images.shape}")
        if floating and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"images must lie in [0, 1]; got values from {images.min()} to {images.max()}")
        _inputs.label_shape("labels", labels, images)
        classes = int(labels.max()) + 1 if classes is None else classes
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels must lie in 0..{classes - 1}; got {labels.min()}..{labels.max()}")
        if classes > _MOST_CLASSES:
            raise ValueError(f"classes must be at most {_MOST_CLASSES}; got {classes}, and labels up to {labels.max()}")
        raw = images.astype(np.float32, copy=False) if floating else images
        return Dataset(raw, labels.astype(np.int32), tuple(map(str, range(classes))), name)

    @property
    def images(self) -> Float32[np.ndarray, "examples height width channels"]:
        """The images as float32 in [0, 1]: a new array each time it is asked for."""
        return to_float(self.raw)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of one image."""
        height, width, channels = self.raw.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.images, self.labels))

    def __getitem__(self, index: Any) -> Any:
        """One (image, label) for an integer; a `Dataset` for a slice, a list of positions or a mask."""
        if isinstance(index, (int, np.integer)):
            return to_float(self.raw[index]), self.labels[index]
        index = index if isinstance(index, slice) else np.asarray(index)
        return dataclasses.replace(self, raw=self.raw[index], labels=self.labels[index])

    def take(self, count: int) -> Dataset:
        """The first `count` examples; an error if there are not so many."""
        return self[: _checked_count(count, len(self))]

    def fetch(self, positions: Any) -> tuple[np.ndarray, Int32[np.ndarray, " batch"]]:
        """Images as they are kept, and labels, at some positions."""
        return self.raw[positions], self.labels[positions]

    def __repr__(self) -> str:
        return _describe(self)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LazyDataset:
    """Labelled images on disk, decoded when they are asked for: what `load(..., in_memory=False)` returns.

    Args:
        records: a random-access source of dictionaries of encoded examples, as TensorFlow Datasets gives them.
        positions: (N,) which of the records, in which order.
        shape: (H, W, C) of every image.
        class_names: one name a class.
        size: resize to squares of this many pixels, or None.
        keys: the names of the image and of the label in a record.
        name: the data set's name.
        split: the part of it.
        crop: cut squares out of images as they are decoded, or None.
    """

    records: Any
    positions: np.ndarray
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    size: int | None
    keys: tuple[str, str]
    name: str
    split: str
    crop: Crop | None = dataclasses.field(default=None, kw_only=True)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        """One (image, label) for an integer; a `LazyDataset` for a slice, a list of positions or a mask."""
        if isinstance(index, (int, np.integer)):
            raw, labels = self.fetch([index])
            return to_float(raw[0]), labels[0]
        index = index if isinstance(index, slice) else np.asarray(index)
        return dataclasses.replace(self, positions=self.positions[index])

    def take(self, count: int) -> LazyDataset:
        """The first `count` examples; an error if there are not so many."""
        return self[: _checked_count(count, len(self))]

    def fetch(
        self,
        positions: Any,
        *,
        key: tuple[int, int] | None = None,
        mapped: Callable[[Callable[[slice], None], list[slice]], Iterable[None]] = map,
    ) -> tuple[np.ndarray, Int32[np.ndarray, " batch"]]:
        """Decoded images (uint8) and labels at some positions.

        Args:
            positions: a slice, a list of positions or a mask.
            key: (seed, epoch) of random crops, which the position completes; None gives the middle.
            mapped: how the work is shared: `map`, or that of a pool of threads.

        Returns:
            (B, H, W, C) uint8 images and (B,) int32 labels.
        """
        image_key, label_key = self.keys
        index = np.arange(len(self))[positions]
        raw, labels = np.empty((len(index), *self.shape), np.uint8), np.empty(len(index), np.int32)

        def fill(part: slice) -> None:
            records = self.records.__getitems__(self.positions[index[part]].tolist())
            for row, record in enumerate(records, part.start):
                rng = None if key is None or self.crop is None else np.random.default_rng([*key, index[row]])
                raw[row] = decode(record[image_key], self.shape[-1], self.size, crop=self.crop, rng=rng)
                labels[row] = record[label_key]

        for _ in mapped(fill, [slice(start, start + _PIECE) for start in range(0, len(index), _PIECE)]):
            pass
        return raw, labels

    def read(self, *, progress: bool = False) -> Dataset:
        """All of it, in memory.

        Args:
            progress: show a bar.

        Returns:
            The same examples as a `Dataset`.
        """
        raw, labels = np.empty((len(self), *self.shape), np.uint8), np.empty(len(self), np.int32)
        starts = range(0, len(self), _CHUNK)

        def fill(start: int) -> int:
            part = slice(start, start + _CHUNK)
            raw[part], labels[part] = self.fetch(part)
            return len(labels[part])

        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(self), desc=f"{self.name} {self.split}", unit="image", disable=not progress) as bar,
        ):
            for count in pool.map(fill, starts):
                bar.update(count)
        return Dataset(raw, labels, self.class_names, self.name, self.split)

    def __repr__(self) -> str:
        return _describe(self)


def split_range(split: str, sizes: dict[str, int], name: str) -> tuple[str, int, int]:
    """Read a split in TensorFlow Datasets' grammar: "train", "test[:1000]", "train[10%:90%]", "train[-100:]".

    Args:
        split: what to read.
        sizes: how many examples each known split has.
        name: the data set's name, for errors.

    Returns:
        The split's name, the first position and the one after the last. Percentages are rounded to the nearest.

    Raises:
        TypeError: not a string.
        ValueError: an unknown split, bad grammar, or a range that is empty or reaches outside.

    Example:
        >>> split_range("test[10%:]", {"test": 50}, "mine")
        ('test', 5, 50)
    """
    if not isinstance(split, str):
        raise TypeError(f"split must be a string such as 'test[:1000]'; got {split!r}")
    match = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*", split)
    if match is None:
        raise ValueError(f"split must read like 'test', 'test[:1000]' or 'train[10%:90%]'; got {split!r}")
    base, first, last = match.groups()
    if first and last and first.endswith("%") != last.endswith("%"):
        raise ValueError(f"split must use positions or percentages, not both; got {split!r}")
    if base not in sizes:
        raise ValueError(f"split of {name} must be one of {', '.join(sorted(sizes))}; got {split!r}")
    total = sizes[base]
    start = 0 if first is None else _boundary(first, total)
    stop = total if last is None else _boundary(last, total)
    if not 0 <= start < stop <= total:
        raise ValueError(f"split must name a part of the {total} examples of {name} {base}; got {split!r}")
    return base, start, stop


def _boundary(text: str, total: int) -> int:
    position = round(int(text[:-1]) * total / 100) if text.endswith("%") else int(text)
    return position + total if text.startswith("-") else position


def _checked_count(count: int, available: int) -> int:
    if _checks.count("count", count) > available:
        raise ValueError(f"count must be 1..{available}, the number of examples; got {count}")
    return count


def _describe(data: Dataset | LazyDataset) -> str:
    title = " ".join(filter(None, (data.name, data.split))) or "unnamed"
    return f"{type(data).__name__}({title}: {len(data)} images {data.shape}, {data.classes} classes)"
