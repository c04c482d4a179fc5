"""What minimum-norm attacks share: how they book the smallest perturbation, their norms, and their schedules."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Booking, SearchState, finite, never_nan
from jaxrobust.attacks.core.base import check_field
from jaxrobust.losses import attack_loss
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.balls import norm
from jaxrobust.sets.lp import L1, L2, Linf
from jaxrobust.sets.sparse import L0
from jaxrobust.types import Criterion, Image, Logits, Number, pytree

__all__ = [
    "MinimumNorm",
    "Penalised",
    "Rounds",
    "check_kind",
    "check_steps",
    "choose",
    "cosine",
    "differences",
    "dual_norm",
    "farthest",
    "margin_gradient",
    "nearest_boundary",
    "order_of",
    "shortest",
    "strongest_others",
    "switch",
]

Scalar = Float[Array, ""]
ORDERS: dict[type, int | float] = {L0: 0, L1: 1, L2: 2, Linf: math.inf}
# By so much an entry moves at least on the way to a boundary: sixteen roundings of a bright pixel. A tie of two logits
# is no reason to stand still, since it is the class of lower index that has it.
LEAST = 1e-6
# A success by fewer roundings of the largest logit than these may be undone by the next forward pass.
ROUNDINGS = 4


@pytree(*(field.name for field in dataclasses.fields(SearchState)), "nearest", "distance", "sure")
class NearState(SearchState):
    """A search that also knows its smallest success inside the radius or out of it, for training.

    `distance` is that one's, ∞ before any; `sure` is whether the point booked has a margin beyond rounding.
    """

    nearest: Any
    distance: Any
    sure: Any


class MinimumNorm(Booking):
    """An attack on additive perturbations that keeps the smallest one that meets the criterion within the radius.

    θ is δ itself. The loss booked is −‖δ‖, and −∞ until something is found, so the engine's own rule, success first
    and then the higher loss, keeps the smallest of all runs. What `loss_of` shows is the margin.
    """

    steps: int
    loss = "size"
    start = "clean"  # as a rule nothing is random
    minimum_norm = True

    def ask(self, state: SearchState) -> Any:
        """The iterate, in the box."""
        return self.set.apply(state.x, state.theta)[None]

    def last(self, state: Any) -> Image:
        """What to train on: the smallest success, wherever it was, else the iterate, projected onto the set."""
        theta = jnp.where(jnp.isfinite(state.distance), state.nearest, self._iterate(state))
        return self.set.apply(state.x, self.set.project(state.x, theta))

    def _iterate(self, state: SearchState) -> Image:
        """The perturbation to train on where nothing was found."""
        return state.theta

    def _start(self, x: Image, goal: Criterion, logits: Logits, theta: Any, memory: Any) -> NearState:
        state = self._open(x, goal, logits, theta, memory)
        known = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        zero = jnp.zeros((), x.dtype)
        known["loss"], known["best_loss"] = state.loss.astype(x.dtype), jnp.where(state.success, zero, -jnp.inf)
        distance = jnp.where(state.success, zero, jnp.inf)
        return NearState(**known, nearest=jnp.zeros_like(x), distance=distance, sure=state.success)

    def _record(self, state: Any, logits: Float[Array, "queries classes"], thetas: Any = None) -> Any:
        """The state, a `NearState`, after an ask of `thetas` (queries, H, W, C), of the iterate alone by default."""
        thetas = state.theta[None] if thetas is None else thetas
        sizes = jax.vmap(self.set.size, (None, 0))(state.x, thetas)
        met = jax.vmap(self._meets, (None, 0))(state.goal, logits)
        distances = jax.vmap(self._distance)(thetas, sizes)
        margins = jax.vmap(self._loss, (0, None))(logits, state.aim)
        admitted = met & (sizes <= self._radius(state.x)[None])
        sure = admitted & (margins > jax.vmap(rounding)(logits))
        # the first sure success takes the place of whatever was booked before, and then only sure ones may
        first = jnp.any(sure) & ~state.sure
        known = state.sure | first
        book = dataclasses.replace(
            state, success=state.success & ~first, best_loss=jnp.where(first, -jnp.inf, state.best_loss)
        )
        booked: Any = self._book(book, thetas, -distances, logits, jnp.where(known, sure, admitted))
        lengths = jnp.where(met, distances, jnp.inf)
        place = jnp.argmin(lengths)
        nearer = lengths[place] < state.distance
        return dataclasses.replace(
            booked,
            loss=jnp.max(margins).astype(state.x.dtype),
            nearest=jnp.where(nearer, thetas[place], state.nearest),
            distance=jnp.where(nearer, lengths[place], state.distance),
            sure=known,
        )

    def _surely(self, goal: Criterion, logits: Logits) -> Bool[Array, ""]:
        """Whether the criterion is met beyond rounding."""
        return goal.met(logits) & (self._loss(logits, goal) > rounding(logits))

    def _meets(self, goal: Criterion, logits: Logits) -> Bool[Array, ""]:
        return goal.met(logits)

    def _distance(self, theta: Image, size: Scalar) -> Scalar:
        """What is made small: the size itself."""
        return size

    def _loss(self, logits: Logits, aim: Criterion) -> Scalar:
        return never_nan(attack_loss("margin", logits, aim))

    def _inside(self, x: Image, theta: Image, old: Image) -> Image:
        """θ in the box; entries that are not finite stay as they were."""
        return jnp.clip(jnp.where(jnp.isfinite(theta), theta, old), -x, 1 - x)

    def __str__(self) -> str:
        return f"{self._method} in {self.set}, {self._run}"

    @property
    def _run(self) -> str:
        return "1 step" if self.steps == 1 else f"{self.steps} steps"


class Penalised(MinimumNorm):
    """Descent of size + c · max(κ − margin, 0): what CW and EAD share."""

    rounds: int
    confidence: Number

    @property
    def asks(self) -> int:
        """In every round its start and every iterate."""
        return self.rounds * (self.steps + 1)

    @property
    def gradients(self) -> int:
        """One a step; the last iterate of a round is only looked at."""
        return self.rounds * self.steps

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The gradient of the margin."""
        return margin_gradient(logits[0], state.goal)[None, None]

    def _kappa(self, logits: Logits) -> Scalar:
        return jnp.asarray(self.confidence).astype(logits.dtype)

    def _meets(self, goal: Criterion, logits: Logits) -> Bool[Array, ""]:
        """Whether the criterion is met with confidence κ to spare."""
        kappa = self._kappa(logits)
        if goal.targeted:
            return goal.met(logits.at[goal.target].add(-kappa))
        return goal.met(logits.at[goal.label].add(kappa))

    def _hinge(self, state: SearchState, logits: Logits) -> Scalar:
        return jnp.maximum(self._kappa(logits) - self._loss(logits, state.goal), 0).astype(state.x.dtype)

    @property
    def _run(self) -> str:
        return f"{self.rounds} rounds of {super()._run}"


def order_of(set: PerturbationSet, attack: str, known: tuple[int | float, ...]) -> int | float:
    """The p of the lp ball that names an attack's norm; ValueError where the attack has no form for it."""
    names = {p: kind.__name__ for kind, p in ORDERS.items()}
    p = next((p for kind, p in ORDERS.items() if isinstance(set, kind)), None)
    if p is None or p not in known:
        expected = " or ".join(names[p] for p in known)
        raise ValueError(f"set must be {expected} for {attack}; got {set!r}")
    return p


def check_kind(goal: Criterion, attack: str, *kinds: type[Criterion]) -> None:
    """That an attack which goes to the boundary between two classes has a form for the criterion."""
    if not isinstance(goal, kinds):
        known = " or ".join(kind.__name__ for kind in kinds)
        found = type(goal).__name__
        raise ValueError(f"the criterion must be {known} for {attack}, which compares two classes; got {found}")


def strongest_others(logits: Logits, label: Any, count: int) -> Int[Array, " others"]:
    """The classes other than the label of the largest logits, at most `count` and at most all of them."""
    own = jax.nn.one_hot(label, logits.shape[0], dtype=bool)
    others = jnp.where(own | jnp.isnan(logits), -jnp.inf, logits)
    return jax.lax.top_k(others, min(count, logits.shape[0] - 1))[1]


def differences(classes: Int[Array, " others"], label: Any, logits: Float[Array, "queries classes"]) -> Array:
    """The cotangents (1, m, K) of the logit differences z_k − z_y."""
    count, dtype = logits.shape[-1], logits.dtype
    return (jax.nn.one_hot(classes, count, dtype=dtype) - jax.nn.one_hot(label, count, dtype=dtype)[None])[None]


def nearest_boundary(
    classes: Int[Array, " others"],
    label: Any,
    logits: Logits,
    gradients: Float[Array, "gradients height width channels"],
    p: int | float,
) -> tuple[Image, Scalar]:
    """Normal w and height f of the linearised boundary f_k + <w_k, ·> = 0 that is nearest, by |f_k|/‖w_k‖_q.

    Classes without a gradient are passed over. A boundary nearer than `shortest` counts as so far ahead. Of an ask that
    only books there is one gradient, of zeros.
    """
    normals = jnp.broadcast_to(finite(gradients), (*classes.shape, *gradients.shape[1:]))
    gaps = finite(logits[classes] - logits[label][None]).astype(normals.dtype)
    slopes = jax.vmap(lambda normal: dual_norm(normal, p))(normals)
    distances = jnp.where(slopes > 0, jnp.abs(gaps) / jnp.where(slopes > 0, slopes, 1), jnp.inf)
    nearest = jnp.argmin(distances)
    least = slopes[nearest] * shortest(normals[nearest], p)
    return normals[nearest], jnp.where(jnp.abs(gaps[nearest]) < least, -least, gaps[nearest])


def shortest(x: Image, p: int | float) -> float:
    """The l_p size of a change of all entries by `LEAST`."""
    return LEAST * {1: x.size, 2: math.sqrt(x.size), math.inf: 1.0}[p]


def rounding(logits: Logits) -> Scalar:
    """How large a margin may be by rounding alone."""
    return ROUNDINGS * jnp.finfo(logits.dtype).eps * jnp.max(jnp.abs(finite(logits)))


def dual_norm(gradient: Image, p: int | float) -> Scalar:
    """‖g‖_q with 1/p + 1/q = 1."""
    if p == 2:
        return norm(gradient)
    return jnp.max(jnp.abs(gradient)) if p == 1 else jnp.sum(jnp.abs(gradient))


def farthest(set: PerturbationSet, x: Image) -> Scalar:
    """The size of the largest perturbation that the box allows."""
    return set.size(x, jnp.where(x > 0.5, -x, 1 - x))


def cosine(first: Number, last: Number, step: Array, steps: int, dtype: Any) -> Scalar:
    """From `first` at step 0 along half a cosine to `last` at step `steps`."""
    first, last = jnp.asarray(first).astype(dtype), jnp.asarray(last).astype(dtype)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * step.astype(dtype) / steps)) / 2


def margin_gradient(logits: Logits, goal: Criterion) -> Array:
    """The gradient of the margin in the logits."""
    return finite(jax.grad(lambda logits: attack_loss("margin", logits, goal))(logits))


@pytree("weight", "lower", "upper", "count", "found", "previous", "round")
class Rounds:
    """The outer search of penalty methods: rounds of descent, each with a weight c of the misclassification term.

    c is the smallest that succeeds, by bisection once one has, tenfold until then.

    Args:
        weight: c.
        lower: the largest that has failed.
        upper: the smallest that has succeeded, 1e10 before any.
        count: points of this round so far.
        found: whether any of them succeeded.
        previous: the objective when it was last compared.
        round: rounds that are over.
    """

    weight: Any
    lower: Any
    upper: Any
    count: Any
    found: Any
    previous: Any
    round: Any

    @staticmethod
    def first(weight: Number, dtype: Any) -> Rounds:
        """Before the first point."""
        zero = jnp.zeros((), jnp.int32)
        lower, upper = jnp.zeros((), dtype), jnp.full((), 1e10, dtype)
        infinite = jnp.full((), jnp.inf, dtype)
        return Rounds(jnp.asarray(weight).astype(dtype), lower, upper, zero, jnp.zeros((), bool), infinite, zero)

    def after(
        self, success: Bool[Array, ""], objective: Scalar, *, steps: int, rounds: int, abort_early: bool
    ) -> tuple[Rounds, Bool[Array, ""]]:
        """After one more point, and whether its round is over: after `steps` steps, or where progress ends.

        Ten times a round the objective must have fallen by a ten-thousandth. The last of ten rounds or more takes the
        smallest c that has succeeded.
        """
        found = self.found | success
        compared = self.count % max(steps // 10, 1) == 0
        stuck = compared & (objective > 0.9999 * self.previous) if abort_early else jnp.zeros((), bool)
        over = stuck | (self.count >= steps)
        upper = jnp.where(found, jnp.minimum(self.upper, self.weight), self.upper)
        lower = jnp.where(found, self.lower, jnp.maximum(self.lower, self.weight))
        weight = jnp.where(upper < 1e9, (lower + upper) / 2, jnp.where(found, self.weight, 10 * self.weight))
        if rounds >= 10:
            weight = jnp.where(self.round + 2 == rounds, upper, weight)
        ended = Rounds(
            weight=weight,
            lower=lower,
            upper=upper,
            count=jnp.zeros_like(self.count),
            found=jnp.zeros_like(found),
            previous=jnp.full_like(self.previous, jnp.inf),
            round=self.round + 1,
        )
        previous = jnp.where(compared, objective, self.previous)
        goes_on = dataclasses.replace(self, count=self.count + 1, found=found, previous=previous)
        return choose(over, ended, goes_on), over


def choose(condition: Bool[Array, ""], first: Any, second: Any) -> Any:
    """One of two pytrees, leaf by leaf but for what both have in common."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), first, second)


def switch(turn: Int[Array, ""], *trees: Any) -> Any:
    """The pytree of that number, the last for all beyond; as `choose`."""

    def pick(first: Any, *others: Any) -> Any:
        if all(leaf is first for leaf in others):
            return first
        return jax.lax.select_n(jnp.minimum(turn, len(others)), first, *others)

    return jax.tree.map(pick, *trees)


def check_steps(attack: Any, *numbers: str, counts: tuple[str, ...] = ("steps",)) -> None:
    """The settings at the door: static counts ≥ 1, and numbers ≥ 0 made canonical."""
    check_field(attack.set)
    for name in counts:
        _checks.count(name, getattr(attack, name))
    for name in numbers:
        object.__setattr__(attack, name, _checks.number(name, getattr(attack, name)))
