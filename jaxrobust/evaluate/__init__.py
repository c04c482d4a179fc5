"""Evaluation: robust accuracy over a data set by the lanes, curves over radii, and run folders."""

from jaxrobust.evaluate.lanes import LaneCounts as LaneCounts
from jaxrobust.evaluate.lanes import LaneResult as LaneResult
from jaxrobust.evaluate.lanes import predict as predict
from jaxrobust.evaluate.lanes import run_lanes as run_lanes
from jaxrobust.evaluate.outcomes import AttackOutcome as AttackOutcome
from jaxrobust.evaluate.outcomes import Evaluation as Evaluation
from jaxrobust.evaluate.outcomes import Proportion as Proportion
from jaxrobust.evaluate.outcomes import unseen_mean as unseen_mean
from jaxrobust.evaluate.robustness import curve as curve
from jaxrobust.evaluate.robustness import robustness as robustness
from jaxrobust.evaluate.run_folder import curves as curves
from jaxrobust.evaluate.run_folder import is_finished as is_finished
from jaxrobust.evaluate.run_folder import save_run as save_run
from jaxrobust.evaluate.run_folder import trajectories as trajectories

__all__ = [
    "AttackOutcome",
    "Evaluation",
    "LaneCounts",
    "LaneResult",
    "Proportion",
    "curve",
    "curves",
    "is_finished",
    "predict",
    "robustness",
    "run_lanes",
    "save_run",
    "trajectories",
    "unseen_mean",
]
