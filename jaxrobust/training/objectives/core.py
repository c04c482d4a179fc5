"""What an objective is: a pytree of numbers and attacks, called on a batch inside the compiled step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import attacks
from jaxrobust.losses import cross_entropy
from jaxrobust.models.trainable import Trainable
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Classifier, Images, Key, Misclassified, Number, pytree

__all__ = [
    "Aux",
    "CraftMode",
    "Crafting",
    "Keys",
    "Learner",
    "Objective",
    "PerExample",
    "both_passes",
    "correct",
    "cross_entropies",
    "inner_attacks",
    "inner_sets",
    "smoothed",
    "sound",
    "total",
    "warmed_up",
]

CraftMode = Literal["eval", "batch"]
PerExample = Float[Array, " batch"]


@pytree("params", "state", "memory", "step", "part")
class Learner:
    """The network in the middle of its training: what an objective may ask of it.

    Args:
        trainable: the network's structure.
        params: its parameters; the step differentiates with respect to them.
        state: its batch statistics, as the last forward pass in training mode left them.
        axis_name: the axis over which devices are mapped, or None.
        memory: what the objective remembers of the steps before, see `Objective`; None if nothing.
        step: how many updates were made, int32.
        part: which part of its device's rows the batch is, int32, where the step takes them in `parts`.
        parts: how many.
    """

    trainable: Trainable
    params: Any
    state: Any
    axis_name: str | None = None
    memory: Any = None
    step: Any = 0
    part: Any = None
    parts: int = 1

    @property
    def shard(self) -> Any:
        """Which of the equal shards of the whole batch the rows at hand are, int32; None if they are all."""
        if self.axis_name is None:
            return self.part
        device = jax.lax.axis_index(self.axis_name)
        return device if self.part is None else device * self.parts + self.part

    def train(self, images: Images, key: Key) -> tuple[Any, Learner]:
        """Classify images in training mode: batch statistics, dropout (each shard its own), running averages updated.

        Args:
            images: (N, H, W, C) in [0, 1].
            key: seeds dropout.

        Returns:
            Logits (N, K), and the learner with its new state, from which a further pass goes on.
        """
        if self.shard is not None:
            key = jax.random.fold_in(key, self.shard)
        logits, state = self.trainable.train(self.params, self.state, images, key, self.axis_name)
        return logits, dataclasses.replace(self, state=state)

    def evaluate(self, images: Images) -> Any:
        """Classify images in evaluation mode; unlike through `classifier`, gradients flow back to the parameters.

        Args:
            images: (N, H, W, C) in [0, 1].

        Returns:
            Logits (N, K).
        """
        return self.trainable.classifier(self.params, jax.lax.stop_gradient(self.state))(images)

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
        return Classifier(_BatchStatistics(self.trainable, self.axis_name), (params, state, key))


@dataclasses.dataclass(frozen=True)
class _BatchStatistics:
    """The forward pass in training mode, as a classifier's `apply`."""

    trainable: Trainable
    axis_name: str | None

    def __call__(self, numbers: Any, images: Any) -> Any:
        params, state, key = numbers
        return self.trainable.train(params, state, images, key, self.axis_name)[0]


class Aux(NamedTuple):
    """What an objective reports beside its losses. The step reduces it over the unpadded examples of all devices.

    Args:
        state: the network's state after the objective's forward passes in training mode.
        means: metrics to average, name -> (N,).
        counts: examples to count, name -> (N,) bool.
        sums: what an objective with a memory wants added up for it, name -> (N, ...); no metrics.
    """

    state: Any
    means: Mapping[str, PerExample]
    counts: Mapping[str, Bool[Array, " batch"]]
    sums: Mapping[str, Any] = {}


@runtime_checkable
class Objective(Protocol):
    """A pytree that maps (key, learner, batch) to one loss an example; the step takes the mean and its gradient.

    The learner's parameters are those that the step differentiates, so whatever must be constant (the adversarial
    example) has to be stopped. An objective may run as many forward passes as it needs. It sees the examples of one
    device only and must not mix them but by `total`: reductions belong to the step.

    An objective that needs more than one batch has two methods more. `init(learner, batch)` gives its first memory,
    any pytree of arrays, which the step carries in `TrainState.memory` and gives it as `learner.memory`; and
    `remember(memory, sums, gradient)` gives the next one, from `Aux.sums` added up over the unpadded examples of all
    devices, so that memory is equal on all of them. `gradient` is that of the loss with respect to the memory if the
    objective has `memory_gradient = True`, else None.

    One whose radius is not an attack's may have `warmed_up(share)`, which gives the objective at that share of it, for
    `TrainConfig.radius_warmup`, and a `set`, for the default attack of validation. One that speaks of examples by their
    place has `examples`, of how many it speaks; `fit` and `fit_many` refuse it for another number of examples.
    """

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and what goes with them.

        Args:
            key: this step's key.
            learner: the network.
            batch: `images` (N, H, W, C) float32 in [0, 1] after augmentation, `labels` (N,), `index` (N,) the
                examples' places in the data that `fit` was given, from which their own keys come.

        Returns:
            The losses and an `Aux`.
        """
        ...


class Keys(NamedTuple):
    """One key a purpose. Every objective splits alike, so that they differ in what they do and not in their noise."""

    attack: Key
    craft: Key
    dropout: Key

    @staticmethod
    def of(key: Key) -> Keys:
        """The keys of a step."""
        return Keys(*jax.random.split(key, 3))


class Crafting:
    """An objective in two halves: what is crafted and then held constant, and the loss of the parameters on it.

    `awp` moves the parameters between the two. Those that craft adversarial images have fields `attack`, `craft_bn` and
    `clean_metric`.
    """

    attack: Any
    craft_bn: CraftMode
    clean_metric: bool
    only_attack_correct: bool = False

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        keys = Keys.of(key)
        crafted, found = self.craft(keys, learner, batch)
        losses, aux = self.outer(keys, learner, batch, crafted)
        return losses, merged(found, aux)

    def craft(self, keys: Keys, learner: Learner, batch: Any) -> tuple[Any, Aux]:
        """What the outer loss is about, constants all, and what is to be said of it; by default adversarial images.

        Args:
            keys: the step's keys.
            learner: the network.
            batch: see `Objective`.

        Returns:
            A pytree, and an `Aux` whose state is not used.
        """
        model = learner.classifier(self.craft_bn, keys.craft)
        own = attacks.example_keys(keys.attack, batch.index)
        attack, goal = self.inner(own, model, batch)
        found = attacks.last_iterate(attack, model, batch.images, goal, own)
        return sound(self, model, learner, batch, found)

    def inner(self, keys: Key, model: Classifier, batch: Any) -> tuple[Any, Any]:
        """The attack and the criterion of this batch; by default its own, away from the labels.

        Args:
            keys: (N,), the examples' own.
            model: the network as the attack sees it.
            batch: see `Objective`.

        Returns:
            The attack and the criterion.
        """
        return self.attack, Misclassified(batch.labels)

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Any) -> tuple[PerExample, Aux]:
        """The loss of the parameters.

        Args:
            keys: the step's keys.
            learner: the network.
            batch: see `Objective`.
            crafted: what `craft` gave.

        Returns:
            Losses (N,) and an `Aux`.
        """
        raise NotImplementedError


def both_passes(keys: Keys, learner: Learner, batch: Any, crafted: Images) -> tuple[Any, Any, Learner, dict[str, Any]]:
    """The clean and then the adversarial images in training mode.

    Args:
        keys: the step's keys.
        learner: the network.
        batch: see `Objective`.
        crafted: the adversarial images (N, H, W, C).

    Returns:
        Logits (N, K) of the clean and of the adversarial images, the learner after both, and `adv_acc`, `clean_acc`.
    """
    # with a key of its own, else both passes would drop the same units
    clean, learner = learner.train(batch.images, jax.random.fold_in(keys.dropout, 1))
    adversarial, learner = learner.train(crafted, keys.dropout)
    means = {"adv_acc": correct(adversarial, batch.labels), "clean_acc": correct(clean, batch.labels)}
    return clean, adversarial, learner, means


def merged(first: Aux, second: Aux) -> Aux:
    """What two parts of an objective report together, with the second's state."""
    return Aux(
        second.state, {**first.means, **second.means}, {**first.counts, **second.counts}, {**first.sums, **second.sums}
    )


def total(values: Any, batch: Any, axis_name: str | None) -> Any:
    """The sum over the unpadded examples of all devices, a constant.

    Args:
        values: (N, ...).
        batch: whose `mask` (N,) says which are unpadded, or is None.
        axis_name: the learner's.

    Returns:
        (...).
    """
    values = jax.lax.stop_gradient(values)
    if batch.mask is not None:
        mask = batch.mask.astype(bool).reshape(-1, *(1,) * (values.ndim - 1))
        values = jnp.where(mask, values, 0)
    found = values.sum(0)
    return found if axis_name is None else jax.lax.psum(found, axis_name)


def inner_attacks(objective: Any) -> list[attacks.Attack]:
    """The attacks that an objective holds, in order; none for one that is no pytree."""
    parts = jax.tree.leaves(objective, is_leaf=lambda part: isinstance(part, attacks.Attack))
    return [part for part in parts if isinstance(part, attacks.Attack)]


def inner_sets(objective: Any) -> list[Any]:
    """The sets of the attacks that an objective holds, or, without any, its own."""
    found = [attack.set for attack in inner_attacks(objective)]
    own = getattr(objective, "set", None)
    return found or ([own] if isinstance(own, PerturbationSet) else [])


def warmed_up(objective: Any, share: Any) -> Any:
    """The objective with this share of its radii."""
    own = getattr(objective, "warmed_up", None)
    if own is not None:
        return own(share)

    def smaller(part: Any) -> Any:
        return part.with_radius(share * part.set.radius) if isinstance(part, attacks.Attack) else part

    return jax.tree.map(smaller, objective, is_leaf=lambda part: isinstance(part, attacks.Attack))


def sound(objective: Any, model: Classifier, learner: Learner, batch: Any, found: Images) -> tuple[Images, Aux]:
    """Adversarial images without their NaNs, held constant, with the metrics of all objectives that craft."""
    if objective.clean_metric or objective.only_attack_correct:
        right = correct(model(batch.images), batch.labels)
    if objective.only_attack_correct:
        found = jnp.where(right[:, None, None, None] > 0, found, batch.images)
    broken = jnp.isnan(found)
    images = jax.lax.stop_gradient(jnp.where(broken, batch.images, found))
    delta = (images - batch.images).reshape(images.shape[0], -1)
    means = {"delta_linf": jnp.max(jnp.abs(delta), axis=1), "delta_l2": jnp.linalg.norm(delta, axis=1)}
    if objective.clean_metric:
        means["clean_acc"] = right
    return images, Aux(learner.state, means, {"nan_delta": broken.any(axis=(1, 2, 3))})


def cross_entropies(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> PerExample:
    """Cross-entropy of every example."""
    return jax.vmap(cross_entropy)(logits, labels)


def smoothed(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: Number) -> PerExample:
    """Cross-entropy against (1−a)·e_y + a/K, written as ℓ(z, y) + a·(z_y − mean z)."""
    smoothing = jnp.asarray(smoothing, logits.dtype)
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return cross_entropies(logits, labels) + smoothing * (true - logits.mean(axis=1))


def correct(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> PerExample:
    """1 where the label is predicted, else 0; NaN predicts nothing."""
    correct = (jnp.argmax(logits, axis=1) == labels) & jnp.isfinite(logits).all(axis=1)
    return correct.astype(jnp.float32)
