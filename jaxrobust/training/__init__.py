"""Training: objectives built from attacks, the pure train step, and the loop around it."""

from jaxrobust import _public
from jaxrobust.training.config import TrainConfig as TrainConfig
from jaxrobust.training.objectives import Adversarial as Adversarial
from jaxrobust.training.objectives import Aux as Aux
from jaxrobust.training.objectives import Learner as Learner
from jaxrobust.training.objectives import Mixed as Mixed
from jaxrobust.training.objectives import Objective as Objective
from jaxrobust.training.objectives import Standard as Standard
from jaxrobust.training.objectives import adversarial as adversarial
from jaxrobust.training.objectives import mixed as mixed
from jaxrobust.training.objectives import standard as standard
from jaxrobust.training.schedules import SCHEDULES as SCHEDULES
from jaxrobust.training.schedules import schedule as schedule
from jaxrobust.training.several import Several as Several
from jaxrobust.training.several import several as several
from jaxrobust.training.step import TrainState as TrainState
from jaxrobust.training.step import train_step as train_step
from jaxrobust.training.trainer import TrainResult as TrainResult
from jaxrobust.training.trainer import fit as fit

__all__ = [
    "SCHEDULES",
    "Adversarial",
    "Aux",
    "Learner",
    "Mixed",
    "Objective",
    "Several",
    "Standard",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "adversarial",
    "fit",
    "mixed",
    "schedule",
    "several",
    "standard",
    "train_step",
]


def __dir__() -> list[str]:
    return _public.names(globals())
