"""X4: thresholding the input masks gradients, and attacks that know of it get through."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import jaxrobust as jr
from experiments.claims.common import Bench, Claim, Result
from jaxrobust import attacks, sets, training
from jaxrobust.types import pytree


@pytree("radius")
class Signs(sets.Linf):
    """The l∞ ball, of which the corners are drawn: x + ε s with random signs s, clipped."""

    def sample(self, key: Any, x: Any) -> Any:
        """A corner."""
        return self.project(x, jax.random.rademacher(key, x.shape, x.dtype) * self._radius(x))


def threshold(images: Any) -> Any:
    """1[x > 1/2]."""
    return (images > 0.5).astype(images.dtype)


def _soft(images: Any) -> Any:
    return jax.nn.sigmoid(10 * (images - 0.5))


def _thresholded(key: Any, images: Any, index: Any) -> Any:
    return threshold(images)


def x4(bench: Bench) -> Result:
    """Naive gradients see nothing, a stand-in for the threshold's gradient sees through it."""
    scale = bench.scale
    network = bench.train("thresholded", training.standard(), augment=_thresholded).last
    plain = jr.Classifier.from_nnx(network)
    defences = {
        "naive": attacks.bpda(threshold, backward=jnp.zeros_like),
        "BPDA identity": attacks.bpda(threshold),
        "BPDA sigmoid": attacks.bpda(threshold, backward=_soft),
    }
    balls = {f"linf {f * scale.linf:g}": sets.Linf(f * scale.linf) for f in (1, 3)} | {
        f"l2 {scale.l2:g}": sets.L2(scale.l2)
    }
    count = min(1000, scale.test)
    rows: list[dict[str, Any]] = []
    ascent = {name: attacks.pgd(ball, steps=scale.attack_steps) for name, ball in balls.items()}
    for name, defence in defences.items():
        found = bench.evaluate(f"X4 {name}", defence.before(plain), ascent, count=count)
        rows.append({"attack": f"PGD, {name}", "clean": float(found.clean.accuracy)})
        rows[-1] |= {n: float(found[n].robust.mean()) for n in balls}
    blind = {n: attacks.worst_of_k(Signs(b.radius), samples=50) for n, b in balls.items() if isinstance(b, sets.Linf)}
    blind |= {f"{n} square": attacks.square(b, queries=10 * scale.attack_steps) for n, b in balls.items()}
    found = bench.evaluate("X4 blind", defences["naive"].before(plain), blind, count=count)
    clean = float(found.clean.accuracy)
    for label, suffix in (("best of 50 random signs", ""), (f"Square, {10 * scale.attack_steps} queries", " square")):
        rows.append({"attack": label, "clean": clean})
        rows[-1] |= {n: float(found[n + suffix].robust.mean()) for n in balls if n + suffix in blind}
    naive, random = rows[0], rows[3]
    claims = []
    for name in balls:
        through = min(rows[1][name], rows[2][name])
        claims += [
            Claim(f"{name}: naive PGD less clean", naive[name] - clean, "≥", -0.03),
            Claim(f"{name}: the better BPDA less clean", through - clean, "≤", -0.3),
        ]
        if name in random:
            claims.append(Claim(f"{name}: random signs less naive PGD", random[name] - naive[name], "≤", 0.0))
    return Result(
        "thresholding masks gradients",
        rows,
        claims,
        [
            f"Accuracies on the first {count} test images; one network, trained on thresholded images.",
            "[pilot] clean .846, 6 epochs; linf .1: naive .862, BPDA identity .432, random signs .656; linf .3: naive "
            ".828, BPDA .060, random signs .342; l2 1.5: naive .842, identity .532, sigmoid .096.",
        ],
    )
