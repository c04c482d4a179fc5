"""Networks in PyTorch that the comparisons with its libraries share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.harness import Settings

__all__ = ["released", "resnet", "train"]


def released(settings: Settings) -> Any:
    """`mnist_vanilla`; its first dense layer's rows come in channel-last order."""
    import torch

    class HeightWidthChannel(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1).flatten(1)

    layers = {
        "conv1": torch.nn.Conv2d(1, 16, 4, stride=2, padding=1),
        "conv2": torch.nn.Conv2d(16, 32, 4, stride=2, padding=1),
        "dense1": torch.nn.Linear(1568, 100),
        "dense2": torch.nn.Linear(100, 10),
    }
    with np.load(settings.weights.with_name("mnist_vanilla.npz")) as weights, torch.no_grad():
        for name, layer in layers.items():
            kernel = weights[f"{name}.kernel"]
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.transpose(order))))
            layer.bias.copy_(torch.from_numpy(weights[f"{name}.bias"]))
    conv1, conv2, dense1, dense2 = layers.values()
    relu = torch.nn.ReLU()
    return torch.nn.Sequential(conv1, relu, conv2, relu, HeightWidthChannel(), dense1, relu, dense2).eval()


def resnet(widths: tuple[int, ...] = (8, 16, 32), *, classes: int = 10, channels: int = 1) -> Any:
    """A small residual network with batch normalisation that normalises its images inside; every stage halves them."""
    import torch
    from torch import nn

    class Normalize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.1307))
            self.register_buffer("std", torch.full((1, channels, 1, 1), 0.3081))

        def forward(self, x: Any) -> Any:
            return (x - self.mean) / self.std

    class Block(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(inplace=True))
            self.shortcut = nn.Conv2d(before, after, 1, stride=2, bias=False)
            self.rest = nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
            )

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            return self.shortcut(x) + self.rest(x)

    stem = nn.Conv2d(channels, widths[0], 3, stride=2, padding=1, bias=False)
    blocks = [Block(before, after) for before, after in itertools.pairwise(widths)]
    head = [
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], classes),
    ]
    return nn.Sequential(Normalize(), stem, *blocks, *head).eval()


def train(network: Any, images: Any, labels: Any, *, radius: float, epochs: int, seed: int) -> None:
    """One-step adversarial training in an l∞ ball (random start, step of 1.25 radii), Adam, the rate falling to 0."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    x = torch.from_numpy(np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2))))
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    steps = epochs * (len(x) // 100)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 100 * 100].split(100):
            delta = torch.empty_like(x[rows]).uniform_(-radius, radius).requires_grad_()
            (slope,) = torch.autograd.grad(cross_entropy(network(x[rows] + delta), y[rows]), delta)
            moved = (delta.detach() + 1.25 * radius * slope.sign()).clamp(-radius, radius)
            optimiser.zero_grad()
            cross_entropy(network((x[rows] + moved).clamp(0, 1)), y[rows]).backward()
            optimiser.step()
            schedule.step()
    network.eval()
