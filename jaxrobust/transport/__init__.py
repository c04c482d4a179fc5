"""Optimal transport on the pixel grid: local plans, projections onto Wasserstein balls, distances and certificates."""

from jaxrobust import _public
from jaxrobust.transport.capacity import repair as repair
from jaxrobust.transport.distances import Bounds as Bounds
from jaxrobust.transport.distances import bounds as bounds
from jaxrobust.transport.distances import certificate as certificate
from jaxrobust.transport.dual import project as project
from jaxrobust.transport.linear import maximise as maximise
from jaxrobust.transport.ott import OTTDistance as OTTDistance
from jaxrobust.transport.ott import ott_distance as ott_distance
from jaxrobust.transport.ott import ott_plan as ott_plan
from jaxrobust.transport.plans import allowed as allowed
from jaxrobust.transport.plans import columns as columns
from jaxrobust.transport.plans import costs as costs
from jaxrobust.transport.plans import identity as identity
from jaxrobust.transport.plans import offsets as offsets
from jaxrobust.transport.plans import windows as windows
from jaxrobust.transport.sinkhorn import Projection as Projection
from jaxrobust.transport.sinkhorn import sinkhorn_projection as sinkhorn_projection
from jaxrobust.transport.sinkhorn import wright_omega as wright_omega

__all__ = [
    "Bounds",
    "OTTDistance",
    "Projection",
    "allowed",
    "bounds",
    "certificate",
    "columns",
    "costs",
    "identity",
    "maximise",
    "offsets",
    "ott_distance",
    "ott_plan",
    "project",
    "repair",
    "sinkhorn_projection",
    "windows",
    "wright_omega",
]


def __dir__() -> list[str]:
    return _public.names(globals())
