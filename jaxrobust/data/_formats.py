"""Readers of the public formats: IDX (MNIST and its kin), CIFAR-10 binary, class folders of images, ImageNet."""

from __future__ import annotations

import dataclasses
import gzip
import io
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from jaxrobust.data._images import decode, encode_png

__all__ = [
    "LocalCopy",
    "LocalSplit",
    "UnreadableError",
    "read_cifar10",
    "read_folders",
    "read_idx",
    "read_imagenet100",
    "read_local",
]

SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
_UNREADABLE = (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError)  # AVIF: RuntimeError
_NAMED = 10  # of many files at fault
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


class UnreadableError(ValueError):
    """An image file that is none: missing, damaged, or of another kind."""


@dataclasses.dataclass(frozen=True)
class LocalSplit:
    """One split: integer labels (N,) and a function from a position to the encoded image."""

    labels: Int[np.ndarray, " examples"]
    encoded: Callable[[int], bytes]


@dataclasses.dataclass(frozen=True)
class LocalCopy:
    """A data set as it lies on disk. `shape` is (H, W, C); H and W are None where images differ in size.

    `skipped` says which files were left out and why, and grows as images are read; None makes each of them an error.
    """

    splits: dict[str, LocalSplit]
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    skipped: list[str] | None = None


def read_local(directory: Path, name: str, *, size: int | None = None, skip_corrupt: bool = False) -> LocalCopy:
    """Read a local copy, telling the format from the files.

    Args:
        directory: the folder of the files.
        name: the data set's name; names the classes where the format itself does not. "imagenet100" is ImageNet's tree.
        size: resize the images of folders to squares of this many pixels.
        skip_corrupt: leave out image files of folders that cannot be read.

    Returns:
        The copy.

    Raises:
        ValueError: the folder is missing or holds no known format, or a file is damaged.
    """
    if not directory.is_dir():
        raise ValueError(f"--from must be an existing folder; got {str(directory)!r}")
    if name == "imagenet100":
        return read_imagenet100(directory, size=size, skip_corrupt=skip_corrupt)
    if any(_find_idx(directory, prefix, "images") for prefix in ("train", "t10k")):
        return read_idx(directory, name)
    for folder in (directory, directory / "cifar-10-batches-bin"):
        if (folder / "data_batch_1.bin").exists() or (folder / "test_batch.bin").exists():
            return read_cifar10(folder)
    if _subfolders(directory):
        return read_folders(directory, size=size, skip_corrupt=skip_corrupt)
    raise ValueError(
        f"the folder must hold IDX files (train-images-idx3-ubyte[.gz], ...), the binary version of CIFAR-10 "
        f"(data_batch_1.bin, ..., test_batch.bin) or class folders of images; got {str(directory)!r}"
    )


def read_idx(directory: Path, name: str) -> LocalCopy:
    """MNIST's format: one file of images and one of labels a split, plain or gzipped."""
    splits, shapes = {}, set()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_path, labels_path = (_find_idx(directory, prefix, kind) for kind in ("images", "labels"))
        if images_path is None and labels_path is None:
            continue
        if images_path is None or labels_path is None:
            raise ValueError(f"{directory}: {prefix}-images and {prefix}-labels must both exist, found only one")
        images, labels = _read_idx_file(images_path, 3)[..., None], _read_idx_file(labels_path, 1)
        if len(images) != len(labels):
            raise ValueError(f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels")
        splits[split] = _from_arrays(images, labels)
        shapes.add(images.shape[1:])
    if len(shapes) != 1:
        raise ValueError(f"{directory}: the splits must have images of one size; got {sorted(shapes)}")
    classes = 1 + max(int(split.labels.max()) for split in splits.values())
    names = _CLASS_NAMES.get(name) or tuple(map(str, range(classes)))
    if len(names) < classes:
        raise ValueError(f"{directory}: {name} has {len(names)} classes; got the label {classes - 1}")
    return LocalCopy(splits, names, shapes.pop())


def read_cifar10(directory: Path) -> LocalCopy:
    """CIFAR-10's binary version: records of a label byte and 3 x 32 x 32 bytes, planes first."""
    train = [directory / f"data_batch_{i}.bin" for i in range(1, 6)]
    splits = {}
    for split, paths in (("train", train), ("test", [directory / "test_batch.bin"])):
        if missing := [path.name for path in paths if not path.exists()]:
            raise ValueError(f"{directory}: CIFAR-10 needs six files; missing: {', '.join(missing)}")
        records = np.concatenate([_read_cifar_file(path) for path in paths])
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = _from_arrays(images, records[:, 0])
    return LocalCopy(splits, _CLASS_NAMES["cifar10"], (32, 32, 3))


def read_folders(directory: Path, *, size: int | None = None, skip_corrupt: bool = False) -> LocalCopy:
    """Folders of class folders of images, under split folders (train, test, val) or not (then all is "train").

    Images keep their own encoded bytes, unless `size` resizes them (shorter side, then centre crop; PNG). They are grey
    if all are, else RGB; transparency is dropped on reading.
    """
    folders = _subfolders(directory)
    split_folders = [folder for folder in folders if folder.name in SPLIT_FOLDERS]
    if split_folders and len(split_folders) < len(folders):
        others = sorted(folder.name for folder in folders if folder not in split_folders)
        raise ValueError(f"{directory}: split folders {[f.name for f in split_folders]} stand beside others {others}")
    by_split = {folder.name: folder for folder in split_folders} or {"train": directory}
    class_names = sorted({folder.name for split in by_split.values() for folder in _subfolders(split)})
    return _read_classes(by_split, class_names, size, [] if skip_corrupt else None)


def read_imagenet100(directory: Path, *, size: int | None = None, skip_corrupt: bool = False) -> LocalCopy:
    """ImageNet's `train`, and its `val` as "test": of 1000 class folders every tenth from the first, in the order of
    their WordNet ids; of 100 all.

    Reference:
        Laidlaw, Singla, Feizi (2021), arXiv:2006.12655; Kang et al. (2019), arXiv:1908.08016.
    """
    by_split = {"train": directory / "train", "test": directory / "val"}
    ids = {split: [folder.name for folder in _subfolders(folder)] for split, folder in by_split.items()}
    for split, found in ids.items():
        if others := [name for name in found if not re.fullmatch(r"n\d{8}", name)]:
            raise ValueError(f"{by_split[split]} must hold folders nXXXXXXXX of WordNet ids; got {others[:_NAMED]}")
        if len(found) not in (100, 1000):
            raise ValueError(
                f"{by_split[split]} must hold the folders nXXXXXXXX of all 1000 classes of ImageNet, or of 100; "
                f"got {len(found)}"
            )
    if apart := sorted(set(ids["train"]) ^ set(ids["test"])):
        raise ValueError(f"{directory}: train and val must hold the same classes; only one has {apart[:_NAMED]}")
    skipped: list[str] | None = [] if skip_corrupt else None
    return _read_classes(by_split, ids["train"][:: len(ids["train"]) // 100], size, skipped, only_images=True)


def _read_classes(
    by_split: dict[str, Path],
    class_names: list[str],
    size: int | None,
    skipped: list[str] | None,
    *,
    only_images: bool = False,
) -> LocalCopy:
    files: dict[str, list[tuple[Path, int]]] = {}
    faults, modes, shapes = [], set(), set()
    for split, folder in by_split.items():
        paths = []
        for label, name in enumerate(class_names):
            images, others = _image_files(folder / name)
            paths += [(path, label) for path in images]
            faults += [f"{path}: not an image file" for path in others if only_images]
        if not paths:
            raise ValueError(f"{folder} must hold class folders of images; found {', '.join(class_names) or 'none'}")
        with ThreadPoolExecutor() as pool:
            headers = list(pool.map(_header, (path for path, _ in paths)))
        faults += [header for header in headers if isinstance(header, str)]
        shapes |= {header[:2] for header in headers if not isinstance(header, str)}
        modes |= {header[2] for header in headers if not isinstance(header, str)}
        files[split] = [pair for pair, header in zip(paths, headers, strict=True) if not isinstance(header, str)]
    if faults and skipped is None:
        more = f"\nand {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise ValueError("\n".join(faults[:_NAMED]) + more)
    if skipped is not None:
        skipped += faults
    for split, folder in by_split.items():
        without = set(range(len(class_names))) - {label for _, label in files[split]}
        # a class that is no folder of a part for validation has no examples there by intention
        if named := [
            str(folder / class_names[i]) for i in sorted(without) if _must_fill(split, folder / class_names[i])
        ]:
            raise ValueError(f"every class must have images; without any: {', '.join(named[:_NAMED])}")
    channels = 1 if modes <= {"1", "L"} else 3
    if size is not None:
        shapes = {(size, size)}
    height, width = shapes.pop() if len(shapes) == 1 else (None, None)
    splits = {}
    for split, pairs in files.items():
        split_paths, labels = zip(*pairs, strict=True)
        splits[split] = LocalSplit(np.asarray(labels, np.int32), _FileBytes(split_paths, channels, size))
    return LocalCopy(splits, tuple(class_names), (height, width, channels), skipped)


def _must_fill(split: str, folder: Path) -> bool:
    return split == "train" or folder.is_dir()


@dataclasses.dataclass(frozen=True)
class _FileBytes:
    paths: tuple[Path, ...]
    channels: int
    size: int | None

    def __call__(self, position: int) -> bytes:
        path = self.paths[position]
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                image.load()  # a truncated file has a good header
        except _UNREADABLE as error:
            raise UnreadableError(f"{path}: not a readable image: {error}") from error
        return data if self.size is None else encode_png(decode(data, self.channels, self.size))


def _from_arrays(images: np.ndarray, labels: np.ndarray) -> LocalSplit:
    return LocalSplit(labels.astype(np.int32), lambda position: encode_png(np.ascontiguousarray(images[position])))


def _subfolders(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files that are images by their names, and others."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []
    images = [path for path in files if path.suffix.lower() in known]
    return images, [path for path in files if path.suffix.lower() not in known]


def _header(path: Path) -> tuple[int, int, str] | str:
    """Height, width and mode; or what is wrong."""
    try:
        with Image.open(path) as image:
            (width, height), mode = image.size, image.mode
    except _UNREADABLE as error:
        return f"{path}: not a readable image: {error}"
    if mode not in _EIGHT_BIT_MODES:
        return f"{path}: images must have 8 bits a channel; got the mode {mode!r}"
    return height, width, mode


def _find_idx(directory: Path, prefix: str, kind: str) -> Path | None:
    dimensions = {"images": 3, "labels": 1}[kind]
    # The files are also handed round with a dot where the first publication has a dash.
    names = [f"{prefix}-{kind}{dot}idx{dimensions}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    return next((directory / name for name in names if (directory / name).exists()), None)


def _read_idx_file(path: Path, dimensions: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: truncated or not gzip: {error}") from error
    magic = bytes([0, 0, 8, dimensions])  # two zeros, the code of unsigned bytes, the number of dimensions
    start = 4 * (1 + dimensions)
    if data[:4] != magic or len(data) < start:
        raise ValueError(f"{path}: an IDX file of this name begins with {magic.hex()}; got {data[:4].hex()!r}")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, 4))
    expected = start + int(np.prod(shape))
    if len(data) != expected or not all(shape):
        raise ValueError(f"{path}: the header says {shape}, so {expected} bytes; got {len(data)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_cifar_file(path: Path) -> np.ndarray:
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % 3073:
        raise ValueError(f"{path}: CIFAR-10 files are whole records of 3073 bytes; got {len(data)} bytes")
    records = data.reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise ValueError(f"{path}: labels must lie in 0..9; got {records[:, 0].max()}")
    return records
