"""Expectation over transformation: models that draw random numbers, and any attack on the mean over their draws."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrobust import _checks
from jaxrobust.attacks.compose.worst_of import WorstOf
from jaxrobust.attacks.core.around import Around
from jaxrobust.attacks.core.base import Attack, Best, register
from jaxrobust.attacks.core.engine import check_attack
from jaxrobust.attacks.core.minimum import choose
from jaxrobust.attacks.gradient.apgd import apgd
from jaxrobust.attacks.gradient.pgd import pgd
from jaxrobust.sets import PerturbationSet
from jaxrobust.types import Classifier, Criterion, Image, Key, Logits, pytree

__all__ = ["EOT", "RandomClassifier", "autoattack_rand", "eot", "mean_prediction"]

# numbers of draws below this are exact in float32; those of the mean prediction come after them
MARKS = 2**24


@pytree("params")
class RandomClassifier:
    """A model that draws random numbers: a randomised defence, or a network behind random transforms.

    Args:
        apply: `(params, keys (N,), images (N, H, W, C)) -> logits (N, K)`, a key an image, so that every image is
            treated alone; equal keys and images must give equal logits.
        params: a pytree of arrays.

    Example:
        >>> def noisy(w, keys, x):
        ...     x = x + 0.1 * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        ...     return x.reshape(x.shape[0], -1) @ w
        >>> defence = RandomClassifier(noisy, jnp.ones((4, 3)))
        >>> defence.mean(jax.random.key(0))(jnp.zeros((2, 2, 2, 1))).shape
        (2, 3)

    Reference:
        Athalye, Carlini and Wagner, 2018, arXiv:1802.00420.
    """

    apply: Callable[..., Any]
    params: Any

    @staticmethod
    def transformed(model: Classifier, transform: Callable[..., Any]) -> RandomClassifier:
        """A classifier that sees every image through a random transform.

        Args:
            model: the classifier.
            transform: `(key, image (H, W, C)) -> image`, differentiable where attacks are to use gradients.

        Returns:
            The random classifier.
        """
        return RandomClassifier(_Transformed(model.apply, transform), model.params)

    def mean(self, key: Key, samples: int = 20) -> Classifier:
        """The mean prediction log Σ_i softmax(z_i)/n over n draws that are fixed by the key: what is to be robust.

        It is an ordinary classifier, for evaluation and for all attacks; `eot` attacks it by draws of its own, so that
        no attack can fit the draws by which its success is confirmed. n times the cost of the model.

        Args:
            key: fixes the draws.
            samples: n ≥ 1.

        Returns:
            The classifier; its logits are log-probabilities.
        """
        _checks.key(key)
        return Classifier(_Mean(self.apply, _checks.count("samples", samples)), (self.params, key))


@dataclasses.dataclass(frozen=True)
class _Transformed:
    apply: Callable[..., Any]
    transform: Callable[..., Any]

    def __call__(self, params: Any, keys: Key, images: Any) -> Array:
        return self.apply(params, jax.vmap(self.transform)(keys, images))


@dataclasses.dataclass(frozen=True)
class _Mean:
    """Images (N, H, W, C) get the mean prediction; of pairs (N, 2, H, W, C) the second image names the one draw."""

    apply: Callable[..., Any]
    samples: int

    def __call__(self, params: Any, images: Any) -> Array:
        weights, key = params
        images = jnp.asarray(images)
        draw = functools.partial(jax.random.fold_in, key)
        if images.ndim == 5:
            marks = lax.stop_gradient(images[:, 1, 0, 0, 0]).astype(jnp.uint32)
            return self.apply(weights, jax.vmap(draw)(marks), images[:, 0])
        keys = jax.vmap(draw)(MARKS + jnp.arange(self.samples, dtype=jnp.uint32))
        keys = keys[jnp.tile(jnp.arange(self.samples), len(images))]
        logits = self.apply(weights, keys, jnp.repeat(images, self.samples, 0))
        if logits.dtype.itemsize < 4:  # whose few digits a mean would lose
            logits = logits.astype(jnp.float32)
        return jax.vmap(mean_prediction)(logits.reshape(len(images), self.samples, -1))


def mean_prediction(logits: Float[Array, "samples classes"]) -> Logits:
    """The logarithm of the mean of softmax(z_i) over draws.

    Args:
        logits: (n, K), one row a draw.

    Returns:
        (K,) log-probabilities.

    Example:
        >>> mean_prediction(jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))).round(4)
        Array([-0.9808, -0.47  ], dtype=float32)
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(jnp.asarray(len(logits), logits.dtype))


@pytree("state", "goal", "key", "asked", "looked", "logits", "loss", "rank")
class EOTState:
    """The attack's own state, what makes the next draws, and the second look at its best point once it is done."""

    state: Any
    goal: Criterion
    key: Any
    asked: Any
    looked: Any  # whether the best point has been looked at again
    logits: Any  # the mean prediction there
    loss: Any  # and the mean of the draws' losses
    rank: Any  # and of what is followed in their place


@pytree("attack")
class EOT(Around):
    """Asks every point of an attack at several draws of the model; see `eot`.

    Args:
        attack: the attack, none around others.
        samples: n ≥ 1 draws a point (static).
    """

    attack: Attack
    samples: int = 20
    sees_draws = True
    random = True  # wherever the attack itself starts, its runs differ by their draws

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.count("samples", self.samples)
        if getattr(self.attack, "minimum_norm", False):
            raise ValueError(
                "attack must not be a minimum-norm one under eot: its points lie on the boundary, where draws "
                f"are right as often as wrong; take evaluate.curve of eot(pgd(...)) over radii; got {self.attack}"
            )
        if getattr(self.attack, "sees_draws", False):
            raise ValueError(f"attack must not be around eot already; got {self.attack}")

    @property
    def width(self) -> int:
        """Every point of the attack at every draw."""
        return self.samples * self.attack.width

    @property
    def widths(self) -> tuple[int, ...]:
        """The attack's, at every draw."""
        return tuple(self.samples * width for width in self.attack.widths)

    @property
    def asks(self) -> int:
        """The attack's, and a second look at its best point."""
        return self.attack.asks + 1

    @property
    def gradients(self) -> int:
        """The attack's, at every draw."""
        return self.samples * self.attack.gradients

    @property
    def bookings(self) -> int:
        """The attack's, and the second look."""
        return self.attack.bookings + 1

    def begin(self, key: Key, x: Image, goal: Criterion, logits: Logits, restart: Any) -> EOTState:
        """The attack's, and a key for the draws."""
        inner, own = jax.random.split(key)
        state = self.attack.begin(inner, x, goal, logits, restart)
        best = self.attack.best(state)
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return EOTState(state, goal, own, zero, no, logits, best.loss, best.rank)

    def ask(self, state: EOTState) -> Float[Array, "queries 2 height width channels"]:
        """The attack's points, at last its best one, each with the numbers of its draws, fresh ones every time."""
        best = self.attack.best(state.state).image[None]
        points = jnp.where(self.attack.done(state.state), best, self.attack.ask(state.state))
        points = jnp.repeat(points, self.samples, 0)
        marks = jax.random.randint(jax.random.fold_in(state.key, state.asked), (self.width, 1, 1, 1), 0, MARKS)
        return jnp.stack([points, jnp.broadcast_to(marks.astype(points.dtype), points.shape)], 1)

    def meant(self, state: EOTState) -> Bool[Array, " queries"]:
        """The draws of the attack's points that are, or of its best one."""
        first = jnp.arange(self.width) < self.samples
        meant = jnp.repeat(self.attack.meant(state.state), self.samples, 0)
        return jnp.where(self.attack.done(state.state), first, meant)

    def cotangents(self, state: EOTState, logits: Float[Array, "queries classes"]) -> Array:
        """The attack's directions, at each draw's own logits."""
        draws = jnp.moveaxis(self._by_draw(logits), 1, 0)
        found = jax.vmap(lambda logits: self.attack.cotangents(state.state, logits))(draws)
        return jnp.moveaxis(found, 0, 1).reshape(self.width, *found.shape[2:])

    def tell(self, state: EOTState, logits: Float[Array, "queries classes"], gradients: Array) -> EOTState:
        """Tells the attack the mean prediction, the draws and the gradients' mean; or looks at its best point."""
        inner, draws = state.state, self._by_draw(logits)
        mean = jax.vmap(mean_prediction)(draws)
        over = self.attack.done(inner)
        told = self.attack.tell_draws(inner, mean, draws, jnp.mean(self._by_draw(gradients[:, :, 0]), 1))
        loss, rank = self.attack.loss_at(inner, self.attack.best(inner).parameters, draws[0])
        return dataclasses.replace(
            state,
            state=choose(over, inner, told),
            asked=state.asked + 1,
            looked=over,
            logits=jnp.where(over, mean[0], state.logits),
            loss=jnp.where(over, loss.astype(state.loss.dtype), state.loss),
            rank=jnp.where(over, rank.astype(state.rank.dtype), state.rank),
        )

    def done(self, state: EOTState) -> Bool[Array, ""]:
        """Whether the attack is, and its best point has been looked at again."""
        return state.looked

    def best(self, state: EOTState) -> Best:
        """What the attack has booked, by the second look at it once that was taken; every draw is a forward pass."""
        best = self.attack.best(state.state)
        asked = best.forwards + state.looked.astype(best.forwards.dtype)
        success, seen = (
            state.goal.met(state.logits),
            {name: getattr(state, name) for name in ("loss", "logits", "rank")},
        )
        again = dataclasses.replace(best, success=success, **seen)
        best = choose(state.looked, again, best)
        return dataclasses.replace(best, forwards=self.samples * asked, backwards=self.samples * best.backwards)

    def loss_of(self, state: EOTState) -> Float[Array, ""]:
        """The attack's loss at the mean prediction of the point last asked."""
        return self.attack.loss_of(state.state)

    def last(self, state: EOTState) -> Image:
        """The attack's."""
        return self.attack.last(state.state)

    def bound_to(self, model: Classifier) -> Attack:
        """The attack when `model` is attacked, which must be the mean of a random classifier."""
        if not isinstance(model.apply, _Mean):
            raise ValueError(f"model must be a RandomClassifier's mean(key) for {self}; got a classifier without draws")
        return super().bound_to(model)

    def _by_draw(self, rows: Array) -> Array:
        return rows.reshape(self.attack.width, self.samples, *rows.shape[1:])

    def __str__(self) -> str:
        return f"{self.attack}, {self.samples} draws a point"


def eot(attack: Attack, *, samples: int = 20) -> Attack:
    """Expectation over transformation: any attack, on a model that draws random numbers.

    Every point is asked at n fresh draws t_i; the attack is told the mean prediction log Σ_i softmax(z_i)/n, the mean
    of what it follows of the losses ℓ(z_i), by which it goes, and the mean of its gradients, not that of the mean
    prediction. Of cross-entropy that is the mean of the log-odds u(z_i), see `losses.followed`, not of softplus(u): it
    leaves out no draw that is right beyond doubt, but where the scales of the draws' logits differ much, that of the
    largest leads. (Draws of two networks: PGD and APGD fool 0.86 and 0.84, by the mean of cross-entropies 0.50; where
    the logits of one are a hundred times as large, 0.36 and 0.34, and by cross-entropies 0.45 and 0.42.)
    The best of many noisy points is the luckiest, so the best point of a run is at last asked again, at n fresh draws,
    and booked by them. Attack `RandomClassifier.mean(key)`: its draws, which the attack does not see, alone say what is
    a success; points that were one by luck get `Code.DISAGREED`. For that reason no first success ends a search.

    Attacks around others, such as `restarts` or `worst_of`, are put around the attack under expectation:
    eot(restarts(a, n)) is restarts(eot(a), n).

    Cost: n times the attack's forwards and backwards and n more forwards a run; the clean and the confirming pass are n
    of their own.

    Args:
        attack: the attack, with gradients or without.
        samples: n ≥ 1 draws a point.

    Returns:
        The attack.

    Raises:
        TypeError: not an attack.
        ValueError: samples below 1, a minimum-norm attack or `minimal`, or one around `eot` already; when
            run, a model that is not the mean of a `RandomClassifier`.

    Example:
        >>> str(eot(jr.attacks.pgd(jr.sets.Linf(0.3), steps=10)))
        'gradient ascent in Linf(0.3), 10 steps, random start, cross-entropy, 20 draws a point'

    Reference:
        Athalye et al., 2018, arXiv:1707.07397 and arXiv:1802.00420.
    """
    check_attack(attack)
    under = functools.partial(eot, samples=samples)
    if isinstance(attack, WorstOf):
        return dataclasses.replace(attack, attacks=tuple(map(under, attack.attacks)))
    if isinstance(attack, Around) and not isinstance(attack, EOT):
        return dataclasses.replace(cast(Any, attack), attack=under(attack.attack))
    return EOT(attack, samples)


def autoattack_rand(
    set: PerturbationSet, *, samples: int = 20, steps: int = 100, restarts: int = 1
) -> dict[str, Attack]:
    """AutoAttack's version for randomised defences: APGD by cross-entropy, then by DLR, with averaged gradients.

    For `evaluate.autoattack(defence.mean(key), data, attacks=autoattack_rand(set), key=key)`.

    Cost: with N steps, R restarts and n draws, 2 R n (N + 2) forwards and 2 R n N backwards.

    Args:
        set: `Linf`, `L2` or `L1`.
        samples: draws a step; published: 20.
        steps: steps of a run, ≥ 1.
        restarts: independent runs, ≥ 1.

    Returns:
        Name -> attack, in their order. The original calls a point a success by its last draw, this by the mean
        prediction.

    Raises:
        TypeError: another set.
        ValueError: samples, steps or restarts below 1.

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690.
    """
    return {
        "apgd-ce": eot(apgd(set, steps=steps, restarts=restarts), samples=samples),
        "apgd-dlr": eot(apgd(set, steps=steps, restarts=restarts, loss="dlr"), samples=samples),
    }


def _example(set: PerturbationSet) -> Attack:
    return eot(pgd(set, steps=3), samples=2)


def _noise(key: Key, image: Image) -> Image:
    return image + 0.01 * jax.random.normal(key, image.shape, image.dtype)


def _noisy(model: Classifier) -> Classifier:
    """The mean over a little noise before the model."""
    return RandomClassifier.transformed(model, _noise).mean(jax.random.key(0), samples=3)


register(
    "eot",
    _example,
    factory=eot,
    use="Wraps any attack, for randomised defences and for random transforms of the physical world.",
    model=_noisy,
)
