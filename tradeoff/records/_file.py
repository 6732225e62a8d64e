"""Run records as files: written all or nothing, read with every field checked, found in folders."""

import dataclasses
import json
import math
import numbers
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from legibility.tradeoff._arms import natural
from legibility.tradeoff._record import RunRecord, ScoreEntry
from legibility.tradeoff.records._check import FAMILY_OF_SCHEMAS, check, parse


def save_record(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Writes `record` to `path` as JSON, all or nothing: a reader never sees half a file.

    NaN and infinity become null; a score without a reason gets one ("not finite: nan"). Folders are made as needed.

    Returns:
        The path written.

    Raises:
        TypeError: a value that JSON can't hold; the message names the field.
        ValueError: a record that `load_record` would refuse.

    Example:
        >>> import tempfile
        >>> from legibility.tradeoff import CostEntry, TaskEntry
        >>> record = RunRecord("plain", 0, None, {}, [], TaskEntry("loss", 1.0, None, None, None, "validation"), [],
        ...                    CostEntry(None, None, None, None, None, {}, 10), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_record(save_record(record, folder + "/plain-0.json")) == record
        True
    """
    target = Path(path)
    scores = [_explain_missing(entry) for entry in record.scores]
    fields = _to_json(dataclasses.asdict(dataclasses.replace(record, scores=scores)), "")
    payload = {"schema": fields.pop("schema"), **fields}
    check(payload, str(target))
    data = (json.dumps(payload, indent=1, allow_nan=False) + "\n").encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def load_record(path: str | os.PathLike[str]) -> RunRecord:
    """Reads the run record at `path` and checks every field.

    Raises:
        ValueError: not JSON, truncated, another schema, a field missing, unknown or of another type. The message names
            the file and the field.
        FileNotFoundError: no such file.
    """
    return parse(Path(path).read_bytes(), str(path))


def find_records(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[tuple[Path, RunRecord]]:
    """Finds run records in files and folders.

    A folder is searched through all its subfolders for `*.json`; JSON that isn't a run record is passed over, a run
    record that is truncated or of another version is an error. A file named directly must be a run record.

    Returns:
        (path, record) in natural order of paths, each file once.

    Raises:
        FileNotFoundError: a path that doesn't exist.
        ValueError: as `load_record`.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: dict[Path, tuple[Path, RunRecord]] = {}
    for start in map(Path, paths):
        if not start.exists():
            raise FileNotFoundError(f"`paths`: {start} doesn't exist; give run records or folders that hold them")
        if not start.is_dir():
            found.setdefault(start.resolve(), (start, load_record(start)))
            continue
        for file in sorted(start.rglob("*.json"), key=lambda path: natural(str(path))):
            if file.is_file() and file.resolve() not in found and (record := _if_record(file)) is not None:
                found[file.resolve()] = (file, record)
    return list(found.values())


def _if_record(file: Path) -> RunRecord | None:
    """The record in `file`; None if it is some other JSON, or none."""
    data = file.read_bytes()
    if FAMILY_OF_SCHEMAS.encode() not in data:
        return None
    try:
        payload = json.loads(data)
    except (ValueError, RecursionError):
        # `save_record` writes the schema first, so a truncated record still shows it at the start.
        if re.match(rb'\s*\{\s*"schema"\s*:\s*"' + re.escape(FAMILY_OF_SCHEMAS).encode(), data) is None:
            return None
        return parse(data, str(file))
    if not isinstance(payload, dict) or not str(payload.get("schema", "")).startswith(FAMILY_OF_SCHEMAS):
        return None
    # NaN and Infinity, which `json` reads though JSON has none, are refused as numbers that aren't finite, or by `parse`.
    return parse(data, str(file)) if any(word in data for word in (b"NaN", b"Infinity")) else check(payload, str(file))


def _explain_missing(entry: ScoreEntry) -> ScoreEntry:
    if entry.value is None or math.isfinite(entry.value):
        return entry
    return dataclasses.replace(entry, value=None, reason=entry.reason or f"not finite: {float(entry.value)}")


def _to_json(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"`{where or 'record'}` must have strings as keys for JSON, got {key!r}")
        return {str(key): _to_json(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"`{where}` must be a JSON value (null, bool, number, string, list, dict), got {type(value).__name__}: {value!r};"
        " convert it first, for example with float() or str()"
    )
