"""Evaluation: robust accuracy over a data set by the lanes, curves over radii, and run folders."""

from jaxrobust import _public
from jaxrobust.evaluate._programs import predict as predict
from jaxrobust.evaluate.autoattack import AutoAttack as AutoAttack
from jaxrobust.evaluate.autoattack import autoattack as autoattack
from jaxrobust.evaluate.compare import McNemar as McNemar
from jaxrobust.evaluate.compare import mcnemar as mcnemar
from jaxrobust.evaluate.curves import curve as curve
from jaxrobust.evaluate.curves import curves as curves
from jaxrobust.evaluate.curves import trajectories as trajectories
from jaxrobust.evaluate.door import run_lanes as run_lanes
from jaxrobust.evaluate.evaluation import Evaluation as Evaluation
from jaxrobust.evaluate.host import HostModel as HostModel
from jaxrobust.evaluate.lanes import LaneCounts as LaneCounts
from jaxrobust.evaluate.lanes import LaneResult as LaneResult
from jaxrobust.evaluate.masking import Check as Check
from jaxrobust.evaluate.masking import MaskingReport as MaskingReport
from jaxrobust.evaluate.masking import masking as masking
from jaxrobust.evaluate.outcomes import AttackOutcome as AttackOutcome
from jaxrobust.evaluate.outcomes import Proportion as Proportion
from jaxrobust.evaluate.outcomes import unseen_mean as unseen_mean
from jaxrobust.evaluate.queries import queries_curve as queries_curve
from jaxrobust.evaluate.robustness import robustness as robustness
from jaxrobust.evaluate.run_folder import is_finished as is_finished
from jaxrobust.evaluate.run_folder import save_run as save_run
from jaxrobust.evaluate.torch_model import TorchModel as TorchModel
from jaxrobust.evaluate.transfer import Transfer as Transfer
from jaxrobust.evaluate.transfer import ensemble as ensemble
from jaxrobust.evaluate.transfer import transfer as transfer
from jaxrobust.evaluate.uar import ATA as ATA
from jaxrobust.evaluate.uar import UAR as UAR
from jaxrobust.evaluate.uar import calibrate as calibrate
from jaxrobust.evaluate.uar import uar as uar
from jaxrobust.evaluate.uar import uar_table as uar_table

__all__ = [
    "ATA",
    "UAR",
    "AttackOutcome",
    "AutoAttack",
    "Check",
    "Evaluation",
    "HostModel",
    "LaneCounts",
    "LaneResult",
    "MaskingReport",
    "McNemar",
    "Proportion",
    "TorchModel",
    "Transfer",
    "autoattack",
    "calibrate",
    "curve",
    "curves",
    "ensemble",
    "is_finished",
    "masking",
    "mcnemar",
    "predict",
    "queries_curve",
    "robustness",
    "run_lanes",
    "save_run",
    "trajectories",
    "transfer",
    "uar",
    "uar_table",
    "unseen_mean",
]


def __dir__() -> list[str]:
    return _public.names(globals())
