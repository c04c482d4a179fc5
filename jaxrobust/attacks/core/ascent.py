"""What the searches of a set's parameters share: one state, one way to book points, and the loop along one gradient."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.base import Attack, Best, Points, check_field, is_better
from jaxrobust.losses import LOSSES, followed
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = [
    "Ascent",
    "Booking",
    "Loss",
    "QueryAttack",
    "SearchState",
    "adam_step",
    "check_loss",
    "check_run",
    "finite",
    "name_of",
    "never_nan",
    "no_moments",
    "run_in_words",
    "scaled",
    "step_sizes",
]

Loss = str | Callable[..., Any]
Parameters = Any
Scalar = Float[Array, ""]


@pytree(
    "x",
    "goal",
    "aim",
    "theta",
    "memory",
    "asked",
    "loss",
    "best_theta",
    "best_loss",
    "best_logits",
    "booked",
    "success",
    "non_finite",
)
class SearchState:
    """One example's search: where it stands (θ, memory, asked) and what it has booked (best_*, success)."""

    x: Any
    goal: Criterion  # what counts as success
    aim: Criterion  # what the loss is about
    theta: Any
    memory: Any  # the attack's own: a velocity, moments, a multiplier, a key
    asked: Any
    loss: Any  # the highest of the points last asked, in the form that is followed; see `losses.followed`
    best_theta: Any
    best_loss: Any  # likewise, less what the search holds against the point
    best_logits: Any
    booked: Any  # whether any point was; until then the best one is the clean image
    success: Any
    non_finite: Any


class Booking(Attack):
    """An attack that asks parameters of its set and keeps the best: success first, then the highest loss."""

    loss: Loss = "cross_entropy"

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether all asks have been made."""
        return state.asked >= self.asks

    def best(self, state: SearchState) -> Best:
        """The best point, the clean image among them."""
        image, size = self.set.apply(state.x, state.best_theta), self.set.size(state.x, state.best_theta)
        if not self.set.contains_clean:
            image, size = jnp.where(state.booked, image, state.x), jnp.where(state.booked, size, 0)
        return Best(
            image=image,
            success=state.success,
            loss=self._reported(self._booked(state), state.aim),
            size=size,
            forwards=self._forwards(state),
            backwards=self._backwards(state),
            non_finite=state.non_finite,
            parameters=state.best_theta,
            logits=state.best_logits,
            rank=state.best_loss,
        )

    def loss_of(self, state: SearchState) -> Scalar:
        """The highest loss of the points last asked."""
        return self._reported(state.loss, state.aim)

    def loss_at(
        self, state: SearchState, theta: Parameters, draws: Float[Array, "draws classes"]
    ) -> tuple[Scalar, Scalar]:
        """The loss and the rank of a point, means over draws of a random model's logits there."""

        def both(logits: Logits) -> tuple[Scalar, Scalar]:
            loss = self._loss(logits, state.aim)
            return self._reported(loss, state.aim), self._penalised(state.x, theta, loss, theta)[0]

        loss, rank = jax.vmap(both)(draws)
        return jnp.mean(loss), jnp.mean(rank)

    def _open(
        self, x: Image, goal: Criterion, logits: Logits, theta: Parameters, memory: Any, aim: Criterion | None = None
    ) -> SearchState:
        """The state in which the clean image is booked."""
        identity = self.set.init(x)
        aim = goal if aim is None else aim
        loss = self._loss(logits, aim)
        rank, _ = self._penalised(x, identity, loss, identity)
        return SearchState(
            x=x,
            goal=goal,
            aim=aim,
            theta=theta,
            memory=memory,
            asked=jnp.zeros((), jnp.int32),
            loss=loss,
            best_theta=identity,
            best_loss=rank,
            best_logits=logits,
            booked=jnp.zeros((), bool),
            success=goal.met(logits),
            non_finite=~jnp.all(jnp.isfinite(logits)),
        )

    def _book(
        self,
        state: SearchState,
        thetas: Parameters,
        loss: Float[Array, " queries"],
        logits: Float[Array, "queries classes"],
        admitted: Bool[Array, " queries"],
    ) -> SearchState:
        """The state after an ask of `thetas` (leading axis: queries); only admitted ones may become the best."""
        success = jax.vmap(state.goal.met)(logits) & admitted
        candidate = admitted & (success == jnp.any(success))
        place = jnp.argmax(jnp.where(candidate, loss, -jnp.inf))
        # where all candidates' losses are −∞, the first entry need not be one of them
        place = jnp.where(candidate[place], place, jnp.argmax(candidate))
        better = candidate[place] & is_better(success[place], loss[place], state.success, state.best_loss)
        return dataclasses.replace(
            state,
            asked=state.asked + 1,
            loss=jnp.max(loss),
            best_theta=jax.tree.map(lambda new, old: jnp.where(better, new[place], old), thetas, state.best_theta),
            best_loss=jnp.where(better, loss[place], state.best_loss),
            best_logits=jnp.where(better, logits[place], state.best_logits),
            booked=state.booked | better,
            success=state.success | success[place],
            non_finite=state.non_finite | ~jnp.all(jnp.isfinite(logits)),
        )

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        return self.width * state.asked

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        return jnp.minimum(state.asked, self.asks - 1)

    def _penalised(self, x: Image, theta: Parameters, loss: Scalar, gradient: Parameters) -> tuple[Scalar, Parameters]:
        """The loss by which points are ranked and the gradient that is followed, from those of the model."""
        return loss, gradient

    def _booked(self, state: SearchState) -> Scalar:
        """The loss of the best point, in the form that is followed."""
        return state.best_loss

    def _loss(self, logits: Logits, aim: Criterion) -> Scalar:
        """The loss in the form that is followed."""
        return never_nan(followed(self.loss).value(logits, aim))

    def _reported(self, loss: Scalar, aim: Criterion) -> Scalar:
        """The loss itself, from the form that is followed."""
        return followed(self.loss).loss(loss, aim)

    def _radius(self, x: Image) -> Scalar:
        return jnp.asarray(self.set.radius).astype(x.dtype)

    def __str__(self) -> str:
        return f"{self._method} in {self.set}, {self._run}, {name_of(self.loss)}"

    @property
    def _method(self) -> str:
        """How the attack is called in text."""
        return type(self).__name__

    @property
    def _run(self) -> str:
        """How long it searches, in text."""
        return f"{self.asks} asks"


class QueryAttack(Booking):
    """An attack without gradients. Its points may be classified anywhere, see `evaluate.HostModel`."""

    @property
    def gradients(self) -> int:
        """None."""
        return 0

    @property
    def asks_to_last(self) -> int:
        """All of them: training wants the worst point of all."""
        return self.asks

    def cotangents(self, state: Any, logits: Float[Array, "queries classes"]) -> Array:
        """None: no gradients are used."""
        return jnp.zeros((self.width, 0, logits.shape[-1]), logits.dtype)

    def last(self, state: Any) -> Image:
        """The worst point, for training."""
        return self.best(state).image

    def _backwards(self, state: SearchState) -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32)


class Ascent(Booking):
    """An attack that asks its iterate θ, books it, and moves it along the gradient of its loss; subclasses say how.

    Iterates that `_admits` refuses are asked, but never booked.
    """

    steps: int
    start: str = "random"

    @property
    def asks(self) -> int:
        """Every iterate is asked, the start and the last one too."""
        return self.steps + 1

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """The start of one run; the clean image is booked first."""
        theta = self._first(key, x)
        return self._open(x, goal, logits, theta, self._memory(x, theta), self._aim(goal, logits))

    def ask(self, state: SearchState) -> Points:
        """The current iterate."""
        return self.set.apply(state.x, state.theta)[None]

    def cotangents(self, state: SearchState, logits: Float[Array, "queries classes"]) -> Array:
        """The gradient of the loss at the logits."""
        return jax.grad(self._loss)(logits[0], state.aim)[None, None]

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate if it is better, then moves on."""
        return self._told(state, self._loss(logits[0], state.aim), logits, gradients)

    def tell_draws(
        self,
        state: SearchState,
        logits: Float[Array, "queries classes"],
        draws: Float[Array, "queries draws classes"],
        gradients: Array,
    ) -> SearchState:
        """The same by the mean of the draws' losses, in the form that is followed."""
        loss = jnp.mean(jax.vmap(self._loss, (0, None))(draws[0], state.aim))
        return self._told(state, loss, logits, gradients)

    def _told(self, state: SearchState, loss: Scalar, logits: Array, gradients: Array) -> SearchState:
        gradient = self.set.pullback(state.x, state.theta, finite(gradients[0, 0]))
        rank, gradient = self._penalised(state.x, state.theta, loss, gradient)
        theta, memory = self._move(state, gradient)
        admitted = self._admits(state.x, state.theta)
        asked = jax.tree.map(lambda leaf: leaf[None], state.theta)
        booked = self._book(state, asked, rank[None], logits, admitted[None])
        return dataclasses.replace(booked, theta=theta, memory=memory, loss=loss)

    @abc.abstractmethod
    def _move(self, state: SearchState, gradient: Parameters) -> tuple[Parameters, Any]:
        """The next θ and memory, from the gradient in θ of what is ascended."""

    def _first(self, key: Key, x: Image) -> Parameters:
        """The start of a run."""
        return self.set.sample(key, x) if self.start == "random" else self.set.init(x)

    def _memory(self, x: Image, theta: Parameters) -> Any:
        """What the attack remembers from step to step."""
        return None

    def _aim(self, goal: Criterion, logits: Logits) -> Criterion:
        """What the loss is about, given the clean logits."""
        return goal

    def _admits(self, x: Image, theta: Parameters) -> Bool[Array, ""]:
        """Whether an iterate may be booked; those of attacks that project always may."""
        return jnp.ones((), bool)

    @property
    def _run(self) -> str:
        return run_in_words(self.steps, self.start, self.restarts)


def check_run(attack: Any, *starts: str) -> None:
    """The settings that all searches with steps have, at the door; `starts` are those it knows."""
    check_field(attack.set)
    check_loss(attack.loss)
    _checks.count("steps", attack.steps)
    _checks.count("restarts", attack.restarts)
    _checks.choice("start", attack.start, starts)
    if attack.restarts > 1 and attack.start == "clean":
        raise ValueError(f"restarts must be 1 without a random start; got {attack.restarts} equal runs")


def check_loss(loss: Any) -> None:
    """A loss by its name or as a function, at the door."""
    if not callable(loss):
        _checks.choice("loss", loss, LOSSES, otherwise=" or a function of (logits, criterion)")


def run_in_words(steps: int, start: str, restarts: int) -> str:
    """How long a search is, and where it starts."""
    start = "" if start == "clean" else f", {start} start"
    runs = "" if restarts == 1 else f", {restarts} restarts"
    return f"{'1 step' if steps == 1 else f'{steps} steps'}{start}{runs}"


def name_of(loss: Loss) -> str:
    """A loss in text."""
    return (loss if isinstance(loss, str) else getattr(loss, "__name__", "custom loss")).replace("_", "-")


def scaled(absolute: Number | None, relative: Number | None, radius: Scalar) -> Scalar:
    """A step in the unit of the radius, given so or as a fraction of it."""
    if absolute is not None:
        return jnp.asarray(absolute).astype(radius.dtype)
    return jnp.asarray(relative).astype(radius.dtype) * radius


def step_sizes(step_size: Number | None, relative: Number | None, default: Number) -> tuple[Number, Number]:
    """The two ways to give a step size, which exclude each other; a fraction of the radius where neither is given."""
    if step_size is not None and relative is not None:
        raise ValueError(f"step_size and relative_step_size exclude each other; got {step_size} and {relative}")
    return step_size, default if step_size is None and relative is None else relative


def adam_step(
    gradient: Any,
    moments: tuple[Any, Any],
    count: Array,
    *,
    decay: Number = 0.9,
    square_decay: Number = 0.999,
    epsilon: Number = 1e-8,
) -> tuple[Any, tuple[Any, Any]]:
    """Adam's direction m̂/(√v̂ + ε) along a gradient, any pytree, and its moments, after `count` gradients before it."""
    mean = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, moments[0], gradient)
    square = jax.tree.map(lambda v, g: square_decay * v + (1 - square_decay) * g * g, moments[1], gradient)
    number = (count + 1).astype(jnp.result_type(*jax.tree.leaves(gradient)))
    unbiased, unbiased_square = 1 - decay**number, 1 - square_decay**number
    direction = jax.tree.map(lambda m, v: (m / unbiased) / (jnp.sqrt(v / unbiased_square) + epsilon), mean, square)
    return direction, (mean, square)


def no_moments(theta: Any) -> tuple[Any, Any]:
    """Adam's moments before the first gradient."""
    zeros = jax.tree.map(jnp.zeros_like, theta)
    return zeros, zeros


def never_nan(loss: Scalar) -> Scalar:
    """The loss, −∞ in place of NaN, so that such a point is never the best."""
    return jnp.where(jnp.isnan(loss), -jnp.inf, loss)


def finite(values: Array) -> Array:
    """The values, 0 in place of NaN and infinity."""
    return jnp.where(jnp.isfinite(values), values, 0)
