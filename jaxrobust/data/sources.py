"""Where data sets come from: scikit-learn's digits, prepared copies, TensorFlow Datasets."""

from __future__ import annotations

import difflib
import importlib.util
import os
from typing import Any, Literal, overload

import numpy as np

from jaxrobust import _checks
from jaxrobust.data import _prepared
from jaxrobust.data._crops import CentreCrop, Crop, RandomResizedCrop
from jaxrobust.data._dataset import Dataset, LazyDataset, split_range

__all__ = ["load"]

_USUAL = ("digits", "mnist", "fashion_mnist", "cifar10", "imagenet100")


@overload
def load(
    name: str,
    split: str = ...,
    *,
    data_dir: str | os.PathLike[str] | None = ...,
    size: int | None = ...,
    crop: Crop | None = ...,
    in_memory: Literal[True] = ...,
) -> Dataset: ...


@overload
def load(
    name: str,
    split: str = ...,
    *,
    data_dir: str | os.PathLike[str] | None = ...,
    size: int | None = ...,
    crop: Crop | None = ...,
    in_memory: Literal[False],
) -> LazyDataset: ...


def load(
    name: str,
    split: str = "test",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    size: int | None = None,
    crop: Crop | None = None,
    in_memory: bool = True,
) -> Dataset | LazyDataset:
    """Load a data set of labelled images.

    `"digits"` ships with scikit-learn: 1,797 grey images of 8 x 8, pixel / 16; every fifth (index % 5 == 4) is
    "test", the others are "train". `"mnist"`, `"fashion_mnist"`, `"cifar10"` and every other name of an image
    classification data set of TensorFlow Datasets (also `"name/config"`) come from a copy that
    `python -m jaxrobust.data.prepare NAME --from DIR` imported, in the order of the published files; else from
    TensorFlow Datasets, in its order, which downloads and prepares the data where TensorFlow is installed.

    `"imagenet100"` is every tenth class of ImageNet, in the order of their WordNet ids: ImageNet's training images are
    "train", its validation images "test". It is prepared from a local copy of ImageNet and, unless `size` or `crop`
    says otherwise, seen through `CentreCrop(224)`.

    Args:
        name: the data set.
        split: "train", "test", ... or a part: "test[:1000]", "train[10%:90%]", "train[-100:]".
        data_dir: the folder of prepared copies; default: the environment variable `TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`. From "gs://bucket/folder" the data set is copied once to this machine's
            `~/.cache/jaxrobust` (or `XDG_CACHE_HOME`).
        size: resize (shorter side, bilinear, then centre crop) to squares of this many pixels; needed where images
            differ in size.
        crop: in the place of `size`, `CentreCrop` or `RandomResizedCrop`; the latter only with `in_memory=False`, as a
            `Loader` draws it anew each epoch.
        in_memory: False leaves the images on disk, to be decoded when they are asked for.

    Returns:
        A `Dataset`, which unpacks: `images, labels = load(...)` with images (N, H, W, C) float32 in [0, 1] and labels
        (N,) int32. With `in_memory=False` a `LazyDataset` of the same examples.

    Raises:
        TypeError: a name, split, size or crop of another type.
        ValueError: an unknown name or split, images of different sizes without `size` or `crop`, both of them, a random
            crop in memory.
        RuntimeError: the data are not prepared and cannot be had; the message says the ways out.

    Example:
        >>> images, labels = load("digits", "test[:100]")
        >>> images.shape, images.dtype.name, labels.dtype.name
        ((100, 8, 8, 1), 'float32', 'int32')
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'mnist'; got {name!r}")
    if size is not None:
        size = _checks.count("size", size)
    if not (crop is None or isinstance(crop, Crop)):
        raise TypeError(f"crop must be a CentreCrop, a RandomResizedCrop or None; got {crop!r}")
    if size is not None and crop is not None:
        raise ValueError(f"size must be None where crop is given; got size={size}, crop={crop}")
    if in_memory and isinstance(crop, RandomResizedCrop):
        raise ValueError(f"in_memory must be False for a random crop, which is drawn at each reading; got {crop}")
    if name == "digits":
        if size is not None or crop is not None or not in_memory:
            raise ValueError("size, crop and in_memory do not apply to 'digits', which is 8 x 8 and always in memory")
        return _digits(split)
    if name == "imagenet100" and size is None and crop is None:
        crop = CentreCrop(224)
    lazy = _lazy(_builder(name, data_dir), name, split, size, crop)
    return lazy.read() if in_memory else lazy


def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test = np.arange(len(bunch.target)) % 5 == 4
    base, start, stop = split_range(split, {"test": int(test.sum()), "train": int((~test).sum())}, "digits")
    chosen = np.flatnonzero(test if base == "test" else ~test)[start:stop]
    raw = (bunch.images[chosen, :, :, None] / 16).astype(np.float32)
    return Dataset(raw, bunch.target[chosen].astype(np.int32), tuple(map(str, bunch.target_names)), "digits", split)


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The TFDS builder of a data set that is ready to be read."""
    import tensorflow_datasets as tfds

    prepared = _prepared.find(name, data_dir)
    if prepared is not None:
        return prepared
    root = _prepared.data_root(data_dir)
    if name == "imagenet100":  # of ours alone
        raise RuntimeError(
            f"{name!r} is not prepared in {root}. Import it from a local copy of ImageNet, a folder of train/nXXXXXXXX "
            f"and val/nXXXXXXXX, with `python -m jaxrobust.data.prepare {name} --from DIR`."
        )
    try:
        builder = tfds.builder(name, data_dir=os.fspath(root), file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        ours = sorted({*_USUAL, *_prepared.names(data_dir)})
        close = difflib.get_close_matches(name, {*ours, *tfds.list_builders(with_community_datasets=False)}, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"name must be one of {', '.join(ours)} or any image classification name of TensorFlow Datasets; "
            f"got {name!r}{hint}"
        ) from error
    except ValueError as error:  # malformed, an unknown configuration, or a copy prepared in another file format
        raise ValueError(
            f"name must be readable by TensorFlow Datasets as array_record; got {name!r}: {error}"
        ) from error
    _keys(builder.info, name)  # before any download
    if builder.is_prepared():
        return builder
    ways_out = (
        f"{name!r} is not prepared in {root}. Import a local copy with "
        f"`python -m jaxrobust.data.prepare {builder.name} --from DIR`, or `pip install jaxrobust[prepare]` and let "
        "TensorFlow Datasets download it"
    )
    # Without TensorFlow, TFDS would retry for minutes when offline, or fail only after the download.
    if not _has_tensorflow():
        raise RuntimeError(f"{ways_out} (TensorFlow is not installed here).")
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise RuntimeError(f"{ways_out} (tried: {type(error).__name__}: {error}).") from error
    return _prepared.find(name, data_dir) or builder


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _lazy(builder: Any, name: str, split: str, size: int | None, crop: Crop | None) -> LazyDataset:
    import tensorflow_datasets as tfds

    info = builder.info
    image_key, label_key = _keys(info, name)
    sizes = {base: int(part.num_examples) for base, part in info.splits.items()}
    base, start, stop = split_range(split, sizes, name)
    *sides, channels = info.features[image_key].shape
    square = size if crop is None else crop.size
    if square is None and None in sides:
        raise ValueError(f"images of {name} differ in size: pass size= to resize them, or crop=; got size=None")
    height, width = sides if square is None else (square, square)
    records = builder.as_data_source(split=f"{base}[{start}:{stop}]", decoders={image_key: tfds.decode.SkipDecoding()})
    shape, names = (height, width, channels or 3), tuple(info.features[label_key].names)
    keys = image_key, label_key
    return LazyDataset(records, np.arange(len(records)), shape, names, size, keys, name, split, crop=crop)


def _keys(info: Any, name: str) -> tuple[str, str]:
    """The names of the one image and the one label of an example."""
    import tensorflow_datasets as tfds

    def only(kind: type) -> list[str]:
        found = [key for key, feature in info.features.items() if isinstance(feature, kind)]
        return found if len(found) == 1 else [key for key in found if key in (info.supervised_keys or ())]

    images, labels = only(tfds.features.Image), only(tfds.features.ClassLabel)
    if len(images) != 1 or len(labels) != 1 or info.features[images[0]].np_dtype != np.uint8:
        raise ValueError(
            "name must be a data set of 8-bit images with one class label each; "
            f"got {name!r} with {list(info.features)}"
        )
    return images[0], labels[0]
