"""A run that is stopped, in whatever way, and started again ends with equal numbers."""

import dataclasses
import functools
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from jaxrobust import attacks
from jaxrobust.data import CentreCrop, Dataset, LazyDataset, RandomResizedCrop
from jaxrobust.losses import cross_entropy
from jaxrobust.sets import L2, Linf
from jaxrobust.training import TrainConfig, adversarial, fit, free, several, standard
from jaxrobust.training._run import describe_data
from tests.training.tiny import Mlp, assert_equal, without_times

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.01, ema_decay=0.9, checkpoint_every=2, log_every=2)
OBJECTIVE = adversarial(attacks.rs_fgsm(Linf(0.1)))


class Interrupted(Exception):
    """What befalls the run."""


class Fragile(Dataset):
    """A data set at whose n-th reading something happens."""

    readings = 0
    event = staticmethod(lambda number: None)

    def fetch(self, positions):
        Fragile.readings += 1
        Fragile.event(Fragile.readings)
        return super().fetch(positions)


def train_data(event=lambda number: None):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (90, 4, 4, 1)).astype(np.float32)
    labels = (images.mean((1, 2, 3)) > 0.5).astype(np.int32)
    Fragile.readings, Fragile.event = 0, staticmethod(event)
    return Fragile(images, labels, ("dark", "bright"))


def run(
    run_dir, *, event=lambda number: None, config=CONFIG, objective=OBJECTIVE, key=0, seed=0, network=None, **options
):
    network = Mlp(16, 2, nnx.Rngs(seed), norm=True, dropout=0.1) if network is None else network
    key = jax.random.key(key)
    return fit(
        network,
        train_data(event),
        objective=objective,
        config=config,
        key=key,
        validation_attack=attacks.fgsm(Linf(0.1)),
        run_dir=run_dir,
        progress=False,
        **options,
    )


def outcome(result):
    networks = (result.network, result.last, result.ema)
    states = [nnx.to_pure_dict(nnx.state(network, (nnx.Param, nnx.BatchStat))) for network in networks]
    return states, result.best_epoch, without_times(result.history)


@pytest.fixture(scope="module")
def undisturbed():
    return outcome(run(None))


@pytest.mark.parametrize("reading", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8, 12))])
def test_an_exception_in_the_middle(reading, undisturbed, tmp_path):
    def event(number):
        if number == reading:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, event=event)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) < 3
    result = run(tmp_path)
    networks, best, history = outcome(result)
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == result.history


REMEMBERING = {
    "errors": several(attacks.fgsm(Linf(0.1)), attacks.fgsm(L2(0.5)), combine="errors"),
    "free": free(0.1, replays=3),
}


@pytest.mark.parametrize("name", ["free", pytest.param("errors", marks=pytest.mark.slow)])
def test_what_an_objective_remembers_is_taken_up_again(name, tmp_path):
    def event(number):
        if number == 5:
            raise Interrupted

    config = dataclasses.replace(CONFIG, epochs=2, checkpoint_every=1)
    options = {"objective": REMEMBERING[name], "config": config}
    undisturbed = outcome(run(None, **options))
    with pytest.raises(Interrupted):
        run(tmp_path, event=event, **options)
    networks, best, history = outcome(run(tmp_path, **options))
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]
    # 81 examples train, and every batch as often as the objective says
    assert [row["step"] for row in history] == [
        5 * getattr(REMEMBERING[name], "replays", 1) * epoch for epoch in (1, 2)
    ]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(undisturbed, tmp_path):
    run(tmp_path)
    newest, before = sorted(
        (p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: -int(p.name)
    )
    for path in (path for path in newest.rglob("*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=rf"checkpoint '.*/{newest.name}' cannot be read; going on from {before.name}"):
        result = run(tmp_path)
    networks, best, history = outcome(result)
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]
    assert outcome(run(tmp_path))[2] == history
    for folder in (tmp_path / "checkpoints").iterdir():
        for path in folder.rglob("*METADATA*"):
            path.unlink()
    with pytest.raises(ValueError, match=rf"no checkpoint can be read: .*/{newest.name}'.* to start anew"):
        run(tmp_path)


def test_rows_after_the_last_checkpoint_are_not_kept_twice(undisturbed, tmp_path):
    run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 4}\n{"ep')
    assert outcome(run(tmp_path))[2] == undisturbed[2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_finished_run_is_only_read(undisturbed, tmp_path):
    run(tmp_path)
    readings = Fragile.readings
    again = run(tmp_path)
    assert readings > 0
    assert Fragile.readings == 0
    assert_equal(outcome(again)[0], undisturbed[0])


def test_sigterm_saves_and_takes_its_course(undisturbed, tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    config = dataclasses.replace(CONFIG, checkpoint_every=None)
    try:
        with pytest.raises(InterruptedError, match=r"SIGTERM: saved and stopped after step [1-9]"):
            run(tmp_path, config=config, event=lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == 3 else None)
        assert received == [signal.SIGTERM]  # handed on to whoever wanted it before
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] != []
        networks, best, history = outcome(run(tmp_path, config=config))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": dataclasses.replace(CONFIG, epochs=4)}, r"differs in config\.epochs: 3 there, 4 here$"),
        ({"objective": adversarial(attacks.rs_fgsm(Linf(0.2)))}, r"attack\.set\.radius: 0\.1 there, 0\.2 here"),
        ({"objective": standard()}, r"objective\.type: 'Adversarial' there, 'Standard' here"),
        ({"key": 1}, r"differs in key: "),
        ({"seed": 1}, r"differs in parameters: "),
        ({"network": Mlp(16, 2, nnx.Rngs(0))}, r"differs in parameters: .*; network: what .*Mlp is made of"),
    ],
)
def test_another_runs_folder_is_refused(changes, message, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        run(finished, **changes)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def wired(activation):
    """A network whose activation stands nowhere but in its code."""

    class Wired(Mlp):
        __call__ = {
            "relu": lambda self, images: self.second(nnx.relu(self.first(images.reshape(len(images), -1)))),
            "tanh": lambda self, images: self.second(nnx.tanh(self.first(images.reshape(len(images), -1)))),
        }[activation]

    return Wired(16, 2, nnx.Rngs(0))


def brighter(by):
    return lambda key, images, index: (images + by).clip(0, 1)


def ascending(sign):
    return adversarial(attacks.fgsm(Linf(0.1), loss=lambda logits, goal: sign * cross_entropy(logits, goal.label)))


@dataclasses.dataclass(frozen=True)
class Scaled:
    """An objective of the user's own."""

    factor: float = 1.0

    def __call__(self, key, learner, batch):
        losses, aux = standard()(key, learner, batch)
        return self.factor * losses, aux


def told(**changes):
    """A run of functions that look alike from outside."""
    schedule = optax.cosine_decay_schedule(1.0, 20)
    config = dataclasses.replace(CONFIG, epochs=1, schedule=changes.pop("schedule", schedule))
    usual = {"network": wired("relu"), "augment": brighter(0.1), "objective": ascending(1.0)}
    return usual | {"config": config} | changes


def begin(folder, **options):
    """A run that ends where its training would start: the folder is there."""

    def event(number):
        raise Interrupted

    with pytest.raises(Interrupted):
        run(folder, event=event, **options)


@pytest.fixture(scope="module")
def told_apart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    begin(folder, **told())
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network": lambda: wired("tanh")}, "network"),
        ({"augment": lambda: brighter(0.2)}, "augment"),
        ({"augment": lambda: functools.partial(brighter(0.1))}, "augment"),
        ({"schedule": lambda: optax.cosine_decay_schedule(1.0, 30)}, r"config\.schedule"),
        ({"objective": lambda: ascending(-1.0)}, "objective"),
        ({"run_id": lambda: "mine"}, "run_id: None there, 'mine' here"),
    ],
)
def test_what_looks_alike_is_told_apart(changes, named, told_apart):
    with pytest.raises(ValueError, match=rf"belongs to a run that differs in {named}"):
        run(told_apart, **told(**{name: make() for name, make in changes.items()}))


def test_what_was_built_again_is_the_same_run(told_apart):
    begin(told_apart, **told())


def test_parameters_are_known_to_rounding(told_apart):
    """Another device begins with numbers that it has rounded differently."""

    def moved(by):
        network = wired("relu")
        network.first.kernel[...] *= 1 + by
        return told(network=network)

    begin(told_apart, **moved(3e-7))
    with pytest.raises(ValueError, match=r"differs in parameters: other values in 1 of 4 arrays, first params\.first"):
        run(told_apart, **moved(1e-3))


def test_dropout_counts(tmp_path):
    first, second = (Mlp(16, 2, nnx.Rngs(0), dropout=rate) for rate in (0.1, 0.2))
    begin(tmp_path, network=first)
    with pytest.raises(ValueError, match=r"differs in network: what .*Mlp is made of"):
        run(tmp_path, network=second)


def test_what_cannot_be_identified_wants_a_run_id(tmp_path):
    class Locked:
        lock = threading.Lock()

        def __call__(self, key, images, index):
            return images

    with pytest.raises(ValueError, match=r"^augment.*lock must be something that can be recognised .*run_id="):
        run(tmp_path, augment=Locked())
    assert not list(tmp_path.iterdir())
    begin(None, augment=Locked())
    begin(tmp_path, augment=Locked(), run_id="mine")
    begin(tmp_path, augment=Locked(), run_id="mine")
    with pytest.raises(ValueError, match="run_id: 'mine' there, 'yours' here"):
        run(tmp_path, augment=Locked(), run_id="yours")


class Records:
    """Encoded images as a data source gives them."""

    def __init__(self, seed=0):
        self.seed = seed

    def __getitems__(self, places):
        return [{"image": self.image(place), "label": place % 2} for place in places]

    def image(self, place):
        pixels = np.random.default_rng((self.seed, place)).integers(0, 256, (4, 4), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()


def lazy(seed=0, size=None):
    return LazyDataset(Records(seed), np.arange(6000), (4, 4, 1), ("a", "b"), size, ("image", "label"), "mine", "train")


def test_positions_and_contents_of_data_on_disk_count():
    kinds = [lazy()[0:256], lazy()[5000:5256], lazy()[np.arange(256)[::-1]], lazy(seed=1)[0:256]]
    kinds += [dataclasses.replace(lazy()[0:256], crop=crop) for crop in (CentreCrop(4), RandomResizedCrop(4))]
    described = [json.dumps(describe_data(data)) for data in kinds]
    assert len(set(described)) == len(kinds)
    assert json.dumps(describe_data(lazy()[np.arange(256)])) == described[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


def test_logging_may_differ(undisturbed, finished):
    config = dataclasses.replace(CONFIG, log_every=1, checkpoint_every=1)
    assert_equal(outcome(run(finished, config=config))[0], undisturbed[0])


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"run_dir must be new, empty, or the folder of a training run"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="run_dir must be a folder"):
        run(tmp_path / "thesis.tex")


def test_a_damaged_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1, "con')
    with pytest.raises(ValueError, match="is damaged, not valid JSON"):
        run(tmp_path)
    (tmp_path / "config.json").write_text('{"complete": true}')
    with pytest.raises(ValueError, match="not of a training run"):
        run(tmp_path)


def test_a_folder_killed_before_its_first_checkpoint_starts_over(undisturbed, tmp_path):
    (tmp_path / ".config.json.1.partial").write_text("{")  # killed while the very first file was written
    assert_equal(outcome(run(tmp_path))[0], undisturbed[0])


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from tests.training.test_resume import run
run(sys.argv[1], event=lambda n: os.kill(os.getpid(), int(sys.argv[2])) if n == int(sys.argv[3]) else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "reading"), [(signal.SIGKILL, 9), (signal.SIGTERM, 9)])
def test_a_killed_process(number, reading, undisturbed, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), str(int(number)), str(reading)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run(arguments, cwd=root, env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -number, killed.stderr.decode()
    assert list((tmp_path / "checkpoints").iterdir())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) < 3
    networks, best, history = outcome(run(tmp_path))
    assert_equal(networks, undisturbed[0])
    assert (best, history) == undisturbed[1:]
