"""Tables of accuracies in text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["aligned", "percents"]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each, flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)


def percents(values: Iterable[float | None]) -> list[str]:
    """Accuracies in % as cells; a dash for what there is none of."""
    return ["–" if value is None else f"{value:.1f}" for value in values]
