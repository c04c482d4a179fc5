"""Minimum-norm attacks where care is needed: what training gets, ties, rounding, short schedules, and no start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluate, losses, sets
from jaxrobust.attacks.core import engine
from jaxrobust.types import Classifier, Code, Misclassified
from tests import tiny

KEY = jax.random.key(7)
NAMES = sorted(name for name, entry in attacks.REGISTRY.items() if entry(sets.REGISTRY[entry.on]()).minimum_norm)
FEW = {"cw"}
LAWS = [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in NAMES]
# far too small for any success, so that all is told by the projection
SMALL = {"l0": 1.0, "l0_linf": 1.0, "l0_coordinate": 2.0, "l1": 0.05, "l2": 0.02, "linf": 0.002}


def small(name, **settings):
    entry = attacks.REGISTRY[name]
    made = entry(sets.REGISTRY[entry.on]())
    if hasattr(made, "steps"):
        settings = {"steps": min(made.steps, 4), **settings}
    return dataclasses.replace(made, **settings).with_radius(SMALL[entry.on]), entry.on


@pytest.mark.parametrize("name", LAWS)
def test_training_gets_a_member_that_is_not_the_clean_image(name):
    """Where the attack has come anywhere, in the set or out of it."""
    made, on = small(name)
    shape = sets.REGISTRY[on].shapes[0]
    model = tiny.dense_classifier(shape=shape)
    images, labels = (part[:-1] for part in tiny.images_and_labels(model, 5, shape=shape))
    keys = engine.example_keys(KEY, jnp.arange(len(images)))
    found = jax.jit(engine.last_iterate)(made, model, images, Misclassified(jnp.asarray(labels)), keys)
    inside = jax.vmap(made.set.contains)(images, found - images)
    assert inside.all()
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    moved = np.abs(np.asarray(found) - images).max((1, 2, 3)) > 0
    assert moved.all()


def test_a_round_too_short_for_ead_still_trains_on_harder_images():
    """Its first constants leave every step below the threshold, so that all iterates are the clean image."""
    model = tiny.dense_classifier()
    images, labels = (part[:-1] for part in tiny.images_and_labels(model, 5))
    keys = engine.example_keys(KEY, jnp.arange(len(images)))
    made = attacks.ead(sets.L1(0.5), steps=20, rounds=1)
    found = jax.jit(engine.last_iterate)(made, model, images, Misclassified(jnp.asarray(labels)), keys)
    before, after = (jax.vmap(losses.log_odds)(model(x), labels) for x in (images, found))
    assert (after > before).all()
    assert jax.vmap(made.set.contains)(images, found - images).all()


def on_the_boundary(classes, label, rival):
    """A linear model and an image at which the logits of two classes are equal to the bit, all others lower."""
    rng = np.random.default_rng(classes)
    weights = rng.integers(-8, 9, (int(np.prod(tiny.SHAPE)), classes)) / 8
    image = rng.integers(64, 192, tiny.SHAPE).astype(np.float32) / 256
    logits = image.reshape(-1) @ weights
    bias = np.full(classes, -logits.max() - 64) - 0 * logits
    bias[[label, rival]] = -logits[[label, rival]]
    params = (jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32))
    return Classifier(tiny.linear, params), image[None]


TIES = {
    "deepfool": attacks.deepfool(sets.L2(1e4)),
    "deepfool-linf": attacks.deepfool(sets.Linf(1.0)),
    "fab-linf": attacks.fab(sets.Linf(1.0), steps=10),
    "fab-l1": attacks.fab(sets.L1(1e4), steps=10),
    "fab-t": attacks.fab(sets.L2(1e4), steps=10, targets=2),
    "fmn-l1": attacks.fmn(sets.L1(1e4), steps=30),
    "fmn-l2": attacks.fmn(sets.L2(1e4), steps=30),
    "fmn-linf": attacks.fmn(sets.Linf(1.0), steps=30),
    "ddn": attacks.ddn(sets.L2(1e4), steps=100),
    "cw": attacks.carlini_wagner(sets.L2(1e4), steps=100, rounds=3, constant=0.1),
    "cw-linf": attacks.carlini_wagner(sets.Linf(1.0), steps=50, rounds=30, constant=0.1),
    "ead": attacks.ead(sets.L1(1e4), steps=100, rounds=5, constant=0.1),
}
# how small a perturbation is enough, of entries of order one
TINY = {1: 0.5, 2: 0.05, np.inf: 0.02}
QUICK = {"deepfool", "fmn-l2"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in TIES])
@pytest.mark.parametrize(
    "classes", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)]
)
def test_a_tie_is_no_reason_to_stand_still(name, classes):
    made = TIES[name]
    p = {sets.L1: 1, sets.L2: 2, sets.Linf: np.inf}[type(made.set)]
    for label, rival in ((0, 1), (1, 0), (0, classes - 1), (classes - 2, classes - 1)):
        if label == rival:
            continue
        model, image = on_the_boundary(classes, label, rival)
        logits = np.asarray(model(image))[0]
        assert logits[label] == logits[rival] == logits.max()
        found = attacks.run(made, model, image, np.array([label], np.int32), key=KEY)
        assert found.success[0], (label, rival)
        assert float(found.size[0]) <= TINY[p], (label, rival, float(found.size[0]))
        assert (found.code[0] == Code.ALREADY) == (rival < label)


def test_a_success_beyond_rounding_is_preferred():
    """One that a fresh pass may undo is kept only while there is no other."""
    made = attacks.fmn(sets.L2(10.0), steps=3)
    x = jnp.full(tiny.SHAPE, 0.5)
    state = made.init(KEY, x, Misclassified(jnp.asarray(0)), jnp.asarray([1.0, 0.0]))
    near, far = (dataclasses.replace(state, theta=jnp.full(tiny.SHAPE, size)) for size in (0.01, 0.02))
    barely, clearly = jnp.asarray([[1.0, 1.0000001]]), jnp.asarray([[1.0, 1.1]])
    first = made._record(near, barely)
    assert first.success
    assert not first.sure
    second = made._record(dataclasses.replace(first, theta=far.theta), clearly)
    assert second.sure
    np.testing.assert_allclose(second.best_theta, 0.02)
    third = made._record(dataclasses.replace(second, theta=near.theta), barely)
    np.testing.assert_allclose(third.best_theta, 0.02)


SHORT = {"l0": sets.L0(1e4), "l1": sets.L1(1e4), "l2": sets.L2(1e4), "linf": sets.Linf(1.0)}


def _bent(params, images):
    """A margin −(R − r)⁴ up to R and (r − R)⁴ beyond: of what is left the linearised distance is always a quarter."""
    weights, goal = params
    left = 1 - (images - 0.5).reshape(len(images), -1) @ weights / goal
    return jnp.stack([5 * left * jnp.abs(left) ** 3, jnp.zeros(len(images))], 1)


@pytest.mark.parametrize("norm", [pytest.param(n, marks=[] if n == "l0" else [pytest.mark.slow]) for n in SHORT])
def test_without_a_cap_a_few_steps_find_something(norm):
    weights = np.random.default_rng(0).normal(size=60).astype(np.float32)
    model = Classifier(_bent, (jnp.asarray(weights), jnp.asarray(np.abs(weights).sum() / 4)))
    images = np.full((1, *tiny.SHAPE), 0.5, np.float32)
    found = attacks.run(attacks.fmn(SHORT[norm], steps=6), model, images, np.zeros(1, np.int32), key=KEY)
    assert found.success.all()


@pytest.mark.slow
def test_carlini_wagner_l0_keeps_pixels_whose_channels_move_apart():
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(60, 2)) / 2
    images = rng.uniform(0.2, 0.8, (20, *tiny.SHAPE)).astype(np.float32)
    logits = images.reshape(20, -1) @ weights
    bias = np.array([4 + np.max(logits[:, 1] - logits[:, 0]), 0])
    model = Classifier(tiny.linear, (jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32)))
    made = attacks.carlini_wagner(sets.L0(1e4), steps=100, rounds=100)
    found = attacks.run(made, model, images, np.zeros(20, np.int32), key=KEY)
    normal = weights[:, 1] - weights[:, 0]
    flat = images.reshape(20, -1)
    gains = np.maximum(normal * (1 - flat), -normal * flat).reshape(20, -1, 2).sum(-1)
    margin = (logits + bias) @ [1, -1]
    fewest = (np.cumsum(-np.sort(-gains, 1), 1) <= margin[:, None]).sum(1) + 1
    above = np.asarray(found.size) - fewest
    assert found.success.all()
    assert (above >= 0).all()
    assert above.max() <= 1
    assert above.mean() <= 0.2, above


COUNTED = ("fab", "deepfool", "fab_t", "jsma", "sparse_fool")


@pytest.mark.slow
@pytest.mark.parametrize("classes", [12, 4])
@pytest.mark.parametrize("name", COUNTED)
def test_the_static_count_bounds_the_gradients_pulled(name, classes):
    """By default, not as registered, where classes are more than the attack considers and where they are fewer."""
    entry = attacks.REGISTRY[name]
    made = dataclasses.replace(entry.factory(sets.REGISTRY[entry.on]().with_radius(np.float64(1e-3))), steps=2)
    if getattr(made, "candidates", 0) is None:  # all: how many only the model knows
        made = dataclasses.replace(made, candidates=classes)
    model = tiny.dense_classifier(classes=classes)
    images, labels = (part[:-1] for part in tiny.images_and_labels(model, 3))
    found = attacks.run(made, model, images, labels, key=KEY)
    assert (found.backwards > 0).all()
    assert (found.backwards <= made.gradients * made.restarts).all()
    logits, keys = model(images), engine.example_keys(KEY, jnp.arange(len(images)))
    states = engine.begin(made, jnp.asarray(images), Misclassified(jnp.asarray(labels)), keys, logits, 0)
    pulled = jax.eval_shape(jax.vmap(made.cotangents), states, logits[:, None]).shape[2]
    assert pulled <= made.gradients // made.steps
    assert name == "sparse_fool" or (found.backwards % pulled == 0).all()


def _deaf(params, images):
    return jnp.broadcast_to(jnp.asarray([[3.0, 0.0]]), (len(images), 2))


def _negative(params, images):
    """Class 1 only where an image is dark and smooth: no noise is."""
    dark = images.mean((1, 2, 3)) < 0.2
    return jnp.stack([jnp.full(len(images), 0.5), dark.astype(jnp.float32)], 1)


BLIND = {
    "boundary": attacks.boundary(sets.L2(100.0), queries=1200),
    "hop_skip_jump": attacks.hop_skip_jump(sets.L2(100.0), queries=1200, chunk=1),
    "pointwise": attacks.pointwise(sets.L2(100.0), queries=1200),
}
BLIND_CASES = [pytest.param(n, marks=[] if n == "boundary" else [pytest.mark.slow]) for n in BLIND]


@pytest.mark.parametrize("name", BLIND_CASES)
def test_no_start_is_said(name):
    images, labels = np.full((2, *tiny.SHAPE), 0.9, np.float32), np.array([0, 1], np.int32)
    model = Classifier(_deaf, ())
    found = attacks.run(BLIND[name], model, images, labels, key=KEY)
    assert found.code.tolist() == [Code.NO_START, Code.ALREADY]
    assert int(found.forwards[0]) < 1050
    if name == "boundary":
        return  # by default the programs of the lanes cost too much
    report = evaluate.robustness(model, (images, labels), {name: BLIND[name]}, key=KEY, progress=False)
    assert report.outcomes[name].summary()["no_start"] == 1
    assert "1 without a start" in str(report)


def _dark(below, images):
    """Class 1 only where an image is darker than that."""
    return jnp.stack([jnp.full(len(images), 0.5), (images.mean((1, 2, 3)) < below).astype(jnp.float32)], 1)


def test_no_start_is_said_by_what_is_around_the_attack():
    """Where no run of any attack found one, and only there."""
    made = attacks.worst_of(attacks.boundary(sets.L2(0.01), queries=1100, restarts=2), until_success=True)
    images, labels = np.full((1, *tiny.SHAPE), 0.9, np.float32), np.array([0], np.int32)
    for below, code in ((0.0, Code.NO_START), (0.6, Code.RAN)):
        found = attacks.run(made, Classifier(_dark, jnp.asarray(below)), images, labels, key=KEY)
        assert found.code.tolist() == [code]
    assert not attacks.worst_of(*made.attacks, attacks.fmn(sets.L2(0.01))).needs_start


@pytest.mark.slow
@pytest.mark.parametrize("name", BLIND)
def test_starts_that_are_no_noise_are_tried(name):
    images, labels = np.full((1, *tiny.SHAPE), 0.9, np.float32), np.array([0], np.int32)
    found = attacks.run(BLIND[name], Classifier(_negative, ()), images, labels, key=KEY)
    assert found.success.all()
    near = attacks.run(BLIND[name].with_radius(0.01), Classifier(_negative, ()), images, labels, key=KEY)
    assert near.code.tolist() == [Code.RAN]
