"""Perceptual distances: what a network's activations say about how far apart two images look."""

from jaxrobust import _public
from jaxrobust.perceptual.distances import distance as distance
from jaxrobust.perceptual.distances import features as features
from jaxrobust.perceptual.distances import lpips as lpips
from jaxrobust.perceptual.distances import normalised as normalised
from jaxrobust.perceptual.distances import separation as separation
from jaxrobust.perceptual.filters import filter_bank as filter_bank

__all__ = ["distance", "features", "filter_bank", "lpips", "normalised", "separation"]


def __dir__() -> list[str]:
    return _public.names(globals())
