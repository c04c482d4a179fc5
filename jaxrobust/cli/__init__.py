"""The command line, on top of all rooms: `python -m jaxrobust`, or `jaxrobust` where it is installed.

It is parsed by argparse, and what a command needs is imported once it is known, so that help costs no import of JAX.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

__all__ = ["WhileRunning", "main"]


class WhileRunning(Exception):
    """What a run failed of once it ran, its cause: nothing that was refused, though it be of the kind."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse writes the usage besides."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jaxrobust", description="Adversarial robustness in JAX, from the shell.", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=command.about,
            description=command.about,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        own.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.arguments(own)
    return parser


EVALUATE = """\
models   a function without arguments, or an object, that is or returns a Classifier, an NNX module, (linen module,
         variables), a HostModel or a torch module; the current folder is on the path
data     digits, cifar10:test[:1000], any TensorFlow Datasets name; mine.npz (arrays images and labels; uint8 is divided
         by 255); ./folder of class folders, with :SPLIT after it or not
suites   NAME[:RADIUS,...][:OPTION=VALUE,...], such as autoattack-linf:8/255
attacks  [NAME=]ATTACK:SET[:RADIUS,...][:OPTION=VALUE,...], such as pgd:linf:8/255:steps=40,restarts=5
         or frank_wolfe:wasserstein(kernel=5):0.005, or pgd:cifar10.recolor+flow+linf (a usual bound of a data set)
radii    numbers or fractions; with several, the table has the largest, and there are curves and a table of all

examples
  jaxrobust evaluate --model mine:net --data 'cifar10:test[:1000]' --suite autoattack-linf:8/255 --out runs/mine
  jaxrobust evaluate --model net.py:net --data digits --attack pgd:linf:steps=40 --attack fmn:l2:3 --radius 0.1,0.2

exit codes  0 done, 1 an error while it ran, mostly the model's, 2 refused (both are one line on standard error),
            130 interrupted; the same command goes on from there"""


TRAIN = """\
model      a function without arguments, or an object, that is or returns a Flax NNX module, which maps images in [0, 1]
           to logits; the current folder is on the path
data       as for evaluate; without a split the training one
objective  a name of `jaxrobust list objectives`, with the arguments of the function of jaxrobust.training behind it as
           --option NAME=VALUE,...; by default "adversarial" where there is an attack, else "standard"
attack     by its set, --set linf --radius 8/255 --steps 10, or ATTACK:SET:RADIUS[:OPTION=VALUE,...] as for evaluate,
           given again where the objective takes several; free and grad_align take its radius alone, llr its set
schedules  constant, cosine, cyclic, triangle, linear, piecewise, one-drop and others: jaxrobust.training.SCHEDULES

examples
  jaxrobust train --model mine:net --data mnist --set linf --radius 0.3 --steps 10 --epochs 5 --out runs/mine
  jaxrobust train --model mine:net --data cifar10 --objective trades --option beta=6 --set linf --radius 8/255 \\
    --optimizer sgd --learning-rate 0.1 --schedule piecewise --weight-decay 5e-4 --augment crop,flip --out runs/mine
  jaxrobust evaluate --model mine:net --weights runs/mine --data mnist --suite autoattack-linf:0.3 --out runs/attacked

exit codes are those of evaluate; the same command goes on from the last checkpoint"""


def _train(own: argparse.ArgumentParser) -> None:
    what = own.add_argument_group("what")
    what.add_argument("--model", required=True, metavar="MODULE:FUNCTION", help="or PATH/FILE.py:FUNCTION; see below")
    what.add_argument("--data", required=True, metavar="DATA", help="examples: a name, a file or a folder; see below")
    what.add_argument("--objective", metavar="NAME", help="what to minimise; see below")
    what.add_argument("--option", default="", metavar="NAME=VALUE[,...]", help="arguments of the objective")
    what.add_argument("--set", metavar="SET", help="what the attack may do; its usual attack in training is taken")
    what.add_argument("--radius", metavar="R", help="of --set: 8/255")
    what.add_argument("--steps", type=int, metavar="N", help="of --set's attack (10)")
    what.add_argument("--attack", action="append", default=[], metavar="ATTACK", help="in place of --set; see below")
    how = own.add_argument_group("how")
    how.add_argument("--epochs", type=int, default=15, help="passes over the data (15)")
    how.add_argument("--batch-size", type=int, default=128, help="examples a step (128)")
    how.add_argument("--optimizer", default="adam", metavar="NAME", help="adam, sgd or nesterov (adam)")
    how.add_argument("--learning-rate", type=float, default=1e-3, metavar="RATE", help="the schedule's peak (0.001)")
    how.add_argument("--schedule", default="constant", metavar="NAME", help="of the rate (constant); see below")
    how.add_argument("--weight-decay", type=float, default=0.0, metavar="DECAY", help="(0)")
    how.add_argument("--radius-warmup", type=float, default=0.0, metavar="EPOCHS", help="while the radius grows (0)")
    how.add_argument("--augment", default="", metavar="NAME[,...]", help="crop, flip or both")
    how.add_argument("--seed", type=int, default=0, help="of all randomness but the network's own (0)")
    how.add_argument("--devices", type=int, metavar="N", help="that share a batch; by default an accelerator's all")
    how.add_argument("--data-dir", metavar="FOLDER", help="of prepared data sets, or gs://...; else TFDS_DATA_DIR")
    how.add_argument("--size", type=int, help="resize images to squares of so many pixels")
    where = own.add_argument_group("where to")
    where.add_argument("--out", required=True, metavar="FOLDER", help="or gs://...: weights.npz; training/, the rest")
    where.add_argument("--checkpoint-every", type=int, metavar="N", help="steps; by default at each epoch's end")
    where.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a bar on standard error; by default where that is a terminal",
    )
    where.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep compiled programs from run to run, in JAX_COMPILATION_CACHE_DIR, else the user's cache",
    )


def _evaluate(own: argparse.ArgumentParser) -> None:
    what = own.add_argument_group("what")
    what.add_argument("--model", required=True, metavar="MODULE:FUNCTION", help="or PATH/FILE.py:FUNCTION; see below")
    what.add_argument(
        "--weights", metavar="RUN", help="what jaxrobust train left, or an .npz, for a --model that is an NNX module"
    )
    what.add_argument("--data", required=True, metavar="DATA", help="examples: a name, a file or a folder; see below")
    what.add_argument("--suite", action="append", default=[], metavar="SUITE", help="may be given again; see below")
    what.add_argument("--attack", action="append", default=[], metavar="ATTACK", help="may be given again; see below")
    what.add_argument("--radius", metavar="R[,R...]", help="of all attacks that have none of their own: 8/255")
    what.add_argument(
        "--steps", type=int, metavar="N", help="fewer steps of suites, for a first look; the result says so"
    )
    what.add_argument("--queries", type=int, metavar="N", help="fewer queries of suites, likewise")
    what.add_argument(
        "--targets", metavar="TARGETS", help="success is this class: next, the one after the label, or a .npy file"
    )
    what.add_argument("--masking", action="store_true", help="look for signs of masked gradients too")
    where = own.add_argument_group("where to")
    where.add_argument(
        "--out", required=True, metavar="FOLDER", help="results.json, results.csv, report.html, progress"
    )
    where.add_argument("--name", help="the model's name in tables; by default its function's")
    where.add_argument("--title", help="the page's title; by default name and data")
    where.add_argument("--images", action="store_true", help="write adversarial images as PNG files too")
    where.add_argument(
        "--overwrite", action="store_true", help="begin anew, and replace the folder's results once there are new ones"
    )
    how = own.add_argument_group("how")
    how.add_argument("--seed", type=int, default=0, help="of all randomness (0)")
    how.add_argument("--lanes", type=int, default=128, help="examples in flight at once (128)")
    how.add_argument("--devices", metavar="I[,I...]", help="places among JAX's local devices; by default all")
    how.add_argument("--data-dir", metavar="FOLDER", help="of prepared data sets, or gs://...; else TFDS_DATA_DIR")
    how.add_argument("--size", type=int, help="resize images to squares of so many pixels")
    how.add_argument("--run-id", metavar="NAME", help="stands for what cannot be recognised when a run goes on")
    how.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="bars on standard error; by default where that is a terminal",
    )
    how.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep compiled programs from run to run, in JAX_COMPILATION_CACHE_DIR, else the user's cache",
    )


def _list(own: argparse.ArgumentParser) -> None:
    own.add_argument("what", choices=("attacks", "sets", "suites", "objectives", "models", "data"))


def _report(own: argparse.ArgumentParser) -> None:
    own.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    own.add_argument("--output", metavar="FILE", help="the page; by default RUN/report.html, of several ./report.html")


class Command(NamedTuple):
    """A subcommand.

    Args:
        module: of this package, whose `run` does it and whose `interrupted` says what Ctrl-C leaves.
        about: what it does.
        arguments: adds its arguments to its parser.
        epilog: what its help ends with.
    """

    module: str
    about: str
    arguments: Callable[[argparse.ArgumentParser], None]
    epilog: str | None = None


COMMANDS = {
    "evaluate": Command(
        "evaluate", "robust accuracy of a model: table, results.json, CSV and page", _evaluate, EVALUATE
    ),
    "train": Command("train", "train a network of yours, adversarially or not", _train, TRAIN),
    "list": Command("lists", "what there is: attacks, sets, suites, objectives, models, data", _list),
    "report": Command("report", "one self-contained HTML page of a run, or of several", _report),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what a command line says.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        0 when it is done, 2 when it was refused and 1 when something failed, such as the model, each of which one line
        on standard error explains, 130 when Ctrl-C ended it.

    Example:
        >>> main(["--version"])
        0.1.0
        0
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as error:
        return int(error.code or 0)
    if options.version:
        from jaxrobust import __version__

        print(__version__)
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    command = None
    try:
        command = importlib.import_module(f"jaxrobust.cli.{COMMANDS[options.command].module}")
        command.run(options)
    except KeyboardInterrupt:
        print(command.interrupted(options) if command else "interrupted", file=sys.stderr)
        return 130
    except (OSError, TypeError, ValueError) as error:
        if options.debug:
            raise
        text = " ".join(str(error).split())
        if "out" in options:  # as these commands call the library's run_dir
            text = re.sub(r"^run_dir\b", "--out", text)
        print(f"error: {text}", file=sys.stderr)
        return 2
    except (Exception, SystemExit) as error:  # of a user's own code, whatever it is
        if options.debug and not isinstance(error, SystemExit):
            raise
        if options.debug:
            raise RuntimeError("SystemExit, which a model or what it imports must not raise") from error
        first = error.__cause__ if isinstance(error, WhileRunning) and error.__cause__ else error
        what = f"{type(first).__name__}: {' '.join(str(first).split()) or 'nothing more'}"
        print(f"error: {what} (--debug shows where)", file=sys.stderr)
        return 1
    return 0
