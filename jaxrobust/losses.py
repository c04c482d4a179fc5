"""Losses of one example: logits (K,) in, one number out. Attacks ascend them, training descends cross-entropy.

A loss that saturates is followed in a form that does not: large logits, which change no decision, must not stop a
search. `FOLLOWED` says which form that is, and attacks report the loss itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from jaxrobust import _public
from jaxrobust.types import Confident, Criterion, Logits

__all__ = [
    "FOLLOWED",
    "LOSSES",
    "Followed",
    "attack_loss",
    "cross_entropy",
    "dlr",
    "followed",
    "kl_divergence",
    "log_cross_entropy",
    "log_odds",
    "margin",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
]

Label = Integer[Array, ""] | int
Scalar = Float[Array, ""]


def _one_example(name: str, logits: Any, *classes: Any) -> None:
    """That a loss is asked about one example, by shapes, since the rows of a batch would be mixed in silence; and about
    a class, where it can be looked at.
    """
    if jnp.ndim(logits) != 1 or any(jnp.ndim(label) for label in classes):
        found = " and ".join(str(jnp.shape(given)) for given in (logits, *classes))
        raise ValueError(
            f"logits must have shape (K,) and labels (), of one example; got {found}: "
            f"map over a batch by jax.vmap(losses.{name})"
        )
    if jnp.shape(logits)[0] < 2:
        raise ValueError(f"logits must be of at least 2 classes; got shape {jnp.shape(logits)}")
    count = jnp.shape(logits)[0]
    for label in classes:
        # of an array on a device it would cost a transfer for each loss
        if isinstance(label, (int, np.integer, np.ndarray)) and not 0 <= label < count:
            raise ValueError(f"labels must lie in [0, {count}), the classes of the logits; got {label}")


def _others(logits: Logits, label: Label) -> Logits:
    """The logits with the label's own masked out by −∞, which no finite constant can replace for large logits."""
    return jnp.where(jax.nn.one_hot(label, logits.shape[0], dtype=bool), -jnp.inf, logits)


def log_odds(logits: Logits, label: Label) -> Scalar:
    """The log-odds of an error, u = log Σ_{k≠y} exp z_k − z_y: cross-entropy is softplus(u).

    u rises where cross-entropy does and its gradient has the same direction, but never vanishes: it is what attacks
    follow in cross-entropy's place.

    Args:
        logits: (K,), K ≥ 2.
        label: the class y, integer in [0, K).

    Returns:
        Any number; positive when all other classes together are likelier than y.

    Raises:
        ValueError: logits or labels of a batch, or a label, of Python or NumPy, that is no class.

    Example:
        >>> float(log_odds(jnp.array([1000.0, 0.0]), 0))
        -1000.0
    """
    _one_example("log_odds", logits, label)
    return jax.nn.logsumexp(_others(logits, label)) - logits[label]


def cross_entropy(logits: Logits, label: Label) -> Scalar:
    """Cross-entropy −log softmax_y(z), with a gradient that survives saturation.

    Written as softplus(u) of the log-odds u of an error: the textbook form loses the gradient as soon as the float32
    softmax rounds to one (a margin of 17), this one keeps it up to a margin of about 87.

    Args:
        logits: (K,), K ≥ 2.
        label: the class y, integer in [0, K).

    Returns:
        A number ≥ 0.

    Raises:
        ValueError: logits or labels of a batch, or a label, of Python or NumPy, that is no class.

    Example:
        >>> float(cross_entropy(jnp.zeros(2), 0))  # log 2
        0.6931471824645996
    """
    _one_example("cross_entropy", logits, label)
    return jax.nn.softplus(log_odds(logits, label))


def log_cross_entropy(logits: Logits, label: Label) -> Scalar:
    """log ℓ of the cross-entropy ℓ: like its log-odds it does not saturate, and Σ ℓ_i rises along log Σ exp(log ℓ_i).

    Args:
        logits: (K,), K ≥ 2.
        label: the class y, integer in [0, K).

    Returns:
        Any number.

    Raises:
        ValueError: logits or labels of a batch, or a label, of Python or NumPy, that is no class.
    """
    _one_example("log_cross_entropy", logits, label)
    odds = log_odds(logits, label)
    small = odds < -15  # where softplus(u) is exp(u) to rounding
    return jnp.where(small, odds, jnp.log(jax.nn.softplus(jnp.where(small, 0, odds))))


def targeted_cross_entropy(logits: Logits, target: Label) -> Scalar:
    """Targeted cross-entropy log softmax_t(z): ascending it raises the target's probability.

    Args:
        logits: (K,), K ≥ 2.
        target: the class t, integer in [0, K).

    Returns:
        A number ≤ 0.

    Raises:
        ValueError: logits or targets of a batch, or a target, of Python or NumPy, that is no class.
    """
    _one_example("targeted_cross_entropy", logits, target)
    return -cross_entropy(logits, target)


def _rival(logits: Logits, label: Label, k: int) -> Scalar:
    """The k-th largest logit of another class."""
    others = _others(logits, label)
    return jnp.max(others) if k == 1 else lax.top_k(others, k)[0][k - 1]


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

    Raises:
        ValueError: logits or labels of a batch, or a label, of Python or NumPy, that is no class.

    Example:
        >>> float(margin(jnp.array([4.0, 2.0, 1.0, 0.0]), 0))
        -2.0

    Reference:
        Carlini and Wagner, 2017, arXiv:1608.04644.
    """
    _one_example("margin", logits, label)
    return jnp.minimum(_rival(logits, label, k) - logits[label], jnp.asarray(confidence, logits.dtype))


def targeted_margin(logits: Logits, target: Label, *, confidence: float = jnp.inf) -> Scalar:
    """The targeted margin min(z_t − max_{k≠t} z_k, κ): positive when the target is predicted.

    Args:
        logits: (K,), K ≥ 2.
        target: the class t, integer in [0, K).
        confidence: κ, as in `margin`.

    Returns:
        A number ≤ κ.

    Raises:
        ValueError: logits or targets of a batch, or a target, of Python or NumPy, that is no class.

    Reference:
        Carlini and Wagner, 2017, arXiv:1608.04644.
    """
    _one_example("targeted_margin", logits, target)
    return jnp.minimum(logits[target] - jnp.max(_others(logits, target)), jnp.asarray(confidence, logits.dtype))


def _ratio(gap: Scalar, spread: Scalar) -> Scalar:
    """gap/spread for spread ≥ 0, kept finite by the gap's own scale, so that it is the same at any scale of logits."""
    spread = jnp.maximum(spread, lax.stop_gradient(1e-12 * jnp.abs(gap)))
    spread = jnp.where(spread > 0, spread, 1)
    # else the spread's square could leave the floats' range, in the gradient or where XLA makes ab/bc of (a/b)/(c/b)
    unit = lax.stop_gradient(spread)
    return (gap / unit) / (1 + (spread - unit) * (1 / unit))


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

    Raises:
        ValueError: logits or labels of a batch, or a label, of Python or NumPy, that is no class.

    Example:
        >>> round(float(dlr(jnp.array([4.0, 2.0, 1.0, 0.0]), 0)), 4)
        -0.6667

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690.
    """
    _one_example("dlr", logits, label)
    gap = margin(logits, label, k=k)
    if logits.shape[0] < k + 2:
        return gap
    top = lax.top_k(logits, k + 2)[0]
    return _ratio(gap, top[0] - top[-1])


def targeted_dlr(logits: Logits, label: Label, target: Label) -> Scalar:
    """Targeted difference of logits ratio −(z_y − z_t)/(z_π1 − (z_π3 + z_π4)/2).

    It needs four classes; with fewer the targeted margin takes its place, as the margin does in `dlr`. Of three
    logits any denominator of their differences would be the numerator's own for some order, and the ratio constant.

    Args:
        logits: (K,), K ≥ 2.
        label: the true class y, integer in [0, K).
        target: the target class t, integer in [0, K).

    Returns:
        The ratio; ascending it moves from y towards t.

    Raises:
        ValueError: logits or labels of a batch, or a label, of Python or NumPy, that is no class.

    Example:
        >>> round(float(targeted_dlr(jnp.array([4.0, 2.0, 1.0, 0.0]), 0, 2)), 4)
        -0.8571

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690.
    """
    _one_example("targeted_dlr", logits, label, target)
    if logits.shape[0] < 4:
        return targeted_margin(logits, target)
    top = lax.top_k(logits, 4)[0]
    return _ratio(logits[target] - logits[label], top[0] - (top[2] + top[3]) / 2)


def kl_divergence(logits: Logits, reference: Logits) -> Scalar:
    """Kullback–Leibler divergence KL(softmax(reference) ‖ softmax(logits)), the loss TRADES ascends.

    Args:
        logits: (K,) of the perturbed image.
        reference: (K,) of the clean image.

    Returns:
        A number ≥ 0; its gradient is exactly zero where the two are equal.

    Raises:
        ValueError: logits of a batch.

    Reference:
        Zhang et al., 2019, arXiv:1901.08573.
    """
    _one_example("kl_divergence", logits)
    _one_example("kl_divergence", reference)
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


class Followed(NamedTuple):
    """The form in which an attack follows a loss: one that rises with the loss, but does not saturate.

    Gradients and comparisons are its own; results and pictures show the loss.

    Args:
        value: (logits (K,), criterion) -> the number that is followed.
        loss: (that number, criterion) -> the loss.
        reached: (a value of the loss, criterion) -> the number from which on the loss exceeds it.
    """

    value: Callable[[Logits, Any], Scalar]
    loss: Callable[[Scalar, Any], Scalar]
    reached: Callable[[Any, Any], Any]


def _signed_log_odds(logits: Logits, goal: Any) -> Scalar:
    return -log_odds(logits, goal.target) if goal.targeted else log_odds(logits, goal.label)


def _of_log_odds(value: Scalar, goal: Any) -> Scalar:
    loss = -jax.nn.softplus(-value) if goal.targeted else jax.nn.softplus(value)
    return jnp.where(value == -jnp.inf, value, loss)  # which stands for no number at all


def _to_log_odds(loss: Any, goal: Any) -> Any:
    """The inverse of softplus; targeted cross-entropy is never positive."""
    if goal.targeted:
        return jnp.where(loss < 0, loss - jnp.log(-jnp.expm1(jnp.minimum(loss, 0))), jnp.inf)
    return loss + jnp.log(-jnp.expm1(-loss))


# the losses that saturate, and what is followed in their place; all others are followed as they are
FOLLOWED: dict[str, Followed] = {"cross_entropy": Followed(_signed_log_odds, _of_log_odds, _to_log_odds)}


def followed(loss: str | Callable[..., Any]) -> Followed:
    """How attacks follow a loss: one that saturates in a form that does not, any other and functions as they are.

    Cross-entropy softplus(u) is followed by u, the log-odds of an error, and its targeted form −softplus(u) by −u.
    Otherwise a classifier with logits c times as large, which decides alike, would let attacks stand still.

    Args:
        loss: one of `LOSSES`, or a function of (logits (K,), criterion).

    Returns:
        The form.

    Raises:
        ValueError: when asked for a value, as `attack_loss`.

    Example:
        >>> from jaxrobust.types import Misclassified
        >>> goal, z = Misclassified(0), jnp.array([200.0, 0.0])
        >>> float(attack_loss("cross_entropy", z, goal)), float(followed("cross_entropy").value(z, goal))
        (0.0, -200.0)
    """
    if isinstance(loss, str) and loss in FOLLOWED:
        return FOLLOWED[loss]
    return Followed(lambda logits, goal: attack_loss(loss, logits, goal), _as_it_is, _as_it_is)


def _as_it_is(number: Any, goal: Any) -> Any:
    return number


def attack_loss(loss: str | Callable[..., Any], logits: Logits, goal: Criterion) -> Scalar:
    """The number an attack ascends to meet a criterion; see `followed` for how.

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
        ValueError: `loss` is a name that is not in `LOSSES`, targeted DLR is asked without true labels, or the logits
            are a batch's.
    """
    _one_example("attack_loss", logits)
    if callable(loss):
        return loss(logits, goal)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)} or a function of (logits, criterion); got {loss!r}")
    return LOSSES[loss](logits, goal)


def __dir__() -> list[str]:
    return _public.names(globals())
