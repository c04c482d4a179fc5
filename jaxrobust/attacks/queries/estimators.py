"""Gradient ascent by estimated gradients: NES (Gaussian pairs, sign steps) and SPSA (Rademacher pairs, Adam)."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import (
    Loss,
    QueryAttack,
    SearchState,
    check_run,
    finite,
    run_in_words,
    scaled,
    step_sizes,
)
from jaxrobust.attacks.core.base import Points, check_set, register
from jaxrobust.attacks.core.minimum import choose
from jaxrobust.attacks.gradient.adam import Adam
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Number, pytree

__all__ = ["NES", "SPSA", "nes", "spsa"]

Scalar = Float[Array, ""]

# NES looks at the mean losses of so many steps, and lets the step size fall to this fraction of the first
PLATEAU = 5
SMALLEST_STEP = 1 / 200


@pytree("key", "total", "losses", "moves")
class Estimate:
    """What is known of the gradient at the iterate so far: Σ loss · noise, and Σ loss; and the ascent's own memory."""

    key: Any
    total: Any
    losses: Any
    moves: Any


class Estimated(QueryAttack):
    """Ascent along (1/(n σ)) Σ_i ℓ(x' + σ u_i) u_i over pairs ±u, a chunk of points an ask; subclasses draw and move.

    A step asks n + 1 points, the iterate itself first; the end of the last step asks the last iterate alone.
    """

    steps: int
    samples: int
    chunk: int | None
    spread: Number
    step_size: Number | None
    relative_step_size: Number | None
    restarts: int
    start = "random"  # by its draws

    def __post_init__(self) -> None:
        check_run(self, "random")
        _checks.count("samples", self.samples, low=2)
        if self.samples % 2:
            raise ValueError(f"samples must be even, since they come in pairs; got {self.samples}")
        if self.chunk is not None:
            _checks.count("chunk", self.chunk)
        for name in ("spread", "step_size", "relative_step_size"):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name)))
        if isinstance(self.spread, float) and self.spread == 0:
            raise ValueError(f"spread must be > 0; got {self.spread}")

    @property
    def width(self) -> int:
        """Points asked at once."""
        whole = self.samples + 1
        return whole if self.chunk is None else min(self.chunk, whole)

    @property
    def asks(self) -> int:
        """The chunks of all steps, and the last iterate."""
        return self.steps * self._chunks + 1

    @abc.abstractmethod
    def _noise(self, key: Key, x: Image) -> Image:
        """One u."""

    @abc.abstractmethod
    def _moves(self, x: Image) -> Any:
        """What the ascent remembers, at the start."""

    @abc.abstractmethod
    def _move(self, state: SearchState, gradient: Image, loss: Scalar) -> tuple[Any, Any]:
        """The next θ and memory, from the estimated gradient in the image and the mean loss of the samples."""

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """From the clean image."""
        state = self._open(x, goal, logits, self.set.init(x), None)
        estimate = Estimate(key, jnp.zeros_like(x), jnp.zeros_like(state.loss), self._moves(x))
        return dataclasses.replace(state, memory=estimate)

    def ask(self, state: SearchState) -> Points:
        """The next chunk: the iterate, or x' ± σ u, which may leave [0, 1] by some σ."""
        signs, noise = self._samples(state)
        spread = jnp.asarray(self.spread).astype(state.x.dtype)
        return self.set.apply(state.x, state.theta)[None] + spread * signs[:, None, None, None] * noise

    def meant(self, state: SearchState) -> Bool[Array, " queries"]:
        """Points up to the step's last sample; after the last step the iterate alone."""
        places = self._places(state)
        return (places <= self.samples) & ((state.asked < self.asks - 1) | (places == 0))

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the iterate, adds to the estimate, and moves when the samples are complete."""
        meant, estimate = self.meant(state), state.memory
        losses = jax.vmap(self._loss, (0, None))(logits, state.aim)
        signs, noise = self._samples(state)
        weights = jnp.where(meant & (signs != 0), finite(losses), 0)
        signed = (weights * signs.astype(weights.dtype)).astype(noise.dtype)
        total = estimate.total + jnp.tensordot(signed, noise, 1, precision=lax.Precision.HIGHEST)
        summed = estimate.losses + jnp.sum(weights)
        share = 1 / (self.samples * jnp.asarray(self.spread).astype(noise.dtype))
        theta, moves = self._move(state, share * total, summed / self.samples)
        complete = (state.asked + 1) % self._chunks == 0

        is_iterate = self._places(state)[0] == 0
        thetas = jax.tree.map(lambda leaf: leaf[None], state.theta)
        booked = self._book(state, thetas, losses[:1], logits[:1], is_iterate[None])
        broken = jnp.any(meant & ~jnp.all(jnp.isfinite(logits), 1))
        return dataclasses.replace(
            booked,
            theta=choose(complete, theta, state.theta),
            memory=Estimate(
                estimate.key,
                jnp.where(complete, 0, total),
                jnp.where(complete, 0, summed),
                choose(complete, moves, estimate.moves),
            ),
            loss=jnp.where(is_iterate, losses[0], state.loss),
            non_finite=state.non_finite | broken,
        )

    @property
    def _chunks(self) -> int:
        return math.ceil((self.samples + 1) / self.width)

    def _places(self, state: SearchState) -> Int[Array, " queries"]:
        """0 for the iterate, then the samples from 1."""
        return state.asked % self._chunks * self.width + jnp.arange(self.width, dtype=jnp.int32)

    def _samples(self, state: SearchState) -> tuple[Array, Array]:
        """Signs (q,), 0 for the iterate, and noise (q, H, W, C), which does not depend on the chunk."""
        places = self._places(state)
        key = jax.random.fold_in(state.memory.key, state.asked // self._chunks)
        pairs = jnp.maximum(places - 1, 0) // 2
        noise = jax.vmap(lambda pair: self._noise(jax.random.fold_in(key, pair), state.x))(pairs)
        return jnp.where(places == 0, 0, 2 * (places % 2) - 1).astype(state.x.dtype), noise

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        steps, chunks = state.asked // self._chunks, state.asked % self._chunks
        whole = self.samples + 1
        counted = steps * whole + jnp.minimum(chunks * self.width, whole)
        return jnp.minimum(counted, self.steps * whole + 1)

    @property
    def _run(self) -> str:
        return f"{run_in_words(self.steps, 'clean', self.restarts)} of {self.samples} samples"


@pytree("set", "spread", "step_size", "relative_step_size", "momentum")
class NES(Estimated):
    """Sign ascent by natural evolution strategies; see `nes`.

    Args:
        set: what the adversary may do.
        steps: steps of a run, ≥ 1 (static).
        samples: points an estimate, even (static).
        chunk: points asked at once (static); None asks a whole step's.
        spread: σ.
        step_size: the first step in the unit of the radius; None takes `relative_step_size` · radius.
        relative_step_size: the same as a fraction of the radius.
        momentum: the share of the old estimate in the mean that is followed.
        restarts: independent runs, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
    """

    set: PerturbationSet
    steps: int = 200
    samples: int = 50
    chunk: int | None = None
    spread: Number = 1e-3
    step_size: Number | None = None
    relative_step_size: Number | None = 0.2
    momentum: Number = 0.9
    restarts: int = 1
    loss: Loss = "cross_entropy"

    _method = "NES"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "momentum", _checks.number("momentum", self.momentum, high=1.0))

    def _noise(self, key: Key, x: Image) -> Image:
        return jax.random.normal(key, x.shape, x.dtype)

    def _moves(self, x: Image) -> Any:
        first = scaled(self.step_size, self.relative_step_size, self._radius(x))
        return jnp.zeros_like(x), first, jnp.zeros(PLATEAU, x.dtype), jnp.zeros((), jnp.int32)

    def _move(self, state: SearchState, gradient: Image, loss: Scalar) -> tuple[Any, Any]:
        x, (velocity, size, recent, seen) = state.x, state.memory.moves
        decay = jnp.asarray(self.momentum).astype(x.dtype)
        velocity = decay * velocity + (1 - decay) * gradient
        recent, seen = jnp.append(recent[1:], loss.astype(x.dtype)), seen + 1
        stuck = (seen >= PLATEAU) & (recent[-1] < recent[0])
        smallest = SMALLEST_STEP * scaled(self.step_size, self.relative_step_size, self._radius(x))
        size, seen = jnp.where(stuck, jnp.maximum(size / 2, smallest), size), jnp.where(stuck, 0, seen)
        direction = self.set.pullback(x, state.theta, velocity)
        theta = self.set.project(x, self.set.ascend(x, state.theta, direction, size))
        return theta, (velocity, size, recent, seen)


@pytree("set", "spread", "step_size", "relative_step_size")
class SPSA(Estimated):
    """Adam by simultaneous perturbation stochastic approximation; see `spsa`.

    Args:
        set: what the adversary may do.
        steps: steps of a run, ≥ 1 (static).
        samples: points an estimate, even (static).
        chunk: points asked at once (static); None asks a whole step's.
        spread: δ.
        step_size: Adam's rate, in the unit of θ's entries; None takes `relative_step_size` · radius.
        relative_step_size: the same as a fraction of the radius.
        restarts: independent runs, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
    """

    set: PerturbationSet
    steps: int = 100
    samples: int = 128
    chunk: int | None = None
    spread: Number = 0.01
    step_size: Number | None = 0.01
    relative_step_size: Number | None = None
    restarts: int = 1
    loss: Loss = "margin"

    _method = "SPSA"

    def _noise(self, key: Key, x: Image) -> Image:
        return jax.random.rademacher(key, x.shape, x.dtype)

    @property
    def _adam(self) -> Adam:
        return Adam(self.set, self.steps, self.step_size, self.relative_step_size, start="clean")

    def _moves(self, x: Image) -> Any:
        return self._adam._memory(x, self.set.init(x))

    def _move(self, state: SearchState, gradient: Image, loss: Scalar) -> tuple[Any, Any]:
        in_adam = dataclasses.replace(state, asked=state.asked // self._chunks, memory=state.memory.moves)
        return self._adam._move(in_adam, self.set.pullback(state.x, state.theta, gradient))


def nes(
    set: PerturbationSet,
    *,
    steps: int = 200,
    samples: int = 50,
    chunk: int | None = None,
    spread: Number = 1e-3,
    step_size: Number | None = None,
    relative_step_size: Number | None = None,
    momentum: Number = 0.9,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
) -> NES:
    """Ascent by gradients that natural evolution strategies estimate from scores alone.

    ĝ = (1/(n σ)) Σ_i ℓ(x' + σ u_i) u_i over n/2 antithetic pairs of Gaussian u, averaged with momentum, followed by
    the set's own steepest ascent (for `Linf` its sign). The step is halved when the mean loss has fallen over five
    steps, to 1/200 of the first at least.

    Cost: `restarts` · (`steps` · (`samples` + 1) + 1) forwards, no backwards.

    Args:
        set: what the adversary may do, any set: the estimate in the image is pulled back to the set's parameters.
        steps: steps of a run, ≥ 1.
        samples: n, even, ≥ 2.
        chunk: points asked at once, by default all of a step; it changes memory and time, not the result.
        spread: σ in the unit of pixels in [0, 1], > 0.
        step_size: the first step in the unit of the radius.
        relative_step_size: the same as a fraction of the radius; the default is 0.2, the paper's 0.01 at ε = 0.05.
        momentum: in [0, 1].
        restarts: independent runs.
        loss: "cross_entropy", "margin", "dlr" or a function of (logits (K,), criterion), ascended; targeted with a
            `Targeted` criterion.

    Returns:
        The attack. It books iterates only, since samples may leave the set and, by some σ, [0, 1].

    Raises:
        ValueError: counts below 1, an odd number of samples, a spread of 0, or both kinds of step size.

    Example:
        >>> str(nes(jr.sets.Linf(0.05), steps=20))
        'NES in Linf(0.05), 20 steps of 50 samples, cross-entropy'

    Reference:
        Ilyas et al., 2018, arXiv:1804.08598, the setting of full scores; its released code does not count the query
        that looks for success, this does.
    """
    check_set(set)
    step_size, relative_step_size = step_sizes(step_size, relative_step_size, 0.2)
    return NES(set, steps, samples, chunk, spread, step_size, relative_step_size, momentum, restarts, loss)


def spsa(
    set: PerturbationSet,
    *,
    steps: int = 100,
    samples: int = 128,
    chunk: int | None = None,
    spread: Number = 0.01,
    step_size: Number | None = None,
    relative_step_size: Number | None = None,
    restarts: int = 1,
    loss: Loss = "margin",
) -> SPSA:
    """Adam along gradients that simultaneous perturbation estimates from scores alone.

    ĝ = (1/(n δ)) Σ_i ℓ(x' + δ v_i) v_i over n/2 pairs ±v of Rademacher vectors, then a step of Adam and projection.

    Cost: `restarts` · (`steps` · (`samples` + 1) + 1) forwards, no backwards.

    Args:
        set: what the adversary may do, any set as in `nes`.
        steps: steps of a run, ≥ 1.
        samples: n, even, ≥ 2. The paper has 2048 to 8192 where it wants to be strong.
        chunk: points asked at once, as in `nes`.
        spread: δ in the unit of pixels in [0, 1], > 0.
        step_size: Adam's rate, in the unit of the entries of θ; by default 0.01.
        relative_step_size: the same as a fraction of the radius.
        restarts: independent runs.
        loss: as in `nes`.

    Returns:
        The attack.

    Raises:
        ValueError: as `nes`.

    Example:
        >>> str(spsa(jr.sets.Linf(0.05), steps=20))
        'SPSA in Linf(0.05), 20 steps of 128 samples, margin'

    Reference:
        Uesato et al., 2018, arXiv:1802.05666.
    """
    check_set(set)
    if step_size is None and relative_step_size is None:
        step_size = 0.01
    step_size, relative_step_size = step_sizes(step_size, relative_step_size, None)
    return SPSA(set, steps, samples, chunk, spread, step_size, relative_step_size, restarts, loss)


register(
    "nes",
    functools.partial(nes, steps=5, samples=10, chunk=1),
    use="Sets other than lp balls when only scores are known; in lp balls `square` needs fewer queries.",
)
register(
    "spsa",
    functools.partial(spsa, steps=5, samples=8, chunk=1),
    use="As `nes`; a check whether a defence only hides its gradients.",
)
