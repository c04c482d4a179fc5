"""`jaxrobust train`: a user's own network, by an objective and an attack that have names."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust import _checks, _store, data, training
from jaxrobust.cli import models, objectives, specs
from jaxrobust.cli.evaluate import remember_programs
from jaxrobust.cli.output import say
from jaxrobust.models import save_npz

__all__ = ["AUGMENTATIONS", "augmentation", "interrupted", "run"]

AUGMENTATIONS = {"crop": data.augment.random_crop, "flip": data.augment.random_flip}


def interrupted(options: argparse.Namespace) -> str:
    """What Ctrl-C leaves behind."""
    return f"interrupted; the checkpoints are in {options.out}, and the same command goes on from the last one"


def run(options: argparse.Namespace) -> None:
    """Train, or what is left of it, save the weights and say how they are used."""
    if options.cache:
        remember_programs()
    if not options.out.strip():
        raise ValueError(f"--out must name a folder; got {options.out!r}")
    specs.check_seed(options.seed)
    names = ("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "weight_decay", "radius_warmup")
    settings: dict[str, Any] = {name: getattr(options, name) for name in (*names, "checkpoint_every")}
    config, objective = training.TrainConfig(**settings), _objective(options)
    augment = augmentation([name for name in options.augment.split(",") if name])
    examples = specs.data_set(options.data, usual="train", data_dir=options.data_dir, size=options.size)
    network = models.network(options.model)
    out = _store.place(options.out)
    result = training.fit(
        network,
        examples,
        objective=objective,
        key=jax.random.key(np.uint32(options.seed)),
        config=config,
        augment=augment,
        devices=options.devices,
        run_dir=out / "training",
        progress=sys.stderr.isatty() if options.progress is None else options.progress,
    )
    save_npz(out / models.WEIGHTS, result.network)
    row = next((row for row in result.history if row["epoch"] == result.best_epoch), result.history[-1])
    shown = ", ".join(f"{name} {row[name]:.4g}" for name in ("loss", "val_clean_acc", "val_adv_acc") if name in row)
    say(f"epoch {result.best_epoch} of {len(result.history)}: {shown}")
    say(f"weights: {out / models.WEIGHTS} (log and checkpoints: {out / 'training'})")
    say(f"next: jaxrobust evaluate --model {options.model} --weights {out} --data ... --suite ... --out ...")


def augmentation(names: Sequence[str], *, known: Mapping[str, Any] = AUGMENTATIONS, what: str = "--augment") -> Any:
    """Transforms of training images, by name, one after the other.

    Args:
        names: of `known`: "crop" (4 pixels of padding) and "flip".
        known: the transforms.
        what: how errors call them.

    Returns:
        What `training.fit` takes, or None for no names.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> augmentation([]) is None
        True
    """
    chosen = [known[_checks.choice(what, name, known)] for name in names]
    return functools.partial(data.augment.batch, transform=data.augment.chain(*chosen)) if chosen else None


def _objective(options: argparse.Namespace) -> Any:
    if options.set is None and (options.radius is not None or options.steps is not None):
        raise ValueError("--radius and --steps are those of --set, which is missing; an --attack has its own")
    made = [specs.attack(text) for text in options.attack]
    if options.set is not None:
        made.append(objectives.against(options.set, options.radius, options.steps))
    name = options.objective or ("adversarial" if made else "standard")
    return objectives.objective(name, made, dict(specs.read_options(options.option, "--option")))
