"""Models that JAX does not trace, in the lanes: what is sent to them, and what comes of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxrobust import attacks, evaluate, sets
from jaxrobust.attacks.queries.boundary import boundary
from jaxrobust.attacks.queries.estimators import nes
from jaxrobust.attacks.queries.hop_skip_jump import hop_skip_jump
from jaxrobust.attacks.queries.square import square
from jaxrobust.evaluate import HostModel, _hosts
from jaxrobust.evaluate._saved import POINTS
from jaxrobust.losses import cross_entropy
from jaxrobust.types import AttackResult
from tests import tiny
from tests.evaluate.models import ONE_DEVICE, assert_equal_results

KEY = jax.random.key(17)


class Service:
    """A model on the host that remembers what it was sent."""

    def __init__(self, answer):
        self.answer, self.sent = answer, []

    def __call__(self, images):
        assert type(images) is np.ndarray
        assert not np.isnan(images).any()
        self.sent.append(len(images))
        return self.answer(images)


@functools.cache
def weights(shape):
    return jax.tree.map(np.asarray, tiny.dense_params(shape=shape))


def network(images):
    """`tiny.dense_net`, in NumPy."""
    params = weights(images.shape[1:])
    hidden = images.reshape(len(images), -1) @ params["hidden"]
    return (hidden / (1 + np.exp(-hidden))) @ params["out"]


def pullback(images, cotangents):
    """That of `network`."""
    params = weights(images.shape[1:])
    hidden = images.reshape(len(images), -1) @ params["hidden"]
    gate = 1 / (1 + np.exp(-hidden))
    inner = (cotangents @ params["out"].T) * (gate + hidden * gate * (1 - gate))
    return (inner @ params["hidden"].T).reshape(images.shape)


class Pulled:
    """`pullback`, which remembers how many images it was sent."""

    def __init__(self):
        self.sent = 0

    def __call__(self, images, cotangents):
        assert cotangents.shape == (len(images), tiny.CLASSES)
        assert cotangents.any(-1).all()
        self.sent += len(images)
        return pullback(images, cotangents)


def data(count):
    return tiny.images_and_labels(tiny.dense_classifier(), count)


@pytest.mark.parametrize("early_stop", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_results_are_those_of_the_traced_model(early_stop):
    images, labels = data(9)
    attack = square(sets.Linf(0.1), queries=25)
    options = {"key": KEY, "lanes": 4, "early_stop": early_stop, "devices": ONE_DEVICE}
    found = evaluate.run_lanes(attack, HostModel(network, tiny.CLASSES), images, labels, **options).result
    expected = evaluate.run_lanes(attack, tiny.dense_classifier(), images, labels, **options).result
    assert 1 < found.success.sum() < 9
    assert_equal_results(found, expected)


def few_steps(name):
    """A registered attack on the set that suits it, at most three steps of it."""
    made = attacks.REGISTRY[name](sets.REGISTRY[attacks.REGISTRY[name].on]())
    return dataclasses.replace(made, steps=min(made.steps, 3)) if hasattr(made, "steps") else made


def white_box():
    """One registered attack of each kind that uses gradients; under `eot` models must be random."""
    kinds = {}
    for name in sorted(attacks.REGISTRY):
        attack = few_steps(name)
        if attack.gradients and not attack.sees_draws:
            kinds.setdefault(type(attack), name)
    return sorted(kinds.values())


DEFAULT = {"adam", "deepfool"}  # one direction, and several


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in white_box()])
def test_with_a_pullback_results_are_those_of_the_traced_model(name):
    """And each gradient that is counted was asked for once, but where its direction is zero."""
    attack, service = few_steps(name), Pulled()
    shape = sets.REGISTRY[attacks.REGISTRY[name].on].shapes[0]
    twin, model = tiny.dense_classifier(shape=shape), HostModel(network, tiny.CLASSES, service)
    images, labels = tiny.images_and_labels(twin, 6, shape=shape)
    options = {"key": KEY, "lanes": 4, "early_stop": False, "devices": ONE_DEVICE}
    found = evaluate.run_lanes(attack, model, images, labels, **options).result
    expected = evaluate.run_lanes(attack, twin, images, labels, **options).result
    for field in ("success", "forwards", "backwards", "code"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=field)
    for field in ("images", "loss", "size"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), 1e-4, 1e-5, err_msg=field)
    assert found.backwards.sum() > 0
    # the losses of LPA and σ-zero are flat where they are met
    assert service.sent == found.backwards.sum() or (service.sent < found.backwards.sum() and name in FLAT)


FLAT = {"cw_l0", "lpa", "sigma_zero"}


def test_no_gradient_is_bought_for_a_success_that_ends_the_search():
    images, labels = data(6)
    service = Pulled()
    model = HostModel(network, tiny.CLASSES, service)
    attack = few_steps("adam")
    found = evaluate.run_lanes(attack, model, images, labels, key=KEY, lanes=4, devices=ONE_DEVICE).result
    # all but the last image, which is misclassified
    assert found.success[:-1].any()
    early = found.success & (found.backwards > 0) & (found.forwards - 1 < attack.asks)
    assert service.sent == found.backwards.sum() - early.sum()


def test_diagnostics_are_those_of_the_traced_model():
    images, labels = data(9)
    model = HostModel(network, tiny.CLASSES, pullback)
    attack = few_steps("adam")
    losses = attacks.trajectory(attack, tiny.dense_classifier(), images, labels, key=KEY)
    np.testing.assert_allclose(_hosts.losses(attack, model, images, labels, key=KEY), losses, rtol=1e-4, atol=1e-5)
    gradients = _hosts.gradients(cross_entropy, tiny.dense_classifier(), images, labels)
    np.testing.assert_allclose(_hosts.gradients(cross_entropy, model, images, labels), gradients, rtol=1e-4, atol=1e-6)
    flat = HostModel(network, tiny.CLASSES, lambda images, cotangents: np.zeros_like(images))
    with pytest.warns(RuntimeWarning, match="the gradient of the DLR loss is zero at 8 of 8 clean images"):
        found = evaluate.autoattack(flat, (images, labels), attacks={"adam": attack}, key=KEY, progress=False)
    assert found.union.accuracy == found.clean.accuracy


@pytest.mark.slow
def test_masked_gradients_are_seen_on_the_host_too():
    images, labels = data(40)
    options = {"key": KEY, "steps": 4, "queries": 20, "samples": 20, "devices": ONE_DEVICE}
    model = HostModel(network, tiny.CLASSES, pullback)
    found = evaluate.masking(model, (images, labels), sets.Linf(0.1), **options)
    assert not {"loss", "gradients", "one step"} & set(found.flags)
    away = HostModel(network, tiny.CLASSES, lambda images, cotangents: -pullback(images, cotangents))
    assert "loss" in evaluate.masking(away, (images, labels), sets.Linf(0.1), **options).flags


def times(factor):
    return lambda images, cotangents: factor * pullback(images, cotangents)


def test_a_run_knows_its_pullback(tmp_path):
    images, labels = data(4)
    options = {"key": KEY, "lanes": 4, "devices": ONE_DEVICE, "save": tmp_path / "a.npz"}
    attack = few_steps("adam")
    found = evaluate.run_lanes(attack, HostModel(network, tiny.CLASSES, pullback), images, labels, **options).result
    again = evaluate.run_lanes(attack, HostModel(network, tiny.CLASSES, pullback), images, labels, **options).result
    np.testing.assert_array_equal(found.images, again.images)
    once, twice = (HostModel(network, tiny.CLASSES, times(factor)) for factor in (1, 2))
    with pytest.raises(ValueError, match=r"differs in: model function\."):
        evaluate.run_lanes(attack, twice, images, labels, **options)
    # of two services that have one name the answers tell
    options |= {"save": tmp_path / "b.npz", "run_id": "mine"}
    evaluate.run_lanes(attack, once, images, labels, **options)
    with pytest.raises(ValueError, match="the model's gradients, though not in its code"):
        evaluate.run_lanes(attack, twice, images, labels, **options)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda x, c: x.transpose(0, 3, 1, 2), ValueError, r"gradients of the images' shape, \(2, 6, 5, 2\); got \(2,"),
        (lambda x, c: x.astype(int), TypeError, "pullback must return floating gradients; got dtype int64"),
    ],
)
def test_what_is_no_gradient_is_refused(wrong, error, says):
    _, pull = HostModel(network, tiny.CLASSES, wrong).linearised(data(2)[0])
    with pytest.raises(error, match=says):
        pull(np.ones((2, 1, tiny.CLASSES), np.float32))
    assert not pull(np.zeros((2, 1, tiny.CLASSES), np.float32)).any()


def test_a_pullback_works_in_arrays_of_its_own():
    images, _ = data(3)

    def careless(images, cotangents):
        found = pullback(images, cotangents)
        images *= 0
        cotangents *= 0
        return found

    cotangents = np.random.default_rng(0).normal(size=(3, 2, tiny.CLASSES)).astype(np.float32)
    kept = images.copy(), cotangents.copy()
    _, pull = HostModel(network, tiny.CLASSES, careless).linearised(images)
    found = pull(cotangents)
    np.testing.assert_array_equal((images, cotangents)[0], kept[0])
    np.testing.assert_array_equal(cotangents, kept[1])
    for place in range(2):
        np.testing.assert_allclose(found[:, place], pullback(images, cotangents[:, place]), rtol=1e-6)


def test_what_a_host_model_cannot_do_is_said():
    images, labels = data(2)
    model = HostModel(network, tiny.CLASSES, pullback)
    for attack, says in (
        (attacks.eot(attacks.pgd(sets.Linf(0.1))), "must not be under eot on a HostModel"),
        (attacks.pgd(sets.Perceptual(0.5)), "network must have activations"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate.run_lanes(attack, model, images, labels, key=KEY)
    with pytest.raises(TypeError, match="pullback"):
        HostModel(network, 2, 3)


def test_only_points_that_are_meant_are_sent():
    """On several devices, with refills, with chunks that are not full, nothing else is ever asked."""
    images, labels = data(7)
    attack = nes(sets.Linf(0.1), steps=2, samples=4, chunk=3)
    service = Service(network)
    found = evaluate.run_lanes(attack, HostModel(service, tiny.CLASSES), images, labels, key=KEY, lanes=4).result
    # and half of the clean images once more, beside their dim negatives
    assert sum(service.sent) == len(images) + 8 + (found.forwards - 1).sum() + found.success.sum()
    assert min(service.sent) > 0


@pytest.mark.slow
def test_labels_alone_will_do():
    images, labels = data(4)
    model = HostModel(lambda x: network(x).argmax(-1), tiny.CLASSES)
    for attack in (boundary(sets.L2(5.0), queries=150), hop_skip_jump(sets.L2(5.0), queries=150)):
        found = evaluate.run_lanes(attack, model, images, labels, key=KEY, lanes=4, devices=ONE_DEVICE).result
        assert found.success.all()
        assert (network(found.images).argmax(-1) != labels).all()
        assert (found.size[:-1] > 0).all()
        assert (found.size <= 5).all()


def test_a_single_image_is_asked_once_more_beside_its_dim_negative():
    images, labels = data(1)
    service = Service(network)
    attack = square(sets.Linf(1e-6), queries=3)
    found = evaluate.run_lanes(attack, HostModel(service, tiny.CLASSES), images, labels, key=KEY, devices=ONE_DEVICE)
    assert service.sent[:2] == [1, 2]
    assert sum(service.sent[2:]) == (found.result.forwards - 1).sum() + found.result.success.sum()


@pytest.fixture(scope="module")
def pipeline():
    """A scikit-learn pipeline on the digits, and some digits that it has not seen."""
    digits = load_digits()
    images, labels = (digits.images[..., None] / 16).astype(np.float32), digits.target.astype(np.int32)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    fitted.fit(images[200:].reshape(-1, 64), labels[200:])
    return fitted, images[:24], labels[:24]


def test_a_pipeline_is_attacked_and_confirms_it(pipeline, tmp_path):
    fitted, images, labels = pipeline
    service = Service(lambda x: fitted.predict_log_proba(x.reshape(len(x), -1)))
    ball = sets.Linf(0.2)
    report = evaluate.robustness(
        HostModel(service, 10),
        (images, labels),
        {"square": square(ball, queries=200)},
        key=KEY,
        lanes=8,
        devices=ONE_DEVICE,
        save_dir=tmp_path,
        run_id="the pipeline",
        progress=False,
    )
    outcome = report.outcomes["square"]
    fooled = outcome.outcome == 1
    assert fooled.mean() > 0.5
    predicted = fitted.predict(outcome.images.reshape(len(images), -1))
    assert (predicted[fooled] != labels[fooled]).all()
    assert (predicted[outcome.robust] == labels[outcome.robust]).all()
    assert np.abs(outcome.images - images).max() <= 0.2 + 1e-6
    curve = evaluate.queries_curve(outcome, [0, 1, 10, 50, 200])
    assert (np.diff(curve) <= 0).all()
    np.testing.assert_allclose(curve[0], (fitted.predict(images.reshape(-1, 64)) == labels).mean())
    np.testing.assert_allclose(curve[-1], outcome.robust.mean())
    assert curve[-1] < curve[0]
    # started again it goes on from what is saved: only the clean images, four of them beside dim negatives, the probe
    # and the claims are sent
    service.sent.clear()
    again = evaluate.run_lanes(
        square(ball, queries=200),
        HostModel(service, 10),
        images,
        labels,
        key=jax.random.fold_in(KEY, 1),
        lanes=8,
        devices=ONE_DEVICE,
        save=tmp_path / "again.npz",
        run_id="the pipeline",
    ).result
    sent = sum(service.sent)
    service.sent.clear()
    resumed = evaluate.run_lanes(
        square(ball, queries=200),
        HostModel(service, 10),
        images,
        labels,
        key=jax.random.fold_in(KEY, 1),
        lanes=8,
        devices=ONE_DEVICE,
        save=tmp_path / "again.npz",
        run_id="the pipeline",
    ).result
    np.testing.assert_array_equal(resumed.images, again.images)
    assert sum(service.sent) == len(images) + 8 + POINTS + again.success.sum() < sent


@pytest.mark.parametrize("lanes", [20, 64])
def test_a_function_that_normalises_by_the_batch_is_refused_at_any_number_of_lanes(lanes):
    """Though the batches are large and alike."""
    images, labels = data(64)
    mixing = HostModel(lambda x: network((x - x.mean()) / x.std()), tiny.CLASSES)
    with pytest.raises(ValueError, match="the model must treat every image alone; got other logits"):
        evaluate.run_lanes(square(sets.Linf(0.1), queries=5), mixing, images, labels, key=KEY, lanes=lanes)


def test_curves_count_queries_until_success():
    success, forwards = np.array([True, True, True, False, True]), np.array([1, 2, 11, 26, 26], np.int32)
    zeros, images = np.zeros(5, np.float32), np.zeros((5, 2, 2, 1), np.float32)
    found = AttackResult(images, success, zeros, zeros, forwards, np.zeros(5, np.int32), np.zeros(5, np.int32))
    # the first was misclassified from the start; the others' clean passes are no queries
    np.testing.assert_allclose(evaluate.queries_curve(found, [0, 1, 9, 10, 25]), [0.8, 0.6, 0.6, 0.4, 0.2])
    for budgets in ([], [-1], [np.nan]):
        with pytest.raises(ValueError, match="budgets must hold at least one number, all >= 0"):
            evaluate.queries_curve(found, budgets)


def test_a_function_that_changes_as_it_is_used_wants_a_run_id_before_queries_are_bought(tmp_path):
    images, labels = data(6)
    service = Service(network)
    attack = square(sets.Linf(0.05), queries=10)
    options = {"key": KEY, "devices": ONE_DEVICE, "save_dir": tmp_path, "progress": False}

    def run(**more):
        return evaluate.robustness(HostModel(service, tiny.CLASSES), (images, labels), attack, **options, **more)

    with pytest.raises(ValueError, match=r'another model function after the clean pass.*pass run_id="..."'):
        run()
    assert sum(service.sent) == len(images) + 2 * len(images[::2])
    first = run(run_id="mine")
    bought = sum(service.sent)
    assert run(run_id="mine").union == first.union
    # of the attack, only the probe and the claims once more
    claims = int((~first.outcomes["square-linf"].robust).sum())
    assert sum(service.sent) - bought == len(images) + 2 * len(images[::2]) + POINTS + claims


def test_run_lanes_too_refuses_to_save_a_function_that_changes_before_queries_are_bought(tmp_path):
    (images, labels), service = data(6), Service(network)
    attack, model = square(sets.Linf(0.05), queries=10), HostModel(service, tiny.CLASSES)
    with pytest.raises(ValueError, match=r'another model function after the clean pass.*pass run_id="..."'):
        evaluate.run_lanes(attack, model, images, labels, key=KEY, devices=ONE_DEVICE, save=tmp_path / "a.npz")
    assert sum(service.sent) == len(images) + 2 * len(images[::2])
    assert not list(tmp_path.iterdir())


def test_gradients_are_refused():
    images, labels = data(2)
    with pytest.raises(
        ValueError, match="must use no gradients on a HostModel without a pullback; got gradient ascent"
    ):
        evaluate.run_lanes(attacks.pgd(sets.Linf(0.1)), HostModel(network, tiny.CLASSES), images, labels, key=KEY)


def test_it_cannot_be_traced():
    images, _ = data(2)
    with pytest.raises(TypeError, match="a HostModel cannot be traced"):
        jax.jit(HostModel(network, tiny.CLASSES))(jnp.asarray(images))


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda x: np.zeros((len(x), 3)), ValueError, r"function must return scores of shape \(2, 4\).*; got \(2, 3\)"),
        (lambda x: np.zeros((len(x), 4), int), TypeError, "function must return floating scores or integer labels"),
        (
            lambda x: [[0.1, 0.2], [0.3]],
            TypeError,
            r"function must return one array of scores .*; got list \(",
        ),
        (lambda x: np.full(len(x), 4), ValueError, r"labels must lie in \[0, 4\), the model's classes"),
    ],
)
def test_wrong_answers_are_refused(function, error, says):
    with pytest.raises(error, match=says):
        HostModel(function, 4)(data(2)[0])


def test_scores_in_half_precision_are_taken():
    images, _ = data(2)
    narrow = HostModel(lambda x: jnp.asarray(network(x), jnp.bfloat16), tiny.CLASSES)(images)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, network(images), rtol=1e-2)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="classes must be >= 2; got 1"):
        HostModel(network, 1)


def in_place(images):
    """`network`, by a function that works in what it is given."""
    images *= 2
    images -= images.mean()
    images.sort(0)
    return np.zeros((len(images), tiny.CLASSES))


def test_what_a_function_does_to_its_images_stays_with_it():
    images, labels = data(5)
    kept = images.copy()

    def careless(given):
        answers = network(given)
        in_place(given)
        return answers

    attack = square(sets.Linf(0.1), queries=5)
    options = {"key": KEY, "lanes": 4, "devices": ONE_DEVICE}
    found = evaluate.run_lanes(attack, HostModel(careless, tiny.CLASSES), images, labels, **options).result
    assert_equal_results(
        found, evaluate.run_lanes(attack, HostModel(network, tiny.CLASSES), images, labels, **options).result
    )
    np.testing.assert_array_equal(images, kept)


@pytest.mark.parametrize(("lanes", "count"), [(1, 9), (4, 9), (128, 9), (128, 1), (128, 2)])
def test_a_function_that_mixes_its_images_is_refused(lanes, count):
    images, labels = data(count)
    mixing = HostModel(lambda x: network(x - x.mean(0)), tiny.CLASSES)
    options = {"key": KEY, "devices": ONE_DEVICE, "lanes": lanes}
    with pytest.raises(ValueError, match="the model must treat every image alone; got other logits"):
        evaluate.run_lanes(square(sets.Linf(0.1), queries=5), mixing, images, labels, **options)
    with pytest.raises(ValueError, match="the model must treat every image alone; got other logits"):
        evaluate.robustness(mixing, (images, labels), square(sets.Linf(0.1), queries=5), progress=False, **options)
