"""Train three networks on real data, attack each in eight ways, and write one page about it.

    python -m experiments.quickstart

Data: scikit-learn's digits, which ship with it. Hardware: two CPU cores, four minutes.
Expected, in %, on JAX 0.10.2 (another version rounds otherwise):
              clean  linf    l2    l1  StAdv  Wasserstein  rotation  PPGD   LPA  union  unseen mean
    standard   98.3  12.5  10.3   4.7   33.7         14.2      17.3  39.8  36.8    2.5         21.2
     AT linf   94.4  59.3  42.1   9.7   62.1         29.8      29.8  55.7  54.3    6.4         40.5
       AT l2   90.3  54.6  49.0  19.8   59.6         44.6      29.2  54.3  53.5   12.5         45.1
A run that was killed goes on where it was when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
import time
from typing import Any

import jax
import tyro
from flax import nnx

import jaxrobust as jr
from experiments.tables import aligned, percents
from jaxrobust import _store, attacks, sets, training


@dataclasses.dataclass(frozen=True)
class Config:
    """Standard and adversarially trained networks on digits, under eight attacks of all kinds and their union.

    Args:
        run_dir: the run folder: checkpoints, results.json, pictures and report.html.
        linf: l∞ radius, in pixel units of [0, 1].
        l2: l2 radius.
        l1: l1 radius.
        flow: radius of StAdv's flow, in half widths of the image.
        wasserstein: Wasserstein radius (p=1, 5x5 windows): mean pixels that the ink moves.
        rotation: largest rotation, in degrees.
        translation: largest translation, in pixels.
        perceptual: radius of the perceptual ball; the attacked network's own activations measure.
        epochs: training epochs of each network.
        train_steps: PGD steps of adversarial training.
        steps: steps of the evaluation's attacks; PPGD takes half as many, LPA five rounds of a quarter.
        restarts: lp PGD runs of the evaluation, each from its own random start.
        examples: test images to evaluate; all by default.
        seed: seed of all randomness.
        progress: whether to show progress bars.
    """

    run_dir: pathlib.Path = pathlib.Path("runs/quickstart")
    linf: float = 0.15
    l2: float = 0.8
    l1: float = 3.0
    flow: float = 0.05
    wasserstein: float = 0.1
    rotation: float = 15.0
    translation: float = 0.5
    perceptual: float = 0.5
    epochs: int = 15
    train_steps: int = 10
    steps: int = 40
    restarts: int = 2
    examples: int | None = None
    seed: int = 0
    progress: bool = True

    def columns(self) -> dict[str, attacks.Attack]:
        """The columns of the table: a line each."""
        ascent = functools.partial(attacks.pgd, steps=self.steps, restarts=self.restarts)
        transport = sets.Wasserstein(self.wasserstein)
        rigid = sets.RotationTranslation(rotation=self.rotation, translation=self.translation)
        perceptual = sets.Perceptual(self.perceptual)
        return {
            "linf": ascent(sets.Linf(self.linf)),
            "l2": ascent(sets.L2(self.l2)),
            "l1": ascent(sets.L1(self.l1)),
            "StAdv": attacks.stadv(sets.Flow(self.flow), steps=self.steps),
            "Wasserstein": attacks.frank_wolfe(transport, steps=self.steps),
            "rotation": attacks.grid_search(rigid),
            "PPGD": attacks.ppgd(perceptual, steps=max(self.steps // 2, 1)),
            "LPA": attacks.lpa(perceptual, steps=max(self.steps // 4, 1)),
        }

    def objectives(self) -> dict[str, tuple[training.Objective, tuple[str, ...]]]:
        """The rows of the table, each with the columns that it is trained on: a line each."""
        crafted = {n: attacks.pgd(self.columns()[n].set, steps=self.train_steps) for n in ("linf", "l2")}
        return {
            "standard": (training.standard(), ()),
            "AT linf": (training.adversarial(crafted["linf"]), ("linf",)),
            "AT l2": (training.adversarial(crafted["l2"]), ("l2",)),
        }


def main(config: Config) -> pathlib.Path:
    """Run the experiment, or what is left of it, and return the page."""
    began = time.perf_counter()
    config = dataclasses.replace(config, run_dir=_store.local("--run-dir", config.run_dir))
    settings = {n: v for n, v in dataclasses.asdict(config).items() if n not in ("run_dir", "progress")}
    if jr.evaluate.is_finished(config.run_dir, settings):
        return jr.report.render(config.run_dir)

    key = jax.random.key(config.seed)
    train, test = jr.data.load("digits", "train"), jr.data.load("digits", "test")
    x, y = test.images[: config.examples], test.labels[: config.examples]
    columns = config.columns()

    recipe = training.TrainConfig(
        epochs=config.epochs, batch_size=64, schedule="cosine", learning_rate=3e-3, radius_warmup=3.0
    )
    models, evaluations = {}, []
    for name, (objective, trained_on) in config.objectives().items():
        started = time.perf_counter()
        fitted = training.fit(
            jr.models.SmallCNN(width=16, rngs=nnx.Rngs(config.seed)),
            train,
            objective=objective,
            config=recipe,
            key=jax.random.fold_in(key, 0),
            run_dir=config.run_dir / "training" / name.replace(" ", "-"),
            progress=config.progress,
        )
        models[name] = fitted.classifier
        evaluations.append(
            jr.evaluate.robustness(
                fitted.classifier,
                (x, y),
                columns,
                key=jax.random.fold_in(key, 1),
                name=name,
                trained_on=trained_on,
                notes={"training seconds": round(time.perf_counter() - started, 1), "training": fitted.history},
                save_dir=config.run_dir / "evaluation" / name.replace(" ", "-"),
                progress=config.progress,
            )
        )
        print(evaluations[-1], flush=True)

    curve_key = jax.random.fold_in(key, 2)
    one_run = {name: dataclasses.replace(a, restarts=1) if a.restarts > 1 else a for name, a in columns.items()}
    radii = {
        name: [float(attack.set.radius) * f for f in FRACTIONS]
        for name, attack in columns.items()
        if not isinstance(attack.set, sets.Perceptual)
    }
    page = jr.evaluate.save_run(
        config.run_dir,
        evaluations,
        title="Quickstart: three networks on digits",
        models=models,
        data={"name": "digits", "split": "test"},
        config=settings,
        curves=jr.evaluate.curves(
            models, (x[:CURVES], y[:CURVES]), one_run, radii, key=curve_key, progress=config.progress
        ),
        trajectories=jr.evaluate.trajectories(models, (x[:TRAJECTORIES], y[:TRAJECTORIES]), one_run, key=curve_key),
        seconds=time.perf_counter() - began,
    )
    print(table(evaluations))
    return page


# Radii of the robustness curves, as fractions of the radius of the table, and the examples they are taken of: as
# many as there are lanes, so that the programs of the table serve again. The perceptual attacks, the dearest, have
# none.
FRACTIONS = (0.25, 0.5, 1.0, 1.5)
CURVES = 128
TRAJECTORIES = 32


def table(evaluations: list[Any]) -> str:
    """The table of accuracies in %, a row a model."""
    names = list(evaluations[0].outcomes)
    header = ["", "clean", *names, "union", "unseen mean"]
    rows = [header]
    for e in evaluations:
        cells = [e.clean.accuracy, *(e.accuracy(n).accuracy for n in names), e.union.accuracy, e.unseen_mean]
        rows.append([e.name, *percents(None if cell is None else 100 * cell for cell in cells)])
    return aligned(rows)


if __name__ == "__main__":
    try:
        page = main(tyro.cli(Config, description=__doc__))
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"report: {page}")
