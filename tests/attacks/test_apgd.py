"""APGD: parity with the authors' code, its schedules, and what it must reach."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.compose.runs import apgd_t
from jaxrobust.attacks.core import engine
from jaxrobust.attacks.gradient.apgd import SparseAPGD, apgd, checkpoints
from jaxrobust.types import Classifier, Misclassified, Targeted
from tests import tiny

KEY = jax.random.key(3)
FIXTURES = Path(__file__).parents[1] / "fixtures"
SETS = {"Linf": sets.Linf, "L2": sets.L2, "L1": sets.L1}


@functools.partial(jax.jit, static_argnames="asks")
def followed(attack, model, images, goal, starts, asks):
    """The states (asks + 1, N, …) of a run before each ask and after the last, from starts of its own or given ones."""
    keys = engine.example_keys(KEY, jnp.arange(len(images)))
    states = engine.begin(attack, images, goal, keys, model(images), 0)
    if starts is not None:
        inner, searching = getattr(states, "inner", states), getattr(attack, "attack", attack)
        inner = dataclasses.replace(inner, theta=starts, memory=jax.vmap(searching._memory)(images, starts))
        states = dataclasses.replace(states, inner=inner) if hasattr(states, "inner") else inner
    last, history = lax.scan(lambda s, _: (engine.advance(attack, model, s, stop="never"), s), states, length=asks)
    joined = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), history, last)
    return getattr(joined, "inner", joined)


def history_of(attack, model, images, labels, starts=None):
    goal = Misclassified(jnp.asarray(labels))
    return jax.tree.map(np.asarray, followed(attack, model, jnp.asarray(images), goal, starts, attack.asks))


def net(params, images):
    """The fixture's network, its logits scaled and shifted."""
    logits = jax.nn.silu((images.reshape(images.shape[0], -1) - 0.5) @ params["hidden"]) @ params["out"]
    return params["scale"] * logits + params["shift"]


@functools.cache
def fixture():
    with np.load(FIXTURES / "apgd.npz") as file:
        return dict(file)


OPTIONS = {
    "ce": {},
    "dlr": {"loss": "dlr"},
    "dlr-targeted": {"targets": 1},
    "ce_large": {"large_radii": True},
}
CASES = [(norm, loss) for norm in SETS for loss in ("ce", "dlr", "dlr-targeted")] + [("L1", "ce_large")]
# in the default run
FEW = {("Linf", "ce"), ("Linf", "dlr-targeted"), ("L2", "dlr"), ("L1", "ce_large")}
CASES = [pytest.param(*case, marks=[] if case in FEW else [pytest.mark.slow]) for case in CASES]


@functools.cache
def case(norm, loss, scale=1.0, shift=0.0):
    """20 steps of ours from the start of theirs, on the fixture's network in float64: the attack and its states."""
    found = fixture()
    with jax.enable_x64(True):
        make = apgd_t if loss == "dlr-targeted" else apgd
        attack = make(SETS[norm](found[f"radius_{norm}"]), steps=20, **OPTIONS[loss])
        params = {
            "hidden": found["hidden"],
            "out": found["out"],
            "scale": np.float64(scale),
            "shift": np.float64(shift),
        }
        starts = found[f"{norm}_{loss}"][0] - found["images"]
        starts = np.where(np.abs(starts) < 1e-12, 0, starts)  # what was 0 before the image was added
        model = Classifier(net, jax.tree.map(jnp.asarray, params))
        return attack, history_of(attack, model, found["images"], found["labels"], jnp.asarray(starts))


@pytest.mark.parametrize(("norm", "loss"), CASES)
def test_iterates_are_those_of_the_authors_code(norm, loss):
    """In float64, from one start; three defects of their code are mended on their side, see the script."""
    points, images = fixture()[f"{norm}_{loss}"], fixture()["images"]
    asked = images[None] + case(norm, loss)[1].theta[:-1]
    assert points.shape == asked.shape
    assert asked.dtype == np.float64
    moves = np.abs(np.diff(points, axis=0)).max((2, 3, 4))
    assert np.mean(moves > 1e-4) > 0.5  # equality of what rests would say little
    np.testing.assert_allclose(asked, points, atol=1e-8, rtol=0)


def test_the_first_check_is_where_the_released_code_differs():
    """It reads an unwritten zero in place of the loss at the start: harmless above 0, but DLR starts below."""
    assert not fixture()["differs_L2_ce"].any()
    assert fixture()["differs_L2_dlr"].all()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, (22, 41, 57, 70, 80, 87, 93, 99)),
        (50, (11, 21, 30, 38, 45)),
        (20, (4, 7, *range(9, 21))),
        (1, (1,)),
    ],
)
def test_checkpoints(steps, expected):
    assert checkpoints(steps) == expected


def test_a_constant_loss_halves_the_step_at_every_check():
    _, states = case("Linf", "ce", scale=0.0)
    sizes = states.memory.step_size[1:]  # after each ask, the start's the first
    halvings = np.searchsorted(checkpoints(20), np.arange(21), side="right")
    np.testing.assert_allclose(sizes, np.repeat(0.4 * 0.5 ** halvings[:, None], 3, 1), rtol=1e-6)


def test_l1_steps_shrink_to_a_tenth_of_the_radius_or_start_afresh():
    attack, states = case("L1", "ce_large")
    radius, memory = float(attack.set.radius), jax.tree.map(lambda leaf: leaf[15:], states.memory)  # the last stage
    sizes, changed = memory.step_size, memory.changed
    fresh = 20 * changed[1:] < 19 * changed[:-1]
    assert fresh.any()
    assert (~fresh).any()
    expected = np.where(fresh, radius, np.maximum(sizes[:-1] / 1.5, radius / 10))
    np.testing.assert_allclose(sizes[1:], expected, rtol=1e-12)
    np.testing.assert_array_equal(changed[1:], (memory.peak.theta[1:] != 0).sum((2, 3, 4)))
    np.testing.assert_array_equal(memory.moved[1:], np.maximum(np.ceil(changed[1:] / 1.5), 1))


@pytest.mark.parametrize(("norm", "loss"), [case for case in CASES if "ce_large" not in case.values])
def test_the_peak_never_sinks_and_all_iterates_are_members(norm, loss):
    attack, states = case(norm, loss)
    peaks = states.memory.peak.loss[1:]
    np.testing.assert_array_equal(peaks, np.maximum.accumulate(states.loss[1:]))
    assert (peaks[-1] > peaks[0]).all()
    images, theta = fixture()["images"], states.theta
    size = {"Linf": np.abs(theta).max((2, 3, 4)), "L2": np.sqrt((theta**2).sum((2, 3, 4)))}
    size["L1"] = np.abs(theta).sum((2, 3, 4))
    assert (size[norm] <= float(attack.set.radius) + 1e-12).all()
    assert (images + theta >= -1e-12).all()
    assert (images + theta <= 1 + 1e-12).all()


def test_large_radii_come_first_and_only_members_are_booked():
    attack, states = case("L1", "ce_large")
    radius, images, theta = float(attack.set.radius), fixture()["images"], states.theta
    assert attack.asks == 23
    sizes = np.abs(theta[:-1]).sum((2, 3, 4))
    for scale, stage in [(3, slice(0, 7)), (2, slice(7, 14)), (1, slice(14, 23))]:
        assert (sizes[stage] <= scale * radius + 1e-12).all()
        assert sizes[stage].max() > 0.99 * scale * radius
    assert (np.abs(states.best_theta).sum((2, 3, 4)) <= radius + 1e-5).all()
    assert (states.best_loss[-1] > states.best_loss[0]).all()
    # a stage starts from the projection of the best point before it
    with jax.enable_x64(True):
        project = jax.jit(jax.vmap(attack.set.project))
        np.testing.assert_allclose(theta[14], project(images, states.memory.peak.theta[14]), atol=1e-12, rtol=0)


def test_dlr_does_not_see_scale_and_shift():
    plain, other = (case("L2", "dlr", **change)[1].theta for change in ({}, {"scale": 7.0, "shift": -3.0}))
    np.testing.assert_allclose(plain, other, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    "name", ["Linf", pytest.param("L2", marks=pytest.mark.slow), pytest.param("L1", marks=pytest.mark.slow)]
)
def test_a_linear_model_is_raised_by_radius_times_dual_norm(rng, name):
    model = tiny.linear_classifier(rng, classes=2)
    images = rng.uniform(0.4, 0.6, (4, *tiny.SHAPE)).astype(np.float32)
    labels = np.asarray(model(images).argmax(-1)).astype(np.int32)
    clean = np.asarray(model(images))
    margins = clean[np.arange(4), 1 - labels] - clean[np.arange(4), labels]
    gap = np.asarray(model.params[0][:, 0] - model.params[0][:, 1], np.float64)
    radius = {"Linf": 0.1, "L2": 0.4, "L1": 0.35}[name]
    dual = {"Linf": np.abs(gap).sum(), "L2": np.linalg.norm(gap), "L1": np.abs(gap).max()}[name]
    found = attacks.run(apgd(SETS[name](radius), steps=50, loss="margin"), model, images, labels, key=KEY)
    gained = (np.asarray(found.loss) - margins) / (radius * dual)
    assert (gained < 1 + 1e-4).all()
    # in l1 the search may come to rest with two entries changed, since steps then move ⌈2/1.5⌉ = 2
    assert (gained > (0.75 if name == "L1" else 0.999)).all()


@pytest.mark.slow
def test_no_weaker_than_pgd_of_equal_budget():
    """Robust accuracy, on at least 95 % of the seeds, and lower in the mean."""
    ours, theirs = [], []
    pairs = [(apgd(sets.Linf(0.02), steps=20), ours), (attacks.pgd(sets.Linf(0.02), steps=20), theirs)]
    for seed in range(20):
        model = tiny.dense_classifier(seed)
        images, labels = tiny.images_and_labels(model, 64, seed)
        for attack, rates in pairs:
            result = attacks.run(attack, model, images, labels, key=jax.random.key(seed), check=False)
            rates.append(1 - np.asarray(result.success).mean())
    assert 0.02 < np.mean(theirs) < 0.98  # or there is nothing to compare
    assert np.mean(np.asarray(ours) <= np.asarray(theirs)) >= 0.95
    assert np.mean(ours) <= np.mean(theirs)


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_targets_that_do_not_exist_cost_nothing_and_are_never_booked(classes):
    model = tiny.dense_classifier(classes=classes)
    images, labels = tiny.images_and_labels(model, 4)
    attack = apgd_t(sets.Linf(0.005), steps=4, targets=9)
    found = attacks.run(attack, model, images, labels, key=KEY)
    np.testing.assert_array_equal(found.forwards[:-1], 1 + (classes - 1) * 5)
    np.testing.assert_array_equal(found.backwards[:-1], (classes - 1) * 4)
    robust = ~np.asarray(found.success)
    assert robust.any()
    assert (np.asarray(found.size)[robust] > 0).any()
    assert np.isfinite(found.loss).all()


def test_each_run_aims_at_the_next_class_of_the_clean_logits():
    logits = jnp.asarray([0.0, 3.0, 1.0, 2.0])
    x, goal = jnp.full(tiny.SHAPE, 0.5), Misclassified(jnp.asarray(1))
    attack = apgd_t(sets.Linf(0.1), targets=4, restarts=2)
    assert attack.restarts == 8

    @jax.jit
    @jax.vmap
    def begun(run):
        state = attack.begin(KEY, x, goal, logits, run)
        return state.inner.aim.target

    assert attack.runs(4) == 6
    np.testing.assert_array_equal(begun(jnp.arange(6)), [3, 3, 2, 2, 0, 0])


@pytest.mark.parametrize("loss", [pytest.param("cross_entropy", marks=pytest.mark.slow), "dlr"])
def test_a_targeted_criterion(loss):
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model)
    targets = ((labels + 1) % tiny.CLASSES).astype(np.int32)
    goal = Targeted(jnp.asarray(targets), jnp.asarray(labels))
    found = attacks.run(apgd(sets.L2(2.0), steps=20, loss=loss), model, images, goal, key=KEY)
    np.testing.assert_array_equal(np.asarray(model(found.images).argmax(-1)) == targets, found.success)
    assert np.asarray(found.success)[:-1].mean() > 0.7
    with pytest.raises(ValueError, match="must have no target for targeted_each, which chooses it; got Targeted"):
        attacks.run(apgd_t(sets.L2(2.0)), model, images, goal, key=KEY)


@pytest.mark.slow
def test_the_lanes_find_the_same():
    """Runs that end at once, and examples that end at different runs, are no trouble to them."""
    model = tiny.dense_classifier()
    images, labels = tiny.images_and_labels(model, 16)
    attack = apgd_t(sets.Linf(0.03), steps=5, targets=5)
    together = attacks.run(attack, model, images, labels, key=KEY, early_stop=True)
    found = evaluate.run_lanes(attack, model, images, labels, key=KEY, lanes=8).result
    np.testing.assert_array_equal(found.success, together.success)
    np.testing.assert_array_equal(found.forwards, together.forwards)
    assert len(np.unique(found.forwards)) >= 3


@pytest.mark.parametrize(
    ("error", "words", "make"),
    [
        (TypeError, "set must be Linf, L2 or L1", lambda: apgd(sets.L0(3))),
        (ValueError, "steps must be >= 1; got 0", lambda: apgd(sets.Linf(0.1), steps=0)),
        (ValueError, "restarts must be >= 1; got 0", lambda: apgd(sets.Linf(0.1), restarts=0)),
        (ValueError, "targets must be >= 1; got 0", lambda: apgd_t(sets.Linf(0.1), targets=0)),
        (ValueError, "rho must be finite and in", lambda: apgd(sets.Linf(0.1), rho=1.5)),
        (ValueError, "loss must be one of", lambda: apgd(sets.Linf(0.1), loss="hinge")),
        (ValueError, "large_radii must be False unless", lambda: apgd(sets.Linf(0.1), large_radii=True)),
        (ValueError, "steps with large_radii must be >= 3", lambda: apgd(sets.L1(3.0), steps=2, large_radii=True)),
    ],
)
def test_errors_at_the_door(error, words, make):
    with pytest.raises(error, match=words):
        make()


def test_text():
    assert str(apgd(sets.Linf(0.5))) == "APGD in Linf(0.5), 100 steps, random start, cross-entropy"
    targeted = "APGD in L2(0.5), 100 steps, random start, 2 restarts, dlr, at 9 targets"
    assert str(apgd_t(sets.L2(0.5), restarts=2)) == targeted
    assert isinstance(apgd(sets.L1(3.0)), SparseAPGD)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_apgd_t_of_three_classes_leaves_no_more_than_pgd_towards_each(seed):
    """A targeted DLR that is a ratio of differences has no gradient towards the last of three classes."""
    model = tiny.dense_classifier(seed, classes=3)
    images, labels = tiny.images_and_labels(model, 24, seed)
    each = attacks.targeted_each(attacks.pgd(sets.Linf(0.08), steps=5), targets=2)
    ours = attacks.run(apgd_t(sets.Linf(0.08), steps=5, targets=2), model, images, labels, key=KEY)
    theirs = attacks.run(each, model, images, labels, key=KEY)
    assert np.asarray(theirs.success).mean() > 0.2
    assert np.asarray(ours.success).sum() >= np.asarray(theirs.success).sum()


def test_from_the_image_itself_and_sparse_at_first():
    """On a linear model the first step of E-AT's l1 attack moves one entry in twenty, from x."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(36, 2)), jnp.float32)
    model = Classifier(lambda w, images: images.reshape(len(images), -1) @ w, weights)
    images, labels = jnp.full((2, 6, 6, 1), 0.5), np.array([0, 1])
    attack = apgd(sets.L1(0.5), steps=2, random_start=False, sparsity=0.05)
    first, second = history_of(attack, model, images, labels).theta[:2]
    assert not first.any()
    assert (np.count_nonzero(second.reshape(2, -1), axis=1) == 2).all()
    assert str(apgd(sets.Linf(0.1), steps=3, random_start=False)) == "APGD in Linf(0.1), 3 steps, cross-entropy"
    with pytest.raises(ValueError, match="sparsity must be > 0"):
        apgd(sets.L1(1.0), sparsity=0.0)
    with pytest.raises(ValueError, match="restarts must be 1 without a random start"):
        apgd(sets.Linf(0.1), restarts=2, random_start=False)
