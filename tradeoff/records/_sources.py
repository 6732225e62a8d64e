"""Run records from wherever they are: folders, Weights & Biases projects, W&B's offline runs on disk."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from legibility.tradeoff._record import RunRecord
from legibility.tradeoff.records._file import find_records

Progress = Callable[[str, int, int], None]

_PROJECT = re.compile(r"[\w-][\w.-]*(/[\w-][^/\\?#%:]*){1,2}")


@dataclass(frozen=True)
class LeftOut:
    """A run that gave no record.

    Args:
        source: the run, as the reader can find it.
        reason: why, and what to do.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Records:
    """What was read.

    Args:
        records: (source, record), as `compare` takes them.
        left_out: the runs that gave none.
    """

    records: tuple[tuple[str, RunRecord], ...]
    left_out: tuple[LeftOut, ...] = ()


def read_records(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, progress: Progress | None = None
) -> Records:
    """Reads the run records of each source.

    What a source is, is seen by looking:

    - a path that exists: a run record; a folder with run records somewhere below; a run that W&B wrote offline
      (`wandb/offline-run-...`, the folder or its `.wandb` file), or the `wandb` folder of several. A folder without any
      run record is searched for offline runs too.
    - else `entity/project`, or `entity/project/run`: asked through `wandb.Api`, which needs a login. A run's record is
      its artifact of type `run-record`; the newest version counts.

    Scores that W&B merely logged are no record: they come without control, unit, direction and whether they were
    trained on. Such runs are left out, with the reason.

    Args:
        sources: one or several.
        progress: called with what is read, how much of it is done and of how much.

    Raises:
        FileNotFoundError: a source that is neither a path nor looks like a project.
        ValueError: a file that is no run record; a project that can't be read.

    Example:
        >>> import tempfile
        >>> from legibility.tradeoff import CostEntry, TaskEntry, save_record
        >>> record = RunRecord("plain", 0, None, {}, [], TaskEntry("loss", 1.0, None, None, None, "validation"), [],
        ...                    CostEntry(None, None, None, None, None, {}, 10), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_record(record, folder + "/plain/record.json")
        ...     read_records(folder).records[0][1] == record
        True
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    say = progress or (lambda what, done, of: None)
    records: dict[str, RunRecord] = {}
    left_out: list[LeftOut] = []
    for source in sources:
        found = _read(os.fspath(source), say)
        records.update(found.records)
        left_out += found.left_out
    return Records(tuple(records.items()), tuple(left_out))


def _read(source: str, say: Progress) -> Records:
    path = Path(source)
    if path.exists():
        return _read_path(path, say)
    if not _PROJECT.fullmatch(source):
        raise FileNotFoundError(
            f"{source} doesn't exist; give run records, folders that hold them, offline runs of W&B"
            " (wandb/offline-run-...), or a W&B project as entity/project"
        )
    from legibility.tradeoff.records._wandb_project import read_project

    return read_project(source, say)


def _read_path(path: Path, say: Progress) -> Records:
    from legibility.tradeoff.records._wandb_offline import offline_runs, read_offline

    if runs := offline_runs(path):
        return read_offline(runs, say)
    found = find_records(path)
    if not found and (logs := sorted(path.rglob("run-*.wandb"))):
        return read_offline(logs, say)
    return Records(tuple((str(file), record) for file, record in found))
