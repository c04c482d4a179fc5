"""The library's `jit` is JAX's, but for what it tells the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import _compile


def squares(x):
    return jnp.sum(x @ x * x)


POINT = jnp.arange(64.0 * 64).reshape(64, 64) / 4096


def test_what_it_computes():
    ours = _compile.jit(squares)
    expected = squares(POINT)
    np.testing.assert_allclose(ours(POINT), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: ours(x) + 1)(POINT), expected + 1, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(ours)(POINT[None])[0], expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(POINT), jax.grad(squares)(POINT), rtol=1e-4)
    # closed over, no argument is a tracer
    np.testing.assert_allclose(jax.jit(lambda: ours(POINT))(), expected, rtol=1e-5)
    assert ours.eval_shape(POINT).shape == ()


def test_it_traces_once_and_takes_the_options_of_jit():
    count = [0]

    def scaled(x, by):
        count[0] += 1
        return x * by

    ours = _compile.jit(scaled, static_argnames="by")
    ours.eval_shape(POINT, by=2)
    for factor in (1.0, 2.0):
        np.testing.assert_array_equal(ours(POINT * factor, by=2), 2 * factor * POINT)
    assert count[0] == 1


def test_no_ynnpack_on_cpu():
    told = _compile.compiler_options("cpu")
    assert told == {_compile.YNN: ""}
    compiled = jax.jit(squares, compiler_options=told).lower(POINT).compile()
    assert "ynn" not in compiled.as_text()


def test_nothing_is_told_elsewhere_nor_against_the_user(monkeypatch):
    assert _compile.compiler_options("gpu") == {}
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=/x --{_compile.YNN}=-reduce")
    assert _compile.compiler_options("cpu") == {}


@pytest.fixture
def another_compiler(monkeypatch):
    """One that does not know the option."""
    monkeypatch.setattr(_compile, "YNN", "xla_cpu_no_such_option")
    _compile._known.cache_clear()
    yield
    _compile._known.cache_clear()


def test_nothing_is_told_to_a_compiler_that_does_not_know_it(another_compiler):
    assert _compile.compiler_options("cpu") == {}
    np.testing.assert_allclose(_compile.jit(squares)(POINT), squares(POINT), rtol=1e-5)
