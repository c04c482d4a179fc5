"""Colour sets: one function of colour, applied to every pixel (ReColorAdv)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrobust import _checks
from jaxrobust.sets._bounded import Smooth
from jaxrobust.sets._colour_spaces import SPACES
from jaxrobust.sets._interpolation import clamp, lookup
from jaxrobust.sets.base import register
from jaxrobust.types import Image, Number, pytree

__all__ = ["ReColor"]

Displacements = Float[Array, "a b c 3"]


@pytree("radius", "weight", "scale")
class ReColor(Smooth):
    """ReColorAdv: one function of colour for the whole image, within radius of the identity in a colour space.

    With Φ from RGB to the colour space, scaled to about [0, 1]³, z = Φ⁻¹(f(Φ(x))) at every pixel. θ (16, 32, 32, 3) are
    the displacements f(c) − c on a regular lattice over [0, 1]³, trilinear between, |θ_i| ≤ radius · scale_i in
    channel i. Images are RGB.

    - "displacement" (default): f(c) = c + T(clip(c, 0, 1)), T the interpolated displacement, and the error of Φ⁻¹ ∘ Φ
      itself (up to 10⁻³) is taken off, z = clip(x + Φ⁻¹(f(Φ(x))) − Φ⁻¹(Φ(x)), 0, 1). So θ = 0 changes nothing.
    - "official": as the released code has it, f is looked up in the grid g = identity + θ, clipped to [0, 1]³, mapped
      through Φ ∘ Φ⁻¹ into the gamut and clipped to within radius of the identity. As u and v leave [0, 1], θ = 0
      already changes saturated colours, and `contains_clean` is False. The gradient skips the clean-up, as theirs does.

    `penalty` is weight · Σ_p Σ_{q ∈ N(p)} ‖θ_p − θ_q‖₂ over the six neighbours in the lattice; attacks that penalise
    ascend the loss minus it.

    Args:
        radius: ε in the scaled colour space, ≥ 0. Typical: 0.06 on CIFAR-10 and ImageNet: 6 in L, 12 in u and v.
        weight: what the roughness of θ costs, ≥ 0; None takes 0.0036/radius, 0.06 at the typical radius. The first
            release has 0.05.
        scale: how much of the radius each of the three channels may use, each ≥ 0.
        mode: "displacement" or "official" (static).
        space: "luv", "rgb", "ypbpr" (ITU-R BT.601), "smooth_hsv_cone", "hsv_cone" or "xyz" (static).
        lattice: points along the three axes, each ≥ 2 (static).

    Example:
        >>> x = jnp.full((2, 2, 3), 0.5)
        >>> brighter = ReColor(space="rgb", lattice=(2, 2, 2)).apply(x, jnp.full((2, 2, 2, 3), 0.06))
        >>> bool(jnp.allclose(brighter, 0.56))
        True

    Reference:
        Laidlaw and Feizi, 2019, arXiv:1906.00001. Mended: the released identity is not one, see "displacement", and its
        way back from the HSV cone has a wrong factor in the hue. Constants of the penalty's root as in `Flow`.
    """

    radius: Number = 0.06
    weight: Number | None = None
    scale: tuple[Number, Number, Number] = (1.0, 1.0, 1.0)
    mode: str = "displacement"
    space: str = "luv"
    lattice: tuple[int, int, int] = (16, 32, 32)

    _relative_weight = 0.0036

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.scale, (tuple, list)):
            if len(self.scale) != 3:
                raise ValueError(f"scale must have 3 entries, one a channel; got {self.scale}")
            object.__setattr__(self, "scale", tuple(_checks.number("scale", value) for value in self.scale))
        _checks.choice("mode", self.mode, ("displacement", "official"))
        _checks.choice("space", self.space, SPACES)
        if len(self.lattice) != 3:
            raise ValueError(f"lattice must have 3 entries, one an axis; got {self.lattice}")
        object.__setattr__(self, "lattice", tuple(_checks.count("lattice", number, low=2) for number in self.lattice))

    @property
    def contains_clean(self) -> bool:
        """Not in the official form, whose identity changes saturated colours."""
        return self.mode == "displacement"

    def apply(self, x: Image, theta: Displacements) -> Image:
        """z = Φ⁻¹(f(Φ(x))), see the class."""
        to, back = SPACES[self.space]
        x = clamp(_rgb(x))
        colours = to(x)
        if self.mode == "official":
            identity, reach = self._identity(x), self._reach(x)
            cleaned = jnp.clip(to(clamp(back(clamp(identity + theta)))) - identity, -reach, reach)
            return clamp(back(lookup(identity + theta + lax.stop_gradient(cleaned - theta), colours)))
        # far outside there is nothing but overflow
        moved = clamp(colours + lookup(theta, colours), -1.0, 2.0)
        before, after = back(jnp.stack([colours, moved]))
        return clamp(x + (after - before))

    def _shape(self, x: Image) -> tuple[int, ...]:
        _rgb(x)
        return (*self.lattice, 3)

    def _unit(self, x: Image) -> Array:
        return jnp.stack([jnp.asarray(value).astype(x.dtype) for value in self.scale])[None, None, None]

    def _limits(self, x: Image) -> tuple[Array, Array]:
        if self.mode == "displacement":
            return super()._limits(x)
        identity = self._identity(x)
        return -identity, 1 - identity

    def _identity(self, x: Image) -> Displacements:
        axes = [np.linspace(0, 1, number) for number in self.lattice]
        return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1), x.dtype)


def _rgb(x: Image) -> Image:
    if x.shape[-1] != 3:
        raise ValueError(f"images must have 3 channels (RGB) to be recoloured; got shape {x.shape}")
    return x


register("recolor", lambda: ReColor(lattice=(4, 5, 6)), shapes=((6, 5, 3), (4, 7, 3)))
register("recolor_official", lambda: ReColor(mode="official", lattice=(4, 5, 6)), shapes=((6, 5, 3), (4, 7, 3)))
