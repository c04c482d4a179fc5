"""All objectives, for laws over them and the table of the room."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrobust.sets import Linf
from jaxrobust.training.objectives.distributions import group_dro, reweighted, wrm
from jaxrobust.training.objectives.divergence import mart, trades
from jaxrobust.training.objectives.fast import free, grad_align
from jaxrobust.training.objectives.gradients import cure, gradient_penalty, llr
from jaxrobust.training.objectives.labels import KINDS, distilled, group_smoothing, label_smoothing
from jaxrobust.training.objectives.plain import (
    adversarial,
    adversarial_logit_pairing,
    logit_squeezing,
    mixed,
    random_strength,
    standard,
)
from jaxrobust.training.objectives.several import COMBINATIONS, extreme_norms, several
from jaxrobust.training.objectives.weights import awp
from jaxrobust.types import Classifier

__all__ = ["REGISTRY", "Entry", "register"]


class Entry(NamedTuple):
    """A registered objective: the public function that makes it, an example made from a gradient attack, what a step
    costs (fb: a forward and backward pass of the batch, f: a forward pass, S: steps of an attack, m: attacks), what it
    is to be used for, whether an example's loss is its own, whatever else is in the batch, whether at radius 0 it is
    standard training bit for bit, where it is from, and the arguments of the function that its name stands for.
    """

    factory: Callable[..., Any]
    make: Callable[[Any], Any]
    cost: str
    use: str
    alone: bool
    clean: bool
    reference: str
    options: Mapping[str, Any]


# every law of the tests runs over it
REGISTRY: dict[str, Entry] = {}


def register(
    name: str,
    factory: Callable[..., Any],
    make: Callable[[Any], Any],
    *,
    cost: str,
    use: str,
    alone: bool = True,
    clean: bool = False,
    reference: str = "",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Enter an objective into the table over which laws are tested and tables are made.

    Args:
        name: how it is called in recipes and command lines.
        factory: the public function that makes it.
        make: from an attack to an example of it; those that take no attack leave it.
        cost: passes of a step, see `Entry`.
        use: what it is recommended for, in a sentence.
        alone: whether an example's loss is its own, whatever else is in the batch.
        clean: whether at radius 0 it is `standard()`, bit for bit.
        reference: where it is from, if not what the docstring of `factory` cites first.
        options: arguments of `factory` that the name stands for, where several names have one function.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> REGISTRY["trades"].cost
        'S fb + 1 f, then 2 fb'
    """
    if name in REGISTRY:
        raise ValueError(f"name must be new in the registry of objectives; got {name!r} again")
    cited = re.search(r"arXiv:\d+\.\d+", factory.__doc__ or "")
    REGISTRY[name] = Entry(
        factory, make, cost, use, alone, clean, reference or (cited[0] if cited else ""), options or {}
    )


def _teacher(images: Any) -> Any:
    return images.reshape(len(images), -1)[:, :3]


register("standard", standard, lambda _: standard(label_smoothing=0.1), cost="1 fb", use="The baseline.")
register(
    "adversarial",
    adversarial,
    adversarial,
    cost="S fb, then 1 fb (clean metric: 1 f)",
    use="First choice: PGD of 10 steps; with `attacks.rs_fgsm` and `stop_on_overfitting` the fast form, with "
    "`attacks.msd` or `attacks.affine` against several sets.",
    clean=True,
)
register(
    "perceptual",
    adversarial,
    lambda attack: adversarial(attack, only_attack_correct=True),
    cost="S (fb + f) with `attacks.fast_lpa`, 1 f, then 1 fb",
    use="Perceptual training, robust to unseen attacks: `attacks.fast_lpa(sets.Perceptual(0.5), steps=10)`.",
    clean=True,
    reference="arXiv:2006.12655",
    options={"only_attack_correct": True},
)
register("mixed", mixed, mixed, cost="S fb, then 2 fb", use="Where clean accuracy counts as much.")
register(
    "trades", trades, trades, cost="S fb + 1 f, then 2 fb", use="First choice where clean accuracy may be traded by β."
)
register("mart", mart, mart, cost="S fb, then 2 fb", use="More robust to PGD than to AutoAttack: evaluate with both.")
register(
    "awp",
    awp,
    lambda attack: awp(adversarial(attack)),
    cost="that of the objective within + 1 fb",
    use="Around `adversarial` or `trades`, against robust overfitting.",
    alone=False,
)
register(
    "free",
    free,
    lambda attack: free(attack.set.radius, replays=2),
    cost="1 fb",
    use="Robustness at the price of standard training; divide the epochs by the replays.",
    alone=False,
    clean=True,
)
register(
    "grad_align",
    grad_align,
    lambda attack: grad_align(attack.set.radius),
    cost="1 fb, then 3 fb, one of them twice",
    use="One-step training at large radii, which else overfits.",
    alone=False,
)
for _combine in COMBINATIONS:
    _cost = {"max": "m S fb + m f, then 1 fb", "average": "m S fb, then m fb"}.get(_combine, "S fb, then 1 fb")
    _use = {
        "max": "First choice against several sets of comparable strength, where its cost can be paid.",
        "average": "Several sets, gentler than the worst.",
        "random": "Several lp balls; fails for unlike sets.",
        "alternate": "A baseline that does not work very well.",
        "errors": "Several sets at the price of one (E-AT).",
    }[_combine]
    register(
        f"several_{_combine}",
        several,
        lambda attack, combine=_combine: several(attack, attack.with_radius(0.05), combine=combine),
        cost=_cost,
        use=_use,
        clean=_combine != "average",
        reference={"random": "arXiv:2002.04784", "errors": "arXiv:2105.12508"}.get(_combine, ""),
        options={"combine": _combine},
    )
register(
    "extreme_norms",
    extreme_norms,
    lambda attack: extreme_norms(linf=attack.set.radius, l1=1.0, steps=3),
    cost="S fb + 1 f, then 1 fb",
    use="l∞, l1 and l2 at once: fine-tune a network that is robust in one of them for 3 epochs.",
    clean=True,
)
register(
    "random_strength",
    random_strength,
    random_strength,
    cost="S fb, then 1 fb",
    use="The baselines by which UAR is scaled.",
    clean=True,
)
register(
    "adversarial_logit_pairing",
    adversarial_logit_pairing,
    adversarial_logit_pairing,
    cost="S fb, then 2 fb",
    use="A negative control: known to be broken.",
)
register(
    "logit_squeezing",
    logit_squeezing,
    lambda _: logit_squeezing(),
    cost="1 fb",
    use="A negative control: masks gradients.",
)
register(
    "gradient_penalty",
    gradient_penalty,
    lambda _: gradient_penalty(0.5),
    cost="1 fb twice, 1 fb",
    use="Robustness to small perturbations, without an attack.",
)
register(
    "cure", cure, lambda _: cure(), cost="1 fb, 2 fb twice, 1 fb", use="Fine-tuning towards a flat loss, h growing."
)
register(
    "llr",
    llr,
    lambda attack: llr(Linf(attack.set.radius)),
    cost="1 fb + S fb, then 2 fb and 1 fb twice",
    use="Robustness in few steps, without masked gradients.",
)
for _kind in KINDS:
    register(
        f"label_smoothing_{_kind}",
        label_smoothing,
        lambda _, kind=_kind: label_smoothing(0.2, kind=kind),
        cost="1 fb",
        use="Studies of label smoothing, whose robustness is mostly masked gradients.",
        options={"kind": _kind},
    )
register(
    "distilled",
    distilled,
    lambda _: distilled(Classifier.from_function(_teacher), temperature=2.0),
    cost="1 f, then 1 fb",
    use="A negative control: masks gradients.",
)
register(
    "wrm", wrm, lambda _: wrm(steps=3), cost="(S + 1) fb, then 1 fb", use="A certificate for all ρ, smooth networks."
)
for _kind, _amount, _use in (
    ("cvar", 0.4, "The worst share of the examples."),
    ("kl", 1.0, "A soft maximum of the losses."),
    ("chi2", 1.0, "Little variance of the losses."),
):
    register(
        f"reweighted_{_kind}",
        reweighted,
        lambda _, kind=_kind, amount=_amount: reweighted(kind, amount),
        cost="1 fb",
        use=_use,
        alone=False,
        options={"kind": _kind},
    )
register(
    "group_dro",
    group_dro,
    lambda _: group_dro([0, 1, 0, 1, 2, 2, 2, 1]),
    cost="1 fb",
    use="The worst of known groups; with strong weight decay.",
    alone=False,
)
register(
    "group_smoothing",
    group_smoothing,
    lambda _: group_smoothing([0, 1, 0, 1, 2, 2, 2, 1], [0.8, 0.9, 1.0]),
    cost="1 fb",
    use="AR-AdaLS: calibration of the examples that attacks reach first.",
)
