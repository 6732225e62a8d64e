"""Run records of runs that W&B wrote offline, without network or login.

A run's folder holds its log (`run-<id>.wandb`) and its files (`files/`). A record may be among the files; else it is an
artifact that the log names. W&B stages the content of artifacts outside the run's folder (under `WANDB_DATA_DIR`), so
such a record is found on the machine that ran it only.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from legibility.tradeoff._record import RunRecord
from legibility.tradeoff.records._check import parse
from legibility.tradeoff.records._file import find_records
from legibility.tradeoff.records._sources import LeftOut, Progress, Records

ARTIFACT_TYPE = "run-record"


def offline_runs(path: Path) -> list[Path]:
    """The logs of the runs that `path` is: a log, a run's folder, or a `wandb` folder of runs; else none."""
    if path.is_file():
        return [path] if path.suffix == ".wandb" else []
    return sorted(path.glob("run-*.wandb")) or sorted(
        log for log in path.glob("*run-*/run-*.wandb") if not log.parent.is_symlink()
    )


def read_offline(logs: Sequence[Path], say: Progress) -> Records:
    """Reads the records of offline runs, given by their logs; a run without one is left out with the reason.

    Raises:
        ValueError: a run record among a run's files that is broken.
    """
    records: list[tuple[str, RunRecord]] = []
    left_out: list[LeftOut] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (log, found) in enumerate(zip(logs, pool.map(_read_run, logs), strict=True), start=1):
            say("offline runs", done, len(logs))
            if isinstance(found, str):
                left_out.append(LeftOut(str(log.parent), found))
            else:
                records += found
    return Records(tuple(records), tuple(left_out))


def _read_run(log: Path) -> list[tuple[str, RunRecord]] | str:
    files = log.parent / "files"
    if files.is_dir() and (found := find_records(files)):
        return [(str(file), record) for file, record in found]
    newest: dict[str, Any] = {}
    scores = False
    try:
        for entry in _entries(log):
            if entry["type"] == "artifact" and entry["artifact"].get("type") == ARTIFACT_TYPE:
                newest[str(entry["artifact"].get("name"))] = entry["artifact"]
            scores = scores or '"legibility/score/' in json.dumps(entry.get("summary", {}))
    except (OSError, ValueError, KeyError) as error:
        return f"its log can't be read: {error}"
    if not newest:
        return without_record(scores)
    records = []
    for name, artifact in newest.items():
        for file in artifact.get("manifest", {}).get("contents", []):
            staged = _staged(file)
            if isinstance(staged, str):
                return staged
            where = f"{log.parent}: {name}/{file.get('path')}"
            try:
                records.append((where, parse(staged, where)))
            except ValueError as error:
                return str(error)
    return records or "its artifact of type 'run-record' lists no file in the run's log"


def without_record(scores: bool) -> str:
    """Why a run without the artifact is left out; `scores`: whether it has logged some."""
    if scores:
        return (
            "it logged scores but has no artifact of type 'run-record': scores alone, without controls, units and"
            " whether they were trained on, can't be compared; run it again with InterpretabilityReport"
        )
    return "it has no artifact of type 'run-record': InterpretabilityReport didn't finish in it, or it had none"


def _staged(file: Any) -> bytes | str:
    """The bytes of a staged file, or why there are none. Only what W&B's log vouches for is read."""
    path = Path(file.get("local_path", ""))
    if not path.is_file():
        return (
            f"its record was staged as {path}, which is gone: W&B keeps artifacts outside the run's folder. Read it on"
            " the machine that ran it; if it was synced, as entity/project"
        )
    data = path.read_bytes()
    if base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode() != file.get("digest"):
        return f"its staged record {path} is not what was logged; read the run's own record.json"
    return data


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    """The entries of a run's log that say something about artifacts or the summary, as `wandb leet inspect` prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(log), "--json"]
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, encoding="utf-8"
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if '"type":"artifact"' in line or '"type":"summary"' in line:
                yield json.loads(line)
        said = process.stderr.read().strip()
    if process.returncode:
        last = said.splitlines()[-1] if said else f"exit status {process.returncode}"
        raise OSError(
            f"`wandb leet inspect` said: {last} (it needs wandb >= 0.31; `wandb sync` uploads the run instead)"
        )
