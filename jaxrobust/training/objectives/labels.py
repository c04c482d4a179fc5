"""Targets softer than labels: smoothing by the logits or by groups, and a teacher's predictions."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrobust import _checks, _inputs
from jaxrobust.training.objectives.core import Aux, Keys, Learner, PerExample, correct, smoothed
from jaxrobust.types import Classifier, Key, Number, pytree

__all__ = [
    "KINDS",
    "Distilled",
    "GroupSmoothing",
    "Smoothed",
    "distilled",
    "group_smoothing",
    "label_smoothing",
    "soft_labels",
]

KINDS = ("sls", "als", "bals", "sbls")


@pytree("amount", "temperature")
class Smoothed:
    """Cross-entropy against smoothed labels; make it with `label_smoothing`."""

    amount: Number
    kind: Literal["sls", "als", "bals", "sbls"] = "sls"
    temperature: Number = 1e-2

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, learner = learner.train(batch.images, Keys.of(key).dropout)
        soft = soft_labels(jax.lax.stop_gradient(logits), batch.labels, self.kind, temperature=self.temperature)
        amount = jnp.asarray(self.amount, logits.dtype)
        target = (1 - amount) * jax.nn.one_hot(batch.labels, logits.shape[1], dtype=logits.dtype) + amount * soft
        losses = -jnp.sum(target * jax.nn.log_softmax(logits), axis=1)
        return losses, Aux(learner.state, {"clean_acc": correct(logits, batch.labels)}, {})


@pytree("teacher", "temperature")
class Distilled:
    """Cross-entropy against a teacher's softened predictions; make it with `distilled`."""

    teacher: Classifier
    temperature: Number = 100.0

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, learner = learner.train(batch.images, Keys.of(key).dropout)
        temperature = jnp.asarray(self.temperature, logits.dtype)
        target = jax.lax.stop_gradient(jax.nn.softmax(self.teacher(batch.images) / temperature))
        losses = -jnp.sum(target * jax.nn.log_softmax(logits / temperature), axis=1)
        return losses, Aux(learner.state, {"clean_acc": correct(logits, batch.labels)}, {})


@pytree("groups", "targets")
class GroupSmoothing:
    """Cross-entropy against labels smoothed by group; make it with `group_smoothing`."""

    groups: Any
    targets: Any

    @property
    def examples(self) -> int:
        """Of how many examples it speaks; see `Objective`."""
        return self.groups.shape[-1]

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        logits, learner = learner.train(batch.images, Keys.of(key).dropout)
        classes = logits.shape[1]
        target = jnp.asarray(self.targets).astype(logits.dtype)[jnp.asarray(self.groups)[batch.index]]
        losses = smoothed(logits, batch.labels, (1 - target) * (classes / (classes - 1)))
        return losses, Aux(learner.state, {"clean_acc": correct(logits, batch.labels)}, {})


def soft_labels(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    kind: Literal["sls", "als", "bals", "sbls"],
    *,
    temperature: Number = 1e-2,
) -> Float[Array, "batch classes"]:
    """The distribution s that a smoothed label has a share of.

    Args:
        logits: (N, K), held constant.
        labels: (N,).
        kind: "sls": uniform on all other classes; "als": on the smallest logit or logits, be it the label's; "bals":
            ∝ exp(−z_k/T) on the others; "sbls": on the largest logit or logits of the others.
        temperature: T > 0 of "bals".

    Returns:
        (N, K), rows adding up to 1.

    Example:
        >>> soft_labels(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]), "sbls").tolist()
        [[0.0, 0.0, 1.0]]
    """
    others = ~jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    if kind == "bals":
        scaled = jnp.where(others, -logits / jnp.asarray(temperature, logits.dtype), -jnp.inf)
        return jax.nn.softmax(scaled)
    if kind == "sls":
        chosen = others
    elif kind == "als":
        chosen = logits == jnp.min(logits, axis=1, keepdims=True)
    else:
        rivals = jnp.where(others, logits, -jnp.inf)
        chosen = others & (rivals == jnp.max(rivals, axis=1, keepdims=True))
    chosen = chosen.astype(logits.dtype)
    return chosen / jnp.sum(chosen, axis=1, keepdims=True)


def label_smoothing(
    amount: Number, *, kind: Literal["sls", "als", "bals", "sbls"] = "sls", temperature: Number = 1e-2
) -> Smoothed:
    """Standard training against q = (1 − a) e_y + a s, where s is what `soft_labels` makes of the current logits.

    As a defence it mostly hides gradients: evaluate it by losses of margins, too, and by queries. Smoothing uniform
    over all classes is `standard(label_smoothing=a)`.

    Args:
        amount: a in [0, 1].
        kind: see `soft_labels`.
        temperature: T > 0 of "bals"; the authors have 10⁻⁴ to 10⁻¹.

    Returns:
        The objective. Metric: `clean_acc`.

    Raises:
        ValueError: if `amount` is outside of [0, 1], `kind` unknown or `temperature` not positive.

    Example:
        >>> label_smoothing(0.1, kind="als").kind
        'als'

    Reference:
        Goibert and Dohmatob, 2019, arXiv:1906.11567. Their code finds the label in "bals" by its value and so drops
        ties; here by its place.
    """
    temperature = _checks.positive("temperature", temperature)
    return Smoothed(_checks.number("amount", amount, high=1.0), _checks.choice("kind", kind, KINDS), temperature)


def distilled(teacher: Classifier, *, temperature: Number = 100.0) -> Distilled:
    """Defensive distillation: min_θ E CE(softmax(z_teacher(x)/T), z_θ(x)/T); the student is deployed at T = 1.

    The teacher is to be trained at the same temperature, which `distilled` of a one-hot teacher does. A classical
    defence that only masks gradients: Carlini and Wagner's attack breaks it.

    Args:
        teacher: the classifier; its parameters are traced.
        temperature: T > 0.

    Returns:
        The objective. Metric: `clean_acc`.

    Raises:
        TypeError: if `teacher` is no classifier.
        ValueError: if `temperature` is not positive.

    Example:
        >>> teacher = Classifier.from_function(lambda x: x.reshape(x.shape[0], -1)[:, :3])
        >>> float(distilled(teacher).temperature)
        100.0

    Reference:
        Papernot et al., 2016, arXiv:1511.04508.
    """
    if not isinstance(teacher, Classifier):
        raise TypeError(f"teacher must be a Classifier; got {_checks.told(teacher)}")
    return Distilled(teacher, _checks.positive("temperature", temperature))


def group_smoothing(groups: Any, targets: Number | Any) -> GroupSmoothing:
    """Labels smoothed by group: CE against q = (1 − ε_r) e_y + ε_r/K, ε_r = (1 − p̃_r) K/(K − 1), so that q_y = p̃_r.

    For AR-AdaLS `groups` are those of `distance_groups`, and between epochs `adapted_targets` gives the next targets;
    these are traced numbers, so that nothing compiles again.

    Args:
        groups: (count,) integers from 0, the group of every example of the data that `fit` is given, those held out
            too, by its place in it.
        targets: (R,) p̃_r in [0, 1], one a group.

    Returns:
        The objective. Metric: `clean_acc`.

    Raises:
        TypeError: groups that are no integers.
        ValueError: groups or targets of a wrong shape or range.

    Example:
        >>> group_smoothing([0, 1, 1], [0.9, 1.0]).groups.shape
        (3,)

    Reference:
        Qin et al., 2021, arXiv:2006.16375 (AR-AdaLS).
    """
    found, wanted = _inputs.as_array("groups", groups), _inputs.as_array("targets", targets)
    if not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"groups must be integers; got {found.dtype}")
    if wanted.ndim != 1 or not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError(f"targets must be numbers in [0, 1] of shape (R,); got {_checks.told(targets)}")
    if found.ndim != 1 or not found.size or found.min() < 0 or found.max() >= len(wanted):
        raise ValueError(
            f"groups must be of shape (count,) with values in [0, {len(wanted)}); got {_checks.told(groups)}"
        )
    return GroupSmoothing(jnp.asarray(found, jnp.int32), jnp.asarray(wanted, jnp.float32))
