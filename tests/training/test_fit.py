"""The loop: what it returns, what it selects, how it compiles, and what it refuses."""

import dataclasses
import functools
import json
import os

import jax
import numpy as np
import pytest
from flax import nnx

import jaxrobust.training.trainer as trainer
from jaxrobust import attacks, data
from jaxrobust.models import SmallCNN
from jaxrobust.sets import L2, Linf, Perceptual
from jaxrobust.training import (
    TrainConfig,
    adversarial,
    fit,
    free,
    group_dro,
    group_smoothing,
    llr,
    mixed,
    several,
    standard,
)
from jaxrobust.training._job import prepare
from jaxrobust.types import Classifier, pytree
from tests.training.tiny import Mlp, assert_equal, without_times

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.01, validation=0.25)
FGSM = attacks.fgsm(Linf(0.1))
ROBUST = adversarial(FGSM)
run = functools.partial(fit, key=jax.random.key(0), progress=False, validation_attack=FGSM)


def network(**options):
    return Mlp(16, 2, nnx.Rngs(0), **options)


@pytest.fixture(scope="module")
def pairs():
    """Images whose label is whether their left half is the brighter one."""
    images = np.random.default_rng(0).uniform(0, 1, (80, 4, 4, 1)).astype(np.float32)
    return images, (images[:, :, :2].sum((1, 2, 3)) > images[:, :, 2:].sum((1, 2, 3))).astype(np.int32)


def numbers(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


@pytest.mark.slow
def test_adversarial_training_pays_on_digits():
    train = data.load("digits", "train")
    config = TrainConfig(epochs=12, batch_size=64, learning_rate=0.01, schedule="cosine")
    attack = attacks.pgd(Linf(0.1), steps=3, random_start=False)
    rates = []
    for objective in (standard(), adversarial(attack)):
        result = run(Mlp(64, 10, nnx.Rngs(0)), train, objective=objective, config=config, validation_attack=attack)
        rates.append(result.history[result.best_epoch - 1])
    assert rates[0]["val_clean_acc"] > 0.85
    assert rates[1]["val_clean_acc"] > 0.7
    assert rates[1]["val_adv_acc"] > rates[0]["val_adv_acc"] + 0.08


def test_history_and_log(pairs, tmp_path):
    subject = network()
    before = numbers(subject)
    result = run(subject, pairs, objective=ROBUST, config=CONFIG, run_dir=tmp_path, validation_attack=None)
    assert_equal(numbers(subject), before)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert [row["step"] for row in result.history] == [3, 6, 9]
    expected = {"epoch", "step", "learning_rate", "seconds", "loss", "grad_norm", "adv_acc", "clean_acc", "delta_linf"}
    assert set(result.history[0]) == expected | {"delta_l2", "nan_delta", "val_clean_acc", "val_adv_acc"}
    assert result.history[0]["nan_delta"] == 0
    assert 0 < result.history[0]["delta_linf"] <= 0.1 + 1e-6
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == result.history
    assert set(os.listdir(tmp_path)) == {"config.json", "metrics.jsonl", "checkpoints"}
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["config"]["epochs"] == 3
    assert settings["objective"]["attack"]["set"] == {"type": "Linf", "radius": 0.1}
    assert (
        settings["validation_attack"]["steps"] == 10
    )  # PGD-10 on the set of training, where nothing else is asked for
    assert settings["versions"]["jax"] == jax.__version__


def test_standard_training_lowers_the_loss_and_reports_no_attack(pairs):
    config = dataclasses.replace(CONFIG, epochs=6)
    result = run(network(), pairs, objective=standard(), config=config, validation_attack=None)
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    assert "val_adv_acc" not in result.history[0]
    assert result.ema is None
    assert not result.overfitted


def test_the_best_epoch_is_the_one_returned(pairs):
    config = dataclasses.replace(CONFIG, epochs=6, learning_rate=0.1)
    result = run(network(), pairs, objective=ROBUST, config=config)
    scores = [(row["val_adv_acc"], row["val_clean_acc"]) for row in result.history]
    assert result.best_epoch == 1 + scores.index(max(scores))
    again = run(network(), pairs, objective=ROBUST, config=dataclasses.replace(config, validate_every=6))
    assert again.best_epoch == 6
    assert_equal(numbers(again.network), numbers(again.last))
    assert_equal(numbers(again.last), numbers(result.last))


def test_same_key_same_run(pairs):
    objective = adversarial(attacks.rs_fgsm(Linf(0.1)))
    first, second, other = (
        run(network(norm=True, dropout=0.2), pairs, objective=objective, config=CONFIG, key=jax.random.key(k))
        for k in (0, 0, 1)
    )
    assert_equal(numbers(first.last), numbers(second.last))
    assert without_times(first.history) == without_times(second.history)
    assert without_times(first.history) != without_times(other.history)


def test_a_second_run_compiles_nothing(pairs):
    count = [0]

    def traces():
        count[0] += 1

    def one_run(seed, radius, smoothing):
        before = count[0]
        subject = Mlp(16, 2, nnx.Rngs(seed), traces=traces)
        objective = adversarial(attacks.fgsm(Linf(radius)), label_smoothing=smoothing)
        config = dataclasses.replace(CONFIG, radius_warmup=1.0, ema_decay=0.5 + radius)
        fit(
            subject,
            pairs,
            objective=objective,
            config=config,
            key=jax.random.key(seed),
            validation_attack=None,
            progress=False,
        )
        return count[0] - before

    first, second, third = one_run(0, 0.1, 0.0), one_run(1, 0.2, 0.1), one_run(2, 0.3, 0.2)
    # Looking at the network's shapes at the door traces it, abstractly; the first run compiles it too.
    at_the_door = second
    assert third == at_the_door
    assert first > at_the_door


def test_radius_warms_up(pairs):
    config = dataclasses.replace(CONFIG, radius_warmup=2.0, validation=0.0)
    objective = adversarial(attacks.fgsm(Linf(0.1)))
    rows = run(network(), pairs, objective=objective, config=config).history
    # five steps an epoch: radii 0.01, 0.02 ... 0.1, and 0.1 from then on; FGSM goes to the edge of the ball
    np.testing.assert_allclose([row["delta_linf"] for row in rows], [0.03, 0.08, 0.1], rtol=1e-3)


@pytest.mark.slow
def test_several_attacks_warm_up_and_are_validated_by_their_worst(pairs):
    objective = several(FGSM, attacks.fgsm(L2(0.3)))
    config = dataclasses.replace(CONFIG, epochs=2, radius_warmup=2.0)
    result = run(network(), pairs, objective=objective, config=config, validation_attack=None)
    first, last = result.history
    assert first["delta_linf"] < last["delta_linf"]
    assert last["val_adv_acc"] <= last["val_clean_acc"]


@pytest.mark.slow
def test_perceptual_training_measures_with_the_network_in_training():
    """PAT, self-bounded: Fast-LPA on the ball of whatever the network's activations are at each step."""
    rng = np.random.default_rng(0)
    pairs = rng.uniform(0, 1, (16, 8, 8, 1)).astype(np.float32), rng.integers(0, 2, 16).astype(np.int32)
    attack = attacks.fast_lpa(Perceptual(0.5), steps=2)
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=4)
    subject = SmallCNN(width=2, hidden=8, classes=2, rngs=nnx.Rngs(0))
    (row,) = run(subject, pairs, objective=adversarial(attack), config=config).history
    assert 0 < row["delta_l2"] < 8
    assert row["nan_delta"] == 0


def test_moving_average_is_what_is_returned(pairs):
    result = run(
        network(norm=True), pairs, objective=ROBUST, config=dataclasses.replace(CONFIG, ema_decay=0.9, epochs=1)
    )
    assert_equal(numbers(result.network), numbers(result.ema))
    assert not np.array_equal(numbers(result.ema)["first"]["kernel"], numbers(result.last)["first"]["kernel"])
    assert result.classifier(pairs[0][:3]).shape == (3, 2)


def test_incomplete_batches_can_be_kept(pairs):
    config = dataclasses.replace(CONFIG, validation=0.0, batch_size=32, epochs=1)
    assert run(network(), pairs, objective=ROBUST, config=config).history[-1]["step"] == 2
    config = dataclasses.replace(config, drop_last=False)
    assert run(network(), pairs, objective=ROBUST, config=config).history[-1]["step"] == 3


def test_without_held_out_data_the_last_epoch_is_best(pairs):
    result = run(network(), pairs, objective=mixed(FGSM), config=dataclasses.replace(CONFIG, validation=0.0))
    assert result.best_epoch == 3
    assert_equal(numbers(result.network), numbers(result.last))


def test_catastrophic_overfitting_stops_the_run_and_goes_back(pairs, monkeypatch, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=6, stop_on_overfitting=True)
    whole = run(network(), pairs, objective=ROBUST, config=dataclasses.replace(config, epochs=2))
    assert 0 <= whole.history[0]["overfit_acc"] <= 1
    accuracies = iter([0.5, 0.45, 0.2])
    monkeypatch.setattr(trainer, "_monitor", lambda job, loop: (next(accuracies), 1000))
    result = run(network(), pairs, objective=ROBUST, config=config, run_dir=tmp_path)
    assert result.overfitted
    assert [row["overfit_acc"] for row in result.history] == [0.5, 0.45, 0.2]
    assert "val_adv_acc" not in result.history[-1]
    assert_equal(numbers(result.last), numbers(whole.last))
    assert result.best_epoch in (1, 2)
    again = run(network(), pairs, objective=ROBUST, config=config, run_dir=tmp_path)  # finished: nothing is run
    assert again.overfitted
    assert_equal(numbers(again.last), numbers(whole.last))


def test_overfitting_before_the_first_validation(pairs, monkeypatch):
    accuracies = iter([0.5, 0.2])
    monkeypatch.setattr(trainer, "_monitor", lambda job, loop: (next(accuracies), 1000))
    config = dataclasses.replace(CONFIG, epochs=6, stop_on_overfitting=True, validate_every=5)
    result = run(network(), pairs, objective=ROBUST, config=config)
    assert result.best_epoch == 1
    assert_equal(numbers(result.network), numbers(result.last))


def test_overfitting_is_watched_on_the_weights_that_train_and_on_enough_examples(pairs, monkeypatch):
    """The average's accuracy falls epochs later, when the epoch before is spoilt already."""
    config = dataclasses.replace(CONFIG, epochs=1, stop_on_overfitting=True, ema_decay=0.9999)
    watched, counts = [], []

    def correct(classifier, batch, attack, key):
        watched.append(np.asarray(classifier(pairs[0])))
        return 1, int(batch.mask.sum())

    monkeypatch.setattr(trainer._held_out, "batch_correct", correct)
    monkeypatch.setattr(trainer, "_overfitted", lambda before, now, count: bool(counts.append(count)))
    result = run(network(), pairs, objective=ROBUST, config=config)
    np.testing.assert_array_equal(watched[0], Classifier.from_nnx(result.last)(pairs[0]))
    assert np.abs(watched[0] - Classifier.from_nnx(result.ema)(pairs[0])).max() > 1e-3
    assert counts == [48]  # all that the epoch has, not the 16 of a batch


@pytest.mark.parametrize(
    ("before", "now", "count", "stops"),
    [
        (0.5, 0.25, 1000, True),
        (0.5, 0.31, 1000, False),
        (0.4, 0.1, 128, True),
        (0.5, 0.25, 16, False),  # 8 of 16 right, then 4 of other 16: one time in six by chance
        (0.9, 0.0, 16, True),
        (0.0, 0.9, 16, False),
    ],
)
def test_a_drop_is_overfitting_if_it_is_large_and_no_chance(before, now, count, stops):
    assert trainer._overfitted(before, now, count) is stops


def test_divergence_is_named(pairs, tmp_path):
    config = dataclasses.replace(CONFIG, optimizer="sgd", learning_rate=1e30, epochs=4, log_every=1)
    message = r"(loss|grad_norm) must stay finite; got (nan|inf) at step [23] \(epoch 1\)"
    with pytest.raises(FloatingPointError, match=message):
        run(network(), pairs, objective=standard(), config=config, run_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_divergence_in_the_last_update_is_named(pairs):
    config = dataclasses.replace(CONFIG, optimizer="sgd", learning_rate=3e38, weight_decay=1e30, epochs=1)
    config = dataclasses.replace(config, batch_size=32, drop_last=True, validation=0.0)
    data = tuple(part[:32] for part in pairs)
    with pytest.raises(FloatingPointError, match="parameters must stay finite; got NaN or infinity after step 1"):
        run(network(), data, objective=standard(), config=config)


def test_progress_shows_clean_accuracy_beside_adversarial(pairs, capsys):
    run(network(), pairs, objective=ROBUST, config=dataclasses.replace(CONFIG, log_every=2), progress=True)
    shown = capsys.readouterr().err
    assert "9/9" in shown
    for name in ("loss=", "clean_acc=", "adv_acc=", "val_clean_acc=", "val_adv_acc="):
        assert name in shown


def bad(**changes):
    return changes


BAD_KEYS = (0, None, np.zeros(2, np.uint32), jax.random.split(jax.random.key(0)))
IMAGES, LABELS = np.zeros((40, 4, 4, 1), np.float32), np.arange(40) % 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            bad(train_data=(IMAGES, LABELS.astype(np.float32))),
            TypeError,
            "train_data: labels must be an array of integers",
        ),
        (bad(train_data=(IMAGES, LABELS + 1)), ValueError, r"labels must lie in \[0, 2\), the network's classes"),
        (bad(train_data=(IMAGES, LABELS - 1)), ValueError, "train_data: labels must lie in"),
        (bad(train_data=(IMAGES + 2, LABELS)), ValueError, r"train_data: images must lie in \[0, 1\]"),
        (bad(train_data=(IMAGES * np.nan, LABELS)), ValueError, "train_data: images must lie in .*; got .* from nan"),
        (bad(train_data=(IMAGES[:0], LABELS[:0])), ValueError, "train_data: images must not be empty"),
        (bad(train_data=(IMAGES[..., 0], LABELS)), ValueError, r"train_data: images must have shape \(N, H, W, C\)"),
        (bad(train_data=IMAGES), TypeError, "train_data must be a jaxrobust.data.Dataset or a pair"),
        (bad(train_data=(IMAGES[:5], LABELS[:5])), ValueError, "batch_size must not exceed the 4 training"),
        (bad(train_data=(IMAGES[:, :3], LABELS)), ValueError, "the model failed on images of shape"),
        (bad(validation_data=(IMAGES[:, :3], LABELS)), ValueError, "validation_data must hold images of shape"),
        (bad(objective="adversarial"), TypeError, "objective"),
        (bad(config={"epochs": 3}), TypeError, "config"),
        (bad(objective=standard), TypeError, "objective must be an Objective|Type-check error"),
        (bad(augment="flip"), TypeError, "augment must be a function|Type-check error"),
        (bad(validation_attack="pgd"), TypeError, "validation_attack must be an Attack"),
        (bad(validation_attack=Linf(0.1)), TypeError, "validation_attack must be an Attack"),
        *((bad(key=key), TypeError, "key must be one typed key|Type-check error") for key in BAD_KEYS),
        (bad(key=jax.random.key(0, impl="rbg")), ValueError, "numbers change under vmap"),
        (bad(network=lambda x: x), TypeError, "network"),
        (
            bad(objective=standard(), config=dataclasses.replace(CONFIG, stop_on_overfitting=True)),
            ValueError,
            "stop_on_overfitting needs an objective with an attack",
        ),
    ],
)
def test_bad_input(changes, error, message, tmp_path):
    arguments = {"network": network(), "train_data": (IMAGES, LABELS), "objective": ROBUST, "config": CONFIG} | changes
    with pytest.raises(error, match=message):
        run(**arguments, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parameters_must_be_finite():
    broken = network()
    broken.first.kernel[...] = broken.first.kernel[...].at[0, 0].set(np.nan)
    with pytest.raises(ValueError, match="must be finite"):
        run(broken, (IMAGES, LABELS), objective=ROBUST, config=CONFIG)


@pytree("labels")
class Placed:
    """Clean training that reports whether an example stands where its index says."""

    labels: jax.Array

    def __call__(self, key, learner, batch):
        losses, aux = standard()(key, learner, batch)
        return losses, aux._replace(means={"placed": (self.labels[batch.index] == batch.labels).astype(np.float32)})


def test_examples_are_known_by_their_place_in_the_data_given(pairs):
    """Though some are held out."""
    result = run(network(), pairs, objective=Placed(jax.numpy.asarray(pairs[1])), config=CONFIG)
    assert [row["placed"] for row in result.history] == [1, 1, 1]


@pytest.mark.parametrize("objective", [free(0.1), llr(Linf(0.1))])
def test_sets_without_an_attack_are_validated_on(pairs, objective):
    options = {"devices": None, "mapping": "shard_map", "saved": False, "run_id": None}
    job, _ = prepare(network(), pairs, objective, jax.random.key(0), CONFIG, None, None, None, **options)
    assert (job.attack.steps, job.attack.set) == (10, Linf(0.1))


@pytest.mark.parametrize("objective", [group_dro([0, 1] * 30), group_smoothing([0] * 60, [0.9])])
def test_groups_of_other_data_are_refused(pairs, objective):
    with pytest.raises(ValueError, match=r"objective: Group.* must speak of all 80 examples .*; got groups of 60"):
        run(network(), pairs, objective=objective, config=CONFIG)
