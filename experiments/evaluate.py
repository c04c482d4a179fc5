"""Evaluate what a recipe has trained, by the recipe's own suite, the published figures beside.

    python -m experiments.evaluate runs/digits-at-linf
    python -m experiments.evaluate runs/cifar10-pat-self --alexnet runs/cifar10-alexnet --examples 1000

A killed evaluation goes on where it was when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import numpy as np
import tyro

import jaxrobust as jr
from experiments.recipes.recipe import Recipe, Suite, bound, load_run
from experiments.tables import aligned, percents
from jaxrobust import _store
from jaxrobust.cli import specs
from jaxrobust.cli.evaluate import evaluated, remember_programs
from jaxrobust.cli.models import training_notes

__all__ = ["Options", "main", "table"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Attack the network of a run's best epoch; which one it is, and by what, the run folder says.

    Args:
        run: the run folder of experiments.train.
        out: where results.json and report.html go; by default RUN/evaluation.
        suite: suites in place of the recipe's, as in `jaxrobust evaluate`; "none" for none.
        attack: attacks in place of the recipe's; "none" for none.
        columns: of the recipe's table only these, such as linf and stadv.
        examples: the first so many test images; by default those of the recipe.
        steps: fewer steps of suites, for a first look; the result says so.
        queries: fewer queries of suites, likewise.
        alexnet: what measures perceptual distance, a run folder or a torchvision file; by default the recipe's.
        lanes: examples in flight at once.
        seed: of all randomness.
        progress: whether to show progress bars.
    """

    run: tyro.conf.Positional[str]
    out: str | None = None
    suite: tuple[str, ...] = ()
    attack: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    examples: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    steps: int | None = None
    queries: int | None = None
    alexnet: str | None = None
    lanes: int = 128
    seed: int = 0
    progress: bool = True


def main(options: Options) -> _store.Path:
    """Evaluate, or what is left of it, print the table, and return the page."""
    began = time.perf_counter()
    specs.check_seed(options.seed)
    if options.examples is not None and options.examples < 1:
        raise ValueError(f"--examples must be >= 1; got {options.examples}")
    remember_programs()
    folder = _store.place(options.run)
    run, model = load_run(folder)
    recipe = run.recipe if options.alexnet is None else dataclasses.replace(run.recipe, alexnet=options.alexnet)
    suite = _chosen(recipe.suite, options)
    groups = [group for group in _planned(recipe, suite, options) if group.attacks]
    out = _store.place(options.out or folder / "evaluation")
    settings = {"run": json.loads(json.dumps(dataclasses.asdict(run))), "suite": dataclasses.asdict(suite)}
    settings |= {name: getattr(options, name) for name in ("steps", "queries", "alexnet", "seed", "columns")}
    if jr.evaluate.is_finished(out, settings):
        print(json.loads((out / "results.json").read_text(encoding="utf-8"))["models"][0]["notes"]["table"])
        return jr.report.render(out)
    trained = training_notes(options.run)  # read first, since it may be damaged
    test = recipe.data.load(recipe.data.test, limit=suite.examples)
    names = [name for group in groups for name in group.attacks]
    seen = tuple(name for name in names if _column(name) in suite.trained_on)
    found = evaluated(
        model,
        (test.images, test.labels),
        groups,
        key=jax.random.key(options.seed),
        name=recipe.name,
        trained_on=seen,
        lanes=options.lanes,
        save_dir=out / "progress",
        progress=options.progress,
    )
    measured = columns(found, suite)
    shown = table(measured, dict(recipe.published))
    published = {"published": dict(recipe.published), "source": recipe.source} if recipe.published else {}
    found = found.with_notes(table=shown, columns=measured, **published, **trained)
    page = jr.evaluate.save_run(
        out,
        [found],
        title=f"{recipe.name} on {test.name} {test.split}",
        data={"name": test.name, "split": test.split, "class_names": list(test.class_names)},
        config=settings,
        seconds=time.perf_counter() - began,
    )
    print(found)
    print(shown)
    return page


def columns(found: jr.evaluate.Evaluation, suite: Suite) -> dict[str, float | None]:
    """Accuracy in % by column, the union and the mean of the unseen, by the suite's rules.

    Args:
        found: the evaluation, whose attacks are grouped by the first words of their names.
        suite: what belongs to the union, and what was unseen.

    Returns:
        Column -> %.
    """
    robust: dict[str, np.ndarray] = {}
    for name in found:
        # of a suite the later attacks keep what earlier ones have broken
        robust[_column(name)] = robust.get(_column(name), True) & found.robust(name)
    accuracies = {name: 100 * float(rows.mean()) for name, rows in robust.items()}
    union = [rows for name, rows in robust.items() if not suite.union or name in suite.union]
    unseen = {name: value for name, value in accuracies.items() if not suite.unseen or name in suite.unseen}
    both = {"union": 100 * float(np.logical_and.reduce(union).mean()) if union else None}
    both["unseen mean"] = jr.evaluate.outcomes.unseen_mean(unseen, suite.trained_on)
    return {"clean": 100 * found.clean.accuracy, **accuracies, **both}


def table(measured: Mapping[str, float | None], published: Mapping[str, float]) -> str:
    """The table of accuracies in %, measured and published, a column a column.

    Args:
        measured: of `columns`.
        published: column -> accuracy in %.

    Returns:
        Text.
    """
    names = list(dict.fromkeys([*measured, *published]))
    rows = [["", *names]]
    for lead, numbers in (("measured", measured), ("published", published)) if published else (("measured", measured),):
        rows.append([lead, *percents(numbers.get(name) for name in names)])
    return aligned(rows)


def _column(name: str) -> str:
    return name.partition(" ")[0]


def _chosen(suite: Suite, options: Options) -> Suite:
    """The recipe's suite with what the command line puts in its place."""
    given: dict[str, Any] = {}
    for field, texts in (("suites", options.suite), ("attacks", options.attack)):
        if texts:
            given[field] = () if texts == ("none",) else texts
    if options.examples is not None:
        given["examples"] = options.examples
    return dataclasses.replace(suite, **given)


def _planned(recipe: Recipe, suite: Suite, options: Options) -> list[specs.Planned]:
    """The attacks, the chosen columns alone, with the network that measures where there is need of one."""
    budget = {"steps": options.steps, "queries": options.queries}
    for name, value in budget.items():
        if value is not None and (value < 1 or not suite.suites):
            raise ValueError(
                f"--{name} must be >= 1, and is of suites, of which there are {len(suite.suites)}; got {value}"
            )
    groups = specs.plan(list(suite.suites), list(suite.attacks), (), budget if suite.suites else {})
    known = list(dict.fromkeys(_column(name) for group in groups for name in group.attacks))
    for column in options.columns:
        if column not in known:
            raise ValueError(f"--columns must be of {known}; got {column!r}")
    planned = []
    for group in groups:
        wanted = {n: a for n, a in group.attacks.items() if not options.columns or _column(n) in options.columns}
        if suite.external and any(isinstance(attack.set, jr.sets.Perceptual) for attack in wanted.values()):
            wanted = bound(wanted, recipe.measuring())
        planned.append(dataclasses.replace(group, attacks=wanted))
    return planned


if __name__ == "__main__":
    try:
        print(f"report: {main(tyro.cli(Options, description=__doc__))}")
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
