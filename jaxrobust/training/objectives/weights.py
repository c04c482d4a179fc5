"""The gradient at moved weights, and optimisers that keep weights where a bound wants them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import _checks
from jaxrobust.training.objectives.core import Aux, Crafting, Keys, Learner, PerExample, merged
from jaxrobust.types import Key, Number, pytree

__all__ = ["AWP", "awp", "clip_weights", "parseval"]


@pytree("objective", "gamma", "start")
class AWP:
    """The loss at weights moved against it; make it with `awp`."""

    objective: Any
    gamma: Number = 0.01
    start: Number = 0

    def __call__(self, key: Key, learner: Learner, batch: Any) -> tuple[PerExample, Aux]:
        """Losses (N,) and metrics, see `Objective`."""
        keys = Keys.of(key)
        crafted, found = self.objective.craft(keys, learner, batch)

        def loss(params: Any) -> Any:
            losses, _ = self.objective.outer(keys, dataclasses.replace(learner, params=params), batch, crafted)
            return jnp.sum(losses if batch.mask is None else jnp.where(batch.mask.astype(bool), losses, 0))

        ascent = jax.grad(loss)(jax.lax.stop_gradient(learner.params))
        if learner.axis_name is not None:
            ascent = jax.lax.psum(ascent, learner.axis_name)
        begun = jnp.asarray(learner.step, jnp.float32) >= jnp.asarray(self.start, jnp.float32)
        gamma = jnp.where(begun, jnp.asarray(self.gamma, jnp.float32), 0)
        moved = jax.tree.map(lambda w, d: w + jax.lax.stop_gradient(_move(w, d, gamma)), learner.params, ascent)
        losses, aux = self.objective.outer(keys, dataclasses.replace(learner, params=moved), batch, crafted)
        return losses, merged(found, aux)


def _move(weights: Any, ascent: Any, gamma: Any) -> Any:
    """γ ‖w‖ d/‖d‖ of a kernel; biases and BatchNorm's numbers stay."""
    if weights.ndim < 2:
        return jnp.zeros_like(weights)
    share = jnp.linalg.norm(weights.ravel()) / (jnp.linalg.norm(ascent.ravel()) + 1e-20)
    return (gamma * share).astype(weights.dtype) * ascent


def awp(objective: Any, *, gamma: Number = 0.01, start: Number = 0) -> AWP:
    """Adversarial weight perturbation: θ ← opt(θ, ∇L(θ + v)), where v raises the loss L on the crafted images most.

    v = γ ‖w‖ d/‖d‖ for every tensor w of two axes or more, with d = ∂L/∂w at θ, to first order the worst move of that
    relative length. Costs one forward and backward pass more.

    Args:
        objective: one that crafts: `adversarial`, `mixed`, `trades`, `mart`, `several`, … without a memory.
        gamma: γ ≥ 0: 0.01 for adversarial training, 0.005 for TRADES.
        start: the step from which on it acts; with TRADES the original begins after 10 epochs.

    Returns:
        The objective, with the metrics of the one within (those of the loss are at θ + v).

    Raises:
        TypeError: if `objective` does not craft, or remembers.
        ValueError: if `gamma` or `start` is negative.

    Example:
        >>> import jaxrobust as jr
        >>> objective = jr.training.adversarial(jr.attacks.pgd(jr.sets.Linf(8 / 255), steps=10))
        >>> float(awp(objective).gamma)
        0.01

    Reference:
        Wu, Xia and Wang, 2020, arXiv:2004.05884. Their proxy network and its rate cancel in this form.
    """
    if not isinstance(objective, Crafting) or getattr(objective, "combine", None) == "errors":
        raise TypeError(
            f"objective must be one that crafts and has no memory, such as training.adversarial(…); got {objective!r}"
        )
    return AWP(objective, _checks.number("gamma", gamma), _checks.number("start", start))


def clip_weights(*, bound: Number = 0.01) -> optax.GradientTransformation:
    """An Optax transformation, to come last in a chain, after which every weight lies in [−c, c], exactly.

    Args:
        bound: c > 0.

    Returns:
        The transformation.

    Raises:
        ValueError: if `bound` is not positive.

    Example:
        >>> rule = optax.chain(optax.sgd(0.1), clip_weights(bound=0.25))
        >>> params = jnp.array([0.5, -1.0])
        >>> updates, _ = rule.update(jnp.zeros(2), rule.init(params), params)
        >>> optax.apply_updates(params, updates).tolist()
        [0.25, -0.25]

    Reference:
        Arjovsky, Chintala and Bottou, 2017, arXiv:1701.07875.
    """
    bound = _checks.positive("bound", bound)

    def inward(update: Any, weights: Any) -> Any:
        """The update, or one ulp less, where adding it to the weights rounds to the outside."""
        limit = jnp.asarray(bound, weights.dtype)
        past = weights + update
        return jnp.where(jnp.abs(past) > limit, jnp.nextafter(update, -jnp.copysign(jnp.inf, past)), update)

    clipping = _towards(lambda weights: jnp.clip(weights, -bound, bound))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = clipping.update(updates, state, params)
        return jax.tree.map(inward, updates, params), state

    return optax.GradientTransformation(clipping.init, update)


def parseval(*, beta: Number = 3e-4) -> optax.GradientTransformation:
    """An Optax transformation, to come last in a chain: W ← (1 + β) W − β W Wᵀ W, towards orthogonal rows.

    A singular value s moves to s (1 + β − β s²), and so to 1 from anywhere in (0, √((2+β)/β)). Kernels are unfolded
    to (outputs, inputs · window); of a convolution they are so divided by √(window), the number of times that an
    input is seen, which its Lipschitz bound then counts.

    Args:
        beta: β > 0.

    Returns:
        The transformation. Tensors of fewer than two axes stay.

    Raises:
        ValueError: if `beta` is not positive.

    Example:
        >>> rule = optax.chain(optax.sgd(0.1), parseval(beta=0.1))
        >>> params = 0.5 * jnp.eye(2)
        >>> updates, _ = rule.update(jnp.zeros((2, 2)), rule.init(params), params)
        >>> float(optax.apply_updates(params, updates)[0, 0])
        0.5375000238418579

    Reference:
        Cissé et al., 2017, arXiv:1704.08847.
    """
    beta = _checks.positive("beta", beta)

    def nearer(weights: Any) -> Any:
        if weights.ndim < 2:
            return weights
        rows = weights.reshape(-1, weights.shape[-1]).T
        window = rows.shape[1] // weights.shape[-2]
        scaled = rows * window**0.5
        scaled = (1 + beta) * scaled - beta * (scaled @ scaled.T) @ scaled
        return (scaled / window**0.5).T.reshape(weights.shape)

    return _towards(nearer)


def _towards(target: Any) -> optax.GradientTransformation:
    """Updates after which the weights are a function of what they would be."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError("params must be given to update; got None")
        return jax.tree.map(lambda u, w: target(w + u) - w, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
