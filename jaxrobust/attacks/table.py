"""The table of all attacks, made from the registry and from docstrings: `python -m jaxrobust.attacks.table`."""

from __future__ import annotations

import argparse
import inspect
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import sets
from jaxrobust.attacks.compose.bpda import bpda
from jaxrobust.attacks.core.base import KNOWLEDGE, REGISTRY, Attack, Entry, Knowledge
from jaxrobust.attacks.gradient.adam import recoloradv, stadv
from jaxrobust.attacks.physical.patch import adversarial_patch
from jaxrobust.attacks.physical.rp2 import rp2
from jaxrobust.attacks.physical.universal import universal_gradient, universal_perturbation
from jaxrobust.types import Targeted

__all__ = ["OTHERS", "PAGE", "Row", "cost", "main", "page", "rows"]

PAGE = pathlib.Path(__file__).with_name("README.md")

# What is made in other ways than from one set, with what it is to be used for; the first two are attacks of the
# first table under other names.
OTHERS: dict[Callable[..., Any], str] = {
    stadv: "`sets.Flow`, with the constants of the published tables.",
    recoloradv: "`sets.ReColor` and sequences with it, with the constants of the published tables.",
    bpda: "Goes in front of a model whose preprocessing has no useful gradient; then any attack.",
    universal_perturbation: "One perturbation for all images; `universal_gradient` is the cheaper.",
    universal_gradient: "First choice for one perturbation for all images.",
    adversarial_patch: "A patch that is to work anywhere in any image; for robust accuracy attack `sets.Patch`.",
    rp2: "Stickers on one object, seen from many sides.",
}

HEAD = """# Attacks

Written by `python -m jaxrobust.attacks.table --write` from the registry and the docstrings; edits here are lost.

Every attack is made from a perturbation set, as in `attacks.pgd(sets.Linf(8 / 255))`, and goes to `attacks.run`,
`evaluate.robustness` and `training`. In the first two a set's radius may also be an array (N,), one an image.

- **Sees**: what the adversary must know of the model. On models outside of JAX, `evaluate.TorchModel` and
  a `HostModel` with a pullback, all attacks work; on any other `HostModel` those that see only scores or decisions.
- **Targeted**: whether it takes the criterion `Targeted`. All take labels, and then look for any error.
- **Sets**: the sets of the registry that it accepts.
- **Cost**: of one example, at most; attacks may end early. A forward is one image through the model, a backward one
  gradient with respect to it; K is the number of classes. The clean and the confirming forward pass come on top.
"""
OTHERS_HEAD = """
## And besides

N is the number of images, n of draws. What is crafted on one model is scored on others by `evaluate.transfer`.
"""


class Row(NamedTuple):
    """One attack of the table.

    Args:
        name: the public function.
        method: what it is, in a sentence.
        knowledge: what it must see of the model.
        targeted: whether it takes a `Targeted` criterion.
        sets: the names of the sets it takes, or ("any",).
        cost: passes of one example.
        use: what it is recommended for.
    """

    name: str
    method: str
    knowledge: Knowledge
    targeted: bool
    sets: tuple[str, ...]
    cost: str
    use: str


def rows() -> list[Row]:
    """The registered attacks, one row a public function, those that must see most of the model first.

    Returns:
        The rows; cost and use are empty where they are missing.
    """
    entries: dict[Callable[..., Any], list[Entry]] = {}
    for entry in REGISTRY.values():
        entries.setdefault(entry.factory, []).append(entry)
    found = [_row(factory, made) for factory, made in entries.items()]
    return sorted(found, key=lambda row: (KNOWLEDGE.index(row.knowledge), row.name))


def _row(factory: Callable[..., Any], entries: list[Entry]) -> Row:
    return Row(
        name=f"attacks.{factory.__name__}",
        method=_method(factory),
        knowledge=entries[0](sets.REGISTRY[entries[0].on]()).knowledge,
        targeted=any(_takes_targets(entry) for entry in entries),
        sets=_sets(entries),
        cost=cost(factory),
        use=next((entry.use for entry in entries if entry.use), ""),
    )


def cost(function: Callable[..., Any]) -> str:
    """The paragraph of a docstring that is led in by "Cost:", on one line; empty where there is none.

    Args:
        function: a function that is documented.

    Returns:
        The formula, without the lead.
    """
    found = re.search(r"\bCost: (.+?)(?:\n\s*\n|$)", inspect.getdoc(function) or "", re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _method(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")


def _takes_targets(entry: Entry) -> bool:
    """Whether a run with a target can begin; it is traced only, so that nothing is computed."""
    example = sets.REGISTRY[entry.on]
    attack = entry(example())

    def begin(key: Any, x: Any, target: Any, label: Any, logits: Any) -> None:
        attack.begin(key, x, Targeted(target, label), logits, jnp.zeros((), jnp.int32))

    label = jax.ShapeDtypeStruct((), jnp.int32)
    image, logits = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (example.shapes[0], (4,)))
    try:
        jax.eval_shape(begin, jax.eval_shape(lambda: jax.random.key(0)), image, label, label, logits)
    except ValueError:
        return False
    return True


def _sets(entries: list[Entry]) -> tuple[str, ...]:
    """The classes of the registered sets that at least one of the entries takes."""
    examples = [made() for made in sets.REGISTRY.values()]
    taken = [any(_accepts(entry, example) for entry in entries) for example in examples]
    if all(taken):
        return ("any",)
    return tuple(dict.fromkeys(type(one).__name__ for one, is_taken in zip(examples, taken, strict=True) if is_taken))


def _accepts(entry: Entry, example: sets.PerturbationSet) -> bool:
    try:
        return isinstance(entry(example), Attack)
    except (TypeError, ValueError):
        return False


def page() -> str:
    """The page in Markdown.

    Returns:
        Its text.
    """
    head = ("attack", "method", "sees", "targeted", "sets", "cost", "recommended use")
    registered = (
        (
            f"`{row.name}`",
            row.method,
            row.knowledge,
            "yes" if row.targeted else "no",
            ", ".join(name if name == "any" else f"`{name}`" for name in row.sets),
            row.cost,
            row.use,
        )
        for row in rows()
    )
    others = ((f"`attacks.{one.__name__}`", _method(one), cost(one), use) for one, use in OTHERS.items())
    other_head = ("function", "method", "cost", "recommended use")
    return "\n".join([HEAD, *_table(head, registered), OTHERS_HEAD, *_table(other_head, others), ""])


def _table(head: tuple[str, ...], cells: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *cells]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def main() -> None:
    """Print the page, or write it to its place."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrobust.attacks.table", description="The table of all attacks, in Markdown."
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} beside the module, print nothing")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()
