"""Holds what a file says against the dataclasses of the run record, field by field.

Our own check, not the `jsonschema` library's: it builds the record while it checks, and its messages say what to do.
The tests hold it against that library and the published schema: both refuse and accept the same files.
"""

import dataclasses
import functools
import json
import sys
import types
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from legibility.tradeoff._record import SCHEMA, RunRecord

_Any = TypeVar("_Any")

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
    try:
        record: RunRecord = _reader(RunRecord)(payload)
    except _UnfitError as error:
        raise ValueError(f"{file}: {error}") from None
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


def built(cls: Callable[..., _Any], payload: Any, file: str) -> _Any:
    """A dataclass from what JSON read, every field checked as those of run records are.

    Raises:
        ValueError: names file, field, what was expected and what came.
    """
    try:
        found: _Any = _reader(cls)(payload)
    except _UnfitError as error:
        raise ValueError(f"{file}: {error}") from None
    return found


def _way_out(schema: Any) -> str:
    family, _, version = str(schema).partition("/")
    if family == FAMILY_OF_SCHEMAS and version.isdecimal() and int(version) > int(SCHEMA.partition("/")[2]):
        return "a newer one wrote it: update legibility"
    return "read it with the version that wrote it, or run it again"


class _UnfitError(Exception):
    """What doesn't fit, found deep inside a file; each level on the way up adds its step to `steps`."""

    def __init__(self, text: str, *steps: str) -> None:
        super().__init__(text)
        self.text, self.steps = text, list(steps)

    def __str__(self) -> str:
        return self.text.format("".join(reversed(self.steps)).lstrip("."))


_Read = Callable[[Any], Any]

_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a finite number"}


@functools.cache
def _reader(hint: Any) -> _Read:
    """The function that checks a value against the annotation `hint` and builds it; made once for each annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        (inner,) = (_reader(argument) for argument in arguments if argument is not type(None))
        return lambda value: None if value is None else inner(value)
    if origin is Literal:
        return functools.partial(_one_of, arguments)
    if origin is list:
        return functools.partial(_list, _reader(arguments[0]))
    if origin is not None:
        return functools.partial(_mapping, _reader(arguments[1]))
    if dataclasses.is_dataclass(hint):
        return _object_reader(hint)
    return {str: _string, bool: _bool, int: _whole, float: _finite}[hint]


def _one_of(known: tuple[Any, ...], value: Any) -> Any:
    if value not in known:
        raise _UnfitError(f"`{{}}` must be one of {', '.join(map(repr, known))}, got {_braced(repr(value))}")
    return value


def _list(read: _Read, value: Any) -> list[Any]:
    if type(value) is not list:
        raise _wrong("a list", value)
    result = []
    for index, item in enumerate(value):
        try:
            result.append(read(item))
        except _UnfitError as error:
            error.steps.append(f"[{index}]")
            raise
    return result


def _mapping(read: _Read, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _wrong("an object", value)
    result = {}
    for key, item in value.items():
        try:
            result[key] = read(item)
        except _UnfitError as error:
            error.steps.append(f".{key}")
            raise
    return result


def _object_reader(cls: Any) -> _Read:
    hints = get_type_hints(cls)
    fields = {item.name: _reader(hints[item.name]) for item in dataclasses.fields(cls)}
    needed = {
        item.name
        for item in dataclasses.fields(cls)
        if (item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING)
        or item.name == "created"
    }

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong("an object", value)
        if unknown := sorted(value.keys() - fields.keys()):
            listed = ", ".join(fields)
            raise _UnfitError(f"`{{}}` is no field of {_format_of(cls)}; fields here: {listed}", f".{unknown[0]}")
        for name in fields:
            if name in needed and name not in value:
                raise _UnfitError("field `{}` is missing; was the file edited by hand?", f".{name}")
        result = {}
        for name, item in value.items():
            try:
                result[name] = fields[name](item)
            except _UnfitError as error:
                error.steps.append(f".{name}")
                raise
        return cls(**result)

    return read


def _format_of(cls: Any) -> str:
    return SCHEMA if cls.__module__ == RunRecord.__module__ else cls.__name__


def _string(value: Any) -> str:
    if type(value) is not str:
        raise _wrong(_NAMES[str], value)
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(_NAMES[bool], value)
    return value


def _whole(value: Any) -> int:
    if type(value) is float and value.is_integer():
        # JSON has one kind of number: 1.0 is whole, as JSON Schema has it too.
        return int(value)
    if type(value) is not int:
        raise _wrong(_NAMES[int], value)
    return value


def _finite(value: Any) -> float:
    # JSON numbers have no largest value: 1e999 reads as infinity, 10**400 as an int no float can hold.
    if type(value) not in (float, int) or abs(value) > sys.float_info.max:
        raise _wrong(_NAMES[float], value)
    return float(value)


def _wrong(expected: str, value: Any) -> _UnfitError:
    shown = json.dumps(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"
    return _UnfitError(f"`{{}}` must be {expected}, got {_braced(shown[:80])}")


def _braced(text: str) -> str:
    """Text that `str.format` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")
