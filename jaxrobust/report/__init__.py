"""One self-contained HTML page from a run folder: tables, curves, pictures and the per-example matrix.

`python -m jaxrobust.report RUN_DIR` writes `RUN_DIR/report.html`; `render` does the same from Python. The page
needs no network and no other file, follows the reader's light or dark mode, and prints.
"""

from typing import TYPE_CHECKING

from jaxrobust import _public

if TYPE_CHECKING:
    from jaxrobust.report.format import LEGEND as LEGEND
    from jaxrobust.report.format import picture_key as picture_key
    from jaxrobust.report.page import render as render
    from jaxrobust.report.reliability import reliability_diagram as reliability_diagram
    from jaxrobust.report.run import Run as Run
    from jaxrobust.report.run import load as load
    from jaxrobust.report.several import render_several as render_several

__all__ = ["LEGEND", "Run", "load", "picture_key", "reliability_diagram", "render", "render_several"]

# what draws and writes a page takes longer to import than an evaluation needs, which may never write one
__getattr__ = _public.lazily(
    __name__,
    {
        "LEGEND": "format",
        "Run": "run",
        "load": "run",
        "picture_key": "format",
        "reliability_diagram": "reliability",
        "render": "page",
        "render_several": "several",
    },
)


def __dir__() -> list[str]:
    return _public.names(globals())
