"""`python -m jaxrobust.report RUN_DIR [--output FILE]`."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from jaxrobust.report.page import render

__all__ = ["main"]


def main() -> None:
    """Write the page of the run named on the command line, say where it is, exit with 2 if there is none to write."""

    def report(
        run_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")],
        *,
        output: str | None = None,
    ) -> None:
        """Write one self-contained HTML page of an evaluation run.

        Args:
            run_dir: the run folder, with its results.json.
            output: where the page goes; RUN_DIR/report.html if left out.
        """
        print(render(run_dir, output=output))

    try:
        tyro.cli(report, prog="python -m jaxrobust.report")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
