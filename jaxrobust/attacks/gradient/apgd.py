"""Auto-PGD: projected gradient ascent that sets its own step size, with momentum in l∞ and l2, sparse steps in l1."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Ascent, Loss, SearchState, check_run, finite
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import choose
from jaxrobust.sets import L1, L2, Linf, PerturbationSet
from jaxrobust.sets.balls import kth_largest, unit
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["APGD", "SparseAPGD", "apgd", "checkpoints"]

Scalar = Float[Array, ""]

FIRST_STEP = 2.0  # of the radius
SHARE = 0.75  # of the new step against the momentum
STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius over the set's own, share of the steps


def checkpoints(steps: int) -> tuple[int, ...]:
    """After which steps APGD in l∞ and l2 looks at its progress: at first after 22 % of them, then ever sooner.

    Args:
        steps: N ≥ 1.

    Returns:
        The numbers of the steps, from 1 to N. They are those of the released code, which rounds otherwise than the
        paper: for N = 100 they agree, for N = 50 they do not.

    Example:
        >>> checkpoints(100)
        (22, 41, 57, 70, 80, 87, 93, 99)
    """
    interval, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found: list[int] = []
    at = interval
    while at <= steps:
        found.append(at)
        interval = max(interval - shrink, least)
        at += interval
    return tuple(found)


@pytree("theta", "gradient", "loss")
class Peak:
    """Where a run's own loss was highest, to restart from: other than what is booked, success does not matter."""

    theta: Any
    gradient: Any
    loss: Any

    def or_higher(self, theta: Image, gradient: Image, loss: Scalar) -> Peak:
        """This peak, or a strictly higher point."""
        return choose(loss > self.loss, Peak(theta, gradient, loss), self)


@pytree("peak", "previous", "step_size", "last_loss", "rises", "taken", "reduced", "peak_at_check")
class Momentum:
    """What APGD in l∞ and l2 remembers."""

    peak: Peak
    previous: Any
    step_size: Any
    last_loss: Any
    rises: Any  # steps since the last check that raised the loss
    taken: Any  # steps since the last check
    reduced: Any  # whether the last check halved the step
    peak_at_check: Any


@pytree("peak", "step_size", "changed", "moved")
class Sparsity:
    """What APGD in l1 remembers."""

    peak: Peak
    step_size: Any
    changed: Any  # entries that the peak changed at the last check
    moved: Any  # entries that a step moves


class AutoPGD(Ascent):
    """What both forms of APGD share: random starts, and a look at the loss before the move."""

    _method = "APGD"

    def __post_init__(self) -> None:
        check_run(self, "random", "clean")

    @property
    def asks_to_last(self) -> int:
        """All of them, since training takes the peak, as E-AT does."""
        return self.asks

    def _first(self, key: Key, x: Image) -> Image:
        return self._at_random(key, x) if self.start == "random" else self.set.init(x)

    def _at_random(self, key: Key, x: Image) -> Image:
        raise NotImplementedError

    def last(self, state: SearchState) -> Image:
        """The iterate of highest loss, for training."""
        return self.set.apply(state.x, state.memory.peak.theta)

    def _told(self, state: SearchState, loss: Scalar, logits: Array, gradients: Array) -> SearchState:
        """Books the iterate if it is better, then moves on by what the loss has done."""
        gradient = self.set.pullback(state.x, state.theta, finite(gradients[0, 0]))
        admitted = self._admits(state.x, state.theta)
        booked = self._book(state, state.theta[None], loss[None], logits, admitted[None])
        theta, memory = self._move(booked, gradient)
        return dataclasses.replace(booked, theta=theta, memory=memory)


@pytree("set", "rho")
class APGD(AutoPGD):
    """APGD in l∞ and l2, with momentum and checks at `checkpoints(steps)`; see `apgd`.

    Args:
        set: `Linf` or `L2`.
        steps: gradient steps of a run, ≥ 1 (static).
        restarts: independent runs, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
        rho: ρ, the share of steps between two checks that must raise the loss for the step size to stay.
        start: "random", a point of the sphere, or "clean", the image itself (static).
    """

    set: PerturbationSet
    steps: int = 100
    restarts: int = 1
    loss: Loss = "cross_entropy"
    rho: Number = 0.75
    start: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rho", _checks.number("rho", self.rho, high=1.0))

    def _at_random(self, key: Key, x: Image) -> Image:
        if isinstance(self.set, L2):
            direction = unit(jax.random.normal(key, x.shape, x.dtype))
        else:
            noise = jax.random.uniform(key, x.shape, x.dtype, -1, 1)
            direction = noise / jnp.max(jnp.abs(noise))
        return self._onto(x, self._radius(x) * direction)

    def _memory(self, x: Image, theta: Image) -> Momentum:
        lowest, zero = jnp.full((), -jnp.inf, x.dtype), jnp.zeros((), jnp.int32)
        return Momentum(
            peak=Peak(theta, jnp.zeros_like(theta), lowest),
            previous=theta,
            step_size=FIRST_STEP * self._radius(x),
            last_loss=-lowest,  # so that asking the start is no rise
            rises=zero,
            taken=zero,
            reduced=jnp.ones((), bool),
            peak_at_check=lowest,
        )

    def _move(self, state: SearchState, gradient: Image) -> tuple[Image, Momentum]:
        x, theta, memory, step = state.x, state.theta, state.memory, state.asked - 1
        peak = memory.peak.or_higher(theta, gradient, state.loss)
        rises = memory.rises + (state.loss > memory.last_loss).astype(jnp.int32)
        taken = memory.taken + (step > 0).astype(jnp.int32)
        check = jnp.any(step == jnp.asarray(checkpoints(self.steps), jnp.int32))
        slow = rises.astype(x.dtype) <= jnp.asarray(self.rho).astype(x.dtype) * taken.astype(x.dtype)
        stuck = ~memory.reduced & (peak.loss <= memory.peak_at_check)
        back = check & (slow | stuck)
        size = jnp.where(back, memory.step_size / 2, memory.step_size)
        theta, gradient = choose(back, (peak.theta, peak.gradient), (theta, gradient))
        stepped = self._onto(x, self.set.ascend(x, theta, gradient, size))
        # after a restart, too, the momentum is counted from the iterate before the last step
        inertia = (1 - SHARE) * (theta - memory.previous)
        mixed = self._onto(x, theta + SHARE * (stepped - theta) + inertia)
        remembered = Momentum(
            peak=peak,
            previous=theta,
            step_size=size,
            last_loss=state.loss,
            rises=jnp.where(check, 0, rises),
            taken=jnp.where(check, 0, taken),
            reduced=jnp.where(check, back, memory.reduced),
            peak_at_check=jnp.where(check, peak.loss, memory.peak_at_check),
        )
        return jnp.where(step == 0, stepped, mixed), remembered

    def _onto(self, x: Image, theta: Image) -> Image:
        """The method's own projection: in l2 it scales into the ball, then clips, and so is not the nearest point."""
        if not isinstance(self.set, L2):
            return self.set.project(x, theta)
        radius = self._radius(x)
        # in radii, of which a step takes two, so that no square overflows
        length = jnp.sqrt(jnp.sum(jnp.square(theta / jnp.where(radius > 0, radius, 1))))
        scale = jnp.where(radius > 0, 1 / jnp.maximum(length, 1), 0)
        return jnp.clip(scale * theta, -x, 1 - x)


@pytree("set", "sparsity")
class SparseAPGD(AutoPGD):
    """APGD in l1, with sparse steps and no momentum; see `apgd`.

    Args:
        set: `L1`.
        steps: gradient steps of a run, ≥ 1, or ≥ 3 with `large_radii` (static).
        restarts: as in `APGD`.
        loss: as in `APGD`.
        large_radii: whether to search at 3 and 2 times the radius first (static).
        sparsity: the share of all entries that the first steps move, in (0, 1].
        start: as in `APGD`.
    """

    set: PerturbationSet
    steps: int = 100
    restarts: int = 1
    loss: Loss = "cross_entropy"
    large_radii: bool = False
    sparsity: Number = 0.2
    start: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sparsity", _share(self.sparsity))
        if self.large_radii:
            _checks.count("steps with large_radii", self.steps, low=len(STAGES))

    @property
    def asks(self) -> int:
        """Every iterate and the start of every stage."""
        return self.steps + len(self._stages)

    @property
    def _stages(self) -> tuple[tuple[float, int], ...]:
        """Radius over the set's own, and steps, of each stage."""
        if not self.large_radii:
            return ((1.0, self.steps),)
        lengths = [math.ceil(share * self.steps) for _, share in STAGES[:-1]]
        lengths.append(self.steps - sum(lengths))
        return tuple((scale, length) for (scale, _), length in zip(STAGES, lengths, strict=True))

    @property
    def _schedule(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every ask and one more: the scale of the radius, whether it opens a stage, and whether it is a check."""
        rows = []
        for scale, length in self._stages:
            interval = max(int(0.04 * length), 1)
            rows += [(scale, step == 0, step > 0 and step % interval == 0) for step in range(length + 1)]
        scales, opens, checks = zip(*rows, (rows[-1][0], False, False), strict=True)
        return np.array(scales), np.array(opens), np.array(checks)

    def _at_random(self, key: Key, x: Image) -> Image:
        return self._within(x, self._stages[0][0]).project(x, jax.random.normal(key, x.shape, x.dtype))

    def _memory(self, x: Image, theta: Image) -> Sparsity:
        return self._opening(theta, self._radius(x) * self._stages[0][0])

    def _opening(self, theta: Image, radius: Scalar) -> Sparsity:
        """The memory at the start of a stage; only where larger radii came first does the start's sparsity count."""
        changed = _changed(theta) if self.large_radii else jnp.asarray(theta.size, jnp.int32)
        moved = _sparser(changed) if self.large_radii else self._entries(theta)
        lowest = jnp.full((), -jnp.inf, theta.dtype)
        return Sparsity(Peak(theta, jnp.zeros_like(theta), lowest), radius, changed, moved)

    def _entries(self, theta: Image) -> Int[Array, ""]:
        """How many the first steps move, rounded up, but not for a share that is not quite what it was written as."""
        share = jnp.asarray(self.sparsity).astype(theta.dtype)
        return jnp.ceil(share * theta.size * (1 - 1e-6)).astype(jnp.int32)

    def _move(self, state: SearchState, gradient: Image) -> tuple[Image, Sparsity]:
        x, theta, memory, step = state.x, state.theta, state.memory, state.asked - 1
        scales, opens, checks = (jnp.asarray(column) for column in self._schedule)
        radius = self._radius(x) * scales[step].astype(x.dtype)
        if self.large_radii:
            memory = choose(opens[step], self._opening(theta, radius), memory)
        peak = memory.peak.or_higher(theta, gradient, state.loss)
        changed = _changed(peak.theta)
        sparser = 20 * changed < 19 * memory.changed
        adapted = jnp.where(sparser, radius, jnp.maximum(memory.step_size / 1.5, radius / 10))
        check = checks[step]
        remembered = choose(
            check,
            Sparsity(peak, adapted, changed, _sparser(changed)),
            dataclasses.replace(memory, peak=peak),
        )
        theta, gradient = choose(check & sparser, (peak.theta, peak.gradient), (theta, gradient))
        strength = jnp.abs(gradient)
        chosen = (strength >= kth_largest(strength, remembered.moved)) & (strength > 0)
        share = remembered.step_size / jnp.maximum(jnp.sum(chosen.astype(x.dtype)), 1)
        stepped = theta + jnp.where(chosen, share * jnp.sign(gradient), 0)
        if not self.large_radii:
            return self.set.project(x, stepped), remembered
        # the next stage starts from the best point of this one
        stepped = jnp.where(opens[step + 1], peak.theta, stepped)
        return self._within(x, scales[step + 1].astype(x.dtype)).project(x, stepped), remembered

    def _within(self, x: Image, scale: Number) -> PerturbationSet:
        return self.set.with_radius(self._radius(x) * scale)

    def _admits(self, x: Image, theta: Image) -> Bool[Array, ""]:
        """Whether an iterate lies in the set itself: those at larger radii may, but rarely do."""
        return self.set.contains(x, theta) if self.large_radii else super()._admits(x, theta)


def _share(sparsity: Any) -> Any:
    """The share of entries, at the door also where another set has no use for it."""
    return _checks.positive("sparsity", _checks.number("sparsity", sparsity, high=1.0))


def _changed(theta: Image) -> Int[Array, ""]:
    """‖δ‖₀."""
    return jnp.sum(theta != 0, dtype=jnp.int32)


def _sparser(changed: Int[Array, ""]) -> Int[Array, ""]:
    """How many entries the next steps move, ⌈changed/1.5⌉ and at least one, in whole numbers."""
    return jnp.maximum((2 * changed + 2) // 3, 1)


def apgd(
    set: PerturbationSet,
    *,
    steps: int = 100,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    large_radii: bool = False,
    rho: Number = 0.75,
    sparsity: Number = 0.2,
    random_start: bool = True,
) -> APGD | SparseAPGD:
    """Auto-PGD: gradient ascent without a step size to choose, the standard first attack of an evaluation.

    In l∞ and l2, u = P(θₙ + η s(∇ℓ)) with s = sign or ·/‖·‖₂, and θₙ₊₁ = P(θₙ + ¾ (u − θₙ) + ¼ (θₙ − θₙ₋₁)), from a
    random point of the sphere and with η = 2 · radius. At each of `checkpoints(steps)`, η is halved and the search goes
    back to its best point if at most ρ of the steps since the last check raised the loss, or if that check did not
    halve η and no better point was found since.

    In l1, θₙ₊₁ = P(θₙ + η e), e being equal moves along the signs of the k largest entries of ∇ℓ and ‖e‖₁ = 1; at first
    η is the radius and k a share of all entries, `sparsity`. After every 4 % of the steps, k = ‖δ*‖₀/1.5 for the best
    point δ*, and where that is sparser than 0.95 times what it was, the search goes back to it with η the radius; else
    η is divided by 1.5, down to a tenth of the radius.

    Cost: with N steps and R restarts, R (N + 1) forwards and R N backwards; with `large_radii` two more of each in
    every run.

    Args:
        set: `Linf`, `L2` or `L1`.
        steps: N ≥ 1. The step sizes depend on it: fewer steps are not the beginning of more.
        restarts: R ≥ 1 runs from new random starts.
        loss: "cross_entropy", "dlr", "margin" or a function of (logits (K,), criterion), ascended. With a `Targeted`
            criterion the targeted form is taken.
        large_radii: for `L1` only, whether to spend the first 30 % of the steps at 3 times the radius and the next
            30 % at 2 times, each stage from the projection of the best point of the last.
        rho: ρ in [0, 1], for `Linf` and `L2`.
        sparsity: for `L1`, the share of all entries that the first steps move, in (0, 1]; E-AT trains with 0.05.
        random_start: whether to start from a random point rather than the clean image, as E-AT does.

    Returns:
        The attack. It keeps the best iterate: one that meets the criterion first, then the highest loss.

    Raises:
        TypeError: another set.
        ValueError: steps or restarts below 1, fewer than 3 steps with large_radii, large_radii on another set than
            `L1`, an unknown loss.

    Example:
        >>> str(apgd(Linf(0.3), steps=20))
        'APGD in Linf(0.3), 20 steps, random start, cross-entropy'

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690; in l1, Croce and Hein, 2021, arXiv:2103.01208. The released code's
        first check compares the first step's loss with 0, this one with the loss at the start, which matters to DLR;
        its l1 form counts entries as changed that rounding alone has moved, and projects in single precision. It adds
        1e-12 to the norms of gradients, where here any gradient other than 0 makes a full step.
    """
    if not isinstance(set, (Linf, L2, L1)):
        raise TypeError(f"set must be Linf, L2 or L1; got {set!r}")
    start = "random" if random_start else "clean"
    sparsity = _share(sparsity)
    if isinstance(set, L1):
        return SparseAPGD(set, steps, restarts, loss, large_radii, sparsity, start)
    if large_radii:
        raise ValueError(f"large_radii must be False unless the set is L1; got {set}")
    return APGD(set, steps, restarts, loss, rho, start)


register(
    "apgd",
    apgd,
    use="First choice for accuracy in lp balls: there is no step size to choose. Take cross-entropy and DLR both.",
)
register("apgd_dlr", functools.partial(apgd, loss="dlr"))
register("apgd_l1", functools.partial(apgd, large_radii=True), on="l1")
