"""Several attacks as one: they run one after another on an example, and the worst point of all is kept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.compose.runs import OneRun
from jaxrobust.attacks.core.ascent import Loss, check_loss, never_nan
from jaxrobust.attacks.core.base import KNOWLEDGE, Attack, Best, Knowledge, is_better, register
from jaxrobust.attacks.core.minimum import choose
from jaxrobust.attacks.gradient.pgd import pgd
from jaxrobust.losses import followed
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.one_of import OneOf
from jaxrobust.types import Classifier, Criterion, Image, Key, Logits, Number, pytree

__all__ = ["WorstOf", "worst_of"]


@pytree("x", "goal", "states", "idle", "turn", "kept", "loss")
class WorstOfState:
    """One example's search: the states of all attacks, which have no such run, whose turn it is, and the worst point of
    those whose turn is over.
    """

    x: Any
    goal: Criterion
    states: tuple[Any, ...]
    idle: Any
    turn: Any
    kept: Best
    loss: Any  # at the first point last asked


@pytree("attacks", "radius")
class WorstOf(Attack):
    """Attacks that take turns on an example; see `worst_of`.

    Args:
        attacks: the attacks, of equal `restarts`.
        radius: None where all attacks search one set, whose radius then is the attack's; else what all their radii are
            multiplied by.
        loss: what ranks points among those that meet the criterion, and among those that do not.
        until_success: whether an attack has its turn only where none before has met the criterion (static).
    """

    attacks: tuple[Attack, ...]
    radius: Number | None = None
    loss: Loss = "cross_entropy"
    until_success: bool = False

    def __post_init__(self) -> None:
        check_loss(self.loss)
        object.__setattr__(self, "radius", _checks.number("radius", self.radius))

    @property
    def set(self) -> PerturbationSet:  # type: ignore[override]
        """The common set, or one of several."""
        sets = tuple(attack.set for attack in self.attacks)
        return sets[0] if self.radius is None else OneOf(sets, self.radius)

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """Runs of every attack: the r-th of each comes in the r-th of the whole."""
        return self.attacks[0].restarts

    def runs(self, classes: int) -> int:
        """As many as the attack that has most."""
        return max(attack.runs(classes) for attack in self.attacks)

    @property
    def ends_early(self) -> bool:  # type: ignore[override]
        """Whether success ends it, or any attack may end early or have fewer runs than others."""
        return (
            self.until_success
            or any(attack.ends_early for attack in self.attacks)
            or len({attack.runs(2) for attack in self.attacks}) > 1
        )

    @property
    def sees_draws(self) -> bool:  # type: ignore[override]
        """Whether any of the attacks does."""
        return any(attack.sees_draws for attack in self.attacks)

    @property
    def needs_start(self) -> bool:  # type: ignore[override]
        """Whether all of the attacks do."""
        return all(attack.needs_start for attack in self.attacks)

    @property
    def random(self) -> bool:
        """Whether any of the attacks is."""
        return any(attack.random for attack in self.attacks)

    @property
    def width(self) -> int:
        """As many as the attack that asks most points at once."""
        return max(attack.width for attack in self.attacks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Those of all attacks."""
        return tuple(sorted({width for attack in self.attacks for width in attack.widths}))

    @property
    def asks(self) -> int:
        """Those of all attacks."""
        return sum(attack.asks for attack in self.attacks)

    @property
    def asks_to_last(self) -> int:
        """All of them: training wants the worst point of all."""
        return self.asks

    @property
    def gradients(self) -> int:
        """Those of all attacks."""
        return sum(attack.gradients for attack in self.attacks)

    @property
    def knowledge(self) -> Knowledge:
        """That of the attack which must see most."""
        return min((attack.knowledge for attack in self.attacks), key=KNOWLEDGE.index)

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> WorstOfState:
        """The first run."""
        return self.begin(key, x, goal, logits, jnp.zeros((), jnp.int32))

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Int[Array, ""]) -> WorstOfState:
        """All attacks begin their run of this number, with one key; the clean image is booked."""
        states = tuple(attack.begin(key, x, goal, logits, restart) for attack in self._members)
        idle = restart >= jnp.asarray([attack.runs(logits.shape[0]) for attack in self.attacks], jnp.int32)
        loss = self._loss(logits, goal)
        zero = jnp.zeros((), jnp.int32)
        kept = Best(
            image=jnp.clip(x, 0, 1),
            success=goal.met(logits),
            loss=self._reported(loss, goal),
            size=jnp.zeros((), x.dtype),
            forwards=zero,
            backwards=zero,
            non_finite=~jnp.all(jnp.isfinite(logits)),
            parameters=self.set.init(x),
            logits=logits,
            rank=loss,
        )
        return WorstOfState(x, goal, states, idle, self._next(states, idle, zero), kept, loss)

    def ask(self, state: WorstOfState) -> Array:
        """The points of the attack whose turn it is, its last one repeated up to the common number."""

        def points(i: int) -> Any:
            asked = self._members[i].ask(state.states[i])
            places = jnp.minimum(jnp.arange(self.width), asked.shape[0] - 1)
            return asked[places]

        return self._of_turn(state, points)

    def meant(self, state: WorstOfState) -> Bool[Array, " queries"]:
        """Those of the attack whose turn it is, without the repeated ones; none where its run has nothing to do."""

        def own(i: int) -> Any:
            attack, inner = self._members[i], state.states[i]
            looked_at = attack.meant(inner) & ~attack.done(inner)
            return jnp.pad(looked_at, (0, self.width - attack.width))

        return self._of_turn(state, own)

    def cotangents(self, state: WorstOfState, logits: Float[Array, "queries classes"]) -> Array:
        """Those of the attack whose turn it is, zeros besides."""

        def directions(i: int) -> Any:
            attack = self._members[i]
            return attack.cotangents(state.states[i], logits[: attack.width])

        shapes = [jax.eval_shape(functools.partial(directions, i)).shape for i in range(len(self.attacks))]
        most = max(shape[1] for shape in shapes)

        def padded(i: int) -> Any:
            missing = (self.width - shapes[i][0], most - shapes[i][1], 0)
            return jnp.pad(directions(i), [(0, number) for number in missing])

        return self._of_turn(state, padded)

    def tell(self, state: WorstOfState, logits: Float[Array, "queries classes"], gradients: Array) -> WorstOfState:
        """Tells the attack whose turn it is; when that is over, what it has booked is ranked among all."""
        states, over = self._of_turn(state, lambda i: self._told(i, state.states, logits, gradients))
        told = dataclasses.replace(state, states=states, loss=self._loss(logits[0], state.goal))
        kept = choose(over, self._worst(told), state.kept)
        turn = jnp.where(over, self._next(states, state.idle, state.turn + 1), state.turn)
        if self.until_success:
            turn = jnp.where(over & kept.success, len(self.attacks), turn)
        return dataclasses.replace(told, kept=kept, turn=turn)

    def done(self, state: WorstOfState) -> Bool[Array, ""]:
        """Whether the last attack is done."""
        return state.turn >= len(self.attacks)

    def best(self, state: WorstOfState) -> Best:
        """The worst point for the model that any attack has booked."""
        books = [attack.best(inner) for attack, inner in zip(self._members, state.states, strict=True)]
        worst = self._worst(state)
        if self.needs_start:
            # the clean image is kept then, and must rank below that of a run which did start
            started = jnp.any(jnp.stack([book.loss > -jnp.inf for book in books]))
            worst = dataclasses.replace(
                worst,
                loss=jnp.where(started, worst.loss, -jnp.inf),
                rank=jnp.where(started, worst.rank, -jnp.inf),
            )
        return dataclasses.replace(
            worst,
            forwards=jnp.sum(jnp.stack([book.forwards for book in books])),
            backwards=jnp.sum(jnp.stack([book.backwards for book in books])),
            non_finite=jnp.any(jnp.stack([book.non_finite for book in books])),
        )

    def loss_of(self, state: WorstOfState) -> Float[Array, ""]:
        """The ranking loss at the first of the points last asked."""
        return self._reported(state.loss, state.goal)

    def last(self, state: WorstOfState) -> Image:
        """The worst point of all, for training."""
        return self._worst(state).image

    def bound_to(self, model: Classifier) -> WorstOf:
        """Every attack bound to the model."""
        return dataclasses.replace(self, attacks=tuple(attack.bound_to(model) for attack in self.attacks))

    def with_radius(self, radius: Number) -> WorstOf:
        """The same attacks with another radius of their one set, or with all radii multiplied by another number."""
        if self.radius is not None:
            return dataclasses.replace(self, radius=radius)
        return dataclasses.replace(self, attacks=tuple(attack.with_radius(radius) for attack in self.attacks))

    @property
    def _members(self) -> tuple[Attack, ...]:
        if self.radius is None:
            return self.attacks
        return tuple(attack.with_radius(attack.set.radius * self.radius) for attack in self.attacks)

    def _of_turn(self, state: WorstOfState, compute: Callable[[int], Any]) -> Any:
        """What `compute` gives for the attack whose turn it is; under vmap that costs what all of them cost."""
        return lax.switch(state.turn, [functools.partial(compute, i) for i in range(len(self.attacks))])

    def _next(self, states: tuple[Any, ...], idle: Array, first: Array) -> Array:
        """The first turn from `first` on that has something to do; past the last where none has."""
        done = [attack.done(inner) for attack, inner in zip(self._members, states, strict=True)]
        places = jnp.arange(len(self.attacks), dtype=jnp.int32)
        waits = ~(jnp.stack(done) | idle) & (places >= first)
        return jnp.min(jnp.where(waits, places, len(self.attacks)))

    def _told(self, i: int, states: tuple[Any, ...], logits: Array, gradients: Array) -> tuple[Any, Array]:
        """The states after attack i was told, and whether its turn is over."""
        attack = self._members[i]
        new = attack.tell(states[i], logits[: attack.width], gradients[: attack.width])
        return (*states[:i], new, *states[i + 1 :]), attack.done(new)

    def _worst(self, state: WorstOfState) -> Best:
        """The worse for the model of what is kept and what the attack whose turn it is has booked."""
        found = self._of_turn(state, lambda i: self._in_common(i, state))
        better = is_better(found.success, found.rank, state.kept.success, state.kept.rank)
        # past the last turn everything has been ranked, and ranking again would only round otherwise
        return choose(better & ~self.done(state), found, state.kept)

    def _in_common(self, i: int, state: WorstOfState) -> Best:
        """What attack i has booked, in the terms of the common set, ranked by the logits of that very point."""
        book = self._members[i].best(state.states[i])
        if book.logits is None:
            raise ValueError(f"attacks must book the logits of their best point; got {self.attacks[i]}")
        rank = self._loss(book.logits, state.goal)
        book = dataclasses.replace(book, loss=self._reported(rank, state.goal), rank=rank)
        if self.radius is None:
            return book
        parameters = self.set.choice(state.x, i, book.parameters)  # type: ignore[attr-defined]
        return dataclasses.replace(book, size=self.set.size(state.x, parameters), parameters=parameters)

    def _loss(self, logits: Logits, goal: Criterion) -> Float[Array, ""]:
        """The loss in the form that is followed, which ranks points where the loss itself has vanished."""
        return never_nan(followed(self.loss).value(logits, goal))

    def _reported(self, loss: Array, goal: Criterion) -> Float[Array, ""]:
        return followed(self.loss).loss(loss, goal)

    def __str__(self) -> str:
        members = self.attacks if _checks.is_traced(self) else self._members
        return f"worst of{', until success' if self.until_success else ''} [{'; '.join(map(str, members))}]"


def worst_of(*attacks: Attack, loss: Loss = "cross_entropy", until_success: bool = False) -> WorstOf:
    """Run several attacks on every example and keep the worst point of all: misclassified first, then highest loss.

    One loss ranks the points of all attacks, whatever each of them ascends. The attacks may search different sets;
    the result then is a member of one of them, its size is a fraction of that one's radius, and `with_radius(r)`
    multiplies all radii by r. On one common set everything is in its own terms, and `with_radius(r)` sets its radius.

    All attacks run to their end, whatever the others have found, since the point of highest loss is wanted; with
    `until_success` the next begins only where none before has met the criterion, and one that has begun is finished,
    with all of its restarts. To see what each attack of a suite finds, and to have survivors fill the lanes of the
    next, give the suite to `evaluate.robustness(only_survivors=True)`.

    Cost: the sum of the attacks' forwards and of their backwards, with `until_success` of those that ran. In
    `attacks.run` the model's passes are no more; in the lanes of `evaluate`, whose examples may be at different
    attacks, every ask is as wide as the widest attack's. What sets and attacks compute beside the model, all of them
    compute at every ask.

    Args:
        *attacks: at least one. All have the same key, so what they find is what each would find alone. With equal
            numbers of restarts the r-th run of each comes in the r-th of the whole; where the numbers differ, and with
            `until_success`, all runs of each come in one run of the whole.
        loss: "cross_entropy", "margin", "dlr" or a function of (logits (K,), criterion).
        until_success: whether success ends the turns; cheap attacks then come first.

    Returns:
        The attack.

    Raises:
        TypeError: something that is no attack, or `until_success` that is no bool.
        ValueError: no attacks, or `eot` around some of them only.

    Example:
        >>> str(worst_of(pgd(jr.sets.Linf(0.1), steps=5), pgd(jr.sets.L2(1), steps=5)).set)
        'one of Linf(0.1), L2(1), scale (1)'
        >>> worst_of(pgd(jr.sets.Linf(0.1)), pgd(jr.sets.Linf(0.1), restarts=3)).restarts
        1

    Reference:
        Tramèr and Boneh, 2019, arXiv:1904.13000 (the "max" adversary); Maini et al., 2020, arXiv:1909.04068; until
        success as in AutoAttack, Croce and Hein, 2020, arXiv:2003.01690.
    """
    if not isinstance(until_success, bool):
        raise TypeError(f"until_success must be True or False; got {_checks.told(until_success)}")
    if not attacks:
        raise ValueError("attacks must hold at least one attack; got none")
    for attack in attacks:
        if not isinstance(attack, Attack):
            advice = " (unpack it: *attacks)" if isinstance(attack, (list, tuple)) else ""
            raise TypeError(f"attacks must be attacks such as pgd(Linf(8 / 255)); got {_checks.told(attack)}{advice}")
    if len({attack.sees_draws for attack in attacks}) > 1:
        raise ValueError(f"attacks must all be around eot or none, such as eot(worst_of(...)); got {attacks}")
    if until_success or len({attack.restarts for attack in attacks}) > 1:
        attacks = tuple(OneRun(attack) if attack.restarts > 1 else attack for attack in attacks)
    sets = [attack.set for attack in attacks]
    common = all(one is sets[0] or _checks.same(one, sets[0]) for one in sets)
    return WorstOf(attacks, None if common else 1.0, loss, until_success)


def _example(set: PerturbationSet) -> WorstOf:
    return worst_of(pgd(set), pgd(set, loss="margin"))


def _until_success(set: PerturbationSet) -> WorstOf:
    return worst_of(pgd(set, steps=2), pgd(set, steps=2, loss="margin", restarts=2), until_success=True)


register(
    "worst_of",
    _example,
    factory=worst_of,
    use="The worst of several attacks or sets for each example, and training against it.",
)
register("worst_of_until_success", _until_success, factory=worst_of)
