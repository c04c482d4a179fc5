"""The training loop: one device, resumable from any checkpoint, selecting by robust accuracy on held-out data."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrobust import _checks, _compile, _inputs, attacks
from jaxrobust.training import _held_out, _run
from jaxrobust.training._checkpoint import Checkpoints
from jaxrobust.training._job import Disk, Job, Loop, Progress, prepare
from jaxrobust.training._placement import numbered_step
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.objectives.core import Objective, inner_attacks, warmed_up
from jaxrobust.training.step import Augment
from jaxrobust.types import Classifier, Key

__all__ = ["TrainResult", "fit"]

OVERFITTING_DROP = 0.2  # of PGD-5 accuracy between epochs, as in the reference cited by `TrainConfig`
OVERFITTING_ERRORS = 3.0  # standard errors that the drop must be worth, where few examples are watched
WATCHED = 128  # examples at least, where the epoch has so many: the reference's batch


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `fit` returns. The networks are what `Trainable.merge` gives: of NNX, new modules in evaluation mode.

    Args:
        network: of the best epoch: the highest adversarial, then clean accuracy on held-out data; the moving average
            where one is kept. The last one where nothing is held out.
        last: the network after the last step (of the epoch before, if the run stopped for overfitting).
        ema: the moving average after the last step, or None.
        classifier: `network` as a classifier.
        history: one dict an epoch. Always `epoch` (from 1), `step`, `learning_rate`, `seconds`, `loss`, `grad_norm` and
            the objective's metrics (means over the epoch's steps, counts added up); `val_clean_acc` and, with an
            attack, `val_adv_acc` where the epoch was validated; `overfit_acc` with `stop_on_overfitting`.
        best_epoch: the epoch of `network`.
        overfitted: whether the run stopped for catastrophic overfitting.
    """

    network: Any
    last: Any
    ema: Any
    classifier: Classifier
    history: list[dict[str, Any]]
    best_epoch: int
    overfitted: bool


def fit(
    network: Any,
    train_data: Any,
    *,
    objective: Objective,
    key: Key,
    config: TrainConfig = TrainConfig(),
    validation_data: Any = None,
    validation_attack: Any = None,
    augment: Augment | None = None,
    devices: int | list[Any] | None = None,
    mapping: Literal["shard_map", "pmap"] = "shard_map",
    run_dir: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a network.

    With `run_dir` the run may be killed at any time: started again with the same arguments it goes on from its last
    checkpoint (the end of an epoch, or `config.checkpoint_every` steps) and ends with the same numbers. SIGTERM saves
    one more checkpoint at the end of the step and then takes its course. A checkpoint is written beside training and is
    whole when the next one begins, so a kill on a slow disk can cost up to two intervals; where the newest is damaged
    the run goes on from the one before, with a warning. The folder holds `config.json`,
    `metrics.jsonl` (a line an epoch, the rows of `TrainResult.history`) and `checkpoints/`.

    Args:
        network: an `nnx.Module` that maps images to logits, which is left as it is; or what `Trainable.from_linen` or
            `Trainable.from_function` gives: a trainable, its parameters and its state.
        train_data: a `jaxrobust.data.Dataset`, or a pair of images (N, H, W, C), uint8 or float in [0, 1], and integer
            labels (N,).
        objective: what to minimise: `standard()`, `adversarial(attack)`, `mixed(attack)` or one's own `Objective`.
        key: all randomness of the run comes from it.
        config: the settings.
        validation_data: held-out data like `train_data`; None holds out a share `config.validation` of that. Never the
            test set: the best epoch is chosen by it.
        validation_attack: what robust accuracy is measured with; None takes PGD-10 on the set of the objective's
            attack (of several attacks the worst), or no attack where the objective has none.
        augment: `(key, images, index) -> images`, pure, on a batch, before the attack; see `jaxrobust.data.augment`.
        devices: how many of the local devices share every batch, or which; None for all of an accelerator's and one of
            a CPU's. The numbers are those of one device to rounding; batch statistics are of the whole batch.
        mapping: whether the step is mapped over them by `jax.shard_map` or by `jax.pmap`; both do the same.
        run_dir: where to log and checkpoint, or None for neither: a local folder, or "gs://bucket/run" with
            `pip install 'jaxrobust[gcs]'`. On a local disk two runs in one folder are told apart; in a bucket you
            see to that.
        run_id: a name of your own for the run, by which `run_dir` is known where something in the network, objective,
            augmentation or configuration cannot be recognised in another process (a connection, a lock) or changes as
            it is used. All functions and objects of yours are then known by their names alone, and you vouch for them.
        progress: whether to show a progress bar.

    Returns:
        The networks and the history.

    Raises:
        TypeError: if network, images or labels are not what they should be.
        ValueError: if images lie outside [0, 1], labels outside the network's classes, there are fewer examples than
            a batch needs, parameters are not finite, `run_dir` holds something else than this very run, or something
            cannot be identified and there is no `run_id`.
        BlockingIOError: another run is in `run_dir`.
        OSError: `run_dir` cannot be read or written, at first or later; what was whole there stays so.
        FloatingPointError: if the loss, its gradient or the last parameters become NaN or infinite; it names the
            step. Checkpoints stay.

    Example:
        >>> import jaxrobust as jr
        >>> from jaxrobust.models import SmallCNN
        >>> from jaxrobust.training import adversarial
        >>> objective = adversarial(jr.attacks.pgd(jr.sets.Linf(0.2), steps=2))
        >>> train = jr.data.load("digits", "train[:300]")
        >>> config = TrainConfig(epochs=1, batch_size=100)
        >>> network = SmallCNN(rngs=nnx.Rngs(0))
        >>> result = fit(network, train, objective=objective, config=config, key=jax.random.key(0), progress=False)
        >>> result.history[0]["step"], result.best_epoch, result.classifier(jnp.asarray(train.images)).shape
        (2, 1, (300, 10))

    Reference:
        Madry et al., 2018, arXiv:1706.06083; Rice, Wong and Kolter, 2020, arXiv:2002.11569.
    """
    if run_dir is not None:
        _checks.saving("run_dir", run_dir, run_id)
        Checkpoints.check("run_dir", run_dir)
    job, loop = prepare(
        network,
        train_data,
        objective,
        key,
        config,
        validation_data,
        validation_attack,
        augment,
        devices=devices,
        mapping=mapping,
        saved=run_dir is not None,
        run_id=run_id,
    )
    with contextlib.ExitStack() as stack:
        disk = None
        if run_dir is not None:
            # Entered first and so left last: the process may only end once the last checkpoint is whole.
            told_to_end = stack.enter_context(_run.sigterm_deferred())
            folder = stack.enter_context(_run.opened(run_dir, job.description, job.identity))
            disk = Disk(folder, stack.enter_context(Checkpoints(folder / "checkpoints")), told_to_end)
            disk.restore(loop)
        total = job.config.epochs * job.steps_per_epoch
        bar = stack.enter_context(
            tqdm(
                total=total,
                initial=loop.progress.step,
                disable=not progress or jax.process_index() > 0,
                unit="step",
                dynamic_ncols=True,
            )
        )
        while not loop.progress.finished:
            terminated = _train_epoch(job, loop, disk, bar)
            _check_last(job, loop)
            _end_epoch(job, loop)
            if disk is not None:
                disk.save(loop)
                if terminated:
                    disk.stop(loop)
    return _result(job, loop)


_step = _compile.jit(numbered_step, static_argnames=("optimizer", "augment", "accumulate"), donate_argnames=("state",))


def _train_epoch(job: Job, loop: Loop, disk: Disk | None, bar: Any) -> bool:
    """Run what is left of the epoch, and say whether the process is to end.

    Metrics are read at log steps only, and one step late, so that nothing waits.
    """
    progress, config = loop.progress, job.config
    started = time.perf_counter() - progress.seconds
    where = "" if disk is None else f"The last checkpoint in {str(disk.folder)!r} is from before. "
    unread: list[dict[str, Any]] = []
    terminated = False
    placement, computing = job.placement, job.trainable.computing(config.compute_dtype)
    train = loop.train if placement is None else placement.place(loop.train)
    for batch in _replayed(job, progress.epoch, progress.batch):
        train, metrics = (_step if placement is None else placement.step)(
            _warmed_up(job, progress.step),
            computing,
            job.optimizer,
            train,
            batch,
            job.step_key,
            np.float32(config.ema_decay or 0.0),
            augment=job.augment,
            accumulate=config.accumulate,
        )
        if placement is None:
            loop.train = train
        unread.append(metrics)
        progress.batch += 1
        progress.step += 1
        bar.update()
        if progress.step % config.log_every == 0 and len(unread) > 1:
            progress.read_metrics(unread[:-1], where)
            del unread[:-1]
            steps_a_second = bar.format_dict["rate"]
            bar.set_postfix(_shown(progress, steps_a_second and config.batch_size * steps_a_second))
        # asked once a step, since processes agree by that
        terminated = disk is not None and disk.terminated()
        if disk is None or progress.batch == job.steps_per_epoch:
            continue
        due = config.checkpoint_every is not None and progress.step % config.checkpoint_every == 0
        if due or terminated:
            progress.read_metrics(unread, where)
            unread.clear()
            progress.seconds = time.perf_counter() - started
            if placement is not None:
                loop.train = placement.gathered(train)
            disk.save(loop)
            if terminated:
                disk.stop(loop)
    progress.read_metrics(unread, where)
    if placement is not None:
        loop.train = placement.gathered(train)
    progress.seconds = time.perf_counter() - started
    return terminated


def _check_last(job: Job, loop: Loop) -> None:
    """That the run's very last update left finite parameters; of those before the next loss tells."""
    if loop.progress.epoch + 1 < job.config.epochs:
        return
    if not np.asarray(_inputs.all_finite(jax.tree.leaves(loop.train.params))).all():
        raise FloatingPointError(
            f"parameters must stay finite; got NaN or infinity after step {loop.progress.step}, the last. "
            "Lower the learning rate, or warm the radius up."
        )


def _replayed(job: Job, epoch: int, start: int) -> Iterator[Any]:
    """The batches of an epoch from a step on, each as often as the objective trains on it."""
    first, done = divmod(start, job.replays)
    for batch in job.loader.epoch(epoch, start=first):
        yield from itertools.repeat(batch, job.replays - done)
        done = 0


def _end_epoch(job: Job, loop: Loop) -> None:
    """Write the epoch's row; monitor, validate and select; move on to the next epoch."""
    progress, config = loop.progress, job.config
    started = time.perf_counter()
    last = progress.epoch + 1 == config.epochs
    row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step}
    row["learning_rate"] = float(job.rates(progress.step - 1))
    row |= _means(progress)
    if config.stop_on_overfitting:
        row["overfit_acc"], count = _monitor(job, loop)
        progress.overfitted = _overfitted(progress.overfit_acc, row["overfit_acc"], count)
        progress.overfit_acc = row["overfit_acc"]
    if progress.overfitted:
        # The step counter stays, since checkpoints are named by it.
        loop.train = jax.tree.map(jnp.array, loop.previous)
        if progress.best_epoch == 0:  # it never came to a validation
            progress.best_epoch, loop.best = progress.epoch, jax.tree.map(jnp.array, loop.train.evaluated)
    elif job.held_out is not None and (last or (progress.epoch + 1) % config.validate_every == 0):
        classifier = job.trainable.classifier(*loop.train.evaluated)
        row |= _held_out.accuracy(classifier, job.held_out, job.attack, job.validation_key, config.batch_size)
        score = [row.get("val_adv_acc", 0.0), row["val_clean_acc"]]
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch + 1
            loop.best = jax.tree.map(jnp.array, loop.train.evaluated)
    elif job.held_out is None:
        progress.best_epoch = progress.epoch + 1
        loop.best = jax.tree.map(jnp.array, loop.train.evaluated)
    if config.stop_on_overfitting:
        loop.previous = jax.tree.map(jnp.array, loop.train)
    row["seconds"] = round(progress.seconds + time.perf_counter() - started, 3)
    progress.history.append(row)
    progress.epoch, progress.batch, progress.sums, progress.seconds = progress.epoch + 1, 0, {}, 0.0
    progress.finished = last or progress.overfitted


def _monitor(job: Job, loop: Loop) -> tuple[float, int]:
    """PGD-5 accuracy on the epoch's first training batches, and on how many examples.

    Of the weights that train: their average overfits epochs later, when there is no good epoch left to go back to.
    """
    attack = attacks.pgd(inner_attacks(job.objective)[0].set, steps=5, relative_step_size=0.25)
    classifier = job.trainable.classifier(loop.train.params, loop.train.state)
    correct, count = 0, 0
    for batch in job.loader.epoch(loop.progress.epoch):
        right, watched = _held_out.batch_correct(classifier, batch, attack, job.validation_key)
        correct, count = correct + right, count + watched
        if count >= WATCHED:
            break
    return correct / count, count


def _overfitted(before: float, now: float, count: int) -> bool:
    """Whether accuracy over so many examples, others each time, fell by more than 0.2 and more than chance explains."""
    middle = (before + now) / 2
    error = math.sqrt(2 * middle * (1 - middle) / count)
    return before - now > max(OVERFITTING_DROP, OVERFITTING_ERRORS * error)


def _warmed_up(job: Job, step: int) -> Any:
    """The objective with its radius at this step."""
    length = job.config.radius_warmup * job.steps_per_epoch
    if step + 1 >= length:
        return job.objective
    return warmed_up(job.objective, np.float32((step + 1) / length))


def _means(progress: Progress) -> dict[str, Any]:
    """The metrics of the epoch's steps that were read; counts stay sums."""
    steps = progress.read - (progress.step - progress.batch)
    return {name: value if isinstance(value, int) else value / steps for name, value in progress.sums.items()}


def _shown(progress: Progress, rate: float | None) -> dict[str, str]:
    """What the progress bar says: this epoch's training metrics, the last validation, and the speed."""
    validated: dict[str, Any] = next((row for row in reversed(progress.history) if "val_clean_acc" in row), {})
    row = {**validated, **_means(progress)}
    names = ("loss", "clean_acc", "adv_acc", "val_clean_acc", "val_adv_acc")
    shown = {"epoch": str(progress.epoch + 1), **{name: f"{row[name]:.3f}" for name in names if name in row}}
    return shown if rate is None else {**shown, "images/s": f"{rate:,.0f}"}


def _result(job: Job, loop: Loop) -> TrainResult:
    train, progress = loop.train, loop.progress
    return TrainResult(
        network=job.trainable.merge(*loop.best),
        last=job.trainable.merge(train.params, train.state),
        ema=None if train.ema is None else job.trainable.merge(*train.ema),
        classifier=job.trainable.classifier(*loop.best),
        history=progress.history,
        best_epoch=progress.best_epoch,
        overfitted=progress.overfitted,
    )
