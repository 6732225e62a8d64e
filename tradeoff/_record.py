"""The run record: what one training run was, what it scored, what it cost. One JSON file per run.

The dataclasses below are the schema: `load_record` checks a file field by field against their annotations, and
`save_record` writes nothing that `load_record` would refuse.
"""

import dataclasses
import functools
import json
import math
import numbers
import os
import re
import secrets
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

SCHEMA = "legibility.run-record/1"
_FAMILY_OF_SCHEMAS = "legibility.run-record"


@dataclass(frozen=True)
class ScoreEntry:
    """One measured score.

    Args:
        name: stable identifier, such as `"held_out_kl"`.
        value: the score, or None when it could not be measured (say why in `reason`).
        unit: `"nats"`, `"bits"`, `"share"` (0 to 1), `"seconds"`, ...; changes of shares are read in percentage points.
        direction: which way is more interpretable; None if neither.
        control: the same score of a control that needs no training, such as the random-init twin; or None.
        control_name: what that control is, such as `"random-init"`.
        trained_on: whether this run optimised the score or a stand-in of it. Such a score is marked in every report.
        family: held-out student family the value belongs to; None for the aggregate (mean over families).
        version: version of the score's protocol; different versions are never compared.
        reason: why `value` is None.

    Example:
        >>> ScoreEntry("held_out_kl", 0.41, "nats", "lower", control=None, control_name=None, trained_on=False).value
        0.41
    """

    name: str
    value: float | None
    unit: str
    direction: Literal["lower", "higher"] | None
    control: float | None
    control_name: str | None
    trained_on: bool
    family: str | None = None
    version: str = "1"
    reason: str | None = None


@dataclass(frozen=True)
class TaskEntry:
    """How well the run does its task, on which data.

    Args:
        name: what the loss is, such as `"cross-entropy"`.
        loss: mean task loss on the evaluation examples (lower is better), without any of our terms.
        accuracy: share of right answers, 0 to 1; None if it has no meaning.
        entropy: mean entropy of the predicted distribution, nats.
        examples: how many examples were evaluated.
        source: which data that was, such as `"validation"`.
    """

    name: str
    loss: float | None
    accuracy: float | None
    entropy: float | None
    examples: int | None
    source: str


@dataclass(frozen=True)
class CostEntry:
    """What the run cost.

    Args:
        fit_seconds: wall time of the fit.
        steps: optimizer steps made.
        step_seconds: mean wall time of one step, everything included.
        report_seconds: wall time of measuring the scores.
        peak_memory_bytes: peak memory of the process or device.
        terms: seconds per step of each callback's own work, by name.
        parameters: parameters of the primary.
    """

    fit_seconds: float | None
    steps: int | None
    step_seconds: float | None
    report_seconds: float | None
    peak_memory_bytes: int | None
    terms: Mapping[str, float | None]
    parameters: int


@dataclass(frozen=True)
class ControlOf:
    """Marks a run as a control: a model that no method of ours trained.

    Args:
        kind: `"temperature"`: a finished model with flattened logits; `"random-init"`: an untrained one.
        arm: the arm whose model is used.
        matches: the arm whose task loss this control is set to match; None if it matches none.
        temperature: the temperature that the logits were divided by.
    """

    kind: Literal["temperature", "random-init"]
    arm: str
    matches: str | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """One run: an arm (one setting of one method) under one seed.

    Args:
        arm: name of the setting, equal over seeds.
        seed: the training seed; arms are compared seed by seed.
        recipe: which recipe it belongs to; runs of different recipes are never compared. None without a recipe.
        strengths: coefficient of each term, by name.
        students: names of the students trained with.
        task: task loss and its company.
        scores: every score, aggregates (`family=None`) and per family.
        cost: time and memory.
        versions: version of each library involved.
        control_of: set for controls only.
        settings: everything else needed to repeat the run; JSON values.
        guards: quantities that betray a degenerate solution (effective rank, rms, live units, ...).
        notes: remarks for the reader, such as a student that was dropped.
        created: when, ISO 8601.
        schema: the format's name and version.

    Example:
        >>> record = RunRecord(
        ...     arm="plain", seed=0, recipe=None, strengths={}, students=[],
        ...     task=TaskEntry("cross-entropy", 1.5, None, None, 1000, "validation"), scores=[],
        ...     cost=CostEntry(60.0, 100, 0.6, 5.0, None, {}, 1234), versions={"torch": "2.13.0"})
        >>> record.schema
        'legibility.run-record/1'
    """

    arm: str
    seed: int
    recipe: str | None
    strengths: Mapping[str, float]
    students: list[str]
    task: TaskEntry
    scores: list[ScoreEntry]
    cost: CostEntry
    versions: Mapping[str, str]
    control_of: ControlOf | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    guards: Mapping[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))
    schema: str = SCHEMA


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
    _check(payload, str(target))
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
    return _parse(Path(path).read_bytes(), str(path))


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
        for file in sorted(start.rglob("*.json"), key=_natural):
            if file.is_file() and file.resolve() not in found:
                data = file.read_bytes()
                if _announces_record(data):
                    found[file.resolve()] = (file, _parse(data, str(file)))
    return list(found.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]


def _announces_record(data: bytes) -> bool:
    if _FAMILY_OF_SCHEMAS.encode() not in data:
        return False
    try:
        payload = json.loads(data)
    except ValueError:
        # `save_record` writes the schema first, so a truncated record still shows it at the start.
        return re.match(rb'\s*\{\s*"schema"\s*:\s*"' + re.escape(_FAMILY_OF_SCHEMAS).encode(), data) is not None
    return isinstance(payload, dict) and str(payload.get("schema", "")).startswith(_FAMILY_OF_SCHEMAS)


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


def _parse(data: bytes, file: str) -> RunRecord:
    try:
        payload = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a run record: {error}. Was the file truncated? Run it again.") from error
    return _check(payload, file)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _check(payload: Any, file: str) -> RunRecord:
    schema = payload.get("schema") if isinstance(payload, dict) else None
    if schema is None:
        raise ValueError(f"{file}: not a run record: expected a JSON object with `schema`: {SCHEMA!r}")
    if schema != SCHEMA:
        raise ValueError(
            f"{file}: `schema` is {schema!r}, this version of legibility reads {SCHEMA!r};"
            " read it with the version that wrote it, or run it again"
        )
    record: RunRecord = _decode(payload, RunRecord, "", file)
    try:
        datetime.fromisoformat(record.created)
    except ValueError as error:
        raise ValueError(f"{file}: `created` must be an ISO 8601 time, got {record.created!r}") from error
    if not record.arm:
        raise ValueError(f"{file}: `arm` must not be empty")
    seen = set()
    for index, entry in enumerate(record.scores):
        if (entry.name, entry.family) in seen:
            raise ValueError(f"{file}: `scores[{index}]`: {entry.name!r} of family {entry.family!r} is there twice")
        seen.add((entry.name, entry.family))
    return record


_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a finite number", list: "a list"}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _decode(value: Any, hint: Any, where: str, file: str) -> Any:
    """Checks `value` against the annotation `hint` and builds it; `where` is its place in the file."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _decode(value, inner, where, file)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{file}: `{where}` must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(file, where, "a list", value)
        return [_decode(item, arguments[0], f"{where}[{index}]", file) for index, item in enumerate(value)]
    if origin is not None:
        if not isinstance(value, dict):
            raise _wrong(file, where, "an object", value)
        return {key: _decode(item, arguments[1], f"{where}.{key}", file) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(value, hint, where, file)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        # JSON numbers have no largest value: 1e999 reads as infinity, 10**400 as an int no float can hold.
        if abs(value) > sys.float_info.max:
            raise _wrong(file, where, "a finite number", value)
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(file, where, _NAMES[hint], value)
    return value


def _decode_dataclass(value: Any, hint: Any, where: str, file: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(file, where, "an object", value)
    prefix = f"{where}." if where else ""
    fields = {item.name: item for item in dataclasses.fields(hint)}
    if unknown := sorted(value.keys() - fields.keys()):
        raise ValueError(f"{file}: `{prefix}{unknown[0]}` is no field of {SCHEMA}; fields here: {', '.join(fields)}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if (required or name == "created") and name not in value:
            raise ValueError(f"{file}: field `{prefix}{name}` is missing; was the file edited by hand?")
    hints = _hints(hint)
    return hint(**{name: _decode(item, hints[name], prefix + name, file) for name, item in value.items()})


def _wrong(file: str, where: str, expected: str, value: Any) -> ValueError:
    shown = json.dumps(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"
    return ValueError(f"{file}: `{where}` must be {expected}, got {shown[:80]}")
