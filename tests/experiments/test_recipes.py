"""Every recipe is what it says: it can be made, traced, changed from the command line, run and evaluated."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrobust as jr
from experiments import evaluate, recipes, train
from experiments.recipes.networks import NETWORKS
from experiments.recipes.recipe import Run, Suite, _of_json, estimate
from jaxrobust import _store
from jaxrobust.cli import specs
from jaxrobust.data import Batch, sources
from jaxrobust.models.trainable import Trainable
from jaxrobust.training import TrainState, first_memory, train_step
from tests.bucket import standing_in

NAMES = list(recipes.RECIPES)
COUNT = 6


class Maps(nnx.Module):
    """One convolution, with activations, for images of any size."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, 4, (3, 3), 2, rngs=rngs)
        self.dense = nnx.Linear(4, classes, rngs=rngs)

    def activations(self, images):
        return (nnx.relu(self.conv(images)),)

    def __call__(self, images):
        return self.dense(self.activations(images)[0].mean((1, 2)))


def measuring(channels=3):
    return jr.Classifier.from_nnx(Maps(channels, 10, rngs=nnx.Rngs(1)))


@pytest.mark.parametrize("name", NAMES)
def test_all_parts_of_a_recipe_can_be_made(name, monkeypatch):
    recipe = recipes.RECIPES[name]
    objective = recipe.objective.make(measuring())
    assert isinstance(objective, jr.training.Objective)
    assert np.isfinite(recipe.train.rates(1000)(0))
    assert recipe.network.kind in NETWORKS
    assert recipe.time
    assert recipe.hardware
    assert bool(recipe.published) <= bool(recipe.source)
    groups = specs.plan(list(recipe.suite.suites), list(recipe.suite.attacks), ())
    columns = {one.partition(" ")[0] for group in groups for one in group.attacks}
    assert set(recipe.suite.union) <= columns
    assert {column for column, _ in recipe.published} <= columns | {"clean", "union", "unseen mean"}
    # and back from what a run folder holds
    run = Run(recipe, 3, 20)
    assert _of_json(Run, json.loads(json.dumps(dataclasses.asdict(run)))) == run


@pytest.mark.slow
def test_networks_have_the_shapes_of_their_data():
    """Abstractly: nothing is computed."""
    shapes = {"madry": (28, 28, 1), "mnist-net": (28, 28, 1), "small-cnn": (8, 8, 1), "resnet50": (64, 64, 3)}
    for kind in sorted({recipe.network.kind for recipe in recipes.RECIPES.values()}):

        def logits(kind=kind):
            network = NETWORKS[kind](classes=7, rngs=nnx.Rngs(0), **{} if kind == "mnist-net" else {"width": 2})
            return network(jnp.zeros((2, *shapes.get(kind, (32, 32, 3)))))

        assert jax.eval_shape(logits).shape == (2, 7), kind


def test_the_published_table_obeys_its_own_rule():
    """The union is at most the least column, and the mean of the unseen is that of the unseen."""
    exceptions = {"imagenet100-standard"}  # printed so by its source
    checked = 0
    for name, recipe in recipes.RECIPES.items():
        row, suite = dict(recipe.published), recipe.suite
        narrow = [row[column] for column in suite.union if column in row]
        if "union" in row and narrow:
            assert row["union"] <= min(narrow)
        if "unseen mean" in row and name not in exceptions:
            unseen = [row[column] for column in suite.unseen if column not in suite.trained_on]
            assert np.mean(unseen) == pytest.approx(row["unseen mean"], abs=0.0751), name
            checked += 1
    assert checked == 8 + 7


def traced(recipe, shape):
    """The metrics of a step by the recipe's objective and optimiser, abstractly, of a tiny network."""
    objective = jax.tree.map(
        lambda part: dataclasses.replace(part, steps=1) if hasattr(part, "steps") else part,
        recipe.objective.make(measuring(shape[-1])),
        is_leaf=lambda part: isinstance(part, jr.attacks.Attack),
    )
    if recipe.objective.name.startswith("several"):
        assert len(objective.attacks) > 1
    optimizer = recipe.train.transformation(100)
    augment = recipes.augment.augmentation(recipe.augment)

    def step():
        trainable, params, state = Trainable.from_nnx(Maps(shape[-1], recipe.network.classes, rngs=nnx.Rngs(0)))
        images, index = jnp.zeros((COUNT, *shape)), jnp.arange(COUNT)
        batch = Batch(images, jnp.zeros(COUNT, jnp.int32), jnp.ones(COUNT, bool), index)
        memory = first_memory(objective, trainable, params, state, batch)
        start = TrainState.create(params, state, optimizer, memory=memory)
        return train_step(objective, trainable, optimizer, start, batch, jax.random.key(0), augment=augment)[1]

    return jax.eval_shape(step)


@pytest.mark.slow
def test_a_step_of_every_objective_and_attack_traces():
    done = set()
    for recipe in recipes.RECIPES.values():
        # attacks that differ in numbers alone trace alike
        parts = {recipe.objective.name, *(":".join(text.split(":")[:2]) for text in recipe.objective.attacks)}
        if not parts <= done:
            done |= parts
            shape = (8, 8, 1) if recipe.data.name in ("digits", "mnist") else (16, 16, 3)
            assert "loss" in traced(recipe, shape), recipe.name


@pytest.mark.parametrize("name", ["jitter", "jitter-imagenet", "lighting", "rotation"])
def test_transforms_leave_grey_images_grey_and_stay_in_the_box(name):
    image = jnp.clip(jax.random.uniform(jax.random.key(0), (16, 16, 3)) * 1.2 - 0.1, 0, 1)
    transform = jax.jit(recipes.augment.AUGMENTATIONS[name])
    found = transform(jax.random.key(1), image)
    assert found.shape == image.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert float(jnp.abs(found - image).max()) > 0 or name == "rotation"  # of so small an image no pixel may move
    if name != "lighting":
        grey = transform(jax.random.key(1), jnp.full_like(image, 0.5))[8, 8]
        np.testing.assert_allclose(grey, grey[0], atol=1e-5)


def test_the_list_has_hardware_time_and_numbers():
    text = train.listed()
    for name, recipe in recipes.RECIPES.items():
        assert f"{name}: " in text
        assert recipe.time in text
    assert "clean 71.6, linf 28.7, l2 33.3" in text
    assert estimate(7.8, 11, 50_000, 100) == "3 h (estimate, at 40 Tflop/s)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "cifar10-pat-sel"), "close ones are cifar10-pat-self"),
        ((), "--recipe must name one"),
        (("--recipe", "digits-standard", "--steps", "0"), "--steps must be >= 1; got 0"),
        (("--recipe", "digits-standard", "--seed", "-1"), "--seed must be from 0"),
        (("--recipe", "digits-standard", "--schedule", "warp"), "schedule must be one of .*; got 'warp'"),
        (("--recipe", "digits-standard", "--augment", "warp"), "augment must be one of .*; got 'warp'"),
        (("--recipe", "digits-standard", "--network.kind", "warp"), "network.kind must be one of .*; got 'warp'"),
        (("--recipe", "cifar10-pat-alexnet"), "--alexnet must name the network"),
        (("--recipe", "digits-at-linf", "--objective.attacks", "pgd:linf"), "needs a radius"),
        (("--recipe", "digits-at-linf", "--objective.options", "beta=2"), "an option of adversarial must be one of"),
        (("--recipe", "digits-at-linf", "--tensorboard"), "needs tensorboardX: pip install"),
        (("--recipe", "digits-standard", "--processes", "2"), "--processes goes with --distributed, which is missing"),
        (("--recipe", "digits-standard", "--train.batch-size", "5000"), "batch_size must not exceed the 1294"),
        (("--recipe", "digits-standard", "--data.train", "train[:5"), "split must"),
        (("--recipe", "digits-standard", "--data.name", "fashion_mnist"), "'fashion_mnist' is not prepared in"),
    ],
)
def test_bad_input_of_train(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(sources, "_has_tensorflow", lambda: False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        train.main(train.read([*arguments, "--run-dir", str(tmp_path / "run")]))
    Run(recipes.find("mnist-madry")).save(tmp_path / "run")  # the next command may have the folder


@pytest.mark.parametrize("split", ["train", "train[:100]"])
def test_a_trial_has_as_many_images_as_it_wants_and_there_are(split):
    recipe = recipes.find("digits-standard")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=split))
    whole = len(recipe.data.load(split))
    for steps in (1, 100):
        run = Run(recipe, steps=steps)
        assert len(run.train_data()) == min(whole, steps * recipe.train.batch_size)


def test_unknown_overrides_are_told_with_close_names(capsys):
    with pytest.raises(SystemExit):
        train.read(["--recipe", "digits-standard", "--train.epoks", "3"])
    assert "--train.epochs" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--train.schedule", "cosine"], ["--train.schedule=cosine"]])
def test_the_flag_for_the_schedule_is_named(given):
    with pytest.raises(ValueError, match=r"--train\.schedule must be given as --schedule NAME"):
        train.read(["--recipe", "digits-standard", *given])
    assert train.read(["--recipe", "digits-standard", "--schedule", "cosine"]).schedule == "cosine"


def test_a_folder_without_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match=r"has no recipe\.json"):
        evaluate.main(evaluate.Options(tmp_path))
    run = Run(recipes.find("digits-standard"))
    run.save(tmp_path)
    run.save(tmp_path)
    with pytest.raises(ValueError, match="must have finished training"):
        evaluate.main(evaluate.Options(tmp_path))
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "config.json").touch()
    with pytest.raises(ValueError, match="holds another run: seed: 0 there, 1 here"):
        dataclasses.replace(run, seed=1).save(tmp_path)
    (tmp_path / "weights.npz").touch()
    for text, message in (("{", "not valid JSON"), ("[1]", "a JSON list"), ('{"extra": 1}', "KeyError")):
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(ValueError, match=rf"recipe\.json'.* {message}"):
            evaluate.main(evaluate.Options(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": 0}, "--examples must be >= 1; got 0"),
        ({"seed": -1}, "--seed must be from 0"),
    ],
)
def test_bad_input_of_evaluate(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate.main(evaluate.Options(tmp_path, **changes))


def test_columns_are_of_several_attacks():
    """The union is over those that the suite says, and what was trained on is seen."""
    rows = {"linf a": [1, 1, 0, 1], "linf b": [1, 0, 1, 1], "l2": [1, 1, 0, 0], "lpa": [0, 0, 0, 1], "ppgd": [0] * 4}

    class Found(dict):
        clean = types.SimpleNamespace(accuracy=0.75)

        def robust(self, name):
            return np.array(self[name], bool)

    found = Found(rows)
    suite = Suite(union=("linf", "l2"), unseen=("linf", "l2", "lpa"), trained_on=("lpa",))
    assert evaluate.columns(found, suite) == {
        "clean": 75.0, "linf": 50.0, "l2": 50.0, "lpa": 25.0, "ppgd": 0.0, "union": 25.0, "unseen mean": 50.0
    }  # fmt: skip
    text = evaluate.table(evaluate.columns(found, suite), {"clean": 80.0, "union": 21.9})
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["measured", "published"]


def test_tensorboard_has_every_row_once(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            (tmp_path / "tensorboard").mkdir()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def flush(self):
            pass

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "training").mkdir()
    row = {"epoch": 1, "step": 5, "loss": 2.0, "learning_rate": 0.1}
    with train._board(tmp_path):
        (tmp_path / "training" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert written == [("loss", 2.0, 5), ("learning_rate", 0.1, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run", "gs://bucket/run"])
def test_a_recipe_from_training_to_its_page(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with standing_in(tmp_path):
        from_training_to_the_page(_store.place(place), tmp_path, capsys)
    assert not (tmp_path / "gs:").exists()


def from_training_to_the_page(folder, tmp_path, capsys):
    command = ["--recipe", "digits-at-linf", "--run-dir", str(folder), "--no-progress", "--steps", "2"]
    command += ["--objective.attacks", "fgsm:linf:0.15", "--network.width", "2", "--train.batch-size", "16"]
    train.main(train.read(command))
    weights = (folder / "weights.npz").read_bytes()
    (folder / "weights.npz").unlink()  # as where it was killed after the last step
    train.main(train.read(command))
    assert (folder / "weights.npz").read_bytes() == weights
    assert json.loads((folder / "recipe.json").read_text())["recipe"]["network"]["width"] == 2
    options = evaluate.Options(folder, attack=("linf=fgsm:linf:0.15",), examples=20, progress=False)
    page = evaluate.main(options)
    (model,) = json.loads((page.parent / "results.json").read_text())["models"]
    assert model["trained_on"] == ["linf"]
    assert set(model["notes"]["columns"]) == {"clean", "linf", "union", "unseen mean"}
    capsys.readouterr()
    assert evaluate.main(options) == page  # nothing is left to do
    assert "measured" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--columns must be of \['linf'\]; got 'l3'"):
        evaluate.main(dataclasses.replace(options, columns=("l3",), out=tmp_path / "other"))
    with pytest.raises(ValueError, match="--steps must be >= 1, and is of suites, of which there are 0; got 2"):
        evaluate.main(dataclasses.replace(options, steps=2, out=tmp_path / "other"))
