"""Run records of a W&B project, through `wandb.Api`."""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from legibility.tradeoff._record import RunRecord
from legibility.tradeoff.records._file import find_records
from legibility.tradeoff.records._sources import LeftOut, Progress, Records
from legibility.tradeoff.records._wandb_offline import ARTIFACT_TYPE, without_record

_AT_A_TIME = 8


def read_project(path: str, say: Progress) -> Records:
    """Reads the records of `entity/project`, or of `entity/project/run`; runs without one are left out with the reason.

    Raises:
        ValueError: no login, no network, no such project or run, none of our runs in it.
    """
    say(f"W&B project {path}", 0, 0)
    try:
        import wandb

        api = wandb.Api()
        runs = list(api.runs(path, order="+created_at") if path.count("/") == 1 else [api.run(path)])
    except Exception as error:  # wandb raises a dozen kinds; all mean that it could not be asked
        first = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"{path} is no path here, so W&B was asked for it, which failed: {first}. Is it spelt entity/project, are"
            " you logged in (`wandb login`), is there a network?"
        ) from error
    if not runs:
        raise ValueError(f"the W&B project {path} has no runs")
    records: list[tuple[str, RunRecord]] = []
    left_out: list[LeftOut] = []
    # W&B writes a line to stderr for each artifact that it brings.
    quiet = contextlib.redirect_stderr(io.StringIO())
    with quiet, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_AT_A_TIME) as pool:
        places = [Path(folder) / str(place) for place in range(len(runs))]
        for done, (run, found) in enumerate(zip(runs, pool.map(_read_run, runs, places), strict=True), start=1):
            say(f"W&B project {path}", done, len(runs))
            if isinstance(found, str):
                left_out.append(LeftOut(_name(run), found))
            else:
                records += found
    return Records(tuple(records), tuple(left_out))


def _name(run: Any) -> str:
    """The run as its user can find it: its page."""
    return f"{run.name} ({run.url})"


def _read_run(run: Any, folder: Path) -> list[tuple[str, RunRecord]] | str:
    try:
        newest = _newest(artifact for artifact in run.logged_artifacts() if artifact.type == ARTIFACT_TYPE)
        if not newest:
            state = "" if run.state == "finished" else f" (state: {run.state})"
            return without_record(any(key.startswith("legibility/score/") for key in run.summary_metrics)) + state
        records = []
        for name, artifact in newest.items():
            place = folder / name
            artifact.download(root=str(place))
            for file, record in find_records(place):
                records.append((f"{run.url}: {name}/{file.relative_to(place)}", record))
    except Exception as error:  # noqa: BLE001 - one run that can't be read must not lose all others
        return f"its record can't be read: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
    return records or "its artifact of type 'run-record' holds no run record (record.json)"


def _newest(artifacts: Iterable[Any]) -> dict[str, Any]:
    """The highest version of each artifact; what was deleted has no content."""
    result: dict[str, Any] = {}
    for artifact in artifacts:
        if getattr(artifact, "state", None) == "DELETED":
            continue
        name = re.sub(r"[^\w.-]", "_", artifact.name.partition(":")[0])
        if name not in result or _version(artifact) > _version(result[name]):
            result[name] = artifact
    return result


def _version(artifact: Any) -> int:
    return int(artifact.version.lstrip("v"))
