"""Optimal transport on the pixel grid: local plans, projections onto Wasserstein balls, distances and certificates."""

from jaxrobust.transport.plans import Plan as Plan
from jaxrobust.transport.plans import allowed as allowed
from jaxrobust.transport.plans import columns as columns
from jaxrobust.transport.plans import costs as costs
from jaxrobust.transport.plans import identity as identity
from jaxrobust.transport.plans import offsets as offsets
from jaxrobust.transport.plans import windows as windows

__all__ = ["Plan", "allowed", "columns", "costs", "identity", "offsets", "windows"]
