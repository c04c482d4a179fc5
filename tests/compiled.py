"""Methods and functions under test, compiled: called one operation at a time they are a program for each operation."""

import functools

import jax
import numpy as np


def call(made, method, *arguments):
    """A method's answer in NumPy's arrays: one program a structure, method and shapes, whatever the numbers are."""
    return jax.tree.map(np.asarray, _call(made, method, *arguments))


def mapped(made, method, axes, *arguments):
    """The same for many arguments; `axes` is which of them have a leading axis, as for `jax.vmap`."""
    return jax.tree.map(np.asarray, _mapped(made, method, axes, *arguments))


@functools.partial(jax.jit, static_argnums=1)
def _call(made, method, *arguments):
    return getattr(made, method)(*arguments)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _mapped(made, method, axes, *arguments):
    return jax.vmap(getattr(made, method), axes)(*arguments)


def compiled(function, **options):
    """A compiled function whose answers are NumPy's arrays, with which no further program is needed to compare."""
    jitted = jax.jit(function, **options)

    @functools.wraps(function)
    def called(*arguments, **named):
        return jax.tree.map(np.asarray, jitted(*arguments, **named))

    return called
