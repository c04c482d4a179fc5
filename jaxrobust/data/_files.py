"""Labelled images of one's own, read as they lie: an archive of arrays, or a folder in a public format."""

from __future__ import annotations

import os
import re

import numpy as np

from jaxrobust import _checks, _store
from jaxrobust.data._dataset import Dataset, split_range
from jaxrobust.data._formats import LocalCopy, read_local
from jaxrobust.data._images import decode

__all__ = ["read"]


def read(path: str | os.PathLike[str], split: str | None = None, *, size: int | None = None) -> Dataset:
    """Read labelled images from a file or a folder, without preparing them first.

    An `.npz` holds the arrays `images` (N, H, W, C), uint8 or floating in [0, 1], and `labels` (N,), integers; uint8
    is divided by 255. A folder holds class folders of images, under split folders or not, MNIST's IDX files or the
    binary version of CIFAR-10; examples of class folders come class by class.

    Args:
        path: the file or the folder.
        split: a part of it, such as "test[:1000]", or "[:1000]" of the usual split; by default all of the usual one:
            "test" where there is one, else the only one.
        size: of folders: resize (shorter side, bilinear, then centre crop) to squares of this many pixels; needed
            where images differ in size.

    Returns:
        The data set.

    Raises:
        TypeError: a path that is none, a split that is no string.
        ValueError: no such file or folder, an unknown format, split or array, a damaged file, uint8 images of zeros
            and ones, images of different sizes without `size`.

    Example:
        >>> images, labels = read("photographs", "[:100]", size=224)  # doctest: +SKIP
    """
    path = _checks.path("path", path).expanduser()
    if split is not None and not isinstance(split, str):
        raise TypeError(f"split must be None or a string such as 'test[:1000]'; got {split!r}")
    if size is not None:
        size = _checks.count("size", size)
    if path.is_dir():
        path = _store.local("path", path)
        copy = read_local(path, path.name, size=size)
        part = _part({name: len(found.labels) for name, found in copy.splits.items()}, split, str(path))
        return _of_folder(copy, part, path)
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"path must be a folder of images or an .npz with images and labels; got {str(path)!r}")
    if size is not None:
        raise ValueError(f"size must be None for an .npz, whose images are arrays; got {size}")
    arrays = _store.read_arrays(path, lambda error: f"path must be a whole .npz; got {path}, damaged: {error}")
    if missing := sorted({"images", "labels"} - set(arrays)):
        raise ValueError(f"{path} must hold the arrays images and labels; missing {missing}, found {sorted(arrays)}")
    images = arrays["images"]
    if images.dtype == np.uint8 and images.size and images.max() == 1:  # divided by 255 they would be all but black
        raise ValueError(
            f"images of {path} must be floating where they lie in [0, 1], since uint8 is divided by 255; got uint8 of "
            "maximum 1"
        )
    data = Dataset.from_arrays(images, arrays["labels"], name=path.name)
    if split is None:
        return data
    base, start, stop = _part({"all": len(data)}, split, str(path))
    return Dataset(
        data.raw[start:stop], data.labels[start:stop], data.class_names, path.name, f"{base}[{start}:{stop}]"
    )


def _part(sizes: dict[str, int], split: str | None, name: str) -> tuple[str, int, int]:
    usual = "test" if "test" in sizes else next(iter(sizes)) if len(sizes) == 1 else None
    if split is None or split.lstrip().startswith("["):
        if usual is None:
            raise ValueError(f"split of {name} must be one of {', '.join(sorted(sizes))}; got {split!r}")
        split = usual + (split or "")
    return split_range(split, sizes, name)


def _of_folder(copy: LocalCopy, part: tuple[str, int, int], path: _store.Path) -> Dataset:
    base, start, stop = part
    height, width, channels = copy.shape
    if height is None or width is None:
        raise ValueError(f"images of {path} differ in size: pass size= to resize them; got size=None")
    found = copy.splits[base]
    raw = np.empty((stop - start, height, width, channels), np.uint8)
    for row, position in enumerate(range(start, stop)):
        raw[row] = decode(found.encoded(position), channels, None)
    whole = len(found.labels) == stop - start
    title = base if whole else f"{base}[{start}:{stop}]"
    return Dataset(raw, found.labels[start:stop], copy.class_names, path.name, title)


def is_path(name: str) -> bool:
    """Whether the name of data means a file or folder rather than a data set: by its looks, not by what there is."""
    return name.endswith(".npz") or bool(re.match(r"[./~]|\w+:[\\/]", name))
