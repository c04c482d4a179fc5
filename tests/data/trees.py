"""Small trees of JPEG files in ImageNet's layout: `python -m tests.data.trees DIR --classes 100 --train 8`."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image


def ids(classes):
    """As many WordNet ids, in their order: n01000003, n01000010, ..."""
    return [f"n{1_000_003 + 7 * i:08d}" for i in range(classes)]


def image(label, number, *, shape=(40, 50), seed=0):
    """Noise around a colour of the class, so that a network can learn it; sides vary by a fifth.

    Coarse for looks, and fine for weight: of 375 x 500 pixels the file has about 110 kB, as ImageNet's have.
    """
    rng = np.random.default_rng([seed, label, number])
    colour = np.random.default_rng([seed, label]).integers(40, 216, 3)
    coarse = np.clip(colour + rng.normal(0, 25, (6, 6, 3)), 0, 255).astype(np.uint8)
    height, width = (int(side * rng.uniform(0.8, 1.2)) for side in shape)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 11, (height, width, 1)), 0, 255).astype(np.uint8))


def write_tree(folder, *, classes=100, train=2, test=1, shape=(40, 50), seed=0):
    """Write `train/nXXXXXXXX/*.JPEG` and `val/nXXXXXXXX/*.JPEG`; returns the folder."""
    for split, count, first in (("train", train, 0), ("val", test, train)):
        for label, name in enumerate(ids(classes)):
            place = Path(folder, split, name)
            place.mkdir(parents=True)
            for number in range(first, first + count):
                image(label, number, shape=shape, seed=seed).save(place / f"{name}_{number}.JPEG", quality=90)
    return Path(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=100, help="100 or 1000")
    parser.add_argument("--train", type=int, default=8, help="images of a class")
    parser.add_argument("--test", type=int, default=2, help="images of a class")
    parser.add_argument("--shape", type=int, nargs=2, default=(375, 500), help="height and width, about")
    options = parser.parse_args()
    write_tree(options.folder, classes=options.classes, train=options.train, test=options.test, shape=options.shape)
