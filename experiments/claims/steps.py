"""X5: robust accuracy against the attack's steps, of networks trained with ever more steps."""

from __future__ import annotations

import numpy as np

from experiments.claims import common
from experiments.claims.common import Bench, Claim, Result, average
from jaxrobust import attacks, sets, training

EVALUATED = (1, 2, 5, 10, 20, 50)


def x5(bench: Bench) -> Result:
    """The matrix of steps in training and in evaluation."""
    scale = bench.scale
    count = min(1000, scale.test)
    evaluated = EVALUATED if scale.name != "smoke" else EVALUATED[:2]
    rows, claims = [], []
    for factor in (1, 2) if scale.name == "full" else (1,):
        ball = sets.Linf(factor * scale.linf)
        columns = {f"PGD-{n}": attacks.pgd(ball, steps=n) for n in evaluated}
        block = []
        for steps in (0, 1, 2, 4, scale.steps):
            crafted = attacks.pgd(ball, steps=max(steps, 1)) if steps != 1 else attacks.fgsm(ball)
            objective = training.adversarial(crafted) if steps else training.standard()
            # the same network as in the other tables, where there is one
            name = (
                "standard"
                if not steps
                else "AT-linf"
                if (steps, factor) == (scale.steps, 1)
                else f"AT-{steps} x{factor}"
            )
            each = []
            for seed in range(scale.seeds):
                network = bench.train(name, objective, seed).last
                found = bench.evaluate(f"X5 {steps} x{factor}", network, columns, seed, count=count)
                each.append(common.columns(found))
            block.append(average(each, radius=float(ball.radius), trained=steps))
            print(block[-1], flush=True)
        last = f"PGD-{evaluated[-1]}"
        robust = [row[last] for row in block]
        slack = 2 * float(np.sqrt(0.25 / (count * scale.seeds)))
        rises = max(b - a for row in block for a, b in zip(*_shifted([row[n] for n in columns]), strict=True))
        where = f"ε = {float(ball.radius):.3g}"
        falls = max(a - b for a, b in zip(*_shifted(robust), strict=True))
        claims += [
            Claim(f"{where}: {last} accuracy, most steps less none", robust[-1] - robust[0], "≥", 0.3),
            Claim(f"{where}: {last} accuracy, largest fall as steps grow", falls, "≤", slack),
            Claim(f"{where}: largest rise along a row, 2 s.e. allowed", rises, "≤", slack),
        ]
        rows += block
    return Result(
        "robustness grows with the steps of training, and is seen with the steps of evaluation",
        rows,
        claims,
        [
            f"Accuracy on the first {count} test images under PGD of so many steps of 2.5 ε/steps; `trained`: by PGD "
            "of so many steps, of one by FGSM."
        ],
    )


def _shifted(values: list[float]) -> tuple[list[float], list[float]]:
    return values[:-1], values[1:]
