"""A choice between sets of any kinds: what an adversary may do who has several sets and uses one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust.sets._parts import Composite, radius_of, share
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.sets.lp import L1, L2, Linf
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["OneOf"]

Scalar = Float[Array, ""]
Choice = tuple[Scalar, tuple[Any, ...]]


@pytree("parts", "radius")
class OneOf(Composite):
    """The images of several sets of any kinds, each by its own parameters: θ = (i, (θ_0, θ_1, …)) stands for θ_i.

    The sets need not be additive or have anything in common; where all are additive, `Union` has one perturbation
    that counts for all of them.

    Args:
        parts: the sets, at least one; the identity is that of the first.
        radius: what every part's own radius is multiplied by, ≥ 0; 1 leaves them as they are. Sizes are fractions of
            the part's own radius.

    Raises:
        TypeError: a part that is no set.
        ValueError: no part, or a bad radius.

    Example:
        >>> str(OneOf((Linf(0.1), L2(1.0))))
        'one of Linf(0.1), L2(1), scale (1)'
    """

    parts: tuple[PerturbationSet, ...]
    radius: Number = 1.0

    @property
    def contains_clean(self) -> bool:
        """Whether the first part's identity is the clean image."""
        return self.parts[0].contains_clean

    def choice(self, x: Image, which: int, theta: Any) -> Choice:
        """The parameters that stand for `theta` of the part number `which`."""
        thetas = tuple(theta if i == which else part.init(x) for i, part in enumerate(self.parts))
        return jnp.asarray(which, x.dtype), thetas

    def init(self, x: Image) -> Choice:
        """The identity of the first part."""
        return jnp.zeros((), x.dtype), tuple(part.init(x) for part in self.parts)

    def sample(self, key: Key, x: Image) -> Choice:
        """A random member of a random part."""
        which_key, *keys = jax.random.split(key, len(self.parts) + 1)
        which = jax.random.randint(which_key, (), 0, len(self.parts)).astype(x.dtype)
        return which, tuple(part.sample(key, x) for key, part in zip(keys, self.scaled_parts(), strict=True))

    def apply(self, x: Image, theta: Choice) -> Image:
        """The chosen part's image."""
        return self._chosen(theta, [part.apply(x, t) for part, t in self._pairs(theta)])

    def project(self, x: Image, theta: Choice) -> Choice:
        """Each part's own projection."""
        return theta[0], tuple(part.project(x, t) for part, t in self._pairs(theta))

    def ascend(self, x: Image, theta: Choice, gradient: Choice, size: Scalar) -> Choice:
        """Each part's own step, of `size` times its own radius; the choice stays."""
        thetas = tuple(
            now.ascend(x, t, g, size * radius_of(part, x))
            for part, now, t, g in zip(self.parts, self.scaled_parts(), theta[1], gradient[1], strict=True)
        )
        return theta[0], thetas

    def size(self, x: Image, theta: Choice) -> Scalar:
        """The chosen part's size as a fraction of its own radius; 0 where that is 0."""
        pairs = zip(self.parts, theta[1], strict=True)
        return self._chosen(theta, [share(part.size(x, t), part) for part, t in pairs])

    def contains(self, x: Image, theta: Choice) -> Bool[Array, ""]:
        """Whether the chosen part, scaled, contains its parameters."""
        return self._chosen(theta, [part.contains(x, t) for part, t in self._pairs(theta)])

    def distance(self, x: Image, theta: Choice, other: Choice) -> Scalar:
        """The distance in the part that `theta` has chosen, as a fraction of its own radius."""
        trios = zip(self.parts, theta[1], other[1], strict=True)
        distances = [share(part.distance(x, t, o), part) for part, t, o in trios]
        return self._chosen(theta, distances)

    def penalty(self, x: Image, theta: Choice) -> Scalar:
        """The chosen part's penalty."""
        return self._chosen(theta, [part.penalty(x, t) for part, t in self._pairs(theta)])

    def pullback(self, x: Image, theta: Choice, gradient: Image) -> Choice:
        """The chosen part's pullback; zero for the others."""
        gradients = tuple(part.pullback(x, t, gradient) for part, t in self._pairs(theta))
        mine = [theta[0] == i for i in range(len(self.parts))]
        kept = tuple(
            jax.tree.map(lambda leaf, on=on: jnp.where(on, leaf, 0), g) for on, g in zip(mine, gradients, strict=True)
        )
        return jnp.zeros_like(theta[0]), kept

    def _pairs(self, theta: Choice) -> list[tuple[PerturbationSet, Any]]:
        return list(zip(self.scaled_parts(), theta[1], strict=True))

    def _chosen(self, theta: Choice, values: list[Array]) -> Array:
        chosen = values[0]
        for i, value in enumerate(values[1:], 1):
            chosen = jnp.where(theta[0] == i, value, chosen)
        return chosen

    def __str__(self) -> str:
        return f"one of {super().__str__()}"


register("one_of", lambda: OneOf((Linf(0.1), L2(1.0), L1(5.0))))
