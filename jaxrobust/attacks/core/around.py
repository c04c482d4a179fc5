"""What attacks around another attack have in common: they are as it is, but for what they say themselves."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax.numpy as jnp

from jaxrobust.attacks.core.base import Attack, Knowledge
from jaxrobust.attacks.core.engine import check_attack
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Classifier, Criterion, Image, Key, Logits, Number


class Around(Attack):
    """An attack that leaves the searching to another, in its field `attack`."""

    attack: Attack

    def __post_init__(self) -> None:
        # JAX rebuilds pytrees around placeholders, so that here only a function or class is known to be a mistake
        if callable(self.attack):
            check_attack(self.attack)

    @property
    def set(self) -> PerturbationSet:  # type: ignore[override]
        """The attack's."""
        return self.attack.set

    @property
    def random(self) -> bool:
        """The attack's."""
        return self.attack.random

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """The attack's."""
        return self.attack.restarts

    @property
    def ends_early(self) -> bool:  # type: ignore[override]
        """The attack's."""
        return self.attack.ends_early

    @property
    def minimum_norm(self) -> bool:  # type: ignore[override]
        """The attack's."""
        return self.attack.minimum_norm

    @property
    def sees_draws(self) -> bool:  # type: ignore[override]
        """The attack's."""
        return self.attack.sees_draws

    @property
    def needs_start(self) -> bool:  # type: ignore[override]
        """The attack's."""
        return self.attack.needs_start

    @property
    def knowledge(self) -> Knowledge:
        """The attack's."""
        return self.attack.knowledge

    @property
    def width(self) -> int:
        """The attack's."""
        return self.attack.width

    @property
    def widths(self) -> tuple[int, ...]:
        """The attack's."""
        return self.attack.widths

    @property
    def asks(self) -> int:
        """The attack's."""
        return self.attack.asks

    @property
    def asks_to_last(self) -> int:
        """The attack's."""
        return self.attack.asks_to_last

    @property
    def gradients(self) -> int:
        """The attack's."""
        return self.attack.gradients

    @property
    def bookings(self) -> int:
        """The attack's."""
        return self.attack.bookings

    def runs(self, classes: int) -> int:
        """The attack's."""
        return self.attack.runs(classes)

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> Any:
        """The first run."""
        return self.begin(key, x, goal, logits, jnp.zeros((), jnp.int32))

    def bound_to(self, model: Classifier) -> Attack:
        """The same around the attack bound to the model."""
        return self._with(self.attack.bound_to(model))

    def with_radius(self, radius: Number) -> Attack:
        """The same around the attack with another radius."""
        return self._with(self.attack.with_radius(radius))

    def _with(self, attack: Attack) -> Attack:
        return cast(Attack, dataclasses.replace(cast(Any, self), attack=attack))
