"""Attacks on several sets at once: multi steepest descent on their union, and ascent of their shared budget."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Ascent, Booking, Loss, SearchState, check_run, finite, run_in_words
from jaxrobust.attacks.core.base import Points, register
from jaxrobust.sets import L1, PerturbationSet
from jaxrobust.sets.affine import Affine
from jaxrobust.sets.combine import Union
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["MSD", "AffineAscent", "affine", "msd"]


@pytree("set", "relative_step_sizes")
class MSD(Booking):
    """Multi steepest descent over several additive balls; see `msd`.

    Args:
        set: the union of additive sets.
        steps: steps of a run, ≥ 1 (static).
        relative_step_sizes: each ball's step as a fraction of its radius.
        sparsity: least and most entries that an `L1` ball's step moves, drawn anew at every step (static); None leaves
            its steps as they are.
        restarts: independent runs, ≥ 1 (static).
        start: "clean", or "random": a sample of every ball, the worst of which is the start.
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
    """

    set: Union
    steps: int
    relative_step_sizes: tuple[Number, ...]
    sparsity: tuple[int, int] | None = (5, 20)
    restarts: int = 1
    start: Literal["clean", "random"] = "random"
    loss: Loss = "cross_entropy"

    _method = "multi steepest descent"

    def __post_init__(self) -> None:
        check_run(self, "clean", "random")
        if self.sparsity is not None:
            if not isinstance(self.sparsity, tuple) or len(self.sparsity) != 2:
                raise TypeError(f"sparsity must be (least, most); got {self.sparsity!r}")
            low, high = (_checks.count("sparsity", number) for number in self.sparsity)
            if low > high:
                raise ValueError(f"sparsity must be (least, most); got {self.sparsity}")
        object.__setattr__(self, "relative_step_sizes", one_a_part(self.relative_step_sizes, self.set))

    @property
    def random(self) -> bool:
        """Whether starts are drawn, or the sparsity of an `L1` ball's steps."""
        return self.start == "random" or (
            self.sparsity is not None and any(isinstance(part, L1) for part in self.set.parts)
        )

    @property
    def width(self) -> int:
        """One point a ball."""
        return len(self.set.parts)

    @property
    def asks(self) -> int:
        """The starts, and what every step gives."""
        return self.steps + 1

    @property
    def asks_to_last(self) -> int:
        """All of them: only the last ask tells which of the last points is the worst."""
        return self.asks

    @property
    def gradients(self) -> int:
        """One a step, at the worst of the points asked; the others are told of zeros."""
        return self.steps

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """A start in every ball; the clean image is booked first."""
        start_key, walk_key = jax.random.split(key)
        if self.start == "random":
            keys = jax.random.split(start_key, self.width)
            starts = [part.sample(k, x) for k, part in zip(keys, self.set.scaled_parts(), strict=True)]
        else:
            starts = [jnp.zeros_like(x)] * self.width
        return self._open(x, goal, logits, jnp.stack(starts), walk_key)

    def ask(self, state: SearchState) -> Points:
        """Every ball's point."""
        return jax.vmap(self.set.apply, (None, 0))(state.x, state.theta)

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The gradient of the loss at the worst point, zero for the others."""
        worst = self._worst(state, logits)
        direction = jax.grad(self._loss)(logits[worst], state.aim)
        return jnp.where(jnp.arange(self.width)[:, None, None] == worst, direction[None, None], 0)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the best of the points, then takes every ball's step from the worst for the model."""
        loss = jax.vmap(self._loss, (0, None))(logits, state.aim)
        worst = self._worst(state, logits)
        theta, gradient = state.theta[worst], finite(gradients[worst, 0])
        steps = [self._step(i, part, state, theta, gradient) for i, part in enumerate(self.set.scaled_parts())]
        moved = [part.project(state.x, step) for part, step in zip(self.set.scaled_parts(), steps, strict=True)]
        booked = self._book(state, state.theta, loss, logits, jnp.ones((self.width,), bool))
        return dataclasses.replace(booked, theta=jnp.stack(moved))

    def last(self, state: SearchState) -> Image:
        """The best point of all, for training."""
        return self.best(state).image

    def _worst(self, state: SearchState, logits: Array) -> Array:
        return jnp.argmax(jax.vmap(self._loss, (0, None))(logits, state.aim))

    def _step(self, i: int, part: PerturbationSet, state: SearchState, theta: Image, gradient: Image) -> Image:
        size = jnp.asarray(self.relative_step_sizes[i] * part.radius).astype(theta.dtype)
        if isinstance(part, L1) and self.sparsity is not None:
            least, most = (min(number, theta.size) for number in self.sparsity)
            key = jax.random.fold_in(state.memory, state.asked * self.width + i)
            kept = jax.random.randint(key, (), least, most + 1)
            gradient = _largest_free(state.x + theta, gradient, size, kept, most)
            part = L1(part.radius, quantile=0.0)
        return part.ascend(state.x, theta, gradient, size)

    @property
    def _run(self) -> str:
        return run_in_words(self.steps, self.start, self.restarts)


def _largest_free(image: Image, gradient: Image, size: Array, kept: Array, most: int) -> Image:
    """The gradient at the `kept` ≤ `most` largest of those entries that can take their share of a step whole."""
    share = size / kept.astype(size.dtype)
    free = jnp.where(gradient > 0, image + share <= 1, image - share >= 0)
    strength = jnp.where(free, jnp.abs(gradient), 0)
    threshold = lax.top_k(strength.reshape(-1), most)[0][kept - 1]
    return jnp.where(strength >= threshold, jnp.where(free, gradient, 0), 0)


def msd(
    set: Union,
    *,
    steps: int = 50,
    relative_step_sizes: tuple[Number, ...] | None = None,
    sparsity: tuple[int, int] | None = (5, 20),
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "cross_entropy",
) -> MSD:
    """Multi steepest descent on a union of additive balls, such as l∞ ∪ l2 ∪ l1.

    From the current δ, with one gradient, every ball p takes its own step, δ_p = P_p(δ + α_p steepest_p(∇ℓ)); the one
    of highest loss is the next δ. So the point always is in one of the balls, and may change from one to another.
    Steps of an `L1` ball move the k largest entries that can take 1/k of the step without leaving the box, with k
    drawn from {5, …, 20} anew at every step.

    Cost: (steps + 1) · m · restarts forwards for m balls, steps · restarts backwards.

    Args:
        set: the union of balls, `sets.Union((Linf(0.3), L2(2), L1(10)))`. Published: l∞, l2 and l1 of 0.3,
            2, 10 (MNIST) and 0.03, 0.5, 12 (CIFAR-10).
        steps: steps of a run, ≥ 1. Published: 100 (MNIST), 50 (CIFAR-10).
        relative_step_sizes: α_p as fractions of the radii; by default 0.1 each. Published: 1/30, 1/20, 1/10 (MNIST)
            and 1/10, 1/10, 1/12 (CIFAR-10).
        sparsity: the range of k; None leaves the steps of `L1` to its quantile.
        restarts: independent runs from new random starts; the best point of all is kept. Published: 10.
        random_start: whether to start from the worst of a sample of each ball; the paper starts at the clean image.
        loss: "cross_entropy", "margin", "dlr" or a function of (logits (K,), criterion), ascended.

    Returns:
        The attack. An ask has one point a ball. One gradient a step is used and counted, that of the worst point; the
        engine's backward pass still takes the time of all of them.

    Raises:
        TypeError: another set.
        ValueError: step sizes that are not one a ball, a bad range of k, steps or restarts below 1.

    Example:
        >>> str(msd(jr.sets.Union((jr.sets.Linf(0.3), jr.sets.L2(2))), steps=100))
        'multi steepest descent in Linf(0.3) or L2(2), scale (1), 100 steps, random start, cross-entropy'

    Reference:
        Maini, Wong and Kolter, 2020, arXiv:1909.04068. The released l1 projection can push points of a batch outwards,
        here it is exact; a point that is misclassified is kept before one of higher loss.
    """
    _check_kind(set, Union)
    if relative_step_sizes is None:
        relative_step_sizes = (0.1,) * len(set.parts)
    start: Literal["clean", "random"] = "random" if random_start else "clean"
    return MSD(set, steps, relative_step_sizes, sparsity, restarts=restarts, start=start, loss=loss)


@pytree("set", "relative_step_sizes")
class AffineAscent(Ascent):
    """Ascent of the affine adversary, part after part, for weights drawn at the start; see `affine`.

    Args:
        set: the affine set.
        steps: steps of a run, of all parts together, ≥ 1 (static).
        relative_step_sizes: each part's step as a fraction of its share of the budget.
        restarts: independent runs with weights of their own, ≥ 1 (static).
        start: "weights" draws the weights and starts at the clean image, "random" draws a member too.
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
    """

    set: Affine
    steps: int
    relative_step_sizes: tuple[Number, ...]
    restarts: int = 1
    start: Literal["weights", "random"] = "random"
    loss: Loss = "cross_entropy"

    _method = "part-wise ascent"

    def __post_init__(self) -> None:
        check_run(self, "weights", "random")
        object.__setattr__(self, "relative_step_sizes", one_a_part(self.relative_step_sizes, self.set))

    def _first(self, key: Key, x: Image) -> Any:
        weights, thetas = self.set.sample(key, x)
        return weights, thetas if self.start == "random" else self.set.at(weights).init(x)

    def _move(self, state: SearchState, gradient: Any) -> tuple[Any, Any]:
        x, theta = state.x, state.theta
        part = state.asked % len(self.set.parts)
        size = jnp.stack([jnp.asarray(size).astype(x.dtype) for size in self.relative_step_sizes])[part]
        return self.set.project(x, self.set.ascend_part(x, theta, gradient, size, part)), None


def affine(
    set: Affine,
    *,
    steps: int = 80,
    relative_step_sizes: tuple[Number, ...] | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "cross_entropy",
) -> AffineAscent:
    """The affine adversary's attack: sets that share one budget out, x' = x + Σ δ_i with δ_i in part i at w_i ε_i.

    Weights w are drawn uniformly from the simplex, once a run. Step t then moves part t mod m alone, by its own
    steepest ascent at the current image, and projects.

    Cost: (steps + 1) · restarts forwards, steps · restarts backwards.

    Args:
        set: the affine set, `sets.Affine((Linf(0.3), L1(10)))`.
        steps: steps of a run, of all m parts together, ≥ 1; a multiple of m gives every part as many.
        relative_step_sizes: each part's step as a fraction of its share w_i ε_i; by default 2.5 m/steps each.
        restarts: runs, each with weights of its own; the best point of all is kept.
        random_start: whether to start from a member for these weights rather than the clean image.
        loss: as in `pgd`.

    Returns:
        The attack.

    Raises:
        TypeError: another set.
        ValueError: step sizes that are not one a part, steps or restarts below 1.

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000. There each part's box is relative to x plus all other δ; here to x
        plus those of the parts before it, see `sets.Affine`.
    """
    _check_kind(set, Affine)
    if relative_step_sizes is None:
        parts = len(set.parts)
        relative_step_sizes = (2.5 * parts / _checks.count("steps", steps),) * parts
    start: Literal["weights", "random"] = "random" if random_start else "weights"
    return AffineAscent(set, steps, relative_step_sizes, restarts=restarts, start=start, loss=loss)


def _check_kind(set: Any, kind: type) -> None:
    if not isinstance(set, kind):
        raise TypeError(f"set must be a sets.{kind.__name__}; got {set}")


def one_a_part(sizes: tuple[Number, ...], set: Any) -> Any:
    """Step sizes made canonical, one a part; placeholders by which JAX rebuilds a pytree pass."""
    parts = getattr(set, "parts", None)
    if isinstance(sizes, (str, float)):
        raise TypeError(f"relative_step_sizes must be a tuple, one a part; got {sizes!r}")
    if not isinstance(sizes, (tuple, list)) or not isinstance(parts, tuple):
        return sizes
    if len(sizes) != len(parts):
        raise ValueError(f"relative_step_sizes must be one a part, {len(parts)}; got {sizes}")
    return tuple(_checks.number("relative_step_sizes", size) for size in sizes)


register(
    "msd",
    cast(Any, msd),
    on="union",
    use="Training against a union of lp balls; in evaluation attack each ball by itself too.",
)
register(
    "affine", cast(Any, affine), on="affine", use="Adversaries that share one budget out among several kinds of change."
)
