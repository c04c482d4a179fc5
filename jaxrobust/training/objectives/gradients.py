"""Penalties on how the loss changes around an image: its gradient, its curvature, its distance from linear."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrobust import _checks, attacks
from jaxrobust.attacks.core.base import check_set
from jaxrobust.sets import PerturbationSet
from jaxrobust.training.objectives.core import Aux, Keys, Learner, PerExample, correct, cross_entropies
from jaxrobust.types import Images, Key, Number, pytree

__all__ = ["CURE", "LLR", "GradientPenalty", "cure", "gradient_penalty", "llr"]


@pytree("weight")
class GradientPenalty:
    """Cross-entropy and the size of its input gradient; make it with `gradient_penalty`."""

    weight: Number
    norm: Literal["l2", "l1"] = "l2"
    against: Literal["label", "uniform"] = "label"

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        dropout = Keys.of(key).dropout

        def loss(images: Images) -> Any:
            logits = learner.train(images, dropout)[0]
            if self.against == "label":
                return jnp.sum(cross_entropies(logits, batch.labels))
            return -jnp.sum(jnp.mean(jax.nn.log_softmax(logits), axis=1))

        gradient = jax.grad(loss)(batch.images).reshape(len(batch.images), -1)
        size = jnp.sum(jnp.square(gradient) if self.norm == "l2" else jnp.abs(gradient), axis=1)
        logits, learner = learner.train(batch.images, dropout)
        losses = cross_entropies(logits, batch.labels) + jnp.asarray(self.weight, logits.dtype) * size
        return losses, Aux(learner.state, {"clean_acc": correct(logits, batch.labels), "penalty": size}, {})


@pytree("weight", "step")
class CURE:
    """Cross-entropy and the curvature of the loss along its gradient's sign; make it with `cure`."""

    weight: Number = 4.0
    step: Number = 3.0
    squared: bool = False

    def warmed_up(self, share: Any) -> CURE:
        """At this share of h; see `Objective`."""
        return dataclasses.replace(self, step=share * self.step)

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        gradient = _evaluated_gradient(learner, batch.labels)
        sign = jnp.sign(jax.lax.stop_gradient(gradient(batch.images)))
        along = sign / jnp.maximum(_lengths(sign), 1)[:, None, None, None]  # of signs that are not all 0, at least 1
        moved = gradient(batch.images + jnp.asarray(self.step, sign.dtype) * along)
        change = jnp.sum(jnp.square(moved - gradient(batch.images)).reshape(len(sign), -1), axis=1)
        size = change if self.squared else jnp.where(change > 0, jnp.sqrt(jnp.where(change > 0, change, 1)), 0)
        logits, learner = learner.train(batch.images, Keys.of(key).dropout)
        losses = cross_entropies(logits, batch.labels) + jnp.asarray(self.weight, logits.dtype) * size
        return losses, Aux(learner.state, {"clean_acc": correct(logits, batch.labels), "curvature": size}, {})


@pytree("set", "weight", "slope", "relative_step_size")
class LLR:
    """Cross-entropy and how far the loss is from linear in a set; make it with `llr`."""

    set: PerturbationSet
    weight: Number = 4.0
    slope: Number = 3.0
    steps: int = 2
    relative_step_size: Number = 1.0

    def warmed_up(self, share: Any) -> LLR:
        """At this share of the radius; see `Objective`."""
        return dataclasses.replace(self, set=self.set.with_radius(share * self.set.radius))

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        keys = Keys.of(key)
        own = attacks.example_keys(keys.attack, batch.index)
        model = learner.classifier("eval", keys.craft)
        here, gradient = jax.value_and_grad(lambda x: _sum(model(x), batch.labels), has_aux=True)(batch.images)
        here = here[1]

        def apart(images: Images) -> Any:
            linear = here + _inner(gradient, images - batch.images)
            return jnp.sum(jnp.abs(cross_entropies(model(images), batch.labels) - linear))

        radius = jnp.asarray(self.set.radius, batch.images.dtype)
        size = jnp.asarray(self.relative_step_size, radius.dtype) * radius
        theta = jax.vmap(self.set.sample)(own, batch.images)
        for _ in range(self.steps):
            found = jax.grad(apart)(jax.vmap(self.set.apply)(batch.images, theta))
            theta = jax.vmap(self._step, in_axes=(0, 0, 0, None))(batch.images, theta, found, size)
        worst = jax.lax.stop_gradient(jax.vmap(self.set.apply)(batch.images, theta))
        return self._losses(keys, learner, batch, worst)

    def _step(self, x: Any, theta: Any, gradient: Any, size: Any) -> Any:
        return self.set.project(x, self.set.ascend(x, theta, self.set.pullback(x, theta, gradient), size))

    def _losses(self, keys: Keys, learner: Learner, batch: Any, worst: Images) -> tuple[PerExample, Aux]:
        clean, after = learner.train(batch.images, keys.dropout)
        moved, _ = learner.train(worst, keys.dropout)
        losses = cross_entropies(clean, batch.labels)

        def loss(images: Images) -> Any:
            return _sum(learner.train(images, keys.dropout)[0], batch.labels)[0]

        rise = _inner(jax.grad(loss)(batch.images), worst - batch.images)
        apart = jnp.abs(cross_entropies(moved, batch.labels) - losses - rise)
        total = losses + jnp.asarray(self.weight, clean.dtype) * apart
        total += jnp.asarray(self.slope, clean.dtype) * jnp.abs(rise)
        means = {"clean_acc": correct(clean, batch.labels), "adv_acc": correct(moved, batch.labels)}
        return total, Aux(after.state, {**means, "apart": apart, "rise": jnp.abs(rise)}, {})


def gradient_penalty(
    weight: Number, *, norm: Literal["l2", "l1"] = "l2", against: Literal["label", "uniform"] = "label"
) -> GradientPenalty:
    """Double backpropagation: min_θ E [ℓ(f_θ(x), y) + λ ‖∇_x ℓ'‖²], of each example's own loss.

    Args:
        weight: λ ≥ 0. Ross and Doshi-Velez penalise ½ of the squares of the batch mean's gradient with λ_0, which is
            λ = λ_0/(2 N) for N examples a batch; they tried 10² to 10⁵ with N = 256.
        norm: "l2" for the squared l2 norm, "l1" for ‖∇ℓ‖₁, with λ = ε the first-order form of l∞ adversarial training.
        against: ℓ' is the cross-entropy of the "label" or, "certainty insensitivity", of the "uniform" distribution.

    Returns:
        The objective. Metrics: `clean_acc`, `penalty`.

    Raises:
        ValueError: if `weight` is negative or a name is unknown.

    Example:
        >>> gradient_penalty(0.5).norm
        'l2'

    Reference:
        Drucker and LeCun, 1992; Ross and Doshi-Velez, 2018, arXiv:1711.09404.
    """
    norm = _checks.choice("norm", norm, ("l2", "l1"))
    against = _checks.choice("against", against, ("label", "uniform"))
    return GradientPenalty(_checks.number("weight", weight), norm, against)


def cure(*, weight: Number = 4.0, step: Number | None = None, variant: Literal["code", "paper"] = "code") -> CURE:
    """CURE: min_θ E [ℓ + λ ‖∇ℓ(x + h z) − ∇ℓ(x)‖], z = sign ∇ℓ/‖sign ∇ℓ‖₂, by the network in evaluation mode.

    Args:
        weight: λ ≥ 0.
        step: h ≥ 0; by default 3 in the code and 1.5 in the paper. The code's is in units of normalised inputs, of
            which one is about 0.2 here.
        variant: the norm itself ("code") or its square ("paper").

    Returns:
        The objective. Metrics: `clean_acc`, `curvature`. It is meant to fine-tune a network trained normally, while h
        grows to its value over the first epochs, as `TrainConfig.radius_warmup` lets it.

    Raises:
        ValueError: if a number is negative or `variant` unknown.

    Example:
        >>> cure(variant="paper").squared
        True

    Reference:
        Moosavi-Dezfooli et al., 2019, arXiv:1811.09716.
    """
    variant = _checks.choice("variant", variant, ("code", "paper"))
    step = {"code": 3.0, "paper": 1.5}[variant] if step is None else step
    return CURE(_checks.number("weight", weight), _checks.number("step", step), variant == "paper")


def llr(
    set: PerturbationSet,
    *,
    weight: Number = 4.0,
    slope: Number = 3.0,
    steps: int = 2,
    relative_step_size: Number = 1.0,
) -> LLR:
    """Local linearity: min_θ E [ℓ(x) + λ γ(δ*) + μ |δ*·∇ℓ(x)|], γ(δ) = |ℓ(x + δ) − ℓ(x) − δ·∇ℓ(x)|.

    δ* is what a few projected steps make of γ from a random start.

    Args:
        set: what the adversary may do.
        weight: λ ≥ 0.
        slope: μ ≥ 0.
        steps: ≥ 1 (static).
        relative_step_size: the step as a fraction of the radius.

    Returns:
        The objective. Metrics: `clean_acc`, `adv_acc` (at x + δ*), `apart` (γ), `rise` (|δ*·∇ℓ|).

    Raises:
        TypeError: if `set` is not a set.
        ValueError: if a number is negative or `steps` below 1.

    Example:
        >>> from jaxrobust import sets
        >>> llr(sets.Linf(8 / 255)).steps
        2

    Reference:
        Qin et al., 2019, arXiv:1907.02610.
    """
    check_set(set)
    numbers = {"weight": weight, "slope": slope, "relative_step_size": relative_step_size}
    numbers = {name: _checks.number(name, value) for name, value in numbers.items()}
    return LLR(set, steps=_checks.count("steps", steps), **numbers)


def _evaluated_gradient(learner: Learner, labels: Any) -> Any:
    """∇_x of every example's cross-entropy, differentiable in the parameters."""
    return jax.grad(lambda images: jnp.sum(cross_entropies(learner.evaluate(images), labels)))


def _sum(logits: Any, labels: Any) -> tuple[Any, PerExample]:
    losses = cross_entropies(logits, labels)
    return jnp.sum(losses), losses


def _inner(first: Any, second: Any) -> PerExample:
    return jnp.sum((first * second).reshape(len(first), -1), axis=1)


def _lengths(rows: Any) -> PerExample:
    return jnp.sqrt(jnp.sum(jnp.square(rows).reshape(len(rows), -1), axis=1))
