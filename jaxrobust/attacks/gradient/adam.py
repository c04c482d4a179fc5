"""Adam on a set's parameters: the usual search of functional adversaries, such as StAdv and ReColorAdv."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import (
    Ascent,
    Loss,
    SearchState,
    adam_step,
    check_run,
    finite,
    never_nan,
    no_moments,
    scaled,
    step_sizes,
)
from jaxrobust.attacks.core.base import check_set, register
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Image, Number, pytree

__all__ = ["Adam", "adam", "recoloradv", "stadv"]


@pytree("set", "step_size", "relative_step_size", "decay", "square_decay", "epsilon")
class Adam(Ascent):
    """Adam ascent of ℓ(model(apply(x, θ))) − penalty(x, θ) on θ, projected after each step; see `adam`.

    Args:
        set: what the adversary may do.
        steps: steps of a run, ≥ 1 (static).
        step_size: the learning rate, in the unit of θ's entries; None takes `relative_step_size` · radius.
        relative_step_size: the learning rate as a fraction of the radius.
        restarts: independent runs, ≥ 1 (static).
        start: "clean" or "random" (a sample of the set).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
        decay: β₁ of the mean gradient, in [0, 1).
        square_decay: β₂ of the mean squared gradient, in [0, 1).
        epsilon: what is added to the root of the mean square.
    """

    set: PerturbationSet
    steps: int
    step_size: Number | None = None
    relative_step_size: Number | None = None
    restarts: int = 1
    start: Literal["clean", "random"] = "clean"
    loss: Loss = "margin"
    decay: Number = 0.9
    square_decay: Number = 0.999
    epsilon: Number = 1e-8

    _method = "Adam ascent"

    def __post_init__(self) -> None:
        check_run(self, "clean", "random")
        for name in ("step_size", "relative_step_size", "epsilon"):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name)))
        for name in ("decay", "square_decay"):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name), high=1 - 1e-6))

    def _penalised(self, x: Image, theta: Any, loss: Float[Array, ""], gradient: Any) -> tuple[Float[Array, ""], Any]:
        penalty, slope = jax.value_and_grad(self.set.penalty, argnums=1)(x, theta)
        return never_nan(loss - penalty), jax.tree.map(lambda g, s: g - finite(s), gradient, slope)

    def _booked(self, state: SearchState) -> Float[Array, ""]:
        # not the rank and the penalty added up, which would round
        return self._loss(state.best_logits, state.aim)

    def _memory(self, x: Image, theta: Any) -> tuple[Any, Any]:
        return no_moments(theta)

    def _move(self, state: SearchState, gradient: Any) -> tuple[Any, Any]:
        names = ("decay", "square_decay", "epsilon")
        constants = {name: jnp.asarray(getattr(self, name)).astype(state.x.dtype) for name in names}
        direction, moments = adam_step(gradient, state.memory, state.asked, **constants)
        rate = scaled(self.step_size, self.relative_step_size, self._radius(state.x))
        theta = jax.tree.map(lambda theta, along: theta + rate * along, state.theta, direction)
        return self.set.project(state.x, theta), moments


def adam(
    set: PerturbationSet,
    *,
    steps: int = 100,
    step_size: Number | None = None,
    relative_step_size: Number | None = None,
    restarts: int = 1,
    random_start: bool = False,
    loss: Loss = "margin",
) -> Adam:
    """Adam on the parameters of a perturbation set, projected after each step.

    θ ← P(θ + α m̂/(√v̂ + 1e-8)) with the bias-corrected means m̂, v̂ (decays 0.9, 0.999) of the gradient of
    ℓ(model(apply(x, θ))) − penalty(x, θ); the penalty is the set's own, such as a flow's roughness. Every entry of θ
    moves by about α, so α is in the unit of the entries; for sets bounded entry by entry that is the radius's. From
    cross-entropy the penalty is taken in the form that is followed, see `losses.followed`.

    Cost: (steps + 1) · restarts forwards, steps · restarts backwards.

    Args:
        set: what the adversary may do.
        steps: steps of a run, ≥ 1. Published: 100 in evaluation, 20 in training.
        step_size: α, absolute. Published: 0.01 and 0.001 for StAdv (radius 0.05), 0.001 for ReColorAdv (0.06).
        relative_step_size: α as a fraction of the radius; the default is 0.1.
        restarts: independent runs from new random starts; the best point of all is kept.
        random_start: whether to start from a sample of the set rather than the clean image.
        loss: "margin" (unbounded), "cross_entropy", "dlr" or a function of (logits (K,), criterion), ascended.

    Returns:
        The attack. What it books is the best point it has asked: success first, then the highest penalised loss; the
        loss that it reports is without the penalty.

    Raises:
        ValueError: steps or restarts below 1, a step size that is negative or not finite, or both kinds of it.

    Example:
        >>> str(adam(jr.sets.Linf(0.1), steps=20))
        'Adam ascent in Linf(0.1), 20 steps, margin'

    Reference:
        Laidlaw and Feizi, 2019, arXiv:1906.00001. The released code returns the last perturbation, and pairs the loss
        before a step with the parameters after it; here the point is the one whose loss was seen.
    """
    check_set(set)
    step_size, relative_step_size = step_sizes(step_size, relative_step_size, 0.1)
    start: Literal["clean", "random"] = "random" if random_start else "clean"
    return Adam(set, steps, step_size, relative_step_size, restarts=restarts, start=start, loss=loss)


def stadv(set: PerturbationSet, *, steps: int = 100, step_size: Number = 0.01) -> Adam:
    """StAdv in its bounded form: Adam on the flow, ascending the margin less the flow's roughness.

    Cost: steps + 1 forwards, steps backwards.

    Args:
        set: the flows, `sets.Flow(0.05)` in the published tables.
        steps: steps, ≥ 1.
        step_size: α in the unit of the flow, the image's half width; the ReColorAdv repository has 0.001.

    Returns:
        The attack.

    Reference:
        Xiao et al., 2018, arXiv:1801.02612, which bounds nothing and uses L-BFGS; the bound, Adam and the constants
        are those of Laidlaw et al., 2021, arXiv:2006.12655.
    """
    return adam(set, steps=steps, step_size=step_size)


def recoloradv(set: PerturbationSet, *, steps: int = 100, step_size: Number = 0.001) -> Adam:
    """ReColorAdv: Adam on the colour function's grid, ascending the margin less the grid's roughness.

    Cost: steps + 1 forwards, steps backwards.

    Args:
        set: the colour functions, `sets.ReColor(0.06)` in the published tables, or a sequence with others.
        steps: steps, ≥ 1.
        step_size: α in the unit of the colour space scaled to [0, 1].

    Returns:
        The attack.

    Reference:
        Laidlaw and Feizi, 2019, arXiv:1906.00001.
    """
    return adam(set, steps=steps, step_size=step_size)


register("adam", adam, use="Sets whose parameters have no natural steepest step, such as flows and colour maps.")
