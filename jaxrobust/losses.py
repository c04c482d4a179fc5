"""Losses of one example: logits (K,) in, one number out. Attacks ascend them, training descends cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxrobust.types import Confident, Criterion, Logits

__all__ = [
    "LOSSES",
    "attack_loss",
    "cross_entropy",
    "dlr",
    "kl_divergence",
    "margin",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
]

Label = Integer[Array, ""] | int
Scalar = Float[Array, ""]


def _others(logits: Logits, label: Label) -> Logits:
    """The logits with the label's own masked out by −∞, which no finite constant can replace for large logits."""
    return jnp.where(jax.nn.one_hot(label, logits.shape[0], dtype=bool), -jnp.inf, logits)


def cross_entropy(logits: Logits, label: Label) -> Scalar:
    """Cross-entropy −log softmax_y(z), with a gradient that survives saturation.

    Written as softplus(log Σ_{k≠y} exp z_k − z_y): the textbook form loses the gradient as soon as the float32
    softmax rounds to one (a margin of 17), this one keeps it up to a margin of about 87.

    Args:
        logits: (K,), K ≥ 2.
        label: the class y, integer in [0, K).

    Returns:
        A number ≥ 0.

    Example:
        >>> float(cross_entropy(jnp.zeros(2), 0))  # log 2
        0.6931471824645996
    """
    return jax.nn.softplus(jax.nn.logsumexp(_others(logits, label)) - logits[label])


def targeted_cross_entropy(logits: Logits, target: Label) -> Scalar:
    """Targeted cross-entropy log softmax_t(z): ascending it raises the target's probability.

    Args:
        logits: (K,), K ≥ 2.
        target: the class t, integer in [0, K).

    Returns:
        A number ≤ 0.
    """
    return -cross_entropy(logits, target)


def _rival(logits: Logits, label: Label, k: int) -> Scalar:
    """The k-th largest logit of another class."""
    others = _others(logits, label)
    return jnp.max(others) if k == 1 else jax.lax.top_k(others, k)[0][k - 1]


def margin(logits: Logits, label: Label, *, k: int = 1, confidence: float = jnp.inf) -> Scalar:
    """The Carlini–Wagner margin min(max_{j≠y} z_j − z_y, κ): positive when misclassified.

    With k > 1 the k-th largest of the other logits takes the maximum's place, and it is positive when y is not among
    the k classes of largest logits.

    Args:
        logits: (K,), K ≥ 2.
        label: the class y, integer in [0, K).
        k: from 1 to K − 1.
        confidence: κ; ∞ keeps pushing after success, 0 stops at the boundary.

    Returns:
        A number ≤ κ.

    Example:
        >>> float(margin(jnp.array([4.0, 2.0, 1.0, 0.0]), 0))
        -2.0

    Reference:
        Carlini and Wagner, 2017, arXiv:1608.04644.
    """
    return jnp.minimum(_rival(logits, label, k) - logits[label], jnp.asarray(confidence, logits.dtype))


def targeted_margin(logits: Logits, target: Label, *, confidence: float = jnp.inf) -> Scalar:
    """The targeted margin min(z_t − max_{k≠t} z_k, κ): positive when the target is predicted.

    Args:
        logits: (K,), K ≥ 2.
        target: the class t, integer in [0, K).
        confidence: κ, as in `margin`.

    Returns:
        A number ≤ κ.

    Reference:
        Carlini and Wagner, 2017, arXiv:1608.04644.
    """
    return jnp.minimum(logits[target] - jnp.max(_others(logits, target)), jnp.asarray(confidence, logits.dtype))


def dlr(logits: Logits, label: Label, *, k: int = 1) -> Scalar:
    """Difference of logits ratio −(z_y − max_{k≠y} z_k)/(z_π1 − z_π3), free of the logits' shift and scale.

    z_π1 ≥ z_π2 ≥ … are the sorted logits. A correctly classified point lies in [−1, 0]. With K = 2 there is no z_π3,
    and the margin takes its place. With k > 1, the numerator has the k-th largest of the other logits, and the
    denominator is z_π1 − z_π(k+2), which needs K ≥ k + 2 in the same way: z_π1 − z_π(k+1) would give a constant ratio.

    Args:
        logits: (K,), K ≥ 2.
        label: the class y, integer in [0, K).
        k: from 1 to K − 1, as in `margin`.

    Returns:
        A number ≥ −1.

    Example:
        >>> round(float(dlr(jnp.array([4.0, 2.0, 1.0, 0.0]), 0)), 4)
        -0.6667

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690.
    """
    if logits.shape[0] < k + 2:
        return margin(logits, label, k=k)
    top = jax.lax.top_k(logits, k + 2)[0]
    return margin(logits, label, k=k) / (top[0] - top[-1] + 1e-12)


def targeted_dlr(logits: Logits, label: Label, target: Label) -> Scalar:
    """Targeted difference of logits ratio −(z_y − z_t)/(z_π1 − (z_π3 + z_π4)/2).

    It needs four classes. With K = 3 the denominator is z_π1 − z_π3, with K = 2 it is one: both keep the numerator's
    sign and so the attack's direction, which the original leaves undefined.

    Args:
        logits: (K,), K ≥ 2.
        label: the true class y, integer in [0, K).
        target: the target class t, integer in [0, K).

    Returns:
        The ratio; ascending it moves from y towards t.

    Example:
        >>> round(float(targeted_dlr(jnp.array([4.0, 2.0, 1.0, 0.0]), 0, 2)), 4)
        -0.8571

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690.
    """
    gap = logits[target] - logits[label]
    classes = logits.shape[0]
    if classes == 2:
        return gap
    top = jax.lax.top_k(logits, min(classes, 4))[0]
    return gap / (top[0] - (top[2] + top[-1]) / 2 + 1e-12)


def kl_divergence(logits: Logits, reference: Logits) -> Scalar:
    """Kullback–Leibler divergence KL(softmax(reference) ‖ softmax(logits)), the loss TRADES ascends.

    Args:
        logits: (K,) of the perturbed image.
        reference: (K,) of the clean image.

    Returns:
        A number ≥ 0; its gradient is exactly zero where the two are equal.

    Reference:
        Zhang et al., 2019, arXiv:1901.08573.
    """
    log_p, log_q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def _cross_entropy(logits: Logits, goal: Any) -> Scalar:
    if goal.targeted:
        return targeted_cross_entropy(logits, goal.target)
    return cross_entropy(logits, goal.label)


def _margin(logits: Logits, goal: Any) -> Scalar:
    """Positive when the criterion is met; where logits or probabilities tie, 0 and perhaps met."""
    if isinstance(goal, Confident):
        best = goal.target if goal.targeted else jnp.argmax(_others(logits, goal.label))
        least = jnp.log(jnp.asarray(goal.probability).astype(logits.dtype))
        # the targeted cross-entropy is log softmax, but does not saturate
        return jnp.minimum(_margin(logits, goal.goal), targeted_cross_entropy(logits, best) - least)
    if goal.targeted:
        return targeted_margin(logits, goal.target)
    return margin(logits, goal.label, k=goal.k)


def _dlr(logits: Logits, goal: Any) -> Scalar:
    if not goal.targeted:
        return dlr(logits, goal.label, k=goal.k)
    if goal.label is None:
        raise ValueError("loss 'dlr' with Targeted needs the true labels: Targeted(target, label)")
    return targeted_dlr(logits, goal.label, goal.target)


# name -> loss of (logits, criterion): away from the label, or towards the target
LOSSES: dict[str, Callable[..., Any]] = {"cross_entropy": _cross_entropy, "margin": _margin, "dlr": _dlr}


def attack_loss(loss: str | Callable[..., Any], logits: Logits, goal: Criterion) -> Scalar:
    """The number an attack ascends to meet a criterion.

    Args:
        loss: one of `LOSSES`, or a function of (logits (K,), criterion).
        logits: (K,).
        goal: the criterion of one example: away from its label where it is not `targeted`, else towards its target.
            The margin is positive when the criterion is met. Of `Confident`, cross-entropy and DLR are those of the
            criterion within, and the margin is min(its margin, log softmax_j(z) − log p) for the largest class j that
            it allows.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: `loss` is a name that is not in `LOSSES`, or targeted DLR is asked without true labels.
    """
    if callable(loss):
        return loss(logits, goal)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)} or a function of (logits, criterion); got {loss!r}")
    return LOSSES[loss](logits, goal)
