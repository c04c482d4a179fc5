"""What a training run is told: its length, optimiser, averaging, validation and checkpoints."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from jaxrobust import _checks
from jaxrobust.training.schedules import SCHEDULES, schedule

__all__ = ["TrainConfig", "transformation"]

OPTIMIZERS = ("adam", "sgd", "nesterov")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of `fit`.

    Args:
        epochs: passes over the training data, ≥ 1.
        batch_size: examples a step, ≥ 1.
        optimizer: "adam" (decoupled weight decay), "sgd" (momentum 0.9, decay added to the gradient) or "nesterov"
            (the same with Nesterov's momentum).
        learning_rate: the schedule's peak, > 0.
        schedule: a name of `jaxrobust.training.SCHEDULES`, or an Optax schedule whose values multiply `learning_rate`.
        weight_decay: ≥ 0.
        decayed: which parameters decay: "all", or "kernels", tensors of two axes or more: no biases, nor BatchNorm's.
        clip_value: every entry of the mean gradient is clipped to ±clip_value, before decay is added; > 0, or None.
        accumulate: into how many parts a device takes its share of a batch, one after another, ≥ 1, so that a batch
            may be larger than memory; see `train_step`.
        compute_dtype: what the network computes in while it trains: "float32", "bfloat16" or "float16". Parameters,
            images, perturbations, losses and the optimiser stay in float32, and so does validation, since low
            precision masks gradients.
        ema_decay: τ of the moving average of the weights, which is then what is validated and returned; None for none.
        radius_warmup: epochs over which the objective's radius (of its attacks, or the step h of `cure`) grows linearly
            from 0, ≥ 0. Small networks need it at large radii, where they else stay at loss log K.
        drop_last: whether to leave out an epoch's last, incomplete batch; otherwise it is padded, and its padding
            enters BatchNorm's statistics, though not the loss.
        validation: the share of the training data held out to select the best epoch, in [0, 1).
        validation_limit: at most so many examples are held out, ≥ 1.
        validate_every: epochs between validations, ≥ 1; the last epoch is always validated.
        stop_on_overfitting: whether to stop, and go back to the epoch before, when the PGD-5 accuracy on the epoch's
            first training batch (batches, up to 128 examples) fell by more than 0.2, and by more than three standard
            errors if these are few: catastrophic overfitting of one-step training. It is that of the weights
            themselves, not of their average.
        checkpoint_every: steps between checkpoints within an epoch, ≥ 1, or None; the end of an epoch always is one.
        log_every: steps between readings of the metrics, ≥ 1.

    Raises:
        TypeError: if a number is not one.
        ValueError: if a value is out of its range or a name is unknown.

    Example:
        >>> TrainConfig(epochs=3, schedule="cosine").batch_size
        128

    Reference:
        Selection on held-out training data: Rice, Wong and Kolter, 2020, arXiv:2002.11569. `stop_on_overfitting`: Wong,
        Rice and Kolter, 2020, arXiv:2001.03994.
    """

    epochs: int = 15
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str | optax.Schedule = "constant"
    weight_decay: float = 0.0
    decayed: str = "all"
    clip_value: float | None = None
    accumulate: int = 1
    compute_dtype: str = "float32"
    ema_decay: float | None = None
    radius_warmup: float = 0.0
    drop_last: bool = True
    validation: float = 0.1
    validation_limit: int = 1000
    validate_every: int = 1
    stop_on_overfitting: bool = False
    checkpoint_every: int | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validation_limit", "validate_every", "log_every"):
            _checks.count(name, getattr(self, name))
        if self.checkpoint_every is not None:
            _checks.count("checkpoint_every", self.checkpoint_every)
        _checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        _checks.choice("decayed", self.decayed, ("all", "kernels"))
        _checks.choice("compute_dtype", self.compute_dtype, DTYPES)
        if not callable(self.schedule):
            _checks.choice("schedule", self.schedule, SCHEDULES)
        optional = [name for name in ("ema_decay", "clip_value") if getattr(self, name) is not None]
        for name in ("learning_rate", "weight_decay", "radius_warmup", "validation", *optional):
            value = _checks.number(name, getattr(self, name), high=1.0 if name == "ema_decay" else np.inf)
            if np.shape(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
                raise TypeError(f"{name} must be a real number; got {value!r}")
        for name in ("drop_last", "stop_on_overfitting"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False; got {getattr(self, name)!r}")
        if self.clip_value is not None:
            _checks.positive("clip_value", self.clip_value)
        if self.learning_rate == 0:
            raise ValueError("learning_rate must be > 0; got 0")
        if self.learning_rate > float(np.finfo(np.float32).max):
            raise ValueError(f"learning_rate must be finite in float32; got {self.learning_rate}")
        if self.validation >= 1:
            raise ValueError(f"validation must lie in [0, 1); got {self.validation}")

    def rates(self, total_steps: int) -> optax.Schedule:
        """The learning rate by step.

        Args:
            total_steps: the length of the run.

        Returns:
            A function from the step to the learning rate.
        """
        # A constant rate does not know how long the run is, and so need not compile again for another length.
        length = 1 if self.schedule == "constant" else total_steps
        return _rates(self.schedule, float(self.learning_rate), length)

    def transformation(self, total_steps: int) -> optax.GradientTransformation:
        """The optimiser, its schedule inside.

        Args:
            total_steps: the length of the run.

        Returns:
            The Optax transformation; the same object for the same settings, so that a second run does not compile.
        """
        clip = None if self.clip_value is None else float(self.clip_value)
        return _transformation(self.optimizer, self.rates(total_steps), float(self.weight_decay), clip, self.decayed)


@functools.lru_cache(maxsize=32)
def _rates(shape: str | optax.Schedule, peak: float, total_steps: int) -> optax.Schedule:
    if isinstance(shape, str):
        return schedule(shape, peak, total_steps)
    return lambda step: peak * shape(step)


def transformation(
    name: str, rates: optax.Schedule, weight_decay: float, clip: float | None, decayed: str
) -> optax.GradientTransformation:
    """The optimiser of a name of `OPTIMIZERS` under a schedule, entries of the gradient clipped to ±clip."""
    mask = _kernels if decayed == "kernels" else None
    if name == "adam":
        adam = optax.adamw(rates, weight_decay=weight_decay, mask=mask)
        # without clipping no chain, whose state would not be that of checkpoints that stand
        return adam if clip is None else optax.chain(optax.clip(clip), adam)
    first = [] if clip is None else [optax.clip(clip)]
    momentum = optax.sgd(rates, momentum=0.9, nesterov=name == "nesterov")
    return optax.chain(*first, optax.add_decayed_weights(weight_decay, mask), momentum)


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda weights: weights.ndim > 1, params)


_transformation = functools.lru_cache(maxsize=32)(transformation)
