"""How large the mean loss can be on any distribution near the data, of a network as it is."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxrobust import _checks, _compile, _inputs
from jaxrobust.training.objectives.core import cross_entropies
from jaxrobust.training.objectives.distributions import priced
from jaxrobust.types import Classifier, Images, Number

__all__ = ["WassersteinBound", "wasserstein_bound"]


@dataclasses.dataclass(frozen=True)
class WassersteinBound:
    """What `wasserstein_bound` found at one price: a bound for every budget.

    Args:
        gamma: γ.
        losses: (N,) cross-entropies ℓ(x'), float64.
        costs: (N,) ‖x' − x‖²; their mean is the budget at which `losses.mean()` is reached, where the bound is tight.
        rest: (N,) the norm of the gradient of ℓ(x')/(2γ) − ½‖x' − x‖²; 0 at the supremum.
    """

    gamma: float
    losses: np.ndarray
    costs: np.ndarray
    rest: np.ndarray

    def at(self, budget: float) -> float:
        """γρ + E[ℓ(x') − γ‖x' − x‖²], which no distribution within ρ of the data exceeds in mean loss.

        Args:
            budget: ρ ≥ 0.

        Returns:
            The bound.

        Raises:
            ValueError: if `budget` is negative.
        """
        surrogate = np.mean(self.losses - self.gamma * self.costs)
        return float(self.gamma * _checks.number("budget", budget) + surrogate)


def wasserstein_bound(
    model: Classifier, images: Images, labels: Int[Array, " batch"], *, gamma: Number = 1 / 2.6, steps: int = 15
) -> WassersteinBound:
    """The certificate of Wasserstein DRO: sup {E_Q ℓ : W(Q, P) ≤ ρ} = inf_γ γρ + E_P sup_{x'} ℓ(x') − γ‖x' − x‖².

    W is the optimal transport cost of ‖x' − x‖² with labels fixed, P the examples at hand; x' is found as by `wrm`. So
    any γ bounds the worst mean loss for every ρ, if the search has found the supremum: `rest` is near 0, which a smooth
    network (no ReLU) and γ above half of the loss's curvature allow. Images may leave the box, so the bound holds
    within it too.

    Args:
        model: the classifier.
        images: (N, H, W, C) in [0, 1].
        labels: (N,).
        gamma: γ > 0, the price; that of the training is the natural one.
        steps: of the search, after the first.

    Returns:
        The bound, a function of ρ.

    Raises:
        TypeError: `model` is no classifier, images or labels are of a wrong type.
        ValueError: shapes that do not fit, `gamma` not positive, `steps` below 1.

    Example:
        >>> model = Classifier.from_function(lambda x: x.reshape(len(x), -1) @ jnp.eye(4)[:, :2])
        >>> found = wasserstein_bound(model, jnp.full((3, 2, 2, 1), 0.5), jnp.array([0, 1, 0]), gamma=2.0)
        >>> round(found.at(0.0), 3), round(found.at(0.1), 3)
        (0.756, 0.956)

    Reference:
        Sinha, Namkoong and Duchi, 2018, arXiv:1710.10571.
    """
    _inputs.classifier(model)
    _inputs.image_shape(images)
    _inputs.label_shape("labels", labels, images)
    price = _checks.positive("gamma", gamma)
    found = _search(model, images, labels, jnp.float32(price), steps=_checks.count("steps", steps))
    return WassersteinBound(float(price), *(np.asarray(values, np.float64) for values in found))


@functools.partial(_compile.jit, static_argnames="steps")
def _search(model: Classifier, images: Any, labels: Any, gamma: Any, *, steps: int) -> tuple[Any, Any, Any]:
    def losses(images: Images) -> Any:
        return cross_entropies(model(images), labels)

    found, rest = priced(losses, images, gamma, steps)
    return losses(found), jnp.sum(jnp.square(found - images), axis=(1, 2, 3)), rest
