"""The affine adversary: sets that share one budget out, x' = x + Σ δ_i with weights on the simplex."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets._parts import Composite, checked, scaled, share
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.sets.combine import Sequence
from jaxrobust.sets.lp import L1, AdditiveBall, Linf
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["Affine", "simplex_weights", "weighted_sum"]

Scalar = Float[Array, ""]
Parameters = tuple[Array, tuple[Any, ...]]


@pytree("parts", "radius")
class Affine(Composite):
    """The union over weights w on the simplex of {x + Σ δ_i : δ_i in part i at the radius w_i ε_i}.

    θ = (w, (θ_1, …, θ_m)): `sample` draws the weights, ascent keeps them. For given weights it is `weighted_sum`.

    Args:
        parts: the sets, additive ones first; the others, such as rotations, act on the noisy image afterwards.
        radius: multiplies the radius of every part, ≥ 0, so it has no unit. Typical: 1, the parts' own radii.

    Example:
        >>> affine = Affine((Linf(0.3), L1(10.0)))
        >>> weights, deltas = affine.sample(jax.random.key(0), jnp.full((4, 4, 1), 0.5))
        >>> weights.shape, len(deltas)
        ((2,), 2)

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000.
    """

    parts: tuple[PerturbationSet, ...]
    radius: Number = 1.0

    joined = " and "

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "parts", in_order(self.parts))

    def at(self, weights: Array) -> Sequence:
        """The set for these weights (m,)."""
        return Sequence(tuple(scaled(part, weights[i]) for i, part in enumerate(self.parts)), self.radius)

    def init(self, x: Image) -> Parameters:
        """Equal weights and every part's identity."""
        weights = jnp.full(len(self.parts), 1 / len(self.parts), x.dtype)
        return weights, self.at(weights).init(x)

    def sample(self, key: Key, x: Image) -> Parameters:
        """Weights uniform on the simplex, then a sample of every part at its share of the budget."""
        weights_key, parts_key = jax.random.split(key)
        weights = simplex_weights(weights_key, len(self.parts)).astype(x.dtype)
        return weights, self.at(weights).sample(parts_key, x)

    def apply(self, x: Image, theta: Parameters) -> Image:
        """x + Σ δ_i, then the parts that are not additive."""
        return self.at(theta[0]).apply(x, theta[1])

    def project(self, x: Image, theta: Parameters) -> Parameters:
        """The weights made non-negative with sum 1, then part by part as in `weighted_sum`; not the nearest point."""
        weights = jnp.maximum(theta[0], 0)
        total = jnp.sum(weights)
        weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 1 / len(self.parts))
        return weights, self.at(weights).project(x, theta[1])

    def ascend(self, x: Image, theta: Parameters, gradient: Parameters, size: Scalar) -> Parameters:
        """Every part's own step, of `size` of its share of the budget; the weights stay."""
        return theta[0], self.at(theta[0]).ascend(x, theta[1], gradient[1], size)

    def ascend_part(
        self, x: Image, theta: Parameters, gradient: Parameters, size: Scalar, part: int | Array
    ) -> Parameters:
        """`ascend` of one part alone, its index traced if you like; see `Sequence.ascend_part`. Not projected."""
        return theta[0], self.at(theta[0]).ascend_part(x, theta[1], gradient[1], size, part)

    def size(self, x: Image, theta: Parameters) -> Scalar:
        """Σ_i of the parts' sizes as fractions of their own radii: the smallest radius for which weights exist."""
        stages = zip(self.at(theta[0]).stages(x, theta[1]), self.parts, strict=True)
        return jnp.sum(jnp.stack([share(part.size(before, own), whole) for (part, before, own), whole in stages]))

    def distance(self, x: Image, theta: Parameters, other: Parameters) -> Scalar:
        """Σ_i of the parts' distances as fractions of their own radii, on the images along θ."""
        stages = zip(self.at(theta[0]).stages(x, theta[1]), self.parts, other[1], strict=True)
        shares = [share(part.distance(before, own, its), whole) for (part, before, own), whole, its in stages]
        return jnp.sum(jnp.stack(shares))

    def contains(self, x: Image, theta: Parameters) -> Bool[Array, ""]:
        """Whether the weights lie on the simplex, up to 1e-5, and every part within its share of the budget."""
        weights = theta[0]
        simplex = jnp.all(weights >= 0) & (jnp.abs(jnp.sum(weights) - 1) <= 1e-5)
        return simplex & self.at(weights).contains(x, theta[1])

    def penalty(self, x: Image, theta: Parameters) -> Scalar:
        """The sum of the parts' penalties."""
        return self.at(theta[0]).penalty(x, theta[1])

    def pullback(self, x: Image, theta: Parameters, gradient: Image) -> Parameters:
        """The parts' pullbacks; nothing for the weights, which bound the parts and do not move the image."""
        return jnp.zeros_like(theta[0]), self.at(theta[0]).pullback(x, theta[1], gradient)

    def __str__(self) -> str:
        return f"affine {super().__str__()}"


def weighted_sum(parts: tuple[PerturbationSet, ...], weights: Any) -> Sequence:
    """{x + Σ δ_i : δ_i in part i at the radius w_i ε_i}, the affine adversary's set for fixed weights.

    It is the sequence of the scaled parts. Each part's box is relative to x and the δ before it, and later parts give
    way: where two pull against each other at a pixel both can shrink by the smaller without changing x', so for lp
    balls and sparse sets the images are the same as with boxes relative to all other δ, the usual code, and every
    projection meets a box that holds its image.

    Args:
        parts: m sets, additive ones first; the others, such as rotations, act on the noisy image afterwards.
        weights: (m,) factors ≥ 0, as a rule on the simplex, traced if you like.

    Returns:
        The set, with θ a tuple of the parts' parameters.

    Raises:
        TypeError: a part that is no perturbation set, or a weight that is no number.
        ValueError: no part, an additive part after another, weights that are negative, or not one a part.

    Example:
        >>> str(weighted_sum((Linf(0.4), L1(10.0)), [0.25, 0.75]))
        'Linf(0.1) then L1(7.5), scale (1)'

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000.
    """
    parts = in_order(parts)
    if len(weights) != len(parts):
        raise ValueError(f"weights must hold one number a part, {len(parts)}; got {len(weights)}")
    return Sequence(tuple(scaled(part, weight) for part, weight in zip(parts, weights, strict=True)))


def simplex_weights(key: Key, count: int) -> Float[Array, " count"]:
    """Weights uniform on the simplex: w_i = e_i/Σ e with e = −ln u, floored at 1e-8.

    Args:
        key: a JAX key.
        count: m, how many.

    Returns:
        (m,) positive numbers with sum 1.

    Raises:
        ValueError: count below 1.

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000.
    """
    spacings = jnp.maximum(jax.random.exponential(key, (_checks.count("count", count),)), 1e-8)
    return spacings / jnp.sum(spacings)


def in_order(parts: Any) -> Any:
    """Sets of which the additive ones come first."""
    parts = checked(parts, PerturbationSet, "perturbation sets")
    if isinstance(parts, tuple):
        additive = [isinstance(part, AdditiveBall) for part in parts]
        if all(isinstance(part, PerturbationSet) for part in parts) and additive != sorted(additive, reverse=True):
            raise ValueError(f"parts must name additive sets first; got {', '.join(map(str, parts))}")
    return parts


register("affine", lambda: Affine((Linf(0.1), L1(5.0))))
