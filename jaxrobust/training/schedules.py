"""The learning-rate schedules of the field, by name, as fractions of a run's length; built from Optax's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxrobust import _checks

__all__ = ["SCHEDULES", "schedule"]


def _steps(scales: dict[float, float]) -> Callable[[int], optax.Schedule]:
    """Multiply by a scale at each fraction of the run."""
    return lambda total: optax.piecewise_constant_schedule(1.0, {round(at * total): by for at, by in scales.items()})


def _ramps(*knots: tuple[float, float]) -> Callable[[int], optax.Schedule]:
    """Straight lines between (fraction, value) knots."""

    def make(total: int) -> optax.Schedule:
        places = [round(at * total) for at, _ in knots]
        ramps = [
            optax.linear_schedule(knots[i][1], knots[i + 1][1], max(1, places[i + 1] - places[i]))
            for i in range(len(knots) - 1)
        ]
        return optax.join_schedules(ramps, places[1:-1])

    return make


def _warmed_steps(warm: float, scales: dict[float, float]) -> Callable[[int], optax.Schedule]:
    """Rise linearly from 0 for a share of the run, then as `_steps`."""

    def make(total: int) -> optax.Schedule:
        length = max(1, round(warm * total))
        after = {at - warm: by for at, by in scales.items()}
        return optax.join_schedules([optax.linear_schedule(0.0, 1.0, length), _steps(after)(total)], [length])

    return make


def _ten_steps(total: int) -> optax.Schedule:
    boundaries = [round(i * total / 10) for i in range(1, 10)]
    return optax.join_schedules([optax.constant_schedule(1 - i / 10) for i in range(10)], boundaries)


SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda total: optax.constant_schedule(1.0),
    "cosine": lambda total: optax.cosine_decay_schedule(1.0, total),
    "cyclic": _ramps((0.0, 0.0), (2 / 5, 1.0), (1.0, 0.0)),
    "triangle": _ramps((0.0, 0.0), (1 / 2, 1.0), (1.0, 0.0)),
    "linear": _ramps((0.0, 1.0), (1 / 3, 1.0), (2 / 3, 0.1), (1.0, 0.01)),
    "piecewise": _steps({1 / 2: 0.1, 3 / 4: 0.1}),
    "one-drop": _steps({1 / 2: 0.1}),
    "multi-decay": _ten_steps,
    "piecewise-ft": _steps({1 / 3: 0.1, 2 / 3: 0.1}),
    "three-drops": _steps({75 / 120: 0.1, 90 / 120: 0.1, 100 / 120: 0.1}),
    "late-drops": _steps({10 / 11: 0.1, 21 / 22: 0.1}),
    "multi-norm": _ramps((0.0, 0.0), (2 / 5, 1.0), (4 / 5, 0.05), (1.0, 0.0)),
    "perceptual": _warmed_steps(5 / 100, {75 / 100: 0.1, 90 / 100: 0.1}),
    "perceptual-imagenet": _warmed_steps(5 / 90, {30 / 90: 0.1, 60 / 90: 0.1, 80 / 90: 0.1}),
}


def schedule(name: str, peak: float, total_steps: int) -> optax.Schedule:
    """A learning-rate schedule by name, over a run of T steps.

    =================== ===================================================================
    name                peak times
    =================== ===================================================================
    constant            1
    cosine              (1 + cos πt/T)/2
    cyclic              0 → 1 at 2T/5 → 0 at T, straight lines
    triangle            0 → 1 at T/2 → 0 at T, straight lines
    linear              1 until T/3, → 0.1 at 2T/3, → 0.01 at T, straight lines
    piecewise           1, 0.1 from T/2, 0.01 from 3T/4
    one-drop            1, 0.1 from T/2
    multi-decay         1 − i/10 from iT/10
    piecewise-ft        1, 0.1 from T/3, 0.01 from 2T/3, for fine-tuning
    three-drops         1, 0.1 from 5T/8, 0.01 from 3T/4, 0.001 from 5T/6
    late-drops          1, 0.1 from 10T/11, 0.01 from 21T/22
    multi-norm          0 → 1 at 2T/5 → 0.05 at 4T/5 → 0 at T, straight lines
    perceptual          0 → 1 at T/20, straight; 0.1 from 3T/4, 0.01 from 9T/10
    perceptual-imagenet 0 → 1 at T/18, straight; 0.1 from T/3, 0.01 from 2T/3, 0.001 from 8T/9
    =================== ===================================================================

    Args:
        name: one of the above, the keys of `SCHEDULES`.
        peak: the learning rate that the factors multiply, ≥ 0.
        total_steps: T, at least 1.

    Returns:
        A function from the step to the learning rate.

    Raises:
        ValueError: if the name is unknown, `peak` is negative or NaN, or `total_steps` < 1.

    Example:
        >>> float(schedule("cyclic", 0.2, 10)(2))
        0.10000000149011612

    Reference:
        Rice, Wong and Kolter, 2020, arXiv:2002.11569; "triangle": Wong, Rice and Kolter, 2020, arXiv:2001.03994;
        "three-drops": Wang et al., 2020, ICLR (MART); "late-drops": Pang et al., 2021, arXiv:2010.00467; "multi-norm":
        Maini, Wong and Kolter, 2020, arXiv:1909.04068; "perceptual": Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655
        (CIFAR-10's and ImageNet-100's).
    """
    shape = SCHEDULES[_checks.choice("schedule", name, SCHEDULES)](_checks.count("total_steps", total_steps))
    scale = float(_checks.number("peak", peak))

    def rate(step: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # Optax multiplies the integer step with floats
            return scale * shape(step)

    return rate
