"""Perceptual projected gradient descent: PGD whose set measures with a network."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.attacks.core.base import register
from jaxrobust.attacks.gradient.pgd import PGD, Loss, pgd
from jaxrobust.losses import attack_loss
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Logits, Number

__all__ = ["clamped_margin", "ppgd"]


def clamped_margin(logits: Logits, goal: Criterion) -> Float[Array, ""]:
    """The criterion's margin, such as max_{k≠y} z_k − z_y, but at most 1: nothing is gained beyond clear success.

    Args:
        logits: (K,).
        goal: the criterion.

    Returns:
        A number ≤ 1.
    """
    return jnp.minimum(attack_loss("margin", logits, goal), jnp.ones((), logits.dtype))


def ppgd(
    set: PerturbationSet,
    *,
    steps: int = 40,
    step_size: Number | None = None,
    relative_step_size: Number | None = None,
    restarts: int = 1,
    loss: Loss = clamped_margin,
) -> PGD:
    """Perceptual projected gradient descent (PPGD), with its authors' constants.

    It is `pgd`, because the set knows the rest: x₁ = x + N(0, 0.01²), then steps x ← x + (η/‖J v‖) v along
    v = (JᵀJ)⁻¹ ∇ℓ, projected, where J = ∂φ/∂x; see `sets.Perceptual`. The lemma behind it: among all moves δ with
    ‖J δ‖₂ ≤ η this one gains most, η √(gᵀ (JᵀJ)⁻¹ g) to first order.

    Cost: (steps + 1) · restarts forwards, steps · restarts backwards; the set's steps and projections take about six
    forwards and four backwards of its network besides.

    Args:
        set: a `sets.Perceptual`; on any other set it is `pgd` with these constants.
        steps: T ≥ 1: 40 in evaluation, 5 to 10 in training.
        step_size: η in the unit of the radius.
        relative_step_size: η as a fraction of the radius; the default is 2/steps.
        restarts: independent runs; the best point of all is kept.
        loss: as in `pgd`.

    Returns:
        The attack.

    Raises:
        ValueError: steps or restarts below 1, a step size that is negative or not finite, or both kinds of it.

    Example:
        >>> str(ppgd(jr.sets.Perceptual(0.5)))
        'gradient ascent in Perceptual(0.5), 40 steps, random start, clamped-margin'

    Reference:
        Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655.
    """
    if step_size is None and relative_step_size is None:
        relative_step_size = 2 / _checks.count("steps", steps)
    return pgd(
        set, steps=steps, step_size=step_size, relative_step_size=relative_step_size, restarts=restarts, loss=loss
    )


register("ppgd", ppgd, on="perceptual", use="Perceptual balls, together with `lpa`, which is the stronger.")
