"""`jaxrobust evaluate`: a model under attacks, at one radius or several, to a table, a CSV and a page."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jaxtyping
import numpy as np
from tqdm import tqdm

from jaxrobust import _store, cli, data, evaluate, report
from jaxrobust._repr import written
from jaxrobust.cli import models, specs
from jaxrobust.cli.output import say
from jaxrobust.evaluate import Evaluation, Proportion, _saved
from jaxrobust.evaluate.export import PNG_CHANNELS, remove_images, write_csv
from jaxrobust.report.format import IMAGES, LISTED, PICTURES, PROGRESS, RESULTS, TABLE
from jaxrobust.types import Targeted

__all__ = ["evaluated", "interrupted", "remember_programs", "run"]

DIAGNOSED = 500  # examples that are looked at for signs of masked gradients
FEW_CLASSES = 0.5  # share of the classes below which a reader is told
MARK = "overwriting.txt"  # beside the progress of a run that is to replace another: whose it is
# folders of code that is not the user's: the library first
HOUSE = [pathlib.Path(file).parent for file in (_store.__file__, jax.__file__ or "", jaxtyping.__file__ or "")]
HOUSE.append(pathlib.Path(contextlib.__file__))
OWN = uuid.uuid4().hex  # this process among those that run in a folder


def interrupted(options: argparse.Namespace) -> str:
    """What Ctrl-C leaves behind."""
    return f"interrupted; what was done is kept in {options.out}, and the same command goes on from there"


def run(options: argparse.Namespace) -> None:
    """Evaluate, or what is left of it, and print the table and where the page is."""
    with _warnings_in_one_line() as warned, contextlib.ExitStack() as here:
        if options.cache:
            remember_programs()
        _run(options, warned, here)


def _run(options: argparse.Namespace, warned: list[str], here: contextlib.ExitStack) -> None:
    began = time.perf_counter()
    if not options.out.strip():
        raise ValueError(f"--out must name a folder; got {options.out!r}")
    specs.check_seed(options.seed)
    out = _store.local("--out", options.out)
    budget = {"steps": options.steps, "queries": options.queries}
    groups = specs.plan(options.suite, options.attack, specs.radii(options.radius) if options.radius else (), budget)
    devices = _devices(options.devices)
    examples = specs.data_set(options.data, data_dir=options.data_dir, size=options.size)
    images, labels = examples
    model = models.load(options.model, weights=options.weights)
    goal: Any = labels
    if options.targets is not None:
        goal = Targeted(_targets(options.targets, labels, examples.classes), labels)
    name = options.name or options.model.rpartition(":")[2]
    config = _config(options, model, images, goal, groups)
    if options.images and images.shape[-1] not in PNG_CHANNELS:
        raise ValueError(f"--images needs images of 1, 3 or 4 channels; got {images.shape[-1]}")
    if not options.overwrite and _is_finished(out, config):
        _check_names(options, out)
        # that of one that is to replace these results, alive or interrupted, stays
        if not (out / PROGRESS / MARK).is_file() and _is_alone(out):
            _complete(out, groups, config)
        _write_table(out)
        say(_told(out))
        return
    trained = models.training_notes(options.weights)  # read first, since it may be damaged
    _note_few_classes(examples)
    here.enter_context(_failures_told_apart())
    here.enter_context(_running(out))
    if options.overwrite:
        _begin_anew(out, config)
    job = functools.partial(
        evaluated,
        model,
        (images, goal),
        key=jax.random.key(options.seed),
        name=name,
        lanes=options.lanes,
        devices=devices,
        run_id=options.run_id,
        progress=_wants_bars(options),
    )
    try:
        found = job(groups, save_dir=out / PROGRESS)
        _note_other_classes(examples.classes, found.logits.shape[-1])
        say(found)
        ladder = _ladder(found, groups, job, out / PROGRESS)
    except ValueError as error:
        if str(out / PROGRESS) in str(error):
            _unmark(out, config)
            raise ValueError(f"{error} (--overwrite does)") from error
        raise
    finally:
        if not any((out / PROGRESS).glob("**/*.npz")):
            _unmark(out, config)
    curves = _curves(ladder, groups, name, len(labels))
    if curves:
        say(_table(curves, name))
    if options.masking:
        first = next(iter(groups[0].attacks.values()))
        some = (images[:DIAGNOSED], labels[:DIAGNOSED])
        own = jax.random.fold_in(jax.random.key(options.seed), 1)
        kept: dict[str, Any] = {"lanes": options.lanes, "devices": devices, "progress": _wants_bars(options)}
        signs = evaluate.masking(model, some, first.set, key=own, name=name, **kept)
        say(signs)
        found = found.with_notes(masking=signs.summary())
    if warned:
        found = found.with_notes(warnings=warned)
    found = found.with_notes(**trained)
    if not options.overwrite and _is_finished(out, config):  # by another process, in the meantime
        _complete(out, groups, config)
        say(_told(out))
        return
    if options.overwrite:
        remove_images(out / IMAGES)
    if options.images:
        say(f"images: {found.save_images(out / IMAGES)}")
    if options.overwrite or not (out / RESULTS).exists():
        _store.remove(out / TABLE)
    page = evaluate.save_run(
        out,
        [found],
        title=options.title or f"{name} on {' '.join(filter(None, (examples.name, examples.split)))}",
        data={"name": examples.name, "split": examples.split, "class_names": list(examples.class_names)},
        config=config,
        curves=curves,
        seconds=time.perf_counter() - began,
        overwrite=options.overwrite,
    )
    # last, since another run's results may have been refused to be replaced
    _complete(out, groups, config)
    say(f"report: {page}")


@contextlib.contextmanager
def _failures_told_apart() -> Iterator[None]:
    """What fails while a run runs is no refusal, though it be a ValueError: that is one by the library itself."""
    try:
        yield
    except BlockingIOError:  # another run's lock
        raise
    except OSError as error:
        raise cli.WhileRunning from error
    except (TypeError, ValueError) as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        of_house = [any(pathlib.Path(file).is_relative_to(home) for home in HOUSE) for file in files]
        if not (all(of_house) and pathlib.Path(files[-1]).is_relative_to(HOUSE[0])):
            raise cli.WhileRunning from error
        raise


def remember_programs() -> None:
    """Have JAX keep compiled programs on disk, from one process to the next, unless its own settings say where."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "jaxrobust" / "programs"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def evaluated(
    model: Any, examples: Any, groups: list[specs.Planned], *, save_dir: _store.Path, **options: Any
) -> Evaluation:
    """Each group by itself, put together: suites on what is left, all others on every example.

    Args:
        model: of `evaluate.robustness`.
        examples: images and labels.
        groups: of `specs.plan`.
        save_dir: where progress is kept.
        **options: of `evaluate.robustness`.

    Returns:
        One evaluation, its attacks in the order of the groups.
    """
    parts: list[Evaluation] = []
    for group in groups:
        if group.suite:
            found = evaluate.autoattack(model, examples, attacks=group.attacks, save_dir=save_dir, **options)
            parts.append(found)
        else:
            parts.append(evaluate.robustness(model, examples, group.attacks, save_dir=save_dir, **options))
    outcomes = {name: outcome for part in parts for name, outcome in part.outcomes.items()}
    fields = {field.name: getattr(parts[0], field.name) for field in dataclasses.fields(Evaluation)}
    less = "; ".join(text for group in groups for text in group.cheapened)
    return Evaluation(**{**fields, "outcomes": outcomes, "notes": {"cheapened": less} if less else {}})


# radius -> attack -> which examples withstand it there
Ladder = dict[float, dict[str, np.ndarray]]


def _ladder(found: Evaluation, groups: list[specs.Planned], job: Any, save_dir: pathlib.Path) -> Ladder:
    """Which examples are robust at every radius; of minimum-norm attacks one run tells them all."""
    robust: Ladder = {}
    for group in groups:
        for name, radii in group.radii.items():
            outcome = found.outcomes[name]
            robust.setdefault(radii[-1], {})[name] = outcome.robust
            if _tells_distances(outcome.attack, group):
                for radius in radii[:-1]:
                    robust.setdefault(radius, {})[name] = outcome.distances > radius
    for radius in sorted({radius for group in groups for radii in group.radii.values() for radius in radii[:-1]}):
        smaller = [_at(group, radius) for group in groups]
        if any(group.attacks for group in smaller):
            there = job([group for group in smaller if group.attacks], save_dir=_at_radius(save_dir, radius))
            robust.setdefault(radius, {}).update({n: o.robust for n, o in there.outcomes.items()})
    return dict(sorted(robust.items()))


def _tells_distances(attack: Any, group: specs.Planned) -> bool:
    """Whether one run is the whole curve: not of an attack that sees only what others have left."""
    return attack.minimum_norm and not group.suite


def _at(group: specs.Planned, radius: float) -> specs.Planned:
    """Those attacks of a group that are still to be run at a smaller radius."""
    names = [n for n, a in group.attacks.items() if radius in group.radii[n][:-1] and not _tells_distances(a, group)]
    return specs.Planned({n: group.attacks[n].with_radius(radius) for n in names}, {}, group.suite)


def _curves(ladder: Ladder, groups: list[specs.Planned], name: str, count: int) -> list[dict[str, Any]]:
    """Accuracy against radius as a run folder holds it; of the union where all attacks have the same radii."""
    swept = {n: radii for group in groups for n, radii in group.radii.items() if len(radii) > 1}
    lines = {n: [float(ladder[radius][n].mean()) for radius in radii] for n, radii in swept.items()}
    if len(swept) > 1 and len(set(swept.values())) == 1 and len(swept) == sum(len(group.radii) for group in groups):
        lines["union"] = [float(np.logical_and.reduce(list(row.values())).mean()) for row in ladder.values()]
        swept["union"] = tuple(ladder)
    return [
        {"attack": n, "radii": list(swept[n]), "accuracy": {name: accuracies}, "count": count}
        for n, accuracies in lines.items()
    ]


def _complete(out: pathlib.Path, groups: list[specs.Planned], config: dict[str, Any]) -> None:
    """What follows the results: the CSV, of what they hold, so that it can be made up for, and the end of progress."""
    _write_table(out)
    _unmark(out, config)
    for file in _saved_by(out, groups):
        # of another run that has begun since
        if file.exists():
            with contextlib.suppress(BlockingIOError), _store.locked(file):
                file.unlink(missing_ok=True)
    left = _partials(out)
    with contextlib.suppress(BlockingIOError), _alone(out):
        for file in left:
            file.unlink(missing_ok=True)
    _remove_empty(out)


def _write_table(out: pathlib.Path) -> None:
    if not (out / TABLE).is_file():
        write_csv(out / TABLE, _rows(report.load(out).results))


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the CSV: those of `Evaluation.rows`, and of all but the largest radii."""
    (model,) = results["models"]
    yield {"model": model["name"], "attack": "clean", **model["clean"]}
    about = {
        name: {"model": model["name"], "attack": name, "set": entry["set"], "radius": entry["radius"]}
        for name, entry in results["attacks"].items()
    }
    for name, summary in model["attacks"].items():
        yield {**about[name], **summary}
    if len(model["attacks"]) > 1:
        yield {"model": model["name"], "attack": "union", **model["union"]}
    for curve in results["curves"]:
        if curve["attack"] in about:
            for radius, accuracy in zip(curve["radii"][:-1], curve["accuracy"][model["name"]], strict=False):
                hits = np.arange(curve["count"]) < round(accuracy * curve["count"])
                yield {**about[curve["attack"]], "radius": radius, **Proportion.of(hits)._asdict()}


def _table(curves: list[dict[str, Any]], name: str) -> str:
    """Accuracy against radius in text, the curves of equal radii together."""
    lines = [f"{name}: accuracy in % against radius"]
    width = max(len(curve["attack"]) for curve in curves)
    last = None
    for curve in curves:
        if curve["radii"] != last:
            last = curve["radii"]
            lines.append(f"  {'':<{width}}  " + " ".join(f"{written(radius):>8}" for radius in last))
        cells = " ".join(f"{100 * accuracy:>8.1f}" for accuracy in curve["accuracy"][name])
        lines.append(f"  {curve['attack']:<{width}}  {cells}")
    return "\n".join(lines)


def _config(options: argparse.Namespace, model: Any, images: Any, goal: Any, groups: Any) -> dict[str, Any]:
    """What tells the run from others: names for people, digests for what names do not tell."""
    return {
        "model": options.model,
        **_saved.of_model(model, options.run_id),
        "data": options.data,
        "images": _store.identity(images),
        "labels": _store.identity(goal),
        "attacks": {
            name: _store.identity((attack, group.suite), what=name, run_id=options.run_id)
            for group in groups
            for name, attack in group.attacks.items()
        },
        "radii": {name: list(radii) for group in groups for name, radii in group.radii.items()},
        "seed": options.seed,
        "masking": options.masking,
    }


def _targets(text: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """A class for every image to be taken for: the one after its own, or what a file says."""
    if text == "next":
        return (np.asarray(labels) + 1) % classes
    path = pathlib.Path(text)
    if path.suffix != ".npy" or not path.is_file():
        raise ValueError(f"--targets must be next or a .npy file of classes; got {text!r}")
    try:
        targets = np.load(path)
    except Exception as error:  # broken bytes raise whatever the reader of the part they are in raises
        raise ValueError(f"--targets must be next or a .npy file of classes; got {text!r}, damaged: {error}") from error
    if targets.shape != np.shape(labels) or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"--targets must hold {len(labels)} integers, one an image; got {targets.dtype} of shape {targets.shape}"
        )
    return targets


def _is_finished(out: pathlib.Path, config: dict[str, Any]) -> bool:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder; {out} is a file")
    try:
        return evaluate.is_finished(out, config)
    except ValueError as error:
        raise ValueError(f"{error} (--overwrite takes it away)") from error


def _check_names(options: argparse.Namespace, out: pathlib.Path) -> None:
    """Refuse what does not tell runs apart and yet is not what a finished run has."""
    results = report.load(out).results
    has = {"name": results["models"][0]["name"], "title": results["title"]}
    for option, value in has.items():
        given = getattr(options, option)
        if given not in (None, value):
            raise ValueError(
                f"--{option} must be that of the finished run in {out}, {value!r}; got {given!r} "
                "(--overwrite runs it anew)"
            )
    if options.images and not (out / IMAGES / LISTED).is_file():
        raise ValueError(f"--images must be given from the start; {out} is finished without (--overwrite runs it anew)")


def _told(out: pathlib.Path) -> str:
    model = report.load(out).models[0]
    figures = {"clean": model["clean"], **model["attacks"], "union": model["union"]}
    accuracies = ", ".join(f"{name} {100 * entry['accuracy']:.1f}" for name, entry in figures.items())
    less = f"cheapened: {model['notes']['cheapened']}\n" if "cheapened" in model["notes"] else ""
    return (
        f"finished already, --overwrite runs it anew; {model['name']}, accuracy in %: {accuracies}\n{less}"
        f"report: {report.render(out)}"
    )


def _own_name() -> str:
    return f"{os.getpid()}-{OWN}.run"  # a fork is another run


@contextlib.contextmanager
def _running(out: pathlib.Path) -> Iterator[None]:
    """Show other runs in the folder that this one is alive, from its start to its end; empty folders go then."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with _store.locked(out / PROGRESS / _own_name()):
            yield
    finally:
        _remove_empty(out)
        with contextlib.suppress(OSError):  # it holds something now
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _alone(out: pathlib.Path) -> Iterator[None]:
    """Hold whatever other runs could hold in the folder.

    Raises:
        BlockingIOError: another run is alive there.
    """
    with contextlib.ExitStack() as locks:
        for lock in sorted((out / PROGRESS).glob("**/.*.lock")):
            if lock.name != f".{_own_name()}.lock":
                held = lock.with_name(lock.name.removeprefix(".").removesuffix(".lock"))
                try:
                    locks.enter_context(_store.locked(held))
                except BlockingIOError as error:
                    raise BlockingIOError(f"--out: {str(error).replace(str(held), str(out))}") from None
        yield


def _is_alone(out: pathlib.Path) -> bool:
    try:
        with _alone(out):
            return True
    except BlockingIOError:
        return False


def _begin_anew(out: pathlib.Path, config: dict[str, Any]) -> None:
    """Take away progress, but for that of this very run, which goes on; results stay until there are new ones."""
    mark, own = out / PROGRESS / MARK, _store.identity(config)
    if not mark.is_file() or mark.read_text(encoding="utf-8") != own:
        left = _partials(out)
        with _alone(out):
            for file in (*(out / PROGRESS).glob("**/*.npz"), *left):
                file.unlink(missing_ok=True)
            _store.atomically(mark, lambda partial: partial.write_text(own, encoding="utf-8"))


def _unmark(out: pathlib.Path, config: dict[str, Any]) -> None:
    """Take this run's mark away, and no other's."""
    mark = out / PROGRESS / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == _store.identity(config):
        mark.unlink(missing_ok=True)


def _saved_by(out: pathlib.Path, groups: list[specs.Planned]) -> set[pathlib.Path]:
    """Where attacks save their progress, at all radii; another run may have its own beside it."""
    progress = out / PROGRESS
    return {
        folder / f"{name}.npz"
        for group in groups
        for name, radii in group.radii.items()
        for folder in (progress, *(_at_radius(progress, radius) for radius in radii))
    }


def _at_radius(progress: pathlib.Path, radius: float) -> pathlib.Path:
    return progress / f"radius {radius!r}"


def _partials(out: pathlib.Path) -> list[pathlib.Path]:
    """Halves of files that killed runs have left, or that others are writing."""
    own = (RESULTS, PICTURES, TABLE)
    found = [file for name in own for file in out.glob(f".{name}.*.partial")]
    return found + list((out / PROGRESS).glob("**/.*.partial"))


def _remove_empty(out: pathlib.Path) -> None:
    for folder in [*(out / PROGRESS).glob("radius *"), out / PROGRESS]:
        with contextlib.suppress(OSError):  # not there, or with something else in it
            folder.rmdir()


def _devices(text: str | None) -> list[Any] | None:
    if text is None:
        return None
    local = jax.local_devices()
    try:
        places = [int(place) for place in text.split(",")]
    except ValueError:
        places = [-1]
    if not all(0 <= place < len(local) for place in places) or len(set(places)) < len(places):
        rule = f"places from 0 to {len(local) - 1}, each once, such as 0"
        raise ValueError(f"--devices must be {rule}; got {text!r}")
    return [local[place] for place in places]


def _wants_bars(options: argparse.Namespace) -> bool:
    return sys.stderr.isatty() if options.progress is None else options.progress


def _note_few_classes(examples: data.Dataset) -> None:
    """Examples that lie class by class, of which the first are taken, are no sample of the data."""
    found = len(np.unique(examples.labels))
    if found < FEW_CLASSES * examples.classes and len(examples) >= examples.classes:
        text = f"the {len(examples)} examples are of {found} of {examples.classes} classes: does the data lie in order?"
        print(f"note: {text}", file=sys.stderr)


def _note_other_classes(of_data: int, of_model: int) -> None:
    """Labels are places among the data's own classes, which need not be places among the model's."""
    if of_data < of_model:
        text = f"the data has {of_data} classes, the model {of_model}: are the labels the model's?"
        print(f"note: {text}", file=sys.stderr)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[list[str]]:
    """The library's warnings as lines between the bars, and kept for the page."""
    kept: list[str] = []

    def show(message: Any, *_: Any, **__: Any) -> None:
        if str(message) not in kept:
            kept.append(str(message))
            tqdm.write(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="jaxrobust")
        warnings.showwarning = show
        yield kept
