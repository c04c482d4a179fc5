"""The Lagrangian attack: outside of the set is allowed on the way, at a price. LPA and Fast-LPA are two schedules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Ascent, Loss, SearchState, check_run, finite
from jaxrobust.attacks.core.base import check_set, register
from jaxrobust.losses import followed
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.balls import unit
from jaxrobust.sets.base import UNBOUNDED
from jaxrobust.types import Classifier, Criterion, Image, Logits, Number, pytree

__all__ = ["Lagrangian", "fast_lpa", "lpa"]


@pytree("set", "multiplier", "growth", "relative_step_size", "step_decay", "probe", "guard", "confidence")
class Lagrangian(Ascent):
    """Normalised ascent of min(ℓ, κ) − λ max(0, size(x, θ) − radius) on θ; see `lpa` and `fast_lpa`.

    In step t = 0 … T − 1 of a round θ moves along the unit gradient ĝ, by as much as changes the set's own distance
    by η_t = η · radius · ρ^{t/T}: the factor is η_t/(m + guard) with m = distance(θ, θ − h ĝ)/h. Iterates only respect
    the box; those outside of the set are asked but never booked. Rounds go on from where the last one ended.

    Args:
        set: what the adversary may do; its `size` must be differentiable.
        steps: T, steps of a round, ≥ 1 (static).
        rounds: how often the step sizes start again, ≥ 1 (static).
        raises: "rounds" multiplies λ by `growth` before every round that starts outside of the set or on its boundary;
            "steps" has λ_t = `multiplier` · `growth`^{t/T} (static).
        multiplier: λ at the start, ≥ 0.
        growth: see `raises`.
        relative_step_size: η, the first step as a fraction of the radius.
        step_decay: ρ.
        probe: h.
        guard: what keeps the step finite where the set measures no distance.
        confidence: κ; None does not bound the loss.
        project: whether the very last point is brought into the set (static).
        restarts: independent runs, ≥ 1 (static).
        start: "clean" or "random" (a sample of the set).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
    """

    set: PerturbationSet
    steps: int
    rounds: int = 1
    raises: Literal["rounds", "steps"] = "rounds"
    multiplier: Number = 0.01
    growth: Number = 10.0
    relative_step_size: Number = 1.0
    step_decay: Number = 0.1
    probe: Number = 0.1
    guard: Number = 1e-8
    confidence: Number | None = None
    project: bool = True
    restarts: int = 1
    start: Literal["clean", "random"] = "random"
    loss: Loss = "margin"

    def __post_init__(self) -> None:
        check_run(self, "clean", "random")
        _checks.count("rounds", self.rounds)
        _checks.choice("raises", self.raises, ("rounds", "steps"))
        for name in ("multiplier", "growth", "relative_step_size", "step_decay", "probe", "guard", "confidence"):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name)))

    @property
    def asks(self) -> int:
        """Every iterate is asked, the start and the last one too."""
        return self.rounds * self.steps + 1

    def _loss(self, logits: Logits, aim: Criterion) -> Float[Array, ""]:
        loss = super()._loss(logits, aim)
        if self.confidence is None:
            return loss
        return jnp.minimum(loss, followed(self.loss).reached(jnp.asarray(self.confidence).astype(loss.dtype), aim))

    def _memory(self, x: Image, theta: Any) -> Float[Array, ""]:
        return jnp.asarray(self.multiplier).astype(x.dtype)

    def _admits(self, x: Image, theta: Any) -> Bool[Array, ""]:
        return self.set.contains(x, theta)

    def joins(self, model: Classifier) -> bool:
        """In one round, whose multipliers no distance decides, on a set that measures with the model's activations."""
        return self.raises == "steps" and self.set.measures_with(model)

    def joint_cotangents(self, state: SearchState, logits: Logits, maps: Any, clean: Any) -> tuple[Any, Any]:
        """The gradients of the loss at the logits, and of the penalty at the activations."""
        size, slope = jax.value_and_grad(self._separation)(maps, clean)
        price = self._price(state, size)[0]
        penalty = jax.tree.map(lambda s: -price.astype(s.dtype) * finite(s), slope)
        return jax.grad(self._loss)(logits, state.aim), penalty

    def joint_tell(self, state: SearchState, gradient: Image, maps: Any) -> SearchState:
        """The next iterate."""

        def change(other: Any) -> Float[Array, ""]:
            return self._separation(maps, cast(Any, self.set).maps(state.x, other))

        gradient = self.set.pullback(state.x, state.theta, finite(gradient))
        return dataclasses.replace(state, theta=self._stepped(state, gradient, change), asked=state.asked + 1)

    def _separation(self, maps: Any, others: Any) -> Float[Array, ""]:
        return cast(Any, self.set).separation(maps, others)

    def _move(self, state: SearchState, gradient: Any) -> tuple[Any, Any]:
        size, slope = jax.value_and_grad(self.set.size, argnums=1)(state.x, state.theta)
        price, multiplier = self._price(state, size)
        ascent = jax.tree.map(lambda g, s: g - price * finite(s), gradient, slope)
        return self._stepped(state, ascent, lambda other: self.set.distance(state.x, state.theta, other)), multiplier

    def _price(self, state: SearchState, size: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What a unit of distance beyond the radius costs now, and the multiplier from here on."""
        radius, growth = self._radius(state.x), jnp.asarray(self.growth).astype(state.x.dtype)
        multiplier = price = state.memory
        if self.raises == "rounds":
            ended = (state.asked % self.steps == 0) & (state.asked > 0) & (size >= radius)
            multiplier = price = jnp.where(ended, growth * multiplier, multiplier)
        else:
            price = multiplier * growth ** self._elapsed(state)
        return jnp.where(size > radius, price, 0), multiplier

    def _elapsed(self, state: SearchState) -> Float[Array, ""]:
        """The part of the round that is over."""
        return (state.asked % self.steps).astype(state.x.dtype) / self.steps

    def _stepped(self, state: SearchState, ascent: Any, change: Callable[[Any], Float[Array, ""]]) -> Any:
        """θ moved along the ascent, given how far from it the set sees others."""
        x, theta, radius = state.x, state.theta, self._radius(state.x)
        decay, rate, probe, guard = (
            jnp.asarray(value).astype(x.dtype)
            for value in (self.step_decay, self.relative_step_size, self.probe, self.guard)
        )
        flat, restore = ravel_pytree(ascent)
        direction = unit(flat)

        def moved(length: Float[Array, ""]) -> Any:
            return jax.tree.map(jnp.add, theta, restore(length * direction))

        metric = change(moved(-probe)) / probe
        theta = moved(rate * radius * decay ** self._elapsed(state) / (metric + guard))
        if not self.project:
            return self.set.boxed(x, theta)
        # one projection for both cases: under vmap a choice between two would run the dear one at every step
        bound = jnp.where(state.asked + 2 == self.asks, radius, UNBOUNDED)
        return self.set.with_radius(bound).project(x, theta)

    @property
    def _method(self) -> str:
        return "Lagrangian ascent" if self.rounds == 1 else f"Lagrangian ascent in {self.rounds} rounds"


def lpa(
    set: PerturbationSet,
    *,
    steps: int = 40,
    rounds: int = 5,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "margin",
    confidence: Number | None = 1.0,
) -> Lagrangian:
    """LPA, the Lagrangian perceptual attack, on any set whose size is differentiable.

    Ascends min(ℓ, κ) − λ max(0, size − radius). λ starts at 0.01 and grows tenfold after every round that ends outside
    of the set or on its boundary; within each round steps shrink from the radius to a tenth of it, measured in the
    set's own distance. The perturbation is carried from round to round, and in the end projected.

    Cost: (rounds · steps + 1) · restarts forwards, rounds · steps · restarts backwards; distances come on top.

    Args:
        set: what the adversary may do; the paper has `Perceptual`, with which the random start is the paper's noise.
        steps: steps of a round, ≥ 1. Published: 40 in evaluation, 20 by default.
        rounds: ≥ 1.
        restarts: independent runs from new random starts; the best point of all is kept.
        random_start: whether to start from a sample of the set rather than the clean image.
        loss: as in `pgd`.
        confidence: κ, the margin beyond which nothing is gained; None for no such bound.

    Returns:
        The attack, of rounds · steps gradients. Only points inside of the set are booked, so many of a run's points
        may be asked in vain; the projected last one is always inside.

    Raises:
        ValueError: steps, rounds or restarts below 1, a negative confidence.

    Example:
        >>> str(lpa(jr.sets.L2(0.5), steps=10))
        'Lagrangian ascent in 5 rounds in L2(0.5), 10 steps, random start, margin'

    Reference:
        Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655. The released code returns the last point, which its
        projection may leave outside; here the best one that was measured to be inside.
    """
    check_set(set)
    start: Literal["clean", "random"] = "random" if random_start else "clean"
    return Lagrangian(set, steps, rounds, restarts=restarts, start=start, loss=loss, confidence=confidence)


def fast_lpa(
    set: PerturbationSet,
    *,
    steps: int = 20,
    project: bool = False,
    random_start: bool = True,
    loss: Loss = "margin",
) -> Lagrangian:
    """Fast-LPA, the cheap form of LPA for perceptual adversarial training: one round, while λ grows from 1 to 10.

    Ascends ℓ − λ_t max(0, size − radius) with λ_t = 10^{t/T} and steps from the radius to a tenth of it.

    Cost: steps + 1 forwards, steps backwards; distances come on top.

    Args:
        set: what the adversary may do; the paper has `Perceptual`.
        steps: T ≥ 1. Published: 20 by default, 10 in training.
        project: whether the last point is brought into the set. By default it is not, as in the paper: training then
            uses a point that may be a little outside, and what `run` books is inside or else the clean image.
        random_start: whether to start from a sample of the set rather than the clean image.
        loss: as in `pgd`.

    Returns:
        The attack.

    Raises:
        ValueError: steps below 1.

    Reference:
        Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655. Its code divides the probed distance by 0.1 whatever the
        probe's length; here by that length.
    """
    check_set(set)
    start: Literal["clean", "random"] = "random" if random_start else "clean"
    return Lagrangian(set, steps, raises="steps", multiplier=1.0, guard=1e-4, project=project, start=start, loss=loss)


register("lpa", lpa, on="l2", use="First choice on perceptual balls; report `ppgd` beside it.")
register(
    "fast_lpa",
    functools.partial(fast_lpa, project=True),
    on="l2",
    use="Perceptual adversarial training; evaluate with `lpa`.",
)
