"""What `legibility report` does: one model's scores in the terminal, and its page."""

from pathlib import Path

from rich.console import Console

from legibility.recipes._folder import RECORD
from legibility.tradeoff import RunRecord, find_records, load_record
from legibility.tradeoff.model_page import (
    ModelPicture,
    load_picture,
    page_path,
    picture_path,
    print_model,
    write_model_html,
)

_PARTS = ("units", "concepts", "lens", "circuit", "graph", "weights", "students", "attention")


def find_record(source: Path) -> Path:
    """The one record that is meant.

    Args:
        source: A record, a run's folder, or a folder in which there is one record.

    Raises:
        FileNotFoundError: There is nothing, or no record.
        ValueError: There are several; they are listed.
    """
    if source.is_file():
        return source
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a run's folder or its record")
    if (source / RECORD).is_file():
        return source / RECORD
    found = [path for path, _ in find_records(source)]
    if not found:
        raise FileNotFoundError(f"there is no run record in {source}")
    if len(found) > 1:
        some = ", ".join(str(path.parent) for path in found[:4])
        more = f" and {len(found) - 4} more" * (len(found) > 4)
        raise ValueError(f"{source} holds {len(found)} runs ({some}{more}): name one, or `legibility compare` them")
    return found[0]


def show_model(path: Path, html: Path | None, console: Console) -> tuple[RunRecord, Path]:
    """Prints a run and writes its page anew.

    Args:
        path: The record.
        html: The page; None: where the report wrote it, beside the record.
        console: Where to print.

    Returns:
        The record, and the page.

    Raises:
        ValueError: A record, or its pictures, that can't be read.
        ImportError: jinja2 is missing.
    """
    record = load_record(path)
    drawn = picture_path(path)
    if drawn.is_file():
        picture = load_picture(drawn)
    else:
        why = f"there is no {drawn.name} beside the record: it was measured without a page, or by an earlier version"
        picture = ModelPicture("model", "not known", missing=dict.fromkeys(_PARTS, why))
    print_model(record, console)
    written = write_model_html(record, picture, html or page_path(path))
    console.print(f"Page: {written}", highlight=False, markup=False)
    return record, written
