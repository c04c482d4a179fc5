"""AutoAttack here and the official one, on the same PyTorch module and images, one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import jaxrobust as jr
from benchmarks import torch_networks
from benchmarks.harness import Figure, Settings, register

RADIUS = 0.1


@register(needs=("torch", "pyautoattack"))
def beside_autoattack(settings: Settings) -> Iterator[Figure]:
    """AutoAttack standard of PyTorch modules on one thread, l∞ 0.1, MNIST: accuracy and time, official beside."""
    import torch

    torch.set_num_threads(1)
    few = 20 if settings.quick else None
    networks = {
        "mnist_vanilla": (torch_networks.released(settings), few or 500),
        "small ResNet": (_trained(settings), few or 200),
    }
    for name, (network, count) in networks.items():
        data = jr.data.load("mnist", split=f"test[:{count}]")
        official = _timed(lambda: _official(network, *data, settings.seed))  # noqa: B023
        here = _timed(lambda: _here(network, data, settings))  # noqa: B023
        yield Figure(f"{name}, {count} images: accuracy here", 100 * here[0], "%")
        yield Figure(f"{name}, {count} images: accuracy by the official code", 100 * official[0], "%")
        yield Figure(f"{name}: accuracy here less the official one", 100 * (here[0] - official[0]), "%", target=0.3)
        for kind, ours, theirs in zip(("wall", "processor"), here[1:], official[1:], strict=True):
            yield Figure(f"{name}: {kind} time here, compilation included", ours, "s")
            yield Figure(f"{name}: {kind} time of the official code", theirs, "s")
            yield Figure(f"{name}: {kind} time over that of the official code", ours / theirs)


def _timed(evaluate: Callable[[], float]) -> tuple[float, float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    accuracy = evaluate()
    return accuracy, time.perf_counter() - wall, time.process_time() - processor


def _here(network: Any, data: Any, settings: Settings) -> float:
    model, key = jr.evaluate.TorchModel(network), jax.random.key(settings.seed)
    return jr.evaluate.autoattack(model, data, radius=RADIUS, key=key, progress=settings.progress).union.accuracy


def _official(network: Any, images: Any, labels: Any, seed: int) -> float:
    import torch
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    clean = torch.from_numpy(np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2))))
    truth = torch.from_numpy(np.asarray(labels).astype(np.int64))
    attack = AutoAttack(network, norm="Linf", eps=RADIUS, seed=seed, version="standard", device="cpu")
    points, _ = attack.run_standard_evaluation(clean, truth, batch_size=len(clean))
    with torch.no_grad():
        return float((network(points).argmax(1) == truth).float().mean())


def _trained(settings: Settings) -> Any:
    """A small residual network after quick adversarial training."""
    import torch

    torch.manual_seed(settings.seed)
    network = torch_networks.resnet()
    images, labels = jr.data.load("mnist", split=f"train[:{1000 if settings.quick else 10_000}]")
    torch_networks.train(network, images, labels, radius=RADIUS, epochs=1 if settings.quick else 3, seed=settings.seed)
    return network
