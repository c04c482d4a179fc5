"""Training: objectives built from attacks, the pure train step, and the loop around it."""

from jaxrobust import _public
from jaxrobust.training.calibration import Calibration as Calibration
from jaxrobust.training.calibration import adapted_targets as adapted_targets
from jaxrobust.training.calibration import calibration as calibration
from jaxrobust.training.calibration import distance_groups as distance_groups
from jaxrobust.training.calibration import temperature as temperature
from jaxrobust.training.config import TrainConfig as TrainConfig
from jaxrobust.training.many import Members as Members
from jaxrobust.training.many import fit_many as fit_many
from jaxrobust.training.monitors import overfitting_metrics as overfitting_metrics
from jaxrobust.training.objectives.core import Aux as Aux
from jaxrobust.training.objectives.core import Crafting as Crafting
from jaxrobust.training.objectives.core import Learner as Learner
from jaxrobust.training.objectives.core import Objective as Objective
from jaxrobust.training.objectives.core import total as total
from jaxrobust.training.objectives.distributions import group_dro as group_dro
from jaxrobust.training.objectives.distributions import reweighted as reweighted
from jaxrobust.training.objectives.distributions import wrm as wrm
from jaxrobust.training.objectives.divergence import mart as mart
from jaxrobust.training.objectives.divergence import trades as trades
from jaxrobust.training.objectives.fast import free as free
from jaxrobust.training.objectives.fast import grad_align as grad_align
from jaxrobust.training.objectives.gradients import cure as cure
from jaxrobust.training.objectives.gradients import gradient_penalty as gradient_penalty
from jaxrobust.training.objectives.gradients import llr as llr
from jaxrobust.training.objectives.labels import distilled as distilled
from jaxrobust.training.objectives.labels import group_smoothing as group_smoothing
from jaxrobust.training.objectives.labels import label_smoothing as label_smoothing
from jaxrobust.training.objectives.labels import soft_labels as soft_labels
from jaxrobust.training.objectives.plain import Adversarial as Adversarial
from jaxrobust.training.objectives.plain import Mixed as Mixed
from jaxrobust.training.objectives.plain import Standard as Standard
from jaxrobust.training.objectives.plain import adversarial as adversarial
from jaxrobust.training.objectives.plain import adversarial_logit_pairing as adversarial_logit_pairing
from jaxrobust.training.objectives.plain import logit_squeezing as logit_squeezing
from jaxrobust.training.objectives.plain import mixed as mixed
from jaxrobust.training.objectives.plain import random_strength as random_strength
from jaxrobust.training.objectives.plain import standard as standard
from jaxrobust.training.objectives.registry import REGISTRY as REGISTRY
from jaxrobust.training.objectives.registry import register as register
from jaxrobust.training.objectives.several import Several as Several
from jaxrobust.training.objectives.several import extreme_norms as extreme_norms
from jaxrobust.training.objectives.several import several as several
from jaxrobust.training.objectives.weights import awp as awp
from jaxrobust.training.objectives.weights import clip_weights as clip_weights
from jaxrobust.training.objectives.weights import parseval as parseval
from jaxrobust.training.schedules import SCHEDULES as SCHEDULES
from jaxrobust.training.schedules import schedule as schedule
from jaxrobust.training.step import TrainState as TrainState
from jaxrobust.training.step import first_memory as first_memory
from jaxrobust.training.step import train_step as train_step
from jaxrobust.training.trainer import TrainResult as TrainResult
from jaxrobust.training.trainer import fit as fit
from jaxrobust.training.wasserstein import WassersteinBound as WassersteinBound
from jaxrobust.training.wasserstein import wasserstein_bound as wasserstein_bound

__all__ = [
    "REGISTRY",
    "SCHEDULES",
    "Adversarial",
    "Aux",
    "Calibration",
    "Crafting",
    "Learner",
    "Members",
    "Mixed",
    "Objective",
    "Several",
    "Standard",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "WassersteinBound",
    "adapted_targets",
    "adversarial",
    "adversarial_logit_pairing",
    "awp",
    "calibration",
    "clip_weights",
    "cure",
    "distance_groups",
    "distilled",
    "extreme_norms",
    "first_memory",
    "fit",
    "fit_many",
    "free",
    "grad_align",
    "gradient_penalty",
    "group_dro",
    "group_smoothing",
    "label_smoothing",
    "llr",
    "logit_squeezing",
    "mart",
    "mixed",
    "overfitting_metrics",
    "parseval",
    "random_strength",
    "register",
    "reweighted",
    "schedule",
    "several",
    "soft_labels",
    "standard",
    "temperature",
    "total",
    "trades",
    "train_step",
    "wasserstein_bound",
    "wrm",
]


def __dir__() -> list[str]:
    return _public.names(globals())
