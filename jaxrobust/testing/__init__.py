"""The laws that the tests of this library run over its registries, for sets, attacks and objectives of your own."""

from typing import TYPE_CHECKING

from jaxrobust import _public

if TYPE_CHECKING:
    from jaxrobust.testing.attacks import ATTACK_LAWS as ATTACK_LAWS
    from jaxrobust.testing.attacks import check_attack as check_attack
    from jaxrobust.testing.objectives import OBJECTIVE_LAWS as OBJECTIVE_LAWS
    from jaxrobust.testing.objectives import check_objective as check_objective
    from jaxrobust.testing.sets import SET_LAWS as SET_LAWS
    from jaxrobust.testing.sets import check_set as check_set

__all__ = ["ATTACK_LAWS", "OBJECTIVE_LAWS", "SET_LAWS", "check_attack", "check_objective", "check_set"]

# objectives need Flax and Optax, sets and attacks do not
__getattr__ = _public.lazily(
    __name__,
    {
        "ATTACK_LAWS": "attacks",
        "OBJECTIVE_LAWS": "objectives",
        "SET_LAWS": "sets",
        "check_attack": "attacks",
        "check_objective": "objectives",
        "check_set": "sets",
    },
)


def __dir__() -> list[str]:
    return _public.names(globals())
