"""The gradient-ascent family: FGSM, R+FGSM, RS-FGSM, BIM, least-likely class, PGD and MI-FGSM are one attack."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Ascent, Loss, SearchState, check_run, scaled, step_sizes
from jaxrobust.attacks.core.base import check_set, register
from jaxrobust.sets import Linf, PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, Number, Targeted, pytree

__all__ = ["PGD", "bim", "fgsm", "least_likely", "mi_fgsm", "pgd", "r_fgsm", "rs_fgsm"]


@pytree("set", "step_size", "relative_step_size", "start_size", "momentum")
class PGD(Ascent):
    """Projected gradient ascent on any perturbation set: θ ← P(ascend(θ, ∇_θ ℓ, α)); see the functions below.

    Args:
        set: what the adversary may do.
        steps: gradient steps of a run, ≥ 1 (static).
        step_size: α in the unit of the radius; None takes `relative_step_size` · radius.
        relative_step_size: α as a fraction of the radius.
        restarts: independent runs, ≥ 1 (static); the engine keeps the best.
        start: "clean", "random" (a sample of the set), "noise" (a step of `start_size` · radius along Gaussian noise)
            or "gaussian" (parameters moved by `start_size` · N(0, I), projected, as TRADES and MART do).
        start_size: see `start`.
        momentum: decay μ of the accumulated gradient, normalised by its l1 norm each step; None for none.
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion), ascended.
        aim: "goal" ascends the loss of the criterion itself; "least_likely" aims at the class to which the clean
            image's logits give the lowest value, whatever the criterion counts as success.
    """

    set: PerturbationSet
    steps: int
    step_size: Number | None = None
    relative_step_size: Number | None = None
    restarts: int = 1
    start: Literal["clean", "random", "noise", "gaussian"] = "random"
    start_size: Number | None = None
    momentum: Number | None = None
    loss: Loss = "cross_entropy"
    aim: Literal["goal", "least_likely"] = "goal"

    _method = "gradient ascent"

    def __post_init__(self) -> None:
        check_run(self, "clean", "random", "noise", "gaussian")
        _checks.choice("aim", self.aim, ("goal", "least_likely"))
        for name in ("step_size", "relative_step_size", "start_size", "momentum"):
            object.__setattr__(self, name, _checks.number(name, getattr(self, name)))

    def _first(self, key: Key, x: Image) -> Any:
        if self.start == "gaussian":
            return self.set.project(x, moved(key, self.set.init(x), self.start_size))
        if self.start != "noise":
            return super()._first(key, x)
        identity, noise = self.set.init(x), jax.random.normal(key, x.shape, x.dtype)
        size = scaled(None, self.start_size, self._radius(x))
        gradient = self.set.pullback(x, identity, noise)
        return self.set.project(x, self.set.ascend(x, identity, gradient, size))

    def _memory(self, x: Image, theta: Any) -> Any:
        return None if self.momentum is None else jax.tree.map(jnp.zeros_like, theta)

    def _aim(self, goal: Criterion, logits: Logits) -> Criterion:
        return goal if self.aim == "goal" else Targeted(jnp.argmin(logits), goal.label)

    def _move(self, state: SearchState, gradient: Any) -> tuple[Any, Any]:
        x, velocity = state.x, state.memory
        if self.momentum is not None:
            total = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient))
            share = 1 / jnp.where(total > 0, total, 1)
            decay = jnp.asarray(self.momentum).astype(x.dtype)
            velocity = gradient = jax.tree.map(lambda v, g: decay * v + share * g, velocity, gradient)
        size = scaled(self.step_size, self.relative_step_size, self._radius(x))
        return self.set.project(x, self.set.ascend(x, state.theta, gradient, size)), velocity


def moved(key: Key, theta: Any, scale: Any) -> Any:
    """Parameters moved by scale · N(0, I)."""
    leaves, tree = jax.tree.flatten(theta)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

    def move(leaf: Any, key: Key) -> Any:
        return leaf + jnp.asarray(scale, leaf.dtype) * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.map(move, theta, keys)


def pgd(
    set: PerturbationSet,
    *,
    steps: int = 40,
    step_size: Number | None = None,
    relative_step_size: Number | None = None,
    restarts: int = 1,
    random_start: bool = True,
    momentum: Number | None = None,
    loss: Loss = "cross_entropy",
) -> PGD:
    """Projected gradient descent, the standard first-order attack, on any perturbation set.

    θ₀ is a random member of the set, then θ ← P(ascend(θ, ∇_θ ℓ, α)): for `Linf` x ← clip(x + α sign ∇ℓ) in the ball
    and the box, for `L2` along ∇ℓ/‖∇ℓ‖₂, for `L1` along the largest entries. The best iterate is kept.

    Cost: (steps + 1) · restarts forwards, steps · restarts backwards.

    Args:
        set: what the adversary may do.
        steps: gradient steps of a run, ≥ 1. Typical: 10 in training, 20–100 in evaluation.
        step_size: α in the unit of the radius.
        relative_step_size: α as a fraction of the radius; the default is 2.5/steps, which fits any number of steps.
        restarts: independent runs from new random starts; the best point of all is kept.
        random_start: whether to start from a sample of the set rather than the clean image.
        momentum: as in `mi_fgsm`; None for none.
        loss: "cross_entropy", "margin", "dlr" or a function of (logits (K,), criterion), ascended. With a `Targeted`
            criterion the targeted form is taken.

    Returns:
        The attack, for `attacks.run`, `evaluate.robustness` and training.

    Raises:
        ValueError: steps or restarts below 1, a step size that is negative or not finite, or both kinds of it.

    Example:
        >>> str(pgd(Linf(0.3), steps=10))
        'gradient ascent in Linf(0.3), 10 steps, random start, cross-entropy'

    Reference:
        Madry et al., 2018, arXiv:1706.06083. The original returns the last iterate; this keeps the best one.
    """
    check_set(set)
    step_size, relative_step_size = step_sizes(step_size, relative_step_size, 2.5 / _checks.count("steps", steps))
    return PGD(
        set,
        steps=steps,
        step_size=step_size,
        relative_step_size=relative_step_size,
        restarts=restarts,
        start="random" if random_start else "clean",
        momentum=momentum,
        loss=loss,
    )


def fgsm(set: PerturbationSet, *, loss: Loss = "cross_entropy") -> PGD:
    """The fast gradient sign method: one step of the whole radius from the clean image.

    For `Linf`, x' = clip(x + ε sign ∇ℓ(x)), the exact maximiser for a linear model; for other sets their own
    steepest ascent.

    Cost: 2 forwards, 1 backward.

    Args:
        set: what the adversary may do.
        loss: as in `pgd`.

    Returns:
        The attack.

    Reference:
        Goodfellow et al., 2015, arXiv:1412.6572. Where the step lowers the loss, the clean image is returned.
    """
    check_set(set)
    return PGD(set, steps=1, relative_step_size=1.0, start="clean", loss=loss)


def r_fgsm(set: PerturbationSet, *, relative_start_size: Number = 0.5, loss: Loss = "cross_entropy") -> PGD:
    """R+FGSM: a small step along Gaussian noise, then one gradient step of what is left of the radius.

    For `Linf`, x₁ = x + α sign N(0, I) and x' = x₁ + (ε − α) sign ∇ℓ(x₁).

    Cost: 2 forwards, 1 backward.

    Args:
        set: what the adversary may do.
        relative_start_size: α/ε in [0, 1]. The paper has 1/2, its released script 0.05/0.3.
        loss: as in `pgd`.

    Returns:
        The attack.

    Raises:
        ValueError: relative_start_size outside of [0, 1].

    Reference:
        Tramèr et al., 2018, arXiv:1705.07204.
    """
    check_set(set)
    start_size = _checks.number("relative_start_size", relative_start_size, high=1.0)
    return PGD(set, steps=1, relative_step_size=1 - start_size, start="noise", start_size=start_size, loss=loss)


def rs_fgsm(set: PerturbationSet, *, relative_step_size: Number = 1.25, loss: Loss = "cross_entropy") -> PGD:
    """RS-FGSM, the "fast" attack: a random start in the set, one step of 1.25 radii, projection.

    Cost: 2 forwards, 1 backward.

    Args:
        set: what the adversary may do.
        relative_step_size: α as a fraction of the radius.
        loss: as in `pgd`.

    Returns:
        The attack.

    Reference:
        Wong, Rice and Kolter, 2020, arXiv:2001.03994.
    """
    check_set(set)
    return PGD(set, steps=1, relative_step_size=relative_step_size, start="random", loss=loss)


def bim(
    set: PerturbationSet, *, steps: int | None = None, step_size: Number | None = None, loss: Loss = "cross_entropy"
) -> PGD:
    """The basic iterative method: gradient ascent from the clean image.

    Cost: steps + 1 forwards, steps backwards.

    Args:
        set: what the adversary may do.
        steps: by default ⌈min(255 ε + 4, 1.25 · 255 ε)⌉ for a `Linf` of known radius ε, else 10.
        step_size: α; by default 5/4 ε/steps for `Linf`, which is 1/255 with the default steps up to ε = 16/255 and
            goes with the radius (a given one does not); else a fifth of the radius.
        loss: as in `pgd`.

    Returns:
        The attack.

    Reference:
        Kurakin et al., 2017, arXiv:1607.02533 (l∞); Foolbox's defaults for the other sets.
    """
    check_set(set)
    known = isinstance(set, Linf) and isinstance(set.radius, float)
    if steps is None:
        steps = max(math.ceil(min(255 * set.radius + 4, 1.25 * 255 * set.radius)), 1) if known else 10
    # a fraction of the radius, so that the steps still lead to the boundary of another one
    default = 1.25 / _checks.count("steps", steps) if isinstance(set, Linf) else 0.2
    step_size, relative = step_sizes(step_size, None, default)
    return PGD(set, steps=steps, step_size=step_size, relative_step_size=relative, start="clean", loss=loss)


def least_likely(
    set: PerturbationSet, *, steps: int | None = None, step_size: Number | None = None, loss: Loss = "cross_entropy"
) -> PGD:
    """The iterative least-likely class method: `bim` towards the class that the clean image is least likely to be.

    Success stays what the criterion says; with labels that is misclassification.

    Cost: steps + 1 forwards, steps backwards.

    Args:
        set: what the adversary may do.
        steps: as in `bim`; 1 gives the one-step variant.
        step_size: as in `bim`.
        loss: as in `pgd`, in its targeted form.

    Returns:
        The attack.

    Reference:
        Kurakin et al., 2017, arXiv:1607.02533.
    """
    plain = bim(set, steps=steps, step_size=step_size, loss=loss)
    return PGD(**{**vars(plain), "aim": "least_likely"})


def mi_fgsm(set: PerturbationSet, *, steps: int = 10, momentum: Number = 1.0, loss: Loss = "cross_entropy") -> PGD:
    """Momentum iterative FGSM: g ← μ g + ∇ℓ/‖∇ℓ‖₁ and a step of radius/steps along g, from the clean image.

    Cost: steps + 1 forwards, steps backwards.

    Args:
        set: what the adversary may do; the paper has `Linf(16 / 255)`.
        steps: T ≥ 1.
        momentum: μ ≥ 0; 0 is `bim` with α = ε/T.
        loss: as in `pgd`.

    Returns:
        The attack.

    Reference:
        Dong et al., 2018, arXiv:1710.06081.
    """
    check_set(set)
    relative = 1.0 / _checks.count("steps", steps)
    return PGD(set, steps=steps, relative_step_size=relative, start="clean", momentum=momentum, loss=loss)


register(
    "pgd",
    pgd,
    use="First choice in training and for a quick evaluation, on any set: 20 to 100 steps, several restarts.",
)
register("fgsm", fgsm, use="A cheap sanity check, which `pgd` must beat; never the only attack of a report.")
register("r_fgsm", r_fgsm, use="One-step training; evaluate with `pgd`.")
register("rs_fgsm", rs_fgsm, use="Fast adversarial training; evaluate with `pgd`.")
register("bim", bim, use="Comparison with older papers; `pgd` starts at random besides.")
register("least_likely", least_likely, use="Comparison with older papers, and data sets whose classes are much alike.")
register("mi_fgsm", mi_fgsm, use="Crafting points that are to fool other models too.")
