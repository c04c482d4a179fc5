"""How a model on the host is asked by attacks that run on devices: what the lanes and the diagnostics share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _checks, _compile, _inputs
from jaxrobust.attacks import Attack, engine, trajectory
from jaxrobust.evaluate.host import HostModel
from jaxrobust.types import Classifier, Key

__all__ = ["answers", "check_attack", "followed", "gradients", "losses"]


def check_attack(attack: Attack, model: HostModel) -> None:
    """That an attack can do with what a host model gives.

    Raises:
        ValueError: it uses gradients and the model has none, it sees draws of the model, or its set measures with the
            attacked model's own activations.
    """
    if attack.sees_draws:
        raise ValueError(f"attack must not be under eot on a HostModel, which has no draws to average; got {attack}")
    if attack.gradients and not model.differentiable:
        raise ValueError(f"attack must use no gradients on a HostModel without a pullback; got {attack}")
    attack.bound_to(Classifier(model, ()))  # which has no activations either, and says so to a set that wants them


def followed(attack: Attack, states: Any, logits: Any, *, stop: engine.Stop) -> Any:
    """Directions (N, q, m, K) to pull back, zeros where the attack counts no gradient or its success ends the search.

    Whether it does follows from the logits alone, so the points are told here without gradients, to see.
    """
    after = engine.tell(attack, states, logits, None, stop=stop)
    before, told = (engine.each(attack, "best", of) for of in (states, after))
    wanted = told.backwards > before.backwards
    if stop == "success":
        wanted &= ~told.success
    directions = engine.each(attack, "cotangents", states, logits)
    return jnp.where(wanted[:, None, None, None], directions, 0)


def answers(
    model: HostModel, points: np.ndarray, asked: np.ndarray, directions: Callable[[np.ndarray], Any] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """What the model says of the points that are asked.

    Args:
        model: the model.
        points: (N, q, H, W, C).
        asked: (N, q), which of them.
        directions: from logits (N, q, K) to what is to be pulled back (N, q, m, K), None for no gradients.

    Returns:
        Logits (N, q, K), and gradients (N, q, m, H, W, C) or None; zeros at other points.
    """
    if directions is None:
        return _spread(model(points[asked]), asked), None
    scores, pull = model.linearised(points[asked])
    logits = _spread(scores, asked)
    return logits, _spread(pull(jax.device_get(directions(logits))[asked]), asked)


def _spread(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    found = np.zeros((*asked.shape, *rows.shape[1:]), rows.dtype)
    found[asked] = rows
    return found


def gradients(loss: Callable[..., Any], model: Classifier | HostModel, images: Any, labels: Any) -> np.ndarray:
    """Gradients (N, H, W, C) of a loss of one example's logits and label; of host models as many as there are."""
    if not isinstance(model, HostModel):
        return np.asarray(_gradients(loss, model, images, labels))
    scores, pull = model.linearised(images)
    return pull(np.asarray(_slopes(loss, scores, labels))[:, None])[:, 0]


def _each(loss: Callable[..., Any], logits: Any, labels: Any) -> Any:
    return jax.vmap(jax.grad(loss))(logits, labels)


_slopes = _compile.jit(_each, static_argnums=0)


def _pulled(loss: Callable[..., Any], model: Classifier, images: Any, labels: Any) -> Any:
    logits, pull = jax.vjp(model, images)
    return pull(_each(loss, logits, labels))[0]


_gradients = _compile.jit(_pulled, static_argnums=0)
_begin = _compile.jit(engine.begin)
_ask = _compile.jit(lambda attack, states: engine.each(attack, "ask", states))
_followed = _compile.jit(followed, static_argnames="stop")
_tell = _compile.jit(engine.tell, static_argnames="stop")
_loss_of = _compile.jit(lambda attack, states: engine.each(attack, "loss_of", states))


def losses(attack: Attack, model: Classifier | HostModel, images: Any, labels: Any, *, key: Key) -> np.ndarray:
    """`attacks.trajectory`, the losses (asks, N) at every point asked, of host models too."""
    if not isinstance(model, HostModel):
        return trajectory(attack, model, images, labels, key=key)
    engine.check_attack(attack)
    check_attack(attack, model)
    _checks.key(key)
    images, goal = jax.tree.map(np.asarray, _inputs.batch(images, labels))
    engine.check_radii(attack, images)
    keys = engine.example_keys(key, np.arange(len(images)))
    states = _begin(attack, images, goal, keys, model(images), 0)
    found = []
    for ask in range(attack.asks):
        points = jax.device_get(_ask(attack, states))
        books = not attack.gradients or ask == attack.asks - 1
        directions = None if books else functools.partial(_followed, attack, states, stop="clean")
        told = answers(model, points, np.ones(points.shape[:2], bool), directions)
        states = _tell(attack, states, *told, stop="clean")
        found.append(np.asarray(_loss_of(attack, states)))
    return np.stack(found)
