"""One comparison, one file: what it holds follows from the file's suffix."""

import os
from pathlib import Path

from legibility.tradeoff._arms import Comparison
from legibility.tradeoff.page._drawing import draw_picture, picture_bytes
from legibility.tradeoff.page._render import Further, render_html, write_all_or_nothing
from legibility.tradeoff.page._text import render_csv, render_markdown, render_runs_csv

_PICTURES = ("png", "svg", "pdf")


def check_export(path: str | os.PathLike[str]) -> None:
    """Says before any work whether `export` knows the suffix of `path`.

    Raises:
        ValueError: it doesn't; the message lists what it knows.
    """
    if _kind(path) is None:
        raise ValueError(
            f"`path` must end in .html, .md, .csv (arms), .runs.csv (runs), .png, .svg or .pdf, got {os.fspath(path)!r}"
        )


def export(comparison: Comparison, path: str | os.PathLike[str], *, further: Further | None = None) -> Path:
    """Writes the comparison to `path`, all or nothing: `.html` the page, `.md` the tables in Markdown, `.csv` a row
    for each arm and metric, `.runs.csv` a row for each run and metric, `.png`, `.svg`, `.pdf` the picture.

    Args:
        comparison: from `compare`.
        path: the file; folders are made as needed.
        further: tables to show below the headline table, by recipe; for the page and Markdown.

    Returns:
        The path written.

    Raises:
        ValueError: another suffix.
        ImportError: the extra that this kind of file needs is missing; the message names it.

    Example:
        >>> import tempfile
        >>> from legibility.tradeoff import CostEntry, RunRecord, TaskEntry, compare
        >>> record = RunRecord("plain", 0, None, {}, [], TaskEntry("loss", 1.0, None, None, None, "test"), [],
        ...                    CostEntry(None, None, None, None, None, {}, 10), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(compare([record]), folder + "/tradeoff.csv").read_text().splitlines()[1]
        ',plain,,,1,task,loss,,,lower,,1.0,,,0.0,,,%,,,,,,,'
    """
    check_export(path)
    kind = _kind(path)
    if kind in _PICTURES:
        return write_all_or_nothing(path, picture_bytes(draw_picture(comparison), kind))
    if kind == "html":
        return write_all_or_nothing(path, render_html(comparison, further=further))
    if kind == "md":
        return write_all_or_nothing(path, render_markdown(comparison, further=further))
    return write_all_or_nothing(path, render_runs_csv(comparison) if kind == "runs.csv" else render_csv(comparison))


def _kind(path: str | os.PathLike[str]) -> str | None:
    name = Path(path).name.lower()
    known = ("runs.csv", "csv", "md", "html", *_PICTURES)
    return next((kind for kind in known if name.endswith(f".{kind}")), None)
