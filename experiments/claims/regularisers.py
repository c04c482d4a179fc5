"""X14: label smoothing, gradient penalties and CURE are partial defences."""

from __future__ import annotations

import numpy as np

from experiments.claims import common
from experiments.claims.common import Bench, Claim, Result, average
from jaxrobust import attacks, sets, training


def x14(bench: Bench) -> Result:
    """Five ways of training under FGSM, PGD, Square and Carlini and Wagner's attack."""
    scale = bench.scale
    count, few = min(500, scale.test), min(200, scale.test)
    ball = sets.Linf(scale.linf)
    ways = {
        "standard": training.standard(),
        "ALS": training.label_smoothing(0.5, kind="als"),
        "penalty": training.gradient_penalty(10.0),
        "CURE": training.cure(variant="paper"),
        "AT-linf": training.adversarial(attacks.pgd(ball, steps=scale.steps)),
    }
    columns = {
        "FGSM": attacks.fgsm(ball),
        "PGD": attacks.pgd(ball, steps=scale.attack_steps),
        "Square": attacks.square(ball, queries=10 * scale.attack_steps),
    }
    minimal = {"C&W": attacks.carlini_wagner(sets.L2(30.0), steps=2 * scale.attack_steps, rounds=4, constant=0.1)}
    rows = []
    for name, objective in ways.items():
        each = []
        for seed in range(scale.seeds):
            # CURE fine-tunes a network that was trained normally
            start = bench.train("standard", ways["standard"], seed).last if name == "CURE" else None
            network = bench.train(name, objective, seed, start=start).last
            found = bench.evaluate(f"X14 {name}", network, columns, seed, count=count)
            near = bench.evaluate(f"X14 {name} C&W", network, minimal, seed, count=few)["C&W"].distances
            each.append(common.columns(found))
            each[-1] |= {
                "C&W median l2": float(np.median(near)),
                f"C&W at l2 {scale.l2:g}": float((near > scale.l2).mean()),
            }
        rows.append(average(each, training=name))
        print(rows[-1], flush=True)
    by = {row["training"]: row for row in rows}
    partial = [by["penalty"]["PGD"], by["CURE"]["PGD"]]
    gains = {n: by["ALS"][n] - by["standard"][n] for n in ("FGSM", "PGD")}
    claims = [
        Claim("PGD: the lesser of penalty and CURE, less standard", min(partial) - by["standard"]["PGD"], "≥", 0.0),
        Claim("PGD: AT less the better of penalty and CURE", by["AT-linf"]["PGD"] - max(partial), "≥", 0.0),
        Claim("ALS: gain under FGSM less twice that under PGD", gains["FGSM"] - 2 * gains["PGD"], "≥", 0.0),
    ]
    return Result(
        "label smoothing, gradient penalties and CURE are partial defences",
        rows,
        claims,
        [
            f"ALS with a = 0.5; penalty λ = 10 of each example's squared gradient; CURE λ = 4, h = 1.5, squared, from "
            f"the standard network for as many epochs again. First {count} test images, C&W (l2) on the first {few}.",
        ],
    )
