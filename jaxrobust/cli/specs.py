"""What is written on the command line and what it means: radii, data, attacks, suites."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxrobust import _checks, attacks, data, sets
from jaxrobust.attacks.suites import SUITES
from jaxrobust.attacks.table import OTHERS
from jaxrobust.data._files import is_path
from jaxrobust.evaluate.robustness import check_name

__all__ = [
    "Planned",
    "Spec",
    "attack",
    "attack_makers",
    "check_seed",
    "data_set",
    "number",
    "plan",
    "radii",
    "read_options",
    "read_spec",
    "set_makers",
]

# attacks that the registry has under another name, or that are one with other constants
ALIASES = {"stadv": attacks.stadv, "recoloradv": attacks.recoloradv}


def number(text: str) -> float:
    """A number or a fraction: "0.3", "8/255".

    Raises:
        ValueError: it is neither.
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a radius must be a number or a fraction such as 8/255; got {text!r}") from None


def radii(text: str) -> tuple[float, ...]:
    """Radii with commas between them, in rising order and each once.

    Raises:
        ValueError: one of them is no number, negative or not finite.
    """
    return tuple(sorted({float(_checks.number("a radius", number(part.strip()))) for part in text.split(",")}))


@dataclasses.dataclass(frozen=True)
class Spec:
    """One `--attack` or `--suite`, taken apart.

    Args:
        text: as it was written.
        name: what the table calls it, or None.
        kind: the attack or suite.
        on: the set, or None.
        set_options: of the set.
        radii: rising; empty where none was given.
        options: of the attack or suite.
    """

    text: str
    name: str | None
    kind: str
    on: str | None
    set_options: tuple[tuple[str, Any], ...]
    radii: tuple[float, ...]
    options: tuple[tuple[str, Any], ...]


def read_spec(text: str, *, of_suite: bool = False) -> Spec:
    """Take apart `[NAME=]ATTACK:SET[(OPTION=VALUE,...)][:RADIUS,...][:OPTION=VALUE,...]`; a suite has no set.

    Args:
        text: what was written.
        of_suite: whether it is that of a suite.

    Returns:
        Its parts.

    Raises:
        ValueError: it is not written so.

    Example:
        >>> spec = read_spec("mine=pgd:linf:4/255,8/255:steps=40,loss=dlr")
        >>> spec.name, spec.kind, spec.on, len(spec.radii), spec.options
        ('mine', 'pgd', 'linf', 2, (('steps', 40), ('loss', 'dlr')))
    """
    named = re.fullmatch(r"([^=:(]+)=(.+)", text)
    name, rest = (named[1].strip(), named[2]) if named else (None, text)
    kind, *parts = [part.strip() for part in re.split(r":(?![^(]*\))", rest)]
    on, set_options = None, ""
    if not of_suite:
        found = re.fullmatch(r"([\w.+-]+)(?:\((.*)\))?", parts.pop(0)) if parts else None
        if found is None:
            raise ValueError(f"--attack must be written like pgd:linf:8/255:steps=40; got {text!r}")
        on, set_options = found[1], found[2] or ""
    given = radii(parts.pop(0)) if parts and "=" not in parts[0] else ()
    if len(parts) > 1 or "" in parts or not kind:
        like = "autoattack-linf:8/255" if of_suite else "pgd:linf:8/255:steps=40"
        raise ValueError(f"{'--suite' if of_suite else '--attack'} must be written like {like}; got {text!r}")
    options = parts[0] if parts else ""
    return Spec(text, name, kind, on, read_options(set_options, text), given, read_options(options, text))


def read_options(text: str, whole: str) -> tuple[tuple[str, Any], ...]:
    """Take apart `NAME=VALUE,NAME=VALUE`.

    Args:
        text: what was written; it may be empty.
        whole: how errors call it.

    Returns:
        Names and values.

    Raises:
        ValueError: it is not written so, or a name comes again.

    Example:
        >>> read_options("beta=6,craft_bn=batch", "")
        (('beta', 6), ('craft_bn', 'batch'))
    """
    found: list[tuple[str, Any]] = []
    for part in re.split(r",(?=\s*\w+\s*=)", text) if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name.isidentifier() and equals and value):
            raise ValueError(f"options must be written NAME=VALUE,NAME=VALUE; got {part!r} in {whole!r}")
        if name in dict(found):
            raise ValueError(f"options must be given once each; got {name!r} again in {whole!r}")
        found.append((name, _value(value)))
    return tuple(found)


def _value(text: str) -> Any:
    """None, a truth value, a whole number, a number or fraction, several of these, else text."""
    known = {"none": None, "true": True, "false": False}
    if text.lower() in known:
        return known[text.lower()]
    if "," in text:
        return tuple(_value(part.strip()) for part in text.split(",") if part.strip())
    for kind in (int, number):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def attack_makers() -> dict[str, Callable[..., attacks.Attack]]:
    """Name -> the public function that makes the attack from a set; those made of attacks need Python."""
    found = {entry.factory.__name__: entry.factory for entry in attacks.REGISTRY.values()} | ALIASES
    return {name: make for name, make in sorted(found.items()) if next(iter(_parameters(make))) == "set"}


def set_makers() -> dict[str, Callable[..., sets.PerturbationSet]]:
    """Name -> the class of sets, for those that are made of numbers alone."""
    found: dict[str, Any] = {}
    for name in sets.__all__:
        kind = getattr(sets, name)
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            fields = [field.name for field in dataclasses.fields(kind)]
            if not {"parts", "set"} & set(fields):
                found[re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("ReC", "Rec")).lower()] = kind
    return dict(sorted(found.items()))


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(make).parameters


@dataclasses.dataclass(frozen=True)
class Planned:
    """Attacks that run together at several radii.

    Args:
        attacks: name -> attack, at the largest radius.
        radii: name -> its radii, rising; one only where there is nothing to sweep.
        suite: whether each attack sees only what earlier ones have left, as in AutoAttack.
        cheapened: what suites have less than the standard ones, in words.
    """

    attacks: dict[str, attacks.Attack]
    radii: dict[str, tuple[float, ...]]
    suite: bool
    cheapened: list[str] = dataclasses.field(default_factory=list)


def plan(
    suites: list[str], specs: list[str], everywhere: tuple[float, ...], budget: Mapping[str, int | None] | None = None
) -> list[Planned]:
    """The attacks that a command line asks for.

    Args:
        suites: what was given by `--suite`.
        specs: what was given by `--attack`.
        everywhere: the radii of whatever has none of its own and takes one.
        budget: `steps` and `queries` of suites that have not their own, which make them cheaper.

    Returns:
        One group a suite of AutoAttack, and one of all others.

    Raises:
        ValueError: an unknown name, an option or radius that is not taken, two attacks of one name, nothing to do.
    """
    if not (suites or specs):
        raise ValueError("--suite or --attack must say what to evaluate under; got neither")
    cheaper = {name: value for name, value in (budget or {}).items() if value is not None}
    if cheaper and not suites:
        raise ValueError(f"--{next(iter(cheaper))} must be left out without --suite; an attack has it as an option")
    groups: list[Planned] = []
    rest = Planned({}, {}, suite=False)
    chosen = [read_spec(text, of_suite=True) for text in suites]
    used = False
    for spec in chosen:
        has_radius = spec.kind in SUITES
        ladder = spec.radii or (everywhere if has_radius else ())
        used = used or (has_radius and not spec.radii)
        top = {"radius": ladder[-1]} if ladder else {}
        make = functools.partial(attacks.suite, spec.kind)
        made = _called(make, attacks.suite, spec, top | cheaper | dict(spec.options))
        lead = spec.name or (spec.kind if len(chosen) > 1 or specs else None)
        less = made.cheapened
        made = {f"{lead} {name}" if lead else name: attack for name, attack in made.items()}
        group = Planned({}, {}, suite=True) if has_radius else rest
        if less:
            group.cheapened.append(f"{lead}: {less}" if lead else less)
        _add(group, made, dict.fromkeys(made, ladder), spec)
        if group is not rest:
            groups.append(group)
    for spec in map(read_spec, specs):
        attack, ladder, takes = _attack(spec, everywhere)
        used = used or takes
        name = spec.name or f"{spec.kind}-{spec.on}"
        if spec.name is None and name in rest.attacks and spec.options:
            name += " " + ",".join(f"{option}={value}" for option, value in spec.options)
        _add(rest, {name: attack}, {name: ladder}, spec)
    if everywhere and not used:
        raise ValueError("--radius must be left out where all attacks have radii of their own")
    groups += [rest] if rest.attacks else []
    names = [name for group in groups for name in group.attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks must have different names, give them as NAME=...; got {names}")
    return groups


def _add(group: Planned, made: Mapping[str, Any], ladders: Mapping[str, tuple[float, ...]], spec: Spec) -> None:
    for name, attack in made.items():
        if check_name(name) in group.attacks:
            raise ValueError(f"attacks of one kind need names of their own, NAME={spec.text}; got {name!r} again")
        group.attacks[name] = attack
        group.radii[name] = ladders[name] or (float(attack.set.radius),)


def _attack(spec: Spec, everywhere: tuple[float, ...] | None) -> tuple[attacks.Attack, tuple[float, ...], bool]:
    """The attack, its radii, and whether they are those of `--radius`, which None has not."""
    makers = attack_makers()
    make = makers[_checks.choice("--attack", spec.kind.replace("-", "_"), makers)]
    assert spec.on is not None
    dataset, dot, bound = spec.on.partition(".")
    if dot:  # one of the usual bounds, which has its radius
        usual = sets.standard(dataset)
        made = usual[_checks.choice(f"the set of --attack {spec.text}", bound, usual)]
        ladder = spec.radii or (float(made.radius),)
        takes = False
    else:
        classes = set_makers()
        kind = classes[_checks.choice("the set of --attack", spec.on.replace("-", "_"), classes)]
        ladder = spec.radii or everywhere or ()
        takes = not spec.radii and bool(everywhere)
        options = dict(spec.set_options) | ({"radius": ladder[-1]} if ladder else {})
        if not ladder and _parameters(kind)["radius"].default is inspect.Parameter.empty:
            others = "" if everywhere is None else ", or --radius for all"
            raise ValueError(f"--attack {spec.text} needs a radius: {spec.kind}:{spec.on}:RADIUS{others}")
        made = _called(kind, kind, spec, options)
        ladder = ladder or (float(made.radius),)
    attack = _called(functools.partial(make, made.with_radius(ladder[-1])), make, spec, dict(spec.options))
    return attack, ladder, takes


def check_seed(seed: int) -> None:
    """A `ValueError` for a `--seed` outside of 0..2³²−1, of which others would be the same keys again."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}; got {seed}")


def attack(text: str) -> attacks.Attack:
    """The attack of `ATTACK:SET[:RADIUS][:OPTION=VALUE,...]`, at one radius.

    Args:
        text: what was written; see `read_spec`.

    Returns:
        The attack.

    Raises:
        ValueError: see `plan`, or there are several radii.

    Example:
        >>> str(attack("pgd:linf:8/255:steps=10").set)
        'Linf(8/255)'
    """
    made, ladder, _ = _attack(read_spec(text), None)
    if len(ladder) > 1:
        raise ValueError(f"--attack must have one radius to be trained on; got {text!r}")
    return made


def _called(call: Callable[..., Any], like: Callable[..., Any], spec: Spec, options: dict[str, Any]) -> Any:
    """What a maker makes of options; those it does not have are refused by name."""
    known = [name for name in _parameters(like) if name not in ("set", "name", "network", "starts")]
    for option in options:
        _checks.choice(f"an option of {spec.text}", option, known)
    try:
        return call(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec.text}: {error}") from error


def data_set(text: str, *, usual: str = "test", data_dir: str | None = None, size: int | None = None) -> data.Dataset:
    """The examples that a command line names: `NAME[:SPLIT]`, `FILE.npz[:SPLIT]` or `./FOLDER[:SPLIT]`.

    Args:
        text: what was written; splits are those of `data.load`, and "[:100]" is a part of the usual one.
        usual: the split where none is written.
        data_dir: of `data.load`.
        size: of `data.load` and `data.read`.

    Returns:
        The data set.

    Raises:
        ValueError: unknown, unreadable, or not to be had here.
    """
    found = re.fullmatch(r"(.+?)(?::(\w*(?:\[[^\[\]]*\])?))?", text)
    if found is None or found[2] == "" or not (is_path(found[1]) or re.fullmatch(r"[\w./+-]+", found[1])):
        raise ValueError(f"--data must be written like cifar10:test[:1000]; got {text!r}")
    name, split = found[1], found[2]
    if is_path(name):
        return data.read(name, split, size=size)
    if split is None or split.startswith("["):
        split = f"{usual}{split or ''}"
    try:
        return data.load(name, split, data_dir=data_dir, size=size)
    except RuntimeError as error:
        raise ValueError(f"--data {text}: {error}") from error


def others() -> list[str]:
    """Attacks that need Python: made of other attacks, or of many images."""
    made_of = {entry.factory.__name__ for entry in attacks.REGISTRY.values()}
    return sorted((made_of | {one.__name__ for one in OTHERS}) - set(attack_makers()))
