"""Import a local copy of a data set: `python -m jaxrobust.data.prepare NAME --from DIR`."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from jaxrobust import _checks, _store
from jaxrobust.data import _prepared
from jaxrobust.data._formats import read_local

__all__ = ["Prepare", "main", "prepare"]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Import a local copy of a data set, so that `jaxrobust.data.load(NAME)` finds it.

    The copy may be in MNIST's IDX files (plain or .gz), in the binary version of CIFAR-10, or a folder of class
    folders of images, with split folders (train, test, val) above them or without. imagenet100 is read from ImageNet:
    train/nXXXXXXXX and val/nXXXXXXXX of all 1000 classes, of which it takes every tenth, or of 100.
    """

    name: tyro.conf.Positional[str]
    """The name that `load` will know it by: mnist, fashion_mnist, cifar10, imagenet100, or your own."""
    source: Annotated[Path, tyro.conf.arg(name="from")]
    """The folder of the local copy. It is only read."""
    data_dir: str | None = None
    """Where prepared copies go, a folder or gs://BUCKET/FOLDER. Default: the environment variable TFDS_DATA_DIR, else
    ~/tensorflow_datasets."""
    size: int | None = None
    """Resize the images of folders to squares of this many pixels, once, instead of at every reading."""
    overwrite: bool = False
    """Replace a prepared copy of this name."""
    skip_corrupt: bool = False
    """Leave out image files that cannot be read, and list them, instead of stopping."""


def prepare(
    name: str,
    source: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    size: int | None = None,
    overwrite: bool = False,
    skip_corrupt: bool = False,
    progress: bool = False,
) -> _store.Path:
    """Import a local copy of a data set into array_record files; pixels, labels and order are kept exactly.

    Args:
        name: what `load` will know it by: lower-case letters, digits and underscores.
        source: the folder of the local copy: IDX, CIFAR-10 binary, or class folders of images.
        data_dir: where prepared copies go, a folder or "gs://bucket/folder"; default `TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.
        size: resize the images of folders (shorter side, bilinear, then centre crop) to squares of this many pixels.
        overwrite: replace a prepared copy of this name.
        skip_corrupt: leave out image files of folders that cannot be read; the folder's `skipped.txt` lists them.
        progress: show progress bars.

    Returns:
        The folder that was written.

    Raises:
        ValueError: a bad name, an unknown format, damaged files (named), a class without images (named).
        FileExistsError: a prepared copy exists and `overwrite` is False.

    Example:
        >>> prepare("mnist", "downloads/mnist")  # doctest: +SKIP
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name == "digits":
        raise ValueError(f"name must match [a-z][a-z0-9_]* and not be 'digits'; got {name!r}")
    if size is not None:
        size = _checks.count("size", size)
    existing = _prepared.data_root(data_dir) / name / _prepared.VERSION
    if existing.exists() and not overwrite:
        raise FileExistsError(f"{existing} exists; pass --overwrite to replace it")
    copy = read_local(_store.local("source", source).expanduser(), name, size=size, skip_corrupt=skip_corrupt)
    return _prepared.write(name, copy, data_dir, progress)


def main(args: list[str] | None = None) -> None:
    """The command line."""
    config = tyro.cli(Prepare, prog="python -m jaxrobust.data.prepare", args=args)
    try:
        path = prepare(
            config.name,
            config.source,
            data_dir=config.data_dir,
            size=config.size,
            overwrite=config.overwrite,
            skip_corrupt=config.skip_corrupt,
            progress=True,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    skipped = path / _prepared.SKIPPED
    if skipped.exists():
        lines = skipped.read_text().splitlines()
        tqdm.write("\n".join([*lines, f"skipped {len(lines)} files, listed in {skipped}"]))
    tqdm.write(f"{config.name} is prepared in {path}")


if __name__ == "__main__":
    main()
