"""What a recipe is: data, network, objective, training, evaluation and the numbers to expect, as plain values.

Everything is text and numbers, so that the command line can change each of them and a run folder can hold them all.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import tyro
from flax import nnx

import jaxrobust as jr
from experiments.recipes.augment import augmentation
from experiments.recipes.networks import NETWORKS
from jaxrobust import _checks, _store
from jaxrobust.cli import objectives, specs
from jaxrobust.cli.models import WEIGHTS
from jaxrobust.training import TrainConfig, _run

__all__ = [
    "FILE",
    "SPEED",
    "Data",
    "Network",
    "Objective",
    "Recipe",
    "Run",
    "Suite",
    "bound",
    "estimate",
    "load_run",
    "only_correct",
    "row",
]

FILE = "recipe.json"  # in a run folder
SPEED = 40e12  # flop/s that an accelerator of 2024 is taken to reach in float32 networks


def estimate(giga: float, passes: float, images: int, epochs: float, *, speed: float = SPEED) -> str:
    """The time of a training run nobody has measured, in words.

    Args:
        giga: 10⁹ floating-point operations of one image forward and backward.
        passes: forward and backward passes of an image in a step, those of the attack among them.
        images: of an epoch.
        epochs: how many.
        speed: floating-point operations a second.

    Returns:
        The time, and that it is an estimate.

    Example:
        >>> estimate(7.8, 11, 50_000, 100)
        '3 h (estimate, at 40 Tflop/s)'
    """
    minutes = giga * 1e9 * passes * images * epochs / speed / 60
    shown = f"{minutes / 60:.0f} h" if minutes >= 60 else f"{max(minutes, 1):.0f} min"
    return f"{shown} (estimate, at {speed / 1e12:.0f} Tflop/s)"


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from.

    Args:
        name: of `data.load`.
        train: the split that is trained on.
        test: the split that is evaluated on.
        size: squares of so many pixels; None leaves images as they are.
        in_memory: whether the training images are held in memory.
        random_crop: whether training images are cut out at random as they are decoded, at `size` or 224 pixels.
        folder: of prepared data sets, a local one or gs://BUCKET/FOLDER; by default TFDS_DATA_DIR.
    """

    name: str
    train: str = "train"
    test: str = "test"
    size: int | None = None
    in_memory: bool = True
    random_crop: bool = False
    folder: str | None = None

    def load(self, split: str, *, limit: int | None = None) -> Any:
        """The examples of a split, at most so many."""
        if limit is not None:
            found = None if "[" in split else self._first(split, limit)
            return self.load(split)[:limit] if found is None else found
        return self._load(split, split)

    def _first(self, split: str, limit: int) -> Any:
        """The first examples of a whole split, without reading more; None where it has not as many."""
        try:
            return self._load(split, f"{split}[:{limit}]")
        except ValueError:
            return None

    def _load(self, split: str, part: str) -> Any:
        how: dict[str, Any] = {"size": self.size, "in_memory": self.in_memory or split != self.train}
        if split == self.train and self.random_crop:
            how = {"crop": jr.data.RandomResizedCrop(self.size or 224), "in_memory": False}
        try:
            return jr.data.load(self.name, part, data_dir=self.folder, **how)
        except RuntimeError as error:  # not prepared, and the ways out
            raise ValueError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class Network:
    """What is trained.

    Args:
        kind: a name of `experiments.recipes.networks.NETWORKS`.
        width: channels of the first stage, or the factor of a wide network; None for the published.
        activation: "relu", "silu" or "softplus", where the network has a choice; None for its own.
        classes: how many.
    """

    kind: str
    width: int | None = None
    activation: str | None = None
    classes: int = 10

    def make(self, seed: int) -> nnx.Module:
        """The network before training."""
        make = NETWORKS[_checks.choice("network.kind", self.kind, NETWORKS)]
        chosen = {"width": self.width, "activation": self.activation}
        given = {name: value for name, value in chosen.items() if value is not None}
        if self.kind == "mnist-net" and given:
            raise ValueError(f"network.{next(iter(given))} must be left out: mnist-net has the published one alone")
        return make(classes=self.classes, rngs=nnx.Rngs(seed), **given)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What training minimises, in the words of `jaxrobust train`.

    Args:
        name: of `jaxrobust list objectives`.
        attacks: ATTACK:SET:RADIUS[:OPTION=VALUE,...] each, or a name of `OWN`.
        options: NAME=VALUE,... of the objective.
        external: whether perceptual sets are measured by the network that `--alexnet` names, not by the trained one.
    """

    name: str = "standard"
    attacks: tuple[str, ...] = ()
    options: str = ""
    external: bool = False

    def make(self, alexnet: Any) -> Any:
        """The objective; `alexnet` is the classifier that measures, or None."""
        made = [OWN[text]() if text in OWN else specs.attack(text) for text in self.attacks]
        if self.external:
            made = [dataclasses.replace(attack, set=_measured(attack.set, alexnet)) for attack in made]
        return objectives.objective(self.name, made, dict(specs.read_options(self.options, "objective.options")))


@dataclasses.dataclass(frozen=True)
class Suite:
    """What the trained network is attacked with. A column of the table is all attacks whose names begin alike, up to
    the first space: an example withstands it if it withstands them all.

    Args:
        suites: [NAME=]SUITE[:RADIUS] each, as in `jaxrobust evaluate`.
        attacks: [NAME=]ATTACK:SET[:RADIUS][:OPTION=VALUE,...] each.
        trained_on: the columns that training has seen, which do not count as unseen.
        union: the columns of the union; empty for all.
        unseen: the columns that may count as unseen; empty for all.
        external: whether perceptual sets are measured by the network that `--alexnet` names.
        examples: the first so many test images; None for all.
    """

    suites: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    union: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    external: bool = False
    examples: int | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run and its evaluation.

    Args:
        name: how it is called.
        about: what it is, a line.
        hardware: what the time is of.
        time: of the training; an estimate where it does not say measured.
        published: column -> accuracy in %, as its source has it.
        source: of the published numbers, and how certain they are.
        data: where images come from.
        network: what is trained.
        objective: what training minimises.
        train: optimiser, schedule, length.
        augment: transforms of training images: crop, flip and so on.
        suite: what it is evaluated by.
        alexnet: the run folder of the recipe that trains the measuring AlexNet, or a torchvision file of one.
    """

    name: Annotated[str, tyro.conf.Suppress]
    about: Annotated[str, tyro.conf.Suppress]
    hardware: Annotated[str, tyro.conf.Suppress]
    time: Annotated[str, tyro.conf.Suppress]
    published: Annotated[tuple[tuple[str, float], ...], tyro.conf.Suppress]
    source: Annotated[str, tyro.conf.Suppress]
    data: Data
    network: Network
    objective: Objective
    train: TrainConfig
    augment: tuple[str, ...] = ()
    suite: Suite = Suite()
    alexnet: str | None = None

    def measuring(self) -> Any:
        """The classifier that measures perceptual distance, or None where `alexnet` is."""
        if self.alexnet is None:
            return None
        path = _store.place(self.alexnet)
        if path.is_dir():
            return load_run(path)[1]
        return jr.Classifier.from_nnx(jr.models.load_torchvision(path, jr.models.AlexNet(rngs=nnx.Rngs(0))))


@dataclasses.dataclass(frozen=True)
class Run:
    """A recipe with all that determines the numbers of a run of it; what a run folder's `recipe.json` holds.

    Args:
        recipe: the recipe, overrides in it.
        seed: of all randomness.
        steps: a run of so few steps, for a trial; None for the whole.
    """

    recipe: Recipe
    seed: int = 0
    steps: int | None = None

    def config(self) -> TrainConfig:
        """The settings of `fit`."""
        if self.steps is None:
            return self.recipe.train
        return dataclasses.replace(self.recipe.train, epochs=1, validation=0.0, drop_last=True)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `training.fit` that make the run, the data left out, which are the dearest."""
        recipe = self.recipe
        return {
            "augment": augmentation(recipe.augment),
            "objective": recipe.objective.make(recipe.measuring() if recipe.objective.external else None),
            "config": self.config(),
            "network": recipe.network.make(self.seed),
            "key": jax.random.key(self.seed),
        }

    def train_data(self) -> Any:
        """The training images, of a trial only as many as it needs."""
        limit = None
        if self.steps is not None:
            # an objective may take several steps on a batch
            own = None if self.recipe.objective.external else self.recipe.objective.make(None)
            limit = -(-self.steps // getattr(own, "replays", 1)) * self.recipe.train.batch_size
        return self.recipe.data.load(self.recipe.data.train, limit=limit)

    def save(self, folder: _store.Path) -> None:
        """Write `recipe.json`, or make sure that the one that is there is the same; all processes of a run call it.

        One whose training was refused, and so never began, is in nobody's way.

        Raises:
            ValueError: the folder holds a run that differs; the message says in what.
            OSError: it cannot be read or written.
        """
        path, mine = folder / FILE, json.loads(json.dumps(dataclasses.asdict(self)))
        with _store.reached(folder, name="--run-dir", unless=(ValueError,)):
            begun = any(there.is_file() for there in (folder / "training" / "config.json", folder / WEIGHTS))
            known = _read(path) if begun and path.is_file() else None
        there, here = _store.flat(mine if known is None else known), _store.flat(mine)
        differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        if differing:
            told = "; ".join(f"{n}: {there.get(n)!r} there, {here.get(n)!r} here" for n in differing)
            raise ValueError(f"--run-dir {str(folder)!r} holds another run: {told}")
        _run.together("recipe")  # each has looked
        if known is None and jax.process_index() == 0:
            with _store.reached(folder, name="--run-dir"):
                _store.write_json(path, mine)


def load_run(folder: _store.Path) -> tuple[Run, jr.Classifier]:
    """The run that a folder holds, and the classifier that it has trained: that of the best epoch.

    Args:
        folder: of a finished `experiments.train`.

    Returns:
        Run and classifier.

    Raises:
        ValueError: it is no such folder, or training has not ended.
    """
    path, weights = folder / FILE, folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"RUN must be the folder of a run of experiments.train; {str(folder)!r} has no {FILE}")
    try:
        run = _of_json(Run, _read(path))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} must be what experiments.train wrote; got {error!r}") from error
    if not weights.is_file():
        raise ValueError(f"RUN must have finished training; {str(folder)!r} has no {WEIGHTS}: give its command again")
    network = jr.models.load_npz(weights, run.recipe.network.make(run.seed))
    return run, jr.Classifier.from_nnx(network)


def _read(path: _store.Path) -> Any:
    """What a `recipe.json` holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged, not valid JSON ({error}); remove it to start anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} must be what experiments.train wrote; got a JSON {type(found).__name__}")
    return found


def only_correct(attack: str) -> Objective:
    """The published loop of perceptual training with another attack: images that are wrong already stay as they are."""
    return Objective("adversarial", (attack,), "only_attack_correct=true")


def row(columns: Sequence[str], values: Sequence[float | None]) -> tuple[tuple[str, float], ...]:
    """A row of a published table, without what it does not have."""
    return tuple((name, value) for name, value in zip(columns, values, strict=True) if value is not None)


def _measured(ball: Any, alexnet: Any) -> Any:
    if not isinstance(ball, jr.sets.Perceptual):
        return ball
    if alexnet is None:
        raise ValueError(
            "--alexnet must name the network that measures perceptual distance: the run folder of the recipe "
            "cifar10-alexnet, or torchvision's AlexNet as a file"
        )
    return dataclasses.replace(ball, network=alexnet)


def bound(attacks: Mapping[str, Any], alexnet: Any) -> dict[str, Any]:
    """Attacks, their perceptual sets measured by a network of their own."""
    return {name: dataclasses.replace(one, set=_measured(one.set, alexnet)) for name, one in attacks.items()}


def _msd() -> Any:
    # steps of 0.003, 0.05 and 1; its l2 radius in training is below that of the evaluation, as published
    balls = (jr.sets.Linf(0.03), jr.sets.L2(0.3), jr.sets.L1(12.0))
    sizes = (1 / 10, 1 / 6, 1 / 12)
    return jr.attacks.msd(jr.sets.Union(balls), steps=50, relative_step_sizes=sizes, random_start=False)


# attacks in training that no command line can write
OWN = {"msd-cifar10": _msd}


def _of_json(kind: Any, found: Any) -> Any:
    """A dataclass from what `dataclasses.asdict` and JSON made of it."""
    if not dataclasses.is_dataclass(kind):
        return _tuples(found)
    hints = typing.get_type_hints(kind)
    return kind(**{name: _of_json(hints[name], value) for name, value in found.items()})  # type: ignore[operator]


def _tuples(found: Any) -> Any:
    return tuple(map(_tuples, found)) if isinstance(found, list) else found
