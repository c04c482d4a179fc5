"""Several sets at once: one after the other on the image, or any one of them. Their weighted sums are in `affine`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.sets._parts import Composite, radius_of, scaled, share
from jaxrobust.sets.balls import squared_gain
from jaxrobust.sets.base import PerturbationSet, register
from jaxrobust.sets.lp import L1, L2, AdditiveBall, Linf
from jaxrobust.types import Image, Key, Number, pytree

__all__ = ["Sequence", "Union", "convex_hull_l2_radius", "scaled", "sequence"]

Scalar = Float[Array, ""]
Parameters = tuple[Any, ...]


@pytree("parts", "radius")
class Sequence(Composite):
    """Sets one after the other: every part perturbs the image that the parts before it made; θ is a tuple.

    Args:
        parts: the sets, in the order in which they act. A part whose image is made of its parameters alone, such as a
            transport plan, comes best first: no gradient reaches the parts before it.
        radius: multiplies the radius of every part, ≥ 0, so it has no unit. Typical: 1, the parts' own radii.

    The projection takes the parts in order and is exact for each, on the image that the ones before it left.

    Example:
        >>> str(Sequence((Linf(0.1), L2(0.5))))
        'Linf(0.1) then L2(0.5), scale (1)'

    Reference:
        Laidlaw and Feizi, 2019, arXiv:1906.00001 (colour, then flow, then addition).
    """

    parts: tuple[PerturbationSet, ...]
    radius: Number = 1.0

    joined = " then "

    def init(self, x: Image) -> Parameters:
        """Every part's identity."""
        return self._chain(x, lambda i, part, x: part.init(x))

    def sample(self, key: Key, x: Image) -> Parameters:
        """A sample of every part, independent but for the image that each sees."""
        keys = jax.random.split(key, len(self.parts))
        return self._chain(x, lambda i, part, x: part.sample(keys[i], x))

    def apply(self, x: Image, theta: Parameters) -> Image:
        """The last part's image."""
        for part, before, own in self.stages(x, theta):
            x = part.apply(before, own)
        return x

    def project(self, x: Image, theta: Parameters) -> Parameters:
        """Part by part along the chain, each on the image that the projected ones before it make."""
        return self._chain(x, lambda i, part, x: part.project(x, theta[i]))

    def ascend(self, x: Image, theta: Parameters, gradient: Parameters, size: Scalar) -> Parameters:
        """Every part's own step, of `size` of its radius."""
        return tuple(
            part.ascend(before, own, g, size * radius_of(whole, x))
            for (part, before, own), whole, g in zip(self.stages(x, theta), self.parts, gradient, strict=True)
        )

    def ascend_part(
        self, x: Image, theta: Parameters, gradient: Parameters, size: Scalar, part: int | Array
    ) -> Parameters:
        """`ascend` of one part alone, its index traced if you like; the others stay. Not projected.

        Args:
            x: the clean image (H, W, C).
            theta: the parameters.
            gradient: what `pullback` gave.
            size: the step as a fraction of the part's radius.
            part: which part moves.

        Returns:
            The parameters with that part moved. `project` makes the later parts give way where the box is full.
        """
        moved = self.ascend(x, theta, gradient, size)
        return tuple(
            jax.tree.map(lambda new, old, i=i: jnp.where(jnp.asarray(part) == i, new, old), *pair)
            for i, pair in enumerate(zip(moved, theta, strict=True))
        )

    def size(self, x: Image, theta: Parameters) -> Scalar:
        """The largest of the parts' sizes as fractions of their own radii."""
        stages = zip(self.stages(x, theta), self.parts, strict=True)
        shares = [share(part.size(before, own), whole) for (part, before, own), whole in stages]
        return jnp.max(jnp.stack(shares))

    def distance(self, x: Image, theta: Parameters, other: Parameters) -> Scalar:
        """The largest of the parts' distances as fractions of their own radii, on the images along θ."""
        stages = zip(self.stages(x, theta), self.parts, other, strict=True)
        shares = [share(part.distance(before, own, its), whole) for (part, before, own), whole, its in stages]
        return jnp.max(jnp.stack(shares))

    def contains(self, x: Image, theta: Parameters) -> Bool[Array, ""]:
        """Whether every part contains its own parameters on the image that it sees."""
        return jnp.all(jnp.stack([part.contains(before, own) for part, before, own in self.stages(x, theta)]))

    def penalty(self, x: Image, theta: Parameters) -> Scalar:
        """The sum of the parts' penalties."""
        return jnp.sum(jnp.stack([part.penalty(before, own) for part, before, own in self.stages(x, theta)]))

    def pullback(self, x: Image, theta: Parameters, gradient: Image) -> Parameters:
        """The chain rule through the parts' own pullbacks; additive parts pass it on without their guarding clips."""
        pulled: list[Any] = []
        for part, before, own in reversed(list(self.stages(x, theta))):
            pulled.append(part.pullback(before, own, gradient))
            if not isinstance(part, AdditiveBall):
                (gradient,) = jax.vjp(lambda before, part=part, own=own: part.apply(before, own), before)[1](gradient)
        return tuple(reversed(pulled))

    def stages(self, x: Image, theta: Parameters) -> Iterator[tuple[PerturbationSet, Image, Any]]:
        """Every part at its scaled radius, the image that it sees, and its parameters."""
        for part, own in zip(self.scaled_parts(), theta, strict=True):
            yield part, x, own
            x = part.apply(x, own)

    def _chain(self, x: Image, choose: Any) -> Parameters:
        """The parameters that `choose(i, part, image)` gives along the chain."""
        chosen = []
        for i, part in enumerate(self.scaled_parts()):
            chosen.append(choose(i, part, x))
            x = part.apply(x, chosen[-1])
        return tuple(chosen)


def sequence(*sets: PerturbationSet) -> Sequence:
    """Sets one after the other, such as colour, then flow, then addition: C+S+D of the functional attacks.

    Args:
        sets: the parts, in the order in which they act on the image.

    Returns:
        Their `Sequence` at radius 1, the parts' own radii.

    Raises:
        TypeError: an argument that is no perturbation set.
        ValueError: no argument.

    Example:
        >>> x = jnp.full((2, 2, 1), 0.5)
        >>> both = sequence(Linf(0.1), Linf(0.2))
        >>> theta = both.project(x, (jnp.ones_like(x), jnp.ones_like(x)))
        >>> round(float(both.apply(x, theta).max()), 3)
        0.8

    Reference:
        Laidlaw and Feizi, 2019, arXiv:1906.00001.
    """
    return Sequence(sets)


@pytree("parts", "radius")
class Union(Composite, AdditiveBall):
    """The union of additive sets: θ is a perturbation δ that lies in at least one part.

    Args:
        parts: additive sets.
        radius: multiplies the radius of every part, ≥ 0, so it has no unit. Typical: 1, the parts' own radii.

    Example:
        >>> msd = Union((Linf(0.3), L2(2.0), L1(10.0)))
        >>> str(msd)
        'Linf(0.3) or L2(2) or L1(10), scale (1)'

    Reference:
        Maini et al., 2020, arXiv:1909.04068; Tramèr and Boneh, 2019, arXiv:1904.13000.
    """

    parts: tuple[Any, ...]
    radius: Number = 1.0

    kind, meaning, joined = AdditiveBall, "additive sets", " or "

    def sample(self, key: Key, x: Image) -> Image:
        """A sample of one of the parts, each as likely."""
        which_key, *keys = jax.random.split(key, len(self.parts) + 1)
        samples = [part.sample(k, x) for part, k in zip(self.scaled_parts(), keys, strict=True)]
        return jnp.stack(samples)[jax.random.randint(which_key, (), 0, len(samples))]

    def project(self, x: Image, theta: Image) -> Image:
        """The nearest of the parts' projections; of equally near ones the first."""
        near = jnp.stack([part.project(x, theta) for part in self.scaled_parts()])
        gain = jax.vmap(squared_gain, (None, 0))(theta, near)
        return near[jnp.argmax(jnp.sum(gain, (1, 2, 3)))]

    def candidates(self, x: Image, theta: Image, gradient: Image, sizes: Array) -> Array:
        """Every part's own step from δ, projected on that part: what multi steepest descent chooses from.

        Args:
            x: the clean image (H, W, C).
            theta: δ (H, W, C).
            gradient: ∇ℓ at x + δ (H, W, C).
            sizes: (m,) step sizes, each in the unit of its part's radius.

        Returns:
            (m, H, W, C), member i of part i.
        """
        return jnp.stack(
            [part.project(x, part.ascend(x, theta, gradient, sizes[i])) for i, part in enumerate(self.scaled_parts())]
        )

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """The candidate that gains most along the gradient, every part stepping `size` of its radius.

        Multi steepest descent with the linear loss in place of m forward passes. The gain counts after the part's own
        projection, so what is returned is projected already.
        """
        sizes = size * jnp.stack([radius_of(part, x) for part in self.parts])
        found = self.candidates(x, theta, gradient, sizes)
        best = found[jnp.argmax(jnp.sum(gradient[None] * (found - theta[None]), (1, 2, 3)))]
        return jnp.where(jnp.any(gradient != 0), best, theta)

    def maximise(self, x: Image, gradient: Image) -> Image:
        """argmax <g, δ>: the best of the parts' maximisers, which is also one over the convex hull."""
        best = jnp.stack([part.maximise(x, gradient) for part in self.scaled_parts()])
        return best[jnp.argmax(jnp.sum(gradient[None] * best, (1, 2, 3)))]

    def size(self, x: Image, theta: Image) -> Scalar:
        """The smallest of the parts' sizes as fractions of their own radii."""
        return jnp.min(jnp.stack([share(part.size(x, theta), part) for part in self.parts]))

    def contains(self, x: Image, theta: Image) -> Bool[Array, ""]:
        """Whether any part contains δ."""
        return jnp.any(jnp.stack([part.contains(x, theta) for part in self.scaled_parts()]))


def convex_hull_l2_radius(l1: float, linf: float, *, dimension: int | None = None) -> float:
    """The radius of the largest l2 ball inside of conv(B₁(ε₁) ∪ B_∞(ε_∞)): what robustness to both gives for free.

    r = ε₁/√(ε₁/ε_∞ − α + α²) with α the fraction of ε₁/ε_∞: the least of the support function
    max(ε₁ ‖u‖_∞, ε_∞ ‖u‖₁) over ‖u‖₂ = 1. The box [0, 1] is left out of account.

    Args:
        l1: ε₁ ≥ 0.
        linf: ε_∞ ≥ 0.
        dimension: number of coordinates d ≥ 1; where ε₁ ≥ d ε_∞ the l1 ball holds the other and r = ε₁/√d. None
            takes it as large.

    Returns:
        r, in pixel units like ε₁ and ε_∞.

    Raises:
        ValueError: a radius that is negative or not finite, or a dimension below 1.

    Example:
        >>> round(convex_hull_l2_radius(2.5, 1.0), 4)
        1.6667

    Reference:
        Croce and Hein, 2020, arXiv:1905.11213.
    """
    l1, linf = (float(_checks.number(name, value)) for name, value in (("l1", l1), ("linf", linf)))
    if dimension is not None and l1 >= _checks.count("dimension", dimension) * linf:
        return l1 / math.sqrt(dimension)
    if l1 <= linf or linf == 0:
        return linf
    fraction = math.fmod(l1 / linf, 1)
    return l1 / math.sqrt(l1 / linf - fraction + fraction**2)


register("sequence", lambda: sequence(Linf(0.05), L2(0.5)))
register("union", lambda: Union((Linf(0.1), L2(1.0), L1(5.0))))
