"""BPDA: the forward pass is the defence's own, the gradient that of its stand-in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.attacks.compose.bpda import bpda
from jaxrobust.types import Classifier
from tests import tiny


def quantise(images):
    return jnp.round(images * 8) / 8


def test_value_and_gradient():
    images = jnp.asarray(np.random.default_rng(0).random((2, *tiny.SHAPE)), jnp.float32)
    defence = bpda(quantise, backward=jnp.sin)
    np.testing.assert_array_equal(defence(images), quantise(images))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(3 * defence(x))))(images)
    np.testing.assert_allclose(gradient, 3 * jnp.cos(images), rtol=1e-6)


def test_it_recovers_the_attack_through_a_quantiser(rng):
    network = tiny.linear_classifier(rng)
    masked = Classifier(lambda params, images: network.apply(params, quantise(images)), network.params)
    open_ = bpda(quantise).before(network)
    images, labels = tiny.images_and_labels(masked, 12)
    attack = attacks.pgd(sets.Linf(0.15), steps=5, random_start=False)
    blind, seeing = (attacks.run(attack, model, images, labels, key=jax.random.key(0)) for model in (masked, open_))
    np.testing.assert_array_equal(masked(images), open_(images))
    assert not blind.success[:-1].any()
    assert seeing.success[:-1].mean() > 0.7
    np.testing.assert_array_equal(np.asarray(masked(seeing.images)).argmax(-1) != labels, seeing.success)


def test_wrapping_twice_compiles_once():
    traces = 0

    def counting(images):
        nonlocal traces
        traces += 1
        return images

    run = jax.jit(lambda defence, images: defence(images))
    images = jnp.zeros((1, 2, 2, 1))
    run(bpda(counting), images)
    first = traces
    run(bpda(counting), images)
    assert traces == first


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="forward"):
        bpda(3)
    with pytest.raises(ValueError, match="backward must give what forward gives"):
        bpda(lambda x: x[..., :1])(jnp.zeros((1, 2, 2, 3)))
