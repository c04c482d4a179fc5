"""Search without gradients over a set of few parameters: every point of a grid, or the worst of some random ones."""

from __future__ import annotations

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import _checks
from jaxrobust.attacks.core.ascent import Loss, QueryAttack, SearchState, check_loss
from jaxrobust.attacks.core.base import Points, check_field, check_set, register
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Criterion, Image, Key, Logits, pytree

__all__ = ["GridSearch", "RandomSearch", "grid_search", "worst_of_k"]


class Enumeration(QueryAttack):
    """An attack that asks a fixed number of members, a chunk at a time; subclasses say which."""

    chunk: int

    @property
    @abc.abstractmethod
    def _count(self) -> int:
        """How many points are meant."""

    @abc.abstractmethod
    def _point(self, state: SearchState, place: Int[Array, ""]) -> Any:
        """The parameters of one of them; the place may lie beyond the last."""

    @property
    def width(self) -> int:
        """Points asked at once."""
        return min(self.chunk, self._count)

    @property
    def asks(self) -> int:
        """As many chunks as hold all points."""
        return math.ceil(self._count / self.width)

    def meant(self, state: SearchState) -> Bool[Array, " queries"]:
        """Those of the last chunk that are not beyond the last point."""
        return self._places(state) < self._count

    def init(self, key: Key, x: Image, goal: Criterion, logits: Logits) -> SearchState:
        """The clean image is booked first."""
        return self._open(x, goal, logits, None, key)

    def ask(self, state: SearchState) -> Points:
        """The images of the next chunk; beyond the last point, images that are not looked at."""
        return jax.vmap(self.set.apply, (None, 0))(state.x, self._thetas(state))

    def tell(self, state: SearchState, logits: Float[Array, "queries classes"], gradients: Array) -> SearchState:
        """Books the best point of the chunk if it is better: success first, then loss."""
        meant = self.meant(state)
        loss = jnp.where(meant, jax.vmap(self._loss, (0, None))(logits, state.aim), -jnp.inf)
        # logits of points that are not meant must not be looked at, not even for NaN
        logits = jnp.where(meant[:, None], logits, logits[:1])
        return self._book(state, self._thetas(state), loss, logits, meant)

    def _places(self, state: SearchState) -> Int[Array, " queries"]:
        return state.asked * self.width + jnp.arange(self.width, dtype=jnp.int32)

    def _thetas(self, state: SearchState) -> Any:
        return jax.vmap(self._point, (None, 0))(state, self._places(state))

    def _forwards(self, state: SearchState) -> Int[Array, ""]:
        return jnp.minimum(state.asked * self.width, self._count)

    @property
    def _run(self) -> str:
        return f"{self._count} points"


@pytree("set")
class GridSearch(Enumeration):
    """Every point of a set's grid; see `grid_search`.

    Args:
        set: what the adversary may do; it must have `grid(x, points)`.
        points: points along each parameter (static).
        chunk: points asked at once, ≥ 1 (static).
        loss: a name of `losses.LOSSES` or a function of (logits (K,), criterion): the worst point is where it is
            highest.
    """

    set: PerturbationSet
    points: tuple[int, ...] = (31, 5, 5)
    chunk: int = 25
    loss: Loss = "cross_entropy"
    start = "clean"  # nothing is random

    _method = "grid search"

    def __post_init__(self) -> None:
        check_field(self.set)
        check_loss(self.loss)
        _checks.count("chunk", self.chunk)
        for number in self.points:
            _checks.count("points", number)
        # JAX rebuilds pytrees around placeholders, which have no grid
        if isinstance(self.set, PerturbationSet) and not hasattr(self.set, "grid"):
            raise TypeError(f"set must have a grid of parameters, such as RotationTranslation; got {self.set}")

    @property
    def _count(self) -> int:
        return math.prod(self.points)

    def _point(self, state: SearchState, place: Int[Array, ""]) -> Any:
        grid = self.set.grid(state.x, self.points)  # type: ignore[attr-defined]
        return jax.tree.map(lambda leaf: leaf[jnp.minimum(place, self._count - 1)], grid)


@pytree("set")
class RandomSearch(Enumeration):
    """The worst of k random members; see `worst_of_k`.

    Args:
        set: what the adversary may do.
        samples: k ≥ 1 (static).
        chunk: samples asked at once, ≥ 1 (static).
        loss: as in `GridSearch`.
    """

    set: PerturbationSet
    samples: int = 10
    chunk: int = 10
    loss: Loss = "cross_entropy"

    _method = "random search"

    def __post_init__(self) -> None:
        check_field(self.set)
        check_loss(self.loss)
        _checks.count("samples", self.samples)
        _checks.count("chunk", self.chunk)

    @property
    def _count(self) -> int:
        return self.samples

    def _point(self, state: SearchState, place: Int[Array, ""]) -> Any:
        return self.set.sample(jax.random.fold_in(state.memory, place), state.x)


def grid_search(
    set: PerturbationSet,
    *,
    points: tuple[int, ...] = (31, 5, 5),
    chunk: int = 25,
    loss: Loss = "cross_entropy",
) -> GridSearch:
    """Ask every point of a grid over the parameters: the reference attack on rotations and translations.

    The worst point is a misclassified one if there is any, then the one of highest loss.

    Cost: Π points forwards, no backwards.

    Args:
        set: what the adversary may do, `RotationTranslation()`; any set with a method `grid(x, points)` that gives
            Π points stacked parameters.
        points: points along each parameter, ends included: 31 angles and 5 shifts along each axis are 775. Odd
            numbers have the identity among them.
        chunk: points asked at once; time does not depend on it much, memory does. In the last chunk, points beyond
            the grid are neither looked at nor counted.
        loss: "cross_entropy", "margin", "dlr" or a function of (logits (K,), criterion).

    Returns:
        The attack. It uses no gradients. The combination with l∞, an attack inside each transform, is not in it.

    Raises:
        TypeError: the set has no grid.
        ValueError: chunk or a number of points below 1.

    Reference:
        Engstrom et al., 2019, arXiv:1712.02779.
    """
    check_set(set)
    if not isinstance(points, (tuple, list)):
        raise TypeError(f"points must be a tuple, one an axis of the grid; got {points!r}")
    return GridSearch(set, tuple(points), chunk, loss)


def worst_of_k(
    set: PerturbationSet, *, samples: int = 10, chunk: int = 10, loss: Loss = "cross_entropy"
) -> RandomSearch:
    """The worst of k random members of a set: misclassified first, then of highest loss.

    The draws for a smaller k are the first of those for a larger one, so more samples never help the defender.

    Cost: `samples` forwards, no backwards.

    Args:
        set: what the adversary may do; the paper has `RotationTranslation()`.
        samples: k ≥ 1; the paper has 10, in evaluation and in training.
        chunk: samples asked at once.
        loss: as in `grid_search`.

    Returns:
        The attack. It uses no gradients.

    Raises:
        ValueError: samples or chunk below 1.

    Reference:
        Engstrom et al., 2019, arXiv:1712.02779.
    """
    check_set(set)
    return RandomSearch(set, samples, chunk, loss)


register(
    "worst_of_k",
    worst_of_k,
    use="A cheap sanity check on any set, which gradients must beat; and training on rotations.",
)
register(
    "grid",
    grid_search,
    on="rotation_translation",
    use="First choice for rotations and translations, where gradients are misled by many local maxima.",
)
