"""X15: Wasserstein DRO by a price, and its certificate for every budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import optimize

import jaxrobust as jr
from experiments.claims.common import Bench, Claim, NetS, Result
from jaxrobust import training

PRICES = (4.0, 2.0, 1.0, 0.5)  # of the moves that are measured, as multiples of the certificate's


class Smooth(NetS):
    """`NetS` with ELU, since the certificate needs curvature that is bounded."""

    def activations(self, images: Any) -> tuple[Any, ...]:
        """As of `NetS`."""
        first = nnx.elu(self.conv1(self.normalise(images)))
        second = nnx.elu(self.conv2(first))
        return first, second, nnx.elu(self.dense1(second.reshape(len(images), -1)))[:, None, None]


class Ring(nnx.Module):
    """Two hidden layers of 4 and 2 ELU units, on points of the plane that are kept as images of two pixels."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.third = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        """Logits (N, 2)."""
        points = SIDE * (images.reshape(len(images), 2) - 0.5)
        return self.third(nnx.elu(self.second(nnx.elu(self.first(points)))))


SIDE = 16.0  # of the square of the plane that is [0, 1]² as an image


def ring(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal points of the plane, within or outside of a circle of radius √2, none close to it."""
    points = np.random.default_rng(seed).normal(size=(3 * count, 2))
    length = np.linalg.norm(points, axis=1) / np.sqrt(2)
    far = (length < 1 / 1.3) | (length > 1.3)
    images = (points[far][:count] / SIDE + 0.5).astype(np.float32)
    return np.clip(images, 0, 1).reshape(-1, 1, 2, 1), (length[far][:count] > 1).astype(np.int32)


def _table(
    name: str, networks: Mapping[str, Any], data: Any, gamma: float, steps: int
) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows: the loss at what moves of each price cost, and the bound that one price gives for that budget."""
    images, labels = (jnp.asarray(part) for part in data)
    rows, claims = [], []
    for training_name, network in networks.items():
        model = jr.Classifier.from_nnx(network)
        bound = training.wasserstein_bound(model, images, labels, gamma=gamma, steps=steps)
        slack = []
        for factor in PRICES:
            moved = training.wasserstein_bound(model, images, labels, gamma=factor * gamma, steps=steps)
            spent, reached = float(moved.costs.mean()), float(moved.losses.mean())
            slack.append(bound.at(spent) - reached)
            rows.append(
                {"data": name, "training": training_name, "price": factor * gamma, "budget": spent, "loss": reached}
                | {"certificate": bound.at(spent), "inner gradient": float(bound.rest.mean())}
            )
        claims.append(
            Claim(f"{name}, {training_name}: certificate less the loss reached, least", min(slack), "≥", -1e-4)
        )
    return rows, claims


def _closed_form() -> Claim:
    """Of a linear classifier the supremum is one of a number: max_t log(1 + exp(t ‖w‖ − m)) − γ t²."""
    rng = np.random.default_rng(0)
    w, x, gamma = rng.normal(size=6), rng.uniform(size=(5, 6)), 2.0
    kernel = jnp.asarray(np.stack([w, np.zeros(6)], 1), jnp.float32)
    model = jr.Classifier(_linear, kernel)
    images = jnp.asarray(x.reshape(5, 2, 3, 1), jnp.float32)
    moved = training.wasserstein_bound(model, images, jnp.zeros(5, jnp.int32), gamma=gamma, steps=400)
    worst = 0.0
    for margin, got in zip(x @ w, moved.losses - gamma * moved.costs, strict=True):
        found = optimize.minimize_scalar(
            lambda t, m=margin: gamma * t**2 - np.logaddexp(0, t * np.linalg.norm(w) - m),
            bounds=(0, 5),
            method="bounded",
        )
        worst = max(worst, abs(-found.fun - float(got)))
    return Claim("linear classifier: the search's value less the closed form, largest", worst, "≤", 1e-3, exact=True)


def _linear(kernel: Any, images: Any) -> Any:
    return images.reshape(len(images), -1) @ kernel


def x15(bench: Bench) -> Result:
    """On a ring of points and on images: the bound holds for what is reached at every price."""
    scale, smoke = bench.scale, bench.scale.name == "smoke"
    planar = dataclasses.replace(bench, folder=bench.folder / "ring")
    planar.__dict__["train_data"] = jr.data.Dataset.from_arrays(*ring(1000 if smoke else 10_000, 0))
    gamma = 2 * SIDE**2  # the published 2, of points rather than images
    settings = {"batch_size": 128, "epochs": 1 if smoke else 30, "learning_rate": 1e-2}
    ways = {"standard": training.standard(), "WRM": training.wrm(gamma=gamma)}
    points = {n: planar.train(n, o, start=Ring(nnx.Rngs(0)), **settings).last for n, o in ways.items()}
    rows, claims = _table("ring", points, ring(500, 1), gamma, 100)
    price = 1 / 2.6
    ways = {"standard": training.standard(), "WRM": training.wrm(gamma=price)}
    shape = bench.train_data.shape
    start = Smooth(size=shape[0], channels=shape[2], rngs=nnx.Rngs(0))
    networks = {n: bench.train(f"smooth {n}", o, start=start).last for n, o in ways.items()}
    few = min(500, scale.test)
    data = (bench.test_data.images[:few], bench.test_data.labels[:few])
    more, further = _table(scale.data, networks, data, price, scale.attack_steps)
    return Result(
        "Wasserstein DRO by a price, and its certificate for every budget",
        [*rows, *more],
        [_closed_form(), *claims, *further],
        [
            "`certificate`: γ ρ + E[ℓ(x') − γ ‖x' − x‖²] at the training's γ, for the budget ρ that moves at the row's "
            "price cost; `inner gradient`: mean norm at the end of the search at γ, near 0 where it has converged.",
            "Ring: budgets are of images, 1/256 of those of points; ELU 4-2. Images: ELU, κ = 1/(2γ) = 1.3.",
        ],
    )
