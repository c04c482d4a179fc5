"""`jaxrobust report`: the page of a run, or of several."""

from __future__ import annotations

import argparse

from jaxrobust.cli.output import say
from jaxrobust.report.format import PAGE
from jaxrobust.report.page import render
from jaxrobust.report.several import render_several

__all__ = ["interrupted", "run"]


def interrupted(options: argparse.Namespace) -> str:
    """A page is written whole or not at all."""
    return "interrupted; no page was written"


def run(options: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    if len(options.runs) == 1:
        say(render(options.runs[0], output=options.output))
    else:
        say(render_several(options.runs, output=options.output or PAGE))
