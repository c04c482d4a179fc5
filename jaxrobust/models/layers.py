"""Layers that the networks share."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
# linear map with the kernel transposed in memory and the swap in its own dimension numbers: JAX's transpose of
# that swaps back, so the input gradient comes out in the plain form, bit for bit the same.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _canonical(inputs: jax.Array, kernel: jax.Array, static: Any) -> jax.Array:
    strides, padding, options = static
    return lax.conv_general_dilated(inputs, kernel, strides, padding, **dict(options))


@functools.partial(_canonical.defjvp, symbolic_zeros=True)
def _canonical_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    inputs, kernel = primals
    by_inputs, by_kernel = tangents
    outputs = _canonical(inputs, kernel, static)
    change = jnp.zeros_like(outputs)
    if not isinstance(by_inputs, SymbolicZero):
        strides, padding, options = static
        options = dict(options)
        out_features, in_features, *space = options["dimension_numbers"].rhs_spec
        swapped = (in_features, out_features, *space)
        options["dimension_numbers"] = options["dimension_numbers"]._replace(rhs_spec=swapped)
        transposed = jnp.swapaxes(kernel, in_features, out_features)
        change += lax.conv_general_dilated(by_inputs, transposed, strides, padding, **options)
    if not isinstance(by_kernel, SymbolicZero):
        change += _canonical(inputs, by_kernel, static)
    return outputs, change
