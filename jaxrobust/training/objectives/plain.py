"""Clean images, adversarial ones, or both, with a penalty on their logits where asked for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import _checks, attacks
from jaxrobust.training.objectives.core import (
    Aux,
    Crafting,
    CraftMode,
    Keys,
    Learner,
    PerExample,
    both_passes,
    correct,
    smoothed,
)
from jaxrobust.types import Images, Key, Misclassified, Number, Targeted, pytree

__all__ = [
    "Adversarial",
    "Mixed",
    "RandomStrength",
    "Squeezed",
    "Standard",
    "adversarial",
    "adversarial_logit_pairing",
    "logit_squeezing",
    "mixed",
    "random_strength",
    "standard",
]


@pytree("label_smoothing")
class Standard:
    """The cross-entropy of clean images; make it with `standard`."""

    label_smoothing: Number = 0.0

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, learner = learner.train(batch.images, Keys.of(key).dropout)
        losses = smoothed(logits, batch.labels, self.label_smoothing)
        return losses, Aux(learner.state, {"clean_acc": correct(logits, batch.labels)}, {})


@pytree("weight")
class Squeezed:
    """Cross-entropy and a penalty on the size of logits; make it with `logit_squeezing`."""

    weight: Number = 0.5

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, learner = learner.train(batch.images, Keys.of(key).dropout)
        penalty = jnp.sum(jnp.square(logits), axis=1) / 2
        losses = smoothed(logits, batch.labels, 0.0) + jnp.asarray(self.weight, logits.dtype) * penalty
        return losses, Aux(learner.state, {"clean_acc": correct(logits, batch.labels), "penalty": penalty}, {})


@pytree("attack", "label_smoothing")
class Adversarial(Crafting):
    """The cross-entropy of adversarial images; make it with `adversarial`."""

    attack: Any
    label_smoothing: Number = 0.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = True
    only_attack_correct: bool = False

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Images) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Crafting`."""
        logits, learner = learner.train(crafted, keys.dropout)
        losses = smoothed(logits, batch.labels, self.label_smoothing)
        return losses, Aux(learner.state, {"adv_acc": correct(logits, batch.labels)}, {})


@pytree("attack", "weight", "label_smoothing", "pairing")
class Mixed(Crafting):
    """A weighted sum of the clean and the adversarial cross-entropy; make it with `mixed`."""

    attack: Any
    weight: Number = 0.5
    label_smoothing: Number = 0.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = False
    pairing: Number | None = None

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Images) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Crafting`."""
        clean, adversarial, learner, means = both_passes(keys, learner, batch, crafted)
        weight = jnp.asarray(self.weight, clean.dtype)
        losses = weight * smoothed(clean, batch.labels, self.label_smoothing)
        losses += (1 - weight) * smoothed(adversarial, batch.labels, self.label_smoothing)
        if self.pairing is not None:
            means["pairing"] = jnp.sum(jnp.square(clean - adversarial), axis=1)
            losses += jnp.asarray(self.pairing, clean.dtype) * means["pairing"]
        return losses, Aux(learner.state, means, {})


@pytree("attack", "label_smoothing")
class RandomStrength(Adversarial):
    """Adversarial images of a strength of their own, towards wrong classes; make it with `random_strength`."""

    targeted: bool = True

    def inner(self, keys: Key, model: Any, batch: Any) -> tuple[Any, Any]:
        """The attack with one radius an image, and the criterion, see `Crafting`."""

        def drawn(key: Key, label: Any) -> tuple[Any, Any]:
            strength, other = jax.random.split(jax.random.fold_in(key, 1))
            return jax.random.uniform(strength), jax.random.randint(other, (), 1, classes)

        classes = jax.eval_shape(model, batch.images).shape[-1]
        shares, steps = jax.vmap(drawn)(keys, batch.labels)
        attack = self.attack.with_radius(shares * jnp.asarray(self.attack.set.radius, shares.dtype))
        targets = (batch.labels + steps.astype(batch.labels.dtype)) % classes
        return attack, Targeted(targets, batch.labels) if self.targeted else Misclassified(batch.labels)


def standard(*, label_smoothing: Number = 0.0) -> Standard:
    """Standard training: min_θ E ℓ(f_θ(x), y).

    Args:
        label_smoothing: a in [0, 1]; the target is (1−a)·e_y + a/K.

    Returns:
        The objective. Metric: `clean_acc`, of the forward pass in training mode.

    Raises:
        ValueError: if `label_smoothing` is outside [0, 1].

    Example:
        >>> float(standard(label_smoothing=0.1).label_smoothing)
        0.1
    """
    return Standard(_checks.number("label_smoothing", label_smoothing, high=1.0))


def adversarial(
    attack: Any,
    *,
    label_smoothing: Number = 0.0,
    craft_bn: CraftMode = "eval",
    clean_metric: bool = True,
    only_attack_correct: bool = False,
) -> Adversarial:
    """Adversarial training: min_θ E max_{x' ∈ S(x)} ℓ(f_θ(x'), y), at the attack's last iterate held constant.

    With PGD it is Madry et al.'s method, with RS-FGSM Wong et al.'s fast one, with `attacks.msd` Maini et al.'s for
    unions of balls, with `attacks.affine` Tramèr and Boneh's. At radius 0, of a set in which the attack stays, it is
    `standard` bit for bit. A perturbation's NaNs are replaced by zero and counted, an example each, in `nan_delta`.

    Args:
        attack: the inner attack, as `jaxrobust.attacks` makes them. Its radius and step size are traced numbers.
        label_smoothing: a in [0, 1]; the target of the outer loss is (1−a)·e_y + a/K.
        craft_bn: BatchNorm while crafting: "eval" (running averages, no dropout) or "batch" (the batch's own
            statistics and dropout; the averages do not move).
        clean_metric: whether one more forward pass measures `clean_acc`, the accuracy on clean images of the
            network that the attack saw.
        only_attack_correct: whether images that are misclassified as they are stay as they are, as in perceptual
            adversarial training.

    Returns:
        The objective. Metrics: `adv_acc`, `delta_linf`, `delta_l2` (means over examples), `nan_delta`, `clean_acc`.

    Raises:
        TypeError: if `attack` is not an attack.
        ValueError: if `label_smoothing` is outside [0, 1] or `craft_bn` is neither mode.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> adversarial(attacks.pgd(sets.Linf(8 / 255), steps=10)).craft_bn
        'eval'

    Reference:
        Madry et al., 2018, arXiv:1706.06083; Wong, Rice and Kolter, 2020, arXiv:2001.03994.
    """
    attacks.engine.check_attack(attack)
    smoothing = _checks.number("label_smoothing", label_smoothing, high=1.0)
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return Adversarial(attack, smoothing, craft_bn, clean_metric, only_attack_correct)


def mixed(
    attack: Any,
    *,
    weight: Number = 0.5,
    label_smoothing: Number = 0.0,
    craft_bn: CraftMode = "eval",
) -> Mixed:
    """Clean and adversarial images together: min_θ E [a·ℓ(f_θ(x), y) + (1−a)·ℓ(f_θ(x'), y)].

    Args:
        attack: the inner attack; its last iterate is x', held constant.
        weight: a in [0, 1], the share of the clean loss.
        label_smoothing: as in `adversarial`.
        craft_bn: as in `adversarial`.

    Returns:
        The objective, with the metrics of `adversarial`; `clean_acc` is of the clean pass in training mode.

    Raises:
        TypeError: if `attack` is not an attack.
        ValueError: if `weight` or `label_smoothing` is outside [0, 1] or `craft_bn` is neither mode.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> float(mixed(attacks.fgsm(sets.Linf(0.1))).weight)
        0.5

    Reference:
        Goodfellow, Shlens and Szegedy, 2015, arXiv:1412.6572.
    """
    attacks.engine.check_attack(attack)
    weight = _checks.number("weight", weight, high=1.0)
    smoothing = _checks.number("label_smoothing", label_smoothing, high=1.0)
    return Mixed(attack, weight, smoothing, _checks.choice("craft_bn", craft_bn, ("eval", "batch")))


def adversarial_logit_pairing(attack: Any, *, weight: Number = 0.5, craft_bn: CraftMode = "eval") -> Mixed:
    """Adversarial logit pairing: min_θ E [ℓ(f_θ(x'), y) + λ ‖z(x) − z(x')‖²], known to be broken: a negative control.

    Args:
        attack: as in `mixed`.
        weight: λ ≥ 0.
        craft_bn: as in `adversarial`.

    Returns:
        The objective, with the metrics of `mixed` and `pairing`, the squared distance of the logits.

    Raises:
        TypeError: if `attack` is not an attack.
        ValueError: if `weight` is negative or `craft_bn` is neither mode.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> float(adversarial_logit_pairing(attacks.fgsm(sets.Linf(0.1))).pairing)
        0.5

    Reference:
        Kannan, Kurakin and Goodfellow, 2018, arXiv:1803.06373; broken by Engstrom, Ilyas and Athalye, 2018,
        arXiv:1807.10272.
    """
    attacks.engine.check_attack(attack)
    weight = _checks.number("weight", weight)
    return Mixed(attack, 0.0, 0.0, _checks.choice("craft_bn", craft_bn, ("eval", "batch")), pairing=weight)


def logit_squeezing(*, weight: Number = 0.5) -> Squeezed:
    """Logit squeezing: min_θ E [ℓ(f_θ(x), y) + λ ‖z(x)‖²/2], whose gradients mislead attacks: a negative control.

    Args:
        weight: λ ≥ 0.

    Returns:
        The objective. Metrics: `clean_acc`, `penalty`.

    Raises:
        ValueError: if `weight` is negative.

    Example:
        >>> float(logit_squeezing(weight=0.1).weight)
        0.1

    Reference:
        Kannan, Kurakin and Goodfellow, 2018, arXiv:1803.06373.
    """
    return Squeezed(_checks.number("weight", weight))


def random_strength(
    attack: Any, *, targeted: bool = True, craft_bn: CraftMode = "eval", clean_metric: bool = True
) -> RandomStrength:
    """Adversarial training at every strength: each image at a radius u ε, u ~ U[0, 1], towards a random wrong class.

    Args:
        attack: the inner attack at ε. A step size relative to the radius goes with u; an absolute one does not.
        targeted: whether it aims at a uniformly drawn wrong class, or away from the label.
        craft_bn: as in `adversarial`.
        clean_metric: as in `adversarial`.

    Returns:
        The objective, with the metrics of `adversarial`.

    Raises:
        TypeError: if `attack` is not an attack.
        ValueError: if `craft_bn` is neither mode.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> random_strength(attacks.pgd(sets.Linf(8 / 255), steps=10)).targeted
        True

    Reference:
        Kang et al., 2019, arXiv:1908.08016, by whose table UAR is scaled.
    """
    attacks.engine.check_attack(attack)
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return RandomStrength(attack, 0.0, craft_bn, clean_metric, targeted=targeted)
