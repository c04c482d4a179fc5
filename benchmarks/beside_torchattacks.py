"""AutoAttack here and in torchattacks, on the same network and images, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jaxrobust as jr
from benchmarks import torch_networks, work
from benchmarks.harness import Figure, Settings, register

ROWS = (("linf", 0.1), ("l2", 1.0))


@register(needs=("torch", "torchattacks"))
def beside_torchattacks(settings: Settings) -> Iterator[Figure]:
    """AutoAttack standard on `mnist_vanilla`, first 1,000 test images: accuracy and wall time, torchattacks' beside."""
    images, labels = jr.data.load("mnist", split=f"test[:{50 if settings.quick else 1000}]")
    model = work.released(settings, "mnist_vanilla")
    network = torch_networks.released(settings)
    for norm, radius in ROWS:
        theirs, left = {}, {}
        # as shipped its gradient attacks take 10 steps, the official ones 100
        for as_shipped in (True, False):
            began = time.perf_counter()
            job = (network, images, labels, norm, radius, settings.seed)
            left[as_shipped] = _torchattacks(*job, as_shipped=as_shipped)
            theirs[as_shipped] = time.perf_counter() - began
        began = time.perf_counter()
        found = jr.evaluate.autoattack(
            model,
            (images, labels),
            norm=norm,
            radius=radius,
            key=jax.random.key(settings.seed),
            progress=settings.progress,
        )
        ours = time.perf_counter() - began
        title = f"mnist_vanilla, {norm} {radius}"
        yield Figure(f"{title}: accuracy here", 100 * found.union.accuracy, "%")
        yield Figure(f"{title}: wall time here, compilation included", ours, "s")
        for as_shipped, name in ((True, "torchattacks as shipped"), (False, "torchattacks with 100 steps")):
            yield Figure(f"{title}: accuracy by {name}", 100 * left[as_shipped], "%")
            yield Figure(f"{title}: wall time of {name}", theirs[as_shipped], "s")
            yield Figure(f"{title}: wall time over that of {name}", ours / theirs[as_shipped], target=0.25)


def _torchattacks(
    network: Any, images: Any, labels: Any, norm: str, radius: float, seed: int, *, as_shipped: bool
) -> float:
    import torch
    import torchattacks

    options = {"norm": norm.capitalize(), "eps": radius, "seed": seed}
    if as_shipped:
        attack = torchattacks.AutoAttack(network, **options)
    else:
        parts = (
            torchattacks.APGD(network, steps=100, **options),
            torchattacks.APGDT(network, steps=100, **options),
            torchattacks.FAB(network, steps=100, multi_targeted=True, **options),
            torchattacks.Square(network, n_queries=5000, **options),
        )
        attack = torchattacks.MultiAttack(parts)
    clean = torch.from_numpy(np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2))))
    truth = torch.from_numpy(np.asarray(labels).astype(np.int64))
    points = attack(clean, truth)
    with torch.no_grad():
        return float((network(points).argmax(1) == truth).float().mean())
