"""Tiny local copies in the public formats, written by hand from the formats' descriptions."""

import gzip
import struct

import numpy as np
from PIL import Image

TRAIN, TEST = 23, 9


def pixels(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count):
    return np.arange(count) % 10


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, *, gz=False, shape=(6, 5)):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (prefix, count) in enumerate((("train", TRAIN), ("t10k", TEST))):
        for kind, array in (("images-idx3", pixels(count, shape, seed)), ("labels-idx1", labels(count))):
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if gz else ''}"
            path.write_bytes(gzip.compress(idx_bytes(array)) if gz else idx_bytes(array))
    return folder


def write_cifar(folder, *, records=4):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        images = pixels(records, (32, 32, 3), seed)
        rows = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in enumerate(images)]
        (folder / name).write_bytes(b"".join(rows))
    return folder


def write_folders(folder, *, splits=("train", "test"), classes=("ant", "bee"), shapes=((8, 8, 3),), per_class=3):
    """Class folders of PNG images; returns {split: [(image, label), ...]} in the order of the files."""
    written = {}
    for split in splits:
        rows = written.setdefault(split, [])
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(per_class):
                image = pixels(1, shapes[i % len(shapes)], seed=len(rows))[0]
                Image.fromarray(image.squeeze()).save(folder / split / name / f"{i}.png")
                rows.append((image, label))
    return written
