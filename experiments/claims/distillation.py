"""X10: defensive distillation masks gradients, and does not keep attacks out that do not need the cross-entropy's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrobust as jr
from experiments.claims.common import Bench, Claim, Result
from jaxrobust import attacks, losses, sets, training

TEMPERATURE = 100.0


class Softened(nnx.Module):
    """A network whose logits are divided by the temperature: what a teacher is trained as."""

    def __init__(self, network: nnx.Module) -> None:
        self.network = network

    def __call__(self, images: Any) -> Any:
        """Logits (N, K) over the temperature."""
        return self.network(images) / TEMPERATURE


def softened(logits: Any, goal: Any) -> Any:
    """Cross-entropy of logits over the temperature, which does not saturate."""
    return losses.cross_entropy(logits / TEMPERATURE, goal.label)


def literal(logits: Any, goal: Any) -> Any:
    """Cross-entropy as it is, whose gradient float32 loses; the library's own attacks follow it where it does not."""
    return losses.cross_entropy(logits, goal.label)


@jax.jit
def _gradients(model: jr.Classifier, images: Any, labels: Any) -> Any:
    return jax.grad(lambda x: jax.vmap(losses.cross_entropy)(model(x), labels).sum())(images)


def x10(bench: Bench) -> Result:
    """A distilled and a plain network: how many gradients are zero, FGSM by two losses, Carlini and Wagner's attack."""
    scale = bench.scale
    count, few = min(1000, scale.test), min(200, scale.test)
    teacher = bench.train("teacher", training.standard(), start=Softened(scale.network(0))).last.network
    distil = training.distilled(jr.Classifier.from_nnx(teacher), temperature=TEMPERATURE)
    networks = {
        "plain": bench.train("standard", training.standard()).last,
        "distilled": bench.train("distilled", distil, start=scale.network(1)).last,
    }
    ball = sets.Linf(scale.linf)
    columns = {
        "FGSM literal": attacks.fgsm(ball, loss=literal),
        "FGSM": attacks.fgsm(ball),
        "FGSM softened": attacks.fgsm(ball, loss=softened),
    }
    columns["PGD softened"] = attacks.pgd(ball, steps=scale.attack_steps, loss=softened)
    minimal = {"C&W": attacks.carlini_wagner(sets.L2(30.0), steps=2 * scale.attack_steps, rounds=4, constant=0.1)}
    rows = []
    for name, network in networks.items():
        found = bench.evaluate(f"X10 {name}", network, columns, count=count)
        near = bench.evaluate(f"X10 {name} C&W", network, minimal, count=few)
        right = found.logits.argmax(1) == found.labels
        images, labels = (jnp.asarray(v[:count]) for v in (bench.test_data.images, bench.test_data.labels))
        gradients = np.abs(np.asarray(_gradients(jr.Classifier.from_nnx(network), images, labels))).max((1, 2, 3))
        top = np.sort(found.logits, axis=1)
        rows.append(
            {
                "network": name,
                "clean": float(found.clean.accuracy),
                "median margin": float(np.median(top[:, -1] - top[:, -2])),
                "zero gradients": float((gradients == 0).mean()),
                "zero where correct": float((gradients[right] == 0).mean()),
                **{n: float(found[n].robust.mean()) for n in columns},
                "C&W success": 1
                - float(near["C&W"].robust.sum() / max((near.logits.argmax(1) == near.labels).sum(), 1)),
                "C&W median l2": float(np.median(near["C&W"].distances[near["C&W"].distances > 0])),
            }
        )
        print(rows[-1], flush=True)
    plain, distilled = rows
    claims = [
        Claim("share of zero gradients, distilled", distilled["zero gradients"], "≥", 0.5),
        Claim("share of zero gradients, plain", plain["zero gradients"], "≤", 0.05),
        Claim(
            "FGSM on the cross-entropy: accuracy of distilled less plain",
            distilled["FGSM literal"] - plain["FGSM literal"],
            "≥",
            0.3,
        ),
        Claim(
            "distilled: accuracy under FGSM on z/T less on z",
            distilled["FGSM softened"] - distilled["FGSM literal"],
            "≤",
            -0.2,
        ),
        Claim("distilled: success of Carlini and Wagner's attack", distilled["C&W success"], "≥", 0.95),
    ]
    return Result(
        "defensive distillation masks gradients",
        rows,
        claims,
        [
            f"T = {TEMPERATURE:g}; teacher and student of one architecture, trained alike; deployed at T = 1. "
            "`literal`: ascending the cross-entropy as it is; plain `FGSM` follows the log-odds, as all attacks "
            "here do, so that such masking does not show. `softened`: ascending that of z/T, which does not saturate. "
            f"First {count} test images, C&W (l2, 4 rounds of {2 * scale.attack_steps} steps) on the first {few}.",
            "Published on MNIST: zero or vanishing gradients, success of JSMA from 95.9 to 0.45 %; C&W restores 100 %.",
        ],
    )
