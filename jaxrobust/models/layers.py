"""Layers that the networks share."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxrobust._checks import choice
from jaxrobust.types import Images

__all__ = ["Conv", "Normalise", "nonlinearity"]


class Conv(nnx.Conv):
    """`nnx.Conv`, with an input gradient that is fast inside loops on CPU.

    Same arguments, parameters, initialisation and results as `nnx.Conv`, and the same gradients in every mode.

    Args:
        *args: as for `nnx.Conv`: in_features, out_features, kernel_size, strides.
        **kwargs: as for `nnx.Conv`.

    Example:
        >>> Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))(jnp.zeros((2, 5, 5, 3))).shape
        (2, 5, 5, 8)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, conv_general_dilated=_convolve, **kwargs)


class Normalise(nnx.Module):
    """Standardise images by channel, (x - mean) / std; every network begins so and takes images in [0, 1].

    Args:
        mean: one number a channel, or an empty tuple to leave the images as they are.
        std: as many numbers, positive.
        channels: channels of an image.
        size: height and width of an image; None allows any.

    Raises:
        ValueError: if `mean` or `std` has another length than `channels`, or `std` is not positive; when called, if
            the images have another shape.

    Example:
        >>> Normalise((0.5,), (0.25,), channels=1)(jnp.ones((1, 2, 2, 1)))[0, 0, 0]
        Array([2.], dtype=float32)
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], *, channels: int, size: int | None = None
    ) -> None:
        if len(mean) != len(std) or len(mean) not in (0, channels):
            raise ValueError(
                f"mean and std must be empty or hold {channels} numbers, one a channel; got {mean} and {std}"
            )
        if not all(value > 0 for value in std):
            raise ValueError(f"std must be positive; got {std}")
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.shape = (size, size, channels)

    def __call__(self, images: Images) -> Images:
        """The standardised images (N, H, W, C)."""
        if any(want not in (None, have) for want, have in zip(self.shape, images.shape[1:], strict=True)):
            raise ValueError(f"images must be (N, H, W, C) with (H, W, C) = {self.shape}; got shape {images.shape}")
        if not self.mean:
            return images
        mean, std = (jnp.asarray(value, images.dtype).reshape(1, 1, 1, -1) for value in (self.mean, self.std))
        return (images - mean) / std


def nonlinearity(name: str) -> Callable[[jax.Array], jax.Array]:
    """The nonlinearity of that name.

    Args:
        name: "relu", "silu" or "softplus"; the smooth ones often help adversarial training.

    Returns:
        The function.

    Raises:
        ValueError: if the name is none of these.

    Reference:
        Xie, Tan, Gong, Yuille, Le 2020, Smooth Adversarial Training, arXiv:2006.14536.
    """
    known = {"relu": nnx.relu, "silu": nnx.silu, "softplus": nnx.softplus}
    return known[choice("activation", name, known)]


def _convolve(inputs: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated` of channels-last arrays, by way of `_canonical` where that helps."""
    # The transpose of a grouped convolution regroups its kernel, which dimension numbers cannot express.
    if options.get("feature_group_count", 1) != 1:
        return lax.conv_general_dilated(inputs, kernel, strides, padding, **options)
    padding = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    return _canonical(inputs, kernel, (tuple(strides), padding, tuple(sorted(options.items()))))


# XLA:CPU brings a convolution into the form its fast kernels take only in the entry computation. The usual input
# gradient swaps the kernel's two channel dimensions by dimension numbers alone; left so in the body of a `while` or
# `scan`, it runs as naive loops, 6 to 20 times slower. Here the derivative in the input is stated as the same
# linear map in a form whose transpose, by JAX, is fast everywhere; see `_linear`.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _canonical(inputs: jax.Array, kernel: jax.Array, static: Any) -> jax.Array:
    strides, padding, options = static
    if kernel.shape[-2] == 1 and _is_product(kernel, strides, options):
        return _linear(inputs, kernel, strides, padding, options)
    return lax.conv_general_dilated(inputs, kernel, strides, padding, **dict(options))


@functools.partial(_canonical.defjvp, symbolic_zeros=True)
def _canonical_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    inputs, kernel = primals
    by_inputs, by_kernel = tangents
    outputs = _canonical(inputs, kernel, static)
    change = jnp.zeros_like(outputs)
    if not isinstance(by_inputs, SymbolicZero):
        change += _linear(by_inputs, kernel, *static)
    if not isinstance(by_kernel, SymbolicZero):
        change += _canonical(inputs, by_kernel, static)
    return outputs, change


def _linear(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Any, options: Any) -> jax.Array:
    """The convolution as a linear map of its inputs, in the form whose transpose is fast.

    A strided one is the plain one on space-to-depth images, so that its transpose multiplies no inserted zeros. With
    few input channels it is a matrix product on patches. Else the kernel is transposed in memory and the swap is said
    in the dimension numbers: JAX's transpose swaps back to the plain form.
    """
    told, product = dict(options), _is_product(kernel, strides, options)
    if not _is_dilated(options):
        if isinstance(padding, str):
            padding = tuple(lax.padtype_to_pads(inputs.shape[1:-1], kernel.shape[:-2], strides, padding))
        if _folds(kernel, strides):
            inputs, kernel = _space_to_depth(inputs, kernel, strides, padding)
            strides, padding = (1,) * len(strides), ((0, 0),) * len(strides)
    if product:
        patches = _patches(inputs, kernel.shape[:-2], strides, padding)
        return jnp.matmul(patches, kernel.reshape(-1, kernel.shape[-1]), precision=told.get("precision"))
    spec = told["dimension_numbers"].rhs_spec
    told["dimension_numbers"] = told["dimension_numbers"]._replace(rhs_spec=(spec[1], spec[0], *spec[2:]))
    return lax.conv_general_dilated(inputs, jnp.swapaxes(kernel, -1, -2), strides, padding, **told)


def _is_dilated(options: Any) -> bool:
    return any(max(dict(options).get(name) or (1,)) > 1 for name in ("lhs_dilation", "rhs_dilation"))


def _folds(kernel: jax.Array, strides: tuple[int, ...]) -> bool:
    """Whether a convolution is strided, by no more than its window, which would else grow by what it skips."""
    return max(strides) > 1 and all(size >= stride for size, stride in zip(kernel.shape, strides, strict=False))


def _is_product(kernel: jax.Array, strides: tuple[int, ...], options: Any) -> bool:
    """Whether the patches hold no more numbers than the outputs."""
    *space, channels, features = kernel.shape
    if _folds(kernel, strides):
        space = [-(-size // stride) * stride for size, stride in zip(space, strides, strict=True)]
    return not _is_dilated(options) and math.prod(space) * channels <= features


def _space_to_depth(inputs: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> tuple[jax.Array, jax.Array]:
    """Inputs and kernel whose convolution with stride 1 and no padding is the strided one."""
    space = kernel.shape[:-2]
    taps = [-(-size // stride) for size, stride in zip(space, strides, strict=True)]
    sizes = [
        (size + sum(pads) - window) // stride + tap
        for size, pads, window, stride, tap in zip(inputs.shape[1:-1], padding, space, strides, taps, strict=True)
    ]
    ends = [
        (low, count * stride - size - low, 0)
        for size, (low, _), count, stride in zip(inputs.shape[1:-1], padding, sizes, strides, strict=True)
    ]
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    whole = [(0, tap * stride - size) for tap, stride, size in zip(taps, strides, space, strict=True)]
    kernel = jnp.pad(kernel, [*whole, (0, 0), (0, 0)])
    return _depth(padded, sizes, strides, 1), _depth(kernel, taps, strides, 0)


def _depth(array: jax.Array, counts: list[int], strides: Any, lead: int) -> jax.Array:
    """Blocks of `strides` pixels as channels; space begins at axis `lead`."""
    rank = len(counts)
    split = [size for pair in zip(counts, strides, strict=True) for size in pair]
    rest = array.shape[lead + rank :]
    blocks = array.reshape(*array.shape[:lead], *split, *rest)
    order = [*range(lead), *range(lead, lead + 2 * rank, 2), *range(lead + 1, lead + 2 * rank, 2)]
    blocks = blocks.transpose(*order, *range(lead + 2 * rank, blocks.ndim))
    return blocks.reshape(*array.shape[:lead], *counts, math.prod(strides) * rest[0], *rest[1:])


def _patches(inputs: jax.Array, window: Sequence[int], strides: Any, padding: Any) -> jax.Array:
    """The inputs under each place of the window, side by side: (N, *places, prod(window) C)."""
    inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0)])
    ends = [size - extent for size, extent in zip(inputs.shape[1:-1], window, strict=True)]
    return jnp.concatenate(
        [
            inputs[:, *(slice(i, i + end + 1, step) for i, end, step in zip(offset, ends, strides, strict=True))]
            for offset in itertools.product(*map(range, window))
        ],
        axis=-1,
    )
