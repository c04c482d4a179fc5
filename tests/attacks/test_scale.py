"""The scale of the logits changes no decision, so it must not change what attacks find."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, sets
from jaxrobust.types import Classifier
from tests import tiny

KEY = jax.random.key(5)
SCALES = (1e-3, 1.0, 1e3)
# on these about half of the images are fooled
RADII = {"linf": 0.06, "l2": 0.6, "l1": 3.0}
FAR = 2.0  # of minimum-norm attacks in l2, some of which start far out
# The weight of the misclassification term is in the unit of the logits, and found by search over a few rounds.
WEIGHTED = {"cw", "cw_l0", "cw_linf", "ead"}
# dear, and no other in what they do with logits than those that stay
DEAR = {"corner_search", "grid", "kang", "ppgd", "sparse_rs", "sparse_rs_patch", "spsa", "worst_of_k"}
NAMES = sorted(
    name
    for name, entry in attacks.REGISTRY.items()
    if name not in WEIGHTED | DEAR and entry(sets.REGISTRY[entry.on]()).knowledge != "decisions"
)
DEFAULT = {"apgd", "ddn", "fgsm", "square"}


def net(params, images):
    """A network whose logits are scaled by a parameter, so that all scales are one program."""
    return params["scale"] * tiny.dense_net(params["net"], images)


@functools.cache
def problem(on, count=40):
    shape = sets.REGISTRY[on].shapes[0]
    models = [Classifier(net, {"net": tiny.dense_params(shape=shape), "scale": jnp.float32(c)}) for c in SCALES]
    images, labels = tiny.images_and_labels(models[1], count, shape=shape)
    return models, images, labels


@functools.cache
def found(name):
    """What a registered attack, at most ten steps of it, finds at each scale."""
    entry = attacks.REGISTRY[name]
    models, images, labels = problem(entry.on)
    attack = entry(sets.REGISTRY[entry.on]())
    if entry.on in RADII:
        attack = attack.with_radius(FAR if attack.minimum_norm and entry.on == "l2" else RADII[entry.on])
    if hasattr(attack, "steps"):
        attack = dataclasses.replace(attack, steps=min(attack.steps, 10))
    return attack, [attacks.run(attack, entry.model(m), images, labels, key=KEY, check=False) for m in models]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in DEFAULT else pytest.mark.slow) for n in NAMES])
def test_every_attack_finds_as_much_at_every_scale(name):
    attack, results = found(name)
    small, one, large = (np.asarray(result.success).mean() for result in results)
    bent = getattr(attack, "loss", "cross_entropy") == "cross_entropy"
    if bent:
        # at a small scale cross-entropy leans to all other classes alike, at a large one to the nearest alone
        assert max(abs(small - one), abs(large - one)) < 0.16
    else:
        assert max(abs(small - one), abs(large - one)) <= 0.06
    if attack.minimum_norm:
        small, one, large = (np.median(np.asarray(result.size)[:-1]) for result in results)
        np.testing.assert_allclose([small, large], one, rtol=0.2 if bent else 0.1)


def test_runs_are_ranked_where_their_loss_has_vanished():
    """Of two classes the log-odds are the difference of logits, so that all scales keep the same run's image."""
    model = tiny.dense_classifier(classes=2)
    images, labels = (part[:-1] for part in tiny.images_and_labels(model, 9))
    made = attacks.pgd(sets.Linf(0.01), steps=1, restarts=6)

    def scaled(params, images):
        return params[1] * model.apply(params[0], images)

    one, large = (Classifier(scaled, (model.params, jnp.float32(scale))) for scale in (1, 4096))
    expected = attacks.run(made, one, images, labels, key=KEY)
    found = attacks.run(made, large, images, labels, key=KEY)
    in_lanes = evaluate.run_lanes(made, large, images, labels, key=KEY, lanes=4, early_stop=False).result
    robust = ~np.asarray(expected.success)
    assert (np.asarray(found.loss)[robust] == 0).sum() > 2
    for result in (found, in_lanes):
        np.testing.assert_allclose(result.images, expected.images, atol=1e-6)
        np.testing.assert_array_equal(result.success, expected.success)


def test_saturated_losses_are_reported_as_they_are():
    """What is followed decides; what a result says of it is cross-entropy itself, here too small for a float."""
    models, images, labels = problem("linf")
    _, (_, one, large) = found("fgsm")
    for model, result in zip(models[1:], (one, large), strict=True):
        logits = np.asarray(model(result.images), np.float64)
        rest = np.where(np.eye(logits.shape[1], dtype=bool)[labels], -np.inf, logits)
        odds = np.logaddexp.reduce(rest, axis=1) - logits[np.arange(len(labels)), labels]
        np.testing.assert_allclose(result.loss, np.logaddexp(0, odds), rtol=1e-3, atol=1e-6)
    robust = ~np.asarray(large.success)
    assert (np.asarray(large.loss)[robust] == 0).any()
    assert (np.asarray(large.images)[robust] != images[robust]).any()
