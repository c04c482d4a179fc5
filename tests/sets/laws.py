"""The laws of `jaxrobust.testing` over every registered perturbation set.

The files `test_laws_*.py` run them, each over a share of the registry, so that two workers can do it at the same time.
"""

import functools

import pytest

from jaxrobust import sets
from jaxrobust.testing.sets import KINDS, ONE_IMAGE, SET_LAWS, SetCase

# every kind of image in the set's first shape; in the second, which compiles everything again, only two
IMAGES = [pytest.param((kind, 0), id=kind) for kind in sorted(KINDS)]
IMAGES += [pytest.param((kind, -1), id=f"{kind}-other", marks=pytest.mark.slow) for kind in ("random", "black")]

# sets that take long to compile, or whose family is in the default run already
SLOW = {
    "affine",
    "gabor",
    "group_l20",
    "group_l21",
    "jpeg_l1",
    "jpeg_l2",
    "l0_coordinate",
    "l0_linf",
    "masked",
    "one_of",
    "recolor_official",
    "snow",
    "wasserstein_ott",
    "wasserstein_sinkhorn",
}


def share(first):
    """Every second registered set, from this place on."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sorted(sets.REGISTRY)[first::2]]


@functools.lru_cache(maxsize=len(IMAGES))
def case(name, kind, place):
    """With what its laws share; those of one set are tried one after another."""
    return SetCase(sets.REGISTRY[name](), sets.REGISTRY[name].shapes[place], kind)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("law", [name for name in SET_LAWS if name not in ONE_IMAGE])
def test_law(law, name, image):
    SET_LAWS[law](case(name, *image))


@pytest.mark.parametrize("law", ONE_IMAGE)
def test_law_of_one_image(law, name):
    SET_LAWS[law](case(name, "random", 0))
