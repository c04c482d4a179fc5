"""Perturbation sets: what the adversary may do to an image."""

from jaxrobust import _public
from jaxrobust.sets.affine import Affine as Affine
from jaxrobust.sets.affine import simplex_weights as simplex_weights
from jaxrobust.sets.affine import weighted_sum as weighted_sum
from jaxrobust.sets.base import REGISTRY as REGISTRY
from jaxrobust.sets.base import PerturbationSet as PerturbationSet
from jaxrobust.sets.base import register as register
from jaxrobust.sets.colour import ReColor as ReColor
from jaxrobust.sets.combine import Sequence as Sequence
from jaxrobust.sets.combine import Union as Union
from jaxrobust.sets.combine import convex_hull_l2_radius as convex_hull_l2_radius
from jaxrobust.sets.combine import scaled as scaled
from jaxrobust.sets.combine import sequence as sequence
from jaxrobust.sets.jpeg import JPEG as JPEG
from jaxrobust.sets.lp import L1 as L1
from jaxrobust.sets.lp import L2 as L2
from jaxrobust.sets.lp import Linf as Linf
from jaxrobust.sets.masks import Masked as Masked
from jaxrobust.sets.masks import Patch as Patch
from jaxrobust.sets.one_of import OneOf as OneOf
from jaxrobust.sets.perceptual import Perceptual as Perceptual
from jaxrobust.sets.sinkhorn import WassersteinOTT as WassersteinOTT
from jaxrobust.sets.sinkhorn import WassersteinSinkhorn as WassersteinSinkhorn
from jaxrobust.sets.sparse import L0 as L0
from jaxrobust.sets.sparse import GroupL20 as GroupL20
from jaxrobust.sets.sparse import GroupL21 as GroupL21
from jaxrobust.sets.sparse import L0Linf as L0Linf
from jaxrobust.sets.spatial import Elastic as Elastic
from jaxrobust.sets.spatial import Flow as Flow
from jaxrobust.sets.spatial import RotationTranslation as RotationTranslation
from jaxrobust.sets.standard import standard as standard
from jaxrobust.sets.wasserstein import Wasserstein as Wasserstein
from jaxrobust.sets.weather import Fog as Fog
from jaxrobust.sets.weather import Gabor as Gabor
from jaxrobust.sets.weather import Snow as Snow

__all__ = [
    "JPEG",
    "L0",
    "L1",
    "L2",
    "REGISTRY",
    "Affine",
    "Elastic",
    "Flow",
    "Fog",
    "Gabor",
    "GroupL20",
    "GroupL21",
    "L0Linf",
    "Linf",
    "Masked",
    "OneOf",
    "Patch",
    "Perceptual",
    "PerturbationSet",
    "ReColor",
    "RotationTranslation",
    "Sequence",
    "Snow",
    "Union",
    "Wasserstein",
    "WassersteinOTT",
    "WassersteinSinkhorn",
    "convex_hull_l2_radius",
    "register",
    "scaled",
    "sequence",
    "simplex_weights",
    "standard",
    "weighted_sum",
]


def __dir__() -> list[str]:
    return _public.names(globals())
