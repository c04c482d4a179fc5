"""The page: sections put together, written in one stroke."""

from __future__ import annotations

import os

import jinja2
from markupsafe import Markup

from jaxrobust import _store
from jaxrobust.report import charts, text
from jaxrobust.report.format import PAGE
from jaxrobust.report.run import Run, load
from jaxrobust.report.sections import SECTIONS

__all__ = ["MARK", "render", "write"]

# The first bytes of every page: a file that starts otherwise is not ours to overwrite.
MARK = "<!doctype html>\n<!-- jaxrobust report -->\n"


def render(run_dir: str | os.PathLike[str], *, output: str | os.PathLike[str] | None = None) -> _store.Path:
    """Write one self-contained HTML page of an evaluation run.

    The page depends on nothing but the run folder, so that writing it again gives the same bytes. It is written
    whole or not at all, and overwrites nothing but an earlier report.

    Args:
        run_dir: the run folder, with its results.json.
        output: where the page goes; `run_dir/report.html` if None.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: the run, a file of it, or the folder of `output` does not exist.
        ValueError: the run is half-written or of another format, or `output` is a file that is not a report.

    Example:
        >>> from jaxrobust import report
        >>> report.render("runs/digits")  # doctest: +SKIP
        PosixPath('runs/digits/report.html')
    """
    run = load(run_dir)
    return write(run, run.folder / PAGE if output is None else _store.place(output))


def write(run: Run, path: _store.Path) -> _store.Path:
    """Write the page of a run that was read.

    Args:
        run: the run.
        path: where the page goes.

    Returns:
        The path.

    Raises:
        FileNotFoundError: its folder does not exist.
        ValueError: it is a file that is not a report.
    """
    _check_output(path)
    content = _page(run).encode()
    _store.atomically(path, lambda partial: partial.write_bytes(content))
    return path


def _page(run: Run) -> str:
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxrobust.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= text.FILTERS
    env.globals |= {"run": run, "results": run.results}
    sections = []
    for section in SECTIONS:
        context = section.context(run)
        if context is not None:
            html = env.get_template(f"{section.name}.html").render(context)
            sections.append({"name": section.name, "title": section.title, "html": Markup(html)})
    return MARK + env.get_template("page.html").render(
        sections=sections, palette=charts.palette(len(run.names)), swatches=charts.swatches(len(run.names))
    )


def _check_output(path: _store.Path) -> None:
    if _store.is_local(path) and not path.parent.is_dir():
        raise FileNotFoundError(f"output must lie in a folder that exists, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"output must be a file, got the folder {str(path)!r}")
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(MARK)) != MARK.encode():
                raise ValueError(f"output must be new or an earlier report; {str(path)!r} is another file, left as is")
