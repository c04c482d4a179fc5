"""Attacks that belong together, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from jaxrobust import _checks, _inputs
from jaxrobust.attacks.compose.eot import autoattack_rand
from jaxrobust.attacks.compose.runs import apgd_t
from jaxrobust.attacks.core.base import Attack
from jaxrobust.attacks.gradient.adam import recoloradv, stadv
from jaxrobust.attacks.gradient.apgd import apgd
from jaxrobust.attacks.gradient.lagrangian import lpa
from jaxrobust.attacks.gradient.perceptual import ppgd
from jaxrobust.attacks.gradient.unforeseen import kang, unforeseen_sets
from jaxrobust.attacks.minimum_norm.deepfool import deepfool
from jaxrobust.attacks.minimum_norm.fab import fab
from jaxrobust.attacks.minimum_norm.fmn import fmn
from jaxrobust.attacks.queries.square import square
from jaxrobust.sets import L0, L1, L2, Linf, Perceptual, PerturbationSet, standard
from jaxrobust.types import Classifier, Number

__all__ = ["Suite", "suite"]

Attacks = dict[str, Attack]


class Suite(dict[str, Attack]):
    """Name -> attack, and what a cheapened suite has less than the standard one, in words; None of the standard."""

    cheapened: str | None = None

    def __or__(self, other: Any) -> Suite:  # type: ignore[override]
        return self._with({**self, **other}, getattr(other, "cheapened", None))

    def __ror__(self, other: Any) -> Suite:  # type: ignore[override]
        return self._with({**other, **self})

    def copy(self) -> Suite:
        """The same attacks, as cheap."""
        return self._with(self)

    def _with(self, attacks: dict[str, Attack], too: str | None = None) -> Suite:
        made = Suite(attacks)
        made.cheapened = "; ".join(dict.fromkeys(filter(None, (self.cheapened, too)))) or None
        return made


class _Budget:
    """Makes the attacks of a suite, with at most so many steps and queries, and keeps how many the suite itself has.

    Args:
        **most: name of a parameter -> its highest value, or None for what the suite has.
    """

    def __init__(self, **most: int | None) -> None:
        self.most = {name: value for name, value in most.items() if value is not None}
        self.full: dict[str, set[int]] = {name: set() for name in most}

    def __call__(self, make: Callable[..., Any], set: PerturbationSet, **options: Any) -> Any:
        """What a public function makes of a set and options."""
        for name in self.full:
            if (parameter := inspect.signature(make).parameters.get(name)) is not None:
                self.full[name].add(parameter.default)
                options[name] = min(parameter.default, self.most.get(name, parameter.default))
        return make(set, **options)

    def cheapened(self, suite: str) -> str | None:
        """What the suite has less than it should, in words.

        Raises:
            ValueError: more was asked for than the suite has, or what it has not.
        """
        parts = []
        for name, most in self.most.items():
            full = sorted(self.full[name])
            if not full:
                raise ValueError(f"{name} must be None for the suite {suite!r}, which has none to choose; got {most}")
            if most > full[-1]:
                raise ValueError(f"{name} must be at most {full[-1]:,}, as the suite {suite!r} has; got {most:,}")
            if most < full[-1]:
                parts.append(f"{most:,} {name} of {' or '.join(f'{n:,}' for n in full if n > most)}")
        return f"{', '.join(parts)}; not the standard suite" if parts else None


# the usual radii on CIFAR-10
BALLS: dict[str, PerturbationSet] = {"linf": Linf(8 / 255), "l2": L2(0.5), "l1": L1(12.0)}


def _standard(make: _Budget, ball: PerturbationSet) -> Attacks:
    sparse = isinstance(ball, L1)
    return {
        "apgd-ce": make(apgd, ball, restarts=5 if sparse else 1, large_radii=sparse),
        "apgd-t": make(apgd_t, ball, targets=5 if sparse else 9, large_radii=sparse),
        "fab-t": make(fab, ball, targets=9),
        "square": make(square, ball),
    }


def _plus(make: _Budget, ball: PerturbationSet) -> Attacks:
    return {
        "apgd-ce": make(apgd, ball, restarts=5),
        "apgd-dlr": make(apgd, ball, restarts=5, loss="dlr"),
        "fab": make(fab, ball, restarts=5),
        "square": make(square, ball),
        "apgd-t": make(apgd_t, ball),
        "fab-t": make(fab, ball, targets=9),
    }


def _rand(make: _Budget, ball: PerturbationSet) -> Attacks:
    return make(autoattack_rand, ball)


def _minimal(make: _Budget) -> Attacks:
    # caps that no image reaches: every success counts
    return {
        "fmn-l0": make(fmn, L0(1e6)),
        "fmn-l1": make(fmn, L1(1e6)),
        "fmn-l2": make(fmn, L2(1e6)),
        "deepfool-l2": make(deepfool, L2(1e6)),
        "fmn-linf": make(fmn, Linf(1.0)),
    }


def _pat(make: _Budget, network: Classifier | None) -> Attacks:
    bounds = standard("cifar10")
    perceptual = Perceptual(bounds["perceptual"].radius, network)
    balls = {"linf": bounds["linf"], "l2": bounds["l2"].with_radius(1.0)}
    return {
        **{f"{norm}-{name}": attack for norm, ball in balls.items() for name, attack in _standard(make, ball).items()},
        "stadv": make(stadv, bounds["flow"]),
        "recoloradv": make(recoloradv, bounds["recolor"]),
        "ppgd": make(ppgd, perceptual),
        "lpa": make(lpa, perceptual),
    }


def _unforeseen(make: _Budget, dataset: str, level: int) -> Attacks:
    ladders = unforeseen_sets(dataset)
    rungs = len(next(iter(ladders.values())))
    if _checks.count("level", level) > rungs:
        raise ValueError(f"level must be at most {rungs}; got {level}")
    return {name: make(kang, rung[level - 1]) for name, rung in ladders.items()}


# name -> how it is made from a ball, and the ball at its usual radius
SUITES: dict[str, tuple[Callable[[_Budget, PerturbationSet], Attacks], PerturbationSet]] = {
    **{f"autoattack-{norm}": (_standard, ball) for norm, ball in BALLS.items()},
    **{f"autoattack-plus-{norm}": (_plus, BALLS[norm]) for norm in ("linf", "l2")},
    **{f"autoattack-rand-{norm}": (_rand, ball) for norm, ball in BALLS.items()},
}
# name -> the data set whose ladders it takes
UNFORESEEN = {"unforeseen": "cifar10", "unforeseen-cifar10": "cifar10", "unforeseen-imagenet100": "imagenet100"}


def suite(
    name: str,
    *,
    radius: Number | None = None,
    level: int | None = None,
    network: Classifier | None = None,
    steps: int | None = None,
    queries: int | None = None,
) -> Suite:
    """Attacks that belong together, in their order, for `evaluate.robustness`.

    "autoattack-linf", "-l2" and "-l1" are AutoAttack's standard version: APGD with cross-entropy, targeted APGD with
    the targeted DLR loss, targeted FAB, and Square. "autoattack-plus-linf" and "-l2" are its version "plus", and
    "autoattack-rand-linf", "-l2" and "-l1" its version "rand", for `RandomClassifier.mean(key)` alone; see
    `attacks.autoattack_rand`. They are meant for `only_survivors=True`, as `evaluate.autoattack` runs them.

    "pat-cifar10" is the table of Laidlaw et al.: AutoAttack in l∞ (8/255) and in l2 (1), StAdv (0.05), ReColorAdv
    (0.06), PPGD and LPA (0.5). An example withstands AutoAttack in l∞ if it withstands all four "linf-…", in l2 all
    four "l2-…". The paper's union is over all but PPGD and LPA.

    "unforeseen-cifar10", or just "unforeseen", and "unforeseen-imagenet100" are the seven and ten attacks of Kang et
    al., each at one of the six sizes of its ladder; `evaluate.uar` takes the accuracies at all six.

    "minimal" finds each example's distance to the decision boundary in l0, l1, l2 and l∞ by minimum-norm attacks; the
    sizes are what it is about.

    Args:
        name: the suite.
        radius: ε of AutoAttack's ball; by default the usual one of CIFAR-10 (8/255, 0.5 and 12). Only for those.
        level: the size of the unforeseen attacks, 1 to 6; by default 4, which for l∞ is 8/255. Only for those.
        network: what measures perceptual distance in "pat-cifar10", a classifier with `activations`: the paper has an
            AlexNet trained on CIFAR-10, the same for all models. By default the attacked model itself, which must
            have them then. Only for this suite.
        steps: for a first look, the largest number of steps of each of its attacks, ≥ 1; by default the suite's own,
            100 of AutoAttack's. Accuracies are then too high, and the evaluation, told by the suite's `cheapened`,
            says so wherever it is printed or saved.
        queries: likewise of Square, 5000.

    Returns:
        Name -> attack.

    Raises:
        TypeError: a network that is no classifier, steps or queries that are no integers.
        ValueError: an unknown name, a bad radius or level, a network without activations, one of the five given
            to a suite that has none, or more steps or queries than the suite has.

    Example:
        >>> list(suite("autoattack-linf", radius=0.3))
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']
        >>> str(suite("unforeseen", level=1)["elastic"].set)
        'Elastic(0.125)'
        >>> suite("autoattack-linf", steps=20, queries=500).cheapened
        '20 steps of 100, 500 queries of 5,000; not the standard suite'

    Reference:
        Croce and Hein, 2020, arXiv:2003.01690; in l1, Croce and Hein, 2021, arXiv:2103.01208; Laidlaw et al., 2021,
        arXiv:2006.12655; Kang et al., 2019, arXiv:1908.08016.
    """
    _checks.choice("name", name, [*SUITES, *UNFORESEEN, "minimal", "pat-cifar10"])
    options: dict[str, tuple[Any, Collection[str]]] = {
        "radius": (radius, SUITES),
        "level": (level, UNFORESEEN),
        "network": (network, ("pat-cifar10",)),
    }
    for option, (value, suites) in options.items():
        if value is not None and name not in suites:
            raise ValueError(f"{option} must be None for the suite {name!r}, which has none to choose; got {value}")
    if network is not None:
        _inputs.classifier(network, name="network")
    for option, value in {"steps": steps, "queries": queries}.items():
        if value is not None:
            _checks.count(option, value)
    make = _Budget(steps=steps, queries=queries)
    if name in UNFORESEEN:
        found = _unforeseen(make, UNFORESEEN[name], 4 if level is None else level)
    elif name == "pat-cifar10":
        found = _pat(make, network)
    elif name == "minimal":
        found = _minimal(make)
    else:
        attacks_of, ball = SUITES[name]
        found = attacks_of(make, ball if radius is None else ball.with_radius(radius))
    made = Suite(found)
    made.cheapened = make.cheapened(name)
    return made
