"""DeepFool: step to the nearest of the boundaries that the model would have if it were linear, until one is crossed."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import SearchState
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.core.minimum import (
    MinimumNorm,
    check_kind,
    check_steps,
    differences,
    dual_norm,
    nearest_boundary,
    order_of,
    strongest_others,
)
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.balls import unit
from jaxrobust.types import Criterion, Image, Key, Logits, Misclassified, Number, pytree

__all__ = ["DeepFool", "deepfool"]


@pytree("set", "overshoot")
class DeepFool(MinimumNorm):
    """Steps to the nearest linearised boundary; see `deepfool`.

    Args:
        set: `L2` or `Linf`.
        steps: at most so many, ≥ 1 (static).
        candidates: classes considered, the true one among them, ≥ 2 (static).
        overshoot: η ≥ 0.
    """

    set: PerturbationSet
    steps: int = 50
    candidates: int = 10
    overshoot: Number = 0.02
    ends_early = True

    _method = "DeepFool"

    def __post_init__(self) -> None:
        check_steps(self, "overshoot")
        _checks.count("candidates", self.candidates, low=2)

    @property
    def asks(self) -> int:
        """The clean image and every iterate."""
        return self.steps + 1

    @property
    def gradients(self) -> int:
        """One a candidate other than the true class, in each step."""
        return (self.candidates - 1) * self.steps

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """At the clean image, with the candidates: the classes of largest logits besides the true one."""
        check_kind(goal, "deepfool", Misclassified)
        classes = strongest_others(logits, goal.label, self.candidates - 1)
        return self._start(x, goal, logits, jnp.zeros_like(x), (classes, jnp.zeros_like(x), jnp.zeros((), bool)))

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The logit differences z_k − z_y of the candidates."""
        return differences(state.memory[0], state.goal.label, logits)

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate; where no boundary is crossed yet, steps to the nearest."""
        classes, total, _ = state.memory
        p = order_of(self.set, "deepfool", (2, math.inf))
        crossed = self._surely(state.goal, logits[0])
        normal, gap = nearest_boundary(classes, state.goal.label, logits[0], gradients[0], p)
        slope = dual_norm(normal, p)
        step = unit(normal) if p == 2 else jnp.sign(normal)
        # The overshoot is to lie beyond the boundary. Where the box holds part of a step back, steps from the point
        # asked, which has the overshoot already, would approach the boundary and never cross it.
        lead = jnp.sum(normal * (state.theta - self._inside(state.x, total, state.theta)))
        height = jnp.maximum(jnp.abs(gap), lead - gap)
        total = total + jnp.where(slope > 0, height / jnp.where(slope > 0, slope, 1), 0) * step
        overshoot = jnp.asarray(self.overshoot).astype(state.x.dtype)
        theta = self._inside(state.x, (1 + overshoot) * total, state.theta)
        theta = jnp.where(crossed, state.theta, theta)
        return dataclasses.replace(self._record(state, logits), theta=theta, memory=(classes, total, crossed))

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether a boundary is crossed, or all steps have been made."""
        return super().done(state) | state.memory[2]

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        classes, _, crossed = state.memory
        return classes.shape[0] * jnp.minimum(state.asked - crossed.astype(jnp.int32), self.steps)


def deepfool(set: PerturbationSet, *, steps: int = 50, candidates: int = 10, overshoot: Number = 0.02) -> DeepFool:
    """DeepFool, a quick estimate of the distance to the nearest decision boundary, for l2 and l∞.

    With f_k = z_k − z_y and w_k = ∇f_k, each step adds to r the least move to the nearest linearised boundary,
    k* = argmin_k |f_k|/‖w_k‖_q: |f|/‖w‖₂ · w/‖w‖₂ for l2, |f|/‖w‖₁ · sign(w) for l∞. It ends as soon as
    x + (1 + η) r is classified otherwise.

    Args:
        set: `L2` or `Linf`. Its norm is the attack's, its radius caps what counts as success: take one that is large
            to learn the distances themselves.
        steps: at most so many, ≥ 1.
        candidates: classes considered, ≥ 2: the true one and the others of largest clean logits. Fewer classes than
            that are all considered.
        overshoot: η ≥ 0.

    Returns:
        The attack. Cost: at most steps + 1 forwards and (min(candidates, K) − 1) · steps backwards; it is done as soon
        as a boundary is crossed.

    Raises:
        ValueError: another set, steps below 1, candidates below 2, a negative overshoot; when run, a criterion other
            than `Misclassified`.

    Example:
        >>> str(deepfool(jr.sets.L2(10.0)))
        'DeepFool in L2(10), 50 steps'

    Reference:
        Moosavi-Dezfooli et al., 2016, arXiv:1511.04599. The released code adds 1e-4 to every step, attacks the
        predicted class and leaves the box; here the step is the paper's, from the point without the overshoot, the
        label is the criterion's, and points are clipped to the box.
    """
    order_of(set, "deepfool", (2, math.inf))
    return DeepFool(set, steps, candidates, overshoot)


register(
    "deepfool",
    functools.partial(deepfool, steps=10, candidates=4),
    on="l2",
    use="A quick look at distances; what it finds is not the smallest, see `fmn`.",
)
