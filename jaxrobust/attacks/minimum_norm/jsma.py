"""JSMA: the pair of coordinates that the Jacobian says to matter most is pushed to its bound, again and again."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import SearchState, finite
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import MinimumNorm, check_kind, check_steps, order_of, strongest_others
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Misclassified, Number, Targeted, pytree

__all__ = ["JSMA", "jsma"]

# all pairs of up to so many coordinates are looked at, else those of a shortlist
EXACT, SHORTLIST = 1024, 128


@pytree("target", "domain", "over")
class Domain:
    """What JSMA remembers: the class it aims at, the coordinates still to be had, and whether the run is over."""

    target: Any
    domain: Any
    over: Any


@pytree("set", "change")
class JSMA(MinimumNorm):
    """The Jacobian-based saliency map attack; see `jsma`.

    Args:
        set: `L0`.
        steps: pairs changed at most, ≥ 1 (static).
        targets: how many classes an untargeted attack aims at, one a run (static).
        change: θ in [0, 1], by which a coordinate of the pair changes.
        direction: "increase" or "decrease" (static).
        outputs: of what the Jacobian is: "logits" or "probabilities" (static).
    """

    set: PerturbationSet
    steps: int = 56
    targets: int = 9
    change: Number = 1.0
    direction: Literal["increase", "decrease"] = "increase"
    outputs: Literal["logits", "probabilities"] = "logits"
    ends_early = True

    def __post_init__(self) -> None:
        check_steps(self, counts=("steps", "targets"))
        object.__setattr__(self, "change", _checks.number("change", self.change, high=1.0))
        _checks.choice("direction", self.direction, ("increase", "decrease"))
        _checks.choice("outputs", self.outputs, ("logits", "probabilities"))

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """One run a target."""
        return self.targets

    @property
    def asks(self) -> int:
        """The clean image and every iterate."""
        return self.steps + 1

    @property
    def gradients(self) -> int:
        """In each step the target's and that of the sum of the others, which for probabilities is its negative."""
        return self._pulled * self.steps

    @property
    def _pulled(self) -> int:
        return 2 if self.outputs == "logits" else 1

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """The first run."""
        return self.begin(key, x, goal, logits, jnp.zeros((), jnp.int32))

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> SearchState:
        """Run number `restart`, which aims at the criterion's target or at one of the strongest other classes."""
        check_kind(goal, "jsma", Misclassified, Targeted)
        if goal.targeted:
            classes = jnp.asarray(goal.target).astype(jnp.int32)[None]
        else:
            classes = strongest_others(logits, goal.label, self.targets).astype(jnp.int32)
        # coordinates that are at their bound have nothing to gain
        domain = x < 1 if self.direction == "increase" else x > 0
        count = classes.shape[0]
        memory = Domain(classes[jnp.minimum(restart, count - 1)], domain, restart >= count)
        return self._start(x, goal, logits, jnp.zeros_like(x), memory)

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The target's output, and for logits the sum of the others."""
        target = jax.nn.one_hot(state.memory.target, logits.shape[-1], dtype=logits.dtype)
        if self.outputs == "logits":
            return jnp.stack([target, 1 - target])[None]
        probabilities = jax.nn.softmax(logits[0])
        return (probabilities[state.memory.target] * (target - probabilities))[None, None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate; if it does not meet the criterion, changes the most salient pair."""
        x, memory = state.x, state.memory
        sign = 1 if self.direction == "increase" else -1
        rise = sign * finite(gradients[0, 0])
        fall = rise if self.outputs == "probabilities" else -sign * finite(gradients[0, -1])
        pair, found = _most_salient(rise, fall, memory.domain)
        change = sign * jnp.asarray(self.change).astype(x.dtype)
        theta = self._inside(x, jnp.where(pair, state.theta + change, state.theta), state.theta)
        # what would be too large already can only grow
        fits = self.set.size(x, theta) <= self._radius(x)
        over = state.goal.met(logits[0]) | ~found | ~fits
        theta = jnp.where(over, state.theta, theta)
        after = dataclasses.replace(memory, domain=memory.domain & ~pair, over=over)
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=after)

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether the criterion is met, no pair is left within the radius, or all steps have been made."""
        return super().done(state) | state.memory.over

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        # of the iterate that meets the criterion no gradient is used
        looked = jnp.maximum(state.asked - state.success.astype(jnp.int32), 0)
        return self._pulled * jnp.minimum(looked, self.steps)

    @property
    def _method(self) -> str:
        return f"JSMA at {self.targets} targets" if self.targets > 1 else "JSMA"


def _most_salient(rise: Image, fall: Image, domain: Bool[Array, "height width channels"]) -> tuple[Array, Array]:
    """The pair p ≠ q of largest (r_p + r_q)(f_p + f_q) with both sums positive, as a mask, and whether there is any."""
    flat = []
    for values in (rise, fall):
        largest = jnp.max(jnp.abs(values))
        flat.append((values / jnp.where(largest > 0, largest, 1)).reshape(-1))
    free = domain.reshape(-1)
    every = places = jnp.arange(free.size, dtype=jnp.int32)
    if free.size > EXACT:
        # the product's logarithm is linear to first order
        places = jax.lax.top_k(jnp.where(free, flat[0] + flat[1], -jnp.inf), SHORTLIST)[1]
    up, down, free = flat[0][places], flat[1][places], free[places]
    both_up, both_down = up[:, None] + up[None], down[:, None] + down[None]
    apart = places[:, None] != places[None]
    allowed = apart & free[:, None] & free[None] & (both_up > 0) & (both_down > 0)
    score = jnp.where(allowed, both_up * both_down, 0).reshape(-1)
    best = jnp.argmax(score)
    found = score[best] > 0
    first, second = places[best // places.size], places[best % places.size]
    return (found & ((every == first) | (every == second))).reshape(rise.shape), found


def jsma(
    set: PerturbationSet,
    *,
    steps: int = 56,
    targets: int = 9,
    change: Number = 1.0,
    direction: Literal["increase", "decrease"] = "increase",
    outputs: Literal["logits", "probabilities"] = "logits",
) -> JSMA:
    """JSMA, the Jacobian-based saliency map attack: pairs of coordinates are pushed to their bound, a pair a step.

    With F the model's outputs and t the target, A = Σ_{i∈{p,q}} ∂F_t/∂x_i and B = Σ_{i∈{p,q}} Σ_{j≠t} ∂F_j/∂x_i, the
    pair with A > 0 and B < 0 of largest −A B changes by +θ, within [0, 1], and may not change again. With
    `direction="decrease"` all signs are turned. It ends when the criterion is met or no pair is left.

    Cost: at most (steps + 1) · targets forwards and 2 · steps · targets backwards (half of that for probabilities),
    with min(targets, K − 1) for targets; with a `Targeted` criterion one run.

    Args:
        set: `L0`; its radius caps how much may change. The paper has 14.5 % of the coordinates of MNIST, so
            `L0(113, "coordinate")`.
        steps: pairs changed at most, ≥ 1; the paper's distortion of Υ is ⌊d Υ/2⌋ steps, 56 on MNIST.
        targets: how many of the other classes, by rank of their clean logits, an untargeted attack aims at in turn;
            the smallest perturbation of all counts. With a `Targeted` criterion 1 will do: further runs end at once.
        change: θ in [0, 1].
        direction: whether coordinates are raised or lowered.
        outputs: "logits", which do not saturate, or "probabilities".

    Returns:
        The attack. Images of more than 1024 coordinates have their pairs sought among the 128 of largest A and −B,
        each relative to its maximum.

    Raises:
        ValueError: another set, counts below 1, change outside of [0, 1], or another direction or output;
            when run, a criterion other than `Misclassified` or `Targeted`.

    Example:
        >>> str(jsma(jr.sets.L0(113, "coordinate"), targets=1))
        'JSMA in L0 by coordinate(113), 56 steps'

    Reference:
        Papernot et al., 2016, arXiv:1511.07528, which takes the probabilities.
    """
    order_of(set, "jsma", (0,))
    return JSMA(set, steps, targets, change, direction, outputs)


register(
    "jsma",
    functools.partial(jsma, targets=3),
    on="l0_coordinate",
    use="Comparison with older papers; slow on large images, and `sigma_zero` changes fewer entries.",
)
