"""A run folder as the evaluation room writes it, with made-up but consistent numbers."""

import json
import math
import pathlib

import numpy as np

MODELS = ("standard", "adv-linf", "adv-l2")
ATTACKS = {"pgd-linf": ("Linf", 0.2), "pgd-l2": ("L2", 1.0), "pgd-l1": ("L1", 4.0)}


def wilson(fraction: float, count: int) -> dict[str, float]:
    """Accuracy and its 95 % Wilson interval."""
    z = 1.959963984540054
    middle = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(fraction * (1 - fraction) / count + z * z / (4 * count * count))
    return {"accuracy": fraction, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def results(*, models=MODELS, attacks=ATTACKS, count=359, shape=(8, 8, 1), classes=10, title="Digits, three models"):
    """The content of results.json. Model i > 0 was trained on attack i - 1 and is hard to fool with it."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, count)
    difficulty = rng.uniform(size=count)
    entries = []
    for row, name in enumerate(models):
        wrong = difficulty > 0.985 - 0.02 * row
        outcome = {}
        for column, attack in enumerate(attacks):
            hold = 0.02 if row == 0 else 0.75 if column == row - 1 else 0.35 + 0.03 * ((row + column) % 5)
            noisy = difficulty + rng.normal(0, 0.08, count)
            outcome[attack] = np.where(wrong, 2, np.where(noisy > hold, 1, 0))
        if row == 0:
            outcome[next(iter(attacks))][:2] = 3
        stacked = np.stack(list(outcome.values()))
        trained_on = list(attacks)[row - 1 : row] if row else []
        accuracy = {attack: float(np.mean(codes == 0)) for attack, codes in outcome.items()}
        unseen = [value for attack, value in accuracy.items() if attack not in trained_on]
        entries.append(
            {
                "name": name,
                "trained_on": trained_on,
                "notes": {"training seconds": 31.4 + row, "epochs": 20},
                "clean": wilson(float(np.mean(~wrong)), count),
                "attacks": {
                    attack: wilson(accuracy[attack], count)
                    | {
                        "success_rate": float(np.mean(codes[~wrong] == 1)),
                        "mean_size": radius * 0.93,
                        "median_size": radius,
                        "forwards": 21.37 + row,
                        "backwards": 20.37 + row,
                        "seconds": 0.52 * (row + 1) * count / 359,
                        "steps_executed": 9000,
                        "steps_needed": 8000,
                        "non_finite": int(np.sum(codes == 3)),
                        "disagreed": 0,
                    }
                    for (attack, (_, radius)), codes in zip(attacks.items(), outcome.values(), strict=True)
                },
                "union": wilson(float(np.mean((stacked == 0).all(0))), count),
                "unseen_mean": float(np.mean(unseen)) if unseen else None,
                "examples": {
                    "label": label.tolist(),
                    "prediction": np.where(wrong, (label + 1) % classes, label).tolist(),
                    "outcome": {attack: codes.tolist() for attack, codes in outcome.items()},
                    "size": {attack: [radius] * count for attack, (_, radius) in attacks.items()},
                },
            }
        )
    steps = np.arange(41)
    return {
        "format": 1,
        "complete": True,
        "title": title,
        "created": "2026-11-21T15:26:00+00:00",
        "command": "python -m experiments.quickstart --out runs/digits",
        "seconds": 143.2,
        "data": {
            "name": "digits",
            "split": "test",
            "count": count,
            "shape": list(shape),
            "classes": classes,
            "class_names": None,
        },
        "key": [0, 42],
        "config": {"epochs": 20, "batch": 128},
        "versions": {"jaxrobust": "0.1.0", "jax": "0.10.2", "python": "3.11.9"},
        "device": "cpu x4 (made up)",
        "attacks": {
            attack: {
                "description": f"PGD on {kind}, 40 steps, 2 restarts, random start",
                "set": kind,
                "radius": radius,
                "settings": {"steps": 40, "restarts": 2, "step_size": radius / 10, "loss": "cross-entropy"},
            }
            for attack, (kind, radius) in attacks.items()
        },
        "models": entries,
        "curves": [
            {
                "attack": attack,
                "radii": np.linspace(0, 2 * radius, 9).tolist(),
                "accuracy": {
                    name: (0.98 / (1 + np.exp(np.linspace(-3 + 2 * (row == 0), 6, 9) - row))).tolist()
                    for row, name in enumerate(models)
                },
                "count": 200,
            }
            for attack, (_, radius) in attacks.items()
        ],
        "trajectories": [
            {
                "attack": attack,
                "mean": {name: (4 / (row + 1) * (1 - np.exp(-steps / 8))).tolist() for row, name in enumerate(models)},
                "low": {name: (2 / (row + 1) * (1 - np.exp(-steps / 8))).tolist() for row, name in enumerate(models)},
                "high": {name: (5 / (row + 1) * (1 - np.exp(-steps / 8))).tolist() for row, name in enumerate(models)},
                "count": 128,
            }
            for attack in attacks
        ],
        "pictures": "pictures.npz",
    }


BARE = {"curves": [], "trajectories": [], "pictures": None}


def noted(name, *notes):
    """A run without curves or pictures, whose first models have these notes of one name."""
    content = results() | BARE
    for model, note in zip(content["models"], notes, strict=False):
        model["notes"][name] = note
    return content


def masking(*flags, radius=8 / 255):
    """The notes of a model whose gradients were diagnosed; `flags` among "one step", "black box" and "steps"."""
    verdicts = {
        "one step": "one step leaves 61.2 %, many leave 44.0 %",
        "black box": "square fools another 0.4 % after white-box attacks",
        "full radius": "no radius is known at which this set holds every image",
        "steps": "44.6 % is left after 20 steps, 44.0 % after 40",
    }
    return {
        "attack": f"gradient ascent in Linf({radius:g}), 40 steps, random start, cross-entropy",
        "radius": radius,
        "count": 500,
        "flags": list(flags),
        "checks": [
            {
                "name": name,
                "flagged": None if name == "full radius" else name in flags,
                "verdict": verdict,
                "numbers": {},
            }
            for name, verdict in verdicts.items()
        ],
        "accuracy_against_steps": [[1, 2, 20, 40], [0.8, 0.7, 0.446, 0.44]],
        "accuracy_against_radius": [[radius / 2, radius, 2 * radius, 1.0], [0.7, 0.44, 0.2, 0.12]],
    }


def pictures(content, *, kept=8):
    """The arrays of pictures.npz: smooth blobs and signed changes of each attack's size."""
    rng = np.random.default_rng(1)
    height, width, channels = content["data"]["shape"]
    rows, columns = np.mgrid[0:height, 0:width]
    centre = rng.uniform(0.25, 0.75, (kept, channels, 2)) * (height, width)
    distance = (rows - centre[..., :1, None]) ** 2 + (columns - centre[..., 1:, None]) ** 2
    clean = np.moveaxis(np.exp(-distance / (0.1 * height * width)), 1, -1).astype(np.float32)
    label = rng.integers(0, content["data"]["classes"], kept)
    arrays = {"clean": clean, "label": label}
    for row, model in enumerate(content["models"]):
        arrays[f"{model['name']}/prediction"] = np.where(np.arange(kept) == 5, (label + 3) % 10, label)
        for attack, about in content["attacks"].items():
            change = rng.choice([-1.0, 1.0], clean.shape) * min(0.3, about["radius"] or 0.3)
            arrays[f"{model['name']}/{attack}/images"] = np.clip(clean + change, 0, 1).astype(np.float32)
            arrays[f"{model['name']}/{attack}/prediction"] = np.where(
                np.arange(kept) % 3 < row, label, (label + 2) % 10
            )
    return arrays


def write(folder: pathlib.Path, content, *, kept=8) -> pathlib.Path:
    """Write the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    if content["pictures"]:
        np.savez_compressed(folder / content["pictures"], **pictures(content, kept=kept))
    return folder


def large(**changes):
    """10,000 colour images, twelve attacks, nine models with long and hostile names."""
    attacks = {f"attack-{index:02d}-with-a-long-name": ("Linf", (index + 1) / 255) for index in range(11)}
    attacks["<script>alert(1)</script> & \"quotes\" 'n' $x_1$"] = ("L2", 1.0)
    models = ["<b>bold</b> & $y^2$", "WideResNet-34-20 trained adversarially on everything at once, for very long"]
    models += [f"model-{index}" for index in range(7)]
    chosen = {
        "models": models,
        "attacks": attacks,
        "count": 10_000,
        "shape": (32, 32, 3),
        "title": "<i>Large</i> & hostile",
    }
    return results(**(chosen | changes))
