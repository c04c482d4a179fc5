"""What every experiment needs: a scale, data, trained networks and their evaluation, claims and their report."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxrobust as jr
from experiments import tables
from experiments.recipes.recipe import Data
from jaxrobust import attacks, sets, training


class NetS(jr.models.MnistNet):
    """`MnistNet`, whose activations have the dense layer too, a map of one pixel: 166,406 parameters at 28 pixels."""

    def activations(self, images: Any) -> tuple[Any, ...]:
        """Both convolutions and the dense layer after ReLU, each (N, h, w, c)."""
        maps = super().activations(images)
        return (*maps, nnx.relu(self.dense1(maps[-1].reshape(len(images), -1)))[:, None, None])

    def __call__(self, images: Any) -> Any:
        """Logits (N, K) of images (N, H, W, C) in [0, 1]."""
        return self.dense2(self.activations(images)[-1][:, 0, 0])


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of an experiment.

    Args:
        name: "smoke", "cpu" or "full".
        data: what `jr.data.load` loads.
        train: training images, the first ones.
        test: test images, the first ones.
        seeds: of training, where a claim is about training.
        network: from a seed to an untrained network.
        config: how it is trained.
        steps: PGD steps in training.
        attack_steps: PGD steps in evaluation.
        linf: l∞ radius.
        l2: l2 radius.
        l1: l1 radius.
        flow: radius of the flow, in half image sides.
    """

    name: str
    data: str
    train: int
    test: int
    seeds: int
    network: Callable[[int], nnx.Module]
    config: training.TrainConfig
    steps: int
    attack_steps: int
    linf: float
    l2: float
    l1: float
    flow: float

    def sets(self) -> dict[str, sets.PerturbationSet]:
        """The perturbation sets of the tables; l∞, l2 and flow are those of most."""
        return {
            "linf": sets.Linf(self.linf),
            "l2": sets.L2(self.l2),
            "flow": sets.Flow(self.flow),
            "l1": sets.L1(self.l1),
        }

    def attacks(self, steps: int, *names: str) -> dict[str, attacks.Attack]:
        """PGD on sets by name, by default l∞, l2 and flow. A flow starts at none: a random one scrambles the image."""
        chosen = names or ("linf", "l2", "flow")
        return {name: attacks.pgd(self.sets()[name], steps=steps, random_start=name != "flow") for name in chosen}


def _small(size: int) -> Callable[[int], nnx.Module]:
    return lambda seed: NetS(size=size, rngs=nnx.Rngs(seed))


def _config(epochs: int, batch: int, peak: float) -> training.TrainConfig:
    return training.TrainConfig(epochs=epochs, batch_size=batch, learning_rate=peak, schedule="cyclic", validation=0.0)


SCALES = {
    "smoke": Scale("smoke", "digits", 512, 64, 1, _small(8), _config(1, 64, 2e-3), 2, 3, 0.15, 0.8, 3.0, 2 / 8),
    "cpu": Scale(
        "cpu", "fashion_mnist", 10_000, 2000, 3, _small(28), _config(4, 128, 2e-3), 7, 40, 0.1, 1.5, 12.0, 2 / 28
    ),
    "full": Scale(
        "full",
        "cifar10",
        50_000,
        10_000,
        3,
        lambda seed: jr.models.PreActResNet(rngs=nnx.Rngs(seed)),
        training.TrainConfig(
            epochs=200, optimizer="sgd", learning_rate=0.1, schedule="piecewise", weight_decay=5e-4, validation=0.0
        ),
        10,
        100,
        8 / 255,
        1.0,
        12.0,
        0.05,
    ),
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """An inequality of numbers. An exact one holds at every scale, and so is judged at `smoke` too."""

    text: str
    measured: float
    relation: str
    threshold: float
    exact: bool = False

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return bool(self.measured >= self.threshold if self.relation == "≥" else self.measured <= self.threshold)


@dataclasses.dataclass(frozen=True)
class Result:
    """What an experiment found.

    Args:
        title: in a line.
        rows: a table, name -> value in each.
        claims: what was to hold.
        notes: what a reader must know, such as pilot figures.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    claims: Sequence[Claim]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where an experiment trains and evaluates: by `fit` and `robustness`, which go on where a killed run was.

    Args:
        scale: the size.
        folder: where runs are kept.
        progress: whether to show bars.
    """

    scale: Scale
    folder: pathlib.Path
    progress: bool = False

    @functools.cached_property
    def train_data(self) -> jr.data.Dataset:
        """The first training images."""
        return Data(self.scale.data).load("train", limit=self.scale.train)

    @functools.cached_property
    def test_data(self) -> jr.data.Dataset:
        """The first test images."""
        return Data(self.scale.data).load("test", limit=self.scale.test)

    def train(
        self, name: str, objective: Any, seed: int = 0, *, start: Any = None, augment: Any = None, **changes: Any
    ) -> training.TrainResult:
        """A network, trained; its first weights, the order of the images and the attacks' starts go with the seed.

        Args:
            name: of the run, whose folder this is.
            objective: what is minimised.
            seed: ≥ 0.
            start: the network to go on from, or None for a new one.
            augment: as `fit` has it.
            changes: settings of the configuration.

        Returns:
            What `fit` returns; the network of interest is `last`.
        """
        return training.fit(
            self.scale.network(seed) if start is None else start,
            self.train_data,
            objective=objective,
            config=dataclasses.replace(self.scale.config, **changes),
            key=jax.random.key(seed),
            augment=augment,
            run_dir=self.folder / "training" / f"{name}-{seed}",
            progress=self.progress,
        )

    def evaluate(
        self, name: str, network: Any, columns: Mapping[str, attacks.Attack], seed: int = 0, **options: Any
    ) -> jr.evaluate.Evaluation:
        """A network under attacks, on the test images or their first `count`; away from other `labels` where given."""
        count, labels = options.pop("count", None), options.pop("labels", self.test_data.labels)
        model = network if isinstance(network, jr.Classifier) else jr.Classifier.from_nnx(network)
        return jr.evaluate.robustness(
            model,
            (self.test_data.images[:count], labels[:count]),
            columns,
            key=jax.random.key(100),
            name=f"{name}-{seed}",
            lanes=min(128, self.scale.test),
            save_dir=self.folder / "evaluation" / f"{name}-{seed}",
            progress=self.progress,
            **options,
        )


def accuracies(evaluation: jr.evaluate.Evaluation, *names: str) -> dict[str, float]:
    """Clean accuracy, those under attacks by name (all by default), and their union and mean."""
    found = columns(evaluation, *names)
    each = [name for name in found if name != "clean"]
    union = np.all([evaluation[n].robust for n in each], axis=0).mean()
    return {**found, "union": float(union), "mean": float(np.mean([found[n] for n in each]))}


def columns(evaluation: jr.evaluate.Evaluation, *names: str) -> dict[str, float]:
    """Clean accuracy, and those under attacks by name (all by default)."""
    each = {n: float(evaluation[n].robust.mean()) for n in names or evaluation.outcomes}
    return {"clean": float(evaluation.clean.accuracy), **each}


def average(rows: Sequence[Mapping[str, float]], **names: Any) -> dict[str, Any]:
    """The mean of rows over seeds, and the deviation of each where there are several."""
    out: dict[str, Any] = dict(names)
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        out[name] = float(values.mean())
        if len(rows) > 1:
            out[f"{name} sd"] = float(values.std(ddof=1))
    return {**out, "seeds": len(rows)}


def save(identifier: str, result: Result, scale: Scale, folder: pathlib.Path, seconds: float) -> pathlib.Path:
    """Write a result as JSON and as a Markdown table, named and dated.

    Args:
        identifier: such as "X1".
        result: what was found.
        scale: at which.
        folder: where.
        seconds: how long it took.

    Returns:
        The Markdown file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    day = tables.today()
    stem = folder / f"{day}-{identifier}-{scale.name}"
    seeds = "" if scale.seeds == SCALES[scale.name].seeds else f" --seeds {scale.seeds}"
    facts = {
        "experiment": identifier,
        "title": result.title,
        "command": f"python -m experiments.claims {identifier} --scale {scale.name}{seeds}",
        "date": day,
        "machine": tables.machine(),
        "seconds": round(seconds, 1),
        "data": f"{scale.data}, {scale.train} training images, first {scale.test} test images",
        "rows": [dict(row) for row in result.rows],
        "claims": [{**dataclasses.asdict(claim), "holds": claim.holds} for claim in result.claims],
        "notes": list(result.notes),
    }
    stem.with_suffix(".json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = stem.with_suffix(".md")
    page.write_text(_markdown(facts), encoding="utf-8")
    return page


def _markdown(facts: Mapping[str, Any]) -> str:
    rows = facts["rows"]
    names = [n for n in dict.fromkeys(name for row in rows for name in row) if not n.endswith(" sd")]

    def cell(row: Mapping[str, Any], name: str) -> str:
        value = row.get(name, "")
        if not isinstance(value, float):
            return str(value)
        spread = row.get(f"{name} sd")
        shown = f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
        return shown + (f" ± {spread:.3f}" if spread is not None else "")

    table = tables.markdown([names, *([cell(row, name) for name in names] for row in rows)])
    claims = [["claim", "measured", "asked for", "holds"]]
    for c in facts["claims"]:
        asked, verdict = f"{c['relation']} {c['threshold']:.4g}", "yes" if c["holds"] else "NO"
        claims.append([c["text"], f"{c['measured']:.4g}", asked, verdict])
    return "\n".join(
        [
            f"# {facts['experiment']}: {facts['title']}",
            "",
            f"`{facts['command']}`, {facts['date']}, {facts['machine']}, {facts['seconds']:.0f} s. {facts['data']}.",
            "Figures are fractions of 1, means over seeds ± their standard deviation.",
            "",
            *table,
            "",
            *tables.markdown(claims),
            "",
            *(f"- {note}" for note in facts["notes"]),
            "",
        ]
    )


def run(identifier: str, experiment: Any, scale: Scale, runs: pathlib.Path, results: pathlib.Path, bars: bool) -> bool:
    """Run an experiment, write what it found, and say whether what is judged at this scale holds."""
    began = time.perf_counter()
    result = experiment(Bench(scale, runs / scale.name, bars))
    page = save(identifier, result, scale, results, time.perf_counter() - began)
    print(page.read_text(encoding="utf-8"))
    return all(claim.holds for claim in result.claims if claim.exact or scale.name != "smoke")
