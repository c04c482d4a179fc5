"""Recipes for scikit-learn's digits, which ship with it: to see everything work.

    python -m experiments.train --recipe digits-at-linf
    python -m experiments.evaluate runs/digits-at-linf

Hardware: two CPU cores. Time: digits-at-linf 100 s on two busy ones, 30 of them compiling; digits-standard less.
Expected, in %, on JAX 0.10.2 (another version rounds otherwise): digits-at-linf clean 95.0, linf 57.9, l2 41.2.
"""

from __future__ import annotations

from experiments.recipes.recipe import Data, Network, Objective, Recipe, Suite
from jaxrobust.training import TrainConfig

__all__ = ["RECIPES"]

TRAIN = TrainConfig(epochs=15, batch_size=64, learning_rate=3e-3, schedule="cosine", radius_warmup=3.0)
COLUMNS = ("linf=pgd:linf:0.15:steps=40,restarts=2", "l2=pgd:l2:0.8:steps=40,restarts=2")


def _recipe(name: str, about: str, objective: Objective, time: str, trained_on: tuple[str, ...] = ()) -> Recipe:
    return Recipe(
        name=f"digits-{name}",
        about=about,
        hardware="2 CPU cores",
        time=time,
        published=(),
        source="",
        data=Data("digits"),
        network=Network("small-cnn", width=16),
        objective=objective,
        train=TRAIN,
        suite=Suite(attacks=COLUMNS, trained_on=trained_on),
    )


RECIPES = (
    _recipe("standard", "standard training", Objective(), "1 min (estimate)"),
    _recipe(
        "at-linf",
        "PGD-AT, l∞ 0.15",
        Objective("adversarial", ("pgd:linf:0.15:steps=10",)),
        "100 s, measured on two busy cores",
        ("linf",),
    ),
)
