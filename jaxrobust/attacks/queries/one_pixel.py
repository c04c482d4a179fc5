"""The one-pixel attack: differential evolution over where a few pixels lie and which colours they get."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Loss, QueryAttack, SearchState, check_loss
from jaxrobust.attacks.core.base import Points, check_field, check_set, register
from jaxrobust.sets import PerturbationSet
from jaxrobust.sets.sparse import L0, whole
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["OnePixel", "one_pixel"]

# probabilities of the target and of the true class at which the search ends, as published
TARGET_ABOVE, LABEL_BELOW = 0.9, 0.05
# mean and deviation of the first colours
COLOUR_MEAN, COLOUR_DEVIATION = 128 / 255, 127 / 255

Genes = Float[Array, "individuals pixels genes"]


@pytree("key", "genes", "fitness", "next_genes", "next_fitness", "over")
class Population:
    """The individuals of the last whole generation, those of the one in the making, and whether it is the last."""

    key: Any
    genes: Any
    fitness: Any
    next_genes: Any
    next_fitness: Any
    over: Any


@pytree("set", "weight")
class OnePixel(QueryAttack):
    """Differential evolution of a few pixels; see `one_pixel`.

    Args:
        set: `L0` by pixel.
        pixels: of an individual, ≥ 1 (static); those beyond the radius are left out.
        population: individuals, ≥ 4 (static).
        generations: after the first, ≥ 1 (static).
        weight: F ≥ 0.
        chunk: individuals asked at once; it divides the population (static).
        restarts: independent runs, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion): the fitness.
    """

    set: PerturbationSet
    pixels: int = 1
    population: int = 400
    generations: int = 100
    weight: Number = 0.5
    chunk: int = 100
    restarts: int = 1
    loss: Loss = "cross_entropy"
    ends_early = True

    def __post_init__(self) -> None:
        # JAX rebuilds pytrees around placeholders, which are no sets
        known = isinstance(self.set, L0) and self.set.per == "pixel"
        if isinstance(self.set, (type, PerturbationSet)) and not known:
            raise TypeError(f"set must be L0 by pixel; got {self.set}")
        check_field(self.set)
        check_loss(self.loss)
        for name in ("pixels", "generations", "chunk", "restarts"):
            _checks.count(name, getattr(self, name))
        _checks.count("population", self.population, low=4)
        if self.population % self.chunk:
            raise ValueError(f"chunk must divide the population of {self.population}; got {self.chunk}")
        object.__setattr__(self, "weight", _checks.number("weight", self.weight))

    @property
    def width(self) -> int:
        """Individuals asked at once."""
        return self.chunk

    @property
    def asks(self) -> int:
        """A generation in so many chunks, the first one too."""
        return (self.generations + 1) * self._chunks

    @property
    def _chunks(self) -> int:
        return self.population // self.chunk

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """The first generation is drawn."""
        place_key, colour_key, key = jax.random.split(key, 3)
        shape = (self.population, self.pixels)
        places = jax.random.uniform(place_key, (*shape, 2), x.dtype)
        normal = jax.random.normal(colour_key, (*shape, x.shape[-1]), x.dtype)
        genes = jnp.concatenate([places, jnp.clip(COLOUR_MEAN + COLOUR_DEVIATION * normal, 0, 1)], -1)
        fitness = jnp.full(self.population, -jnp.inf, x.dtype)
        memory = Population(key, genes, fitness, genes, fitness, jnp.zeros((), bool))
        return self._open(x, goal, logits, None, memory)

    def ask(self, state: SearchState) -> Points:
        """The children of a chunk of individuals; at first, these themselves."""
        return jax.vmap(self.set.apply, (None, 0))(state.x, self._thetas(state, self._children(state)))

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the best child; each takes the place of its parent if it is fitter, once all of its generation are."""
        memory, members = state.memory, self._members(state)
        children = self._children(state)
        thetas = self._thetas(state, children)
        loss = jax.vmap(self._loss, (0, None))(logits, state.aim).astype(state.x.dtype)
        fitter = (loss > memory.fitness[members]) | (state.asked < self._chunks)
        genes = jnp.where(fitter[:, None, None], children, memory.genes[members])
        fitness = jnp.where(fitter, loss, memory.fitness[members])
        next_genes = jax.lax.dynamic_update_slice_in_dim(memory.next_genes, genes, members[0], 0)
        next_fitness = jax.lax.dynamic_update_slice_in_dim(memory.next_fitness, fitness, members[0], 0)
        complete = (state.asked + 1) % self._chunks == 0
        booked = self._book(state, thetas, loss, logits, jnp.ones(self.width, bool))
        after = Population(
            key=memory.key,
            genes=jnp.where(complete, next_genes, memory.genes),
            fitness=jnp.where(complete, next_fitness, memory.fitness),
            next_genes=next_genes,
            next_fitness=next_fitness,
            over=complete & self._is_sure(booked),
        )
        return dataclasses.replace(booked, memory=after)

    def done(self, state: SearchState) -> Bool[Array, ""]:
        """Whether all generations have been asked, or one has met the criterion with the certainty published."""
        return super().done(state) | state.memory.over

    def _is_sure(self, state: SearchState) -> Bool[Array, ""]:
        """Whether the best point's probabilities are such that the search ends; known for cross-entropy alone."""
        if self.loss != "cross_entropy":
            return jnp.zeros((), bool)
        limit = math.log(TARGET_ABOVE) if state.goal.targeted else -math.log(LABEL_BELOW)
        return state.success & (self._reported(state.best_loss, state.aim) > limit)

    def _members(self, state: SearchState) -> Int[Array, " queries"]:
        return (state.asked % self._chunks) * self.chunk + jnp.arange(self.chunk, dtype=jnp.int32)

    def _children(self, state: SearchState) -> Genes:
        """x_a + F (x_b − x_c) of three distinct individuals each; in the first generation the individuals."""
        memory, members, count = state.memory, self._members(state), self.population
        # all of a generation's draws at once, so that chunks do not matter
        draws = jax.random.uniform(jax.random.fold_in(memory.key, state.asked // self._chunks), (3, count))[:, members]
        sizes = jnp.arange(count, count - 3, -1, dtype=jnp.int32)[:, None]
        first, second, third = jnp.minimum((draws * sizes.astype(draws.dtype)).astype(jnp.int32), sizes - 1)
        # the second of those that are left without the first, the third of those without either
        second = second + (second >= first).astype(jnp.int32)
        low, high = jnp.minimum(first, second), jnp.maximum(first, second)
        for taken in (low, high):
            third = third + (third >= taken).astype(jnp.int32)
        weight = jnp.asarray(self.weight).astype(state.x.dtype)
        mutants = memory.genes[first] + weight * (memory.genes[second] - memory.genes[third])
        return jnp.where(state.asked < self._chunks, memory.genes[members], jnp.clip(mutants, 0, 1))

    def _thetas(self, state: SearchState, genes: Genes) -> Float[Array, "individuals height width channels"]:
        return jax.vmap(self._perturbation, (None, 0))(state.x, genes)

    def _perturbation(self, x: Image, genes: Float[Array, "pixels genes"]) -> Image:
        """The pixels painted one after the other, as many as the radius allows."""
        most = whole(self._radius(x), self.pixels)
        sides = jnp.asarray(x.shape[:2], jnp.int32)
        image = x
        for i in range(self.pixels):
            row, column = jnp.minimum((genes[i, :2] * sides.astype(x.dtype)).astype(jnp.int32), sides - 1)
            image = image.at[row, column].set(jnp.where(i < most, genes[i, 2:], image[row, column]))
        return image - x

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        return self.width * state.asked

    @property
    def _method(self) -> str:
        return "one-pixel attack" if self.pixels == 1 else f"{self.pixels}-pixel attack"

    @property
    def _run(self) -> str:
        runs = "" if self.restarts == 1 else f", {self.restarts} restarts"
        return f"{self.generations} generations of {self.population}{runs}"


def one_pixel(
    set: PerturbationSet,
    *,
    pixels: int = 1,
    population: int = 400,
    generations: int = 100,
    weight: Number = 0.5,
    chunk: int = 100,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
) -> OnePixel:
    """The one-pixel attack: differential evolution of the places and colours of one or a few pixels.

    An individual is a row, a column and a colour for each pixel. Children are x_a + F (x_b − x_c) of three distinct
    individuals, clipped to the image and to [0, 1], without crossover; a child takes the place of its own parent if it
    is fitter. Places are uniform at first, colours normal about grey. It ends after a generation in which the true
    class has fallen below a probability of 0.05, or the target risen above 0.9.

    Cost: at most (generations + 1) · population · restarts forwards, no backwards.

    Args:
        set: `L0` by pixel; `L0(1)` for one pixel.
        pixels: of an individual, ≥ 1; the paper has 1, 3 and 5. Those beyond the radius stay clean.
        population: individuals, ≥ 4.
        generations: at most so many after the first, ≥ 1.
        weight: F ≥ 0.
        chunk: individuals asked at once, a divisor of the population; it changes memory, never the result.
        restarts: independent runs.
        loss: what is raised. "cross_entropy" orders individuals as the probability of the true class or of the target
            does, and does not saturate; with another loss all generations are asked.

    Returns:
        The attack.

    Raises:
        TypeError: another set.
        ValueError: counts below 1, a population below 4, a chunk that does not divide it, or a negative weight.

    Example:
        >>> str(one_pixel(jr.sets.L0(1)))
        'one-pixel attack in L0(1), 100 generations of 400, cross-entropy'

    Reference:
        Su et al., 2019, arXiv:1710.08864.
    """
    check_set(set)
    return OnePixel(set, pixels, population, generations, weight, chunk, restarts, loss)


register(
    "one_pixel",
    functools.partial(one_pixel, pixels=2, population=8, generations=3, chunk=4),
    on="l0",
    use="Illustration, for one to five pixels; a weak measure of robustness.",
)
