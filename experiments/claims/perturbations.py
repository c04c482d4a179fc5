"""X1, X2, X3: training against one perturbation set, perceptually, and against several sets at once.

Networks that two of them need are trained once: the runs' folder keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxrobust as jr
from experiments.claims.common import Bench, Claim, Result, accuracies, average
from jaxrobust import attacks, sets, training

SETS = ("linf", "l2", "flow")
SINGLE = tuple(f"AT-{name}" for name in SETS)
NORMS = ("linf", "l2", "l1")


def x1(bench: Bench) -> Result:
    """Adversarial training on a norm ball is not robust to a flow of pixels, nor the other way round."""
    rows = _table(bench, ["standard", *SINGLE])
    by = {row["training"]: row for row in rows}
    claims = [_gap(by["AT-linf"])]
    for name in SETS:
        rivals = max(by[row][name] for row in by if row != f"AT-{name}")
        claims.append(Claim(f"under {name}, AT-{name} less the best other", by[f"AT-{name}"][name] - rivals, "≥", 0.0))
    pilot = (
        "[pilot] clean/linf/l2/flow/union, one seed, 20k images, 5 epochs: standard .889/.018/.027/.000/.000; AT-linf "
        ".797/.655/.535/.262/.253; AT-l2 .801/.566/.627/.213/.203; AT-flow .696/.143/.134/.445/.102.",
    )
    return Result("robustness against one perturbation set does not carry over to another", rows, claims, pilot)


def _gap(row: Mapping[str, Any]) -> Claim:
    return Claim("AT-linf: accuracy under linf less that under flow", row["linf"] - row["flow"], "≥", 0.2)


def x2(bench: Bench) -> Result:
    """Perceptual adversarial training generalises to sets that it has not seen."""
    perceptual = ["PAT-self 1", "PAT-external 0.5"]
    rows = _table(bench, ["standard", *SINGLE, *perceptual])
    by = {row["training"]: row for row in rows}
    for row in rows:
        seen = row["training"].removeprefix("AT-")
        row["unseen"] = float(np.mean([row[name] for name in SETS if name != seen]))
        row["LPA"], row["strongest other"] = _lpa(bench, row["training"])
    best = max(by[name]["unseen"] for name in perceptual)
    comparable = [n for n in SINGLE if by[n]["clean"] >= min(by[p]["clean"] for p in perceptual) - 0.02]
    claims = [Claim(f"best PAT's unseen mean less that of {n}", best - by[n]["unseen"], "≥", 0.0) for n in comparable]
    claims += [
        Claim(f"{row['training']}: LPA less the strongest other attack", row["LPA"] - row["strongest other"], "≤", 0.0)
        for row in rows
    ]
    return Result(
        "perceptual adversarial training generalises to unseen perturbation sets",
        rows,
        claims,
        [
            "`unseen`: the mean over the sets of the table that training has not seen. `LPA` and `strongest other`: of "
            "seed 0, on the first 500 test images; LPA at 0.5 as measured by a standard network of another seed, 5 "
            "rounds of 10 steps.",
            "The union's advantage of the seed's table is not expected at this scale and not asked for.",
            "[pilot] clean/linf/l2/flow/union, one seed, n = 500: PAT-self 0.5 .836/.426/.506/.114/.108; PAT-self 1 "
            ".788/.482/.568/.202/.196; PAT-external 0.5 .798/.474/.558/.208/.200; AT-linf .776/.616/.524/.248/.236.",
        ],
    )


def x3(bench: Bench) -> Result:
    """Ways to train against several sets: the worst, the average, one at random, one drawn by its errors, MSD, E-AT."""
    several = [f"{how} of linf, l2, flow" for how in ("max", "average", "random", "errors")]
    rows = _table(bench, [*SINGLE, *several])
    by = {row["training"]: row for row in rows}
    worst, mean = by[several[0]], by[several[1]]
    single = max(by[name]["union"] for name in SINGLE)
    claims = [
        Claim("union: max less average", worst["union"] - mean["union"], "≥", -0.02),
        *(Claim(f"union: {n} less the best single set", by[n]["union"] - single, "≥", 0.0) for n in several),
        Claim("clean: average less max", mean["clean"] - worst["clean"], "≥", 0.0),
    ]
    norms = _table(bench, ["AT-linf", "AT-l2", "MSD", "E-AT"], NORMS)
    by = {row["training"]: row for row in norms}
    claims += [
        Claim("union of norms: E-AT less MSD", by["E-AT"]["union"] - by["MSD"]["union"], "≥", -0.03),
        Claim("training time: E-AT over MSD", by["E-AT"]["train s"] / by["MSD"]["train s"], "≤", 0.5),
    ]
    return Result(
        "several perturbation sets at once: the worst, the average, one at random",
        [*rows, *norms],
        claims,
        [
            "`train s`: seconds of the epochs after the first, which compiles; on a machine shared with others.",
            "[pilot] clean/linf/l2/flow/union/mean, one seed, n = 500: max .728/.544/.524/.382/.346/.483; average "
            ".770/.574/.554/.328/.312/.485; random .778/.568/.560/.334/.314/.487; AT-linf union .236.",
        ],
    )


def _objective(bench: Bench, name: str) -> Any:
    """What a row of the tables is trained by."""
    scale = bench.scale
    crafted = scale.attacks(scale.steps, *SETS, "l1")
    how, _, rest = name.partition(" ")
    if name == "standard":
        return training.standard()
    if name == "MSD":
        union = sets.Union(tuple(scale.sets()[n] for n in NORMS))
        return training.adversarial(attacks.msd(union, steps=scale.steps, relative_step_sizes=(2.5 / scale.steps,) * 3))
    if name == "E-AT":
        return training.extreme_norms(linf=scale.linf, l1=scale.l1, steps=scale.steps)
    if how.startswith("PAT"):
        ball = sets.Perceptual(float(rest), _measure(bench) if how == "PAT-external" else None)
        return training.adversarial(attacks.fast_lpa(ball, steps=scale.steps), only_attack_correct=True)
    if how.startswith("AT-"):
        return training.adversarial(crafted[how.removeprefix("AT-")])
    return training.several(*(crafted[n] for n in SETS), combine=how)


def _measure(bench: Bench) -> jr.Classifier:
    """The network that measures perceptual distance from outside: a standard one of a seed of its own."""
    return jr.Classifier.from_nnx(bench.train("standard", training.standard(), 100).last)


def _table(bench: Bench, names: Sequence[str], columns: Sequence[str] = SETS) -> list[dict[str, Any]]:
    """A row a way of training: accuracies, over seeds."""
    rows = []
    for name in names:
        each = []
        for seed in range(bench.scale.seeds):
            fitted = bench.train(name, _objective(bench, name), seed)
            # without the first epoch, which compiles, where there is another
            seconds = float(sum(epoch["seconds"] for epoch in fitted.history[1:] or fitted.history))
            found = bench.evaluate(name, fitted.last, bench.scale.attacks(bench.scale.attack_steps, *columns), seed)
            each.append({**accuracies(found), "train s": seconds})
        rows.append(average(each, training=name))
        print(rows[-1], flush=True)
    return rows


def _lpa(bench: Bench, name: str) -> tuple[float, float]:
    """Accuracy under LPA, and under the strongest other attack, of seed 0 on a few images."""
    rounds = max(bench.scale.attack_steps // 4, 1)
    lpa = {"LPA": attacks.lpa(sets.Perceptual(0.5, _measure(bench)), steps=rounds)}
    network = bench.train(name, _objective(bench, name), 0).last
    few = min(500, bench.scale.test)
    others = bench.evaluate(name, network, bench.scale.attacks(bench.scale.attack_steps, *SETS), 0)
    found = bench.evaluate(f"{name} LPA", network, lpa, 0, count=few)
    strongest = min(others[n].robust[:few].mean() for n in SETS)
    return float(found["LPA"].robust.mean()), float(strongest)
