"""The laws of objectives over those of the library."""

import pytest

from jaxrobust import attacks, training
from jaxrobust.sets import L2, Linf
from jaxrobust.testing.objectives import OBJECTIVE_LAWS, ObjectiveCase

RANDOM = attacks.rs_fgsm(Linf(0.1))
OBJECTIVES = {
    "standard": training.standard(label_smoothing=0.1),
    "adversarial": training.adversarial(RANDOM),
    "mixed": training.mixed(RANDOM),
    "batch": training.adversarial(RANDOM, craft_bn="batch"),
    "random": training.several(RANDOM, attacks.fgsm(L2(0.5)), combine="random"),
}
QUICK = {"standard", "adversarial"}
CASES = {name: ObjectiveCase(objective) for name, objective in OBJECTIVES.items()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in OBJECTIVES])
@pytest.mark.parametrize("law", OBJECTIVE_LAWS)
def test_law(law, name):
    OBJECTIVE_LAWS[law](CASES[name])
