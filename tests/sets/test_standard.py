"""The table of usual bounds: every line makes a set, and the bounds are the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.sets.base import PerturbationSet
from jaxrobust.sets.standard import COMBINATIONS, TABLE, standard

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "imagenet": (48, 32, 3), "imagenet100": (32, 48, 3)}


@pytest.mark.parametrize("dataset", TABLE)
def test_every_line_makes_a_set_that_takes_the_images(dataset):
    made = standard(dataset)
    assert {*made} == {*TABLE[dataset], *COMBINATIONS[dataset]}
    x = jnp.asarray(np.random.default_rng(0).random(SHAPES[dataset]), jnp.float32)
    for name, perturbation_set in made.items():
        assert isinstance(perturbation_set, PerturbationSet), name
        assert float(perturbation_set.radius) > 0, name
        theta = jax.eval_shape(perturbation_set.init, x)
        assert jax.eval_shape(perturbation_set.apply, x, theta).shape == x.shape, name


@pytest.mark.parametrize(
    ("dataset", "name", "text"),
    [
        ("mnist", "linf", "Linf(0.3)"),
        ("cifar10", "linf", "Linf(8/255)"),
        ("imagenet", "l0", "L0(150)"),
        ("imagenet100", "l2", "L2(1200/255)"),
        ("mnist", "union", "Linf(0.3) or L2(2) or L1(10), scale (1)"),
        ("cifar10", "union", "Linf(0.03) or L2(0.5) or L1(12), scale (1)"),
        ("cifar10", "recolor+flow+linf", "ReColor(0.06) then Flow(0.05) then Linf(8/255), scale (1)"),
    ],
)
def test_bounds(dataset, name, text):
    assert str(standard(dataset)[name]) == text


def test_the_docstring_has_every_line():
    rows = {
        line.split("|")[1].split(",")[0].split(" of ")[0].strip()
        for line in standard.__doc__.splitlines()
        if "|" in line
    }
    for dataset in TABLE:
        assert set(TABLE[dataset]) <= rows


def test_unknown_data_sets_are_refused():
    with pytest.raises(ValueError, match=r"dataset must be one of \['cifar10', 'imagenet', 'imagenet100', 'mnist'\]"):
        standard("svhn")
