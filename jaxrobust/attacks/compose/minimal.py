"""A minimum-norm attack out of any attack with a fixed budget, by a search for each example's smallest radius."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.around import Around
from jaxrobust.attacks.core.base import Attack, Best, register
from jaxrobust.attacks.core.engine import check_attack
from jaxrobust.attacks.core.minimum import choose
from jaxrobust.attacks.gradient.pgd import pgd
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["Minimal", "minimal"]


@pytree("key", "x", "goal", "logits", "restart", "trial", "radius", "low", "best", "inner", "loss")
class MinimalState:
    """One example's search: the trial under way, the largest radius that failed, and the smallest point so far."""

    key: Any
    x: Any
    goal: Criterion
    logits: Any
    restart: Any
    trial: Any
    radius: Any  # of the trial under way
    low: Any
    best: Best
    inner: Any
    loss: Any


@pytree("attack", "high")
class Minimal(Around):
    """A bisection on the radius of another attack; see `minimal`.

    Args:
        attack: what is run at every radius.
        steps: radii tried, ≥ 1 (static).
        high: the first of them; None takes the set's own.
    """

    attack: Attack
    steps: int = 10
    high: Number | None = None
    ends_early = True
    minimum_norm = True
    needs_start = False  # its own loss says only whether a radius succeeded

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.attack, "sees_draws", False):
            raise ValueError(
                "attack must not be around eot: the smallest success among noisy ones is the luckiest, and seldom "
                f"holds; take evaluate.curve over radii; got {self.attack}"
            )
        _checks.count("steps", self.steps)
        object.__setattr__(self, "high", _checks.number("high", self.high))

    @property
    def asks(self) -> int:
        """Those of the attack, for every radius."""
        return self.steps * self.attack.asks

    @property
    def gradients(self) -> int:
        """Those of the attack, for every radius."""
        return self.steps * self.attack.gradients

    @property
    def asks_to_last(self) -> int:
        """All of them."""
        return self.asks

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> MinimalState:
        """The first trial of run number `restart`."""
        most = self._most(x)
        radius = most if self.high is None else jnp.minimum(jnp.asarray(self.high).astype(x.dtype), most)
        inner = self._trial(key, x, goal, logits, restart, jnp.zeros((), jnp.int32), radius)
        zero = jnp.zeros((), jnp.int32)
        met = goal.met(logits)
        best = Best(
            image=jnp.clip(x, 0, 1),
            success=met,
            loss=jnp.where(met, jnp.zeros((), x.dtype), -jnp.inf),
            size=jnp.zeros((), x.dtype),
            forwards=zero,
            backwards=zero,
            non_finite=~jnp.all(jnp.isfinite(logits)),
            parameters=self.set.init(x),
            logits=logits,
        )
        low, loss = jnp.zeros((), x.dtype), self.attack.loss_of(inner)
        return MinimalState(key, x, goal, logits, restart, zero, radius, low, best, inner, loss)

    def ask(self, state: MinimalState) -> Array:
        """The points of the trial."""
        return self._at(state.radius).ask(state.inner)

    def meant(self, state: MinimalState) -> Bool[Array, " queries"]:
        """Those of the trial."""
        return self._at(state.radius).meant(state.inner)

    def cotangents(self, state: MinimalState, logits: Float[Array, "queries classes"]) -> Array:
        """The directions of the trial."""
        return self._at(state.radius).cotangents(state.inner, logits)

    def tell(self, state: MinimalState, logits: Float[Array, "queries classes"], gradients: Array) -> MinimalState:
        """Tells the trial; at its end, or with its success, the next begins at another radius."""
        attack = self._at(state.radius)
        inner = attack.tell(state.inner, logits, gradients)
        found, loss = attack.best(inner), attack.loss_of(inner)
        over = found.success | attack.done(inner)
        old = state.best
        smaller = found.success & ((found.size < old.size) | ~old.success)
        kept = {
            name: choose(smaller, getattr(found, name), getattr(old, name))
            for name in ("image", "success", "size", "parameters", "logits")
        }
        before, least = attack.best(state.inner), jnp.where(smaller, -found.size, old.loss)
        best = dataclasses.replace(
            old,
            **kept,
            loss=least,
            rank=least,
            forwards=old.forwards + found.forwards - before.forwards,
            backwards=old.backwards + found.backwards - before.backwards,
            non_finite=old.non_finite | found.non_finite,
        )
        low = jnp.where(over & ~found.success, jnp.maximum(state.low, state.radius), state.low)
        # before anything is found there is no upper end: the radius doubles up to the set's own
        low = jnp.where(best.success & (low >= best.size), 0, low)
        radius = jnp.where(best.success, (low + best.size) / 2, jnp.minimum(2 * state.radius, self._most(state.x)))
        radius = jnp.where(over, radius, state.radius)
        trial = state.trial + over.astype(jnp.int32)
        fresh = self._trial(state.key, state.x, state.goal, state.logits, state.restart, trial, radius)
        # the last trial stays as it ended, for training
        inner = choose(over & (trial < self.steps), fresh, inner)
        return dataclasses.replace(state, trial=trial, radius=radius, low=low, best=best, inner=inner, loss=loss)

    def done(self, state: MinimalState) -> Bool[Array, ""]:
        """Whether all radii have been tried."""
        return state.trial >= self.steps

    def best(self, state: MinimalState) -> Best:
        """The smallest success of all trials."""
        return state.best

    def loss_of(self, state: MinimalState) -> Float[Array, ""]:
        """The attack's own."""
        return state.loss

    def last(self, state: MinimalState) -> Image:
        """The smallest success, else where the trial stands."""
        return jnp.where(state.best.success, state.best.image, self._at(state.radius).last(state.inner))

    def _at(self, radius: Number) -> Attack:
        return self.attack.with_radius(radius)

    def _most(self, x: Image) -> Float[Array, ""]:
        return jnp.asarray(self.set.radius).astype(x.dtype)

    def _trial(
        self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Array, trial: Array, radius: Array
    ) -> Any:
        return self._at(radius).begin(jax.random.fold_in(key, trial), x, goal, logits, restart)

    def __str__(self) -> str:
        return f"smallest radius, {self.steps} tried, for [{self.attack}]"


def minimal(attack: Attack, *, steps: int = 10, high: Number | None = None) -> Minimal:
    """Make a minimum-norm attack of any other: a bisection on its radius, for each example alone.

    The attack is run at one radius after another, at first at the set's own (or at `high`, which doubles until
    something is found), then halfway between the largest radius that failed and the size of the smallest success. A
    trial is over with its first success. The radii are traced: nothing is compiled twice.

    Args:
        attack: such as `pgd(jr.sets.Linf(0.3))`. Step sizes that are fractions of the radius shrink with it; absolute
            ones do not. Its set's radius is the largest that is tried.
        steps: radii tried, ≥ 1. The bracket halves with each, so ten find the smallest to a thousandth of the radius.
        high: the radius tried first.

    Returns:
        The attack, whose result's `size` is the distance. Cost: at most steps times the attack's own.

    Raises:
        TypeError: something that is no attack.
        ValueError: steps below 1, a negative `high`, or an attack around `eot`.

    Example:
        >>> str(minimal(pgd(jr.sets.L2(3.0), steps=20), steps=8))
        'smallest radius, 8 tried, for [gradient ascent in L2(3), 20 steps, random start, cross-entropy]'

    Reference:
        Customary; Carlini et al., 2019, arXiv:1902.06705, ask for accuracy at all radii.
    """
    check_attack(attack)
    return Minimal(attack, steps, high)


def _example(set: PerturbationSet) -> Minimal:
    return minimal(pgd(set, steps=5))


register(
    "minimal_pgd",
    _example,
    factory=minimal,
    use="Distances in sets that no minimum-norm attack knows, such as perceptual balls.",
)
