"""Train by a recipe, and go on where a killed run was when the same command is given again.

python -m experiments.train --list
python -m experiments.train --recipe digits-at-linf
python -m experiments.train --recipe cifar10-pat-self --train.batch-size 100 --train.learning-rate 0.2 --seed 1
python -m experiments.train --recipe cifar10-pat-self --steps 20 --network.width 16    # a trial, with its speed
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import tyro
from etils import epath

from experiments import recipes
from experiments.recipes.recipe import Recipe, Run
from jaxrobust import _store, training
from jaxrobust.cli import specs
from jaxrobust.cli.evaluate import remember_programs
from jaxrobust.cli.models import WEIGHTS
from jaxrobust.models import save_npz
from jaxrobust.training._run import read_rows

__all__ = ["Options", "listed", "main"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a recipe is run; all of the recipe's own settings may be changed too.

    Args:
        recipe: the recipe.
        run_dir: the run folder, a local one or gs://BUCKET/FOLDER; by default runs/RECIPE.
        seed: of all randomness.
        schedule: of the learning rate, in place of the recipe's: a name of `jaxrobust.training.SCHEDULES`; the flag
            for it, since --train.schedule may be an Optax schedule too and so takes nothing from a command line.
        steps: a trial of so few steps, on as many images as it needs.
        devices: how many share a batch; by default all of an accelerator's and one of a CPU's.
        mapping: how the step is mapped over them.
        tensorboard: write the rows of metrics.jsonl for TensorBoard too, into RUN/tensorboard.
        progress: whether to show a progress bar.
        distributed: whether this is one of several processes, as on a pod; each is started by the same command.
        coordinator: HOST:PORT of the first process; on TPUs it is known.
        processes: how many processes; on TPUs it is known.
        process: the place of this one, from 0; on TPUs it is known.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    run_dir: str | None = None
    seed: int = 0
    schedule: str | None = None
    steps: int | None = None
    devices: int | None = None
    mapping: Literal["shard_map", "pmap"] = "shard_map"
    tensorboard: bool = False
    progress: bool = True
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def main(options: Options) -> _store.Path:
    """Train, or what is left of it, and return the run folder."""
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps must be >= 1; got {options.steps}")
    specs.check_seed(options.seed)
    places = [name for name in ("coordinator", "processes", "process") if getattr(options, name) is not None]
    if places and not options.distributed:
        raise ValueError(f"--{places[0]} goes with --distributed, which is missing")
    if options.tensorboard:
        _summary_writer()  # missing, it is missed by all processes, and before they wait for each other
    if options.distributed:  # before anything asks for a device
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    remember_programs()
    recipe = options.recipe
    folder = _store.place(options.run_dir or f"runs/{recipe.name}")
    if options.schedule is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, schedule=options.schedule))
    run = Run(recipe, options.seed, options.steps)
    arguments = run.arguments()
    board = _board(folder) if options.tensorboard else contextlib.nullcontext()
    first = jax.process_index() == 0
    run.save(folder)
    if first:
        print(f"run: {folder}", flush=True)
    with board if first else contextlib.nullcontext():
        result = training.fit(
            arguments.pop("network"),
            run.train_data(),
            **arguments,
            devices=options.devices,
            mapping=options.mapping,
            run_dir=folder / "training",
            progress=options.progress and first,
        )
    if first:
        save_npz(folder / WEIGHTS, result.network)
        print(_told(run, result))
        print(f"weights of epoch {result.best_epoch}: {folder / WEIGHTS}; log and checkpoints: {folder / 'training'}")
        print(f"next: python -m experiments.evaluate {folder}")
    return folder


def listed() -> str:
    """All recipes, with hardware, time and expected numbers."""
    lines = []
    for recipe in recipes.RECIPES.values():
        lines.append(f"{recipe.name}: {recipe.about}. {recipe.hardware}: {recipe.time}.")
        if recipe.published:
            numbers = ", ".join(f"{column} {value:g}" for column, value in recipe.published)
            text = f"published: {numbers} ({recipe.source})"
            lines += textwrap.wrap(text, 116, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _told(run: Run, result: training.TrainResult) -> str:
    row = result.history[-1]
    numbers = {name: value for name, value in row.items() if isinstance(value, float) and name != "seconds"}
    text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    seconds = sum(one["seconds"] for one in result.history) / row["step"]
    return (
        f"after {row['step']} steps of {run.recipe.train.batch_size}, {seconds:.3g} s each, compiling included: {text}"
    )


class _Board:
    """Writes the rows of metrics.jsonl for TensorBoard, as they come, from a thread of its own."""

    def __init__(self, writer: Any, folder: _store.Path):
        self.writer, self.folder, self.written, self.ended = writer, folder, 0, threading.Event()

    def watch(self) -> None:
        """Look every second, and once more at the end."""
        while not self.ended.wait(1.0):
            self.write()
        self.write()

    def write(self) -> None:
        """The rows that are new."""
        rows = read_rows(self.folder)
        for row in rows[self.written :]:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self.writer.add_scalar(name, value, row["step"])
        self.written = max(self.written, len(rows))
        self.writer.flush()


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs tensorboardX: pip install 'jaxrobust[tensorboard]'") from None
    return SummaryWriter


@contextlib.contextmanager
def _board(folder: _store.Path) -> Iterator[None]:
    summary_writer = _summary_writer()
    # written anew from the log, so that a run that went on is not there twice
    epath.Path(folder / "tensorboard").rmtree(missing_ok=True)
    with summary_writer(str(folder / "tensorboard")) as writer:
        board = _Board(writer, folder / "training")
        thread = threading.Thread(target=board.watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            board.ended.set()
            thread.join()
    print(f"tensorboard --logdir {folder / 'tensorboard'}")


def read(argv: Sequence[str]) -> Options | None:
    """The options of a command line, or None where it only asks for the list."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", metavar="NAME")
    first.add_argument("--list", action="store_true")
    known, rest = first.parse_known_args(argv)
    if known.list:
        return None
    about = "Train by a recipe: --recipe NAME, one of those that --list prints, whose settings are shown below."
    if any(text.partition("=")[0] == "--train.schedule" for text in rest):
        raise ValueError("--train.schedule must be given as --schedule NAME: it may be an Optax schedule too")
    recipe = recipes.find(known.recipe or "digits-at-linf")
    if known.recipe is None and not {"-h", "--help"} & set(rest):
        raise ValueError("--recipe must name one of the recipes that --list prints; got none")
    default = Options(recipe=recipe)
    return tyro.cli(Options, default=default, args=rest, description=about, prog="python -m experiments.train")


if __name__ == "__main__":
    try:
        options = read(sys.argv[1:])
        if options is None:
            print(listed())
        else:
            main(options)
    except InterruptedError as error:  # of several processes, which JAX does not let end by the signal itself
        print(error, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
