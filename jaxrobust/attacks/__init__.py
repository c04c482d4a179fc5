"""Attacks: how the adversary searches a perturbation set."""

from jaxrobust.attacks import engine as engine
from jaxrobust.attacks.base import REGISTRY as REGISTRY
from jaxrobust.attacks.base import Attack as Attack
from jaxrobust.attacks.base import Best as Best
from jaxrobust.attacks.base import register as register
from jaxrobust.attacks.engine import example_keys as example_keys
from jaxrobust.attacks.engine import last_iterate as last_iterate
from jaxrobust.attacks.engine import run as run
from jaxrobust.attacks.engine import trajectory as trajectory
from jaxrobust.attacks.gradient import PGD as PGD
from jaxrobust.attacks.gradient import bim as bim
from jaxrobust.attacks.gradient import fgsm as fgsm
from jaxrobust.attacks.gradient import least_likely as least_likely
from jaxrobust.attacks.gradient import mi_fgsm as mi_fgsm
from jaxrobust.attacks.gradient import pgd as pgd
from jaxrobust.attacks.gradient import r_fgsm as r_fgsm
from jaxrobust.attacks.gradient import rs_fgsm as rs_fgsm

__all__ = [
    "PGD",
    "REGISTRY",
    "Attack",
    "Best",
    "bim",
    "example_keys",
    "fgsm",
    "last_iterate",
    "least_likely",
    "mi_fgsm",
    "pgd",
    "r_fgsm",
    "register",
    "rs_fgsm",
    "run",
    "trajectory",
]
