"""What is printed is short and says what it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import attacks, evaluate, sets
from jaxrobust._repr import short, written
from jaxrobust.models import SmallCNN
from jaxrobust.types import AttackResult, Classifier, Confident, Misclassified, Targeted
from tests import tiny

LONGEST = 200


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (np.float32(8 / 255), "8/255"),
        (jnp.float32(8 / 255), "8/255"),
        (0.031372549, "0.0313725"),
        (0.2, "0.2"),
        (1 / 3, "0.333333"),
        (0.0, "0"),
        (5, "5"),
        (128 / 255, "128/255"),
        (np.float32(16 / 255), "16/255"),
        (0.123456, "0.123456"),
        (np.inf, "inf"),
        (-8 / 255, "-8/255"),
    ],
)
def test_numbers_are_as_they_were_written(value, text):
    assert written(value) == text


def test_exact_numbers_keep_their_digits():
    assert written(0.031372549, exact=True) == "0.031372549"
    assert written(8 / 255, exact=True) == "8/255"


def test_sets_and_attacks_print_as_they_are_made():
    ball = sets.Linf(8 / 255)
    assert repr(ball) == str(ball) == "Linf(8/255)"
    assert repr(attacks.apgd(ball)) == "APGD(Linf(8/255))"
    assert repr(attacks.pgd(ball, steps=7, step_size=0.5)) == "PGD(Linf(8/255), steps=7, step_size=0.5)"
    assert repr(sets.Masked(ball, np.ones((6, 5, 1), bool))) == "Masked(Linf(8/255), mask=bool[6,5,1])"
    assert repr(Confident(Misclassified(3), 0.9)) == "Confident(Misclassified(3), probability=0.9)"
    assert repr(Targeted(jnp.arange(10))) == "Targeted(int32[10])"
    two = attacks.worst_of(attacks.fgsm(sets.Linf(0.05)), attacks.fgsm(sets.L2(0.1))).with_radius(4.0)
    assert "Linf(0.2)" in str(two)
    assert "L2(0.4)" in str(two)


@pytest.mark.parametrize("name", sets.REGISTRY)
def test_every_set_is_short(name):
    assert len(repr(sets.REGISTRY[name]())) < LONGEST


@pytest.mark.parametrize("name", attacks.REGISTRY)
def test_every_attack_is_short(name):
    entry = attacks.REGISTRY[name]
    assert len(repr(entry(sets.REGISTRY[entry.on]()))) < 2 * LONGEST


def test_results_and_models_are_short():
    result = AttackResult(
        images=np.zeros((4, 32, 32, 3), np.float32),
        success=np.array([True, True, False, True]),
        loss=np.zeros(4),
        size=np.array([0.1, 0.2, 0.0, 0.3]),
        forwards=np.full(4, 41),
        backwards=np.full(4, 40),
        code=np.zeros(4, int),
    )
    assert repr(result) == (
        "AttackResult(3 of 4 succeeded, mean size 0.2; images 32x32x3, 41 forwards, 40 backwards each)"
    )
    model = Classifier.from_nnx(SmallCNN(rngs=nnx.Rngs(0)))
    assert repr(model).startswith("Classifier(SmallCNN, params=<14 arrays of 158,602 numbers>")
    assert len(repr(model)) < LONGEST
    assert len(repr(evaluate.HostModel(tiny.linear, classes=3))) < LONGEST


def test_traced_values_print_too():
    printed = []

    def traced(radius, result):
        printed.extend([repr(sets.Linf(radius)), str(sets.Linf(radius)), repr(result), repr(Misclassified(radius))])
        return radius

    counts = dict.fromkeys(("forwards", "backwards", "code"), jnp.zeros(3, int))
    sizes = dict.fromkeys(("loss", "size"), jnp.zeros(3))
    result = AttackResult(images=jnp.zeros((3, 2, 2, 1)), success=jnp.zeros(3, bool), **counts, **sizes)
    jax.make_jaxpr(traced)(0.1, result)
    assert printed[0] == "Linf(float32[])"
    assert all(len(text) < LONGEST for text in printed)
    assert repr(jax.tree.map(lambda leaf: None, sets.Linf(0.1))) == "Linf(None)"


def test_anything_is_short():
    for value in (np.zeros(1000), list(range(1000)), {"a": np.zeros((9, 9))}, "x" * 1000, tiny.linear, object()):
        assert len(short(value)) <= 80
    assert short({"w": np.zeros((9, 9)), "b": np.zeros(2)}) == "{'w': float64[9,9], 'b': [0.0, 0.0]}"
