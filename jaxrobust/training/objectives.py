"""What training minimises: pytrees of numbers and attacks, called on a batch inside the compiled step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks, attacks
from jaxrobust.losses import cross_entropy
from jaxrobust.models.adapters import Trainable
from jaxrobust.types import Classifier, Images, Key, Misclassified, Number, pytree

__all__ = ["Adversarial", "Aux", "Learner", "Mixed", "Objective", "Standard", "adversarial", "mixed", "standard"]

CraftMode = Literal["eval", "batch"]
PerExample = Float[Array, " batch"]


@pytree("params", "state")
class Learner:
    """The network in the middle of its training: what an objective may ask of it.

    Args:
        trainable: the network's structure.
        params: its parameters; the step differentiates with respect to them.
        state: its batch statistics, as the last forward pass in training mode left them.
        axis_name: the axis over which devices are mapped, or None; each device then drops out units of its own.
    """

    trainable: Trainable
    params: Any
    state: Any
    axis_name: str | None = None

    def train(self, images: Images, key: Key) -> tuple[Any, Learner]:
        """Classify images in training mode: batch statistics, dropout, running averages updated.

        Args:
            images: (N, H, W, C) in [0, 1].
            key: seeds dropout.

        Returns:
            Logits (N, K), and the learner with its new state, from which a further pass goes on.
        """
        if self.axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))
        logits, state = self.trainable.train(self.params, self.state, images, key)
        return logits, Learner(self.trainable, self.params, state, self.axis_name)

    def classifier(self, mode: CraftMode, key: Key) -> Classifier:
        """The network as an attack sees it; no gradient flows back through it.

        Args:
            mode: "eval" for running averages and no dropout, "batch" for the statistics of whatever batch it is
                called on (the update of the running averages is discarded).
            key: seeds dropout in mode "batch": one network for all steps of the attack.

        Returns:
            The classifier.
        """
        params, state = jax.lax.stop_gradient((self.params, self.state))
        if mode == "eval":
            return self.trainable.classifier(params, state)
        return Classifier(_BatchStatistics(self.trainable), (params, state, key))


@dataclasses.dataclass(frozen=True)
class _BatchStatistics:
    """The forward pass in training mode, as a classifier's `apply`."""

    trainable: Trainable

    def __call__(self, numbers: Any, images: Any) -> Any:
        params, state, key = numbers
        return self.trainable.train(params, state, images, key)[0]


class Aux(NamedTuple):
    """What an objective reports beside its losses. The step reduces it over the unpadded examples of all devices.

    Args:
        state: the network's state after the objective's forward passes in training mode.
        means: metrics to average, name -> (N,).
        counts: examples to count, name -> (N,) bool.
    """

    state: Any
    means: Mapping[str, PerExample]
    counts: Mapping[str, Bool[Array, " batch"]]


@runtime_checkable
class Objective(Protocol):
    """A pytree that maps (key, learner, batch) to one loss an example; the step takes the mean and its gradient.

    The learner's parameters are those that the step differentiates, so whatever must be constant (the adversarial
    example) has to be stopped. An objective may run as many forward passes as it needs. It sees the examples of one
    device only and must not mix them: reductions belong to the step.
    """

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and what goes with them.

        Args:
            key: this step's key.
            learner: the network.
            batch: `images` (N, H, W, C) float32 in [0, 1] after augmentation, `labels` (N,), `index` (N,) the
                examples' places in the data set, from which their own keys come.

        Returns:
            The losses and an `Aux`.
        """
        ...


class _Keys(NamedTuple):
    """One key a purpose. Every objective splits alike, so that they differ in what they do and not in their noise."""

    attack: Key
    craft: Key
    dropout: Key

    @staticmethod
    def of(key: Key) -> _Keys:
        return _Keys(*jax.random.split(key, 3))


@pytree("label_smoothing")
class Standard:
    """The cross-entropy of clean images; make it with `standard`."""

    label_smoothing: Number = 0.0

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, learner = learner.train(batch.images, _Keys.of(key).dropout)
        losses = _smoothed(logits, batch.labels, self.label_smoothing)
        return losses, Aux(learner.state, {"clean_acc": _correct(logits, batch.labels)}, {})


@pytree("attack", "label_smoothing")
class Adversarial:
    """The cross-entropy of adversarial images; make it with `adversarial`."""

    attack: Any
    label_smoothing: Number = 0.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = True

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        keys = _Keys.of(key)
        images, aux = _craft(self, keys, learner, batch)
        logits, learner = learner.train(images, keys.dropout)
        losses = _smoothed(logits, batch.labels, self.label_smoothing)
        means = {"adv_acc": _correct(logits, batch.labels), **aux.means}
        return losses, Aux(learner.state, means, aux.counts)


@pytree("attack", "weight", "label_smoothing")
class Mixed:
    """A weighted sum of the clean and the adversarial cross-entropy; make it with `mixed`."""

    attack: Any
    weight: Number = 0.5
    label_smoothing: Number = 0.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = False

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        keys = _Keys.of(key)
        images, aux = _craft(self, keys, learner, batch)
        # with a key of its own, else both passes would drop the same units
        clean, learner = learner.train(batch.images, jax.random.fold_in(keys.dropout, 1))
        adversarial, learner = learner.train(images, keys.dropout)
        weight = jnp.asarray(self.weight, clean.dtype)
        losses = weight * _smoothed(clean, batch.labels, self.label_smoothing)
        losses += (1 - weight) * _smoothed(adversarial, batch.labels, self.label_smoothing)
        means = {"adv_acc": _correct(adversarial, batch.labels), "clean_acc": _correct(clean, batch.labels)}
        return losses, Aux(learner.state, {**aux.means, **means}, aux.counts)


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
) -> Adversarial:
    """Adversarial training: min_θ E max_{x' ∈ S(x)} ℓ(f_θ(x'), y), at the attack's last iterate held constant.

    With PGD it is Madry et al.'s method, with RS-FGSM Wong et al.'s fast one. A perturbation's NaNs are replaced by
    zero and counted, an example each, in the metric `nan_delta`.

    Args:
        attack: the inner attack, as `jaxrobust.attacks` makes them. Its radius and step size are traced numbers.
        label_smoothing: a in [0, 1]; the target of the outer loss is (1−a)·e_y + a/K.
        craft_bn: BatchNorm while crafting: "eval" (running averages, no dropout) or "batch" (the batch's own
            statistics and dropout; the averages do not move).
        clean_metric: whether one more forward pass measures `clean_acc`, the accuracy on clean images of the
            network that the attack saw.

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
    return Adversarial(attack, smoothing, _checks.choice("craft_bn", craft_bn, ("eval", "batch")), clean_metric)


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


def inner_attacks(objective: Any) -> list[attacks.Attack]:
    """The attacks that an objective holds, in order; none for one that is no pytree."""
    parts = jax.tree.leaves(objective, is_leaf=lambda part: isinstance(part, attacks.Attack))
    return [part for part in parts if isinstance(part, attacks.Attack)]


def _craft(objective: Any, keys: _Keys, learner: Learner, batch: Any) -> tuple[Images, Aux]:
    """Adversarial images, held constant, and what is to be said about them."""
    model = learner.classifier(objective.craft_bn, keys.craft)
    own = attacks.example_keys(keys.attack, batch.index)
    found = attacks.last_iterate(objective.attack, model, batch.images, Misclassified(batch.labels), own)
    return _sound(objective, model, learner, batch, found)


def _sound(objective: Any, model: Classifier, learner: Learner, batch: Any, found: Images) -> tuple[Images, Aux]:
    """Adversarial images without their NaNs, held constant, with the metrics of all objectives that craft."""
    broken = jnp.isnan(found)
    images = jax.lax.stop_gradient(jnp.where(broken, batch.images, found))
    delta = (images - batch.images).reshape(images.shape[0], -1)
    means = {"delta_linf": jnp.max(jnp.abs(delta), axis=1), "delta_l2": jnp.linalg.norm(delta, axis=1)}
    if objective.clean_metric:
        means["clean_acc"] = _correct(model(batch.images), batch.labels)
    return images, Aux(learner.state, means, {"nan_delta": broken.any(axis=(1, 2, 3))})


def _smoothed(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: Number) -> PerExample:
    """Cross-entropy against (1−a)·e_y + a/K, written as ℓ(z, y) + a·(z_y − mean z)."""
    smoothing = jnp.asarray(smoothing, logits.dtype)
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.vmap(cross_entropy)(logits, labels) + smoothing * (true - logits.mean(axis=1))


def _correct(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> PerExample:
    correct = (jnp.argmax(logits, axis=1) == labels) & jnp.isfinite(logits).all(axis=1)
    return correct.astype(jnp.float32)
