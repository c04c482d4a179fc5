"""Networks, images and reference programs that several benchmarks share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrobust as jr
from benchmarks.harness import Settings
from jaxrobust._compile import jit  # as the library compiles, so that ratios are of like and like

__all__ = [
    "begin",
    "eagerly",
    "forward",
    "gradients",
    "in_jit",
    "in_lanes",
    "input_gradient",
    "mnist_net",
    "network",
    "released",
    "steps",
    "undefended",
    "unlike",
]


def mnist_net(settings: Settings) -> jr.Classifier:
    """The small MNIST network, untrained."""
    return jr.Classifier.from_nnx(jr.models.MnistNet(rngs=nnx.Rngs(settings.seed)))


def network(name: str, settings: Settings) -> tuple[jr.Classifier, tuple[int, ...], float]:
    """An untrained network, the shape of its images, the usual radius."""
    if name == "MnistNet":
        return mnist_net(settings), (28, 28, 1), 0.3
    widths = (8, 16, 32, 64) if settings.quick else (64, 128, 256, 512)
    resnet = jr.models.PreActResNet(widths=widths, rngs=nnx.Rngs(settings.seed))
    return jr.Classifier.from_nnx(resnet), (32, 32, 3), 8 / 255


def undefended(settings: Settings) -> jr.Classifier:
    """The trained, undefended MNIST network."""
    return jr.Classifier.from_nnx(jr.models.load_npz(settings.weights, jr.models.MnistNet(rngs=nnx.Rngs(0))))


def released(settings: Settings, name: str) -> jr.Classifier:
    """One of the released MNIST networks, whose weights lie beside those of the undefended one."""
    weights = settings.weights.with_name(f"{name}.npz")
    return jr.Classifier.from_nnx(jr.models.load_npz(weights, jr.models.MnistNet(rngs=nnx.Rngs(0))))


@jit
def forward(model: jr.Classifier, images: Any) -> Any:
    """One forward pass."""
    return model(images)


def unlike(model: jr.Classifier, shape: tuple[int, ...], count: int, *, seed: int) -> tuple[jax.Array, jax.Array]:
    """Random images with the model's own predictions for labels, so that none is misclassified from the start."""
    images = jnp.asarray(np.random.default_rng(seed).random((count, *shape), np.float32))
    return images, jnp.argmax(forward(model, images), axis=1).astype(jnp.int32)


@jit
def input_gradient(model: jr.Classifier, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The yardstick: one gradient of the batch's summed cross-entropy with respect to its images."""

    def loss(images: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).sum()

    return jax.grad(loss)(images)


def gradients(model: jr.Classifier, images: jax.Array, labels: jax.Array, *, times: int) -> Callable[[], Any]:
    """The yardstick several times over, one after the other."""
    # XLA:CPU may run independent programs at the same time; an accelerator queues them without waiting for the host.
    in_turn = jax.default_backend() == "cpu"

    def work() -> Any:
        for _ in range(times):
            found = input_gradient(model, images, labels)
            if in_turn:
                found.block_until_ready()
        return found

    return work


@jit
def begin(attack: Any, model: jr.Classifier, images: Any, goal: Any, keys: Any) -> Any:
    """The states of a batch before the first step."""
    return jr.attacks.engine.begin(attack, images, goal, keys, model(images), 0)


def steps(attack: Any, model: jr.Classifier, states: Any, times: int, *, stop: str = "never") -> Any:
    """So many steps of a batch; a step costs the same whether its examples are done or not."""
    for _ in range(times):
        states = _step(attack, model, states, stop)
    return states


@functools.partial(jit, static_argnames="stop")
def _step(attack: Any, model: jr.Classifier, states: Any, stop: Any) -> Any:
    return jr.attacks.engine.advance(attack, model, states, stop=stop)


@jit
def in_jit(attack: Any, model: jr.Classifier, images: Any, labels: Any, key: Any) -> Any:
    """`attacks.run` as users have it inside a program of their own."""
    return jr.attacks.run(attack, model, images, labels, key=key)


def in_lanes(attack: Any, model: jr.Classifier, images: Any, labels: Any, key: Any) -> Any:
    """The same by the lanes of one device, an example each, without early stop."""
    device = jax.local_devices()[:1]
    return jr.evaluate.run_lanes(
        attack, model, images, labels, key=key, lanes=len(images), early_stop=False, devices=device
    ).result


def eagerly(attack: Any, model: jr.Classifier, images: Any, labels: Any, key: Any) -> Any:
    """The same called from Python, with the checks at its door."""
    return jr.attacks.run(attack, model, images, labels, key=key)
