"""Criteria: what each of them says, and laws that hold for all, under every attack that takes them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import attacks, evaluate, losses, sets
from jaxrobust.testing.attacks import answers
from jaxrobust.types import CRITERIA, Classifier, Code, Confident, Misclassified, Targeted, TopK, Towards
from tests import tiny
from tests.compiled import call, compiled

KEY = jax.random.key(3)
# its margin is that of the target, which is enough to meet it but not needed
MARGINS = sorted(set(CRITERIA) - {"towards"})
# these go to the boundary between two classes, which the other criteria do not have
TWO_CLASSES = {"deepfool", "fab", "sparse_fool", "corner_search"}
TARGETED = Targeted(1, 0)
CONFIDENT = Confident(TARGETED, 0.9)
# one attack of each way to use a criterion, and all that refuse some
TOLD = {"pgd", "apgd", "boundary", "cw", "ddn", "ead", "fab_t", "fmn", "hop_skip_jump", "jsma", "lpa", "minimal_pgd"}
TOLD |= {"nes", "one_pixel", "pointwise", "sigma_zero", "square", "targeted_each", "worst_of", "apgd_t", *TWO_CLASSES}
QUICK = {("pgd", "confident_top_2"), ("pgd", "towards"), ("square", "confident_top_2")}


@functools.partial(jax.jit, static_argnums=0)
def judged(name, logits, label, target):
    """Whether random logits meet a criterion, and its margin."""

    def one(z, y, t):
        goal = CRITERIA[name](y, t)
        return goal.met(z), losses.attack_loss("margin", z, goal)

    return jax.vmap(one)(logits, label, target)


def by_definition(name, z, label, target):
    """The same in NumPy and float64."""
    order = np.argsort(-z.astype(np.float64), kind="stable")
    z = z.astype(np.float64)
    largest = np.exp(z - z.max()).max() / np.exp(z - z.max()).sum()
    base = {
        "misclassified": order[0] != label,
        "targeted": order[0] == target,
        "top_2": label not in order[:2],
        "towards": order[0] != label,
    }
    if name in base:
        return base[name]
    inner = {"confident": "misclassified", "confident_targeted": "targeted", "confident_top_2": "top_2"}[name]
    return base[inner] and largest >= 0.8


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 2.0, 30.0]), st.sampled_from(sorted(CRITERIA)))
def test_criteria_say_what_they_say_and_the_margin_agrees(seed, scale, name):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(400, 5))).astype(np.float32)
    label = rng.integers(0, 5, 400).astype(np.int32)
    target = ((label + rng.integers(1, 5, 400)) % 5).astype(np.int32)
    met, margin = map(np.asarray, judged(name, logits, label, target))
    expected = np.array([by_definition(name, *row) for row in zip(logits, label, target, strict=True)])
    clear = np.abs(margin) > 1e-5  # elsewhere rounding decides
    np.testing.assert_array_equal(met[clear], expected[clear])
    if name in MARGINS:
        np.testing.assert_array_equal(margin[clear] > 0, met[clear])
        assert clear.mean() > 0.9


def test_top_1_is_misclassification_and_ties_go_to_the_lowest_index():
    tied = np.float32([1.0, 2.0, 2.0, 0.0])
    for label in range(4):
        assert bool(call(TopK(label, 1), "met", tied)) == bool(call(Misclassified(label), "met", tied))
    assert [bool(call(TopK(label, 2), "met", tied)) for label in range(4)] == [True, False, False, True]
    assert not call(TopK(1, 2), "met", np.float32([np.nan, 0.0, 1.0, 2.0]))
    assert float(compiled(losses.margin, static_argnames="k")(tied, 3, k=2)) == 2


def test_confidence_is_the_predicted_class_probability():
    z = np.log(np.float32([0.25, 0.7, 0.05]))
    assert call(Confident(Misclassified(0), 0.69), "met", z)
    assert not call(Confident(Misclassified(0), 0.71), "met", z)
    assert not call(Confident(Misclassified(1), 0.1), "met", z)
    confident = compiled(lambda z, p: losses.attack_loss("margin", z, Confident(Misclassified(0), p)))
    margins = [confident(z, np.float32(p)) for p in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(margins, [np.log(0.7 / 0.25), np.log(0.7 / 0.5), np.log(0.7)], rtol=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_confidence_changes_no_other_loss(loss):
    inner, outer = (jax.jit(functools.partial(losses.attack_loss, loss, goal=goal)) for goal in (TARGETED, CONFIDENT))
    z = np.float32([1.0, 3.0, -2.0, 0.5])
    assert float(inner(z)) == float(outer(z))


def test_top_k_dlr_is_free_of_scale_and_never_constant():
    z = np.float32([4.0, 3.0, 1.0, 0.0, -1.0])
    dlr = compiled(jax.value_and_grad(lambda z: losses.dlr(z, 0, k=2)))
    np.testing.assert_allclose(dlr(z)[0], -3 / 4, rtol=1e-6)
    np.testing.assert_allclose(dlr(10 * z + 5)[0], -3 / 4, rtol=1e-5)
    for classes in (3, 4, 5):
        assert float(np.abs(dlr(z[:classes])[1]).max()) > 0.1


@pytest.mark.parametrize(
    "dtype", [np.int32, np.uint8, *(pytest.param(d, marks=pytest.mark.slow) for d in (np.int8, np.int64))]
)
def test_labels_of_any_integer_type(dtype):
    """Under x64 with strict promotion, where the library's own integers are of 32 and of 64 bits."""

    @jax.jit
    def judged(z, label, target):
        goals = [make(label, target) for make in CRITERIA.values()]
        return [(goal.met(z), [losses.attack_loss(loss, z, goal) for loss in losses.LOSSES]) for goal in goals]

    with jax.enable_x64(True):
        z = np.random.default_rng(0).normal(size=5)
        for met, values in judged(z, np.asarray(0, dtype), np.asarray(2, dtype)):
            assert met.dtype == bool
            assert all(value.dtype == jnp.float64 and np.isfinite(value) for value in values)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(attacks.worst_of_k, samples=5, chunk=2),
        pytest.param(functools.partial(attacks.pgd, steps=2), marks=pytest.mark.slow),
        pytest.param(functools.partial(attacks.apgd_t, steps=2, targets=2), marks=pytest.mark.slow),
        pytest.param(functools.partial(attacks.square, queries=3), marks=pytest.mark.slow),
    ],
)
def test_attacks_with_short_labels_under_x64(make):
    network = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(network, 3)
    with jax.enable_x64(True):
        double = Classifier(tiny.dense_net, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.params))
        found = attacks.run(make(sets.Linf(0.1)), double, images.astype(np.float64), labels, key=KEY)
        assert found.images.dtype == jnp.float64
        np.testing.assert_array_equal(answers(double, found.images).argmax(-1) != labels, found.success)


@functools.cache
def problem(shape):
    network = tiny.dense_classifier(shape=shape)
    images, labels = tiny.images_and_labels(network, 6, shape=shape)
    return network, images, labels, ((labels + 2) % tiny.CLASSES).astype(np.int32)


def made_for(attack):
    entry = attacks.REGISTRY[attack]
    made = entry(sets.REGISTRY[entry.on]())
    if hasattr(made, "steps"):
        made = dataclasses.replace(made, steps=min(made.steps, 3))
    return made, problem(sets.REGISTRY[entry.on].shapes[0])


def takes(attack, goal):
    """Whether an attack has a form for a criterion."""
    if attack in TWO_CLASSES:
        return type(goal) is Misclassified
    if attack in ("jsma", "fab_t"):
        return type(goal) in (Misclassified, Targeted)
    return attack not in ("apgd_t", "targeted_each") or not goal.targeted


def pairs():
    found = []
    for attack in sorted(TOLD):
        for criterion in sorted(CRITERIA):
            marks = [] if (attack, criterion) in QUICK else [pytest.mark.slow]
            told = criterion in ("confident_top_2", "confident_targeted") or attack == "pgd"
            # of misclassification are all laws of attacks; the two around others stand for what they are around
            if criterion != "misclassified" and (told or not takes(attack, CRITERIA[criterion](0, 1))):
                found.append(pytest.param(attack, criterion, id=f"{attack}-{criterion}", marks=marks))
    return found


@pytest.mark.parametrize(("attack", "criterion"), pairs())
def test_successes_meet_the_criterion(attack, criterion):
    made, (network, images, labels, targets) = made_for(attack)
    goal = CRITERIA[criterion](labels, targets)
    if not takes(attack, goal):
        with pytest.raises(ValueError, match=f"(criterion|targets) must .*{type(goal).__name__}"):
            attacks.run(made, network, images, goal, key=KEY)
        return
    found = attacks.run(made, network, images, goal, key=KEY)
    met, clean = (
        np.array([by_definition(criterion, *row) for row in zip(logits, labels, targets, strict=True)])
        for logits in (answers(network, found.images), answers(network, images))
    )
    assert met[np.asarray(found.success)].all()
    assert (np.asarray(found.success) >= clean).all()
    np.testing.assert_array_equal(np.asarray(found.code) == Code.ALREADY, clean)
    np.testing.assert_allclose(np.asarray(found.images)[clean], images[clean], atol=1e-6)


LABELS, TARGETS = np.array([0, 1, 2]), np.array([1, 2, 3])
IMAGES = np.full((3, *tiny.SHAPE), 0.5, np.float32)


@pytest.mark.parametrize(
    ("goal", "error", "message"),
    [
        (TopK(LABELS[:2], 2), ValueError, r"labels must have shape \(3,\)"),
        (TopK(LABELS + 2, 2), ValueError, r"labels must lie in \[0, 4\).*got values in \[2, 4\]"),
        (TopK(LABELS, 4), ValueError, "k must be below the number of classes, 4; got 4"),
        (Confident(Targeted(TARGETS.astype(np.float32)), 0.5), TypeError, "targets must be an array of integers"),
        (Confident(Targeted(TARGETS + 1), 0.5), ValueError, r"targets must lie in \[0, 4\)"),
        (Confident(Misclassified(LABELS), np.full(2, 0.5)), ValueError, r"probability must have shape \(\) or \(3,\)"),
        (Confident(Misclassified(LABELS), jnp.array(1.5)), ValueError, r"probability must be finite and in \[0, 1\]"),
        (Confident(LABELS, 0.5), TypeError, "goal of Confident must be a criterion; got ndarray"),
        (
            Towards(TARGETS, Targeted(TARGETS)),
            TypeError,
            "goal of Towards must have no target of its own; got Targeted",
        ),
    ],
)
def test_bad_criteria_are_refused_at_the_door(goal, error, message):
    with pytest.raises(error, match=message):
        attacks.run(attacks.fgsm(sets.Linf(0.1)), tiny.dense_classifier(), IMAGES, goal, key=KEY)


def test_bad_numbers_are_refused_when_made():
    with pytest.raises(ValueError, match="k must be >= 1; got 0"):
        TopK(LABELS, 0)
    with pytest.raises(ValueError, match=r"probability must be finite and in \[0, 1\]; got 1.01"):
        Confident(Misclassified(LABELS), 1.01)


def test_one_probability_for_all_or_one_an_image_traced_once():
    network, images, labels, _ = problem(tiny.SHAPE)
    attack, traces = attacks.pgd(sets.Linf(0.2), steps=2), 0

    def counting(params, images):
        nonlocal traces
        traces += 1
        return tiny.dense_net(params, images)

    model = Classifier(counting, network.params)

    def run(probability):
        return attacks.run(attack, model, images, Confident(Misclassified(labels), probability), key=KEY)

    run(0.5)
    first, each = traces, np.linspace(0, 1, 6)
    run(np.float32(0.99))
    found = run(each)
    assert traces == first
    assert bool(found.success[0]) == bool(attacks.run(attack, model, images, labels, key=KEY).success[0])
    confident = compiled(jax.nn.softmax)(answers(network, found.images)).max(-1)
    assert (confident >= each)[np.asarray(found.success)].all()


@pytest.mark.slow
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_lanes_agree(criterion):
    network, images, labels, targets = problem(tiny.SHAPE)
    goal, attack = CRITERIA[criterion](labels, targets), attacks.pgd(sets.Linf(0.1), steps=3)
    whole = attacks.run(attack, network, images, goal, key=KEY)
    lanes = evaluate.run_lanes(attack, network, images, goal, key=KEY, lanes=2, early_stop=False, progress=False)
    np.testing.assert_allclose(lanes.result.images, whole.images, atol=1e-5)
    np.testing.assert_array_equal(lanes.result.success, whole.success)
