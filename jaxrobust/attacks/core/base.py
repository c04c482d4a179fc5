"""The face every attack shows: it asks for points and is told logits and gradients, about one image at a time."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Classifier, Criterion, Image, Key, Logits, Number, pytree

__all__ = ["KNOWLEDGE", "REGISTRY", "Attack", "Best", "Knowledge", "check_field", "check_set", "is_better", "register"]

Knowledge = Literal["gradients", "scores", "decisions"]
# what the adversary must see of the model, from the most to the least
KNOWLEDGE: tuple[Knowledge, ...] = ("gradients", "scores", "decisions")

State = Any
Points = Float[Array, "queries height width channels"]


@pytree("image", "success", "loss", "size", "forwards", "backwards", "non_finite", "parameters", "logits", "rank")
class Best:
    """What an attack has booked for one example so far.

    Args:
        image: (H, W, C), the best point seen: one that meets the criterion first, then the highest rank.
        success: whether it met the criterion when it was seen.
        loss: the attack's loss there.
        size: the perturbation's size there, in the unit of the set's radius.
        forwards: points asked so far that were meant.
        backwards: gradients used so far.
        non_finite: whether any logits seen were NaN or infinite.
        parameters: the set's parameters θ of the image, or None where they are not kept.
        logits: (K,), what the model said of the image when it was seen, or None where it is not kept.
        rank: what the search follows there, by which points of equal success are ranked; it tells points apart whose
            loss has vanished, see `losses.followed`. By default the loss.
    """

    image: Float[Array, "*batch height width channels"]
    success: Bool[Array, "*batch"]
    loss: Float[Array, "*batch"]
    size: Float[Array, "*batch"]
    forwards: Int[Array, "*batch"]
    backwards: Int[Array, "*batch"]
    non_finite: Bool[Array, "*batch"]
    parameters: Any = None
    logits: Any = None
    rank: Any = None

    def __post_init__(self) -> None:
        if self.rank is None:
            object.__setattr__(self, "rank", self.loss)


def is_better(success: Array, rank: Array, old_success: Array, old_rank: Array) -> Array:
    """Whether a point is to be booked in place of the old one: success first, then the higher rank."""
    return (success & ~old_success) | ((success == old_success) & (rank > old_rank))


class Attack(abc.ABC):
    """How the adversary searches, about one image; an attack never calls the model, the engine does.

    The engine calls `init` once with the clean logits, which are known anyway; then, `asks` times or until `done`:
    `ask` (the points to classify), `cotangents` (the directions in logit space to pull back to the points) and
    `tell`, which first books the points that were asked and then moves. The last ask only books, so its gradients
    are zeros that the compiler drops.

    Fields that are numbers are traced, structure is static. `restarts` runs start from independent keys, and the
    engine keeps the best of them.
    """

    set: PerturbationSet

    # independent runs; static
    restarts: int = 1
    # whether a run may be over before its last ask, so that the schedule only bounds what it costs; static
    ends_early = False
    # whether the point it keeps is the nearest success, so that sizes are distances to the decision boundary; static
    minimum_norm = False
    # whether it searches from a point that meets the criterion, and does nothing where it finds none; its loss is −∞
    # then, and only then; static
    needs_start = False
    # whether what it sees of a point is one draw of the model among many, so that a success seen may be luck; static
    sees_draws = False

    @property
    def first_success_is_final(self) -> bool:
        """Whether a first success may end an example's search, static: not under randomness, where the engines go on
        whatever they are told, and by default not where the nearest success is wanted.
        """
        return not (self.sees_draws or self.minimum_norm)

    @property
    def random(self) -> bool:
        """Whether runs differ by their keys, static; without it more of them would be equal."""
        return getattr(self, "start", "random") != "clean"

    @property
    def width(self) -> int:
        """Points asked at once (q), static."""
        return 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of points that asks may have, rising to `width`, static; meant points come first."""
        return (self.width,)

    @property
    @abc.abstractmethod
    def asks(self) -> int:
        """The largest number of asks of one run, static."""

    @property
    def gradients(self) -> int:
        """The largest number of image gradients of one run, static: one a point, and none for the last ask."""
        return self.width * (self.asks - 1)

    @property
    def bookings(self) -> int:
        """Asks at the end of a run that only book, whose gradients nobody uses, static."""
        return 1

    @property
    def knowledge(self) -> Knowledge:
        """What the adversary must see of the model: its gradients, else its logits; some override it by the label."""
        return "gradients" if self.gradients else "scores"

    def runs(self, classes: int) -> int:
        """Runs that have something to do on a model of K = `classes` classes, static: the first of the `restarts`."""
        return self.restarts

    @property
    def asks_to_last(self) -> int:
        """Asks before `last` is known: all but the one that only books, unless it takes that one to choose."""
        return self.asks - 1

    @abc.abstractmethod
    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> State:
        """The state before the first ask: draws and arranges only, given the clean image's logits (K,)."""

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> State:
        """`init` of run number `restart` (traced), with that run's own key; attacks whose runs differ by more, such as
        by target, override it.
        """
        return self.init(key, x, goal, logits)

    @abc.abstractmethod
    def ask(self, state: State) -> Points:
        """The points (q, H, W, C) to classify next."""

    def meant(self, state: State) -> Bool[Array, " queries"]:
        """Which of the points asked next are looked at and counted: all of them, unless a chunk is not full."""
        return jnp.ones(self.width, bool)

    @abc.abstractmethod
    def cotangents(self, state: State, logits: Float[Array, "queries classes"]) -> Array:
        """Directions (q, m, K) in logit space to pull back; m = 0 for an attack that uses no gradients."""

    @abc.abstractmethod
    def tell(self, state: State, logits: Float[Array, "queries classes"], gradients: Array) -> State:
        """The state after booking the points asked, given logits (q, K) and image gradients (q, m, H, W, C)."""

    def tell_draws(
        self,
        state: State,
        logits: Float[Array, "queries classes"],
        draws: Float[Array, "queries draws classes"],
        gradients: Array,
    ) -> State:
        """`tell` of a random model's mean prediction, given its draws too; attacks that decide by their loss take the
        mean over the draws of what they follow.
        """
        return self.tell(state, logits, gradients)

    @abc.abstractmethod
    def done(self, state: State) -> Bool[Array, ""]:
        """Whether nothing is left to ask."""

    @abc.abstractmethod
    def best(self, state: State) -> Best:
        """What has been booked."""

    @abc.abstractmethod
    def loss_of(self, state: State) -> Float[Array, ""]:
        """The loss at the point last asked, for pictures of loss against step."""

    def last(self, state: State) -> Image:
        """The point that would be asked next: what adversarial training trains on."""
        return self.ask(state)[0]

    def loss_at(
        self, state: State, theta: Any, draws: Float[Array, "draws classes"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The loss and the rank to be booked at a point, means over draws of a random model's logits there; `eot` asks
        for them.
        """
        raise NotImplementedError(f"loss_at must be defined for an attack under eot; {type(self).__name__} has none")

    def bound_to(self, model: Classifier) -> Attack:
        """The attack when `model` is attacked; see `PerturbationSet.bound_to`. The engines call it."""
        return cast(Attack, dataclasses.replace(cast(Any, self), set=self.set.bound_to(model)))

    def joins(self, model: Classifier) -> bool:
        """Whether one pass of the model serves the loss and the set's distance, by `joint_cotangents`, `joint_tell`.

        They are what `cotangents` and `tell` are, for an attack of one query whose run is not booked, as in training.
        """
        return False

    def joint_cotangents(self, state: Any, logits: Float[Array, " classes"], maps: Any, clean: Any) -> tuple[Any, Any]:
        """The gradient of what is followed at the logits and at the activations, which are those of one image each.

        Args:
            state: the state.
            logits: of the point asked.
            maps: its activations, (h_l, w_l, c_l) each.
            clean: those of the clean image.

        Returns:
            (classes,), and what has the maps' shapes.
        """
        raise NotImplementedError(f"joint_cotangents must be defined where joins is true; {type(self).__name__} is")

    def joint_tell(self, state: Any, gradient: Image, maps: Any) -> Any:
        """The next state, from the gradient in the image of what is followed, and the activations of the point."""
        raise NotImplementedError(f"joint_tell must be defined where joins is true; {type(self).__name__} is")

    def with_radius(self, radius: Number) -> Attack:
        """The same attack on the same set with another radius; traced radii are welcome and never retrace."""
        return cast(Attack, dataclasses.replace(cast(Any, self), set=self.set.with_radius(radius)))


def check_set(set: Any) -> None:
    """That a function which makes an attack was given a set."""
    if not isinstance(set, PerturbationSet):
        raise TypeError(f"set must be a perturbation set such as Linf(8 / 255); got {_checks.told(set)}")
    # not when the set is built, since JAX rebuilds pytrees around None
    if getattr(set, "radius", 0.0) is None:
        raise TypeError(f"set must have a number as its radius; got {type(set).__name__} of radius None")


def check_field(set: Any) -> None:
    """The same for a field of an attack: JAX rebuilds pytrees around placeholders (objects, None, axes), which pass."""
    if isinstance(set, (str, float, Attack)) or callable(set):
        check_set(set)


class Entry(NamedTuple):
    """A registered attack: how to make it from a set, with its defaults, the name of a set that suits it, the public
    function that makes it, what it is to be used for, and what makes of any classifier one that it attacks.
    """

    make: Callable[[PerturbationSet], Attack]
    on: str
    factory: Callable[..., Any]
    use: str
    model: Callable[[Classifier], Classifier]

    def __call__(self, set: PerturbationSet) -> Attack:
        return self.make(set)


# every law of the tests runs over it
REGISTRY: dict[str, Entry] = {}


def register(
    name: str,
    make: Callable[[PerturbationSet], Attack],
    *,
    on: str = "linf",
    factory: Callable[..., Any] | None = None,
    use: str = "",
    model: Callable[[Classifier], Classifier] = lambda model: model,
) -> None:
    """Enter an attack into the table over which laws are tested and tables are made.

    Args:
        name: how the attack is called in suites and command lines.
        make: from a set to the attack with its defaults.
        on: the registered set on which the laws are tested.
        factory: the public function that `make` calls, where it is neither `make` nor what `make` is a partial of.
        use: what it is recommended for, in a sentence; of several entries of one factory the first says it.
        model: from any classifier to one that the attack takes; by default it takes all.

    Raises:
        ValueError: the name is taken.
    """
    if name in REGISTRY:
        raise ValueError(f"name must be new in the registry of attacks; got {name!r} again")
    made_by: Callable[..., Any] = getattr(make, "func", make) if factory is None else factory
    REGISTRY[name] = Entry(make, on, made_by, use, model)
