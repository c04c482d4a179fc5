"""The lanes give what `attacks.run` gives, whatever is beside an example, and compile once."""

import collections
import functools

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import _compile, _inputs, attacks, sets
from jaxrobust.evaluate import LaneCounts, door, lanes, predict, robustness, run_lanes
from jaxrobust.evaluate._programs import fitting
from jaxrobust.types import Classifier, Code, Misclassified, Targeted
from tests import tiny
from tests.evaluate.models import ONE_DEVICE, Counting, NanWhere, assert_equal_results, classifier, examples, network
from tests.tiny import CLASSES, SHAPE, conv_classifier, images_and_labels

COUNT = 21
PGD = attacks.pgd(sets.Linf(0.1), steps=4, restarts=2)
compiled = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(lambda name, _, **__: compiled.update([name]))


def compilations():
    return compiled["/jax/core/compile/backend_compile_duration"]


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def data():
    images, labels = examples(COUNT, wrong=4)
    return images, labels, np.random.default_rng(5).permutation(100)[:COUNT]


@pytest.fixture(scope="module")
def reference(model, data):
    """`attacks.run` on all examples, by whether it stops early."""
    images, labels, indices = data

    @functools.cache
    def run(early_stop):
        key = jax.random.key(0)
        return attacks.run(PGD, model, images, labels, key=key, indices=indices, early_stop=early_stop)

    return run


LINF = [name for name, entry in attacks.REGISTRY.items() if entry.on == "linf"]


@pytest.mark.parametrize(
    ("name", "early_stop"),
    [pytest.param(name, True, marks=() if name == "mi_fgsm" else pytest.mark.slow) for name in LINF]
    + [pytest.param(name, False, marks=pytest.mark.slow) for name in ("apgd_t", "fab", "pgd", "square")],
)
def test_equals_run_for_every_attack(name, early_stop, model, data, key):
    images, labels, indices = data
    entry = attacks.REGISTRY[name]
    attack, model = entry(sets.Linf(0.03)), entry.model(model)
    options = {"key": key, "indices": indices, "early_stop": early_stop}
    found = run_lanes(attack, model, images, labels, lanes=8, **options)
    assert_equal_results(found.result, attacks.run(attack, model, images, labels, **options))
    assert 4 <= found.result.success.sum() <= COUNT
    assert (found.result.code[-4:] == Code.ALREADY).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow", "l1", "one_of", "sequence", "wasserstein"])
@pytest.mark.parametrize("early_stop", [False, True])
def test_equals_run_for_every_kind_of_set(name, early_stop, model, data, key):
    images, labels, indices = data
    attack = attacks.pgd(sets.REGISTRY[name](), steps=5)
    options = {"key": key, "indices": indices, "early_stop": early_stop}
    found = run_lanes(attack, model, images, labels, lanes=8, **options)
    expected = attacks.run(attack, model, images, labels, **options)
    # the projection's last round leaves 1e-4 of every step, and where in that it ends is decided by rounding
    assert_equal_results(found.result, expected, atol=5e-4 if name == "wasserstein" else 2e-6)


@pytest.mark.parametrize(
    ("width", "early_stop"),
    [(8, False), pytest.param(8, True, marks=pytest.mark.slow)]
    + [pytest.param(w, s, marks=pytest.mark.slow) for w in (1, 3, 64) for s in (True, False)],
)
def test_equals_run_for_every_width(width, early_stop, model, data, reference, key):
    images, labels, indices = data
    options = {"key": key, "indices": indices, "early_stop": early_stop, "lanes": width, "devices": ONE_DEVICE}
    found = run_lanes(PGD, model, images, labels, **options)
    assert_equal_results(found.result, reference(early_stop))
    assert found.counts.executed >= found.counts.needed > 0
    assert found.counts.executed % fitting(COUNT, width, restarts=PGD.restarts) == 0
    assert found.counts.needed == (found.result.forwards - 1).sum()
    if width == 1:
        assert found.counts.executed == found.counts.needed


@pytest.mark.slow
@pytest.mark.parametrize("early_stop", [True, False])
def test_equals_run_for_convolutions(early_stop, key):
    model = conv_classifier()
    images, labels = images_and_labels(model, COUNT)
    options = {"key": key, "early_stop": early_stop}
    found = run_lanes(PGD, model, images, labels, lanes=8, **options)
    assert_equal_results(found.result, attacks.run(PGD, model, images, labels, **options))


def test_equals_run_for_targets(model, data, key):
    images, labels, indices = data
    goal = Targeted((labels + 2) % CLASSES, labels)
    options = {"key": key, "indices": indices, "early_stop": True}
    attack = attacks.bim(sets.Linf(0.1), steps=8, step_size=0.04)
    found = run_lanes(attack, model, images, goal, lanes=8, devices=ONE_DEVICE, **options)
    expected = attacks.run(attack, model, images, goal, **options)
    assert_equal_results(found.result, expected)
    assert 0 < found.result.success.sum() < COUNT
    reached = predict(model, found.result.images).argmax(-1) == goal.target
    np.testing.assert_array_equal(found.result.success, reached)


def test_a_criterion_is_as_good_as_labels(model, data, reference, key):
    images, labels, indices = data
    options = {"key": key, "indices": indices, "lanes": 8, "devices": ONE_DEVICE, "early_stop": False}
    found = run_lanes(PGD, model, images, Misclassified(labels), **options)
    assert_equal_results(found.result, reference(False))


def test_neither_batch_mates_nor_order_nor_devices_matter(model, data, reference, key):
    images, labels, indices = data
    expected = reference(False)
    for rows, devices in (([3], ONE_DEVICE), ([20, 3, 7], None), (np.arange(COUNT)[::-1], None)):
        options = {"key": key, "indices": indices[rows], "lanes": 8, "devices": devices, "early_stop": False}
        found = run_lanes(PGD, model, images[rows], labels[rows], **options)
        assert_equal_results(found.result, expected, rows)


def test_results_are_bit_equal_on_one_and_four_devices(model, data, key):
    images, labels, indices = data
    options = {"key": key, "indices": indices, "lanes": 8, "early_stop": False}
    one, four = (run_lanes(PGD, model, images, labels, devices=d, **options) for d in (ONE_DEVICE, jax.local_devices()))
    assert one.counts.executed == four.counts.executed
    np.testing.assert_array_equal(one.result.images, four.result.images)
    np.testing.assert_array_equal(one.result.success, four.result.success)


def test_lanes_are_rounded_up_to_the_devices(model, data, key):
    images, labels, _ = data
    found = run_lanes(PGD, model, images, labels, key=key, lanes=5, early_stop=False)
    assert found.counts.executed % 8 == 0


def test_other_keys_and_indices_give_other_points(model, data, key):
    images, labels, indices = data
    options = {"lanes": 8, "devices": ONE_DEVICE, "early_stop": False}
    first = run_lanes(PGD, model, images, labels, key=key, indices=indices, **options).result
    for changed in ({"key": jax.random.key(1), "indices": indices}, {"key": key, "indices": indices + 1}):
        other = run_lanes(PGD, model, images, labels, **changed, **options).result
        assert np.abs(other.loss - first.loss)[:-4].max() > 1e-6


def test_refilling_spares_steps(model, data, key):
    """A tenth of the examples keeps its lanes for the whole budget; the others leave theirs to those that wait."""
    images, labels = examples(200, wrong=1)
    attack = attacks.pgd(sets.Linf(0.05), steps=4, restarts=2)
    stopped = run_lanes(attack, model, images, labels, key=key, lanes=8, devices=ONE_DEVICE)
    full = run_lanes(attack, model, images, labels, key=key, lanes=8, devices=ONE_DEVICE, early_stop=False)
    np.testing.assert_array_equal(stopped.result.success, full.result.success)
    assert full.counts.needed == 199 * 2 * attack.asks
    assert full.counts.executed <= full.counts.needed + 8 * attack.asks
    assert stopped.counts.needed < 0.6 * full.counts.needed
    assert stopped.counts.executed < 1.25 * stopped.counts.needed


def test_steps_needed_are_asks_of_whatever_width(model, data, key):
    """A step of five points in asks of three."""
    images, labels, _ = data
    options = {"key": key, "lanes": 1, "devices": ONE_DEVICE, "early_stop": False}
    attack = attacks.nes(sets.Linf(0.05), steps=2, samples=4, chunk=3)
    counts = run_lanes(attack, model, images[:3], labels[:3], **options).counts
    assert counts.needed == counts.executed == 3 * attack.asks == 15


@pytest.mark.slow
def test_steps_needed_are_those_of_a_walk_that_ends_early(model, data, key):
    images, labels, _ = data
    options = {"key": key, "lanes": 1, "devices": ONE_DEVICE, "early_stop": False}
    walk = attacks.hop_skip_jump(sets.L2(0.3), iterations=1, queries=30, chunk=5, samples=5)
    found = run_lanes(walk, model, images[:3], labels[:3], **options)
    assert found.counts.needed == found.counts.executed
    assert (found.result.forwards - 1).sum() / walk.width < found.counts.needed < (found.result.forwards - 1).sum()


@pytest.mark.slow
def test_no_gradients_are_pulled_for_asks_that_only_book(model, data, key, monkeypatch):
    images, labels, _ = data
    pulled, original = [], lanes.programs

    def spied(*arguments):
        made = original(*arguments)

        def step(*args, gradient, **options):
            pulled.append(gradient)
            return made.step(*args, gradient=gradient, **options)

        return made._replace(step=step)

    monkeypatch.setattr(lanes, "programs", spied)
    entry = attacks.REGISTRY["eot"]
    attack = entry(sets.Linf(0.05))
    run_lanes(attack, entry.model(model), images[:3], labels[:3], key=key, lanes=3, devices=ONE_DEVICE)
    assert pulled == [True] * 3 + [False] * 2
    assert attack.gradients == 2 * 3


def test_a_change_of_numbers_compiles_nothing(data, key):
    images, labels, indices = data
    counting = Counting()
    options = {"lanes": 8, "devices": ONE_DEVICE, "indices": indices}

    def attack(radius=0.1, step=0.5):
        return attacks.pgd(sets.Linf(radius), steps=4, relative_step_size=step, restarts=2)

    def run(attack, *, seed=0, images=images, labels=labels, key=key, **changes):
        return run_lanes(attack, classifier(seed, counting), images, labels, key=key, **(options | changes))

    run(attack())
    on_device = jnp.asarray(0.25, jnp.float32)
    traces, before = counting.traces, compilations()
    assert traces > 0
    assert before > 0
    run(attack(radius=0.2))
    run(attack(radius=np.float32(0.3)))
    run(attack(radius=on_device))
    run(attack(step=0.25))
    run(attack(), key=jax.random.key(7))
    run(attack(), images=images[::-1].copy(), indices=indices + 1)
    run(attack(), seed=3, labels=np.asarray(predict(classifier(3, counting), images, batch_size=8).argmax(-1)))
    assert compilations() == before
    # another number of examples compiles only the criterion over all logits, of no size
    run(attack(), images=images[:15], labels=labels[:15], indices=indices[:15])
    assert compilations() - before <= 1
    assert counting.traces == traces
    run_lanes(attacks.pgd(sets.Linf(0.1), steps=3), classifier(0, counting), images, labels, key=key, **options)
    assert counting.traces > traces


@pytest.mark.parametrize("early_stop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_looking_less_often_changes_no_result(early_stop, model, data, reference, key, monkeypatch):
    monkeypatch.setattr(lanes, "PEEK", {"cpu": 3})
    images, labels, indices = data
    options = {"key": key, "indices": indices, "lanes": 8, "devices": ONE_DEVICE, "early_stop": early_stop}
    found = run_lanes(PGD, model, images, labels, **options)
    assert_equal_results(found.result, reference(early_stop))
    assert found.counts.executed >= found.counts.needed


def test_given_logits_are_used(model, data, reference, key):
    images, labels, indices = data
    logits = predict(model, images)
    options = {"key": key, "indices": indices, "lanes": 8, "devices": ONE_DEVICE, "early_stop": False}
    assert_equal_results(run_lanes(PGD, model, images, labels, logits=logits, **options).result, reference(False))
    right = np.eye(CLASSES, dtype=np.float32)[labels]
    assert not (run_lanes(PGD, model, images, labels, logits=right, **options).result.code == Code.ALREADY).any()


def test_nan_is_never_a_success(data, key):
    images, labels, _ = data
    images = np.round(images * 256) / 256
    everywhere_but_clean = classifier(apply=NanWhere(off_grid=True))
    labels = predict(everywhere_but_clean, images).argmax(-1)
    found = run_lanes(PGD, everywhere_but_clean, images, labels, key=key, lanes=8, devices=ONE_DEVICE).result
    assert not found.success.any()
    assert (found.code == Code.NON_FINITE).all()
    assert np.isfinite(found.images).all()


def test_the_inputs_are_left_alone(model, data, key):
    images, labels, _ = data
    kept = images.copy(), labels.copy()
    found = run_lanes(PGD, model, images, labels, key=key, lanes=8, devices=ONE_DEVICE).result
    np.testing.assert_array_equal(images, kept[0])
    np.testing.assert_array_equal(labels, kept[1])
    assert all(isinstance(values, np.ndarray) for values in jax.tree.leaves(found))
    assert found.images.dtype == np.float32
    assert np.abs(found.images - images).max() <= 0.1 + 1e-6
    again = run_lanes(PGD, model, images.astype(np.float64), labels, key=key, lanes=8, devices=ONE_DEVICE).result
    np.testing.assert_array_equal(again.images, found.images)
    assert again.images.dtype == np.float32


def test_progress_goes_to_standard_error(model, data, key, capsys):
    images, labels, _ = data
    options = {"key": key, "lanes": 8, "devices": ONE_DEVICE}
    run_lanes(PGD, model, images, labels, progress="the label", **options)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"the label: 100%|██████████| {COUNT}/{COUNT}" in printed.err
    run_lanes(PGD, model, images, labels, **options)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("batch_size", [4, 8, 21, 100])
def test_predict_pads_the_last_batch(batch_size, model, data):
    images, _, _ = data
    logits = predict(model, images, batch_size=batch_size)
    np.testing.assert_allclose(logits, model(images), rtol=1e-5, atol=1e-5)
    assert isinstance(logits, np.ndarray)


# what is wrong -> (arguments, error, words of its message)
BAD = {
    "a radius that is NaN": ({"attack": PGD.with_radius(jnp.asarray(jnp.nan))}, ValueError, "radius.*nan"),
    "a negative radius": ({"attack": PGD.with_radius(jnp.asarray(-0.1))}, ValueError, "radius must.*-0.1"),
    "images of rank 3": ({"images": np.zeros(SHAPE, np.float32)}, ValueError, r"shape \(N, H, W, C\)"),
    "no images": ({"images": np.zeros((0, *SHAPE), np.float32), "labels": np.zeros(0, int)}, ValueError, "at least"),
    "images of bytes": ({"images": np.zeros((9, *SHAPE), np.uint8)}, TypeError, "floating.*uint8"),
    "images above 1": ({"images": np.full((9, *SHAPE), 1.5, np.float32)}, ValueError, r"\[0, 1\].*1.5"),
    "images of NaN": ({"images": np.full((9, *SHAPE), np.nan, np.float32)}, ValueError, r"\[0, 1\].*nan"),
    "float labels": ({"labels": np.zeros(9)}, TypeError, "labels must be.*integers; got float64"),
    "too few labels": ({"labels": np.zeros(8, int)}, ValueError, r"labels must have shape \(9,\).*\(8,\)"),
    "labels out of range": ({"labels": np.full(9, CLASSES)}, ValueError, r"labels must lie in \[0, 4\).*\[4, 4\]"),
    "negative targets": ({"labels": Targeted(np.full(9, -1))}, ValueError, r"targets must lie in \[0, 4\).*\[-1, -1\]"),
    "float indices": ({"indices": np.arange(9.0)}, TypeError, "indices must be.*integers; got float64"),
    "too few indices": ({"indices": np.arange(8)}, ValueError, r"indices must have shape \(9,\)"),
    "negative indices": ({"indices": np.arange(9) - 1}, ValueError, r"indices must lie in .*\[-1, 7\]"),
    "logits of another shape": ({"logits": np.zeros((9, 3))}, ValueError, r"logits must have shape \(9, 4\).*\(9, 3\)"),
    "no lanes": ({"lanes": 0}, ValueError, "lanes must be >= 1; got 0"),
    "no devices": ({"devices": []}, ValueError, "devices must hold at least one device; got none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_compute(name, key):
    changes, error, message = BAD[name]
    counting = Counting()
    good = {"attack": PGD, "images": np.full((9, *SHAPE), 0.5, np.float32), "labels": np.zeros(9, int), "key": key}
    values = name in ("logits of another shape",)
    with pytest.raises(error, match=message):
        run_lanes(model=classifier(apply=counting), **(good | changes))
    assert values or counting.runs == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": attacks.pgd}, "attack must be an Attack such as"),
        ({"key": jax.random.PRNGKey(0)}, r"key must be one typed key such as jax.random.key\(0\); got uint32\[2\]"),
        ({"key": 0}, "key must be one typed key such as.*got 0"),
        ({"key": jax.random.split(jax.random.key(0))}, r"key must be one typed key such as.*got key<fry>\[2\]"),
    ],
)
def test_what_annotations_exclude_is_refused_without_their_checker_too(changes, message, model, data, key):
    good = {"attack": PGD, "key": key} | changes
    with pytest.raises(TypeError, match=message):
        door.enter([good["attack"]], model, *data[:2], key=good["key"])


def normalised_by_the_batch(params, images):
    """As BatchNorm in training mode."""
    hidden = images.reshape(len(images), -1) @ params["in"]
    return jnp.tanh((hidden - hidden.mean(0, keepdims=True)) / (hidden.std(0, keepdims=True) + 1e-5)) @ params["out"]


def less_the_mean_image(params, images):
    return network(params, images - images.mean(0, keepdims=True))


def noisy_by_place(params, images):
    """As dropout with a fixed key: the same again for the same batch."""
    return network(params, jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, images.shape), images, 0))


@pytest.mark.parametrize(
    ("apply", "error", "message"),
    [
        (lambda params, images: images, ValueError, r"logits of shape \(8, K\)"),
        (lambda params, images: jnp.zeros((len(images), 1)), ValueError, "at least 2 classes"),
        (lambda params, images: images.mean((1, 2, 3)) @ params["in"], ValueError, "the model failed on images"),
        (lambda params, images: jax.nn.softmax(classifier()(images)), ValueError, "look like probabilities"),
        (lambda params, images: jnp.full((len(images), 4), jnp.nan), ValueError, "must return finite logits"),
        (normalised_by_the_batch, ValueError, "must treat every image alone; got other logits.*use_running_average"),
        (less_the_mean_image, ValueError, "must treat every image alone"),
        (noisy_by_place, ValueError, "must treat every image alone"),
    ],
)
def test_bad_models_are_refused(apply, error, message, data, key):
    with pytest.raises(error, match=message):
        run_lanes(PGD, classifier(apply=apply), *data[:2], key=key)


@pytest.mark.parametrize("mixing", [normalised_by_the_batch, less_the_mean_image, noisy_by_place])
def test_a_single_image_too_shows_that_rows_mix(mixing, data):
    with pytest.raises(ValueError, match="must treat every image alone"):
        _inputs.model_values(classifier(apply=mixing), data[0][:1])


def test_a_model_of_one_image_at_a_time_passes_the_door(data):
    def one(params, images):
        return network(params, images.reshape(1, *images.shape[1:]))

    _inputs.model_values(classifier(apply=one), data[0][:1])


def test_bad_parameters_are_refused_before_compute(data, key):
    counting = Counting()
    model = classifier(apply=counting)
    broken = Classifier(model.apply, {**model.params, "out": model.params["out"].at[1, 1].set(jnp.inf)})
    with pytest.raises(ValueError, match=r"model.params must be finite.*\['out'\]"):
        run_lanes(PGD, broken, *data[:2], key=key)
    assert counting.runs == 0


def test_the_counter_of_runs_counts(data, key):
    counting = Counting()
    run_lanes(PGD, classifier(apply=counting), *data[:2], key=key, lanes=8, devices=ONE_DEVICE)
    jax.effects_barrier()
    assert counting.runs > 3


def test_counts_are_of_the_whole_run(model, data, key):
    counts = run_lanes(PGD, model, *data[:2], key=key, lanes=8, devices=ONE_DEVICE).counts
    assert isinstance(counts, LaneCounts)
    assert 0 < counts.seconds < 60


def executed(count, most, split=1, restarts=1):
    """Lane-steps of one ask by lanes of a fitting number, each refilled as soon as it is free, and that number."""
    width, waiting, total = fitting(count, most, split, restarts), [restarts] * count, 0
    while waiting:
        turn, waiting = waiting[:width], waiting[width:]
        waiting += [left - 1 for left in turn if left > 1]
        total += width
    return total, width


@pytest.mark.parametrize(("most", "restarts"), [(128, 1), (128, 2), (128, 5), (100, 1), (7, 1), (5, 3), (1, 2)])
def test_at_most_a_quarter_is_padding_for_every_number_of_examples(most, restarts):
    sizes = set()
    for count in range(1, 700):
        total, width = executed(count, most, restarts=restarts)
        assert total <= 1.25 * count * restarts, count
        assert width <= min(most, max(2 * count, 1))
        sizes.add(width)
    assert len(sizes) <= 24  # each is a program
    # on several devices a size is a multiple, and few images still make one turn
    assert fitting(5, 128, 4) == 8
    assert fitting(1000, 126, 4) == 128


FEW = [1, 2, 9]
MANY = [3, 5, 17, 33, 65, 100, 127, 128, 129, 130, 150, 200, 257]


@pytest.mark.parametrize("count", FEW + [pytest.param(count, marks=pytest.mark.slow) for count in MANY])
def test_few_images_cost_what_they_need(count, model, key, monkeypatch):
    """Of all that goes through the model, clean, at the door and to confirm included."""
    seen, forward = [], _compile.forward

    class Spy:
        def __call__(self, model, images):
            seen.append(len(images))
            return forward(model, images)

        def __getattr__(self, name):
            return getattr(forward, name)

    monkeypatch.setattr(_compile, "forward", Spy())
    images, _ = images_and_labels(model, count)
    labels = np.asarray(predict(model, images)).argmax(-1)
    seen.clear()
    attack = attacks.square(sets.Linf(0.0005), queries=5)
    found = robustness(model, (images, labels), {"a": attack}, key=key, devices=ONE_DEVICE, progress=False)
    counts = found.outcomes["a"].counts
    assert counts.executed <= 1.25 * counts.needed
    # the model is run at the door on two to eight images, twice or three times; and once more on what is claimed
    door, claims = 3 * min(max(count, 2), 8), fitting(count, 128) * (found.union.accuracy < 1)
    through = sum(seen) + counts.executed
    assert through <= 1.25 * found.outcomes["a"].forwards.sum() + door + claims


@pytest.mark.slow
@pytest.mark.parametrize("devices", [ONE_DEVICE, None], ids=["one", "all"])
def test_the_last_examples_move_to_fewer_lanes(devices, model, data, reference, key, monkeypatch):
    images, labels, indices = data
    options = {"key": key, "indices": indices, "lanes": 32, "devices": devices}
    wide = run_lanes(PGD, model, images, labels, **options)
    monkeypatch.setattr(lanes, "NARROWER", {"cpu": 0.0})
    narrow = run_lanes(PGD, model, images, labels, **options)
    assert_equal_results(narrow.result, reference(True))
    assert narrow.counts.needed == wide.counts.needed
    assert narrow.counts.executed < 0.7 * wide.counts.executed
    # by a price, and never by the clock, so that the same run always takes the same programs
    monkeypatch.setattr(lanes, "NARROWER", {"cpu": np.inf})
    assert run_lanes(PGD, model, images, labels, **options).counts.executed == wide.counts.executed


@pytest.mark.parametrize("make", [tiny.dense_classifier, tiny.conv_classifier])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_models_that_treat_every_image_alone_pass_the_door(make, count):
    made = make()
    images, _ = images_and_labels(made, count)
    _inputs.model_values(made, images)
    half = Classifier(lambda params, x: made.apply(params, x.astype(jnp.bfloat16).astype(x.dtype)), made.params)
    _inputs.model_values(half, images)
