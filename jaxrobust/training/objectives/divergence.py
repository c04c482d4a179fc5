"""TRADES and MART: a clean loss, and how far the prediction moves under attack."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import _checks, attacks
from jaxrobust.attacks.gradient.pgd import PGD
from jaxrobust.losses import kl_divergence
from jaxrobust.training.objectives.core import (
    Aux,
    Crafting,
    CraftMode,
    Keys,
    Learner,
    PerExample,
    both_passes,
    cross_entropies,
    smoothed,
)
from jaxrobust.types import Classifier, Images, Key, Logits, Misclassified, Number, pytree

__all__ = ["MART", "TRADES", "mart", "trades"]

START = 1e-3  # standard deviation of the start, without which TRADES would never leave x


@pytree("label", "reference")
class Apart(Misclassified):
    """Away from the label; what is ascended compares with the clean image's logits."""

    reference: Any = None


def divergence(logits: Logits, goal: Any) -> Any:
    """KL(p(x) ‖ p(x')), the loss that TRADES ascends, of a goal `Apart`."""
    return kl_divergence(logits, goal.reference)


@pytree("attack", "beta", "label_smoothing")
class TRADES(Crafting):
    """Clean cross-entropy and the divergence under attack; make it with `trades`."""

    attack: Any
    beta: Number = 6.0
    label_smoothing: Number = 0.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = False

    def inner(self, keys: Key, model: Classifier, batch: Any) -> tuple[Any, Any]:
        """The attack on the divergence from what the model says of the clean images."""
        return self.attack, Apart(batch.labels, reference=jax.lax.stop_gradient(model(batch.images)))

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Images) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Crafting`."""
        clean, adversarial, learner, means = both_passes(keys, learner, batch, crafted)
        apart = jax.vmap(kl_divergence)(adversarial, clean)
        losses = smoothed(clean, batch.labels, self.label_smoothing) + jnp.asarray(self.beta, clean.dtype) * apart
        return losses, Aux(learner.state, {**means, "kl": apart}, {})


@pytree("attack", "weight")
class MART(Crafting):
    """Boosted cross-entropy under attack, and the divergence weighted by how wrong x is; make it with `mart`."""

    attack: Any
    weight: Number = 5.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = False

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Images) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Crafting`."""
        clean, adversarial, learner, means = both_passes(keys, learner, batch, crafted)
        true = jax.nn.one_hot(batch.labels, clean.shape[1], dtype=clean.dtype)
        p, q = jax.nn.softmax(clean), jax.nn.softmax(adversarial)
        rival = jnp.max(jnp.where(true > 0, 0, q), axis=1)
        boosted = cross_entropies(adversarial, batch.labels) - jnp.log(1.0001 - rival + 1e-12)
        apart = jnp.sum(p * (jax.nn.log_softmax(clean) - jnp.log(q + 1e-12)), axis=1)
        doubt = 1.0000001 - jnp.sum(true * p, axis=1)
        losses = boosted + jnp.asarray(self.weight, clean.dtype) * apart * doubt
        return losses, Aux(learner.state, {**means, "kl": apart}, {})


def trades(attack: Any, *, beta: Number = 6.0, label_smoothing: Number = 0.0, craft_bn: CraftMode = "eval") -> TRADES:
    """TRADES: min_θ E [ℓ(f_θ(x), y) + β max_{x' ∈ S(x)} KL(p_θ(x) ‖ p_θ(x'))], gradients through both predictions.

    The attack ascends the same divergence from x + N(0, 0.001²); at x itself its gradient is 0.

    Args:
        attack: a gradient ascent; published for CIFAR-10: `pgd(Linf(0.031), steps=10, step_size=0.007)`, for MNIST
            `pgd(Linf(0.3), steps=40, step_size=0.01)` with β = 1. Its loss and start are those of TRADES.
        beta: β ≥ 0; 1 to 10 are useful.
        label_smoothing: as in `adversarial`, of the clean loss.
        craft_bn: as in `adversarial`.

    Returns:
        The objective, with the metrics of `mixed` and `kl`, the divergence.

    Raises:
        TypeError: if `attack` is no gradient ascent (`attacks.pgd` and its kind).
        ValueError: if `beta` is negative, or another argument is as `adversarial` refuses it.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> trades(attacks.pgd(sets.Linf(0.031), steps=10, step_size=0.007)).attack.start
        'gaussian'

    Reference:
        Zhang et al., 2019, arXiv:1901.08573. Their code passes the clean images through the network twice in training
        mode, which moves BatchNorm's averages once more; here once.
    """
    attack = dataclasses.replace(_ascent(attack), loss=divergence)
    smoothing = _checks.number("label_smoothing", label_smoothing, high=1.0)
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return TRADES(attack, _checks.number("beta", beta), smoothing, craft_bn)


def mart(attack: Any, *, weight: Number = 5.0, craft_bn: CraftMode = "eval") -> MART:
    """MART: min_θ E [BCE(x') + λ KL(p(x) ‖ p(x')) (1 − p_y(x))], BCE = −log p_y(x') − log(1 − max_{k≠y} p_k(x')).

    The attack ascends cross-entropy from x + N(0, 0.001²). Gradients flow through the weight 1 − p_y(x) too.

    Args:
        attack: a gradient ascent; published: `pgd(Linf(0.031), steps=10, step_size=0.007)`. Its start is that of MART.
        weight: λ ≥ 0: 5 for ResNet-18, 6 for WRN-34-10.
        craft_bn: as in `adversarial`.

    Returns:
        The objective, with the metrics of `trades`.

    Raises:
        TypeError: if `attack` is no gradient ascent.
        ValueError: if `weight` is negative or `craft_bn` is neither mode.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> float(mart(attacks.pgd(sets.Linf(0.031), steps=10, step_size=0.007)).weight)
        5.0

    Reference:
        Wang et al., 2020, ICLR. −log p_y(x') is the library's cross-entropy, whose gradient survives saturation.
    """
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return MART(_ascent(attack), _checks.number("weight", weight), craft_bn)


def _ascent(attack: Any) -> PGD:
    """The attack with the start of both methods."""
    attacks.engine.check_attack(attack)
    if not isinstance(attack, PGD):
        raise TypeError(f"attack must be a gradient ascent such as attacks.pgd(sets.Linf(8 / 255)); got {attack}")
    return dataclasses.replace(attack, start="gaussian", start_size=START, aim="goal")
