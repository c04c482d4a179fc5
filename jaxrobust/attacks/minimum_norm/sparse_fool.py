"""SparseFool: DeepFool finds a flat stand-in for the boundary, and few coordinates go there."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import SearchState, finite
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.hyperplane import to_hyperplane
from jaxrobust.attacks.core.minimum import (
    MinimumNorm,
    check_kind,
    check_steps,
    choose,
    differences,
    nearest_boundary,
    order_of,
    strongest_others,
)
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.balls import norm, unit
from jaxrobust.types import Criterion, Image, Key, Logits, Misclassified, Number, pytree

__all__ = ["SparseFool", "sparse_fool"]

# what is asked next: an iterate of DeepFool, the boundary's normal, or the sparse point
DENSE, NORMAL, SPARSE = 0, 1, 2
LEAST = 1e-4  # length of DeepFool's shortest step
BEYOND = 1e-3  # how far behind the plane the sparse point is to be


@pytree("phase", "base", "total", "tries", "other", "classes", "turns", "used", "over")
class Search:
    """What SparseFool remembers.

    Args:
        phase: what is asked now.
        base: the sparse perturbation from which DeepFool starts.
        total: DeepFool's r.
        tries: steps of DeepFool so far.
        other: the class on the boundary's far side.
        classes: those whose boundaries DeepFool considers.
        turns: sparse points so far.
        used: gradients so far.
        over: whether a sparse point met the criterion.
    """

    phase: Any
    base: Any
    total: Any
    tries: Any
    other: Any
    classes: Any
    turns: Any
    used: Any
    over: Any


@pytree("set", "reach", "overshoot")
class SparseFool(MinimumNorm):
    """Sparse moves to planes that DeepFool finds; see `sparse_fool`.

    Args:
        set: `L0`.
        steps: planes at most, ≥ 1 (static).
        inner_steps: steps of DeepFool for one plane at most, ≥ 1 (static).
        candidates: classes that DeepFool considers, the true one among them, ≥ 2 (static).
        reach: λ, where along DeepFool's perturbation the plane lies.
        overshoot: of DeepFool's iterates and of the sparse points.
    """

    set: PerturbationSet
    steps: int = 20
    inner_steps: int = 10
    candidates: int = 10
    reach: Number = 3.0
    overshoot: Number = 0.02
    ends_early = True

    _method = "SparseFool"

    def __post_init__(self) -> None:
        check_steps(self, "reach", "overshoot", counts=("steps", "inner_steps"))
        _checks.count("candidates", self.candidates, low=2)

    @property
    def asks(self) -> int:
        """For each plane DeepFool's start and iterates, the point of the normal, and the sparse point."""
        return self.steps * (self.inner_steps + 3)

    @property
    def gradients(self) -> int:
        """DeepFool's, and the normals."""
        return self.steps * ((self.candidates - 1) * self.inner_steps + 1)

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """At the clean image."""
        check_kind(goal, "sparse_fool", Misclassified)
        classes = strongest_others(logits, goal.label, self.candidates - 1)
        still, zero = jnp.zeros_like(x), jnp.zeros((), jnp.int32)
        memory = Search(zero, still, still, zero, classes[0], classes, zero, zero, jnp.zeros((), bool))
        return self._start(x, goal, logits, still, memory)

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The logit differences z_k − z_y of the candidates, or first, then zeros, of the class across the boundary."""
        memory = state.memory
        normal = memory.phase == NORMAL
        found = differences(jnp.where(normal, memory.other, memory.classes), state.goal.label, logits)
        return jnp.where(normal & (jnp.arange(found.shape[1]) > 0)[None, :, None], 0, found)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Moves on by what was asked; only sparse points are booked."""
        memory, met = state.memory, state.goal.met(logits[0])
        dense, sparse = memory.phase == DENSE, memory.phase == SPARSE
        looked = self._record(state, logits)
        passed = dataclasses.replace(state, asked=looked.asked, loss=looked.loss, non_finite=looked.non_finite)
        overshoot = 1 + jnp.asarray(self.overshoot).astype(state.x.dtype)
        stepped, dense_theta = self._stepped(state, memory, logits, gradients, met, overshoot)
        placed, sparse_theta = self._placed(state, memory, gradients, overshoot)
        tested = dataclasses.replace(
            memory,
            phase=jnp.full_like(memory.phase, DENSE),
            total=jnp.zeros_like(memory.total),
            tries=jnp.zeros_like(memory.tries),
            turns=memory.turns + 1,
            over=met,
        )
        theta = jnp.where(dense, dense_theta, jnp.where(sparse, memory.base, sparse_theta))
        after = choose(dense, stepped, choose(sparse, tested, placed))
        theta = jnp.where(sparse & met, state.theta, theta)
        return dataclasses.replace(choose(sparse, looked, passed), theta=theta, memory=after)

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether a sparse point met the criterion, or all planes have been tried."""
        return super().done(state) | state.memory.over | (state.memory.turns >= self.steps)

    def _stepped(
        self, state: SearchState, memory: Search, logits: Array, gradients: Array, met: Array, overshoot: Array
    ) -> tuple[Search, Image]:
        """After an iterate of DeepFool: the next, or, where a boundary is crossed, the point of the normal."""
        x = state.x
        normal, gap = nearest_boundary(memory.classes, state.goal.label, logits[0], gradients[0], 2)
        slope = norm(normal)
        length = jnp.where(slope > 0, jnp.maximum(jnp.abs(gap) / jnp.where(slope > 0, slope, 1), LEAST), 0)
        total = memory.total + length * unit(normal)
        ended = met | (memory.tries >= self.inner_steps) | ~jnp.all(jnp.isfinite(total))
        total = jnp.where(ended, memory.total, total)
        other = strongest_others(logits[0], state.goal.label, 1)[0]
        after = dataclasses.replace(
            memory,
            phase=jnp.where(ended, NORMAL, DENSE).astype(memory.phase.dtype),
            total=total,
            tries=memory.tries + 1,
            other=other,
            used=memory.used + jnp.where(ended, 0, memory.classes.shape[0]).astype(jnp.int32),
        )
        point = memory.base + jnp.where(ended, total, overshoot * total)
        return after, self._inside(x, point, state.theta)

    def _placed(self, state: SearchState, memory: Search, gradients: Array, overshoot: Array) -> tuple[Search, Image]:
        """After the normal is known: the sparse point behind the plane."""
        x, normal = state.x, unit(finite(gradients[0, 0]))
        reach = jnp.asarray(self.reach).astype(x.dtype)
        here = jnp.clip(x + memory.base, 0, 1)
        move = to_hyperplane(here, normal, jnp.sum(normal * reach * memory.total) + BEYOND, p=1)
        base = self._inside(x, memory.base + move, memory.base)
        after = dataclasses.replace(memory, phase=jnp.full_like(memory.phase, SPARSE), base=base, used=memory.used + 1)
        return after, self._inside(x, overshoot * base, base)

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        return state.memory.used


def sparse_fool(
    set: PerturbationSet,
    *,
    steps: int = 20,
    inner_steps: int = 10,
    candidates: int = 10,
    reach: Number = 3.0,
    overshoot: Number = 0.02,
) -> SparseFool:
    """SparseFool: a perturbation of few coordinates, by moves to planes that stand for the decision boundary.

    From the iterate x, DeepFool in l2 finds a perturbation r that crosses the boundary. The plane through x + λ r whose
    normal is the gradient of z_k − z_y at x + r, with k the class found, stands for the boundary, and x moves behind it
    by the least l1 norm within the box: coordinates of largest gradient first, each to its bound. It ends as soon as
    x₀ + (1 + η)(x − x₀) is classified otherwise.

    Cost: at most (inner_steps + 3) · steps forwards and ((min(candidates, K) − 1) · inner_steps + 1) · steps backwards;
    a plane usually takes six forwards.

    Args:
        set: `L0`, by pixel or by coordinate. Its radius caps what counts as success: take one that is large to learn
            the distances themselves.
        steps: planes at most, ≥ 1.
        inner_steps: DeepFool's steps for a plane at most, ≥ 1.
        candidates: classes that DeepFool considers, ≥ 2: the true one and the others of largest clean logits.
        reach: λ; larger is quicker and less sparse.
        overshoot: η, of DeepFool and of the sparse points.

    Returns:
        The attack.

    Raises:
        ValueError: another set, steps below 1, candidates below 2, a negative number; when run, a criterion
            other than `Misclassified`.

    Example:
        >>> str(sparse_fool(jr.sets.L0(100)))
        'SparseFool in L0(100), 20 steps'

    Reference:
        Modas et al., 2019, arXiv:1811.02248. The released code lets DeepFool take 50 steps, takes its gradients before
        the overshoot, and moves each coordinate by at least 1e-4; here the iterate that is classified also gives the
        gradients, as in `deepfool`, and the move to the plane is the exact one.
    """
    order_of(set, "sparse_fool", (0,))
    return SparseFool(set, steps, inner_steps, candidates, reach, overshoot)


register(
    "sparse_fool",
    functools.partial(sparse_fool, inner_steps=3, candidates=4),
    on="l0_coordinate",
    use="Quick l0 distances on large images; `sigma_zero` finds smaller ones.",
)
