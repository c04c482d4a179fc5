"""What every perturbation set promises: laws of a set and an image, run on any class by `check_set`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

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


class Measured(NamedTuple):
    """Whether θ are members, their images and their sizes, in NumPy's arrays."""

    contains: np.ndarray
    apply: np.ndarray
    size: np.ndarray


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
        return jax.device_put(np.asarray(KINDS[self.kind](self.shape), np.float32))

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
        end = self.call("ascend", start, self.gradient, self.radius)
        return _between(start, end, np.asarray(scales, np.float32))

    def call(self, method: str, *arguments: Any, of: PerturbationSet | None = None) -> Any:
        """A compiled method at the image: one program a set, method and shape, whatever the radius."""
        if method == "sample":
            return _call(of or self.set, method, *arguments, self.image)
        return _call(of or self.set, method, self.image, *arguments)

    def mapped(self, method: str, thetas: Any, *, of: PerturbationSet | None = None) -> Any:
        """A compiled method of many θ."""
        return _mapped(of or self.set, method, self.image, thetas)

    def measured(self, thetas: Any, *, many: bool = False, of: PerturbationSet | None = None) -> Measured:
        """What can be said of θ, or of many, by one program."""
        return Measured(*map(np.asarray, _measured(of or self.set, self.image, thetas, many)))

    def __str__(self) -> str:
        return f"{self.set} on a {self.kind} image of shape {self.shape}"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _normal(seed: int, shape: tuple[int, ...]) -> Any:
    """A gradient in the image's type, also where JAX makes float64."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def _call(perturbation_set: Any, method: str, *arguments: Any) -> Any:
    return getattr(perturbation_set, method)(*arguments)


@functools.partial(jax.jit, static_argnums=1)
def _mapped(perturbation_set: Any, method: str, image: Any, thetas: Any) -> Any:
    return jax.vmap(getattr(perturbation_set, method), (None, 0))(image, thetas)


def _measure(perturbation_set: Any, image: Any, thetas: Any, many: bool) -> Any:
    def one(theta: Any) -> Any:
        return [getattr(perturbation_set, method)(image, theta) for method in Measured._fields]

    return jax.vmap(one)(thetas) if many else one(thetas)


_measured = jax.jit(_measure, static_argnums=3)


@jax.jit
def _between(start: Any, end: Any, scales: Any) -> Any:
    return jax.vmap(lambda scale: jax.tree.map(lambda a, b: a + scale * (b - a), start, end))(scales)


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
    found = case.measured(case.call("init"))
    if case.set.contains_clean:
        near(found.apply, case.image, "the image of init", atol=1e-6)
        near(found.size, 0.0, "the size of init")
    hold(found.contains, "init is no member")


@law(SET_LAWS, ONE_IMAGE)
def same_parameters_give_the_same(case: SetCase) -> None:
    """Parameters make one image, also when they are traced anew: what is random comes from the key of `sample`."""
    theta = case.call("sample", jax.random.key(5))
    again = jax.jit(lambda *arguments: _measure(*arguments, many=False))
    found = Measured(*again(case.set, case.image, theta))
    near(found.apply, case.measured(theta).apply, "the image of a sample, applied again,")


@law(SET_LAWS)
def samples_are_members(case: SetCase) -> None:
    """Samples are members, their images float32 images in [0, 1]."""
    inside, images, sizes = case.measured(case.members, many=True)
    hold(inside, f"{int((~inside).sum())} of {MANY} samples are no members; sizes up to {sizes.max():g}")
    hold(images.shape == (MANY, *case.shape), f"images of shape {images.shape[1:]}")
    hold(images.dtype == case.image.dtype, f"images of {images.dtype}")
    low, high = float(images.min()), float(images.max())
    hold(low >= 0 and high <= 1, f"images in [{low:g}, {high:g}]")


@law(SET_LAWS, ONE_IMAGE)
def samples_differ(case: SetCase) -> None:
    """Samples of different keys are different images."""
    rows = case.measured(case.members, many=True).apply.reshape(MANY, -1)
    hold(len(np.unique(rows, axis=0)) == MANY, f"{len(np.unique(rows, axis=0))} images of {MANY} samples")


@law(SET_LAWS)
def projection_is_a_member_and_idempotent(case: SetCase) -> None:
    """Steps of a tenth, three and 10,000 radii are projected onto members, which another projection leaves alone."""
    for size in (0.1, 3.0, 1e4):
        far = case.call("ascend", case.call("init"), case.gradient, size * case.radius)
        near_ = case.call("project", far)
        what = f"the projection of a step of {size:g} radii"
        found = case.measured(near_)
        hold(found.contains, f"{what} is no member; its size is {found.size:g}")
        near(case.call("project", near_), near_, f"{what}, projected again,", atol=3e-6)


@law(SET_LAWS, ONE_IMAGE)
def projection_holds_at_any_scale(case: SetCase) -> None:
    """From 1e-10 to 1e20 times a step: what is projected is a member, and not nothing."""
    start, scales = case.call("init"), np.geomspace(1e-10, 1e20, MANY)
    found = case.mapped("project", case.along(scales))
    inside = case.measured(found, many=True).contains
    hold(inside, f"projections of steps scaled by {scales[~inside].tolist()} are no members")
    leaves = list(zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (found, start)), strict=True))
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
    sizes = case.measured(case.members, many=True).size
    hold(sizes <= case.radius * (1 + 1e-3), f"samples of sizes up to {sizes.max():g}")
    inside, _, sizes = case.measured(case.along(np.geomspace(0.1, 100, MANY)), many=True)
    wrong = inside & (sizes > case.radius * 1.01 + 1e-5)
    hold(~wrong, f"sizes of {sizes[wrong].tolist()} are members")


@law(SET_LAWS)
def gradients_are_finite(case: SetCase) -> None:
    """Gradients pulled back to the identity and to members are finite; to begin with, none is NaN."""
    at_sample = case.call("pullback", _first(case.members), _normal(1, case.shape))
    for what, tree in {"init": case.gradient, "a sample": at_sample}.items():
        for leaf in map(np.asarray, jax.tree.leaves(tree)):
            hold(np.isfinite(leaf), f"the gradient at {what} has {int((~np.isfinite(leaf)).sum())} NaN or infinities")


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], tree)


def _full(tree: Any, value: float) -> Any:
    """A pytree of these shapes and dtypes, all of one number."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), tree)


@law(SET_LAWS)
def zero_gradient_moves_nothing(case: SetCase) -> None:
    """A step along a gradient of zeros stays where it is."""
    theta = case.call("init")
    moved = case.call("ascend", theta, _full(theta, 0.0), 0.5)
    near(moved, theta, "a step along zero")


@law(SET_LAWS)
def radius_zero_is_the_clean_image(case: SetCase) -> None:
    """At radius 0 samples and projections are the clean image."""
    if not case.set.contains_clean:
        return
    nothing = case.set.with_radius(0.0)
    theta = case.call("sample", jax.random.key(0), of=nothing)
    far = case.call("ascend", theta, _full(theta, 1.0), 1.0, of=nothing)
    for what, one in {"a sample": theta, "a projection": case.call("project", far, of=nothing)}.items():
        near(case.measured(one, of=nothing).apply, case.image, f"{what} at radius 0", atol=1e-6)


@law(SET_LAWS)
def huge_radius_stays_in_the_box(case: SetCase) -> None:
    """At a radius of a million what is projected is a member still, images in [0, 1]."""
    wide = case.set.with_radius(1e6)
    theta = case.call("project", case.call("sample", jax.random.key(0), of=wide), of=wide)
    hold(case.measured(theta, of=wide).contains, "a projection at radius 1e6 is no member")


@law(SET_LAWS, ONE_IMAGE)
def small_steps_ascend(case: SetCase) -> None:
    """From a point where the set's map is smooth, a small projected step along a linear loss does not lower it."""
    gradient = np.asarray(_normal(2, case.shape))
    theta = case.call("sample", jax.random.key(5), of=case.set.with_radius(0.3 * case.set.radius))
    pulled = case.call("pullback", theta, gradient)
    moved = case.call("project", case.call("ascend", theta, pulled, 1e-3 * case.radius))
    before, after = (case.measured(one).apply for one in (theta, moved))
    gained = float(np.sum(gradient * (after - before)))
    hold(gained >= -1e-5, f"a step of a thousandth of the radius changes <g, x'> by {gained:g}")


@law(SET_LAWS)
def maximise_beats_every_sample(case: SetCase) -> None:
    """The linear maximiser, where there is one, is a member, and <gradient, ·> is nowhere larger."""
    if not hasattr(case.set, "maximise"):
        return
    gradient = case.call("pullback", case.call("init"), _normal(2, case.shape))
    best = case.call("maximise", gradient)
    found = case.measured(best)
    hold(found.contains, f"the maximiser is no member; its size is {found.size:g}")
    pairs = list(zip(*map(jax.tree.leaves, (gradient, case.members, best)), strict=True))
    largest = np.sum([np.asarray(some).reshape(MANY, -1) @ np.ravel(g) for g, some, _ in pairs], 0).max()
    reached = sum(np.vdot(g, one) for g, _, one in pairs)
    hold(largest <= reached + 1e-4, f"<g, θ> is {reached:g} at the maximiser and {largest:g} at a sample")


@law(SET_LAWS, ONE_IMAGE)
def distance_is_a_size(case: SetCase) -> None:
    """A member is at distance 0 from itself, and from the identity by its size."""
    theta = case.call("sample", jax.random.key(5))
    near(case.call("distance", theta, theta), 0.0, "a member's distance from itself", atol=1e-6 * case.radius)
    if case.set.contains_clean:
        apart = case.call("distance", theta, case.call("init"))
        near(apart, case.measured(theta).size, "a member's distance from the identity", rtol=1e-4)


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
    radii: list[Any] = [np.float64(0.2 * typical), np.float32(0.4 * typical), jnp.asarray(0.7 * typical), typical]
    one_by_one = [project(case.set.with_radius(r), theta) for r in radii]
    project(case.set.with_radius(1), theta)  # an int too
    hold(traces == 1, f"{traces} traces of five radii")

    @jax.jit
    def mapped(radii: Any) -> Any:
        return jax.vmap(lambda r: case.set.with_radius(r).project(case.image, theta))(radii)

    together = mapped(np.asarray([float(r) for r in radii], np.float32))
    for i, single in enumerate(one_by_one):
        found = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], together)
        near(found, single, f"the projection at radius number {i} under vmap", atol=2e-6 * max(1.0, typical))


@law(SET_LAWS, ONE_IMAGE)
def structure_and_dtype_are_kept(case: SetCase) -> None:
    """All methods that give parameters give them in the structure, shapes and dtypes of `init`."""
    theta = case.call("init")
    ones = _full(theta, 1.0)
    same(case.call("sample", jax.random.key(0)), theta, "sample")
    same(case.call("project", theta), theta, "project")
    same(case.call("ascend", theta, ones, 0.1), theta, "ascend")
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
