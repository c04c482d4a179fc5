"""Results in other forms: rows of a table, CSV, pandas, image files."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from jaxrobust import _checks, _store
from jaxrobust.evaluate._programs import forward, meets, rows_of
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.outcomes import Outcomes
from jaxrobust.report.format import FOOLED, LISTED, OUTCOMES
from jaxrobust.types import Classifier, Criterion

__all__ = [
    "PNG_CHANNELS",
    "data_frame",
    "eight_bit",
    "example_rows",
    "remove_images",
    "rows",
    "save_images",
    "still_fooled",
    "write_csv",
]

Row = dict[str, Any]
PNG_CHANNELS = (1, 3, 4)


def rows(evaluation: Outcomes) -> Iterator[Row]:
    """One row for clean images, one an attack, one for the worst case of several."""
    yield {"model": evaluation.name, "attack": "clean", **evaluation.clean._asdict()}
    for name, outcome in evaluation.outcomes.items():
        attack_set = outcome.attack.set
        radius = np.asarray(attack_set.radius)
        about = {"set": type(attack_set).__name__, "radius": None if radius.ndim else radius.tolist()}
        yield {"model": evaluation.name, "attack": name, **about, **outcome.summary()}
    if len(evaluation.outcomes) > 1:
        yield {"model": evaluation.name, "attack": "union", **evaluation.union._asdict()}


def example_rows(evaluation: Outcomes) -> Iterator[Row]:
    """One row an attack and example."""
    prediction = evaluation.prediction
    for name, outcome in evaluation.outcomes.items():
        radius = np.asarray(outcome.attack.set.radius)
        for i, label in enumerate(evaluation.labels):
            yield {
                "model": evaluation.name,
                "attack": name,
                "example": i,
                **({"radius": float(radius[i])} if radius.ndim else {}),
                "label": int(label),
                "prediction": int(prediction[i]),
                "outcome": OUTCOMES[outcome.outcome[i]],
                "prediction_attacked": None if outcome.prediction is None else int(outcome.prediction[i]),
                "size": float(outcome.size[i]),
                "loss": float(outcome.loss[i]),
                "forwards": int(outcome.forwards[i]),
                "backwards": int(outcome.backwards[i]),
            }


def write_csv(path: str | os.PathLike[str], rows: Iterable[Row]) -> _store.Path:
    """Rows as a CSV file, whole or not at all; columns are the rows' names in order of their appearance."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = _checks.path("path", path)
    _store.atomically(path, lambda partial: partial.write_text(text.getvalue(), encoding="utf-8"))
    return path


def data_frame(rows: Iterable[Row]) -> Any:
    """Rows as a `pandas.DataFrame`."""
    try:
        import pandas
    except ImportError:
        raise ImportError("to_frame needs pandas, which is not installed: pip install pandas; or use to_csv") from None
    return pandas.DataFrame(list(rows))


def eight_bit(images: Any) -> np.ndarray:
    """Images in [0, 1] rounded to the nearest of 256 levels, uint8."""
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def still_fooled(model: Classifier | HostModel, images: np.ndarray, goal: Criterion, size: int) -> np.ndarray:
    """Which adversarial images meet the criterion still as a file of 8 bits a channel has them.

    Args:
        model: the model.
        images: (N, H, W, C) in [0, 1].
        goal: the criterion, (N,) each.
        size: images a forward pass.

    Returns:
        (N,) bool; non-finite logits are no success.
    """
    found = np.zeros(len(images), bool)
    for start in range(0, len(images), size):
        piece = slice(start, start + size)
        # as a reader of the file would have them, see `data`
        rounded = np.divide(eight_bit(images[piece]), images.dtype.type(255), dtype=images.dtype)
        logits = forward(model, rounded, np.arange(len(rounded)), size)  # padded to the shape of the clean pass
        found[piece] = meets(rows_of(goal, piece), logits)
    return found


def remove_images(folder: _store.Path, names: Collection[str] | None = None) -> list[Row]:
    """Take away what `save_images` has written of some attacks, ended or not: the files of its list, and no others.

    Args:
        folder: the folder that `save_images` was given; it need not exist.
        names: the attacks; None is all.

    Returns:
        The rows of the other attacks, whose files stay. Of all attacks, the list goes too.
    """
    if not (folder / LISTED).is_file():
        return []
    with (folder / LISTED).open(newline="", encoding="utf-8") as file:
        listed: list[Row] = list(csv.DictReader(file))
    gone = [row for row in listed if names is None or row.get("attack") in names]
    for row in gone:
        path = folder / (row.get("file") or "")
        # a list may be anybody's
        if path.suffix == ".png" and path.resolve().is_relative_to(folder.resolve()):
            _half(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not the last, or with something else in it
                path.parent.rmdir()
    if names is None:
        (folder / LISTED).unlink()
    return [row for row in listed if row not in gone]


def save_images(
    evaluation: Outcomes, folder: _store.Path, names: list[str], model: Classifier | HostModel | None
) -> _store.Path:
    """See `Evaluation.save_images`."""
    from jaxrobust.data._images import encode_png

    channels = evaluation.images.shape[-1]
    if channels not in PNG_CHANNELS:
        raise ValueError(f"images must have 1, 3 or 4 channels to be PNG files; got {channels}")
    listed, files = remove_images(folder, names), []
    for name in names:
        outcome = evaluation.outcomes[name]
        # of examples that an earlier attack had fooled, that attack's own point is kept
        chosen = np.flatnonzero((outcome.outcome == FOOLED) & (outcome.forwards > 0))
        still = outcome.fooled_8bit
        if model is not None:
            still = np.zeros(len(outcome.outcome), bool)
            still[chosen] = still_fooled(model, outcome.images[chosen], rows_of(evaluation.goal, chosen), 128)
        for i in chosen:
            label, after = int(evaluation.labels[i]), None if outcome.prediction is None else int(outcome.prediction[i])
            lost = still is not None and not still[i]
            file = f"{name}/{i:05d}_{label}" + ("" if after is None else f"_to_{after}") + ("_lost" if lost else "")
            files.append((folder / f"{file}.png", outcome.images[i]))
            about = {"file": f"{file}.png", "attack": name, "example": int(i), "label": label, "prediction": after}
            listed.append({**about, "size": float(outcome.size[i]), "fooled_8bit": None if still is None else not lost})
    # the list first, so that wherever this ends no file is there that nothing takes away
    write_csv(folder / LISTED, listed)
    for path, image in files:
        path.parent.mkdir(exist_ok=True)
        _half(path).write_bytes(encode_png(eight_bit(image)))
        os.replace(_half(path), path)
    return folder


def _half(path: _store.Path) -> _store.Path:
    """Where a listed file is written, before it takes its name."""
    return path.with_name(f".{path.name}.partial")
