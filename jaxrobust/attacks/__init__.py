"""Attacks: how the adversary searches a perturbation set."""

from jaxrobust.attacks import engine as engine
from jaxrobust.attacks.adam import Adam as Adam
from jaxrobust.attacks.adam import adam as adam
from jaxrobust.attacks.adam import recoloradv as recoloradv
from jaxrobust.attacks.adam import stadv as stadv
from jaxrobust.attacks.apgd import APGD as APGD
from jaxrobust.attacks.apgd import SparseAPGD as SparseAPGD
from jaxrobust.attacks.apgd import apgd as apgd
from jaxrobust.attacks.apgd import apgd_t as apgd_t
from jaxrobust.attacks.base import REGISTRY as REGISTRY
from jaxrobust.attacks.base import Attack as Attack
from jaxrobust.attacks.base import Best as Best
from jaxrobust.attacks.base import register as register
from jaxrobust.attacks.boundary import Boundary as Boundary
from jaxrobust.attacks.boundary import boundary as boundary
from jaxrobust.attacks.bpda import BPDA as BPDA
from jaxrobust.attacks.bpda import bpda as bpda
from jaxrobust.attacks.carlini_wagner import CarliniWagnerL0 as CarliniWagnerL0
from jaxrobust.attacks.carlini_wagner import CarliniWagnerL2 as CarliniWagnerL2
from jaxrobust.attacks.carlini_wagner import CarliniWagnerLinf as CarliniWagnerLinf
from jaxrobust.attacks.carlini_wagner import carlini_wagner as carlini_wagner
from jaxrobust.attacks.compose import OneRun as OneRun
from jaxrobust.attacks.compose import Restarts as Restarts
from jaxrobust.attacks.compose import TargetedEach as TargetedEach
from jaxrobust.attacks.compose import best_of as best_of
from jaxrobust.attacks.compose import on_survivors as on_survivors
from jaxrobust.attacks.compose import restarts as restarts
from jaxrobust.attacks.compose import targeted_each as targeted_each
from jaxrobust.attacks.corner_search import CornerSearch as CornerSearch
from jaxrobust.attacks.corner_search import corner_search as corner_search
from jaxrobust.attacks.ddn import DDN as DDN
from jaxrobust.attacks.ddn import ddn as ddn
from jaxrobust.attacks.deepfool import DeepFool as DeepFool
from jaxrobust.attacks.deepfool import deepfool as deepfool
from jaxrobust.attacks.ead import EAD as EAD
from jaxrobust.attacks.ead import ead as ead
from jaxrobust.attacks.engine import example_keys as example_keys
from jaxrobust.attacks.engine import last_iterate as last_iterate
from jaxrobust.attacks.engine import run as run
from jaxrobust.attacks.engine import trajectory as trajectory
from jaxrobust.attacks.eot import EOT as EOT
from jaxrobust.attacks.eot import RandomClassifier as RandomClassifier
from jaxrobust.attacks.eot import autoattack_rand as autoattack_rand
from jaxrobust.attacks.eot import eot as eot
from jaxrobust.attacks.estimators import NES as NES
from jaxrobust.attacks.estimators import SPSA as SPSA
from jaxrobust.attacks.estimators import nes as nes
from jaxrobust.attacks.estimators import spsa as spsa
from jaxrobust.attacks.fab import FAB as FAB
from jaxrobust.attacks.fab import fab as fab
from jaxrobust.attacks.fmn import FMN as FMN
from jaxrobust.attacks.fmn import fmn as fmn
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
from jaxrobust.attacks.hop_skip_jump import HopSkipJump as HopSkipJump
from jaxrobust.attacks.hop_skip_jump import hop_skip_jump as hop_skip_jump
from jaxrobust.attacks.jsma import JSMA as JSMA
from jaxrobust.attacks.jsma import jsma as jsma
from jaxrobust.attacks.lagrangian import Lagrangian as Lagrangian
from jaxrobust.attacks.lagrangian import fast_lpa as fast_lpa
from jaxrobust.attacks.lagrangian import lpa as lpa
from jaxrobust.attacks.minimal import Minimal as Minimal
from jaxrobust.attacks.minimal import minimal as minimal
from jaxrobust.attacks.multi import MSD as MSD
from jaxrobust.attacks.multi import AffineAscent as AffineAscent
from jaxrobust.attacks.multi import affine as affine
from jaxrobust.attacks.multi import msd as msd
from jaxrobust.attacks.one_pixel import OnePixel as OnePixel
from jaxrobust.attacks.one_pixel import one_pixel as one_pixel
from jaxrobust.attacks.patch import PhysicalResult as PhysicalResult
from jaxrobust.attacks.patch import Placement as Placement
from jaxrobust.attacks.patch import adversarial_patch as adversarial_patch
from jaxrobust.attacks.patch import patch_success as patch_success
from jaxrobust.attacks.perceptual import clamped_margin as clamped_margin
from jaxrobust.attacks.perceptual import ppgd as ppgd
from jaxrobust.attacks.pgd_0 import PGD0 as PGD0
from jaxrobust.attacks.pgd_0 import pgd_0 as pgd_0
from jaxrobust.attacks.pointwise import Pointwise as Pointwise
from jaxrobust.attacks.pointwise import pointwise as pointwise
from jaxrobust.attacks.rp2 import non_printability as non_printability
from jaxrobust.attacks.rp2 import rp2 as rp2
from jaxrobust.attacks.rp2 import sticker_mask as sticker_mask
from jaxrobust.attacks.search import GridSearch as GridSearch
from jaxrobust.attacks.search import RandomSearch as RandomSearch
from jaxrobust.attacks.search import grid_search as grid_search
from jaxrobust.attacks.search import worst_of_k as worst_of_k
from jaxrobust.attacks.sigma_zero import SigmaZero as SigmaZero
from jaxrobust.attacks.sigma_zero import sigma_zero as sigma_zero
from jaxrobust.attacks.sparse_fool import SparseFool as SparseFool
from jaxrobust.attacks.sparse_fool import sparse_fool as sparse_fool
from jaxrobust.attacks.sparse_rs import SparseRS as SparseRS
from jaxrobust.attacks.sparse_rs import sparse_rs as sparse_rs
from jaxrobust.attacks.square import Square as Square
from jaxrobust.attacks.square import square as square
from jaxrobust.attacks.suites import suite as suite
from jaxrobust.attacks.unforeseen import LADDERS as LADDERS
from jaxrobust.attacks.unforeseen import kang as kang
from jaxrobust.attacks.unforeseen import unforeseen_sets as unforeseen_sets
from jaxrobust.attacks.universal import UniversalResult as UniversalResult
from jaxrobust.attacks.universal import fooling_rate as fooling_rate
from jaxrobust.attacks.universal import universal_gradient as universal_gradient
from jaxrobust.attacks.universal import universal_perturbation as universal_perturbation
from jaxrobust.attacks.worst_of import WorstOf as WorstOf
from jaxrobust.attacks.worst_of import worst_of as worst_of

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
    "best_of",
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
    "on_survivors",
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
