"""On accelerators a product whose precision is not said is taken with eight bits: here every product says it."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxrobust import perceptual, sets
from jaxrobust.models.alexnet import average_to

PRODUCTS = {"dot_general", "conv_general_dilated"}


def rough(jaxpr):
    """The products without the highest precision, here and in all that is called."""
    found = []
    for equation in jaxpr.eqns:
        exact = equation.params.get("precision") in (lax.Precision.HIGHEST, (lax.Precision.HIGHEST,) * 2)
        if equation.primitive.name in PRODUCTS and not exact:
            found.append(str(equation))
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)
            found += rough(inner) if hasattr(inner, "eqns") else []
    return found


def products_of(function, *arguments):
    return rough(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_product_without_precision_is_found():
    square = jnp.ones((2, 2))
    assert len(products_of(lambda a: lax.fori_loop(0, 3, lambda _, b: jnp.matmul(b, a), a), square)) == 1
    assert not products_of(lambda a: jnp.matmul(a, a, precision="highest"), square)


# whose programs take long to trace
DEAR = {"wasserstein", "wasserstein_ott", "wasserstein_sinkhorn"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEAR)) for n in sorted(sets.REGISTRY)]
)
def test_sets_say_the_precision_of_their_products(name):
    entry = sets.REGISTRY[name]
    ball = entry()

    def everything(x, key):
        theta = ball.sample(key, x)
        moved = ball.ascend(x, ball.init(x), ball.pullback(x, theta, x), jnp.ones(()))
        best = ball.maximise(x, theta) if hasattr(ball, "maximise") else ()
        sizes = jax.value_and_grad(lambda theta: ball.size(x, theta), allow_int=True)(theta)
        others = ball.distance(x, theta, moved), ball.penalty(x, theta), ball.contains(x, theta)
        return ball.project(x, moved), ball.apply(x, theta), best, sizes, others

    assert not products_of(everything, jnp.full(entry.shapes[0], 0.5), jax.random.key(0))


def test_perceptual_distances_say_the_precision_of_their_products():
    bank, x = perceptual.filter_bank(scales=1), jnp.full((4, 4, 1), 0.5)
    assert not products_of(lambda x: perceptual.lpips(bank, x, x, [jnp.ones(10)]), x)
    assert not products_of(lambda maps: average_to(maps, 2), jnp.ones((1, 3, 3, 2)))
