"""What every attack promises: laws of an attack on a small network, run on any class by `check_attack`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import attacks
from jaxrobust._checks import one_radius
from jaxrobust.attacks import Attack
from jaxrobust.attacks.core.engine import check_attack as check_kind
from jaxrobust.testing._laws import Laws, chosen, hold, law, near
from jaxrobust.types import AttackResult, Classifier, Code, Misclassified, Targeted

__all__ = ["ATTACK_LAWS", "BROKEN", "HOSTILE", "AttackCase", "broken_model", "check_attack", "measured"]

# the laws of an attack
ATTACK_LAWS: Laws = {}


def dense_net(params: Any, images: Any) -> Any:
    """One hidden layer with a smooth nonlinearity: quick to compile, and no convolution for loops to trip over."""
    return product(jax.nn.silu(product(images.reshape(images.shape[0], -1), params["hidden"])), params["out"])


def product(rows: Any, matrix: Any) -> Any:
    """rows @ matrix, every row rounded alike: XLA's own kernels round the last rows otherwise on some processors."""
    return jnp.sum(rows[:, :, None] * matrix[None], 1)


class _Counted:
    """`dense_net`, and how often it was traced."""

    traces = 0

    def __call__(self, params: Any, images: Any) -> Any:
        self.traces += 1
        return dense_net(params, images)


# one for all cases, which then share the programs of the forward pass
_counted = _Counted()


def dense_params(seed: int, shape: tuple[int, ...], classes: int) -> Any:
    """Random parameters of `dense_net`."""
    rng = np.random.default_rng(seed)
    return {
        "hidden": jax.device_put(rng.normal(size=(int(np.prod(shape)), 12)).astype(np.float32)),
        "out": jax.device_put(rng.normal(size=(12, classes)).astype(np.float32)),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class AttackCase:
    """An attack, and the small network on which its laws are tried: 8 random images, the last of a wrong label.

    Args:
        attack: the attack.
        shape: (H, W, C) of the images.
        classes: K of the network.
        wrap: from any classifier to one that the attack takes.
    """

    attack: Attack
    shape: tuple[int, ...] = (6, 5, 2)
    classes: int = 4
    wrap: Callable[[Any], Any] = lambda model: model

    @functools.cached_property
    def key(self) -> Any:
        """The run's key."""
        return jax.random.key(7)

    @functools.cached_property
    def model(self) -> Any:
        """The network."""
        return self.wrap(Classifier(_counted, dense_params(0, self.shape, self.classes)))

    @functools.cached_property
    def images(self) -> Any:
        """(8, H, W, C)."""
        return np.random.default_rng(1).random((8, *self.shape)).astype(np.float32)

    @functools.cached_property
    def clean(self) -> np.ndarray:
        """Logits (8, K) of the images."""
        return answers(self.model, self.images)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(8,): what the network says, but for the last."""
        labels = self.clean.argmax(-1).astype(np.int32)
        labels[-1] = (labels[-1] + 1) % self.classes
        return labels

    @functools.cached_property
    def result(self) -> AttackResult:
        """What the attack finds."""
        return self.run()

    @property
    def set(self) -> Any:
        """The attack's set when this network is attacked."""
        return self.attack.bound_to(self.model).set

    def run(self, order: Any = None, *, attack: Attack | None = None, key: Any = None, labels: Any = None) -> Any:
        """The attack, or another of its kind, on the images of these places in this order."""
        order = np.arange(len(self.images)) if order is None else np.asarray(order)
        goal = jax.tree.map(lambda leaf: leaf[order], self.labels if labels is None else labels)
        attack, key = self.attack if attack is None else attack, self.key if key is None else key
        found = attacks.run(attack, self.model, self.images[order], goal, key=key, indices=order)
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(found))
        return found if traced else jax.tree.map(np.asarray, found)  # which no program is needed to compare

    def booked(self, goal: Any) -> Any:
        """What the attack books of the clean images."""
        keys = attacks.example_keys(self.key, np.arange(len(self.images)))
        return _booked(self.attack.bound_to(self.model), keys, self.images, goal, self.clean)

    def __str__(self) -> str:
        return f"{type(self.attack).__name__} ({self.attack}) on {self.classes} classes of shape {self.shape}"


def check_attack(
    attack: Any,
    *,
    shape: tuple[int, int, int] = (6, 5, 2),
    classes: int = 4,
    model: Callable[[Any], Any] = lambda model: model,
    laws: Iterable[str] | None = None,
) -> None:
    """Run the laws of attacks on one: results are members, per-example keys decide, counts are true, nothing retraces.

    It attacks small random networks. Takes seconds to a minute, nearly all of it compilation, in proportion to the
    attack's steps where it is slow. In your tests, call it once for each of your attacks.

    Args:
        attack: of few steps, on a set of a typical radius.
        shape: (H, W, C) of the images that it is tried on.
        classes: K ≥ 2 of the networks.
        model: from any classifier to one that the attack takes, such as a random one for `eot`.
        laws: names of `ATTACK_LAWS`; by default all.

    Raises:
        AssertionError: a law does not hold; says which, of what class, and the numbers.
        TypeError: `attack` is no attack.
        ValueError: its set has a radius an image, or there is no such law.

    Example:
        >>> check_attack(jr.attacks.fgsm(jr.sets.Linf(0.1)), laws=["counts_are_the_schedule"])
    """
    check_kind(attack)
    one_radius(attack.set)
    case = AttackCase(attack, tuple(shape), classes, model)
    for one in chosen(ATTACK_LAWS, laws):
        one(case)


def answers(model: Any, images: Any) -> np.ndarray:
    """Logits (N, K) of a fresh forward pass."""
    return np.asarray(_forward_pass(model, images))


@jax.jit
def _forward_pass(model: Any, images: Any) -> Any:
    return model(images)


@jax.jit
def _booked(attack: Attack, keys: Any, images: Any, goal: Any, logits: Any) -> Any:
    return jax.vmap(attack.best)(jax.vmap(attack.init)(keys, images, goal, logits))


@jax.jit
def measured(perturbation_set: Any, images: Any, thetas: Any) -> Any:
    """Whether parameters are members, their images and their sizes, apart from any attack."""
    methods = (perturbation_set.contains, perturbation_set.apply, perturbation_set.size)
    return [jax.vmap(method)(images, thetas) for method in methods]


@law(ATTACK_LAWS)
def results_are_members_and_confirmed(case: AttackCase) -> None:
    """Images are those of the parameters, which are members of the said size; success is what a fresh forward says."""
    found = case.result
    hold(found.images.shape == case.images.shape, f"images of shape {found.images.shape}")
    hold(found.images.dtype == case.images.dtype, f"images of {found.images.dtype}")
    low, high = float(found.images.min()), float(found.images.max())
    hold(low >= 0 and high <= 1, f"images in [{low:g}, {high:g}]")
    _code_is_ran(found.code[:-1])
    if found.parameters is not None:
        _are_theirs(case, found)
    else:  # the size is all there is
        radius = float(case.attack.set.radius)
        hold(found.size <= radius * (1 + 1e-3), f"sizes {np.asarray(found.size).tolist()} of radius {radius:g}")
    fresh = answers(case.model, found.images).argmax(-1)
    wrong = (fresh != case.labels) != np.asarray(found.success)
    numbers = f"a fresh forward pass says {fresh[wrong]} of labels {case.labels[wrong]}"
    hold(~wrong, f"success is {found.success[wrong]} at images {np.flatnonzero(wrong)} where {numbers}")


def _code_is_ran(codes: Any) -> None:
    """Those of the engine for what an attack has booked wrongly are a failure, though it lets no user see it."""
    bad = {Code(int(code)).name for code in np.unique(np.asarray(codes))} - {"RAN", "NO_START"}
    hold(not bad, f"codes {sorted(bad)}: {[Code[name].message for name in sorted(bad)]}")


def _are_theirs(case: AttackCase, found: AttackResult) -> None:
    inside, applied, sizes = map(np.asarray, measured(case.set, case.images, found.parameters))
    hold(inside, f"images {np.flatnonzero(~inside)} are no members; sizes {sizes.tolist()}")
    moved = (np.asarray(found.images) != case.images).any(axis=(1, 2, 3)) | case.set.contains_clean
    near(applied[moved], found.images[moved], "the image of the parameters", atol=2e-5)
    near(sizes[moved], found.size[moved], "the size of the parameters", rtol=1e-5)


@law(ATTACK_LAWS)
def best_point_is_at_least_as_good_as_the_clean_image(case: AttackCase) -> None:
    """Where nothing better is found, x is returned: what is kept never has less success or loss than x."""
    _is_no_worse(case.result, case.booked(Misclassified(jnp.asarray(case.labels))))


def _is_no_worse(found: Any, clean: Any) -> None:
    hold(np.asarray(found.success) >= np.asarray(clean.success), "a success of the clean image is lost")
    gained = np.asarray(found.success) & ~np.asarray(clean.success)
    # two programs, and so two roundings of the same logits
    no_worse = gained | (np.asarray(found.loss) >= np.asarray(clean.loss) - 1e-5)
    hold(no_worse, f"losses {np.asarray(found.loss).tolist()} where x has {np.asarray(clean.loss).tolist()}")


@law(ATTACK_LAWS)
def misclassified_image_comes_back_unchanged(case: AttackCase) -> None:
    """An image that meets the criterion is returned as it is, of size 0, for one forward pass."""
    found = case.result
    hold(found.code[-1] == Code.ALREADY and found.success[-1], f"code {Code(int(found.code[-1])).name}")
    near(found.images[-1], case.images[-1], "the image", atol=1e-6)
    near(found.size[-1], 0.0, "its size")
    counts = int(found.forwards[-1]), int(found.backwards[-1])
    hold(counts == (1, 0), f"{counts} forward and backward passes")


@law(ATTACK_LAWS)
def counts_are_the_schedule(case: AttackCase) -> None:
    """Forward and backward passes are those of the schedule (`width`, `asks`, `gradients`, `restarts`)."""
    made, found = case.attack, case.result
    runs = made.runs(case.classes)
    schedule = (1 + made.width * made.asks * runs, made.gradients * runs)
    for name, most in zip(("forwards", "backwards"), schedule, strict=True):
        counts = np.asarray(getattr(found, name))[:-1]
        true = (counts > 0) & (counts <= most) if made.ends_early and most else counts == most
        hold(true, f"{name} {counts.tolist()} of {'at most ' * made.ends_early}{most}")


@law(ATTACK_LAWS)
def radius_zero_returns_the_clean_image(case: AttackCase) -> None:
    """At radius 0 nothing is found, and x returned."""
    if not case.set.contains_clean:
        return
    found = case.run(attack=case.attack.with_radius(0.0))
    near(found.images, case.images, "images at radius 0", atol=1e-6)
    near(found.success, np.arange(len(case.images)) == len(case.images) - 1, "success at radius 0")


@law(ATTACK_LAWS)
def neighbours_and_order_do_not_matter(case: AttackCase) -> None:
    """The same images in another order, one of them three times and others left out, give the same results."""
    order = np.array([3, 0, 5, 1, 1, 1, 6, 2])
    near(case.run(order), jax.tree.map(lambda leaf: leaf[order], case.result), "in another batch, ")


@law(ATTACK_LAWS)
def one_image_alone_is_the_same(case: AttackCase) -> None:
    """A batch of one gives what the image gets among others, to rounding."""
    alone, among = case.run([2]), jax.tree.map(lambda leaf: leaf[2:3], case.result)
    near(alone, among, "alone, ", atol=2e-4)


@law(ATTACK_LAWS)
def key_decides(case: AttackCase) -> None:
    """The same key gives the same result, and another one, if the attack is random, another."""
    near(case.run(), case.result, "with the same key again, ")
    if case.attack.random:
        same_images = np.array_equal(case.run(key=jax.random.key(8)).images, case.result.images)
        # in a small ball all starts may lead to one corner
        hold(not same_images or _start_anew(case), "another key gives the same images")


def _start_anew(case: AttackCase) -> bool:
    """Whether another key makes the attack ask other points at first."""
    attack, goal = case.attack.bound_to(case.model), Misclassified(jnp.asarray(case.labels))
    asked = [_asked(attack, key, case.images, goal, case.clean) for key in (case.key, jax.random.key(8))]
    return not np.array_equal(*asked)


@jax.jit
def _asked(attack: Attack, key: Any, images: Any, goal: Any, logits: Any) -> Any:
    keys = attacks.example_keys(key, jnp.arange(len(images)))
    return jax.vmap(attack.ask)(jax.vmap(attack.init)(keys, images, goal, logits))


@law(ATTACK_LAWS)
def nothing_is_traced_twice(case: AttackCase) -> None:
    """Another radius, step size, network, image, label or key is no other program."""
    made, other = case.attack, case.wrap(Classifier(_counted, dense_params(1, case.shape, case.classes)))
    case.run()
    before = _counted.traces
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    lowered = {name: 0.9 * value for name, value in values.items() if isinstance(value, float)}
    typical, places = float(made.set.radius), np.arange(len(case.images))
    for radius in (0.3 * typical, np.float32(0.4 * typical), 1, jnp.asarray(0.5 * typical)):
        again = dataclasses.replace(made, **lowered).with_radius(radius)  # type: ignore[type-var]
        attacks.run(again, other, 1 - case.images, 1 - case.labels % 2, key=jax.random.key(1), indices=places + 1)
    hold(_counted.traces == before, f"the network is traced {_counted.traces - before} times more")


@law(ATTACK_LAWS)
def radii_map(case: AttackCase) -> None:
    """`vmap` over the radius is one radius after the other."""
    radii = float(case.attack.set.radius) * np.array([0.1, 0.5, 1.0], np.float32)
    _ = case.result  # with it all that the case keeps is computed, which must not be under a trace

    @jax.jit
    def mapped(radii: Any) -> Any:
        return jax.vmap(lambda radius: case.run(attack=case.attack.with_radius(radius)))(radii)

    together = mapped(radii)
    for i, radius in enumerate(radii):
        single = case.run(attack=case.attack.with_radius(radius))
        near(
            jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], together),
            single,
            f"radius {radius:g} under vmap, ",
            atol=1e-3,
        )


@law(ATTACK_LAWS)
def every_example_has_its_own_radius(case: AttackCase) -> None:
    """Radii of shape (N,) give what each example has in a run of its radius alone."""
    radius, shares = float(case.attack.set.radius), np.resize([0.5, 1.0, 1.5], len(case.images))
    together = case.run(attack=case.attack.with_radius(radius * shares))
    for share in np.unique(shares):
        alone, rows = case.run(attack=case.attack.with_radius(radius * share)), shares == share
        here, there = (jax.tree.map(lambda leaf: np.asarray(leaf)[rows], found) for found in (together, alone))  # noqa: B023
        near(here, there, f"{share:g} times the radius for some, ", atol=1e-3)


@law(ATTACK_LAWS)
def targeted_runs_go_towards_the_target(case: AttackCase) -> None:
    """With given targets, if it takes them, success is the target, and images come nearer to it."""
    targets = np.argsort(case.clean, -1)[:, -2].astype(np.int32)
    targets[-1] = case.clean[-1].argmax()
    goal = Targeted(targets, case.labels)
    try:
        clean = case.booked(jax.tree.map(jnp.asarray, goal))
    except ValueError as error:
        hold("criterion" in str(error) or "target" in str(error), f"targets are refused by {str(error)!r}")
        return
    found = case.run(labels=goal)
    _code_is_ran(found.code[:-1])
    fresh = answers(case.model, found.images).argmax(-1)
    near(found.success, fresh == targets, f"success with targets {targets} and predictions {fresh}")
    _is_no_worse(found, clean)
    moved = (np.asarray(found.images) != case.images).any((1, 2, 3))
    before, after = (_margin(answers(case.model, images), targets)[moved] for images in (case.images, found.images))
    numbers = f"{after.tolist()}, at x {before.tolist()}"
    hold((after > before).any() or not moved.any(), f"the target's logit less the highest other is {numbers}")


def _margin(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The target's logit less the highest other (N,)."""
    others = np.where(np.arange(logits.shape[-1])[None] == targets[:, None], -np.inf, logits)
    return np.take_along_axis(logits, targets[:, None], -1)[:, 0] - others.max(-1)


class _Broken(NamedTuple):
    """Numbers of a broken network; all of them are one program."""

    scale: float = 0.0  # of the pixels
    shared: float = 0.0  # the share of all classes in the sum of the pixels
    quantised: bool = False
    # whether logits are finite at clean images, whose pixels are multiples of 1/64, and NaN at all others
    nan_around: bool = False

    def __call__(self, classes: int, z: Any) -> Any:
        on_grid = jnp.all(z * 64 == jnp.round(z * 64), 1, keepdims=True)
        z = jnp.where(jnp.logical_and(self.nan_around, jnp.logical_not(on_grid)), jnp.nan, z)
        z = jnp.where(self.quantised, jnp.round(z * 3), z)
        return self.scale * z[:, :classes] + self.shared * z.sum(1, keepdims=True)


HOSTILE = {
    "saturated": _Broken(1e4),
    "huge": _Broken(1e30),
    "constant": _Broken(),
    "quantised": _Broken(1.0, quantised=True),
    "ties": _Broken(shared=1.0),
}
BROKEN = {**HOSTILE, "nan": _Broken(math.nan), "nan_around": _Broken(1.0, nan_around=True)}


@functools.cache
def _forward(classes: int) -> Callable[[Any, Any], Any]:
    return lambda broken, images: broken(classes, images.reshape(images.shape[0], -1))


def broken_model(name: str, classes: int) -> Classifier:
    """One of `BROKEN`, all of which are one program.

    Args:
        name: its name.
        classes: K.

    Returns:
        The classifier, whose logits are made of the first K pixels.
    """
    return Classifier(_forward(classes), jax.tree.map(jnp.asarray, BROKEN[name]))


@law(ATTACK_LAWS)
def survives_broken_models(case: AttackCase) -> None:
    """Without gradients, constant, with ties, huge, NaN: finite members come back, and no false success."""
    shape = case.shape
    images = np.stack([np.zeros(shape), np.ones(shape), np.random.default_rng(0).integers(0, 65, shape) / 64])
    images, labels = images.astype(np.float32), np.array([0, 1, 0], np.int32)
    for name in BROKEN:
        network = case.wrap(broken_model(name, case.classes))
        found = attacks.run(case.attack, network, images, labels, key=case.key, check=False)
        found = jax.tree.map(np.asarray, found)
        fresh, clean = (answers(network, x) for x in (found.images, images))
        on = f"on the model that is {name}, "
        hold(np.isfinite(found.images), f"{on}images are not finite")
        low, high = float(found.images.min()), float(found.images.max())
        hold(low >= 0 and high <= 1, f"{on}images lie in [{low:g}, {high:g}]")
        hold(np.isfinite(found.size), f"{on}sizes are {np.asarray(found.size).tolist()}")
        if found.parameters is not None:
            members = measured(case.attack.bound_to(network).set, images, found.parameters)[0]
            hold(members, f"{on}images {np.flatnonzero(~np.asarray(members))} are no members")
        success, code = np.asarray(found.success), np.asarray(found.code)
        near(success, np.isfinite(fresh).all(1) & (fresh.argmax(-1) != labels), f"{on}success")
        near(code == Code.ALREADY, np.isfinite(clean).all(1) & (clean.argmax(-1) != labels), f"{on}ALREADY")
        if name in ("constant", "ties"):  # the first class, wherever one goes
            near(success, labels != 0, f"{on}success")
        if name == "nan":
            hold(code == Code.NON_FINITE, f"{on}codes are {code.tolist()}")
            near(found.images, images, f"{on}images")
