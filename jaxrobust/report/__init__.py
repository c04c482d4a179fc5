"""One self-contained HTML page from a run folder: tables, curves, pictures and the per-example matrix.

`python -m jaxrobust.report RUN_DIR` writes `RUN_DIR/report.html`; `render` does the same from Python. The page
needs no network and no other file, follows the reader's light or dark mode, and prints.
"""

from jaxrobust.report.page import render as render
from jaxrobust.report.run import Run as Run
from jaxrobust.report.run import load as load

__all__ = ["Run", "load", "render"]
