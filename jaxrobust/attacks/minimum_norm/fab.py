"""FAB: projections onto linearised decision boundaries within the box, biased towards the clean image."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import SearchState
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.hyperplane import to_hyperplane
from jaxrobust.attacks.core.minimum import (
    MinimumNorm,
    check_kind,
    check_steps,
    differences,
    farthest,
    nearest_boundary,
    order_of,
    strongest_others,
)
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Misclassified, Number, Targeted, pytree

__all__ = ["FAB", "fab"]

ORDERS = (1, 2, math.inf)


@pytree("set", "bias", "overshoot", "backward")
class FAB(MinimumNorm):
    """The fast adaptive boundary attack; see `fab`.

    Args:
        set: `Linf`, `L2` or `L1`.
        steps: iterations of a run, ≥ 1 (static).
        repeats: runs a target, or of the untargeted form; from the second on they start at random (static).
        targets: 0 for the untargeted form, else how many target classes (static).
        candidates: classes whose boundaries the untargeted form considers, the true one among them, ≥ 2; None for
            all (static).
        bias: α_max in [0, 1].
        overshoot: η.
        backward: β in [0, 1].
    """

    set: PerturbationSet
    steps: int = 100
    repeats: int = 1
    targets: int = 0
    candidates: int | None = None
    bias: Number = 0.1
    overshoot: Number = 1.05
    backward: Number = 0.9
    ends_early = True

    def __post_init__(self) -> None:
        check_steps(self, "overshoot", counts=("steps", "repeats"))
        _checks.count("targets", self.targets, low=0)
        if self.candidates is not None:
            _checks.count("candidates", self.candidates, low=2)
        for name in ("bias", "backward"):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name), high=1.0))

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """Runs: every target as often as it is repeated."""
        return max(self.targets, 1) * self.repeats

    @property
    def start(self) -> str:  # type: ignore[override]
        """Whether anything is random."""
        return "random" if self.repeats > 1 else "clean"

    @property
    def asks(self) -> int:
        """Two an iteration: the iterate with its gradients, then the next, of which only the label is wanted."""
        return 2 * self.steps

    @property
    def gradients(self) -> int:
        """One an iteration with a target, else one for each other candidate. Where all classes are meant, whose number
        is the model's, it is that of ten; what was used is in the result's `backwards`.
        """
        return self.steps * (1 if self.targets else (self.candidates or 10) - 1)

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """The first run."""
        return self.begin(key, x, goal, logits, jnp.zeros((), jnp.int32))

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> SearchState:
        """Run number `restart`: the classes whose boundaries it considers, and its start."""
        if self.targets:
            check_kind(goal, "fab with targets", Misclassified, Targeted)
        else:
            check_kind(goal, "fab without targets", Misclassified)
        if goal.targeted:
            classes, repeat = jnp.asarray(goal.target)[None], restart
        else:
            most = self.targets or (self.candidates or logits.shape[0]) - 1
            classes, repeat = strongest_others(logits, goal.label, most), restart
            if self.targets:
                # a model with fewer other classes than targets has random starts in their place
                count = classes.shape[0]
                classes, repeat = classes[restart % count][None], restart // count
        theta = self._inside(x, self._noise(key, x), jnp.zeros_like(x))
        theta = jnp.where(repeat > 0, theta, 0)
        # fresh: whether the iterate's label is still to be looked at; turns: iterations begun
        fresh, turns = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        return self._start(x, goal, logits, theta, (classes, fresh, turns))

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The logit differences z_k − z_y of the classes considered."""
        return differences(state.memory[0], _source(state.goal, logits[0]), logits)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate; then a new one that meets the criterion is drawn back, any other is moved on."""
        x, delta = state.x, state.theta
        classes, fresh, turns = state.memory
        p = order_of(self.set, "fab", ORDERS)
        bias, overshoot, backward = (
            jnp.asarray(value).astype(x.dtype) for value in (self.bias, self.overshoot, self.backward)
        )
        normal, height = nearest_boundary(classes, _source(state.goal, logits[0]), logits[0], gradients[0], p)
        here = to_hyperplane(x + delta, normal, -height, p=p)
        there = to_hyperplane(x, normal, jnp.sum(normal * delta) - height, p=p)
        near, far = (jnp.maximum(self.set.size(x, move), 1e-8) for move in (here, there))
        share = jnp.clip(near / (near + far), 0, bias)
        moved = (1 - share) * (delta + overshoot * here) + share * overshoot * there
        back = fresh & state.goal.met(logits[0])
        theta = jnp.where(back, backward * delta, self._inside(x, moved, delta))
        # of the very last iterate only the label is wanted
        ended = fresh & (turns == self.steps)
        turns = turns + (~back | ended).astype(jnp.int32)
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=(classes, ~back, turns))

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether all iterations have been made and the last iterate has been looked at."""
        return super().done(state) | (state.memory[2] > self.steps)

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        classes, _, turns = state.memory
        return classes.shape[0] * jnp.minimum(turns, self.steps)

    def _noise(self, key: Key, x: Image) -> Image:
        """Half a radius of noise."""
        linf = order_of(self.set, "fab", ORDERS) == math.inf
        noise = jax.random.uniform(key, x.shape, x.dtype, -1, 1) if linf else jax.random.normal(key, x.shape, x.dtype)
        size = jnp.minimum(self._radius(x), farthest(self.set, x))
        return size / 2 * noise / self.set.size(x, noise)

    @property
    def _method(self) -> str:
        return f"FAB at {self.targets} targets" if self.targets else "FAB"

    @property
    def _run(self) -> str:
        return super()._run + (f", {self.repeats} restarts" if self.repeats > 1 else "")


def _source(goal: Criterion, logits: Logits) -> Int[Array, ""]:
    """The class to get away from: the true one, or the strongest that is not the target."""
    if goal.targeted:
        return strongest_others(logits, goal.target, 1)[0]
    return jnp.asarray(goal.label)


def fab(
    set: PerturbationSet,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 0,
    candidates: int | None = None,
    bias: Number = 0.1,
    overshoot: Number = 1.05,
    backward: Number = 0.9,
) -> FAB:
    """FAB, the fast adaptive boundary attack, and FAB-T: small perturbations by projections onto linearised boundaries.

    With the nearest linearised boundary H of the iterate x, d₁ the projection of x onto H ∩ box, d₂ that of the clean
    image x₀, and α = min(‖d₁‖/(‖d₁‖ + ‖d₂‖), α_max), x ← (1 − α)(x + η d₁) + α (x₀ + η d₂), clipped to the box. An
    iterate that is adversarial is kept if it is the nearest so far, and then drawn back: x ← x₀ + β (x − x₀).

    Args:
        set: `Linf`, `L2` or `L1`. Its norm is the attack's, its radius caps what counts as success: take one that is
            large to learn the distances themselves.
        steps: N, iterations of a run, ≥ 1.
        restarts: runs, or runs a target; from the second on they start with noise of half a radius.
        targets: 0 looks at the boundaries of all candidates (FAB); t ≥ 1 makes one run for each of the t classes of
            largest clean logits other than the true one, looking at its boundary alone (FAB-T; AutoAttack has 9).
        candidates: how many classes FAB considers, ≥ 2: the true one and the others of largest clean logits; None for
            all K. Without meaning for FAB-T.
        bias: α_max.
        overshoot: η.
        backward: β.

    Returns:
        The attack. Cost: at most 2 · steps · restarts · max(targets, 1) forwards and
        steps · restarts · (min(candidates or K, K) − 1 or, with targets, the number of them) backwards. An iteration
        whose point is not adversarial takes one forward, any other two. With a `Targeted` criterion FAB-T aims at its
        target in all runs.

    Raises:
        ValueError: another set, counts below 1, bias or backward outside of [0, 1]; when run, another
            criterion than `Misclassified` or, with targets, `Targeted`.

    Example:
        >>> str(fab(jr.sets.Linf(8 / 255), targets=9))
        'FAB at 9 targets in Linf(8/255), 100 steps'

    Reference:
        Croce and Hein, 2020, arXiv:1907.02044; as in AutoAttack, arXiv:2003.01690, without the paper's final search.
        Points that were drawn back are classified anyway, so they are booked too, which the released code does not do.
    """
    order_of(set, "fab", ORDERS)
    _checks.count("restarts", restarts)
    return FAB(set, steps, restarts, targets, candidates, bias, overshoot, backward)


register(
    "fab",
    functools.partial(fab, steps=10, candidates=4),
    use="Part of AutoAttack; distances in lp without anything to tune.",
)
register("fab_t", functools.partial(fab, steps=10, targets=3), on="l2")
