"""X11: images that are close to an error are overconfident; a temperature mends the whole, not the slope."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

import jaxrobust as jr
from experiments.claims.common import Bench, Claim, Result
from jaxrobust import attacks, report, sets, training

GROUPS = 10


def x11(bench: Bench) -> Result:
    """Calibration by groups of equal adversarial distance, before and after temperature scaling."""
    rows: list[dict[str, Any]] = []
    slopes, before, after = [], [], []
    per_group = []
    for seed in range(bench.scale.seeds):
        network = bench.train("standard", training.standard(), seed).last
        model = jr.Classifier.from_nnx(network)
        images, labels = bench.test_data.images, bench.test_data.labels
        logits = np.asarray(jr.evaluate.predict(model, images))
        # away from the network's own prediction, so that errors have a distance too
        ddn = {"DDN": attacks.ddn(sets.L2(30.0), steps=bench.scale.attack_steps)}
        found = bench.evaluate("X11", model, ddn, seed, labels=logits.argmax(1).astype(np.int32))
        # the first half says the temperature, the second is measured
        half = len(labels) // 2
        warmth = training.temperature(logits[:half], labels[:half])
        groups = training.distance_groups(found["DDN"].distances, groups=min(GROUPS, half // 8))
        plain, scaled = (_by_group(logits[half:] / t, labels[half:], groups[half:]) for t in (1.0, warmth))
        slopes.append([stats.spearmanr(range(len(g)), [r["gap"] for r in g])[0] for g in (plain, scaled)])
        whole = [training.calibration(logits[half:] / t, labels[half:]) for t in (1.0, warmth)]
        report.reliability_diagram(bench.folder / f"reliability-{seed}.svg", {"T = 1": whole[0], "T scaled": whole[1]})
        before.append(whole[0].ece)
        after.append(whole[1].ece)
        per_group.append(plain)
        for name, t, measured in zip(("T = 1", "T of the first half"), (1.0, warmth), whole, strict=True):
            rows.append(
                {
                    "seed": seed,
                    "logits": name,
                    "T": t,
                    "accuracy": float((logits[half:].argmax(1) == labels[half:]).mean()),
                }
                | {n: getattr(measured, n) for n in ("ece", "mce", "nll", "brier")}
                | {"slope over groups": float(slopes[-1][name != "T = 1"])}
            )
    for group in range(len(per_group[0])):
        rows.append(
            {"seed": "mean", "logits": "T = 1", "group": group}
            | {n: float(np.mean([seed[group][n] for seed in per_group])) for n in per_group[0][0]}
        )
    claims = [
        Claim("Spearman's ρ of distance group and confidence less accuracy", float(np.mean(slopes, 0)[0]), "≤", -0.5),
        Claim("ECE after temperature scaling less that before", float(np.mean(after) - np.mean(before)), "≤", 0.0),
    ]
    return Result(
        "images near an error are miscalibrated; temperature scaling mends the whole",
        rows,
        claims,
        [
            "Groups of equal size by l2 distance as DDN finds it, 0 the nearest; `gap` is mean confidence "
            "less accuracy. Temperature from the first half of the test images, all figures on the second.",
            "Distances are to a change of the network's own prediction, so that errors have one too.",
        ],
    )


def _by_group(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> list[dict[str, float]]:
    rows = []
    for group in np.unique(groups):
        mine = groups == group
        measured = training.calibration(logits[mine], labels[mine])
        confidence = float(np.nansum(measured.counts * measured.confidence) / mine.sum())
        accuracy = float((logits[mine].argmax(1) == labels[mine]).mean())
        rows.append({"accuracy": accuracy, "confidence": confidence, "gap": confidence - accuracy, "ece": measured.ece})
    return rows
