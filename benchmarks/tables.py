"""Tables of figures; `python -m benchmarks.tables` writes RESULTS.md from the files under results/."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

__all__ = ["markdown", "table"]

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS = ("figure", "value", "range", "target", "met")


def table(figures: Sequence[dict[str, Any]]) -> str:
    """Figures as columns of plain text.

    Args:
        figures: entries of a results file.

    Returns:
        Lines.
    """
    rows = [COLUMNS, *map(_cells, figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """All results as a page.

    Args:
        results: what results files hold, in any order; the newest comes first.

    Returns:
        The page.
    """
    parts = [
        "# Benchmark results\n\nWritten by `python -m benchmarks.tables` from the files under `results/`; how they "
        "came about is in `benchmarks/run.py`. A ratio has no unit; it compares what was timed in turns in one run, "
        "its value is the median, its range the smallest and largest.\n"
    ]
    for result in sorted(results, key=lambda result: result["date"], reverse=True):
        parts.append(f"## {result['device']}, {result['date'][:10]}\n\n{_about(result)}\n")
        for name in result["seconds"]:
            figures = [figure for figure in result["figures"] if figure["benchmark"] == name]
            rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, figures)]
            lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            failed = f"\n\nFailed: {result['errors'][name]}" if name in result["errors"] else ""
            parts.append(f"### {name}\n\n{lines}{failed}\n")
    return "\n".join(parts)


def _about(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    state = {True: " with changes", False: "", None: ""}[result["dirty"]]
    load = "" if result["load"] is None else f"; load at the start {result['load'][0]:.1f}"
    quick = " **A quick run: the figures mean nothing.**" if result["quick"] else ""
    return f"Commit {(result['commit'] or 'unknown')[:12]}{state}; {versions}{load}.{quick}"


def _cells(figure: dict[str, Any]) -> tuple[str, ...]:
    sign = {"at most": "≤", "at least": "≥"}[figure["sense"]]
    target = "" if figure["target"] is None else f"{sign} {figure['target']:g}"
    met = {True: "yes", False: "NO", None: ""}[figure["met"]]
    span = "" if figure["low"] is None else f"{_number(figure['low'])}–{_number(figure['high'])} ({figure['repeats']})"
    return figure["name"], f"{_number(figure['value'])} {figure['unit']}".rstrip(), span, target, met


def _number(value: float) -> str:
    return f"{value:,.0f}" if (math.isfinite(value) and value == round(value)) or abs(value) >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    found = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    (HERE / "RESULTS.md").write_text(markdown(found))
