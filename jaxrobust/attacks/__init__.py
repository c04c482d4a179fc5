"""Attacks: how the adversary searches a perturbation set."""

from jaxrobust.attacks import engine as engine
from jaxrobust.attacks.adam import Adam as Adam
from jaxrobust.attacks.adam import adam as adam
from jaxrobust.attacks.adam import recoloradv as recoloradv
from jaxrobust.attacks.adam import stadv as stadv
from jaxrobust.attacks.base import REGISTRY as REGISTRY
from jaxrobust.attacks.base import Attack as Attack
from jaxrobust.attacks.base import Best as Best
from jaxrobust.attacks.base import register as register
from jaxrobust.attacks.engine import example_keys as example_keys
from jaxrobust.attacks.engine import last_iterate as last_iterate
from jaxrobust.attacks.engine import run as run
from jaxrobust.attacks.engine import trajectory as trajectory
from jaxrobust.attacks.frank_wolfe import FrankWolfe as FrankWolfe
from jaxrobust.attacks.frank_wolfe import frank_wolfe as frank_wolfe
from jaxrobust.attacks.gradient import PGD as PGD
from jaxrobust.attacks.gradient import bim as bim
from jaxrobust.attacks.gradient import fgsm as fgsm
from jaxrobust.attacks.gradient import least_likely as least_likely
from jaxrobust.attacks.gradient import mi_fgsm as mi_fgsm
from jaxrobust.attacks.gradient import pgd as pgd
from jaxrobust.attacks.gradient import r_fgsm as r_fgsm
from jaxrobust.attacks.gradient import rs_fgsm as rs_fgsm
from jaxrobust.attacks.lagrangian import Lagrangian as Lagrangian
from jaxrobust.attacks.lagrangian import fast_lpa as fast_lpa
from jaxrobust.attacks.lagrangian import lpa as lpa
from jaxrobust.attacks.multi import MSD as MSD
from jaxrobust.attacks.multi import AffineAscent as AffineAscent
from jaxrobust.attacks.multi import affine as affine
from jaxrobust.attacks.multi import msd as msd
from jaxrobust.attacks.perceptual import clamped_margin as clamped_margin
from jaxrobust.attacks.perceptual import ppgd as ppgd
from jaxrobust.attacks.search import GridSearch as GridSearch
from jaxrobust.attacks.search import RandomSearch as RandomSearch
from jaxrobust.attacks.search import grid_search as grid_search
from jaxrobust.attacks.search import worst_of_k as worst_of_k
from jaxrobust.attacks.unforeseen import LADDERS as LADDERS
from jaxrobust.attacks.unforeseen import kang as kang
from jaxrobust.attacks.unforeseen import unforeseen_sets as unforeseen_sets
from jaxrobust.attacks.worst_of import WorstOf as WorstOf
from jaxrobust.attacks.worst_of import worst_of as worst_of

__all__ = [
    "LADDERS",
    "MSD",
    "PGD",
    "REGISTRY",
    "Adam",
    "AffineAscent",
    "Attack",
    "Best",
    "FrankWolfe",
    "GridSearch",
    "Lagrangian",
    "RandomSearch",
    "WorstOf",
    "adam",
    "affine",
    "bim",
    "clamped_margin",
    "example_keys",
    "fast_lpa",
    "fgsm",
    "frank_wolfe",
    "grid_search",
    "kang",
    "last_iterate",
    "least_likely",
    "lpa",
    "mi_fgsm",
    "msd",
    "pgd",
    "ppgd",
    "r_fgsm",
    "recoloradv",
    "register",
    "rs_fgsm",
    "run",
    "stadv",
    "trajectory",
    "unforeseen_sets",
    "worst_of",
    "worst_of_k",
]
