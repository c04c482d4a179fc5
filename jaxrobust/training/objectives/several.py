"""Training against several attacks at once: their worst, their average, or one of them a batch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrobust import _checks, attacks, sets
from jaxrobust.attacks.core import engine
from jaxrobust.losses import log_odds
from jaxrobust.training.objectives.core import (
    Aux,
    Crafting,
    CraftMode,
    Keys,
    Learner,
    PerExample,
    correct,
    smoothed,
    sound,
)
from jaxrobust.types import Classifier, Images, Key, Misclassified, Number, pytree

__all__ = ["COMBINATIONS", "Several", "extreme_norms", "several"]

COMBINATIONS = ("max", "average", "random", "alternate", "errors")


@pytree("attacks", "label_smoothing")
class Several(Crafting):
    """The cross-entropy of the images that several attacks find; make it with `several`."""

    attacks: tuple[Any, ...]
    combine: Literal["max", "average", "random", "alternate", "errors"] = "max"
    label_smoothing: Number = 0.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = True

    def init(self, learner: Learner, batch: Any) -> Any:
        """How many examples met each attack, and how many withstood, of "errors"; see `Objective`."""
        if self.combine != "errors":
            return None
        none = jnp.zeros(len(self.attacks), jnp.float32)
        return {"tried": none, "right": none}

    def remember(self, memory: Any, sums: Any, gradient: Any) -> Any:
        """The counts with those of one batch more; see `Objective`."""
        return None if memory is None else {name: memory[name] + sums[name] for name in memory}

    def craft(self, keys: Keys, learner: Learner, batch: Any) -> tuple[Any, Aux]:
        """Images (share · N, H, W, C), the place (share · N,) of the attack that found each, see `Crafting`."""
        model = learner.classifier(self.craft_bn, keys.craft)
        found, places = self._find(model, batch, keys.attack, learner)
        share = len(found) // len(batch.labels)
        once = dataclasses.replace(self, clean_metric=False)  # and not the clean images as often as they are attacked
        images, aux = sound(once, model, learner, _repeated(batch, share), found)

        def of_an_example(values: Any) -> Any:
            return values.reshape(share, -1)

        means = {name: of_an_example(values).mean(0) for name, values in aux.means.items()}
        if self.clean_metric:
            means["clean_acc"] = correct(model(batch.images), batch.labels)
        if share == 1:
            means |= {f"chose_{i}": (places == i).astype(jnp.float32) for i in range(len(self.attacks))}
        counts = {name: of_an_example(values).any(0) for name, values in aux.counts.items()}
        return (images, places), Aux(learner.state, means, counts)

    def outer(self, keys: Keys, learner: Learner, batch: Any, crafted: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Crafting`."""
        images, places = crafted
        share = len(images) // len(batch.labels)
        labels = _repeated(batch, share).labels
        logits, learner = learner.train(images, keys.dropout)
        losses = smoothed(logits, labels, self.label_smoothing).reshape(share, -1).mean(0)
        right = correct(logits, labels)
        sums = {}
        if self.combine == "errors":
            chosen = jax.nn.one_hot(places, len(self.attacks), dtype=jnp.float32)
            sums = {"tried": chosen, "right": chosen * right[:, None]}
        return losses, Aux(learner.state, {"adv_acc": right.reshape(share, -1).mean(0)}, {}, sums)

    def _find(self, model: Classifier, batch: Any, key: Key, learner: Learner) -> tuple[Images, Any]:
        goal, count = Misclassified(batch.labels), len(self.attacks)

        def craft(place: int) -> Images:
            keys = attacks.example_keys(jax.random.fold_in(key, place), batch.index)
            return attacks.last_iterate(self.attacks[place], model, batch.images, goal, keys)

        if self.combine in ("random", "alternate", "errors"):
            place = self._drawn(jax.random.fold_in(key, count), learner)
            found = jax.lax.switch(place, [lambda place=place: craft(place) for place in range(count)])
            return found, jnp.full(batch.labels.shape, place)
        found = jnp.stack([craft(place) for place in range(count)])
        if self.combine == "average":
            return found.reshape(-1, *found.shape[2:]), jnp.repeat(jnp.arange(count), len(batch.labels))
        # not cross-entropy itself, which vanishes for all of them where logits are large
        losses = jnp.stack([jax.vmap(log_odds)(model(images), batch.labels) for images in found])
        worst = jnp.argmax(jnp.where(jnp.isnan(losses), -jnp.inf, losses), axis=0)
        return jnp.take_along_axis(found, worst[None, :, None, None, None], axis=0)[0], worst

    def _drawn(self, key: Key, learner: Learner) -> Any:
        """The place of this batch's attack."""
        count = len(self.attacks)
        if self.combine == "alternate":
            return jnp.asarray(learner.step, jnp.int32) % count
        if self.combine == "random":
            return jax.random.randint(key, (), 0, count)
        return jax.random.categorical(key, jnp.log(chances(learner.memory)))


def chances(memory: Any) -> Any:
    """The probabilities ∝ 1 − accuracy with which E-AT draws its attacks, equal until each was drawn.

    Args:
        memory: of `several(combine="errors")`: `tried` and `right` (m,), how many examples met and withstood an attack.

    Returns:
        (m,), adding up to 1.
    """
    tried, right = memory["tried"], memory["right"]
    errors = 1 - right / jnp.maximum(tried, 1)
    known = jnp.all(tried > 0) & (errors.sum() > 0)
    return jnp.where(known, errors / jnp.where(known, errors.sum(), 1), 1 / len(tried))


def _repeated(batch: Any, share: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * share), batch)


def several(
    *attacks: Any,
    combine: Literal["max", "average", "random", "alternate", "errors"] = "max",
    label_smoothing: Number = 0.0,
    craft_bn: CraftMode = "eval",
    clean_metric: bool = True,
) -> Several:
    """Adversarial training against several attacks, whose sets may differ in kind.

    "max" is min_θ E max_i ℓ(f_θ(x_i), y), where x_i is what attack i ends with and the loss that chooses is the
    cross-entropy of the network that the attacks saw; "average" is min_θ E (1/m) Σ_i ℓ(f_θ(x_i), y), all m·N images
    in one forward pass. The others take one attack a batch, so that their cost does not grow with m: "random" (SAT)
    draws it, "alternate" takes one after the other, and "errors" (E-AT) draws attack i with probability
    ∝ 1 − acc_i, where acc_i is the accuracy under it over all of the training so far; until each was drawn once, all
    are equally likely. In `fit_many` all m are run and one is kept, since members of one program may draw others.
    Lists of unlike sets are where "random" fails and "errors" need not.

    Args:
        *attacks: the inner attacks, at least one.
        combine: see above.
        label_smoothing: as in `adversarial`.
        craft_bn: as in `adversarial`.
        clean_metric: as in `adversarial`.

    Returns:
        The objective, with the metrics of `adversarial`; but for "average" also `chose_i`, the share of examples that
        trained on attack i.

    Raises:
        TypeError: if one of the attacks is not an attack.
        ValueError: if there are none, `combine` is unknown, or another argument is as `adversarial` refuses it.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> several(attacks.pgd(sets.Linf(0.3)), attacks.pgd(sets.L2(2.0)), combine="random").combine
        'random'

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000 ("max", "average", "alternate"); Madaan et al., 2021, arXiv:2002.04784
        ("random"); Croce and Hein, 2022, arXiv:2105.12508 ("errors", there between `extreme_norms`).
    """
    if not attacks:
        raise ValueError("attacks must hold at least one attack; got none")
    for attack in attacks:
        engine.check_attack(attack)
    smoothing = _checks.number("label_smoothing", label_smoothing, high=1.0)
    combine = _checks.choice("combine", combine, COMBINATIONS)
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return Several(attacks, combine, smoothing, craft_bn, clean_metric)


def extreme_norms(*, linf: Number = 8 / 255, l1: Number = 12.0, steps: int = 10) -> Several:
    """E-AT: training on l∞ and l1 alone, whose convex hull has the l2 ball between them, for robustness to all three.

    APGD on the cross-entropy, from x and in l1 at first on 5 % of the entries; trained on is the point of highest loss.
    Of the two norms that with more errors is drawn more often, see `several`. The hull of the balls of radii ε_1 and
    ε_∞ holds the l2 ball of radius ε_1/(r − a + a²)^½ with r = ε_1/ε_∞ and a = r − ⌊r⌋.

    Args:
        linf: ε_∞ > 0.
        l1: ε_1 > 0; CIFAR-10 has 12, ImageNet 255 (and 4/255).
        steps: of each APGD.

    Returns:
        The objective, with the metrics of `several`.

    Example:
        >>> extreme_norms().combine
        'errors'

    Reference:
        Croce and Hein, 2022, arXiv:2105.12508, where three epochs at rate 0.05 make a network so that is robust in one
        norm.
    """
    ascent = functools.partial(attacks.apgd, steps=steps, random_start=False)
    return several(ascent(sets.Linf(linf)), ascent(sets.L1(l1), sparsity=0.05), combine="errors")
