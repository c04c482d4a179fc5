"""Attacks made of one attack: more runs of it, a run at each class, all runs as one."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.around import Around
from jaxrobust.attacks.core.base import Attack, Best, register
from jaxrobust.attacks.core.engine import check_attack, merge
from jaxrobust.attacks.core.minimum import choose, strongest_others
from jaxrobust.attacks.gradient.apgd import apgd
from jaxrobust.attacks.gradient.pgd import pgd
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Towards, pytree

__all__ = ["OneRun", "Restarts", "TargetedEach", "apgd_t", "restarts", "targeted_each"]


@pytree("inner")
class Wrapped:
    """The state of the attack within."""

    inner: Any


class Wrapper(Around):
    """An attack around another, which searches; subclasses say which runs there are."""

    def ask(self, state: Any) -> Array:
        """The attack's points."""
        return self.attack.ask(state.inner)

    def meant(self, state: Any) -> Bool[Array, " queries"]:
        """The attack's."""
        return self.attack.meant(state.inner)

    def cotangents(self, state: Any, logits: Float[Array, "queries classes"]) -> Array:
        """The attack's."""
        return self.attack.cotangents(state.inner, logits)

    def tell(self, state: Any, logits: Float[Array, "queries classes"], gradients: Array) -> Any:
        """Tells the attack."""
        return dataclasses.replace(state, inner=self.attack.tell(state.inner, logits, gradients))

    def done(self, state: Any) -> Bool[Array, ""]:
        """Whether the attack is."""
        return self.attack.done(state.inner)

    def best(self, state: Any) -> Best:
        """What the attack has booked."""
        return self.attack.best(state.inner)

    def loss_of(self, state: Any) -> Float[Array, ""]:
        """The attack's."""
        return self.attack.loss_of(state.inner)

    def last(self, state: Any) -> Image:
        """The attack's."""
        return self.attack.last(state.inner)


@pytree("attack")
class Restarts(Wrapper):
    """Every run of an attack several times; see `restarts`.

    Args:
        attack: the attack.
        times: how often, ≥ 1 (static).
    """

    attack: Attack
    times: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.count("n", self.times)

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """The attack's, as often."""
        return self.times * self.attack.restarts

    def runs(self, classes: int) -> int:
        """The attack's, as often."""
        return self.times * self.attack.runs(classes)

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> Wrapped:
        """Run number `restart`, with a key of its own."""
        return Wrapped(self.attack.begin(key, x, goal, logits, restart % self.attack.runs(logits.shape[0])))

    def __str__(self) -> str:
        return f"{self.times} times [{self.attack}]"


@pytree("attack")
class TargetedEach(Wrapper):
    """An attack at one class after another; see `targeted_each`.

    Args:
        attack: the attack.
        targets: how many classes, ≥ 1 (static).
    """

    attack: Attack
    targets: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.count("targets", self.targets)

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """The attack's, for every target."""
        return self.targets * self.attack.restarts

    def runs(self, classes: int) -> int:
        """Those at targets that exist."""
        return min(self.targets, classes - 1) * self.attack.runs(classes)

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> Wrapped:
        """Run number `restart`, and its target."""
        if goal.targeted:
            found = type(goal).__name__
            raise ValueError(f"the criterion must have no target for targeted_each, which chooses it; got {found}")
        classes = strongest_others(logits, goal.label, self.targets)
        runs = self.attack.runs(logits.shape[0])
        target = classes[jnp.minimum(restart // runs, classes.shape[0] - 1)]
        return Wrapped(self.attack.begin(key, x, Towards(target, goal), logits, restart % runs))

    def __str__(self) -> str:
        return f"{self.attack}, at {self.targets} targets"


@pytree("key", "x", "goal", "logits", "run", "kept", "inner", "loss")
class OneRunState:
    """One example's search: the run under way, and the best of those before it."""

    key: Any
    x: Any
    goal: Criterion
    logits: Any
    run: Any
    kept: Best
    inner: Any
    loss: Any


@pytree("attack")
class OneRun(Wrapper):
    """All runs of an attack, one after another, as a single one, for attacks of which one run comes after another's.

    Args:
        attack: the attack.
    """

    attack: Attack
    restarts = 1

    def runs(self, classes: int) -> int:
        """One."""
        return 1

    @property
    def ends_early(self) -> bool:  # type: ignore[override]
        """Whether the attack may, or some of its runs may have nothing to do."""
        return self.attack.ends_early or self.attack.runs(2) < self.attack.restarts

    @property
    def asks(self) -> int:
        """Those of all runs."""
        return self.attack.restarts * self.attack.asks

    @property
    def asks_to_last(self) -> int:
        """All of them: training wants the worst point of all."""
        return self.asks

    @property
    def gradients(self) -> int:
        """Those of all runs."""
        return self.attack.restarts * self.attack.gradients

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> OneRunState:
        """The first run."""
        run = jnp.zeros((), jnp.int32)
        inner = self._begin(key, x, goal, logits, run)
        return OneRunState(key, x, goal, logits, run, self.attack.best(inner), inner, self.attack.loss_of(inner))

    def meant(self, state: OneRunState) -> Bool[Array, " queries"]:
        """The attack's, and none of a run that has nothing to do."""
        return self.attack.meant(state.inner) & ~self.attack.done(state.inner)

    def tell(self, state: OneRunState, logits: Float[Array, "queries classes"], gradients: Array) -> OneRunState:
        """Tells the run under way; at its end the next begins."""
        told = self.attack.tell(state.inner, logits, gradients)
        told = choose(self.attack.done(state.inner), state.inner, told)
        over = self.attack.done(told)
        ended = dataclasses.replace(state, inner=told, loss=self.attack.loss_of(told))
        run = state.run + over.astype(jnp.int32)
        fresh = self._begin(state.key, state.x, state.goal, state.logits, run)
        return choose(over, dataclasses.replace(ended, run=run, kept=self.best(ended), inner=fresh), ended)

    def done(self, state: OneRunState) -> Bool[Array, ""]:
        """Whether all runs are over."""
        return state.run >= self.attack.runs(state.logits.shape[0])

    def best(self, state: OneRunState) -> Best:
        """The best of all runs."""
        best = self.attack.best(state.inner)
        if not self.needs_start:  # whose unsuccessful runs, too, are told apart by how far they came
            # the clean image has been booked by the first run, by whose loss it is ranked
            best = dataclasses.replace(best, rank=jnp.where(best.success | (best.size > 0), best.rank, -jnp.inf))
        return merge(state.kept, best, stop="never")

    def loss_of(self, state: OneRunState) -> Float[Array, ""]:
        """That of the run last told."""
        return state.loss

    def last(self, state: OneRunState) -> Image:
        """The best point of all, for training."""
        return self.best(state).image

    def _begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, run: Int[Array, ""]) -> Any:
        # the first has the whole's own key, so that an attack of one run finds what it would find alone
        own = jnp.where(run == 0, key, jax.random.fold_in(key, run))
        return self.attack.begin(own, x, goal, logits, jnp.minimum(run, self.attack.runs(logits.shape[0]) - 1))

    def __str__(self) -> str:
        return str(self.attack)


def restarts(attack: Attack, n: int) -> Restarts:
    """Any attack n times, every run with a random key of its own; the best point of all is kept.

    Of an attack whose runs differ by more than their key, such as APGD-T by target, every run comes n times: first all
    of them once, then all of them again.

    Cost: n times the attack's.

    Args:
        attack: such as `square(jr.sets.Linf(8 / 255))`; one that starts at random.
        n: ≥ 1.

    Returns:
        The attack. The lanes of `evaluate` start a later run of an example as soon as a lane is
        free, and with early stopping only while none has met the criterion.

    Raises:
        TypeError: something that is no attack.
        ValueError: n below 1, or above for an attack of which nothing is random.

    Example:
        >>> restarts(pgd(jr.sets.Linf(0.1), restarts=2), 5).restarts
        10

    Reference:
        Customary; Madry et al., 2018, arXiv:1706.06083.
    """
    check_attack(attack)
    if _checks.count("n", n) > 1 and not attack.random:
        raise ValueError(f"n must be 1 for an attack of which nothing is random; got {n} equal runs of {attack}")
    return Restarts(attack, n)


def targeted_each(attack: Attack, *, targets: int = 9) -> TargetedEach:
    """Aim any attack that follows a loss at each of the strongest other classes in turn, as APGD-T does.

    Run r ascends the loss in its targeted form, towards the class of rank r + 2 of the clean logits when the label has
    rank 1: of rank r + 1 among the other classes. Success stays what the criterion says, misclassification as any
    class; see `Towards`.

    Cost: min(targets, K − 1) times the attack's.

    Args:
        attack: such as `pgd(jr.sets.Linf(8 / 255), loss="dlr")`. Its own restarts come for every target. One that asks
            for labels alone, such as HopSkipJump, would run as it does anyway.
        targets: classes aimed at, ≥ 1. Those beyond the K − 1 other classes cost nothing.

    Returns:
        The attack. For APGD by DLR there is `apgd_t`.

    Raises:
        TypeError: something that is no attack.
        ValueError: targets below 1; when run, a criterion with a target, or an attack that has targets of its own.

    Example:
        >>> str(targeted_each(pgd(jr.sets.Linf(0.1), steps=5, loss="dlr"), targets=3))
        'gradient ascent in Linf(0.1), 5 steps, random start, dlr, at 3 targets'

    Reference:
        Gowal et al., 2019, arXiv:1910.09338 (MultiTargeted); Croce and Hein, 2020, arXiv:2003.01690.
    """
    check_attack(attack)
    return TargetedEach(attack, targets)


def apgd_t(
    set: PerturbationSet, *, steps: int = 100, restarts: int = 1, targets: int = 9, large_radii: bool = False
) -> TargetedEach:
    """APGD-T: `apgd` by the targeted DLR loss, towards each of the runner-up classes in turn, by `targeted_each`.

    Cost: with N steps, R restarts, T targets and K classes, min(T, K − 1) R (N + 1) forwards and min(T, K − 1) R N
    backwards; with `large_radii` two more of each in every run.

    Args:
        set: `Linf`, `L2` or `L1`.
        steps: as in `apgd`.
        restarts: runs for each target, as in `apgd`.
        targets: T ≥ 1 classes; AutoAttack has 9, and 5 in l1.
        large_radii: as in `apgd`.

    Returns:
        The attack. The original needs four classes; with fewer, see `losses.targeted_dlr`.

    Raises:
        TypeError: as in `apgd`.
        ValueError: as in `apgd`, or targets below 1; when run, a criterion with a target.

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690.
    """
    attack = apgd(set, steps=steps, restarts=restarts, loss="dlr", large_radii=large_radii)
    return targeted_each(attack, targets=targets)


def _restarts(set: PerturbationSet) -> Restarts:
    return restarts(pgd(set, steps=3), 2)


def _targeted_each(set: PerturbationSet) -> TargetedEach:
    return targeted_each(pgd(set, steps=3, loss="dlr"), targets=3)


register("restarts", _restarts, factory=restarts, use="More runs of an attack that has no restarts of its own.")
register(
    "targeted_each",
    _targeted_each,
    factory=targeted_each,
    use="Any attack by a loss, made as strong as APGD-T makes APGD; worth it where classes are many.",
)
register(
    "apgd_t",
    functools.partial(apgd_t, steps=5, targets=3),
    use="The strongest part of AutoAttack, at one run a target.",
)
