"""The neural perceptual ball: images that a network's activations cannot tell far apart from the clean one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks, perceptual
from jaxrobust.sets.balls import norm, unit
from jaxrobust.sets.base import UNBOUNDED, register
from jaxrobust.sets.lp import AdditiveBall
from jaxrobust.types import Classifier, Image, Key, Number, pytree

__all__ = ["Perceptual"]

Scalar = Float[Array, ""]

NOISE = 0.01  # standard deviation of a random start
OVERSHOOT = 0.02  # of Newton's steps, as a fraction of the radius and of the step
ROUNDS = 10  # of Newton's method, and of bisection
DAMPING = 1e-6  # added to JᵀJ, which is singular wherever φ is blind


@pytree("radius", "network")
class Perceptual(AdditiveBall):
    """The neural perceptual ball {δ : d(x, x + δ) ≤ radius} ∩ box, with d the distance of `perceptual.distance`.

    Its steepest ascent is PPGD's: of all moves that change φ by `size`, to first order, the one that gains most, along
    v = (JᵀJ)⁻¹ g with J = ∂φ/∂x. A few rounds of conjugate gradients solve for v with exact products by J and Jᵀ.

    A step costs about seven gradients of the network in its input, besides the attacked model's own: 6 passes forward
    and 4 backward in `ascend`, in `project` 2 and 1 for a member, 3 and 2 where one Newton step suffices.

    Args:
        radius: ε, the bound on d, ≥ 0 and at most √(2 L) for L layers to mean anything. Typical, with AlexNet: 0.5
            in evaluation (CIFAR-10 and ImageNet-100), 1 (CIFAR-10) and 0.5 (ImageNet-100) in training; with the
            attacked network itself 0.5 and 0.25 in training.
        network: what measures, a classifier with `activations`; None takes the attacked model ("self-bounded"), which
            the engines put in by `bound_to`.
        projection: "newton" steps down ∇d, and bisects where that fails; "bisection" takes a point of the segment
            from x; "none" only clips to the box, for penalised attacks that measure d themselves. All are retractions:
            feasible, not nearest. (static)
        iterations: rounds of conjugate gradients, ≥ 1 (static).

    Raises:
        TypeError: a network that is no `Classifier`.
        ValueError: a radius below 0, a network without activations, an unknown projection.

    Example:
        >>> ball = Perceptual(0.5, perceptual.filter_bank())
        >>> x = jnp.full((8, 8, 3), 0.5)
        >>> theta = ball.project(x, jax.random.normal(jax.random.key(0), x.shape))
        >>> bool(ball.contains(x, theta))
        True

    Reference:
        Laidlaw, Singla and Feizi, 2021, arXiv:2006.12655. Where the released code differs: there the projections may
        return points outside of the ball, Newton's accumulate gradients over the rounds and overshoot by 0.1 whatever
        the radius (here by a fiftieth of it, to end near the boundary), products by J are finite differences,
        conjugate gradients are undamped, and gradients below 1e-4 move nothing, which stops a cross-entropy attack on
        confident examples; here only a zero gradient does.
    """

    radius: Number
    network: Any = None  # a Classifier or None; `Any`, because JAX rebuilds pytrees around placeholders too
    projection: Literal["newton", "bisection", "none"] = dataclasses.field(default="newton", kw_only=True)
    iterations: int = dataclasses.field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.choice("projection", self.projection, ("newton", "bisection", "none"))
        _checks.count("iterations", self.iterations)
        if callable(self.network) and not isinstance(self.network, Classifier):
            raise TypeError(f"network must be a Classifier such as from_nnx gives; got {self.network!r}")
        if isinstance(self.network, Classifier) and self.network.activations is None:
            raise ValueError("network must have activations, which the distance compares; got a classifier without")

    def bound_to(self, model: Classifier) -> Perceptual:
        """The set that measures with `model`, unless it has a network of its own."""
        return self if self.network is not None else dataclasses.replace(self, network=model)

    def measures_with(self, model: Classifier) -> bool:
        """Whether distances are by this very network."""
        return self.network is model

    def sample(self, key: Key, x: Image) -> Image:
        """Gaussian noise of standard deviation 0.01, projected: where PPGD starts."""
        return self.project(x, NOISE * jax.random.normal(key, x.shape, x.dtype))

    def size(self, x: Image, theta: Image) -> Scalar:
        """d(x, x + δ)."""
        return self.distance(x, jnp.zeros_like(theta), theta)

    def distance(self, x: Image, theta: Image, other: Image) -> Scalar:
        """d(x + δ, x + δ')."""
        return perceptual.distance(self._measuring(), x + theta, x + other)

    def maps(self, x: Image, theta: Image) -> tuple[Array, ...]:
        """The activations (h_l, w_l, c_l) of x + δ."""
        network = self._measuring()
        return tuple(maps[0] for maps in network.activations(network.params, (x + theta)[None]))

    def separation(self, maps: tuple[Array, ...], others: tuple[Array, ...]) -> Scalar:
        """d of two images whose activations (h_l, w_l, c_l) are at hand."""
        return perceptual.separation(perceptual.normalised(maps), perceptual.normalised(others))

    def ascend(self, x: Image, theta: Image, gradient: Image, size: Scalar) -> Image:
        """δ + size · v/‖J v‖₂ with (JᵀJ + 1e-6) v = g, solved roughly; no pixel moves by more than 1."""
        _, push = jax.linearize(self._features, x + theta)
        pull = jax.linear_transpose(push, x)
        direction, change = _solve(push, lambda maps: pull(maps)[0], unit(gradient), self.iterations)
        scale = jnp.where(change > 0, size / jnp.where(change > 0, change, 1), jnp.inf)
        largest = jnp.max(jnp.abs(direction))
        return theta + jnp.minimum(scale, 1 / jnp.where(largest > 0, largest, 1)) * direction

    def boxed(self, x: Image, theta: Image) -> Image:
        """δ clipped, so that the image lies in [0, 1]; nothing is measured."""
        return jnp.clip(theta, -x, 1 - x)

    def project(self, x: Image, theta: Image) -> Image:
        """A perturbation that respects the box and d ≤ radius; members stay as they are.

        Newton: δ ← δ − 1.02 (d − 0.98 ε) ∇d/‖∇d‖², clipped, at most ten times, until d ≤ ε. Bisection: λ δ with the
        largest λ seen in [0, 1], of ten halvings, for which d ≤ ε was found.
        """
        theta = self.boxed(x, theta)
        if self.projection == "none":
            return theta
        radius, clean = self._radius(x), self._features(x)

        def measure(theta: Image) -> Scalar:
            return perceptual.separation(clean, self._features(x + theta))

        # rounding must not make a member of what a projection returned a non-member of the next
        lenient = radius + 5e-6 * jnp.maximum(radius, 1)
        if self.projection == "newton":
            found, feasible = _newton(measure, x, theta, radius, lenient)
        else:
            found, feasible = theta, measure(theta) <= lenient
        scale = _largest_feasible(lambda scale: measure(scale * theta) <= radius, ~feasible, x.dtype)
        # at radius 0 the set is the clean image, even where φ is blind
        return jnp.where(radius > 0, jnp.where(feasible, found, scale * theta), 0)

    def _measuring(self) -> Classifier:
        if self.network is None:
            raise ValueError(
                "network is None, so the set measures with the attacked model: call bound_to(model) first, as "
                "attacks.run does"
            )
        return self.network

    def _features(self, image: Image) -> tuple[Array, ...]:
        return perceptual.features(self._measuring(), image)


def _newton(
    measure: Callable[[Image], Scalar], x: Image, theta: Image, radius: Scalar, lenient: Scalar
) -> tuple[Image, Bool[Array, ""]]:
    """Steps down ∇d until d ≤ radius, and whether that was reached; at first d ≤ lenient is enough."""

    def goes_on(carry: tuple[Image, Array, Array]) -> Array:
        return ~carry[1] & (carry[2] <= ROUNDS)

    def step(carry: tuple[Image, Array, Array]) -> tuple[Image, Array, Array]:
        theta, _, rounds = carry
        value, slope = jax.value_and_grad(measure)(theta)
        reached = value <= jnp.where(rounds == 0, lenient, radius)
        steepness = norm(slope)
        length = (1 + OVERSHOOT) * (value - (1 - OVERSHOOT) * radius) / jnp.where(steepness > 0, steepness, 1)
        lower = jnp.clip(theta - length * unit(slope), -x, 1 - x)
        return jnp.where(reached, theta, lower), reached, rounds + 1

    # nothing is that far, and so the network need not be asked
    start = theta, radius >= UNBOUNDED, jnp.zeros((), jnp.int32)
    theta, reached, _ = lax.while_loop(goes_on, step, start)
    return theta, reached


def _largest_feasible(feasible: Callable[[Scalar], Array], wanted: Array, dtype: Any) -> Scalar:
    """The largest λ in [0, 1) that ten halvings found feasible, where wanted; 0 always is."""

    def halve(carry: tuple[Scalar, Array]) -> tuple[Scalar, Array]:
        low, rounds = carry
        # the bracket has length 2^-rounds, and its lower end is feasible
        middle = low + 0.5 ** (rounds + 1).astype(dtype)
        return jnp.where(feasible(middle), middle, low), rounds + 1

    start = (jnp.zeros((), dtype), jnp.zeros((), jnp.int32))
    return lax.while_loop(lambda carry: wanted & (carry[1] < ROUNDS), halve, start)[0]


def _solve(push: Callable[..., Any], pull: Callable[..., Any], target: Image, iterations: int) -> tuple[Image, Scalar]:
    """v with (JᵀJ + damping) v ≈ target by conjugate gradients from 0, and ‖J v‖₂, which comes with it for free.

    Unrolled, because one of J and Jᵀ always has its convolutions in a form that XLA:CPU runs slowly inside a loop.
    """
    solution, residual, search = jnp.zeros_like(target), target, target
    left = jnp.sum(jnp.square(residual))
    change = jax.tree.map(jnp.zeros_like, push(search))
    for _ in range(iterations):
        pushed = push(search)
        curvature = sum(jnp.sum(jnp.square(maps)) for maps in pushed) + DAMPING * jnp.sum(jnp.square(search))
        # a residual of zero has nothing to add, and what is divided by then does not matter
        going = (left > 1e-12) & (curvature > 0)
        rate = jnp.where(going, left / jnp.where(going, curvature, 1), 0)
        solution = solution + rate * search
        change = tuple(old + rate * new for old, new in zip(change, pushed, strict=True))
        residual = residual - rate * (pull(pushed) + DAMPING * search)
        before, left = left, jnp.sum(jnp.square(residual))
        search = residual + jnp.where(going, left / jnp.where(going, before, 1), 0) * search
    return solution, jnp.sqrt(sum(jnp.sum(jnp.square(maps)) for maps in change))


register("perceptual", lambda: Perceptual(0.5, perceptual.filter_bank(scales=2)))
