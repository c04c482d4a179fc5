"""An evaluation that is killed, and started again, ends with equal numbers and without doing its work twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import _store, attacks, sets
from jaxrobust.evaluate import HostModel, _saved, lanes, robustness, run_lanes
from jaxrobust.evaluate._saved import POINTS
from jaxrobust.types import Classifier, TopK
from tests.evaluate.models import ONE_DEVICE, assert_equal_results, classifier, examples, network

PGD = attacks.pgd(sets.Linf(0.1), steps=4, restarts=2)
OPTIONS = {"key": jax.random.key(0), "lanes": 8, "devices": ONE_DEVICE, "early_stop": False}


@pytest.fixture(autouse=True)
def one_step_a_round(monkeypatch):
    """So that a run can be stopped at any step."""
    monkeypatch.setattr(lanes, "PEEK_IN_STEP", 1)


class Interrupted(Exception):
    """What befalls the run."""


@pytest.fixture(scope="module")
def data():
    return examples(21, wrong=4)


@pytest.fixture(scope="module")
def undisturbed(data):
    return run_lanes(PGD, classifier(), *data, **OPTIONS)


@pytest.fixture
def interrupted(data, tmp_path, monkeypatch):
    """A save file of a run that ended after so many rounds."""

    def run(rounds):
        path = tmp_path / "deep" / "save.npz"
        played = lanes._Run.round
        left = [rounds]

        def round_(self):
            if not left[0]:
                raise Interrupted
            left[0] -= 1
            played(self)

        with monkeypatch.context() as patch:
            patch.setattr(_saved, "EVERY", -1.0)
            patch.setattr(_saved, "SHARE", np.inf)
            patch.setattr(lanes._Run, "round", round_)
            with pytest.raises(Interrupted):
                run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
        return path

    return run


@pytest.mark.parametrize("rounds", [1, 5, 6, 17, 24])
def test_an_exception_at_any_round(rounds, interrupted, undisturbed, data):
    path = interrupted(rounds)
    kept = _store.read_arrays(path)
    assert int(kept["executed"]) == 8 * rounds
    resumed = run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    assert_equal_results(resumed.result, undisturbed.result)
    np.testing.assert_array_equal(resumed.result.images, undisturbed.result.images)
    assert resumed.counts.needed == undisturbed.counts.needed
    # no step twice; only the order in which the last lanes drain may differ
    assert abs(resumed.counts.executed - undisturbed.counts.executed) <= 8 * PGD.asks
    assert resumed.counts.seconds > float(kept["seconds"]) > 0


@pytest.mark.parametrize(("width", "devices"), [(4, ONE_DEVICE), (8, jax.local_devices())])
def test_with_other_lanes_or_devices(width, devices, interrupted, undisturbed, data):
    path = interrupted(17)
    done = int((_store.read_arrays(path)["runs_done"] == 2).sum())
    assert 4 < done < 21
    resumed = run_lanes(PGD, classifier(), *data, save=path, **(OPTIONS | {"lanes": width, "devices": devices}))
    assert_equal_results(resumed.result, undisturbed.result)
    again = resumed.counts.executed - 8 * 17
    assert again <= (21 - done) * 2 * PGD.asks + width * 2 * PGD.asks


def test_a_finished_run_is_only_read(interrupted, undisturbed, data, monkeypatch):
    path = interrupted(5)
    finished = run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    before = path.read_bytes()
    monkeypatch.setattr(lanes._Run, "round", lambda self: pytest.fail("a step was taken"))
    again = run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    assert_equal_results(again.result, undisturbed.result)
    assert again.counts == finished.counts
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", [np.int64, np.uint8, jnp.int32])
def test_labels_of_another_type_are_the_same_labels(kind, interrupted, undisturbed, data):
    images, labels = data
    resumed = run_lanes(PGD, classifier(), images, labels.astype(kind), save=interrupted(5), **OPTIONS)
    assert_equal_results(resumed.result, undisturbed.result)


def other_function(params, images):
    """Another function of the same parameters."""
    return network(params, jnp.square(images))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("attack", "attack"),
        ("radius", "attack"),
        ("early_stop", "stop rule"),
        ("key", "key"),
        ("images", "images"),
        ("fewer", "images, labels or criterion, indices"),
        ("labels", "labels or criterion"),
        ("criterion", "labels or criterion"),
        ("indices", "indices"),
        ("parameters", "parameters"),
        ("function", "model function"),
        ("run_id", "run_id, model function"),
    ],
)
def test_the_save_file_of_another_run_is_refused_and_left_alone(change, named, interrupted, data):
    path = interrupted(5)
    before = path.read_bytes()
    (images, labels), attack, model, options = data, PGD, classifier(), {**OPTIONS, "save": path}
    match change:
        case "attack":
            attack = attacks.pgd(sets.Linf(0.1), steps=4, restarts=2, loss="margin")
        case "radius":
            attack = PGD.with_radius(0.2)
        case "early_stop":
            options["early_stop"] = True
        case "key":
            options["key"] = jax.random.key(1)
        case "images":
            images = images * np.float32(0.999)
        case "fewer":
            images, labels = images[:9], labels[:9]
        case "labels":
            labels = np.roll(labels, 1)
        case "criterion":
            labels = TopK(labels, 1)
        case "run_id":
            options["run_id"] = "mine"
        case "indices":
            options["indices"] = np.arange(21) + 1
        case "parameters":
            model = Classifier(network, jax.tree.map(lambda leaf: leaf * 1.001, model.params))
        case "function":
            model = Classifier(other_function, model.params)
    message = rf"this very run; .*save.npz was written by a run that differs in: {named}. Name another file"
    with pytest.raises(ValueError, match=message):
        run_lanes(attack, model, images, labels, **options)
    assert path.read_bytes() == before


def test_a_file_of_another_format_is_refused(interrupted, data, monkeypatch):
    path = interrupted(5)
    monkeypatch.setattr(_saved, "FORMAT", _saved.FORMAT + 1)
    with pytest.raises(ValueError, match=r"differs in: format of the file\. Name another file, or remove it"):
        run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_save_file_is_named_and_left_alone(kept, interrupted, data):
    path = interrupted(5)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"save.npz must be a whole .npz, remove it to start anew"):
        run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    assert path.read_bytes() == before


def test_an_archive_of_something_else_is_refused(data, tmp_path):
    path = tmp_path / "pictures.npz"
    _store.write_arrays(path, clean=np.zeros(3))
    with pytest.raises(ValueError, match="save must name a file of this very run"):
        run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)


DAMAGES = {
    "a part is missing": (lambda stored: stored.pop("best_size"), r"must be a whole .npz.*best_size must be"),
    "a part of another shape": (lambda stored: stored.update(runs_done=np.zeros(3, np.int32)), r"runs_done must be"),
    "a part of another type": (lambda stored: stored.update(best_loss=np.zeros(21, int)), r"best_loss must be"),
    "no such example": (lambda stored: stored["lane_example"].fill(99), r"lane_example must lie in \[-1, 21\)"),
    "a lane of another shape": (lambda stored: stored.update(lane_0=np.zeros(3)), r"lane_0 must have shape"),
    "no probe": (lambda stored: stored.pop("probe_gradients"), r"probe_gradients must have shape"),
    "another version": (lambda stored: other_version(stored), r"by a run that differs in: version\."),
    "an older version": (lambda stored: stored.pop("identity"), r"differs in: version \(or it is no save file"),
}


def other_version(stored):
    stored["identity"] = json.dumps(json.loads(str(stored["identity"])) | {"version": "0.0.1"})


def test_damage_within_an_archive_is_named(interrupted, data):
    path = interrupted(5)
    stored = _store.read_arrays(path)
    for damage, message in DAMAGES.values():
        damaged = {name: values.copy() for name, values in stored.items()}
        damage(damaged)
        _store.write_arrays(path, **damaged)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
        assert path.read_bytes() == before


class Service:
    """A model behind a network: all of its code is the call."""

    def __init__(self, fails_after=np.inf, failure=ConnectionError, factor=1.0, labels=False):
        self.sent, self.fails_after, self.failure = 0, fails_after, failure
        self.factor, self.labels, self.lock = factor, labels, threading.Lock()

    def __call__(self, images):
        self.sent += len(images)
        if self.sent > self.fails_after:
            if self.failure is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise self.failure("gone")
        with jax.numpy_dtype_promotion("standard"):
            scores = self.factor * np.asarray(network(classifier().params, images))
        return scores.argmax(-1) if self.labels else scores


def attacked(service, data, path=None, run_id="the service"):
    attack = attacks.square(sets.Linf(0.05), queries=30)
    options = OPTIONS | {"lanes": 4, "early_stop": True, "save": path, "run_id": run_id}
    return run_lanes(attack, HostModel(service, 4), *data, **options).result


@pytest.mark.parametrize("failure", [ConnectionError, KeyboardInterrupt])
def test_queries_of_a_model_that_fails_are_not_lost(failure, data, tmp_path):
    whole = Service()
    expected = attacked(whole, data)
    path = tmp_path / "a.npz"
    first, second = Service(0.9 * whole.sent, failure), Service()
    with pytest.raises(failure):
        attacked(first, data, path)
    assert_equal_results(attacked(second, data, path), expected)
    # twice: the clean images, what is asked to see that it is the same model, and the call that failed
    assert first.sent + second.sent <= whole.sent + len(data[0]) + 8 + 2 * POINTS + 4


def test_a_model_that_cannot_be_read_wants_a_run_id(data, tmp_path):
    with pytest.raises(ValueError, match=r"^model\.function\.lock must be .*Pass run_id="):
        attacked(Service(), data, tmp_path / "a.npz", run_id=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({}, {"factor": 0.5}, "logits"),
        ({"factor": 1e-5}, {"factor": -1e-5}, "logits"),
        ({"labels": True}, {"labels": True, "factor": -1.0}, "logits"),
    ],
)
def test_a_service_that_changed_behind_its_name_is_refused(first, second, named, data, tmp_path):
    attacked(Service(**first), data, tmp_path / "a.npz")
    with pytest.raises(ValueError, match=f"differs in: the model's {named}, though not in its code"):
        attacked(Service(**second), data, tmp_path / "a.npz")


def test_a_service_of_equal_clean_answers_is_asked_more(data, tmp_path):
    """Of clean images both say the same, in between not."""
    images = data[0]

    def elsewhere(asked):
        known = (asked[:, None] == images[None]).all((2, 3, 4)).any(1)
        scores = np.asarray(network(classifier().params, asked))
        return np.where(known[:, None], scores, -scores)

    attacked(Service(), data, tmp_path / "a.npz")
    service = Service()
    service.__class__ = type("Service", (), {"__call__": lambda self, x: elsewhere(x), "__module__": __name__})
    with pytest.raises(ValueError, match="differs in: the model's answers, though not in its code"):
        attacked(service, data, tmp_path / "a.npz")


def scaled_gradient(scale):
    """The same logits, with gradients of their own."""
    apply = jax.custom_vjp(network)
    forward = lambda params, images: jax.vjp(network, params, images)  # noqa: E731
    apply.defvjp(forward, lambda pull, given: jax.tree.map(lambda leaf: scale * leaf, pull(given)))
    return Classifier(apply, classifier().params)


@pytest.mark.parametrize("run_id", [None, "mine"])
def test_gradients_count(run_id, data, tmp_path):
    options = OPTIONS | {"save": tmp_path / "a.npz", "run_id": run_id}
    run_lanes(PGD, scaled_gradient(0.0), *data, **options)
    run_lanes(PGD, scaled_gradient(0.0), *data, **options)
    named = "model function" if run_id is None else "the model's gradients, though not in its code"
    with pytest.raises(ValueError, match=f"differs in: {named}"):
        run_lanes(PGD, scaled_gradient(1.0), *data, **options)


@pytest.mark.parametrize("booking", [1, 4])
def test_ctrl_c_in_the_middle_of_booking(booking, data, undisturbed, tmp_path, monkeypatch):
    """What belongs together is booked together."""
    path, left = tmp_path / "a.npz", [booking]

    def write(best, rows, new):
        for name, values in new.items():
            best[name][rows] = values
            left[0] -= name == "success"
            if left[0] == 0 and name == "success":
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        # a shell starts what runs in the background so that Ctrl-C is ignored
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        job = lanes._Run.round
        patch.setattr(lanes._Run, "round", lambda self: (patch.setattr(lanes, "_write", write), job(self)))
        with pytest.raises(KeyboardInterrupt):
            run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
        signal.signal(signal.SIGINT, before)
    resumed = run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    assert_equal_results(resumed.result, undisturbed.result)
    assert resumed.counts.needed == undisturbed.counts.needed


@pytest.mark.parametrize(("every", "lost"), [(30.0, 8 * PGD.asks), (0.0, 8 * 2)])
def test_a_step_that_fails_takes_only_along_what_was_not_saved(every, lost, data, undisturbed, tmp_path, monkeypatch):
    path, played, left = tmp_path / "a.npz", lanes._Run.round, [17]
    monkeypatch.setattr(_saved, "EVERY", every)
    monkeypatch.setattr(_saved, "SHARE", 1e9)

    def round_(self):
        left[0] -= 1
        if left[0] == 0:
            for leaf in jax.tree.leaves(self.states):
                leaf.delete()
            raise RuntimeError("out of memory")
        played(self)

    with monkeypatch.context() as patch:
        patch.setattr(lanes._Run, "round", round_)
        with pytest.raises(RuntimeError, match="out of memory"):
            run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    assert (_store.read_arrays(path)["runs_done"] == 2).sum() > 4
    resumed = run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    assert_equal_results(resumed.result, undisturbed.result)
    assert resumed.counts.executed <= undisturbed.counts.executed + lost


def test_a_finished_run_outlives_a_full_disk(data, undisturbed, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk full")

    conclude = lanes._Run.conclude
    monkeypatch.setattr(
        lanes._Run, "conclude", lambda self: (monkeypatch.setattr(_store, "write_arrays", fails), conclude(self))[1]
    )
    with pytest.warns(RuntimeWarning, match="not saved to .*disk full"):
        found = run_lanes(PGD, classifier(), *data, save=tmp_path / "a.npz", **OPTIONS)
    assert_equal_results(found.result, undisturbed.result)


def test_a_disk_that_is_full_does_not_hide_the_error(data, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(_store, "write_arrays", fails)
    with pytest.raises(ConnectionError, match="gone") as caught:
        attacked(Service(200), data, tmp_path / "a.npz")
    assert "could not be saved" in caught.value.__notes__[0]


def test_a_folder_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="save must name a file"):
        run_lanes(PGD, classifier(), *data, save=tmp_path, **OPTIONS)


# What is killed: the evaluation below, made slow by a pause in every step.
SCRIPT = """
import sys, time, jax
from jaxrobust.evaluate import _saved, lanes
from tests.evaluate.test_resume import evaluation
_saved.EVERY = 0.0
step = lanes._Run.round
lanes._Run.round = lambda self: (time.sleep(0.02), step(self))
evaluation(sys.argv[1], progress=True)
"""


def evaluation(save_dir=None, *, width=8, progress=False):
    """One that the killed process and this one both know."""
    return robustness(
        classifier(),
        examples(21, wrong=4),
        {"first": attacks.mi_fgsm(sets.Linf(0.02), steps=5), "second": attacks.bim(sets.Linf(0.02), steps=9)},
        key=jax.random.key(4),
        lanes=width,
        devices=ONE_DEVICE,
        save_dir=save_dir,
        progress=progress,
    )


def assert_equal_evaluations(found, expected):
    assert found.union == expected.union
    for name, outcome in expected.outcomes.items():
        for field in ("outcome", "size", "loss", "code", "images", "forwards", "backwards"):
            np.testing.assert_array_equal(getattr(found.outcomes[name], field), getattr(outcome, field), err_msg=field)


def test_kill_nine_and_start_again(tmp_path):
    expected = evaluation()
    assert 0 < expected.union.accuracy < expected.clean.accuracy < 1
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    # programs compiled otherwise round otherwise, see tests/conftest.py
    environment.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        # the second attack is under way
        saved = tmp_path / "second.npz"
        deadline = time.monotonic() + 120
        while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, process.stderr.read()
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    finally:
        process.kill()
        process.stderr.close()
    kept = {name: _store.read_arrays(tmp_path / f"{name}.npz") for name in ("first", "second")}
    assert (kept["first"]["runs_done"] == 1).all()
    assert 0 < kept["second"]["executed"] < expected.outcomes["second"].counts.executed
    assert not (kept["second"]["runs_done"] == 1).all()

    resumed = evaluation(tmp_path)
    assert_equal_evaluations(resumed, expected)
    for name in ("first", "second"):
        counts, uninterrupted = resumed.outcomes[name].counts, expected.outcomes[name].counts
        # with one run an example, lanes that go on where they stood execute exactly what they would have
        assert (counts.executed, counts.needed) == (uninterrupted.executed, uninterrupted.needed)
        assert counts.seconds >= kept[name]["seconds"] > 0


def test_two_models_cannot_share_a_folder(tmp_path, data):
    attack = attacks.mi_fgsm(sets.Linf(0.02), steps=5)
    options = {"key": jax.random.key(4), "lanes": 8, "devices": ONE_DEVICE, "save_dir": tmp_path, "progress": False}
    robustness(classifier(), data, attack, **options)
    with pytest.raises(ValueError, match=r"pgd-linf.npz was written by a run that differs in: parameters\."):
        robustness(classifier(1), data, attack, **options)
