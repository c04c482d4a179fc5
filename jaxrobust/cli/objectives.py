"""The objective that a command line or a recipe names: its registry name, attacks, and arguments in words."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrobust import _checks, attacks, sets, training
from jaxrobust.cli import specs

__all__ = ["against", "objective"]

# whose attack in training is not PGD
USUAL = {"flow": "stadv", "recolor": "recoloradv", "perceptual": "fast_lpa"}


def against(on: str, radius: str | None, steps: int | None) -> attacks.Attack:
    """The usual attack in training on a set: PGD, or StAdv, ReColorAdv, Fast-LPA.

    Args:
        on: the set, as in an `--attack`.
        radius: its radius, or None where the set has a usual one.
        steps: of the attack; None for 10.

    Returns:
        The attack.

    Raises:
        ValueError: see `specs.plan`.

    Example:
        >>> against("linf", "8/255", 7).steps
        7
    """
    kind = USUAL.get(on.partition("(")[0].rpartition(".")[2].lower(), "pgd")
    return specs.attack(":".join(filter(None, (kind, on, radius, f"steps={10 if steps is None else steps}"))))


def objective(name: str, made: Sequence[attacks.Attack], options: Mapping[str, Any] | None = None) -> Any:
    """An objective by its name in `training.REGISTRY`.

    Args:
        name: the name.
        made: the attacks; of "free" and "grad_align" their radius alone counts, of "llr" the set.
        options: arguments of the function behind it; of "awp" also `inner`, the name of the objective within, and
            that one's own.

    Returns:
        The objective.

    Raises:
        ValueError: unknown names, missing arguments, too few or too many attacks, or what needs Python.

    Example:
        >>> float(objective("trades", [against("linf", "0.1", 2)], {"beta": 3}).beta)
        3.0
    """
    _checks.choice("--objective", name, training.REGISTRY)
    return _made(f"--objective {name}", name, made, dict(options or {}))


def _made(what: str, name: str, made: Sequence[attacks.Attack], given: dict[str, Any]) -> Any:
    """The objective of a name that is known; `what` is how errors call it."""
    entry = training.REGISTRY[name]
    parameters = inspect.signature(entry.factory).parameters
    named = [n for n, one in parameters.items() if n not in FROM_ATTACKS and one.kind is not one.VAR_POSITIONAL]
    within = None
    if name == "awp":
        own = {option: given.pop(option) for option in named if option in given}
        inner = _checks.choice("--option inner", str(given.pop("inner", "adversarial")), training.REGISTRY)
        within = _made(f"--option inner={inner}", inner, made, given)
        given = own
    for option in given:
        _checks.choice(f"an option of {name}", option, [n for n in named if n not in entry.options])
    given |= entry.options
    if "teacher" in parameters or "groups" in parameters:
        raise ValueError(f"{what} needs arrays, and so Python: jaxrobust.training.{entry.factory.__name__}")
    missing = [n for n in named if parameters[n].default is inspect.Parameter.empty and n not in given]
    if missing:
        raise ValueError(f"{what} needs --option {','.join(f'{one}=...' for one in missing)}")
    first = next(iter(parameters.values()))
    several = first.kind is first.VAR_POSITIONAL
    takes = several or first.name in FROM_ATTACKS
    if takes != bool(made) or (len(made) > 1 and not several and name != "awp"):
        wanted = ("attacks" if several else "one attack") if takes else "no attack"
        raise ValueError(f"{what} takes {wanted}; got {len(made)}")
    arguments: list[Any] = list(made)
    if within is not None:
        arguments = [within]
    elif first.name == "radius":
        if not isinstance(made[0].set, sets.Linf):
            raise ValueError(f"{what} is for linf; got {made[0].set}")
        arguments = [made[0].set.radius]
    elif first.name == "set":
        arguments = [made[0].set]
    try:
        return entry.factory(*arguments, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error


# parameters that attacks fill
FROM_ATTACKS = ("attack", "objective", "radius", "set")
