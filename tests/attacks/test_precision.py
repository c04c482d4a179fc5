"""Images and logits of any floating type: attacks run in float32 or float64, and what they return is in the set."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.core import engine
from jaxrobust.testing.attacks import measured
from jaxrobust.types import Classifier, Misclassified
from tests import tiny
from tests.attacks.test_laws import KINDS, make

KEY = jax.random.key(2)
TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}


def cast_net(params, images):
    """A network in the precision of its weights, which casts what it is given."""
    return tiny.dense_net(params, images.astype(params["out"].dtype))


@functools.cache
def data(on, dtype):
    shape = sets.REGISTRY[on].shapes[0]
    images, labels = tiny.images_and_labels(tiny.dense_classifier(shape=shape), 4, shape=shape)
    return images.astype(TYPES[dtype]), labels


def network(shape, dtype):
    return Classifier(cast_net, jax.tree.map(lambda leaf: leaf.astype(TYPES[dtype]), tiny.dense_params(shape=shape)))


def check(name, on, logits, images):
    """One run, with the images' precision and never less than float32, in the set."""
    double = "float64" in (logits, images)
    with jax.enable_x64(double):
        given, labels = data(on, images)
        model, made = network(given.shape[1:], logits), make(name, on)
        found = attacks.run(made, model, given, labels, key=KEY, check=not double)
        wide = given.astype(np.float64 if images == "float64" else np.float32)
        assert found.images.dtype == found.size.dtype == found.loss.dtype == wide.dtype
        inside, applied, _ = measured(made.set, wide, found.parameters)
        assert inside.all()
        moved = (np.asarray(found.images) != wide).any(axis=(1, 2, 3))
        np.testing.assert_allclose(applied[moved], found.images[moved], atol=2e-5)
        if on == "linf":
            radius = wide.dtype.type(made.set.radius)
            assert np.abs(np.asarray(found.images) - wide).max() <= radius + 1e-6


PAIRS = [(logits, images) for logits in TYPES for images in TYPES if logits != images]


@pytest.mark.parametrize(
    ("logits", "images"),
    [
        pytest.param(*pair, marks=[] if pair in {("float64", "float32"), ("bfloat16", "float16")} else pytest.mark.slow)
        for pair in PAIRS
    ],
)
def test_apgd_in_every_precision(logits, images):
    check("apgd", "linf", logits, images)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in KINDS else pytest.mark.slow) for n in sorted(attacks.REGISTRY)]
)
def test_every_attack_has_one_type_throughout(name):
    """By its program alone, which strict promotion refuses to write where two types meet."""
    on = attacks.REGISTRY[name].on
    # with x64 whatever has no type of its own is of 64 bits
    for logits, images in (("float64", "float32"), ("bfloat16", "float16"), ("float32", "float64")):
        with jax.enable_x64("float64" in (logits, images)):
            given, labels = data(on, images)
            made = make(name, on)
            model = attacks.REGISTRY[name].model(network(given.shape[1:], logits))

            def found(images, labels, made=made, model=model):
                result = attacks.run(made, model, images, labels, key=KEY)
                return result.images, result.size, result.loss

            expected = np.dtype(np.float64 if images == "float64" else np.float32)
            assert {each.dtype for each in jax.eval_shape(found, given, labels)} == {expected}


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_doors_take_half_precision_and_attack_in_float32(dtype):
    (images, labels), attack = data("linf", dtype), attacks.bim(sets.Linf(8 / 255), steps=2)
    model = network(images.shape[1:], dtype)
    found = evaluate.robustness(model, (images, labels), {"bim": attack}, key=KEY, progress=False)
    outcome = found.outcomes["bim"]
    assert outcome.images.dtype == found.logits.dtype == np.float32
    assert np.abs(outcome.images - images.astype(np.float32)).max() <= np.float32(8 / 255) + 1e-7
    again = attacks.run(attack, model, jnp.asarray(images), labels, key=KEY)
    assert again.images.dtype == np.float32
    assert evaluate.predict(model, images).dtype == np.float32
    assert evaluate.curve(model, (images, labels), attack, [0.01], key=KEY).shape == (1,)


def test_a_network_that_takes_bfloat16_only_is_told_to_cast():
    images, labels = data("linf", "bfloat16")
    stubborn = dataclasses.replace(network(images.shape[1:], "bfloat16"), apply=tiny.dense_net)
    with pytest.raises(ValueError, match=r"images come as float32.*cast them inside"):
        attacks.run(attacks.fgsm(sets.Linf(0.1)), stubborn, images, labels, key=KEY)


MULTIPLYING = {"hop_skip_jump", "spsa"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in MULTIPLYING else [pytest.mark.slow]) for n in sorted(attacks.REGISTRY)]
)
def test_products_are_in_full_precision_on_every_machine(name):
    """Accelerators round factors to a few digits unless a product says otherwise."""
    entry = attacks.REGISTRY[name]
    shape = sets.REGISTRY[entry.on].shapes[0]
    made, x = make(name, entry.on), jnp.full(shape, 0.5)

    def begun(key, logits):
        return made.begin(key, x, Misclassified(jnp.asarray(0)), logits[0], jnp.zeros((), jnp.int32))

    def step(key, logits, gradients):
        state = begun(key, logits)
        return made.ask(state), made.best(made.tell(state, logits, gradients))

    logits = jnp.zeros((made.width, 4))
    pulled = jax.eval_shape(lambda key, logits: made.cotangents(begun(key, logits), logits), KEY, logits).shape[1]
    points = jax.eval_shape(lambda key, logits: made.ask(begun(key, logits)), KEY, logits)
    gradients = jnp.zeros((made.width, max(pulled, 1), *points.shape[1:]))
    equations = engine._equations(jax.make_jaxpr(step)(KEY, logits, gradients).jaxpr)
    products = [equation for equation in equations if equation.primitive.name == "dot_general"]
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    assert all(equation.params["precision"] == highest for equation in products)
    assert products or name not in MULTIPLYING
