"""PGD₀: gradient ascent with projections onto sparse sets, the step proportional to the gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Ascent, Loss, SearchState, check_run
from jaxrobust.attacks.core.base import check_set, register
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.sparse import SparseSet
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["PGD0", "pgd_0"]


@pytree("set", "step_size")
class PGD0(Ascent):
    """Projected ascent by η g/‖g‖₁; see `pgd_0`.

    Args:
        set: a sparse set.
        steps: gradient steps of a run, ≥ 1 (static).
        step_size: η, the l1 length of a step before it is projected.
        restarts: independent runs, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
    """

    set: PerturbationSet
    steps: int = 20
    step_size: Number = 60_000 / 255
    restarts: int = 10
    loss: Loss = "cross_entropy"
    start = "random"

    _method = "PGD₀"

    def __post_init__(self) -> None:
        check_run(self, "random")
        # JAX rebuilds pytrees around placeholders, which are no sets
        if isinstance(self.set, PerturbationSet) and not isinstance(self.set, SparseSet):
            raise TypeError(f"set must be sparse, such as L0(24); got {self.set}")
        object.__setattr__(self, "step_size", _checks.number("step_size", self.step_size))

    def _first(self, key: Key, x: Image) -> Image:
        lower, upper = self._limits(x)
        return self.set.project(x, lower + jax.random.uniform(key, x.shape, x.dtype) * (upper - lower))

    def _move(self, state: SearchState, gradient: Image) -> tuple[Image, Any]:
        largest = jnp.max(jnp.abs(gradient))
        scaled = gradient / jnp.where(largest > 0, largest, 1)
        total = jnp.sum(jnp.abs(scaled))
        size = jnp.asarray(self.step_size).astype(state.x.dtype)
        return self.set.project(state.x, state.theta + size * scaled / jnp.where(total > 0, total, 1)), None

    def _limits(self, x: Image) -> tuple[Image, Image]:
        return self.set._bounds(x)  # type: ignore[attr-defined]


def pgd_0(
    set: PerturbationSet,
    *,
    steps: int = 20,
    step_size: Number = 60_000 / 255,
    restarts: int = 10,
    loss: Loss = "cross_entropy",
) -> PGD0:
    """PGD₀, projected gradient ascent for sparse sets: δ ← P(δ + η g/‖g‖₁).

    P is the exact projection onto the set, which keeps the groups of largest gain. It starts at the projection of a
    uniformly random point within the bounds. η is far larger than any pixel's range, so that single coordinates of the
    step, η g_i/‖g‖₁, are of the size of that range.

    Cost: (steps + 1) · restarts forwards, steps · restarts backwards.

    Args:
        set: `L0`, `L0Linf` or `GroupL20`.
        steps: gradient steps of a run, ≥ 1.
        step_size: η. The released script has 60000/255 for CIFAR-10; the number of coordinates should scale it.
        restarts: runs from new random starts.
        loss: "cross_entropy", "margin", "dlr" or a function of (logits (K,), criterion), ascended.

    Returns:
        The attack. `pgd` on the same sets scales its step by the largest entry instead, whatever the image's size.

    Raises:
        TypeError: another set.
        ValueError: steps or restarts below 1, a step size that is negative or not finite.

    Example:
        >>> str(pgd_0(jr.sets.L0(24), restarts=1))
        'PGD₀ in L0(24), 20 steps, random start, cross-entropy'

    Reference:
        Croce and Hein, 2019, arXiv:1909.05040. The released code breaks ties by noise of 1e-12, the projection here by
        the lowest index.
    """
    check_set(set)
    return PGD0(set, steps, step_size, restarts, loss)


register(
    "pgd_0",
    functools.partial(pgd_0, restarts=2),
    on="l0_linf",
    use="Sparse budgets at the price of PGD, and sparse training; confirm with `sparse_rs`.",
)
