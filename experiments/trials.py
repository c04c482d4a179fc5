"""A few steps of each recipe on this machine: whether its loss falls, and what a step takes.

    python -m experiments.trials cifar10 --steps 50 --width 16 --batch-size 16

The images are a recipe's own, and so are objective, optimiser, augmentation and precision; the learning rate stays at
its first value, and no radius grows. Each step has images that none before it had. Distances by AlexNet are by one
of the recipe `cifar10-alexnet` after as many steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import jaxrobust as jr
from experiments import tables
from experiments.recipes import RECIPES
from experiments.recipes.augment import augmentation
from experiments.recipes.recipe import Recipe
from jaxrobust import training
from jaxrobust.data import Loader

__all__ = ["trial"]

EDGE = 10  # steps of a mean of losses


def trial(recipe: Recipe, steps: int, measuring: Any = None) -> tuple[dict[str, Any], jr.Classifier]:
    """So many steps of a recipe.

    Args:
        recipe: the recipe, overrides in it.
        steps: at least 20.
        measuring: the classifier that measures perceptual distance, where the recipe wants one from outside.

    Returns:
        A row: the mean loss of the first and the last ten steps, the mean seconds of a step after the first and the
        seconds of that, which compiles; and the network.
    """
    trainable, params, state = jr.models.Trainable.from_nnx(recipe.network.make(0))
    optimizer = dataclasses.replace(recipe.train, schedule="constant").transformation(steps)
    objective = recipe.objective.make(measuring)
    augment = augmentation(recipe.augment)
    images = recipe.data.load(recipe.data.train, limit=steps * recipe.train.batch_size)
    loader = Loader(images, recipe.train.batch_size, seed=0, as_bytes=True)
    step = jax.jit(training.train_step, static_argnames=("optimizer", "augment", "accumulate"), donate_argnames="state")
    now, losses, ends = None, [], [time.perf_counter()]
    for batch in loader.epoch(0):
        if now is None:
            memory = training.first_memory(objective, trainable, params, state, batch)
            now = training.TrainState.create(params, state, optimizer, memory=memory)
        key = jax.random.fold_in(jax.random.key(0), len(losses))
        now, metrics = step(
            objective,
            trainable.computing(recipe.train.compute_dtype),
            optimizer,
            now,
            batch,
            key,
            augment=augment,
            accumulate=recipe.train.accumulate,
        )
        losses.append(float(metrics["loss"]))
        ends.append(time.perf_counter())
    seconds = np.diff(ends)
    row = {
        "recipe": recipe.name,
        "loss at first": float(np.mean(losses[:EDGE])),
        "loss at last": float(np.mean(losses[-EDGE:])),
        "s a step": float(np.mean(seconds[1:])),
        "s of the first": float(seconds[0]),
        "whole run": recipe.time,
    }
    return row, trainable.classifier(now.params, now.state)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all recipes of a data set; 0 if every loss has fallen, 1 if one has not, 2 if an argument is bad."""
    parser = argparse.ArgumentParser(prog="python -m experiments.trials", description=__doc__.partition("\n")[0])
    parser.add_argument("data", choices=sorted({name.partition("-")[0] for name in RECIPES}), help="whose recipes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes, without the name of the data set")
    parser.add_argument("--steps", type=int, default=50, help=f"at least {2 * EDGE}")
    parser.add_argument("--width", type=int, help="of the networks, in place of the recipes'")
    parser.add_argument("--batch-size", type=int, help="in place of the recipes'")
    parser.add_argument("--results", type=pathlib.Path, help="a folder for a page and a JSON file")
    given = parser.parse_args(arguments)
    names = [f"{given.data}-{name}" for name in given.only] if given.only else RECIPES
    chosen = [recipe for recipe in RECIPES.values() if recipe.name in names and recipe.name.startswith(given.data)]
    if given.steps < 2 * EDGE or not chosen:
        parser.error(f"--steps must be at least {2 * EDGE}, and --only name recipes; got {given.steps}, {given.only}")
    alexnet, rows = f"{given.data}-alexnet", []
    chosen.sort(key=lambda recipe: recipe.name != alexnet)
    measuring = None
    for recipe in chosen:
        changed = _changed(recipe, given.width, given.batch_size)
        if recipe.objective.external and measuring is None:
            print(f"{recipe.name}: left out, it measures by {alexnet}, which is not among those tried", flush=True)
            continue
        row, network = trial(changed, given.steps, measuring)
        measuring = network if recipe.name == alexnet else measuring
        rows.append(row)
        print(", ".join(f"{name} {_cell(value)}" for name, value in row.items()), flush=True)
        if given.results is not None:
            _save(given, rows)
    if not rows:
        return 2
    print(tables.aligned(_cells(rows)))
    return 0 if all(row["loss at last"] < row["loss at first"] for row in rows) else 1


def _changed(recipe: Recipe, width: int | None, batch_size: int | None) -> Recipe:
    network, train = recipe.network, recipe.train
    if width is not None:
        # that of a wide network is a factor on 16 channels
        network = dataclasses.replace(network, width=max(width // 16, 1) if network.kind.startswith("wide") else width)
    if batch_size is not None:
        train = dataclasses.replace(train, batch_size=batch_size)
    return dataclasses.replace(recipe, network=network, train=train)


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _save(given: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    only = " ".join(given.only) if given.only else None
    options = [("--only", only), ("--steps", given.steps), ("--width", given.width), ("--batch-size", given.batch_size)]
    command = " ".join(["python -m experiments.trials", given.data, *(f"{n} {v}" for n, v in options if v is not None)])
    facts = {"command": command, "date": tables.today(), "machine": tables.machine(), "rows": list(rows)}
    given.results.mkdir(parents=True, exist_ok=True)
    stem = given.results / f"{facts['date']}-trials-{given.data}"
    stem.with_suffix(".json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = tables.markdown(_cells(rows))
    head = f"# Trials of the recipes for {given.data}\n\n`{command}`, {facts['date']}, {facts['machine']}.\n\n"
    stem.with_suffix(".md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
