"""`jax.jit` as the library's own programs use it: with the compiler options that suit the machine."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust._borrow import borrowed, owner

# Since jaxlib 0.10.2, XLA:CPU hands dots, convolutions and sums to YNNPACK. Passes through convolutional networks take
# 1.2 to 2 times as long there, and sums over arrays of seven axes can end the process: issues 39257 and 40412 of
# github.com/jax-ml/jax. Without it they run as in earlier releases.
YNN = "xla_cpu_experimental_ynn_fusion_type"


def jit(function: Callable[..., Any], **options: Any) -> Jit:
    """`jax.jit(function, **options)`, with `compiler_options()` wherever JAX takes them: outside of other programs.

    Args:
        function: what to compile.
        **options: as for `jax.jit`.

    Returns:
        The compiled function.
    """
    return Jit(function, options)


class Jit:
    """A function that compiles itself, see `jit`. What it compiles for a classifier whose function equals itself alone
    is gone with that function, and so are the weights that it closes over.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._keywords = function, options
        self._nested = jax.jit(function, **options)
        self._outermost = functools.cache(self._compiled)
        self._of_owner: Any = weakref.WeakKeyDictionary()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # inside of a program even a constant comes out as a tracer; under `grad` only the arguments do
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((jnp.zeros(()), args, kwargs)))
        if inside:
            return self._nested(*args, **kwargs)
        program, lent = self._outside(args)
        return program(*lent, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the result; the trace is kept for the call."""
        program, lent = self._outside(args)
        return program.eval_shape(*lent, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """What JAX has traced, kept for the call."""
        program, lent = self._outside(args)
        return program.trace(*lent, **kwargs)

    def cost(self, *args: Any, **kwargs: Any) -> Any:
        """What the compiler expects the program to cost, without compiling it; None where it does not say."""
        program, lent = self._outside(args)
        return program.lower(*lent, **kwargs).cost_analysis()

    def _outside(self, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        """The outermost program for some arguments, and what to give it in their place."""
        lent = [borrowed(arg) for arg in args]
        owners = [found for arg in lent if (found := owner(arg)) is not None]
        if not owners:
            return self._outermost(_options()), lent
        programs = self._of_owner.setdefault(owners[0], {})
        told = _options()
        if told not in programs:
            programs[told] = self._compiled(told)
        return programs[told], lent

    def _compiled(self, told: tuple[tuple[str, str], ...]) -> Any:
        @functools.wraps(self._function)
        def own(*args: Any, **kwargs: Any) -> Any:  # a function apart, since JAX keeps traces as long as it
            return self._function(*args, **kwargs)

        return jax.jit(own, compiler_options=dict(told) or None, **self._keywords)


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """What to tell the compiler of a platform, by default that of the default device.

    Nothing but on CPU, nor where `XLA_FLAGS` speaks of the option already, nor to a compiler that does not know it.
    """
    return dict(_options(platform))


def _options(platform: str | None = None) -> tuple[tuple[str, str], ...]:
    if (platform or jax.default_backend()) != "cpu" or YNN in os.environ.get("XLA_FLAGS", ""):
        return ()
    return ((YNN, ""),) if _known() else ()


@functools.cache
def _known() -> bool:
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options={YNN: ""}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@jit
def forward(model: Any, images: Any) -> Any:
    """The compiled forward pass, one for all who need one."""
    return model(images)


def operations(model: Any, images: Any) -> float:
    """Floating point operations of one image's forward pass, as far as the compiler knows before it compiles."""
    return float((forward.cost(model, images) or {}).get("flops", 0.0)) / images.shape[0]
