"""Attacks that belong together, by name."""

from __future__ import annotations

from collections.abc import Callable

from jaxrobust import _checks
from jaxrobust.attacks.apgd import apgd, apgd_t
from jaxrobust.attacks.base import Attack
from jaxrobust.attacks.deepfool import deepfool
from jaxrobust.attacks.fab import fab
from jaxrobust.attacks.fmn import fmn
from jaxrobust.attacks.square import square
from jaxrobust.sets import L0, L1, L2, Linf, PerturbationSet
from jaxrobust.types import Number

__all__ = ["suite"]

Attacks = dict[str, Attack]

# the usual radii on CIFAR-10
BALLS: dict[str, PerturbationSet] = {"linf": Linf(8 / 255), "l2": L2(0.5), "l1": L1(12.0)}


def _standard(ball: PerturbationSet) -> Attacks:
    sparse = isinstance(ball, L1)
    return {
        "apgd-ce": apgd(ball, restarts=5 if sparse else 1, large_radii=sparse),
        "apgd-t": apgd_t(ball, targets=5 if sparse else 9, large_radii=sparse),
        "fab-t": fab(ball, targets=9),
        "square": square(ball),
    }


def _plus(ball: PerturbationSet) -> Attacks:
    return {
        "apgd-ce": apgd(ball, restarts=5),
        "apgd-dlr": apgd(ball, restarts=5, loss="dlr"),
        "fab": fab(ball, restarts=5),
        "square": square(ball),
        "apgd-t": apgd_t(ball),
        "fab-t": fab(ball, targets=9),
    }


def _minimal() -> Attacks:
    # caps that no image reaches: every success counts
    return {
        "fmn-l0": fmn(L0(1e6)),
        "fmn-l1": fmn(L1(1e6)),
        "fmn-l2": fmn(L2(1e6)),
        "deepfool-l2": deepfool(L2(1e6)),
        "fmn-linf": fmn(Linf(1.0)),
    }


# name -> how it is made from a ball, and the ball at its usual radius
SUITES: dict[str, tuple[Callable[[PerturbationSet], Attacks], PerturbationSet]] = {
    **{f"autoattack-{norm}": (_standard, ball) for norm, ball in BALLS.items()},
    **{f"autoattack-plus-{norm}": (_plus, BALLS[norm]) for norm in ("linf", "l2")},
}


def suite(name: str, *, radius: Number | None = None) -> Attacks:
    """Attacks that belong together, in their order, for `evaluate.robustness`.

    "autoattack-linf", "-l2" and "-l1" are AutoAttack's standard version: APGD with cross-entropy, targeted APGD with
    the targeted DLR loss, targeted FAB, and Square. "autoattack-plus-linf" and "-l2" are its version "plus". They are
    meant for `only_survivors=True`, as `evaluate.autoattack` runs them. "minimal" finds each example's distance to the
    decision boundary in l0, l1, l2 and l∞ by minimum-norm attacks; the sizes are what it is about.

    Args:
        name: the suite.
        radius: ε of AutoAttack's ball; by default the usual one of CIFAR-10 (8/255, 0.5 and 12). "minimal" has none.

    Returns:
        Name -> attack.

    Raises:
        ValueError: an unknown name, a bad radius, or one for "minimal".

    Example:
        >>> list(suite("autoattack-linf", radius=0.3))
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690; in l1, Croce and Hein, 2021, arXiv:2103.01208.
    """
    _checks.choice("name", name, [*SUITES, "minimal"])
    if name == "minimal":
        if radius is not None:
            raise ValueError(f"radius must be None for the suite 'minimal', which measures it; got {radius}")
        return _minimal()
    make, ball = SUITES[name]
    return make(ball if radius is None else ball.with_radius(radius))
