"""Perturbation sets: what the adversary may do to an image."""

from jaxrobust.sets.base import REGISTRY as REGISTRY
from jaxrobust.sets.base import PerturbationSet as PerturbationSet
from jaxrobust.sets.base import register as register
from jaxrobust.sets.lp import L1 as L1
from jaxrobust.sets.lp import L2 as L2
from jaxrobust.sets.lp import Linf as Linf

__all__ = ["L1", "L2", "REGISTRY", "Linf", "PerturbationSet", "register"]
