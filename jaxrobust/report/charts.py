"""Line charts as inline SVG whose colours follow the page: light, dark and print."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxrobust.report.text import Number

__all__ = ["Line", "chart", "palette", "swatches"]

# Okabe and Ito's colour-blind-safe hues, each in a form that stands out on white and one that does on near-black.
_LIGHT = ("#0072b2", "#d55e00", "#00805f", "#b5508c", "#9a6b00", "#2f97d0", "#5b5b66")
_DARK = ("#56b4f0", "#ff8a3c", "#2fcf9e", "#eb9cca", "#f0c040", "#a5d8fa", "#b9b9c4")
# Colour is never alone: each model has its own marker, and each turn of the palette its own dash.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)))

# Colours that mean "fill in the page's own": matplotlib writes them into style attributes, `_themed` replaces them.
_INK, _RULE = "#fd0001", "#fd0002"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 7.5,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.4,
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One model's line.

    Args:
        model: the model's place in the run, which decides its colour.
        x: where it was measured.
        y: what was measured; None or NaN leaves a gap.
        low: lower edge of its band, or None.
        high: upper edge of its band, or None.
    """

    model: int
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None


def palette(models: int) -> dict[str, list[str]]:
    """The models' colours in light and in dark mode."""
    return {
        "light": [_LIGHT[index % len(_LIGHT)] for index in range(models)],
        "dark": [_DARK[index % len(_DARK)] for index in range(models)],
    }


def chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    y_label: str,
    mark: Number = None,
    fraction: bool = False,
    ticks: Mapping[float | int, str] | None = None,
) -> Markup:
    """A line chart.

    Args:
        lines: one a model.
        label: what the chart shows, for those who cannot see it.
        x_label: under the horizontal axis.
        y_label: beside the vertical axis.
        mark: where to draw a vertical mark, or None.
        fraction: whether y is a fraction, written in percent from 0 to 100.
        ticks: what is written at which x > 0; the horizontal axis then is logarithmic.

    Returns:
        An `<svg>` element to stand inside a page that defines the page's colours.
    """

    def draw(axes: Axes) -> None:
        if mark is not None:
            axes.axvline(mark, color=_INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        for line in lines:
            x, y = _floats(line.x), _floats(line.y)
            if line.low is not None and line.high is not None:
                band = _colour(line.model)
                axes.fill_between(x, _floats(line.low), _floats(line.high), color=band, alpha=0.16, linewidth=0)
            dense = len(x) > 20
            axes.plot(x, y, **_look(line.model), markevery=max(1, len(x) // 8) if dense else None, clip_on=not fraction)
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel(y_label, parse_math=False)
        axes.margins(x=0.03)
        if ticks is None:
            whole = not any(np.mod(_floats(line.x), 1).any() for line in lines)  # there is no step or epoch 2.5
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=whole))
        else:
            axes.set_xscale("log")
            axes.set_xticks(list(ticks), labels=list(ticks.values()))
            axes.minorticks_off()
        if fraction:
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return _svg(draw, size=(3.4, 2.2), salt=label, label=label)


def swatches(models: int) -> list[Markup]:
    """A short piece of every model's line, for legends."""

    def draw(model: int) -> Callable[[Axes], None]:
        def line(axes: Axes) -> None:
            axes.plot([0, 1, 2], [0, 0, 0], **_look(model) | {"markersize": 5}, markevery=[1], solid_capstyle="round")
            axes.set_axis_off()

        return line

    return [_svg(draw(model), size=(0.36, 0.17), salt=f"swatch {model}") for model in range(models)]


def _look(model: int) -> dict[str, Any]:
    turn = model // len(_LIGHT)
    marker = _MARKERS[(model + turn) % len(_MARKERS)]
    return {"color": _colour(model), "marker": marker, "linestyle": _DASHES[turn % len(_DASHES)]}


def _colour(model: int) -> str:
    return f"#fe{model:04x}"


def _floats(values: Sequence[Number]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _svg(draw: Callable[[Axes], None], *, size: tuple[float, float], salt: str, label: str = "") -> Markup:
    # The user's own style must not leak into the page, nor ours out of it; and no pyplot, so no back end is chosen.
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01))
        draw(figure.add_subplot())
        # A salt a chart: the marks and clips that charts define must not be taken for one another's.
        matplotlib.rcParams["svg.hashsalt"] = salt
        file = io.StringIO()
        silent: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=silent)
    return _themed(file.getvalue(), label)


def _themed(svg: str, label: str) -> Markup:
    """Strip matplotlib's own frame (fixed size, ids that repeat, white ground) and let the page choose the colours."""
    head, body = svg[svg.index("<svg ") :].split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<path d="[^"]*" style="fill: #ffffff"/>', "", body)
    body = body.replace("xlink:href", "href").replace(_INK, "var(--muted)").replace(_RULE, "var(--rule)")
    body = re.sub(r"#fe([0-9a-f]{4})", lambda match: f"var(--model-{int(match[1], 16)})", body)
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return Markup(f'<svg {box[0]} {role} xmlns="http://www.w3.org/2000/svg">{body}')
