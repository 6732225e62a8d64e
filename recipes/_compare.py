"""What `legibility compare` does: reads run records wherever they are, prints the comparison, writes the page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from legibility.tradeoff import (
    Comparison,
    LeftOut,
    Records,
    check_export,
    compare,
    export,
    further_tables,
    print_comparison,
    read_records,
    write_html,
)


def compare_runs(
    sources: Sequence[str], baseline: str, html: Path | None, console: Console, export_to: Sequence[str] = ()
) -> tuple[Comparison, Path]:
    """Reads, compares, prints, and writes the page.

    Args:
        sources: Folders, run records, W&B's offline runs, W&B projects.
        baseline: The arm that the others are compared with.
        html: The page to write; None: ``tradeoff.html`` in the first folder, or here if that is W&B's.
        console: Where to print.
        export_to: Further files to write, as their suffixes say.

    Returns:
        The comparison, and the page written.

    Raises:
        ImportError: A library that a file needs is not installed; the message names the extra.
        ValueError: No run record, or none that can be compared; the message says what to do.
        OSError: A source that does not exist, a page that can't be written.
    """
    for path in export_to:
        check_export(path)
    found = _read(sources, console)
    compared = compare(found.records, baseline=baseline)
    print_comparison(compared, Console())
    further = further_tables(compared)
    written = write_html(compared, html or _beside(sources[0]) / "tradeoff.html", further=further)
    for path in export_to:
        console.print(f"Written: {export(compared, path, further=further)}", highlight=False, markup=False)
    for reason, runs in _by_reason(found.left_out).items():
        console.print(f"Left out: {runs}: {reason}", highlight=False, markup=False)
    console.print(f"Picture: {written}", highlight=False, markup=False)
    return compared, written


def _read(sources: Sequence[str], console: Console) -> Records:
    with console.status("reading run records") as status:
        found = read_records(
            sources, progress=lambda what, done, of: status.update(f"{what}: {done} of {of} runs" if of else what)
        )
    if not found.records and found.left_out:
        reasons = "; ".join(f"{runs}: {reason}" for reason, runs in _by_reason(found.left_out).items())
        raise ValueError(f"no run record in {', '.join(sources)}: {reasons}")
    return found


def _by_reason(left_out: Sequence[LeftOut]) -> dict[str, str]:
    """The runs that were left out, named or counted, by the reason."""
    runs: dict[str, list[str]] = {}
    for one in left_out:
        runs.setdefault(one.reason, []).append(one.source)
    more = {reason: f" and {len(names) - 3} more" * (len(names) > 3) for reason, names in runs.items()}
    return {reason: ", ".join(names[:3]) + more[reason] for reason, names in runs.items()}


def _beside(source: str) -> Path:
    """Where the page goes: into the folder of runs, else beside the record; for W&B's runs, here."""
    path = Path(source)
    if not path.exists() or path.suffix == ".wandb" or path.name == "wandb" or any(path.glob("run-*.wandb")):
        return Path()
    return path if path.is_dir() else path.parent
