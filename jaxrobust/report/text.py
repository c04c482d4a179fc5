"""Numbers as a reader wants them: percent, radii, seconds, dates; an en dash for what was not measured."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np

from jaxrobust._repr import written

__all__ = [
    "DASH",
    "FILTERS",
    "Number",
    "count",
    "date",
    "interval",
    "measured",
    "number",
    "percent",
    "radius",
    "seconds",
]

DASH = "–"
Number = float | int | None


def measured(value: Any) -> TypeGuard[float | int]:
    """Whether a value of results.json is a number (null and NaN are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def percent(fraction: Number) -> str:
    """A fraction in percent with one digit: 0.4123 is "41.2"."""
    return f"{100 * fraction:.1f}" if measured(fraction) else DASH


def interval(entry: dict[str, Any]) -> str:
    """The interval of an accuracy in percent: "36.2–46.4"; empty where it was not measured."""
    low, high = entry.get("low"), entry.get("high")
    return f"{percent(low)}–{percent(high)}" if measured(low) and measured(high) else ""


def number(value: Number, *, digits: int = 3) -> str:
    """A number with so many significant digits, and whole numbers whole: 0.20312 is "0.203", 12345.0 "12,345"."""
    if not measured(value):
        return DASH
    value = float(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.0f}" if abs(value) >= 10**digits or value == round(value) else f"{value:.{digits}g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def count(value: Number) -> str:
    """A whole number: 10000 is "10,000"."""
    return f"{value:,.0f}" if measured(value) else DASH


def radius(value: Number | list[float]) -> str:
    """A radius as the field writes it: 0.0313725 is "8/255", 0.2 is "0.2"; of one an image "8/255 to 0.2"."""
    if isinstance(value, list):
        return f"{radius(min(value))} to {radius(max(value))}" if value else DASH
    # in single precision, in which most radii have been
    text = written(np.float32(value)) if measured(value) and 0 < value < 1 else ""
    return text if "/" in text else number(value, digits=4)


def seconds(value: Number) -> str:
    """A duration: 0.52 is "0.52 s", 3.04 "3.0 s", 75 is "1 min 15 s", 8000 is "2 h 13 min"."""
    if not measured(value) or not math.isfinite(value):
        return DASH
    if value < 59.5:
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def date(stamp: str) -> str:
    """An ISO-8601 time as "21 November 2026, 15:26 UTC"; as it stands where it is not one."""
    try:
        moment = datetime.datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def pretty(value: Any) -> str:
    """A JSON value, indented."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def short(value: Any) -> str:
    """A JSON value on one line, text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function for function in (percent, interval, number, count, radius, seconds, date, pretty, short)
}
