"""The laws of objectives over the registry."""

import pytest

from jaxrobust import attacks, training
from jaxrobust.sets import L2, Linf
from jaxrobust.testing.objectives import OBJECTIVE_LAWS, ObjectiveCase

ATTACK = attacks.pgd(Linf(0.1), steps=2)
# from a start so near x, signs of the gradient are rounding's, which several devices do otherwise
SMOOTH = attacks.pgd(L2(0.5), steps=2)
NEAR = {"trades", "mart", "awp"}
QUICK = {"standard", "adversarial", "several_errors", "free", "reweighted_cvar"}
# the others on two classes of coloured images that are not square; the teacher of "distilled" knows three
ODD = {"shape": (2, 5, 3), "classes": 2}
CASES = {
    name: ObjectiveCase(
        entry.make(SMOOTH if name in NEAR else ATTACK),
        alone=entry.alone,
        clean=entry.clean,
        **({} if name in QUICK | {"distilled"} else ODD),
    )
    for name, entry in training.REGISTRY.items()
}
RANDOM = attacks.rs_fgsm(Linf(0.1))
CASES |= {
    "batch": ObjectiveCase(training.adversarial(RANDOM, craft_bn="batch")),
    "unlike": ObjectiveCase(training.several(RANDOM, attacks.fgsm(L2(0.5)), combine="errors")),
    "awp_trades": ObjectiveCase(training.awp(training.trades(SMOOTH), gamma=0.005), alone=False),
}
PARAMETERS = [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in CASES]


@pytest.mark.parametrize("law", OBJECTIVE_LAWS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_law(law, name):
    OBJECTIVE_LAWS[law](CASES[name])
