"""What every perturbation set promises: laws of a set and an image, run on any class by `check_set`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._checks import one_radius
from jaxrobust._repr import written
from jaxrobust.sets import PerturbationSet
from jaxrobust.testing._laws import Laws, chosen, hold, law, near, same

__all__ = ["KINDS", "ONE_IMAGE", "SET_LAWS", "SetCase", "check_set"]

MANY = 40  # members, and scales, that a law looks at

KINDS: dict[str, Callable[[Any], Any]] = {
    "random": lambda shape: np.random.default_rng(0).random(shape),
    "binary": lambda shape: np.random.default_rng(1).random(shape) > 0.5,
    "black": np.zeros,
    "white": np.ones,
}

# the laws of a set and an image; those that say as much on one image as on another, or only on a random one
SET_LAWS: Laws = {}
ONE_IMAGE: Laws = {}


@dataclasses.dataclass(frozen=True, eq=False)
class SetCase:
    """A set, and the image on which its laws are tried.

    Args:
        set: the set, of a typical radius.
        shape: (H, W, C).
        kind: which image, a name of `KINDS`.
    """

    set: PerturbationSet
    shape: tuple[int, ...]
    kind: str = "random"

    @property
    def radius(self) -> float:
        """The typical radius."""
        return float(self.set.radius)

    @functools.cached_property
    def image(self) -> Any:
        """The image (H, W, C), float32."""
        return jnp.asarray(KINDS[self.kind](self.shape), jnp.float32)

    @functools.cached_property
    def gradient(self) -> Any:
        """A gradient in the image, pulled back to the identity's parameters."""
        return self.call("pullback", self.call("init"), _normal(1, self.shape))

    @functools.cached_property
    def members(self) -> Any:
        """Many samples."""
        return _members(self.set, self.image)

    def along(self, scales: Any) -> Any:
        """So many times a step of a radius from the identity, not projected, leading axis: the scales'."""
        start = self.call("init")
        end = self.call("ascend", start, self.gradient, jnp.asarray(self.radius))
        return jax.vmap(lambda scale: jax.tree.map(lambda a, b: a + scale * (b - a), start, end))(
            jnp.asarray(scales, jnp.float32)
        )

    def call(self, method: str, *arguments: Any, of: PerturbationSet | None = None) -> Any:
        """A compiled method at the image: one program a set, method and shape, whatever the radius."""
        if method == "sample":
            return _call(of or self.set, method, *arguments, self.image)
        return _call(of or self.set, method, self.image, *arguments)

    def mapped(self, method: str, thetas: Any, *, of: PerturbationSet | None = None) -> Any:
        """A compiled method of many θ."""
        return _mapped(of or self.set, method, self.image, thetas)

    def __str__(self) -> str:
        return f"{self.set} on a {self.kind} image of shape {self.shape}"


def _normal(seed: int, shape: tuple[int, ...]) -> Any:
    """A gradient in the image's type, also where JAX makes float64."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def _call(perturbation_set: Any, method: str, *arguments: Any) -> Any:
    return getattr(perturbation_set, method)(*arguments)


@functools.partial(jax.jit, static_argnums=1)
def _mapped(perturbation_set: Any, method: str, image: Any, thetas: Any) -> Any:
    return jax.vmap(getattr(perturbation_set, method), (None, 0))(image, thetas)


@jax.jit
def _members(perturbation_set: Any, image: Any) -> Any:
    keys = jax.random.split(jax.random.key(3), MANY)
    return jax.vmap(perturbation_set.sample, (0, None))(keys, image)


def check_set(
    set: Any,
    *,
    shapes: Any = ((6, 5, 3), (4, 7, 1)),
    laws: Iterable[str] | None = None,
) -> None:
    """Run the laws of perturbation sets on one: projections are members, sizes and membership agree, nothing retraces.

    Takes seconds to a minute, nearly all of it compilation. In your tests, call it once for each of your sets.

    Args:
        set: of a typical radius > 0, which is a traced number.
        shapes: image shapes (H, W, C) that it takes, small ones; the first is tried most.
        laws: names of `SET_LAWS`; by default all.

    Raises:
        AssertionError: a law does not hold; says which, of what class, and the numbers. Or the set is no pytree.
        TypeError: `set` is no perturbation set, or shapes are no collection of triples.
        ValueError: its radius is 0 or one an image, or there is no such law, or no law or shape at all.

    Example:
        >>> check_set(jr.sets.Linf(0.1))
        >>> check_set(jr.sets.Linf(0.1), laws=["samples_are_members"])
    """
    if not isinstance(set, PerturbationSet):
        raise TypeError(f"set must be a PerturbationSet; got {set!r}")
    shapes = tuple(shapes) if isinstance(shapes, Iterable) else (shapes,)
    for shape in shapes:
        if not isinstance(shape, (tuple, list)) or [type(side) for side in shape] != [int] * 3 or min(shape) < 1:
            raise TypeError(f"shapes must be a collection of image shapes, such as ((6, 5, 3),); got {shapes}")
    if not shapes:
        raise ValueError("shapes must hold at least one image shape; got none")
    leaves = jax.tree.leaves(set)
    hold(not any(leaf is set for leaf in leaves), f"{set} is no pytree; decorate its class with types.pytree")
    one_radius(set)
    if not float(set.radius) > 0:
        raise ValueError(f"set must have a typical radius > 0, to be tried on; got {set}")
    every = chosen(SET_LAWS, laws)
    for place, shape in enumerate(shapes):
        for kind in KINDS if place == 0 else ("random", "black"):
            case = SetCase(set, tuple(shape), kind)
            for one in every:
                if one.__name__ not in ONE_IMAGE or (place == 0 and kind == "random"):
                    one(case)


@law(SET_LAWS)
def identity_changes_nothing(case: SetCase) -> None:
    """`init` gives the clean image, of size 0, where the set says that it contains it; it is a member in any case."""
    theta = case.call("init")
    if case.set.contains_clean:
        near(case.call("apply", theta), case.image, "the image of init", atol=1e-6)
        near(case.call("size", theta), 0.0, "the size of init")
    hold(case.call("contains", theta), "init is no member")


@law(SET_LAWS, ONE_IMAGE)
def same_parameters_give_the_same(case: SetCase) -> None:
    """Parameters make one image, also when they are traced anew: what is random comes from the key of `sample`."""
    theta = case.call("sample", jax.random.key(5))
    again = jax.jit(lambda perturbation_set, image, theta: perturbation_set.apply(image, theta))
    near(again(case.set, case.image, theta), case.call("apply", theta), "the image of a sample, applied again,")


@law(SET_LAWS)
def samples_are_members(case: SetCase) -> None:
    """Samples are members, their images float32 images in [0, 1]."""
    inside, sizes = case.mapped("contains", case.members), np.asarray(case.mapped("size", case.members))
    hold(inside, f"{int((~inside).sum())} of {MANY} samples are no members; sizes up to {sizes.max():g}")
    images = case.mapped("apply", case.members)
    hold(images.shape == (MANY, *case.shape), f"images of shape {images.shape[1:]}")
    hold(images.dtype == case.image.dtype, f"images of {images.dtype}")
    low, high = float(images.min()), float(images.max())
    hold(low >= 0 and high <= 1, f"images in [{low:g}, {high:g}]")


@law(SET_LAWS, ONE_IMAGE)
def samples_differ(case: SetCase) -> None:
    """Samples of different keys are different images."""
    rows = np.asarray(case.mapped("apply", case.members)).reshape(MANY, -1)
    hold(len(np.unique(rows, axis=0)) == MANY, f"{len(np.unique(rows, axis=0))} images of {MANY} samples")


@law(SET_LAWS)
def projection_is_a_member_and_idempotent(case: SetCase) -> None:
    """Steps of a tenth, three and 10,000 radii are projected onto members, which another projection leaves alone."""
    for size in (0.1, 3.0, 1e4):
        far = case.call("ascend", case.call("init"), case.gradient, jnp.asarray(size * case.radius))
        near_ = case.call("project", far)
        what = f"the projection of a step of {size:g} radii"
        hold(case.call("contains", near_), f"{what} is no member; its size is {float(case.call('size', near_)):g}")
        near(case.call("project", near_), near_, f"{what}, projected again,", atol=3e-6)


@law(SET_LAWS, ONE_IMAGE)
def projection_holds_at_any_scale(case: SetCase) -> None:
    """From 1e-10 to 1e20 times a step: what is projected is a member, and not nothing."""
    start, scales = case.call("init"), np.geomspace(1e-10, 1e20, MANY)
    found = case.mapped("project", case.along(scales))
    inside = np.asarray(case.mapped("contains", found))
    hold(inside, f"projections of steps scaled by {scales[~inside].tolist()} are no members")
    leaves = list(zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True))
    hold(all(np.isfinite(leaf).all() for leaf, _ in leaves), "projections are not finite")
    moved = np.any([(leaf != rest[None]).reshape(MANY, -1).any(1) for leaf, rest in leaves], 0)
    additive = not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(start))
    # elsewhere a step of 1e-8 is rounding
    still = ~moved & (scales >= (0 if additive else 0.5))
    hold(~still, f"steps scaled by {scales[still].tolist()} are projected to nothing")


@law(SET_LAWS)
def projection_keeps_members(case: SetCase) -> None:
    """Samples are projected onto themselves."""
    near(case.mapped("project", case.members), case.members, "the projection of samples", atol=3e-6)


@law(SET_LAWS, ONE_IMAGE)
def size_and_contains_agree(case: SetCase) -> None:
    """Members have sizes up to the radius, and what is clearly larger is no member."""
    sizes = np.asarray(case.mapped("size", case.members))
    hold(sizes <= case.radius * (1 + 1e-3), f"samples of sizes up to {sizes.max():g}")
    far = case.along(np.geomspace(0.1, 100, MANY))
    sizes, inside = np.asarray(case.mapped("size", far)), np.asarray(case.mapped("contains", far))
    wrong = inside & (sizes > case.radius * 1.01 + 1e-5)
    hold(~wrong, f"sizes of {sizes[wrong].tolist()} are members")


@law(SET_LAWS)
def gradients_are_finite(case: SetCase) -> None:
    """Gradients pulled back to the identity and to members are finite; to begin with, none is NaN."""
    at_sample = case.call("pullback", _first(case.members), _normal(1, case.shape))
    for what, tree in {"init": case.gradient, "a sample": at_sample}.items():
        for leaf in jax.tree.leaves(tree):
            hold(np.isfinite(leaf), f"the gradient at {what} has {int((~np.isfinite(leaf)).sum())} NaN or infinities")


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


@law(SET_LAWS)
def zero_gradient_moves_nothing(case: SetCase) -> None:
    """A step along a gradient of zeros stays where it is."""
    theta = case.call("init")
    moved = case.call("ascend", theta, jax.tree.map(jnp.zeros_like, theta), jnp.asarray(0.5))
    near(moved, theta, "a step along zero")


@law(SET_LAWS)
def radius_zero_is_the_clean_image(case: SetCase) -> None:
    """At radius 0 samples and projections are the clean image."""
    if not case.set.contains_clean:
        return
    nothing = case.set.with_radius(0.0)
    theta = case.call("sample", jax.random.key(0), of=nothing)
    far = case.call("ascend", theta, jax.tree.map(jnp.ones_like, theta), jnp.asarray(1.0), of=nothing)
    for what, one in {"a sample": theta, "a projection": case.call("project", far, of=nothing)}.items():
        near(case.call("apply", one, of=nothing), case.image, f"{what} at radius 0", atol=1e-6)


@law(SET_LAWS)
def huge_radius_stays_in_the_box(case: SetCase) -> None:
    """At a radius of a million what is projected is a member still, images in [0, 1]."""
    wide = case.set.with_radius(1e6)
    theta = case.call("project", case.call("sample", jax.random.key(0), of=wide), of=wide)
    hold(case.call("contains", theta, of=wide), "a projection at radius 1e6 is no member")


@law(SET_LAWS, ONE_IMAGE)
def small_steps_ascend(case: SetCase) -> None:
    """From a point where the set's map is smooth, a small projected step along a linear loss does not lower it."""
    gradient = _normal(2, case.shape)
    theta = case.call("sample", jax.random.key(5), of=case.set.with_radius(0.3 * case.set.radius))
    pulled = case.call("pullback", theta, gradient)
    moved = case.call("project", case.call("ascend", theta, pulled, jnp.asarray(1e-3 * case.radius)))
    before, after = (case.call("apply", one) for one in (theta, moved))
    gained = float(jnp.sum(gradient * (after - before)))
    hold(gained >= -1e-5, f"a step of a thousandth of the radius changes <g, x'> by {gained:g}")


@law(SET_LAWS)
def maximise_beats_every_sample(case: SetCase) -> None:
    """The linear maximiser, where there is one, is a member, and <gradient, ·> is nowhere larger."""
    if not hasattr(case.set, "maximise"):
        return
    gradient = case.call("pullback", case.call("init"), _normal(2, case.shape))
    best = case.call("maximise", gradient)
    hold(case.call("contains", best), f"the maximiser is no member; its size is {float(case.call('size', best)):g}")

    def value(theta: Any) -> Any:
        return sum(jnp.vdot(g, t) for g, t in zip(jax.tree.leaves(gradient), jax.tree.leaves(theta), strict=True))

    largest, reached = float(jax.jit(jax.vmap(value))(case.members).max()), float(value(best))
    hold(largest <= reached + 1e-4, f"<g, θ> is {reached:g} at the maximiser and {largest:g} at a sample")


@law(SET_LAWS, ONE_IMAGE)
def distance_is_a_size(case: SetCase) -> None:
    """A member is at distance 0 from itself, and from the identity by its size."""
    theta = case.call("sample", jax.random.key(5))
    near(case.call("distance", theta, theta), 0.0, "a member's distance from itself", atol=1e-6 * case.radius)
    if case.set.contains_clean:
        apart = case.call("distance", theta, case.call("init"))
        near(apart, case.call("size", theta), "a member's distance from the identity", rtol=1e-4)


@law(SET_LAWS, ONE_IMAGE)
def radius_is_traced_and_maps(case: SetCase) -> None:
    """Another radius is no other program, whatever type its number has, and `vmap` over radii is one after another."""
    traces = 0

    @jax.jit
    def project(perturbation_set: Any, theta: Any) -> Any:
        nonlocal traces
        traces += 1
        return perturbation_set.project(case.image, theta)

    theta, typical = case.call("sample", jax.random.key(3), of=case.set.with_radius(2 * case.radius)), case.radius
    radii = [np.float64(0.2 * typical), np.float32(0.4 * typical), jnp.asarray(0.7 * typical), typical]
    one_by_one = [project(case.set.with_radius(r), theta) for r in radii]
    project(case.set.with_radius(1), theta)  # an int too
    hold(traces == 1, f"{traces} traces of five radii")

    @jax.jit
    def mapped(radii: Any) -> Any:
        return jax.vmap(lambda r: case.set.with_radius(r).project(case.image, theta))(radii)

    together = mapped(jnp.asarray(radii, jnp.float32))
    for i, single in enumerate(one_by_one):
        found = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        near(found, single, f"the projection at radius number {i} under vmap", atol=2e-6 * max(1.0, typical))


@law(SET_LAWS, ONE_IMAGE)
def structure_and_dtype_are_kept(case: SetCase) -> None:
    """All methods that give parameters give them in the structure, shapes and dtypes of `init`."""
    theta = case.call("init")
    ones = jax.tree.map(jnp.ones_like, theta)
    same(case.call("sample", jax.random.key(0)), theta, "sample")
    same(case.call("project", theta), theta, "project")
    same(case.call("ascend", theta, ones, jnp.asarray(0.1)), theta, "ascend")
    same(case.call("pullback", theta, case.image), theta, "pullback")


@law(SET_LAWS, ONE_IMAGE)
def text_names_the_radius(case: SetCase) -> None:
    """`str` ends with the radius, as it was written."""
    text, other = str(case.set), str(case.set.with_radius(jnp.asarray(0.25)))
    hold(other.endswith("(0.25)"), f"radius 0.25 gives the text {other!r}")
    hold(written(case.set.radius) in text, f"radius {case.radius:g} gives the text {text!r}")


@law(SET_LAWS, ONE_IMAGE)
def bad_radii_are_refused(case: SetCase) -> None:
    """A radius that is negative or not finite is a ValueError, one that is no real number a TypeError."""
    bad: dict[type[Exception], tuple[Any, ...]] = {
        ValueError: (-1, -1e-9, float("nan"), float("inf"), np.float32(-2)),
        TypeError: ("0.1", True, 1j),
    }
    for kind, radii in bad.items():
        rule = "be a real number" if kind is TypeError else "be finite and >= 0"
        for radius in radii:
            try:
                case.set.with_radius(radius)
            except kind as error:
                hold(f"radius must {rule}; got" in str(error), f"radius {radius!r} is refused by {str(error)!r}")
            else:
                hold(False, f"radius {radius!r} is taken")
