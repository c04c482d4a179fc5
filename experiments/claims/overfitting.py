"""X7: adversarial training by one step overfits to that step, catastrophically."""

from __future__ import annotations

from typing import Any

from experiments.claims import common
from experiments.claims.common import Bench, Claim, Result, average
from jaxrobust import attacks, sets, training

# of one-step training, as the fast method's and GradAlign's authors have them
RECIPES: dict[str, dict[str, Any]] = {
    "smoke": {"learning_rate": 5e-3},
    "cpu": {"epochs": 10, "learning_rate": 5e-3},
    "full": {"epochs": 30, "learning_rate": 0.3, "schedule": "triangle"},
}


def x7(bench: Bench) -> Result:
    """FGSM, FGSM from random starts, GradAlign and PGD-2 at growing radii, against FGSM and PGD."""
    scale, rows = bench.scale, []
    for factor in (1, 2) if scale.name == "full" else (2,):
        radius = factor * scale.linf
        ball = sets.Linf(radius)
        ways = {
            "FGSM": training.adversarial(attacks.fgsm(ball), clean_metric=False),
            "FGSM-RS": training.adversarial(attacks.rs_fgsm(ball), clean_metric=False),
            # the authors' weight of as many times 8/255
            "GradAlign": training.grad_align(radius, weight=0.02 * 10**factor),
            "PGD-2": training.adversarial(attacks.pgd(ball, steps=2), clean_metric=False),
        }
        columns = {"FGSM": attacks.fgsm(ball), "PGD": attacks.pgd(ball, steps=scale.attack_steps)}
        for name, objective in ways.items():
            each = []
            for seed in range(scale.seeds):
                fitted = bench.train(f"{name} {radius:.3g}", objective, seed, **RECIPES[scale.name])
                found = bench.evaluate(
                    f"X7 {name} {radius:.3g}", fitted.last, columns, seed, count=min(1000, scale.test)
                )
                each.append(common.columns(found))
                each[-1]["gap"] = each[-1]["FGSM"] - each[-1]["PGD"]
            rows.append(average(each, training=name, radius=radius))
            print(rows[-1], flush=True)
    gaps = {(row["training"], row["radius"]): row["gap"] for row in rows}
    worst = max((gap, radius) for (name, radius), gap in gaps.items() if name == "FGSM")
    claims = [
        Claim(
            f"FGSM training at {worst[1]:.3g}, its worst: accuracy under FGSM less that under PGD", worst[0], "≥", 0.3
        ),
        Claim(f"PGD-2 training at {worst[1]:.3g}: the same", gaps["PGD-2", worst[1]], "≤", 0.1),
    ]
    return Result(
        "one-step adversarial training overfits catastrophically",
        rows,
        claims,
        [
            "At `cpu` one radius, twice that of the other tables. `gap`: accuracy under FGSM less that under PGD.",
            "[pilot] clean/FGSM/PGD-40, one seed: ε = .1 FGSM .820/.728/.448, FGSM-RS .842/.702/.626; ε = .2 FGSM "
            ".684/.732/.034, FGSM-RS .782/.580/.240.",
        ],
    )
