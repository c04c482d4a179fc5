"""The scale of the logits changes no decision, so it must not change what attacks find."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.types import Classifier, Confident, Misclassified, Targeted
from tests import tiny
from tests.attacks.test_laws import KINDS, make

KEY = jax.random.key(5)
SCALES = (1e-3, 1.0, 1e3)
# on these about half of the images are fooled
RADII = {"linf": 0.06, "l2": 0.3, "l1": 1.6}
# The weight of the misclassification term is in the unit of the logits, and found by search over a few rounds.
WEIGHTED = {"cw", "ead"}
ROOM = 0.1  # cross-entropy itself leans to other rivals at other scales


def net(params, images):
    """A network whose logits are scaled by a parameter, so that all scales are one program."""
    return params["scale"] * tiny.dense_net(params["net"], images)


@functools.cache
def problem(on, count=40):
    shape = sets.REGISTRY[on].shapes[0]
    models = [Classifier(net, {"net": tiny.dense_params(shape=shape), "scale": jnp.float32(c)}) for c in SCALES]
    images, labels = tiny.images_and_labels(models[1], count, shape=shape)
    return models, images, labels


def found(attack, on, goal=lambda labels: labels):
    models, images, labels = problem(on)
    if on in RADII:
        attack = attack.with_radius(RADII[on])
    return [attacks.run(attack, model, images, goal(labels), key=KEY, check=False) for model in models]


CASES = [
    pytest.param(name, marks=[] if name in (KINDS | {"ddn", "pgd"}) - {"hop_skip_jump"} else [pytest.mark.slow])
    for name in sorted(set(attacks.REGISTRY) - WEIGHTED)
]


@pytest.mark.parametrize("name", CASES)
def test_every_attack_finds_as_much_at_every_scale(name):
    on = attacks.REGISTRY[name].on
    small, one, large = (np.asarray(result.success).mean() for result in found(make(name, on), on))
    assert abs(small - one) <= ROOM
    assert abs(large - one) <= ROOM
