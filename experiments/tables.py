"""Tables of results in text, and where they were measured."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Sequence

import jax

__all__ = ["aligned", "machine", "markdown", "percents", "today"]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each, flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; the first row is its head."""
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|" + " --- |" * len(rows[0]), *rest]


def machine() -> str:
    """What this runs on."""
    device = jax.devices()[0]
    place = f"{os.cpu_count()} CPU cores, {platform.machine()}" if device.platform == "cpu" else device.device_kind
    return f"{place}, JAX {jax.__version__}"


def today() -> str:
    """The date, as results are named by."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def percents(values: Iterable[float | None]) -> list[str]:
    """Accuracies in % as cells; a dash for what there is none of."""
    return ["–" if value is None else f"{value:.1f}" for value in values]
