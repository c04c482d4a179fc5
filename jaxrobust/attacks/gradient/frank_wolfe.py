"""Frank–Wolfe, the attack without projections: towards the member that a linear loss likes best."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Ascent, Loss, SearchState, check_run
from jaxrobust.attacks.core.base import check_set, register
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Image, pytree

__all__ = ["FrankWolfe", "frank_wolfe"]

Averaging = Literal["2/(t+2)", "1/(t+1)"]


@pytree("set")
class FrankWolfe(Ascent):
    """θ ← θ + γ_t (maximise(x, ∇_θ ℓ) − θ) on a set with a linear maximiser; see `frank_wolfe`.

    Args:
        set: what the adversary may do; it must have `maximise`.
        steps: steps of a run, ≥ 1 (static).
        averaging: γ_t at step t = 0, 1, … (static).
        restarts: independent runs, ≥ 1 (static).
        start: "clean" or "random" (a sample of the set).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
    """

    set: PerturbationSet
    steps: int
    averaging: Averaging = "2/(t+2)"
    restarts: int = 1
    start: Literal["clean", "random"] = "clean"
    loss: Loss = "cross_entropy"

    _method = "Frank-Wolfe"

    def __post_init__(self) -> None:
        check_run(self, "clean", "random")
        _checks.choice("averaging", self.averaging, ("2/(t+2)", "1/(t+1)"))
        # JAX rebuilds pytrees around placeholders, which maximise nothing
        if isinstance(self.set, PerturbationSet) and not hasattr(self.set, "maximise"):
            raise TypeError(f"set must have a linear maximiser (maximise) for Frank-Wolfe; got {self.set}")

    def gap(self, state: SearchState) -> Float[Array, ""]:
        """The duality gap <∇_θ ℓ, maximise(x, ∇_θ ℓ) − θ> ≥ 0 at the iterate last asked.

        For a concave loss no member of the set has a loss that is higher by more than the gap.
        """
        return state.memory

    def _memory(self, x: Image, theta: Any) -> Float[Array, ""]:
        return jnp.full((), jnp.inf, x.dtype)

    def _admits(self, x: Image, theta: Any) -> Bool[Array, ""]:
        """Members only: where a set is not convex, the way to its maximiser leads outside."""
        return self.set.contains(x, theta)

    def _move(self, state: SearchState, gradient: Any) -> tuple[Any, Any]:
        target = self.set.maximise(state.x, gradient)  # type: ignore[attr-defined]
        way = jax.tree.map(jnp.subtract, target, state.theta)
        gap = sum(jnp.sum(g * w) for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
        step = state.asked.astype(state.x.dtype)
        share = 2 / (step + 2) if self.averaging == "2/(t+2)" else 1 / (step + 1)
        return jax.tree.map(lambda theta, w: theta + share * w, state.theta, way), gap


def frank_wolfe(
    set: PerturbationSet,
    *,
    steps: int = 300,
    averaging: Averaging = "2/(t+2)",
    restarts: int = 1,
    random_start: bool = False,
    loss: Loss = "cross_entropy",
) -> FrankWolfe:
    """Frank–Wolfe (conditional gradients) on any convex set that can maximise a linear function.

    θ ← θ + γ_t (s_t − θ) with s_t = argmax_s <∇_θ ℓ, s> over the set: every iterate is a mean of members, so nothing
    is projected. With either γ_t the first step goes all the way (γ₀ = 1).

    Cost: (steps + 1) · restarts forwards, steps · restarts backwards.

    Args:
        set: what the adversary may do: an lp ball, a Wasserstein ball, a JPEG l1 ball. Of a set that is not convex
            (l0) only iterates that are members are kept, which are few.
        steps: steps of a run, ≥ 1. Published: 300 in evaluation and 30–40 in training for Wasserstein balls, 200 for
            the l1 attack of Kang et al.
        averaging: γ_t; "2/(t+2)" is the standard rate, "1/(t+1)" the plain mean of all s_t, which Kang et al. use.
        restarts: independent runs from new random starts; the best point of all is kept.
        random_start: whether to start from a sample of the set rather than the clean image.
        loss: as in `pgd`.

    Returns:
        The attack; its method `gap` tells the duality gap of a state.

    Raises:
        TypeError: the set has no linear maximiser.
        ValueError: steps or restarts below 1, an unknown averaging.

    Example:
        >>> str(frank_wolfe(jr.sets.L1(10), steps=200, averaging="1/(t+1)"))
        'Frank-Wolfe in L1(10), 200 steps, cross-entropy'

    Reference:
        Wu, Wang and Yu, 2020, arXiv:2008.02883 (Wasserstein); Kang et al., 2019, arXiv:1908.08016 (l1).
    """
    check_set(set)
    start: Literal["clean", "random"] = "random" if random_start else "clean"
    return FrankWolfe(set, steps, averaging, restarts=restarts, start=start, loss=loss)


register(
    "frank_wolfe",
    frank_wolfe,
    use="Convex sets on which a linear function is easier to maximise than to project: Wasserstein balls first.",
)
