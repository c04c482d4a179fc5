"""Data: sources, importers of local copies, the loader, augmentation."""

from jaxrobust import _public
from jaxrobust.data import augment
from jaxrobust.data._crops import CentreCrop, RandomResizedCrop
from jaxrobust.data._dataset import Dataset, LazyDataset
from jaxrobust.data._files import read
from jaxrobust.data.loader import Batch, Loader
from jaxrobust.data.sources import load

__all__ = [
    "Batch",
    "CentreCrop",
    "Dataset",
    "LazyDataset",
    "Loader",
    "RandomResizedCrop",
    "augment",
    "load",
    "read",
]


def __dir__() -> list[str]:
    return _public.names(globals())
