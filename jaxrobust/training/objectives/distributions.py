"""Distributional robustness: the worst distribution near the data, of moved images or of reweighted examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrobust import _checks
from jaxrobust.training.objectives.core import (
    Aux,
    Crafting,
    CraftMode,
    Keys,
    Learner,
    PerExample,
    correct,
    cross_entropies,
    sound,
    total,
)
from jaxrobust.types import Images, Key, Number, pytree

__all__ = ["WRM", "GroupDRO", "Reweighted", "group_dro", "reweighted", "wrm"]


@pytree("gamma")
class WRM(Crafting):
    """Cross-entropy of images moved at a price; make it with `wrm`."""

    gamma: Number
    steps: int = 15
    craft_bn: CraftMode = "eval"
    clean_metric: bool = True

    def craft(self, keys: Keys, learner: Learner, batch: Any) -> tuple[Images, Aux]:
        """Images (N, H, W, C), in no box, see `Crafting`."""
        model = learner.classifier(self.craft_bn, keys.craft)

        def losses(images: Images) -> PerExample:
            return cross_entropies(model(images), batch.labels)

        found, rest = priced(losses, batch.images, self.gamma, self.steps)
        images, aux = sound(self, model, learner, batch, found)
        return images, aux._replace(means={**aux.means, "cost": jnp.square(aux.means["delta_l2"]), "rest": rest})

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Images) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Crafting`."""
        logits, learner = learner.train(crafted, keys.dropout)
        losses = cross_entropies(logits, batch.labels)
        return losses, Aux(learner.state, {"adv_acc": correct(logits, batch.labels)}, {})


def priced(
    losses: Callable[[Images], PerExample], clean: Images, gamma: Number, steps: int
) -> tuple[Images, PerExample]:
    """Ascent of ℓ(x')/(2γ) − ½‖x' − x‖², in no box: images x', and the norms (N,) of its gradient there."""
    share = 1 / (2 * jnp.asarray(gamma, clean.dtype))

    def pull(images: Images) -> Images:
        return jax.grad(lambda images: share * jnp.sum(losses(images)))(images) - (images - clean)

    def step(number: Any, images: Images) -> Images:
        return images + pull(images) / jnp.sqrt(number.astype(clean.dtype) + 2)

    found = jax.lax.fori_loop(0, steps, step, clean + pull(clean))
    return found, jnp.linalg.norm(pull(found).reshape(len(clean), -1), axis=1)


@pytree("amount")
class Reweighted:
    """A worst reweighting of the batch's cross-entropies; make it with `reweighted`."""

    amount: Number
    kind: Literal["cvar", "kl", "chi2"] = "cvar"

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, after = learner.train(batch.images, Keys.of(key).dropout)
        losses = cross_entropies(logits, batch.labels)
        weights, value = self._worst(losses, batch, learner.axis_name)
        means = {"clean_acc": correct(logits, batch.labels), "mean_loss": losses}
        # of this value and with this gradient: Danskin's theorem, since the weights maximise
        return value + weights * (losses - jax.lax.stop_gradient(losses)), Aux(after.state, means, {})

    def _worst(self, losses: PerExample, batch: Any, axis_name: str | None) -> tuple[PerExample, Any]:
        """Weights of mean 1, and the worst mean; of padding alone any numbers."""
        losses = jax.lax.stop_gradient(losses)
        amount = jnp.asarray(self.amount, losses.dtype)
        count = total(jnp.ones_like(losses), batch, axis_name)
        if batch.mask is not None:
            batch = batch._replace(mask=batch.mask.astype(bool) | (count == 0))
        count = jnp.where(count == 0, total(jnp.ones_like(losses), batch, axis_name), count)

        def mean(values: PerExample) -> Any:
            return total(values, batch, axis_name) / count

        low, high = -_highest(-losses, batch, axis_name), _highest(losses, batch, axis_name)
        losses = jnp.clip(losses, low, high)  # of padding, which could overflow
        if self.kind == "chi2":
            # in units of the range: squares of tiny losses vanish, and equal ones differ from their mean by rounding
            width = high - low
            place = (losses - low) / jnp.where(width > 0, width, 1)
            middle = mean(place)
            spread = jnp.sqrt(mean(jnp.square(place - middle)))
            scale = jnp.sqrt(2 * amount / count)
            weights = 1 + scale * (place - middle) / jnp.where(spread > 0, spread, 1)
            return weights, low + width * (middle + scale * spread)
        if self.kind == "kl":
            below = (losses - high) / amount
            raised = jnp.exp(below)
            return raised / mean(raised), high + amount * jnp.log1p(mean(jnp.expm1(below)))
        each = jnp.where(batch.mask, losses, -jnp.inf) if batch.mask is not None else losses
        each = each if axis_name is None else jax.lax.all_gather(each, axis_name, tiled=True)
        last = jnp.minimum((amount * count).astype(jnp.int32), count.astype(jnp.int32) - 1)
        eta = -jnp.sort(-each)[last]  # the (1 − a)-quantile
        over, tied = (losses > eta).astype(losses.dtype), (losses == eta).astype(losses.dtype)
        left = jnp.maximum(amount - mean(over), 0) / mean(tied)
        return (over + left * tied) / amount, eta + mean(jnp.maximum(losses - eta, 0)) / amount


@pytree("groups", "rate")
class GroupDRO:
    """Cross-entropy of groups, weighted by how badly they fare; make it with `group_dro`."""

    groups: Any
    rate: Number = 0.01
    count: int = 1  # of groups

    @property
    def examples(self) -> int:
        """Of how many examples it speaks; see `Objective`."""
        return self.groups.shape[-1]

    def init(self, learner: Learner, batch: Any) -> Any:
        """Equal weights; see `Objective`."""
        return jnp.full((self.count,), 1 / self.count, jnp.float32)

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, after = learner.train(batch.images, Keys.of(key).dropout)
        losses = cross_entropies(logits, batch.labels)
        group = jnp.asarray(self.groups)[batch.index]
        member = jax.nn.one_hot(group, len(learner.memory), dtype=losses.dtype)
        sums = {"member": member, "loss": member * losses[:, None]}
        whole = {name: total(values, batch, learner.axis_name) for name, values in sums.items()}
        shares = self.remember(learner.memory, whole, None) / jnp.maximum(whole["member"], 1)
        metrics = {"clean_acc": correct(logits, batch.labels), "mean_loss": losses}
        return shares[group] * whole["member"].sum() * losses, Aux(after.state, metrics, {}, sums)

    def remember(self, memory: Any, sums: Any, gradient: Any) -> Any:
        """q_g ∝ q_g exp(η ℓ_g); see `Objective`."""
        losses = sums["loss"] / jnp.maximum(sums["member"], 1)
        weights = jnp.log(jnp.maximum(memory, jnp.finfo(memory.dtype).tiny))  # one that was once 0 may come back
        return jax.nn.softmax(weights + jnp.asarray(self.rate, memory.dtype) * losses)


def _highest(losses: PerExample, batch: Any, axis_name: str | None) -> Any:
    """The highest of unpadded examples of all devices."""
    if batch.mask is not None:
        losses = jnp.where(batch.mask.astype(bool), losses, -jnp.inf)
    highest = jnp.max(losses)
    return highest if axis_name is None else jax.lax.pmax(highest, axis_name)


def wrm(*, gamma: Number = 1 / 2.6, steps: int = 15, craft_bn: CraftMode = "eval") -> WRM:
    """Wasserstein DRO by a price: min_θ E sup_{x'} ℓ(f_θ(x'), y) − γ ‖x' − x‖².

    x' is found by ascent of ℓ/(2γ) − ½‖x' − x‖²: one step of the gradient at x, then steps of (t + 2)^{-½}. For
    every ρ, γρ + E[ℓ(x') − γ ‖x' − x‖²] bounds the loss of all distributions within ρ of the data, see
    `wasserstein_bound`.

    Args:
        gamma: γ > 0; the code's κ = 1/(2γ) is 1.3.
        steps: after the first.
        craft_bn: as in `adversarial`.

    Returns:
        The objective, with the metrics of `adversarial`, `cost` (‖x' − x‖²) and `rest` (the search's gradient at x').

    Raises:
        ValueError: if `gamma` is not positive or `steps` below 1.

    Example:
        >>> wrm().steps
        15

    Reference:
        Sinha, Namkoong and Duchi, 2018, arXiv:1710.10571. Images leave the box, as theirs do; their code smooths labels
        (to 0.9 and 0.1/9), here they are plain.
    """
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return WRM(_checks.positive("gamma", gamma), _checks.count("steps", steps), craft_bn)


def reweighted(kind: Literal["cvar", "kl", "chi2"], amount: Number) -> Reweighted:
    """The worst reweighting of the examples of a batch.

    "cvar": min_η η + E(ℓ − η)₊/a, the mean of the worst share a; "kl": τ log E exp(ℓ/τ); "chi2": mean + √(2ρ Var/n),
    the worst distribution of χ² distance ρ/n for small ρ.

    Args:
        kind: see above.
        amount: a in (0, 1], τ > 0 or ρ ≥ 0.

    Returns:
        The objective; every example reports the worst mean as its loss. Metrics: `clean_acc`, `mean_loss`.

    Raises:
        ValueError: if `kind` is unknown or `amount` out of its range.

    Example:
        >>> reweighted("cvar", 0.1).kind
        'cvar'

    Reference:
        Rockafellar and Uryasev, 2000 (CVaR); Namkoong and Duchi, 2017, arXiv:1610.02581 (χ²).
    """
    kind = _checks.choice("kind", kind, ("cvar", "kl", "chi2"))
    if kind == "chi2":
        return Reweighted(_checks.number("amount", amount), kind)
    amount = _checks.positive("amount", amount)
    return Reweighted(_checks.number("amount", amount, high=1.0) if kind == "cvar" else amount, kind)


def group_dro(groups: Any, *, rate: Number = 0.01) -> GroupDRO:
    """Group DRO: min_θ max_g E[ℓ | g], by weights q_g ∝ q_g exp(η ℓ_g) and the loss Σ q_g ℓ_g of a batch.

    Args:
        groups: (count,) integers from 0, the group of every example of the data that `fit` is given, those held out
            too, by its place in it. A group that a batch lacks, or with `accumulate` a part of it, counts as 0 there,
            which shrinks the loss: let parts be large enough to hold all groups.
        rate: η ≥ 0.

    Returns:
        The objective. Metrics: `clean_acc`, `mean_loss`.

    Raises:
        TypeError: if `groups` are no integers.
        ValueError: if they are not of one axis, or negative, or `rate` is.

    Example:
        >>> group_dro([0, 1, 1, 0]).groups.shape
        (4,)

    Reference:
        Sagawa et al., 2020, arXiv:1911.08731. It needs strong weight decay or early stopping.
    """
    found = jnp.asarray(groups)
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"groups must be integers; got {found.dtype}")
    if found.ndim != 1 or not found.size or int(found.min()) < 0:
        raise ValueError(f"groups must be numbers from 0 of shape (count,); got {_checks.told(groups)}")
    return GroupDRO(found, _checks.number("rate", rate), int(found.max()) + 1)
