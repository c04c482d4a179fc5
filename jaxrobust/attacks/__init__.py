"""Attacks: how the adversary searches a perturbation set."""

from jaxrobust import _public
from jaxrobust.attacks.compose.bpda import BPDA as BPDA
from jaxrobust.attacks.compose.bpda import bpda as bpda
from jaxrobust.attacks.compose.eot import EOT as EOT
from jaxrobust.attacks.compose.eot import RandomClassifier as RandomClassifier
from jaxrobust.attacks.compose.eot import autoattack_rand as autoattack_rand
from jaxrobust.attacks.compose.eot import eot as eot
from jaxrobust.attacks.compose.minimal import Minimal as Minimal
from jaxrobust.attacks.compose.minimal import minimal as minimal
from jaxrobust.attacks.compose.runs import OneRun as OneRun
from jaxrobust.attacks.compose.runs import Restarts as Restarts
from jaxrobust.attacks.compose.runs import TargetedEach as TargetedEach
from jaxrobust.attacks.compose.runs import apgd_t as apgd_t
from jaxrobust.attacks.compose.runs import restarts as restarts
from jaxrobust.attacks.compose.runs import targeted_each as targeted_each
from jaxrobust.attacks.compose.worst_of import WorstOf as WorstOf
from jaxrobust.attacks.compose.worst_of import worst_of as worst_of
from jaxrobust.attacks.core import engine as engine
from jaxrobust.attacks.core.base import REGISTRY as REGISTRY
from jaxrobust.attacks.core.base import Attack as Attack
from jaxrobust.attacks.core.base import Best as Best
from jaxrobust.attacks.core.base import register as register
from jaxrobust.attacks.core.engine import example_keys as example_keys
from jaxrobust.attacks.core.engine import last_iterate as last_iterate
from jaxrobust.attacks.core.engine import run as run
from jaxrobust.attacks.core.engine import trajectory as trajectory
from jaxrobust.attacks.gradient.adam import Adam as Adam
from jaxrobust.attacks.gradient.adam import adam as adam
from jaxrobust.attacks.gradient.adam import recoloradv as recoloradv
from jaxrobust.attacks.gradient.adam import stadv as stadv
from jaxrobust.attacks.gradient.apgd import APGD as APGD
from jaxrobust.attacks.gradient.apgd import SparseAPGD as SparseAPGD
from jaxrobust.attacks.gradient.apgd import apgd as apgd
from jaxrobust.attacks.gradient.frank_wolfe import FrankWolfe as FrankWolfe
from jaxrobust.attacks.gradient.frank_wolfe import frank_wolfe as frank_wolfe
from jaxrobust.attacks.gradient.lagrangian import Lagrangian as Lagrangian
from jaxrobust.attacks.gradient.lagrangian import fast_lpa as fast_lpa
from jaxrobust.attacks.gradient.lagrangian import lpa as lpa
from jaxrobust.attacks.gradient.multi import MSD as MSD
from jaxrobust.attacks.gradient.multi import AffineAscent as AffineAscent
from jaxrobust.attacks.gradient.multi import affine as affine
from jaxrobust.attacks.gradient.multi import msd as msd
from jaxrobust.attacks.gradient.perceptual import clamped_margin as clamped_margin
from jaxrobust.attacks.gradient.perceptual import ppgd as ppgd
from jaxrobust.attacks.gradient.pgd import PGD as PGD
from jaxrobust.attacks.gradient.pgd import bim as bim
from jaxrobust.attacks.gradient.pgd import fgsm as fgsm
from jaxrobust.attacks.gradient.pgd import least_likely as least_likely
from jaxrobust.attacks.gradient.pgd import mi_fgsm as mi_fgsm
from jaxrobust.attacks.gradient.pgd import pgd as pgd
from jaxrobust.attacks.gradient.pgd import r_fgsm as r_fgsm
from jaxrobust.attacks.gradient.pgd import rs_fgsm as rs_fgsm
from jaxrobust.attacks.gradient.pgd_0 import PGD0 as PGD0
from jaxrobust.attacks.gradient.pgd_0 import pgd_0 as pgd_0
from jaxrobust.attacks.gradient.unforeseen import LADDERS as LADDERS
from jaxrobust.attacks.gradient.unforeseen import kang as kang
from jaxrobust.attacks.gradient.unforeseen import unforeseen_sets as unforeseen_sets
from jaxrobust.attacks.minimum_norm.carlini_wagner import CarliniWagnerL0 as CarliniWagnerL0
from jaxrobust.attacks.minimum_norm.carlini_wagner import CarliniWagnerL2 as CarliniWagnerL2
from jaxrobust.attacks.minimum_norm.carlini_wagner import CarliniWagnerLinf as CarliniWagnerLinf
from jaxrobust.attacks.minimum_norm.carlini_wagner import carlini_wagner as carlini_wagner
from jaxrobust.attacks.minimum_norm.ddn import DDN as DDN
from jaxrobust.attacks.minimum_norm.ddn import ddn as ddn
from jaxrobust.attacks.minimum_norm.deepfool import DeepFool as DeepFool
from jaxrobust.attacks.minimum_norm.deepfool import deepfool as deepfool
from jaxrobust.attacks.minimum_norm.ead import EAD as EAD
from jaxrobust.attacks.minimum_norm.ead import ead as ead
from jaxrobust.attacks.minimum_norm.fab import FAB as FAB
from jaxrobust.attacks.minimum_norm.fab import fab as fab
from jaxrobust.attacks.minimum_norm.fmn import FMN as FMN
from jaxrobust.attacks.minimum_norm.fmn import fmn as fmn
from jaxrobust.attacks.minimum_norm.jsma import JSMA as JSMA
from jaxrobust.attacks.minimum_norm.jsma import jsma as jsma
from jaxrobust.attacks.minimum_norm.sigma_zero import SigmaZero as SigmaZero
from jaxrobust.attacks.minimum_norm.sigma_zero import sigma_zero as sigma_zero
from jaxrobust.attacks.minimum_norm.sparse_fool import SparseFool as SparseFool
from jaxrobust.attacks.minimum_norm.sparse_fool import sparse_fool as sparse_fool
from jaxrobust.attacks.physical.patch import PhysicalResult as PhysicalResult
from jaxrobust.attacks.physical.patch import Placement as Placement
from jaxrobust.attacks.physical.patch import adversarial_patch as adversarial_patch
from jaxrobust.attacks.physical.patch import patch_success as patch_success
from jaxrobust.attacks.physical.rp2 import non_printability as non_printability
from jaxrobust.attacks.physical.rp2 import rp2 as rp2
from jaxrobust.attacks.physical.rp2 import sticker_mask as sticker_mask
from jaxrobust.attacks.physical.universal import UniversalResult as UniversalResult
from jaxrobust.attacks.physical.universal import fooling_rate as fooling_rate
from jaxrobust.attacks.physical.universal import universal_gradient as universal_gradient
from jaxrobust.attacks.physical.universal import universal_perturbation as universal_perturbation
from jaxrobust.attacks.queries.boundary import Boundary as Boundary
from jaxrobust.attacks.queries.boundary import boundary as boundary
from jaxrobust.attacks.queries.corner_search import CornerSearch as CornerSearch
from jaxrobust.attacks.queries.corner_search import corner_search as corner_search
from jaxrobust.attacks.queries.estimators import NES as NES
from jaxrobust.attacks.queries.estimators import SPSA as SPSA
from jaxrobust.attacks.queries.estimators import nes as nes
from jaxrobust.attacks.queries.estimators import spsa as spsa
from jaxrobust.attacks.queries.hop_skip_jump import HopSkipJump as HopSkipJump
from jaxrobust.attacks.queries.hop_skip_jump import hop_skip_jump as hop_skip_jump
from jaxrobust.attacks.queries.one_pixel import OnePixel as OnePixel
from jaxrobust.attacks.queries.one_pixel import one_pixel as one_pixel
from jaxrobust.attacks.queries.pointwise import Pointwise as Pointwise
from jaxrobust.attacks.queries.pointwise import pointwise as pointwise
from jaxrobust.attacks.queries.search import GridSearch as GridSearch
from jaxrobust.attacks.queries.search import RandomSearch as RandomSearch
from jaxrobust.attacks.queries.search import grid_search as grid_search
from jaxrobust.attacks.queries.search import worst_of_k as worst_of_k
from jaxrobust.attacks.queries.sparse_rs import SparseRS as SparseRS
from jaxrobust.attacks.queries.sparse_rs import sparse_rs as sparse_rs
from jaxrobust.attacks.queries.square import Square as Square
from jaxrobust.attacks.queries.square import square as square
from jaxrobust.attacks.suites import suite as suite

__all__ = [
    "APGD",
    "BPDA",
    "DDN",
    "EAD",
    "EOT",
    "FAB",
    "FMN",
    "JSMA",
    "LADDERS",
    "MSD",
    "NES",
    "PGD",
    "PGD0",
    "REGISTRY",
    "SPSA",
    "Adam",
    "AffineAscent",
    "Attack",
    "Best",
    "Boundary",
    "CarliniWagnerL0",
    "CarliniWagnerL2",
    "CarliniWagnerLinf",
    "CornerSearch",
    "DeepFool",
    "FrankWolfe",
    "GridSearch",
    "HopSkipJump",
    "Lagrangian",
    "Minimal",
    "OnePixel",
    "OneRun",
    "PhysicalResult",
    "Placement",
    "Pointwise",
    "RandomClassifier",
    "RandomSearch",
    "Restarts",
    "SigmaZero",
    "SparseAPGD",
    "SparseFool",
    "SparseRS",
    "Square",
    "TargetedEach",
    "UniversalResult",
    "WorstOf",
    "adam",
    "adversarial_patch",
    "affine",
    "apgd",
    "apgd_t",
    "autoattack_rand",
    "bim",
    "boundary",
    "bpda",
    "carlini_wagner",
    "clamped_margin",
    "corner_search",
    "ddn",
    "deepfool",
    "ead",
    "eot",
    "example_keys",
    "fab",
    "fast_lpa",
    "fgsm",
    "fmn",
    "fooling_rate",
    "frank_wolfe",
    "grid_search",
    "hop_skip_jump",
    "jsma",
    "kang",
    "last_iterate",
    "least_likely",
    "lpa",
    "mi_fgsm",
    "minimal",
    "msd",
    "nes",
    "non_printability",
    "one_pixel",
    "patch_success",
    "pgd",
    "pgd_0",
    "pointwise",
    "ppgd",
    "r_fgsm",
    "recoloradv",
    "register",
    "restarts",
    "rp2",
    "rs_fgsm",
    "run",
    "sigma_zero",
    "sparse_fool",
    "sparse_rs",
    "spsa",
    "square",
    "stadv",
    "sticker_mask",
    "suite",
    "targeted_each",
    "trajectory",
    "unforeseen_sets",
    "universal_gradient",
    "universal_perturbation",
    "worst_of",
    "worst_of_k",
]


def __dir__() -> list[str]:
    return _public.names(globals())
