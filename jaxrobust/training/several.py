"""Training against several attacks at once: their worst, their average, or one of them a batch."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrobust import _checks, attacks
from jaxrobust.attacks.core import engine
from jaxrobust.losses import log_odds
from jaxrobust.training.objectives import Aux, CraftMode, Learner, PerExample, _correct, _Keys, _smoothed, _sound
from jaxrobust.types import Classifier, Images, Key, Misclassified, Number, pytree

__all__ = ["Several", "several"]


@pytree("attacks", "label_smoothing")
class Several:
    """The cross-entropy of the images that several attacks find; make it with `several`."""

    attacks: tuple[Any, ...]
    combine: Literal["max", "average", "random"] = "max"
    label_smoothing: Number = 0.0
    craft_bn: CraftMode = "eval"
    clean_metric: bool = True

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        keys = _Keys.of(key)
        model = learner.classifier(self.craft_bn, keys.craft)
        found, share = self._find(model, batch, keys.attack)
        repeated = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * share), batch)
        images, aux = _sound(self, model, learner, repeated, found)
        logits, learner = learner.train(images, keys.dropout)
        losses = _smoothed(logits, repeated.labels, self.label_smoothing)
        means = {"adv_acc": _correct(logits, repeated.labels), **aux.means}

        def of_an_example(values: Any) -> Any:
            return values.reshape(share, -1)

        means = {name: of_an_example(values).mean(0) for name, values in means.items()}
        counts = {name: of_an_example(values).any(0) for name, values in aux.counts.items()}
        return of_an_example(losses).mean(0), Aux(learner.state, means, counts)

    def _find(self, model: Classifier, batch: Any, key: Key) -> tuple[Images, int]:
        """Adversarial images, and how many there are of each example: (share · N, H, W, C), share."""
        goal = Misclassified(batch.labels)

        def craft(place: int) -> Images:
            keys = attacks.example_keys(jax.random.fold_in(key, place), batch.index)
            return attacks.last_iterate(self.attacks[place], model, batch.images, goal, keys)

        places = range(len(self.attacks))
        if self.combine == "random":
            place = jax.random.randint(jax.random.fold_in(key, len(self.attacks)), (), 0, len(self.attacks))
            return jax.lax.switch(place, [lambda place=place: craft(place) for place in places]), 1
        found = jnp.stack([craft(place) for place in places])
        if self.combine == "average":
            return found.reshape(-1, *found.shape[2:]), len(self.attacks)
        # not cross-entropy itself, which vanishes for all of them where logits are large
        losses = jnp.stack([jax.vmap(log_odds)(model(images), batch.labels) for images in found])
        worst = jnp.argmax(jnp.where(jnp.isnan(losses), -jnp.inf, losses), axis=0)
        return jnp.take_along_axis(found, worst[None, :, None, None, None], axis=0)[0], 1


def several(
    *attacks: Any,
    combine: Literal["max", "average", "random"] = "max",
    label_smoothing: Number = 0.0,
    craft_bn: CraftMode = "eval",
    clean_metric: bool = True,
) -> Several:
    """Adversarial training against several attacks, whose sets may differ in kind.

    "max" is min_θ E max_i ℓ(f_θ(x_i), y), where x_i is what attack i ends with and the loss that chooses is the
    cross-entropy of the network that the attacks saw; "average" is min_θ E (1/m) Σ_i ℓ(f_θ(x_i), y), all m·N images
    in one forward pass; "random" draws one attack a batch, so that its cost does not grow with m.

    Args:
        *attacks: the inner attacks, at least one.
        combine: see above.
        label_smoothing: as in `adversarial`.
        craft_bn: as in `adversarial`.
        clean_metric: as in `adversarial`.

    Returns:
        The objective, with the metrics of `adversarial`.

    Raises:
        TypeError: if one of the attacks is not an attack.
        ValueError: if there are none, `combine` is unknown, or another argument is as `adversarial` refuses it.

    Example:
        >>> from jaxrobust import attacks, sets
        >>> several(attacks.pgd(sets.Linf(0.3)), attacks.pgd(sets.L2(2.0)), combine="random").combine
        'random'

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000 ("max", "average"); Madaan et al., 2021, arXiv:2002.04784 ("random").
    """
    if not attacks:
        raise ValueError("attacks must hold at least one attack; got none")
    for attack in attacks:
        engine.check_attack(attack)
    smoothing = _checks.number("label_smoothing", label_smoothing, high=1.0)
    combine = _checks.choice("combine", combine, ("max", "average", "random"))
    craft_bn = _checks.choice("craft_bn", craft_bn, ("eval", "batch"))
    return Several(attacks, combine, smoothing, craft_bn, clean_metric)
