"""Holds what a file says against the dataclasses of the run record, field by field.

Our own check, not the `jsonschema` library's: it builds the record while it checks, and its messages say what to do.
The tests hold it against that library and the published schema: both refuse and accept the same files.
"""

import dataclasses
import functools
import json
import sys
import types
from datetime import datetime
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from legibility.tradeoff._record import SCHEMA, RunRecord

FAMILY_OF_SCHEMAS = SCHEMA.partition("/")[0]


def parse(data: bytes, file: str) -> RunRecord:
    """The run record that `data` holds; `file` is its name in messages.

    Raises:
        ValueError: as `check`, or not JSON.
    """
    try:
        payload = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a run record: {error}. Was the file truncated? Run it again.") from error
    return check(payload, file)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def check(payload: Any, file: str) -> RunRecord:
    """Builds the run record from what JSON read, every field checked.

    Raises:
        ValueError: names file, field, what was expected and what came.
    """
    schema = payload.get("schema") if isinstance(payload, dict) else None
    if schema is None:
        raise ValueError(f"{file}: not a run record: expected a JSON object with `schema`: {SCHEMA!r}")
    if schema != SCHEMA:
        raise ValueError(
            f"{file}: `schema` is {schema!r}, this version of legibility reads {SCHEMA!r}; {_way_out(schema)}"
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


def _way_out(schema: Any) -> str:
    family, _, version = str(schema).partition("/")
    if family == FAMILY_OF_SCHEMAS and version.isdecimal() and int(version) > int(SCHEMA.partition("/")[2]):
        return "a newer one wrote it: update legibility"
    return "read it with the version that wrote it, or run it again"


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
    if hint is int and isinstance(value, float) and value.is_integer():
        # JSON has one kind of number: 1.0 is whole, as JSON Schema has it too.
        return int(value)
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
