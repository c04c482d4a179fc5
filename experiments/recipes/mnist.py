"""Recipes for MNIST: Madry et al.'s PGD-AT, and the table of Tramèr and Boneh.

    python -m jaxrobust.data.prepare mnist --from DIR
    python -m experiments.train --recipe mnist-madry
    python -m experiments.evaluate runs/mnist-madry

Hardware: an accelerator, minutes; two CPU cores, hours, but for mnist-small. Times below are estimates where they do
not say measured. Measured of mnist-small, seed 0, first 1,000 test images: clean 98.8, PGD-40 93.4, AutoAttack 87.8.
Expected, in %, published: mnist-madry PGD-100 92.52, with 50 restarts 89.62. Of Tramèr and Boneh as recalled, within a
point (accuracy on the first 200 test images; there decision-based attacks, EAD and C&W count too, so that
l2 and l1 of AT∞ by gradients alone are higher here):

               clean  linf    l1    l2  union
    standard    99.4   0.0  12.4   8.5    0.0
    AT linf     99.1  91.1  12.1  11.3    6.8
    AT l1       98.9   0.0  78.5  50.6    0.0
    AT l2       98.5   0.4  68.0  71.8    0.4
    average     97.3  76.7  53.9  58.3   49.9
    maximum     97.2  71.7  62.6  56.0   52.4

There all radii are a third during the first epoch; here they grow linearly over it.
"""

from __future__ import annotations

from experiments.recipes.recipe import Data, Network, Objective, Recipe, Suite, estimate
from jaxrobust.training import TrainConfig

__all__ = ["RECIPES"]

FLOPS, SPEED = 0.084, 10e12  # 10⁹ operations of an image forward and backward; small layers are slow
ONE = "one GPU or TPU core"

madry = Recipe(
    name="mnist-madry",
    about="PGD-AT, l∞ 0.3, 40 steps",
    hardware=ONE,
    time=estimate(FLOPS, 41, 60_000, 84, speed=SPEED),
    published=(("pgd-40", 92.5), ("pgd-100", 92.52)),
    source="the authors' repository; PGD-40 is at least as high as PGD-100",
    data=Data("mnist"),
    network=Network("madry"),
    objective=Objective("adversarial", ("pgd:linf:0.3:steps=40,step_size=0.01",)),
    # 100,000 steps of 50 images, without anything held out
    train=TrainConfig(epochs=84, batch_size=50, learning_rate=1e-4, validation=0.0, radius_warmup=1.0),
    suite=Suite(
        suites=("autoattack=autoattack-linf:0.3",),
        attacks=("pgd-40=pgd:linf:0.3:steps=40,step_size=0.01", "pgd-100=pgd:linf:0.3:steps=100,step_size=0.01"),
        trained_on=("pgd-40",),
    ),
)

# a network of 166,406 parameters, which two CPU cores train in minutes
small = Recipe(
    name="mnist-small",
    about="PGD-AT, l∞ 0.3, a small network",
    hardware="two CPU cores",
    time="56 min, shared with other work (measured)",
    published=(),
    source="",
    data=Data("mnist"),
    network=Network("mnist-net"),
    objective=Objective("adversarial", ("pgd:linf:0.3:steps=10,step_size=0.06",)),
    train=TrainConfig(
        epochs=30, batch_size=128, learning_rate=3e-3, schedule="cyclic", validation_limit=1000, radius_warmup=5.0
    ),
    suite=Suite(
        suites=("autoattack=autoattack-linf:0.3",),
        attacks=("pgd-40=pgd:linf:0.3:steps=40,step_size=0.01",),
        trained_on=("pgd-40",),
        examples=1000,
    ),
)

# the attacks in training: the margin, and l1 steps along the largest hundredth of the entries
LINF = "pgd:linf:0.3:steps=10,step_size=0.01,loss=margin"
L2 = "pgd:l2:2:steps=10,step_size=0.1,loss=margin"
L1 = "pgd:l1:10:steps=10,step_size=1,loss=margin"
TABLE = {
    "standard": (99.4, 0.0, 12.4, 8.5, 0.0),
    "at-linf": (99.1, 91.1, 12.1, 11.3, 6.8),
    "at-l1": (98.9, 0.0, 78.5, 50.6, 0.0),
    "at-l2": (98.5, 0.4, 68.0, 71.8, 0.4),
    "average": (97.3, 76.7, 53.9, 58.3, 49.9),
    "maximum": (97.2, 71.7, 62.6, 56.0, 52.4),
}


def _several(name: str, objective: Objective, trained_on: tuple[str, ...], passes: int) -> Recipe:
    columns = ("clean", "linf", "l1", "l2", "union")
    return Recipe(
        name=f"mnist-{name}",
        about=f"Tramèr and Boneh's table: {name}",
        hardware=ONE,
        time=estimate(FLOPS, passes, 60_000, 10, speed=SPEED),
        published=tuple(zip(columns, TABLE[name], strict=True)),
        source="arXiv:1904.13000, recalled, within a point",
        data=Data("mnist"),
        network=Network("madry"),
        objective=objective,
        train=TrainConfig(
            epochs=10,
            batch_size=100,
            learning_rate=1e-3,
            schedule="one-drop",
            validation=0.0,
            radius_warmup=1.0 if trained_on else 0.0,
        ),
        suite=Suite(
            attacks=(
                "linf=pgd:linf:0.3:steps=100,step_size=0.01,restarts=40,loss=margin",
                "l1=pgd:l1:10:steps=100,step_size=0.5,restarts=40,loss=margin",
                "l1 ead=ead:l1:10",
                "l2=pgd:l2:2:steps=100,step_size=0.1,restarts=40,loss=margin",
                "l2 decisions=boundary:l2:2",
            ),
            trained_on=trained_on,
            examples=200,
        ),
    )


RECIPES = (
    madry,
    small,
    _several("standard", Objective(), (), 1),
    _several("at-linf", Objective("adversarial", (LINF,)), ("linf",), 11),
    _several("at-l1", Objective("adversarial", (L1,)), ("l1",), 11),
    _several("at-l2", Objective("adversarial", (L2,)), ("l2",), 11),
    _several("average", Objective("several_average", (LINF, L1, L2)), ("linf", "l1", "l2"), 33),
    _several("maximum", Objective("several_max", (LINF, L1, L2)), ("linf", "l1", "l2"), 32),
)
