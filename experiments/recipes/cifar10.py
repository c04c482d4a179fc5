"""Recipes for CIFAR-10: the table of perceptual adversarial training, and the field's lp training.

    python -m jaxrobust.data.prepare cifar10 --from DIR
    python -m experiments.train --recipe cifar10-alexnet          # measures distances in some of the others
    python -m experiments.train --recipe cifar10-pat-self
    python -m experiments.evaluate runs/cifar10-pat-self --alexnet runs/cifar10-alexnet

Hardware: one GPU or TPU core, and `--devices` for more. Times are estimates by counted operations; what a step takes
somewhere is measured by `--steps 20`. Expected, in %, published (arXiv:2006.12655; ResNet-50; l∞ 8/255 and l2 1 by
AutoAttack, StAdv 0.05 and ReColorAdv 0.06 by 100 steps, PPGD and LPA 0.5 by 40; union over the first four):

                clean  linf    l2  stadv  recolor  ppgd   lpa  union  unseen mean
    standard     94.8   0.0   0.0    0.0      0.4   0.0   0.0    0.0          0.1
    at-linf      86.8  49.0  19.2    4.8     54.5   1.6   0.0               19.6
    trades       84.9  52.5  23.3    9.2     60.6   2.0   0.0               23.3
    at-l2        85.0  39.5  47.8    7.8     53.5   6.3   0.3               25.3
    at-stadv     86.2   0.1   0.2   53.9      5.1   0.0   0.0                1.4
    at-recolor   93.4   8.5   3.9    0.0     65.0   0.1   0.0                3.1
    all-random   85.2                                           0.7
    all-average  86.8                                          14.7
    all-maximum  84.0                                          21.4
    pat-self     82.4  30.2  34.9   46.4     71.0  13.1   2.1   21.9         45.6
    pat-alexnet  71.6  28.7  33.3   64.5     67.5  26.6   9.8   27.8         48.5

The others, each with its own network: WRN-28-10 TRADES and AT (84 to 86 clean, 53 to 55 under AutoAttack), PreAct
ResNet-18 l∞ and l2 with and without AWP (the authors' logs, PGD), the fast ones (PGD-50 with 10 restarts), several
norms at once (the union of their own attacks), ResNet-50 in l2 (clean 90.83, PGD 70.11).

Where the sources differ or say nothing, the first table takes l∞ and l2 as the released code has them, sign or
normalised steps of ε/√steps from a random start; the several sets attack wrong images too, and the worst of them is
that by the loss in evaluation mode; TRADES has ε 8/255, 10 steps of 0.007 and β 6 in the same loop; the last network is
evaluated; the warm-up begins at a rate of 0.
"""

from __future__ import annotations

import dataclasses

from experiments.recipes.recipe import Data, Network, Objective, Recipe, Suite, estimate, only_correct, row
from jaxrobust.training import TrainConfig

__all__ = ["RECIPES"]

ONE = "one GPU or TPU core"
IMAGES = 50_000
# 10⁹ operations of an image, forward and backward
FLOPS = {"resnet50-32px": 7.8, "preact-resnet18": 3.3, "wide-resnet28": 31.0, "wide-resnet34": 40.0}
ALEXNET_FLOPS = 0.5
AUGMENT = ("crop", "flip")

# perceptual training and its baselines

LINF = "pgd:linf:8/255:steps=10,relative_step_size=0.316"
L2 = "pgd:l2:1:steps=10,relative_step_size=0.316"
STADV = "stadv:flow:0.05:steps=10"
RECOLOR = "recoloradv:recolor:0.06:steps=10"
ALL = (LINF, L2, STADV, RECOLOR)

PERCEPTUAL = TrainConfig(
    epochs=100,
    batch_size=50,
    optimizer="sgd",
    learning_rate=0.1,
    schedule="perceptual",
    weight_decay=2e-4,
    clip_value=1.0,
    validation=0.0,
)
NARROW = ("linf", "l2", "stadv", "recolor")
EVALUATION = Suite(
    suites=("linf=autoattack-linf:8/255", "l2=autoattack-l2:1"),
    attacks=(
        "stadv=stadv:flow:0.05",
        "recolor=recoloradv:recolor:0.06",
        "ppgd=ppgd:perceptual:0.5",
        "lpa=lpa:perceptual:0.5",
    ),
    union=NARROW,
    unseen=(*NARROW, "lpa"),
    external=True,
)
COLUMNS = ("clean", *NARROW, "ppgd", "lpa", "union", "unseen mean")
TABLE: dict[str, tuple[float | None, ...]] = {
    "standard": (94.8, 0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.1),
    "at-linf": (86.8, 49.0, 19.2, 4.8, 54.5, 1.6, 0.0, None, 19.6),
    "trades": (84.9, 52.5, 23.3, 9.2, 60.6, 2.0, 0.0, None, 23.3),
    "at-l2": (85.0, 39.5, 47.8, 7.8, 53.5, 6.3, 0.3, None, 25.3),
    "at-stadv": (86.2, 0.1, 0.2, 53.9, 5.1, 0.0, 0.0, None, 1.4),
    "at-recolor": (93.4, 8.5, 3.9, 0.0, 65.0, 0.1, 0.0, None, 3.1),
    "all-random": (85.2, None, None, None, None, None, None, 0.7, None),
    "all-average": (86.8, None, None, None, None, None, None, 14.7, None),
    "all-maximum": (84.0, None, None, None, None, None, None, 21.4, None),
    "pat-self": (82.4, 30.2, 34.9, 46.4, 71.0, 13.1, 2.1, 21.9, 45.6),
    "pat-alexnet": (71.6, 28.7, 33.3, 64.5, 67.5, 26.6, 9.8, 27.8, 48.5),
}


def _row(name: str, about: str, objective: Objective, trained_on: tuple[str, ...], passes: float) -> Recipe:
    """A row of the table of perceptual training."""
    return Recipe(
        name=f"cifar10-{name}",
        about=about,
        hardware=ONE,
        time=estimate(FLOPS["resnet50-32px"], passes, IMAGES, 100),
        published=row(COLUMNS, TABLE[name]),
        source="arXiv:2006.12655, Table 2",
        data=Data("cifar10"),
        network=Network("resnet50-32px"),
        objective=objective,
        train=PERCEPTUAL,
        augment=(*AUGMENT, "jitter", "rotation"),
        suite=dataclasses.replace(EVALUATION, trained_on=trained_on),
    )


SELF = Objective("perceptual", ("fast_lpa:perceptual:0.5:steps=10",))
ALEXNET = Objective("perceptual", ("fast_lpa:perceptual:1:steps=10",), external=True)
TRADES = Objective("trades", ("pgd:linf:8/255:steps=10,step_size=0.007",), "beta=6")

rows = (
    _row("standard", "standard training", Objective(), (), 1),
    _row("at-linf", "AT, l∞ 8/255", only_correct(LINF), ("linf",), 11),
    _row("trades", "TRADES, l∞ 8/255, β 6", TRADES, ("linf",), 12.3),
    _row("at-l2", "AT, l2 1", only_correct(L2), ("l2",), 11),
    _row("at-stadv", "AT, StAdv 0.05", only_correct(STADV), ("stadv",), 11),
    _row("at-recolor", "AT, ReColorAdv 0.06", only_correct(RECOLOR), ("recolor",), 11),
    _row("all-random", "AT, one of four sets a batch", Objective("several_random", ALL), NARROW, 11),
    _row("all-average", "AT, the average of four sets", Objective("several_average", ALL), NARROW, 44),
    _row("all-maximum", "AT, the worst of four sets", Objective("several_max", ALL), NARROW, 42.3),
    _row("pat-self", "perceptual training, self-bounded, 0.5", SELF, ("lpa",), 14.7),
    _row("pat-alexnet", "perceptual training, bounded by AlexNet, 1.0", ALEXNET, ("lpa",), 11.7),
)

alexnet = Recipe(
    name="cifar10-alexnet",
    about="the AlexNet that measures perceptual distance; how the published one was trained is not told",
    hardware=ONE,
    time=estimate(ALEXNET_FLOPS, 1, IMAGES, 100),
    published=(),
    source="",
    data=Data("cifar10"),
    network=Network("alexnet-32px"),
    objective=Objective(),
    train=dataclasses.replace(PERCEPTUAL, batch_size=128, learning_rate=0.01),
    augment=(*AUGMENT, "jitter", "rotation"),
    suite=Suite(attacks=("linf=pgd:linf:8/255:steps=20",)),
)

# lp training

RICE = TrainConfig(
    epochs=200,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    schedule="piecewise",
    weight_decay=5e-4,
    validation_limit=1000,
)
PANG = dataclasses.replace(
    RICE, epochs=110, optimizer="nesterov", schedule="late-drops", ema_decay=0.995, validation_limit=1000
)
FAST = dataclasses.replace(RICE, epochs=15, learning_rate=0.2, schedule="triangle", stop_on_overfitting=True)
PGD = "pgd:linf:8/255:steps=10,step_size=2/255"
PGD_L2 = "pgd:l2:128/255:steps=10,step_size=15/255"
BY_LINF = Suite(
    suites=("autoattack=autoattack-linf:8/255",), attacks=("pgd-20=pgd:linf:8/255:steps=20,step_size=2/255",)
)
BY_L2 = Suite(
    suites=("autoattack=autoattack-l2:128/255",), attacks=("pgd-20=pgd:l2:128/255:steps=20,step_size=15/255",)
)
BY_RESTARTS = Suite(attacks=("pgd-50x10=pgd:linf:8/255:steps=50,step_size=2/255,restarts=10",))
NORMS = Suite(
    attacks=(
        "linf ce=apgd:linf:8/255",
        "linf t=apgd_t:linf:8/255",
        "l2 ce=apgd:l2:0.5",
        "l2 t=apgd_t:l2:0.5",
        "l1 ce=apgd:l1:12:large_radii=true",
        "l1 t=apgd_t:l1:12:large_radii=true",
    ),
    trained_on=("linf", "l2", "l1"),
    examples=1000,
)


def _lp(
    name: str,
    about: str,
    objective: Objective,
    train: TrainConfig,
    suite: Suite,
    passes: float,
    published: dict[str, float],
    source: str,
    network: Network = Network("preact-resnet18"),
) -> Recipe:
    return Recipe(
        name=f"cifar10-{name}",
        about=about,
        hardware=ONE,
        time=estimate(FLOPS[network.kind], passes, IMAGES, train.epochs),
        published=tuple(published.items()),
        source=source,
        data=Data("cifar10"),
        network=network,
        objective=objective,
        train=train,
        augment=AUGMENT,
        suite=suite,
    )


WIDE = Network("wide-resnet28", activation="silu")
AT, AT_L2 = Objective("adversarial", (PGD,)), Objective("adversarial", (PGD_L2,))
LOGS = "arXiv:2002.11569 and 2004.05884, the authors' logs, best epoch"
SEVERAL = "arXiv:2105.12508, recalled, within a point"
MAINI = dataclasses.replace(RICE, epochs=50, schedule="multi-norm")
# the schedule of so long a run is a guess
CROCE = dataclasses.replace(RICE, epochs=80, learning_rate=0.05, decayed="kernels")
# three norms, the l2 radius in training below that of the evaluation; the worst of them takes longer steps in l∞
L2_AND_L1 = ("pgd:l2:0.3:steps=50,step_size=0.05", "pgd:l1:12:steps=50,step_size=1")
THREE = ("pgd:linf:0.03:steps=40,step_size=0.003", *L2_AND_L1)
THREE_MAX = ("pgd:linf:0.03:steps=40,step_size=0.005", *L2_AND_L1)
# the same attack for all, as in E-AT
APGD = (
    "apgd:linf:8/255:steps=10,random_start=false",
    "apgd:l2:0.5:steps=10,random_start=false",
    "apgd:l1:12:steps=10,random_start=false,sparsity=0.05",
)
SAT = Objective("several_random", APGD)
SOFTPLUS = Network("preact-resnet18", activation="softplus")


def _eat(name: str, about: str, objective: Objective, passes: float, row: tuple[float, ...]) -> Recipe:
    published = dict(zip(("clean", "linf", "l2", "l1", "union"), row, strict=True))
    return _lp(name, about, objective, CROCE, NORMS, passes, published, SEVERAL, SOFTPLUS)


lp = (
    _lp(
        "wrn-trades",
        "WRN-28-10 with SiLU, TRADES, l∞ 8/255, averaged weights",
        Objective("trades", (PGD,), "beta=6"),
        PANG,
        BY_LINF,
        12.3,
        {"clean": 85.0, "autoattack": 54.0},
        "arXiv:2010.00467 and 2010.03593: 84 to 86 clean, 53 to 55 under AutoAttack",
        WIDE,
    ),
    _lp(
        "wrn-at",
        "WRN-28-10 with SiLU, AT, l∞ 8/255, averaged weights",
        AT,
        PANG,
        BY_LINF,
        11,
        {"clean": 85.0, "autoattack": 54.0},
        "arXiv:2010.00467 and 2010.03593: 84 to 86 clean, 53 to 55 under AutoAttack",
        WIDE,
    ),
    _lp("prn18-linf", "PreAct ResNet-18, AT, l∞ 8/255", AT, RICE, BY_LINF, 11, {"pgd-20": 52.79}, LOGS),
    _lp("prn18-l2", "PreAct ResNet-18, AT, l2 128/255", AT_L2, RICE, BY_L2, 11, {"pgd-20": 69.15}, LOGS),
    _lp(
        "prn18-linf-awp",
        "the same with weight perturbation 0.01",
        Objective("awp", (PGD,), "gamma=0.01"),
        RICE,
        BY_LINF,
        12,
        {"pgd-20": 55.39},
        LOGS,
    ),
    _lp(
        "prn18-l2-awp",
        "the same in l2",
        Objective("awp", (PGD_L2,), "gamma=0.01"),
        RICE,
        BY_L2,
        12,
        {"pgd-20": 72.69},
        LOGS,
    ),
    _lp(
        "prn18-linf-smooth",
        "PreAct ResNet-18, AT, l∞ 8/255, label smoothing 0.1",
        Objective("adversarial", (PGD,), "label_smoothing=0.1"),
        RICE,
        BY_LINF,
        11,
        {},
        "",
    ),
    _lp(
        "prn18-mart",
        "PreAct ResNet-18, MART, l∞ 8/255, λ 5",
        Objective("mart", ("pgd:linf:0.031:steps=10,step_size=0.007",)),
        dataclasses.replace(RICE, epochs=120, learning_rate=0.01, schedule="three-drops", weight_decay=3.5e-3),
        BY_LINF,
        12,
        {},
        "",
    ),
    _lp(
        "fgsm",
        "FGSM-AT, which overfits catastrophically at this radius or beyond",
        Objective("adversarial", ("fgsm:linf:8/255",)),
        dataclasses.replace(FAST, epochs=30, stop_on_overfitting=False),
        BY_RESTARTS,
        2,
        {},
        "onset at 7 to 8/255 within 30 epochs, recalled",
    ),
    _lp(
        "fgsm-rs",
        "fast AT: RS-FGSM, 15 epochs",
        Objective("adversarial", ("rs_fgsm:linf:8/255",)),
        FAST,
        BY_RESTARTS,
        2,
        {"clean": 86.06, "pgd-50x10": 46.06},
        "arXiv:2001.03994, the authors' repository",
    ),
    _lp(
        "grad-align",
        "FGSM with aligned gradients, 30 epochs",
        Objective("grad_align", ("fgsm:linf:8/255",)),
        dataclasses.replace(FAST, epochs=30, learning_rate=0.3, stop_on_overfitting=False),
        BY_RESTARTS,
        5,
        {"clean": 81.0, "pgd-50x10": 47.58},
        "arXiv:2007.02617, recalled, within a point",
    ),
    _lp(
        "free",
        "free AT, 8 replays; the network that its authors call WRN-32-10",
        Objective("free", ("fgsm:linf:8/255",), "replays=8"),
        dataclasses.replace(RICE, epochs=25, weight_decay=2e-4),
        BY_RESTARTS,
        8,
        {"clean": 85.96, "pgd-50x10": 46.33},
        "arXiv:1904.12843: WRN-32-10; PGD-50 with 10 restarts by arXiv:2001.03994",
        Network("wide-resnet34"),
    ),
    _lp(
        "msd",
        "l∞, l2 and l1 at once by multi steepest descent, 50 steps",
        Objective("adversarial", ("msd-cifar10",)),
        MAINI,
        NORMS,
        101,
        {"clean": 81.7, "linf": 47.6, "l2": 64.3, "l1": 53.4, "union": 46.1},
        "arXiv:1909.04068, its own attacks, l∞ 0.03",
    ),
    _lp(
        "norms-max",
        "l∞, l2 and l1, the worst",
        Objective("several_max", THREE_MAX),
        MAINI,
        NORMS,
        142,
        {"clean": 81.0, "linf": 44.9, "l2": 61.7, "l1": 39.4, "union": 34.9},
        "arXiv:1909.04068, its own attacks, l∞ 0.03",
    ),
    _lp(
        "norms-average",
        "l∞, l2 and l1, the average",
        Objective("several_average", THREE),
        MAINI,
        NORMS,
        143,
        {"clean": 84.6, "linf": 42.5, "l2": 65.0, "l1": 54.0, "union": 40.6},
        "arXiv:1909.04068, its own attacks, l∞ 0.03",
    ),
    _eat(
        "sat", "one of l∞, l2, l1 a batch (SAT)", Objective("several_random", APGD), 11, (83.9, 40.7, 68.0, 54.0, 40.4)
    ),
    _eat("eat", "l∞ and l1 by their errors (E-AT)", Objective("extreme_norms"), 11, (82.2, 42.7, 67.5, 53.6, 42.4)),
    _lp(
        "resnet50-l2",
        "ResNet-50, AT, l2 0.5; --objective.attacks for 0.25 and 1",
        Objective("adversarial", ("pgd:l2:0.5:steps=7,random_start=false",)),
        dataclasses.replace(RICE, epochs=150, schedule="piecewise-ft", validation=0.0),
        Suite(suites=("autoattack=autoattack-l2:0.5",), attacks=("pgd-100=pgd:l2:0.5:steps=100",)),
        8,
        {"clean": 90.83, "pgd-100": 70.11},
        "the robustness package's page, ε 0.5",
        Network("resnet50-32px"),
    ),
)

RECIPES = (*rows, alexnet, *lp)
