"""The networks of the recipes, by name: `NAME(classes=..., rngs=..., width=..., activation=...)`."""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import nnx

from jaxrobust.models import AlexNet, MnistNet, PreActResNet, ResNet, SmallCNN, WideResNet
from jaxrobust.models.layers import Conv
from jaxrobust.types import Images

__all__ = ["NETWORKS", "MadryNet"]


class MadryNet(nnx.Module):
    """Madry et al.'s network for MNIST: convolutions 5x5 of w and 2w channels, each pooled, dense 32w, dense.

    Args:
        width: w.
        classes: number of classes.
        rngs: draws the initial parameters.

    Reference:
        Madry et al., 2018, arXiv:1706.06083.
    """

    def __init__(self, *, width: int = 32, classes: int = 10, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(1, width, (5, 5), padding="SAME", rngs=rngs)
        self.conv2 = Conv(width, 2 * width, (5, 5), padding="SAME", rngs=rngs)
        self.dense1 = nnx.Linear(7 * 7 * 2 * width, 32 * width, rngs=rngs)
        self.dense2 = nnx.Linear(32 * width, classes, rngs=rngs)

    def activations(self, images: Images) -> tuple[jax.Array, ...]:
        """The outputs of the two convolutions after ReLU, before pooling, each (N, h, w, c)."""
        first = nnx.relu(self.conv1(images))
        return first, nnx.relu(self.conv2(nnx.max_pool(first, (2, 2), (2, 2))))

    def __call__(self, images: Images) -> jax.Array:
        """Logits (N, K) of images (N, 28, 28, 1) in [0, 1]."""
        maps = nnx.max_pool(self.activations(images)[-1], (2, 2), (2, 2))
        return self.dense2(nnx.relu(self.dense1(maps.reshape(len(maps), -1))))


def _residual(kind: Any, *, width: int = 64, **options: Any) -> nnx.Module:
    return kind(widths=tuple(width * factor for factor in (1, 2, 4, 8)), **options)


def _alexnet(*, width: int = 64, **options: Any) -> nnx.Module:
    widths = tuple(width * share // 64 for share in (64, 192, 384, 256, 256))
    return AlexNet(form="cifar", widths=widths, hidden=64 * width, **options)


# what perceptual training standardises by
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
IMAGENET100 = {"mean": (0.4717, 0.4499, 0.3837), "std": (0.2600, 0.2516, 0.2575)}

NETWORKS = {
    "small-cnn": SmallCNN,
    "mnist-net": MnistNet,
    "madry": MadryNet,
    "alexnet-32px": _alexnet,
    "preact-resnet18": functools.partial(_residual, PreActResNet),
    "resnet50-32px": functools.partial(_residual, ResNet, stem_stride=1, stem_pool=False, **CIFAR10),
    "wide-resnet28": functools.partial(WideResNet, depth=28),
    "wide-resnet34": functools.partial(WideResNet, depth=34),
    "resnet50": functools.partial(_residual, ResNet, **IMAGENET100),
}
