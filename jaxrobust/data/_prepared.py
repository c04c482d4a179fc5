"""Prepared copies: array_record files that TensorFlow Datasets reads, and writes, without TensorFlow."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxrobust import _store
from jaxrobust.data._formats import LocalCopy, LocalSplit, UnreadableError

__all__ = ["SKIPPED", "VERSION", "data_root", "find", "names", "write"]

VERSION = "1.0.0"
SKIPPED = "skipped.txt"  # in a prepared copy: the files that it leaves out
_CHUNK = 512
_EXAMPLES_A_FILE = 10_000
_RANDOM_ACCESS = ("array_record", "parquet")


def data_root(data_dir: str | os.PathLike[str] | None) -> _store.Path:
    """The folder of prepared copies: the argument, else `TFDS_DATA_DIR`, else TensorFlow Datasets' own default."""
    return _store.place(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The TFDS builder of a prepared copy that can be read at random, or None.

    A copy in the published order of its examples (as `prepare` writes them) comes before the shuffled ones of TFDS,
    a later version before an earlier. One in a bucket is copied to the local disk, once: array_record reads no other.
    """
    import tensorflow_datasets as tfds

    root = data_root(data_dir)
    with _store.reached(root, name="data_dir", then=""):
        builders = [
            tfds.builder_from_directory(info.parent)
            for info in (root / name).glob("*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
            and json.loads(info.read_bytes()).get("fileFormat") in _RANDOM_ACCESS
        ]
        found = max(builders, key=lambda builder: (builder.info.disable_shuffling, builder.version), default=None)
        if found is None or _store.is_local(root):
            return found
        return tfds.builder_from_directory(_fetched(root / name / str(found.version)))


def _fetched(folder: _store.Path) -> Path:
    """A local copy of a folder in a bucket, under a name by which it is found again as long as nothing changes there.

    It appears whole, whatever other processes of this machine fetch it too.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file())
    listed: list[Any] = [(file.name, file.stat().length, file.stat().mtime) for file in files]  # type: ignore[attr-defined]
    # times are of seconds, and lengths may be those of an earlier copy
    listed += [file.read_bytes() for file in files if file.suffix == ".json"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxrobust" / "data"
    copy = home / _store.identity([str(folder), listed])[:32] / folder.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=home) as temporary:
            partial = Path(temporary, folder.name)
            partial.mkdir()
            for file in tqdm(files, desc=f"copying {folder}", unit="file", leave=False, disable=None):
                _store.copy(file, partial / file.name)
            try:
                partial.rename(copy)
            except OSError:  # another process was faster
                if not copy.exists():
                    raise
    return copy


def names(data_dir: str | os.PathLike[str] | None) -> list[str]:
    """Names of the prepared copies in a folder."""
    root = data_root(data_dir)
    infos = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    found = {info.parent.parent.relative_to(root).as_posix() for info in infos}
    return sorted(name for name in found if not name.startswith(("incomplete.", ".")))


def write(name: str, copy: LocalCopy, data_dir: str | os.PathLike[str] | None, progress: bool) -> _store.Path:
    """Write a local copy as a prepared one, in place of an earlier. It appears, whole, by a rename, or not at all.

    In a bucket, which has no renames, the file by which it is found comes last; the earlier one goes first.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    root = data_root(data_dir)
    final = root / name / VERSION
    here = _store.is_local(root)
    if here:
        root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root if here else None) as temporary:
        folder = Path(temporary, VERSION)
        folder.mkdir()
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(
                name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
            ),
            description=f"{name}, from a local copy, in the order of its files.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=copy.shape),
                    "label": tfds.features.ClassLabel(names=list(copy.class_names)),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )
        writer = tfds.core.SequentialWriter(info, _EXAMPLES_A_FILE, file_format="array_record")
        writer.initialize_splits(list(copy.splits))
        for split, records in copy.splits.items():
            seen: set[int] = set()
            for chunk in _chunks(records, f"{name} {split}", progress, copy.skipped):
                writer.add_examples({split: chunk})
                seen.update(example["label"] for example in chunk)
            if lost := set(records.labels.tolist()) - seen:
                lost_names = ", ".join(copy.class_names[label] for label in sorted(lost))
                raise ValueError(f"every class must have images; none of {lost_names} of {name} {split} can be read")
        writer.close_all()
        if copy.skipped:
            (folder / SKIPPED).write_text("\n".join(sorted(copy.skipped)) + "\n")
        if not here:
            with _store.reached(root, name="data_dir", then=""):
                epath.Path(final).rmtree(missing_ok=True)
                for file in sorted(folder.iterdir(), key=lambda file: file.name == "dataset_info.json"):
                    _store.copy(file, final / file.name)
            return final
        final.parent.mkdir(exist_ok=True)
        replaced = Path(temporary, "replaced")
        if final.exists():
            final.rename(replaced)
        try:
            folder.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise
    return final


def _chunks(split: LocalSplit, title: str, progress: bool, skipped: list[str] | None) -> Iterator[list[dict[str, Any]]]:
    def encoded(position: int) -> bytes | None:
        try:
            return split.encoded(position)
        except UnreadableError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            return None

    total = len(split.labels)
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc=title, unit="image", disable=not progress) as bar:
        for start in range(0, total, _CHUNK):
            positions = range(start, min(start + _CHUNK, total))
            images = zip(positions, pool.map(encoded, positions), strict=True)
            yield [{"image": data, "label": int(split.labels[i])} for i, data in images if data is not None]
            bar.update(len(positions))
