"""Residual networks: pre-activation and wide ones for 32 pixels, bottleneck ones for 32 to 224.

Convolutions start He normal (fan out), dense layers as `nnx.Linear` does. BatchNorm keeps 0.9 of its running
statistics at each step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
from flax import nnx

from jaxrobust.models.layers import Conv, Normalise, nonlinearity
from jaxrobust.types import Images

__all__ = ["CIFAR10_MEAN", "CIFAR10_STD", "IMAGENET_MEAN", "IMAGENET_STD", "PreActResNet", "ResNet", "WideResNet"]

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What they are is `nnx.List`s, which type checkers that run take no note of.
Stages = Sequence[Sequence[nnx.Module]]

_HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


def _conv(features: int, out_features: int, size: int, stride: int = 1, *, rngs: nnx.Rngs) -> Conv:
    # Padded alike on both sides, as the published networks are; "SAME" would pad a strided one on one side.
    return Conv(
        features, out_features, (size, size), stride, padding=size // 2, use_bias=False, kernel_init=_HE, rngs=rngs
    )


class PreActResNet(nnx.Module):
    """Pre-activation residual network; by default ResNet-18 for 32-pixel images (11.17 million parameters).

    BatchNorm and activation come before each convolution, and once more before the average pooling.

    Args:
        stages: residual blocks in each stage; every stage but the first halves height and width.
        widths: channels of each stage.
        stem: channels of the first convolution; None means those of the first stage.
        classes: number of classes.
        channels: channels of an image.
        activation: "relu", "silu" or "softplus".
        mean: subtracted from each channel, by default CIFAR-10's; empty for none.
        std: divides each channel, by default CIFAR-10's; empty for none.
        remat: whether the backward pass computes what is inside a block anew instead of keeping it: less memory, more
            time.
        rngs: draws the initial parameters.

    Raises:
        ValueError: if `stages` and `widths` differ in length or the activation is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> network = PreActResNet(stages=(1, 1), widths=(4, 8), rngs=nnx.Rngs(0))
        >>> [maps.shape for maps in network.activations(jnp.zeros((2, 32, 32, 3)))]
        [(2, 32, 32, 4), (2, 32, 32, 4), (2, 16, 16, 8)]

    Reference:
        He, Zhang, Ren, Sun 2016, Identity Mappings in Deep Residual Networks, arXiv:1603.05027; with the last
        BatchNorm as in Rice, Wong, Kolter 2020, Overfitting in Adversarially Robust Deep Learning, arXiv:2002.11569.
    """

    def __init__(
        self,
        *,
        stages: tuple[int, ...] = (2, 2, 2, 2),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        stem: int | None = None,
        classes: int = 10,
        channels: int = 3,
        activation: str = "relu",
        mean: tuple[float, ...] = CIFAR10_MEAN,
        std: tuple[float, ...] = CIFAR10_STD,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        _check_stages(stages, widths)
        stem = widths[0] if stem is None else stem
        self.normalise = Normalise(mean, std, channels=channels)
        self.remat = remat
        self.act = nonlinearity(activation)
        self.conv1 = _conv(channels, stem, 3, rngs=rngs)
        self.stages = _stages(_PreActBlock, stages, (stem, *widths), self.act, rngs)
        self.bn = _norm(widths[-1], rngs=rngs)
        self.dense = nnx.Linear(widths[-1], classes, rngs=rngs)

    def activations(self, images: Images) -> tuple[jax.Array, ...]:
        """The output of the first convolution and those of the stages, each (N, h, w, c)."""
        return _through(self.stages, self.conv1(self.normalise(images)), self.remat)

    def __call__(self, images: Images) -> jax.Array:
        """Logits (N, K) of images (N, H, W, C) in [0, 1]."""
        return self.dense(self.act(self.bn(self.activations(images)[-1])).mean((1, 2)))


class WideResNet(PreActResNet):
    """Wide residual network of pre-activation blocks for 32-pixel images; by default WRN-28-10 (36.48 million).

    Args:
        depth: layers, 6n + 4 for n blocks in each of the three stages.
        width: the factor on the stages' 16, 32 and 64 channels.
        classes: number of classes.
        channels: channels of an image.
        activation: "relu", "silu" or "softplus".
        mean: subtracted from each channel, by default CIFAR-10's; empty for none.
        std: divides each channel, by default CIFAR-10's; empty for none.
        remat: whether the backward pass computes what is inside a block anew instead of keeping it: less memory, more
            time.
        rngs: draws the initial parameters.

    Raises:
        ValueError: if `depth` is not 6n + 4 with n at least 1, `width` is below 1 or the activation is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> WideResNet(depth=10, width=1, rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)

    Reference:
        Zagoruyko, Komodakis 2016, Wide Residual Networks, arXiv:1605.07146.
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        width: int = 10,
        classes: int = 10,
        channels: int = 3,
        activation: str = "relu",
        mean: tuple[float, ...] = CIFAR10_MEAN,
        std: tuple[float, ...] = CIFAR10_STD,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 4 with n at least 1; got {depth}")
        if width < 1:
            raise ValueError(f"width must be at least 1; got {width}")
        super().__init__(
            stages=(blocks,) * 3,
            widths=(16 * width, 32 * width, 64 * width),
            stem=16,
            classes=classes,
            channels=channels,
            activation=activation,
            mean=mean,
            std=std,
            remat=remat,
            rngs=rngs,
        )


class ResNet(nnx.Module):
    """Residual network of bottleneck blocks; by default ResNet-50 for 224 pixels (25.56 million parameters).

    The stride of a stage is in the 3x3 convolution of its first block ("version 1.5").

    For images of 64 pixels take `stem_pool=False`, for 32 pixels also `stem_stride=1`, so that the last stage keeps
    4 x 4 positions or more.

    Args:
        stages: residual blocks in each stage; every stage but the first halves height and width.
        widths: inner channels of each stage; a stage's output has four times as many.
        classes: number of classes.
        channels: channels of an image.
        stem_stride: of the first convolution; it is 7x7 if this is 2 and 3x3 if it is 1.
        stem_pool: whether a 3x3 max-pooling of stride 2 follows.
        activation: "relu", "silu" or "softplus".
        mean: subtracted from each channel, by default ImageNet's; empty for none.
        std: divides each channel, by default ImageNet's; empty for none.
        remat: whether the backward pass computes what is inside a block anew instead of keeping it: less memory, more
            time.
        rngs: draws the initial parameters.

    Raises:
        ValueError: if `stages` and `widths` differ in length, the stride is not 1 or 2, or the activation is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> network = ResNet(stages=(1, 1), widths=(4, 8), rngs=nnx.Rngs(0))
        >>> [maps.shape for maps in network.activations(jnp.zeros((2, 64, 64, 3)))]
        [(2, 16, 16, 16), (2, 8, 8, 32)]

    Reference:
        He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, arXiv:1512.03385.
    """

    def __init__(
        self,
        *,
        stages: tuple[int, ...] = (3, 4, 6, 3),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        classes: int = 1000,
        channels: int = 3,
        stem_stride: int = 2,
        stem_pool: bool = True,
        activation: str = "relu",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2; got {stem_stride}")
        _check_stages(stages, widths)
        self.stem_stride = stem_stride
        self.stem_pool = stem_pool
        self.remat = remat
        self.act = nonlinearity(activation)
        self.normalise = Normalise(mean, std, channels=channels)
        self.conv1 = _conv(channels, widths[0], 7 if stem_stride == 2 else 3, stem_stride, rngs=rngs)
        self.bn1 = _norm(widths[0], rngs=rngs)
        outputs = tuple(_Bottleneck.expansion * width for width in widths)
        self.stages = _stages(_Bottleneck, stages, (widths[0], *outputs), self.act, rngs)
        self.dense = nnx.Linear(outputs[-1], classes, rngs=rngs)

    def activations(self, images: Images) -> tuple[jax.Array, ...]:
        """The outputs of the stages, before them the activated stem's if its stride is 1, each (N, h, w, c)."""
        maps = self._maps(images)
        return maps if self.stem_stride == 1 else maps[1:]

    def __call__(self, images: Images) -> jax.Array:
        """Logits (N, K) of images (N, H, W, C) in [0, 1]."""
        return self.dense(self._maps(images)[-1].mean((1, 2)))

    def _maps(self, images: Images) -> tuple[jax.Array, ...]:
        stem = self.act(self.bn1(self.conv1(self.normalise(images))))
        if self.stem_pool:
            stem = nnx.max_pool(stem, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return _through(self.stages, stem, self.remat)


class _PreActBlock(nnx.Module):
    """Norm, activation, 3x3 convolution, twice; a projection, where one is needed, takes the activated input."""

    def __init__(self, features: int, out_features: int, stride: int, act: Any, *, rngs: nnx.Rngs) -> None:
        self.act = act
        self.bn1 = _norm(features, rngs=rngs)
        self.conv1 = _conv(features, out_features, 3, stride, rngs=rngs)
        self.bn2 = _norm(out_features, rngs=rngs)
        self.conv2 = _conv(out_features, out_features, 3, rngs=rngs)
        changes = stride != 1 or features != out_features
        self.shortcut = nnx.data(_conv(features, out_features, 1, stride, rngs=rngs) if changes else None)

    def __call__(self, maps: jax.Array) -> jax.Array:
        active = self.act(self.bn1(maps))
        kept = maps if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(self.act(self.bn2(self.conv1(active))))


class _Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, each with its norm; the activation comes after the sum."""

    expansion = 4

    def __init__(self, features: int, out_features: int, stride: int, act: Any, *, rngs: nnx.Rngs) -> None:
        inner = out_features // self.expansion
        self.act = act
        self.conv1 = _conv(features, inner, 1, rngs=rngs)
        self.bn1 = _norm(inner, rngs=rngs)
        self.conv2 = _conv(inner, inner, 3, stride, rngs=rngs)
        self.bn2 = _norm(inner, rngs=rngs)
        self.conv3 = _conv(inner, out_features, 1, rngs=rngs)
        self.bn3 = _norm(out_features, rngs=rngs)
        changes = stride != 1 or features != out_features
        self.shortcut = nnx.data(_Projection(features, out_features, stride, rngs=rngs) if changes else None)

    def __call__(self, maps: jax.Array) -> jax.Array:
        inner = self.act(self.bn1(self.conv1(maps)))
        inner = self.act(self.bn2(self.conv2(inner)))
        kept = maps if self.shortcut is None else self.shortcut(maps)
        return self.act(kept + self.bn3(self.conv3(inner)))


class _Projection(nnx.Module):
    def __init__(self, features: int, out_features: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv = _conv(features, out_features, 1, stride, rngs=rngs)
        self.bn = _norm(out_features, rngs=rngs)

    def __call__(self, maps: jax.Array) -> jax.Array:
        return self.bn(self.conv(maps))


def _stages(block: Any, stages: tuple[int, ...], widths: tuple[int, ...], act: Any, rngs: nnx.Rngs) -> Stages:
    """Lists of blocks, one a stage; `widths` starts with the channels that come in."""
    built = []
    for index, (blocks, (before, width)) in enumerate(zip(stages, pairwise(widths), strict=True)):
        first = block(before, width, 1 if index == 0 else 2, act, rngs=rngs)
        built.append(nnx.List([first, *(block(width, width, 1, act, rngs=rngs) for _ in range(blocks - 1))]))
    return nnx.List(built)


def _through(stages: Stages, stem: jax.Array, remat: bool) -> tuple[jax.Array, ...]:
    """The stem's output and that of each stage."""
    call = nnx.remat(_called) if remat else _called
    maps = [stem]
    for stage in stages:
        maps.append(functools.reduce(lambda value, block: call(block, value), stage, maps[-1]))
    return tuple(maps)


def _called(block: Any, value: jax.Array) -> jax.Array:
    return block(value)


def _check_stages(stages: tuple[int, ...], widths: tuple[int, ...]) -> None:
    if not stages or len(stages) != len(widths) or min(*stages, *widths) < 1:
        raise ValueError(f"stages and widths must be of one length and at least 1 each; got {stages} and {widths}")
