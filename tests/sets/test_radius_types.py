"""What a radius may be given as, and what JAX puts in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import sets


@pytest.mark.parametrize("radius", [[0.1, 0.2], (0.1, 0.2), [np.float32(0.1), 1]])
def test_a_list_of_numbers_is_an_array(radius):
    found = sets.Linf(radius).radius
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, np.asarray(radius, np.float64))


@pytest.mark.parametrize(
    "radius",
    [["a", 0.1], (0.1, True), np.array(["a"] * 3), np.ones(3, bool), jnp.ones(3, bool), np.ones(2, complex)],
)
def test_what_is_no_number_is_refused(radius):
    with pytest.raises(TypeError, match="radius must be a real number; got "):
        sets.Linf(radius)


@pytest.mark.parametrize("bad", [[0.1, -0.1], (0.1, float("nan"))])
def test_a_list_of_bad_numbers_is_refused(bad):
    with pytest.raises(ValueError, match="radius must be finite and >= 0; got "):
        sets.Linf(bad)


def test_placeholders_pass():
    ball = sets.Linf(np.full(3, 0.1))
    structure = jax.tree.structure(ball)
    for leaf in (object(), None, jax.ShapeDtypeStruct((), bool), [object()], (), (None, 0), jnp.zeros(3)):
        assert jax.tree.unflatten(structure, [leaf]).radius is leaf
    assert jax.eval_shape(lambda one: jax.tree.map(jnp.isfinite, one), ball).radius.dtype == bool
