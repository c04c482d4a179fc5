"""Members of a population: each is what it is alone, whoever the others are; and a killed run ends as if it had not."""

import dataclasses
import functools
import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrobust import attacks
from jaxrobust.models import SmallCNN
from jaxrobust.sets import Linf
from jaxrobust.training import Standard, TrainConfig, adversarial, fit, fit_many, free, group_dro, many, standard
from tests.training.tiny import Mlp, assert_equal

CONFIG = TrainConfig(
    epochs=2,
    batch_size=8,
    optimizer="sgd",
    learning_rate=0.1,
    schedule="cosine",
    ema_decay=0.9,
    drop_last=False,
    validation=0.0,
)
ROBUST = adversarial(attacks.rs_fgsm(Linf(0.1)))
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (60, 4, 4, 1)).astype(np.float32)
LABELS = (IMAGES.mean((1, 2, 3)) > 0.5).astype(np.int32)
SUBSETS = [np.arange(0, 20), np.arange(20, 33), np.arange(33, 60)]  # of 3, 2 and 4 batches, one not full
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(8))
# of an architecture with all that could mix examples or draw numbers
made = functools.cache(lambda: lambda key: Mlp(16, 2, nnx.Rngs(key), norm=True, dropout=0.2))()


def run(data=(IMAGES, LABELS), network=made, objective=ROBUST, **options):
    defaults = {"key": jax.random.key(0), "config": CONFIG, "subsets": SUBSETS, "chunk": 4, "progress": False}
    return fit_many(network, data, objective=objective, **defaults | options)


def numbers(result, places=slice(None)):
    history = {name: values[places] for name, values in result.history.items()}
    return jax.tree.map(lambda leaf: np.asarray(leaf)[places], (result.params, result.state)), history


@pytest.fixture(scope="module")
def alone():
    return run()


def test_others_change_nothing(alone):
    """Neither their number, nor their place, nor their data, nor how long they train."""
    data = (
        np.where(np.arange(60)[:, None, None, None] < 20, IMAGES, 1 - IMAGES),
        np.where(np.arange(60) < 20, LABELS, 0),
    )
    others = [*SUBSETS[:1], np.arange(20, 60), np.arange(3), [59] * 9, np.arange(1, 58)]  # two chunks, one padded
    assert_equal(numbers(run(data, subsets=others), [0]), numbers(alone, [0]))
    order = np.array([2, 0, 0, 1, 2])
    moved = run(subsets=[SUBSETS[place] for place in order], key=KEYS[order])
    assert_equal(numbers(moved), numbers(alone, order))
    assert not np.array_equal(numbers(alone, [0])[1]["loss"], numbers(alone, [1])[1]["loss"])


def test_each_is_its_own_run_to_rounding(alone):
    for member, (places, key) in enumerate(zip(SUBSETS[:2], KEYS, strict=False)):
        network = made(jax.random.fold_in(key, 4))
        data = IMAGES[places], LABELS[places]
        own = fit(network, data, objective=ROBUST, key=key, config=CONFIG, validation_attack=None, progress=False)
        kinds = (nnx.Param, nnx.BatchStat)
        first, second = (nnx.to_pure_dict(nnx.state(one, kinds)) for one in (own.network, alone.network(member)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), first, second)
        for epoch, row in enumerate(own.history):
            for name, values in alone.history.items():
                assert values[member, epoch] == pytest.approx(row[name], abs=1e-4), name


def test_a_member_that_diverges_disturbs_no_other():
    config = dataclasses.replace(CONFIG, epochs=1, ema_decay=None)
    calm, wild = standard(), Standard(np.float32(3e38))
    both, neither = (
        run(objective=[calm, other, calm], config=config, network=Mlp(16, 2, nnx.Rngs(0))) for other in (wild, calm)
    )
    assert both.finite.tolist() == [True, False, True]
    assert_equal(numbers(both, [0, 2]), numbers(neither, [0, 2]))


def test_logits_and_classifiers(alone):
    logits = alone.logits(IMAGES, batch_size=16)
    assert logits.shape == (3, 60, 2)
    np.testing.assert_array_equal(alone.logits(IMAGES[5:6], batch_size=16)[:, 0], logits[:, 5])
    for member, classifier in enumerate(alone.classifiers):
        np.testing.assert_allclose(classifier(IMAGES), logits[member], atol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda model: model(IMAGES))(alone.stack), logits, atol=1e-5)
    assert len(alone) == 3
    with pytest.raises(TypeError, match="images must be floating point"):
        alone.logits((IMAGES * 255).astype(np.uint8))
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        alone.logits(IMAGES * 255)
    with pytest.raises(ValueError, match="at least one image"):
        alone.logits(IMAGES[:0])
    with pytest.raises(ValueError, match="member must be below 3"):
        alone.network(5)
    last = jax.tree.map(lambda leaf: leaf.at[1].set(np.nan), alone.params)
    assert dataclasses.replace(alone, params=last).finite.tolist() == [True, False, True]


@pytest.mark.slow
def test_label_vectors_are_the_members_own():
    """Those of examples that a member does not have may be what they like."""
    options = {"objective": standard(), "network": Mlp(16, 2, nnx.Rngs(0)), "subsets": SUBSETS[:2]}
    other = np.where(np.arange(60) < 20, LABELS, 1 - LABELS)
    mine = run(labels=np.stack([LABELS, other]), **options)
    same = run((IMAGES, other), **options)
    # labels with an axis of members are another program
    for first, second in zip(jax.tree.leaves(numbers(mine)), jax.tree.leaves(numbers(same)), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


class Interrupted(Exception):
    """What befalls the run."""


@pytest.mark.parametrize("reading", [3, 6])
def test_a_stopped_run_goes_on(reading, alone, monkeypatch, tmp_path):
    """In the first chunk of one and in the second, which has another member."""
    subsets, key = [*SUBSETS, *SUBSETS], np.arange(6) % 3
    monkeypatch.setattr(many, "SAVE_EVERY", 0.0)
    read, calls = many._Chunk.read, []

    def fragile(chunk, *rest):
        calls.append(0)
        if len(calls) == 2 * reading:
            raise Interrupted
        read(chunk, *rest)

    monkeypatch.setattr(many._Chunk, "read", fragile)
    with pytest.raises(Interrupted):
        run(subsets=subsets, key=KEYS[key], run_dir=tmp_path)
    assert (tmp_path / "running.npz").exists()
    result = run(subsets=subsets, key=KEYS[key], run_dir=tmp_path)
    assert_equal(numbers(result), numbers(alone, key))
    assert len(calls) < 4 * reading + 16
    before = len(calls)
    assert_equal(numbers(run(subsets=subsets, key=KEYS[key], run_dir=tmp_path)), numbers(alone, key))
    assert len(calls) == before
    with pytest.raises(ValueError, match="belongs to a run that differs in subsets"):
        run(subsets=subsets[::-1], key=KEYS[key], run_dir=tmp_path)
    if reading == 3:
        first = tmp_path / "members-00000000.npz"
        first.unlink()
        assert_equal(numbers(run(subsets=subsets, key=KEYS[key], run_dir=tmp_path)), numbers(alone, key))
        for other in ("members-00000003.npz", "members-x.npz"):
            first.rename(tmp_path / other)
            with pytest.raises(ValueError, match=rf"{other}' does not hold members"):
                run(subsets=subsets, key=KEYS[key], run_dir=tmp_path)
            (tmp_path / other).rename(first)
        first.unlink()
        np.savez(tmp_path / "running.npz", members=np.arange(4))
        with pytest.raises(ValueError, match=r"running.npz' lacks"):
            run(subsets=subsets, key=KEYS[key], run_dir=tmp_path)


def test_sigterm_saves_first(alone, monkeypatch, tmp_path):
    plans, plan = [], many.Population.plan

    def counted(*arguments):
        plans.append(0)
        if len(plans) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plan(*arguments)

    monkeypatch.setattr(many.Population, "plan", counted)
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # whose course would be the end of the tests
    try:
        with pytest.raises(InterruptedError, match="epoch 2"):
            run(run_dir=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert_equal(numbers(run(run_dir=tmp_path)), numbers(alone))


@pytest.mark.slow
def test_devices_change_nothing():
    """Five members on two devices of two: a chunk of four, then one that is filled up."""
    order = np.array([0, 1, 2, 0, 1])
    result = run(subsets=[SUBSETS[place] for place in order], key=KEYS[order], chunk=2, devices=2)
    one = run(subsets=[SUBSETS[place] for place in order], key=KEYS[order], chunk=2)
    assert_equal(numbers(result), numbers(one))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "objective", "chunk"),
    [
        (SmallCNN(size=4, width=2, hidden=4, classes=2, rngs=nnx.Rngs(0)), standard(), None),
        (Mlp(16, 2, nnx.Rngs(0)), free(0.1, replays=2), 2),
    ],
)
def test_convolutions_memories_and_warm_up(network, objective, chunk):
    config = dataclasses.replace(CONFIG, radius_warmup=1.0, drop_last=True)
    result = run(network=network, objective=objective, chunk=chunk, config=config)
    assert result.chunk == (chunk or 1)
    own = fit(network, (IMAGES[:20], LABELS[:20]), objective=objective, key=KEYS[0], config=config, progress=False)
    for epoch, row in enumerate(own.history):
        assert result.history["loss"][0, epoch] == pytest.approx(row["loss"], abs=1e-5)


def test_groups_in_a_program_of_many():
    """Their number is static; and no rate makes exp(η ℓ) overflow."""
    network, config = Mlp(16, 2, nnx.Rngs(0)), dataclasses.replace(CONFIG, ema_decay=None)
    objective = group_dro(LABELS, rate=1e6)
    result = run(network=network, objective=objective, subsets=None, members=2, chunk=2, config=config)
    assert result.finite.all()
    assert result.history["loss"][:, -1].max() < 10


class Unhashable:
    """An augmentation that equals others and so has no hash."""

    def __eq__(self, other):
        return True

    def __call__(self, key, images, index):
        return images


MASK = np.ones((2, 60), bool)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"subsets": MASK.astype(int)},
            ValueError,
            r"subsets\[0\] must be a mask of booleans or positions; got 60 integers",
        ),
        ({"subsets": MASK[:, :59]}, ValueError, r"subsets\[0\] must have one boolean for each of 60 examples; got 59"),
        ({"subsets": [[0, 1], [60]]}, ValueError, r"subsets\[1\] must lie in 0..59; got 60..60"),
        ({"subsets": [[0, 1], []]}, ValueError, r"subsets\[1\] must hold at least one example"),
        ({"subsets": MASK.astype(int)}, ValueError, r"integers 0 and 1 \(of a mask: .astype\(bool\)\)"),
        ({"subsets": [[0.5]]}, ValueError, r"subsets\[0\] must be a mask \(60,\) of booleans or a list of integers"),
        ({"subsets": 3}, TypeError, "subsets must be M masks or lists"),
        (
            {"config": dataclasses.replace(CONFIG, drop_last=True), "subsets": [[0, 1]]},
            ValueError,
            "at least batch_size=8",
        ),
        ({"labels": np.zeros((3, 59), int)}, ValueError, r"labels must be integers \(M, 60\); got int64\[3, 59\]"),
        ({"labels": np.full((3, 60), 2)}, ValueError, r"labels must lie in \[0, 2\), the network's classes; got 2..2"),
        ({"labels": np.zeros((2, 60), int)}, ValueError, "must agree in how many there are; got subsets 3, labels 2"),
        ({"members": 4}, ValueError, "members 4, subsets 3"),
        ({"subsets": None}, ValueError, "members must say how many"),
        ({"key": KEYS[:2]}, ValueError, "subsets 3, key 2"),
        ({"key": 0}, TypeError, "key"),
        ({"objective": "robust"}, TypeError, "objective"),
        ({"objective": [ROBUST, standard(), ROBUST]}, ValueError, "for member 1 beside"),
        ({"objective": group_dro([0] * 20)}, ValueError, "must speak of all 60 examples"),
        ({"objective": group_dro([0] * 60)}, ValueError, "so subsets must be None"),
        ({"config": TrainConfig()}, ValueError, "config must have validation=0"),
        ({"augment": Unhashable()}, TypeError, "augment must be hashable"),
        ({"network": Mlp}, TypeError, "network must be what fit takes, such as an nnx.Module, or a function of a key"),
        ({"network": lambda key: 3}, TypeError, "network must be an nnx.Module"),
        ({"data": (IMAGES[:, :3], LABELS)}, ValueError, "the model failed on images of shape"),
        ({"chunk": 0}, ValueError, "chunk must be >= 1"),
        ({"devices": 99}, ValueError, "devices must be at most"),
    ],
)
def test_bad_input(changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run(**changes, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
