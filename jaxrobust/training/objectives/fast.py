"""Adversarial training at the price of a step or two: free training, and FGSM whose gradients are kept aligned."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import _checks, attacks
from jaxrobust.sets import Linf
from jaxrobust.training.objectives.core import (
    Aux,
    Crafting,
    CraftMode,
    Keys,
    Learner,
    PerExample,
    correct,
    cross_entropies,
    smoothed,
    total,
)
from jaxrobust.types import Images, Key, Number, pytree

__all__ = ["Free", "GradAlign", "free", "grad_align", "turns"]


@pytree("radius", "label_smoothing")
class Free:
    """Cross-entropy at a perturbation carried from step to step; make it with `free`."""

    radius: Number
    replays: int = 8
    label_smoothing: Number = 0.0

    memory_gradient = True  # one backward pass gives both gradients

    @property
    def set(self) -> Linf:
        """The ball of δ, for validation."""
        return Linf(self.radius)

    def init(self, learner: Learner, batch: Any) -> Any:
        """No perturbation, of every place in the batch; see `Objective`."""
        return jnp.zeros(batch.images.shape, jnp.float32)

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        delta = learner.memory
        if learner.shard is not None:
            delta = jax.lax.dynamic_slice_in_dim(delta, learner.shard * len(batch.labels), len(batch.labels))
        broken = jnp.isnan(delta)
        delta = jnp.where(broken, 0, delta)
        images = jnp.clip(batch.images + delta, 0, 1)
        logits, learner = learner.train(images, Keys.of(key).dropout)
        losses = smoothed(logits, batch.labels, self.label_smoothing)
        moved = jax.lax.stop_gradient(images - batch.images).reshape(len(images), -1)
        means = {
            "adv_acc": correct(logits, batch.labels),
            "delta_linf": jnp.max(jnp.abs(moved), axis=1),
            "delta_l2": jnp.linalg.norm(moved, axis=1),
        }
        return losses, Aux(learner.state, means, {"nan_delta": broken.any(axis=(1, 2, 3))})

    def warmed_up(self, share: Any) -> Free:
        """At this share of the radius; see `Objective`."""
        return dataclasses.replace(self, radius=share * self.radius)

    def remember(self, memory: Any, sums: Any, gradient: Any) -> Any:
        """δ ← clip(δ + ε sign ∇_δ ℓ, ±ε), NaN where the gradient is, for `nan_delta`; see `Objective`."""
        radius = jnp.asarray(self.radius, memory.dtype)
        return jnp.clip(jnp.nan_to_num(memory) + radius * jnp.sign(gradient), -radius, radius)


@pytree("attack", "weight")
class GradAlign(Crafting):
    """Adversarial cross-entropy and a penalty on gradients that turn nearby; make it with `grad_align`."""

    attack: Any
    weight: Number
    craft_bn: CraftMode = "eval"
    clean_metric: bool = False

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Images) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Crafting`."""
        own = attacks.example_keys(jax.random.fold_in(keys.attack, 1), batch.index)
        radius = jnp.asarray(self.attack.set.radius, jnp.float32)
        noise = jax.vmap(lambda k: jax.random.uniform(k, batch.images.shape[1:], minval=-radius, maxval=radius))(own)

        def gradient(images: Images) -> Any:
            def loss(images: Images) -> Any:
                return jnp.sum(cross_entropies(learner.train(images, keys.dropout)[0], batch.labels))

            return jax.grad(loss)(images).reshape(len(images), -1)

        turned, known = turns(jax.lax.stop_gradient(gradient(batch.images)), gradient(batch.images + noise))
        logits, after = learner.train(crafted, keys.dropout)
        # the mean is over examples that have both gradients
        share = total(jnp.ones_like(turned), batch, learner.axis_name)
        share = share / jnp.maximum(total(known, batch, learner.axis_name), 1)
        losses = cross_entropies(logits, batch.labels) + jnp.asarray(self.weight, logits.dtype) * share * turned
        means = {"adv_acc": correct(logits, batch.labels), "turned": turned}
        return losses, Aux(after.state, means, {})


def turns(first: Any, second: Any) -> tuple[PerExample, PerExample]:
    """1 − cos of each pair of rows and 1, or 0 and 0 where one of them is 0."""
    squares = [jnp.sum(jnp.square(rows), axis=1) for rows in (first, second)]
    known = (squares[0] > 0) & (squares[1] > 0)
    lengths = [jnp.sqrt(jnp.where(known, square, 1)) for square in squares]
    cosine = jnp.sum(first * second, axis=1) / (lengths[0] * lengths[1])
    return jnp.where(known, 1 - cosine, 0), known.astype(first.dtype)


def free(radius: Number, *, replays: int = 8, label_smoothing: Number = 0.0) -> Free:
    """Free adversarial training: one backward pass gives the gradients of the weights and of the perturbation.

    Every batch is trained on `replays` times; at each, θ takes its step at x + δ and δ ← clip(δ + ε sign ∇_δ ℓ, ±ε).
    δ belongs to a place in the batch, and goes on to the next batch. It is in l∞, and clipped to the box when applied.
    `fit` replays by itself, so that an epoch has `replays` times as many steps: divide the epochs by it. A custom loop
    calls `train_step` so often.

    Args:
        radius: ε ≥ 0 in l∞, which is also the step.
        replays: m ≥ 1 (static): 8 for CIFAR-10, 4 for ImageNet.
        label_smoothing: as in `adversarial`.

    Returns:
        The objective. Metrics: `adv_acc`, `delta_linf`, `delta_l2`, `nan_delta` (δ set back to 0 where it was NaN).

    Raises:
        ValueError: if `radius` is negative, `replays` below 1 or `label_smoothing` outside of [0, 1].

    Example:
        >>> free(8 / 255).replays
        8

    Reference:
        Shafahi et al., 2019, arXiv:1904.12843.
    """
    smoothing = _checks.number("label_smoothing", label_smoothing, high=1.0)
    return Free(_checks.number("radius", radius), _checks.count("replays", replays), smoothing)


def grad_align(radius: Number, *, weight: Number | None = None, craft_bn: CraftMode = "eval") -> GradAlign:
    """FGSM training that does not overfit: E [ℓ(f_θ(x'), y) + λ (1 − cos(∇_x ℓ(x), ∇_x ℓ(x + η)))], η ~ U[−ε, ε].

    Only the second gradient is differentiated. Examples without a gradient are left out of the mean.

    Args:
        radius: ε ≥ 0 in l∞ of FGSM from x.
        weight: λ ≥ 0; by default 0.02 · 10^(255 ε/8), the authors' rule, which is 0.2 at 8/255.
        craft_bn: as in `adversarial`.

    Returns:
        The objective, with the metrics of `adversarial` but `clean_acc`, and `turned`, 1 − cos.

    Raises:
        ValueError: if a number is negative or `craft_bn` is neither mode.

    Example:
        >>> round(float(grad_align(8 / 255).weight), 6)
        0.2

    Reference:
        Andriushchenko and Flammarion, 2020, arXiv:2007.02617.
    """
    radius = _checks.number("radius", radius)
    weight = 0.02 * 10 ** (255 * radius / 8) if weight is None else _checks.number("weight", weight)
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return GradAlign(attacks.fgsm(Linf(radius)), weight, craft_bn)
