"""What reading ImageNet costs the host: JPEG decoding, random crops, batches of bytes."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import jaxrobust as jr
from benchmarks.harness import Figure, Settings, register
from jaxrobust.data.prepare import prepare
from tests.data import trees

BATCH = 100


@register
def reading(settings: Settings) -> Iterator[Figure]:
    """An epoch of ImageNet-100 at 224 px from a generated tree, JPEG files of 375 x 500 pixels about, in turns."""
    crop, count = jr.data.RandomResizedCrop(224), 100 if settings.quick else 800
    with tempfile.TemporaryDirectory() as folder:
        tree = trees.write_tree(f"{folder}/tree", train=count // BATCH, test=1, shape=(375, 500), seed=settings.seed)
        size = np.mean([path.stat().st_size for path in (tree / "train").rglob("*.JPEG")])
        prepare("imagenet100", tree, data_dir=folder)
        load = functools.partial(jr.data.load, "imagenet100", "train", data_dir=folder, in_memory=False)
        random, central = load(crop=crop), load()
        images = np.concatenate([batch.images for batch in _loader(central).epoch(0)])[:BATCH]
        kinds: dict[str, Callable[[], Any]] = {
            "random-resized crop": lambda: list(_loader(random).epoch(0)),
            "the same in float32": lambda: list(_loader(random, as_bytes=False).epoch(0)),
            "resize and centre crop": lambda: list(_loader(central).epoch(0)),
        }
        if importlib.util.find_spec("grain") is not None:
            kinds["random-resized crop, read by Grain's threads"] = functools.partial(_grain, random)
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for _ in range(settings.repeats(5)):
            for name, work in kinds.items():
                rows[name].append(_times(work))
    yield Figure("JPEG file, mean", size / 1000, "kB")
    for name, times in rows.items():
        wall, cpu = np.array(times).T / count
        yield Figure.of(f"{name}: CPU time of an image", cpu * 1000, "ms")
        yield Figure.of(f"{name}: images a second, all threads", 1 / wall)
    transform = jr.data.augment.IMAGENET
    augment = jax.jit(functools.partial(jr.data.augment.batch, transform=transform))
    key, index = jax.random.key(settings.seed), np.arange(len(images))
    jax.block_until_ready(augment(key, images, index))
    found = [_times(lambda: jax.block_until_ready(augment(key, images, index)))[1] for _ in range(settings.repeats(5))]
    yield Figure.of(
        "`augment.IMAGENET` on this device: CPU time of an image", np.array(found) / len(images) * 1000, "ms"
    )


def _loader(data: Any, as_bytes: bool = True) -> jr.data.Loader:
    return jr.data.Loader(data, BATCH, seed=1, as_bytes=as_bytes)


def _times(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _grain(data: Any) -> None:
    import grain

    class Source:
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, place: int) -> tuple[np.ndarray, np.int32, int]:
            images, labels = data.fetch([place], key=(1, 0))
            return images[0], labels[0], place

    examples = grain.MapDataset.source(Source()).seed(1).shuffle()
    for _ in examples.to_iter_dataset(grain.ReadOptions(num_threads=2)).batch(BATCH):
        pass
