"""What a verifier proved of 3,000 digits (Jia and Rinard 2020) holds against every attack; what it broke is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data, evaluate, sets
from jaxrobust.attacks.core.base import KNOWLEDGE, REGISTRY, Attack
from jaxrobust.evaluate.outcomes import FOOLED
from jaxrobust.types import Classifier
from tests.published import published

pytestmark = [pytest.mark.slow, pytest.mark.realdata]
PROVED, ATTACKABLE = 1, 2
EACH = 4
BALL = sets.Linf(0.1)


def accepts(entry):
    try:
        return isinstance(entry(BALL), Attack)
    except (TypeError, ValueError):
        return False


# the mean of a random classifier is another model
NAMES = [name for name, entry in REGISTRY.items() if accepts(entry) and name != "eot"]


def network(params, images):
    """Dense layers, ReLU between."""
    hidden = images.reshape(images.shape[0], -1)
    for i in range(1, 5):
        hidden = hidden @ params[f"w{i}"] + params[f"b{i}"][None]
        hidden = jnp.maximum(hidden, 0) if i < 4 else hidden
    return hidden


@pytest.fixture(scope="module")
def known():
    """The classifier, its weights, what was proved, the images, the labels."""
    with np.load(published("exact_mnist_linf_0.1.npz")) as stored:
        weights = {name: stored[name] for name in stored.files if name[0] in "wb"}
        verdict = stored["verdict_first_3000"]
    images, labels = (np.asarray(a) for a in data.load("mnist", "test[:3000]"))
    return Classifier(network, jax.tree.map(jnp.asarray, weights)), weights, verdict, images, labels


def wrong_in_float64(weights, clean, images, labels):
    """Which images, put into the exact ball, are misclassified in float64."""
    clean = np.asarray(clean, np.float64)
    hidden = np.clip(np.asarray(images, np.float64), clean - 0.1, clean + 0.1).reshape(len(images), -1)
    for i in range(1, 5):
        hidden = hidden @ weights[f"w{i}"].astype(np.float64) + weights[f"b{i}"]
        hidden = np.maximum(hidden, 0) if i < 4 else hidden
    return hidden.argmax(-1) != labels


def test_clean_errors_are_those_told(known):
    model, _, verdict, images, labels = known
    wrong = np.asarray(model(jnp.asarray(images)).argmax(-1)) != labels
    np.testing.assert_array_equal(wrong, verdict == 0)


@pytest.mark.optimised(False)  # much is compiled for few images
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_no_attack_breaks_what_is_proved(known, knowledge):
    model, weights, verdict, images, labels = known
    chosen = np.concatenate([np.flatnonzero(verdict == PROVED)[:EACH], np.flatnonzero(verdict == ATTACKABLE)[:EACH]])
    attack = {name: REGISTRY[name](BALL) for name in NAMES}
    attack = {name: one for name, one in attack.items() if one.knowledge == knowledge}
    found = evaluate.robustness(
        model, (images[chosen], labels[chosen]), attack, key=jax.random.key(0), lanes=2 * EACH, progress=False
    )
    for name, outcome in found.outcomes.items():
        fooled = outcome.outcome == FOOLED
        real = wrong_in_float64(weights, images[chosen], outcome.images, labels[chosen])
        assert not (real & (verdict[chosen] == PROVED)).any(), name
        assert not fooled[:EACH][~real[:EACH]].any(), name
    if knowledge == "gradients":
        assert found.union.accuracy <= 0.75  # at least two of the four; three or all, by the machine


def test_autoattack_finds_nearly_all_that_can_be_found(known):
    """155 of 162 is what this library's AutoAttack is known to find, of every third of them 51 or 52 of 54."""
    model, _, verdict, images, labels = known
    chosen = np.flatnonzero(verdict == ATTACKABLE)[::3]
    options = {"norm": "linf", "radius": 0.1, "lanes": 16, "progress": False}
    with pytest.warns(RuntimeWarning, match="square lowers"):  # of attackable images alone it finds a larger share
        found = evaluate.autoattack(model, (images[chosen], labels[chosen]), key=jax.random.key(0), **options)
    assert len(chosen) == 54
    assert round(found.union.accuracy * len(chosen)) <= 5
