"""Robust accuracy: what becomes of each example, in the worst case, and against radius."""

import binascii
import dataclasses
import gc
import inspect
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import _inputs, attacks, sets
from jaxrobust.evaluate import (
    AttackOutcome,
    Evaluation,
    LaneCounts,
    Proportion,
    curve,
    mcnemar,
    robustness,
    run_lanes,
    unseen_mean,
)
from jaxrobust.evaluate.outcomes import CLEAN_ERROR, FOOLED, NON_FINITE, ROBUST
from jaxrobust.evaluate.robustness import _named
from jaxrobust.types import Classifier, Code, Confident, Misclassified, Targeted, TopK, pytree
from tests.evaluate.models import ONE_DEVICE, Counting, NanWhere, classifier, examples
from tests.tiny import SHAPE, linear

OPTIONS = {"lanes": 8, "devices": ONE_DEVICE, "progress": False}
# deterministic starts: without random numbers the programs compile in a fifth of the time
WEAK, STRONG = attacks.bim(sets.Linf(0.01), steps=5), attacks.bim(sets.Linf(0.03), steps=5)
FIELDS = ("outcome", "size", "loss", "code", "images", "forwards", "backwards")


@pytest.fixture(scope="module")
def data():
    images, labels = examples(60, wrong=5)
    # on the grid of `NanWhere`
    return np.round(images * 256).astype(np.float32) / 256, labels


@pytest.fixture(scope="module")
def report(data):
    attacked = {"weak": WEAK, "strong": STRONG}
    return robustness(classifier(), data, attacked, key=jax.random.key(0), trained_on=["weak"], name="tiny", **OPTIONS)


def outcome(codes, **changes):
    """An attack's outcome, of codes alone."""
    codes = np.asarray(codes, np.int8)
    count = len(codes)
    plain = AttackOutcome(
        attack=WEAK,
        outcome=codes,
        size=np.full(count, 0.01),
        loss=np.zeros(count),
        code=np.zeros(count, np.int32),
        images=np.zeros((count, *SHAPE), np.float32),
        forwards=np.full(count, 3),
        backwards=np.full(count, 2),
        counts=LaneCounts(12, 10, 0.5),
    )
    return dataclasses.replace(plain, **changes)


def evaluation(outcomes, **changes):
    count = len(next(iter(outcomes.values())).outcome)
    labels = np.zeros(count, int)
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (count, 1))
    plain = Evaluation("made up", labels, logits, outcomes, np.zeros((count, *SHAPE), np.float32), [0, 0])
    return dataclasses.replace(plain, **changes)


def test_every_example_has_the_fate_of_its_logits(report, data):
    images, labels = data
    model = classifier()
    correct = np.asarray(model(images).argmax(-1)) == labels
    assert report.clean.accuracy == correct.mean()
    for name, attack in (("weak", WEAK), ("strong", STRONG)):
        found = report.outcomes[name]
        changed = np.asarray(model(found.images).argmax(-1)) != labels
        expected = np.where(correct, np.where(changed, FOOLED, ROBUST), CLEAN_ERROR)
        np.testing.assert_array_equal(found.outcome, expected)
        assert {ROBUST, FOOLED, CLEAN_ERROR} == set(found.outcome.tolist())
        assert np.abs(found.images - images).max() <= float(attack.set.radius) + 1e-6
        np.testing.assert_allclose(found.size, np.abs(found.images - images).max((1, 2, 3)), atol=1e-6)
        np.testing.assert_array_equal(found.images[~correct], images[~correct])
        assert report.accuracy(name).accuracy == (expected == ROBUST).mean()
    assert report.accuracy("strong").accuracy < report.accuracy("weak").accuracy
    assert report.unseen_mean == report.accuracy("strong").accuracy


def test_early_stop_changes_no_accuracy(report, data):
    full = robustness(classifier(), data, {"strong": STRONG}, key=jax.random.key(0), early_stop=False, **OPTIONS)
    np.testing.assert_array_equal(full.outcomes["strong"].outcome, report.outcomes["strong"].outcome)
    assert full.outcomes["strong"].counts.needed > report.outcomes["strong"].counts.needed


def test_an_attack_does_not_know_of_the_others(data):
    attack = attacks.rs_fgsm(sets.Linf(0.03))
    key = jax.random.key(3)
    alone = robustness(classifier(), data, {"it": attack}, key=key, **OPTIONS)
    beside = robustness(classifier(), data, {"weak": WEAK, "it": attack}, key=key, **OPTIONS)
    renamed = robustness(classifier(), data, {"that": attack}, key=key, **OPTIONS)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(alone.outcomes["it"], field), getattr(beside.outcomes["it"], field))
    assert np.abs(alone.outcomes["it"].images - renamed.outcomes["that"].images).max() > 0.001


def test_the_union_is_a_logical_and():
    table = {
        "a": [ROBUST, ROBUST, FOOLED, FOOLED, CLEAN_ERROR, NON_FINITE, ROBUST, ROBUST],
        "b": [ROBUST, FOOLED, ROBUST, FOOLED, CLEAN_ERROR, ROBUST, NON_FINITE, ROBUST],
    }
    found = evaluation({name: outcome(codes) for name, codes in table.items()})
    assert found.union.accuracy == 2 / 8
    assert found.accuracy("a").accuracy == 4 / 8
    assert found.accuracy("b").accuracy == 4 / 8
    summary = found.outcomes["a"].summary()
    assert (summary["success_rate"], summary["non_finite"], summary["accuracy"]) == (2 / 6, 1, 0.5)


# Laidlaw, Singla and Feizi, 2021, CIFAR-10: training, the sets it had seen, accuracy under linf, l2, StAdv, ReColorAdv
# and LPA, and the unseen mean as printed; PAT had seen LPA
PUBLISHED = [
    ("normal", [], (0, 0, 0, 0.4, 0), 0.1),
    ("linf", ["linf"], (49.0, 19.2, 4.8, 54.5, 0), 19.6),
    ("trades", ["linf"], (52.5, 23.3, 9.2, 60.6, 0), 23.3),
    ("l2", ["l2"], (39.5, 47.8, 7.8, 53.5, 0.3), 25.3),
    ("stadv", ["stadv"], (0.1, 0.2, 53.9, 5.1, 0), 1.4),
    ("recolor", ["recolor"], (8.5, 3.9, 0, 65.0, 0), 3.1),
    ("pat-self", ["lpa"], (30.2, 34.9, 46.4, 71.0, 2.1), 45.6),
    ("pat-alexnet", ["lpa"], (28.7, 33.3, 64.5, 67.5, 9.8), 48.5),
]


@pytest.mark.parametrize(("name", "trained_on", "accuracies", "mean"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_the_unseen_mean_is_the_published_one(name, trained_on, accuracies, mean):
    columns = dict(zip(("linf", "l2", "stadv", "recolor", "lpa"), map(float, accuracies), strict=True))
    assert abs(unseen_mean(columns, trained_on) - mean) <= 0.05 + 1e-9


def test_who_has_seen_everything_has_no_unseen_mean():
    assert unseen_mean({"a": 0.5, "b": 0.1}, ["b", "a", "c"]) is None
    assert evaluation({"a": outcome([0, 1])}, trained_on=("a",)).unseen_mean is None


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (0, 100, 0, 0.0370),
        (100, 100, 0.9630, 1),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_intervals(hits, count, low, high):
    found = Proportion.of(np.arange(count) < hits)
    assert found.accuracy == hits / count
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=5e-5)
    assert 0 <= found.low <= found.accuracy <= found.high <= 1


@pytest.fixture(scope="module")
def thinned(data):
    attacked = {"weak": WEAK, "strong": STRONG, "again": STRONG}
    return robustness(classifier(), data, attacked, key=jax.random.key(0), only_survivors=True, **OPTIONS)


def test_only_survivors_are_attacked_again(thinned, report):
    weak, strong, again = thinned.outcomes.values()
    np.testing.assert_array_equal(weak.outcome, report.outcomes["weak"].outcome)
    fooled = [report.outcomes[name].outcome == FOOLED for name in ("weak", "strong")]
    np.testing.assert_array_equal(strong.outcome == FOOLED, fooled[0] | fooled[1])
    assert thinned.union == report.union
    # who was attacked, and who was not
    np.testing.assert_array_equal(weak.forwards > 0, weak.outcome != CLEAN_ERROR)
    np.testing.assert_array_equal(strong.forwards > 0, weak.outcome == ROBUST)
    np.testing.assert_array_equal(again.forwards > 0, strong.outcome == ROBUST)
    assert strong.counts.needed < report.outcomes["strong"].counts.needed
    # the points are those of the attack that fooled the example
    np.testing.assert_array_equal(again.images[fooled[0]], weak.images[fooled[0]])
    assert again.summary()["success_rate"] == 0
    assert again.summary()["mean_size"] is None
    assert strong.summary()["mean_size"] > 0.011
    assert strong.summary()["success_rate"] == (fooled[1] & ~fooled[0]).sum() / (weak.outcome == ROBUST).sum()


def test_nobody_is_left(data):
    images, labels = data
    everything = attacks.bim(sets.Linf(1.0), steps=5, step_size=0.3)
    found = robustness(
        classifier(), data, {"all": everything, "more": STRONG}, key=jax.random.key(0), only_survivors=True, **OPTIONS
    )
    first, second = found.outcomes.values()
    assert found.union.accuracy == 0
    np.testing.assert_array_equal(first.outcome, second.outcome)
    assert not second.forwards.any()
    assert second.counts == LaneCounts(0, 0, 0.0)
    assert "0.0 [ 0.0, " in str(found)
    wrong = robustness(classifier(), (images, (labels + 1) % 4), STRONG, key=jax.random.key(0), only_survivors=True)
    assert not (wrong.outcomes["pgd-linf"].outcome == ROBUST)[: len(labels) - 5].any()


def test_nan_logits_are_neither_robust_nor_fooled(data):
    images, labels = data
    middle = float(np.median(images.mean((1, 2, 3))))
    model = classifier(apply=NanWhere(above=middle))
    nan = images.mean((1, 2, 3)) > middle
    assert 20 < nan.sum() < 40
    for only_survivors in (False, True):
        attacked = {"weak": WEAK, "strong": STRONG}
        found = robustness(model, data, attacked, key=jax.random.key(0), only_survivors=only_survivors, **OPTIONS)
        assert found.clean.accuracy == (~nan & (np.asarray(classifier()(images).argmax(-1)) == labels)).mean()
        for result in found.outcomes.values():
            assert (result.outcome[nan] == NON_FINITE).all()
            assert result.summary()["non_finite"] >= nan.sum()
            fooled = result.outcome == FOOLED
            assert np.isfinite(model(result.images[fooled])).all()
        assert found.union.accuracy <= (~nan).mean()
        assert "with NaN or infinite logits" in str(found)


def test_nan_away_from_the_clean_image_is_neither_robust_nor_fooled(data):
    images, _ = data
    model = classifier(apply=NanWhere(off_grid=True))
    labels = np.asarray(model(images).argmax(-1))
    for only_survivors in (False, True):
        found = robustness(
            model,
            (images, labels),
            {"weak": WEAK, "again": WEAK},
            key=jax.random.key(0),
            only_survivors=only_survivors,
            **OPTIONS,
        )
        assert found.clean.accuracy == 1
        for result in found.outcomes.values():
            assert (result.outcome == NON_FINITE).all()
        assert found.union.accuracy == 0
    assert curve(model, (images, labels), WEAK, [0.01], key=jax.random.key(0), lanes=8, devices=ONE_DEVICE) == [0]


def constant(params, images):
    """The same logits for every image."""
    return jnp.zeros((images.shape[0], 1)) + params[None]


def test_a_constant_model_is_perfectly_robust_on_its_class(data):
    images, labels = data
    model = Classifier(constant, jnp.array([0.0, 3.0, 1.0, 2.0]))
    found = robustness(model, (images, labels), STRONG, key=jax.random.key(0), **OPTIONS)
    assert found.clean == found.union == Proportion.of(labels == 1)
    result = found.outcomes["pgd-linf"]
    np.testing.assert_array_equal(result.images, images)
    assert not (result.outcome == FOOLED).any()
    perfect = robustness(model, (images, np.ones_like(labels)), STRONG, key=jax.random.key(0), **OPTIONS)
    assert perfect.union.accuracy == perfect.union.high == 1
    assert perfect.outcomes["pgd-linf"].counts.needed == len(images) * STRONG.asks


def test_a_success_that_is_not_confirmed_is_said():
    codes = np.array([Code.RAN, Code.DISAGREED, Code.RAN], np.int32)
    found = evaluation({"a": outcome([ROBUST, ROBUST, FOOLED], code=codes)})
    assert found.outcomes["a"].summary()["disagreed"] == 1
    assert "; 1 successes not confirmed" in str(found)


def test_the_table_is_readable(report):
    lines = str(report).splitlines()
    assert lines[0] == "tiny: accuracy in % [95 % interval] on 60 examples"
    assert [line.split()[0] for line in lines[1:]] == ["clean", "weak", "strong", "worst"]
    brackets = {line.index("[") for line in lines[1:]}
    assert len(brackets) == 1
    extremes = str(evaluation({"all": outcome([0, 0, 0]), "none": outcome([1, 1, 1])})).splitlines()[1:]
    assert len({tuple(line.index(mark) for mark in "[,]") for line in extremes}) == 1
    assert f"{100 * report.clean.accuracy:.1f} [" in lines[1]
    assert "gradient ascent in Linf(0.01), 5 steps, cross-entropy, " in lines[2]
    assert max(map(len, lines)) < 120
    assert "worst case" not in str(evaluation({"a": outcome([0, 1])}))


def test_attacks_are_named():
    assert _named(STRONG) == {"pgd-linf": STRONG}
    assert list(_named([STRONG, attacks.fgsm(sets.L2(0.1))])) == ["pgd-linf", "pgd-l2"]
    assert _named({"an attack": STRONG, "another": STRONG}) == {"an attack": STRONG, "another": STRONG}


BAD = {
    "no attacks": ({"attacks": []}, ValueError, "attacks must hold at least one attack; got none"),
    "two of a kind": ({"attacks": [WEAK, STRONG]}, ValueError, "attacks of one kind need names.*'pgd-linf' again"),
    "an empty name": ({"attacks": {"": WEAK}}, ValueError, "attacks must have names that can name a file; got ''"),
    "a name that is a path": ({"attacks": {"../up": WEAK}}, ValueError, "can name a file; got '../up'"),
    "a name of two lines": ({"attacks": {"a\nb": WEAK}}, ValueError, r"can name a file; got 'a\\nb'"),
    "a long name": ({"attacks": {"é" * 101: WEAK}}, ValueError, "names of at most 200 bytes; got 202"),
    "a name of the run's": ({"attacks": {"pictures": WEAK}}, ValueError, "must not be named as a run's own files"),
    "one array": ({"data": np.zeros((2, *SHAPE), np.float32)}, TypeError, "data must be a pair.*ndarray"),
    "three arrays": ({"data": ([], [], [])}, TypeError, "data must be a pair of images and labels; got tuple"),
    "an image alone": ({"data": (np.zeros(SHAPE, np.float32), np.zeros(1, int))}, ValueError, r"\(N, H, W, C\)"),
    "no images": ({"data": (np.zeros((0, *SHAPE), np.float32), np.zeros(0, int))}, ValueError, "at least one image"),
    "bytes": ({"data": (np.zeros((9, *SHAPE), np.uint8), np.zeros(9, int))}, TypeError, "dtype uint8 .divide by 255"),
    "values": ({"data": (np.full((9, *SHAPE), 2.0, np.float32), np.zeros(9, int))}, ValueError, r"lie in \[0, 1\].*2"),
    "float labels": ({"data": (np.zeros((9, *SHAPE), np.float32), np.zeros(9))}, TypeError, "labels must be.*integers"),
    "labels": (
        {"data": (np.zeros((9, *SHAPE), np.float32), np.full(9, 4))},
        ValueError,
        r"labels must lie in \[0, 4\)",
    ),
    "a negative radius": ({"attacks": WEAK.with_radius(jnp.asarray(-1.0))}, ValueError, "radius must be.*-1"),
    "no lanes": ({"lanes": 0}, ValueError, "lanes must be >= 1; got 0"),
    "no devices": ({"devices": []}, ValueError, "devices must hold at least one device"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_compute(name):
    changes, error, message = BAD[name]
    counting = Counting()
    good = {"data": (np.full((9, *SHAPE), 0.5, np.float32), np.zeros(9, int)), "attacks": {"weak": WEAK}}
    with pytest.raises(error, match=message):
        robustness(classifier(apply=counting), **(good | changes), key=jax.random.key(0), progress=False)
    assert counting.runs == 0


@pytest.mark.parametrize(
    ("attacked", "message"),
    [
        ([sets.Linf(0.1)], r"attacks\[0\] must be an Attack; got Linf"),
        ({"pgd": "pgd"}, r"attacks\['pgd'\] must be an Attack; got 'pgd'"),
        ("pgd", "attacks must be an attack, a list of them or a dictionary from names; got 'pgd'"),
        (attacks.pgd, "attacks must be an attack, a list of them"),
    ],
)
def test_what_annotations_exclude_is_refused_without_their_checker_too(attacked, message):
    named = inspect.unwrap(_named)
    with pytest.raises(TypeError, match=message):
        named(attacked)


def test_one_bad_attack_of_two_is_refused_before_any_runs(data, tmp_path):
    bad = STRONG.with_radius(jnp.asarray(jnp.nan))
    with pytest.raises(ValueError, match="radius"):
        robustness(classifier(), data, {"a": WEAK, "b": bad}, key=jax.random.key(0), save_dir=tmp_path, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_string_is_no_list_of_names():
    with pytest.raises(TypeError, match="trained_on"):
        robustness(classifier(), examples(9), WEAK, key=jax.random.key(0), trained_on="weak", progress=False)


@pytest.fixture(scope="module")
def plane():
    """A linear model of two classes, grey images far from black and white, and their margins by hand."""
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(int(np.prod(SHAPE)), 2)).astype(np.float32)
    images = (0.5 + 0.1 * rng.normal(size=(40, *SHAPE))).clip(0.25, 0.75).astype(np.float32)
    model = Classifier(linear, (jnp.asarray(weights), jnp.zeros(2)))
    labels = np.array(model(images).argmax(-1))
    labels[:3] = 1 - labels[:3]
    normal = weights[:, 1] - weights[:, 0]
    margins = (images.reshape(40, -1) @ normal) * np.where(labels == 1, 1, -1)
    return model, (images, labels), margins, np.abs(normal).sum()


def test_curve_of_a_linear_model_in_closed_form(plane):
    model, data, margins, norm = plane
    radii = [0.0, 0.01, 0.03, 0.06, 0.1, 0.2]
    options = {"key": jax.random.key(0), "lanes": 8, "devices": ONE_DEVICE}
    found = curve(model, data, attacks.fgsm(sets.Linf(0.5)), radii, **options)
    expected = [(margins > radius * norm).mean() for radius in radii]
    gaps = np.abs(margins[None] - np.array(radii)[1:, None] * norm)
    assert gaps.min() > 1e-3, "an example lies too near to a radius for float32"
    np.testing.assert_array_equal(found, expected)
    assert found[0] == 37 / 40
    assert (np.diff(found) <= 0).all()
    assert found[-1] < 0.1


def test_a_minimum_norm_attack_gives_the_whole_curve_in_one_run(plane):
    """DeepFool goes 1.02 times as far as it must; errors lie at 0, and what withstands it at infinity."""
    model, data, margins, norm = plane
    found = robustness(model, data, attacks.deepfool(sets.Linf(0.15)), key=jax.random.key(0), **OPTIONS)
    (outcome,) = found.outcomes.values()
    distances = 1.02 * np.maximum(margins, 0) / norm
    expected = np.where(distances <= 0.15, distances, np.inf)
    np.testing.assert_allclose(outcome.distances, expected, rtol=1e-3)
    np.testing.assert_allclose(outcome.median_distance, np.median(expected), rtol=1e-3)
    radii = [0.0, 0.01, 0.03, 0.06, 0.1]
    np.testing.assert_array_equal(outcome.curve(radii), [(expected > radius).mean() for radius in radii])
    with pytest.raises(ValueError, match="radii must be finite and >= 0; got -1"):
        outcome.curve([-1])


def test_minimum_norm_attacks_go_on_after_the_first_success(plane):
    model, data, *_ = plane
    attack, key = attacks.minimal(attacks.fgsm(sets.Linf(0.5)), steps=4), jax.random.key(0)
    found = [
        robustness(model, data, {"fgsm": attack}, key=key, early_stop=stop, **OPTIONS).outcomes["fgsm"]
        for stop in (None, False, True)
    ]
    np.testing.assert_array_equal(found[0].size, found[1].size)
    assert found[0].median_distance < 0.5 * found[2].median_distance
    survivors = robustness(model, data, {"fgsm": attack}, key=key, only_survivors=True, **OPTIONS)
    np.testing.assert_array_equal(survivors.outcomes["fgsm"].size, found[2].size)
    assert f"median distance {found[0].median_distance:.4g}" in str(robustness(model, data, attack, key=key, **OPTIONS))


def test_nan_logits_are_no_distance_away():
    found = outcome([ROBUST, FOOLED, CLEAN_ERROR, NON_FINITE])
    np.testing.assert_array_equal(found.distances, [np.inf, 0.01, 0, 0])


def test_curve_compiles_one_program_for_all_radii(plane):
    model, data, *_ = plane
    traces = []

    def counting(params, images):
        traces.append(images.shape)
        return linear(params, images)

    model = Classifier(counting, model.params)
    options = {"key": jax.random.key(0), "lanes": 8, "devices": ONE_DEVICE}
    curve(model, data, attacks.fgsm(sets.Linf(0.5)), [0.05], **options)
    before = len(traces)
    assert before > 0
    curve(model, data, attacks.fgsm(sets.Linf(0.5)), [0.0, 0.01, 0.1, 0.25], **options)
    assert len(traces) == before


def test_curve_agrees_with_robustness(report, data):
    found = curve(classifier(), data, WEAK, [0.0, 0.01, 0.03], key=jax.random.key(5), lanes=8, devices=ONE_DEVICE)
    assert found[0] == report.clean.accuracy
    assert found[1] == report.accuracy("weak").accuracy
    assert found[2] <= found[1]


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ([], "radii must hold at least one radius; got none"),
        ([0.1, -0.1], "radii must be finite and >= 0; got -0.1"),
        ([0.1, float("nan")], "radii must be finite.*nan"),
        ([float("inf")], "radii must be finite.*inf"),
    ],
)
def test_bad_radii_are_refused_before_compute(radii, message):
    counting = Counting()
    with pytest.raises(ValueError, match=message):
        curve(classifier(apply=counting), examples(9), WEAK, radii, key=jax.random.key(0))
    assert counting.runs == 0


def test_curve_checks_its_data_before_compute():
    counting = Counting()
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        curve(classifier(apply=counting), (np.zeros(SHAPE, np.float32), [0]), WEAK, [0.1], key=jax.random.key(0))
    assert counting.runs == 0


@pytree("radius")
class Boundless(sets.Linf):
    """A user's set that forgets to project."""

    radius: float

    def project(self, x, theta):
        return jnp.clip(x + theta, 0, 1) - x


@pytest.mark.parametrize("early_stop", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_its_set_does_not_contain_is_no_success(early_stop, data):
    images, labels = (values[:20] for values in data)
    attack = attacks.bim(Boundless(0.01), steps=5, step_size=0.1)
    options = {"key": jax.random.key(0), "early_stop": early_stop}
    found = attacks.run(attack, classifier(), images, labels, **options)
    in_lanes = run_lanes(attack, classifier(), images, labels, lanes=8, devices=ONE_DEVICE, **options).result
    for result in (found, in_lanes):
        far = np.asarray(result.size) > 0.05
        assert far.sum() > 5
        assert not np.asarray(result.success)[far].any()
        outside = np.asarray(result.code) == Code.OUTSIDE
        np.testing.assert_array_equal(outside, far)
    report = robustness(classifier(), (images, labels), attack, **options, **OPTIONS)
    assert f"; {outside.sum()} successes outside of the set" in str(report)
    assert report.outcomes["pgd-boundless"].summary()["outside"] == outside.sum()


@pytest.mark.parametrize("of_an_object", [False, True])
def test_a_model_is_let_go_with_the_weights_it_closes_over(of_an_object, data):
    class Network:
        def __init__(self, weights):
            self.weights = weights

        def __call__(self, images):
            return images.reshape(len(images), -1) @ self.weights

        logits = __call__

    def made():
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(int(np.prod(SHAPE)), 4)), jnp.float32)
        function = Network(weights).logits if of_an_object else lambda x: x.reshape(len(x), -1) @ weights
        return Classifier.from_function(function), weakref.ref(weights)

    model, weights = made()
    images = data[0][:4]
    labels = np.asarray(model(images)).argmax(-1)
    attack = attacks.bim(sets.Linf(0.01), steps=2)
    robustness(model, (images, labels), attack, key=jax.random.key(0), **OPTIONS)
    attacks.run(attack, model, images, labels, key=jax.random.key(0))
    assert weights() is not None
    del model
    gc.collect()
    assert weights() is None


@pytest.mark.slow
def test_memory_is_the_data_and_one_array_of_images_an_attack():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(160, 64, 64, 3)).astype(np.float32)
    model = Classifier(linear, (jnp.asarray(rng.normal(size=(64 * 64 * 3, 4)), jnp.float32) / 30, jnp.zeros(4)))
    labels = np.asarray(model(images)).argmax(-1)
    attack = attacks.fgsm(sets.Linf(1e-4))
    options = {"key": jax.random.key(0), **OPTIONS, "lanes": 16}
    robustness(model, (images, labels), attack, **options)
    gc.collect()
    tracemalloc.start()
    try:
        found = robustness(model, (images, labels), {"one": attack, "two": attack}, **options)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.images is images
    assert kept < 2.1 * images.nbytes
    assert peak < 2.3 * images.nbytes


KEY = jax.random.key(3)
GOALS = {
    "given targets": lambda y: Targeted((y + 1) % 4, y),
    "top-2 errors": lambda y: TopK(y, 2),
    "errors with confidence 0.6": lambda y: Confident(Misclassified(y), 0.6),
}


@pytest.mark.parametrize("told", GOALS)
def test_a_criterion_stands_in_the_place_of_labels(told, tmp_path):
    model = classifier()
    images, labels = examples(12, wrong=3)
    goal = GOALS[told](labels)
    found = robustness(model, (images, goal), attacks.pgd(sets.Linf(0.1), steps=3), key=KEY, **OPTIONS)
    (name,) = found
    key = jax.random.fold_in(KEY, binascii.crc32(name.encode()))
    at_once = attacks.run(found[name].attack, model, images, goal, key=key, early_stop=True)
    met = np.asarray(jax.vmap(lambda goal, z: goal.met(z))(_inputs.criterion(goal, images), model(images)))
    np.testing.assert_array_equal(found.robust("clean"), ~met)
    np.testing.assert_array_equal(found[name].outcome, np.select([met, at_once.success], [CLEAN_ERROR, FOOLED], ROBUST))
    np.testing.assert_array_equal(found.labels, labels)
    assert told in str(found)
    assert found.to_dict()["notes"] == {"criterion": told}
    assert curve(model, (images, goal), found[name].attack, [0.0], key=KEY) == [found.clean.accuracy]
    plain = robustness(model, (images, labels), found[name].attack, key=KEY, **OPTIONS)
    with pytest.raises(ValueError, match="the same examples and criterion"):
        mcnemar(found, plain)


def test_a_criterion_without_labels_is_refused():
    images, labels = examples(4)
    with pytest.raises(ValueError, match=r"true labels.*got Targeted without"):
        robustness(classifier(), (images, Targeted(labels)), attacks.fgsm(sets.Linf(0.1)), key=KEY)
