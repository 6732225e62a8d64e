"""The run record's JSON schema, for programs that don't use this package.

`tradeoff/run_record.schema.json` is this module's output; after a change of the dataclasses write it again:

    python -c "from legibility.tradeoff.records._schema import text; print(text(), end='')" > tradeoff/run_record.schema.json
"""

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from legibility.tradeoff._record import SCHEMA, ControlOf, CostEntry, RunRecord, ScoreEntry, TaskEntry

_SIMPLE = {str: "string", bool: "boolean", int: "integer", float: "number"}


def json_schema() -> dict[str, Any]:
    """The schema of run records (JSON Schema, draft 2020-12), made from the dataclasses and their docstrings.

    It is also shipped as `run_record.schema.json` beside this package. Two rules of `load_record` can't be said in it:
    `created` must be an ISO 8601 time, and no score may be there twice with the same family.

    Example:
        >>> json_schema()["properties"]["seed"]
        {'type': 'integer', 'description': 'the training seed; arms are compared seed by seed.'}
    """
    parts = {cls.__name__: _object(cls) for cls in (TaskEntry, ScoreEntry, CostEntry, ControlOf)}
    whole = _object(RunRecord)
    whole["properties"]["schema"] = {"const": SCHEMA, "description": "the format's name and version."}
    whole["properties"]["arm"]["minLength"] = 1
    whole["required"] = [*whole["required"], "created", "schema"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('.', ':').replace('/', ':')}",
        "title": SCHEMA,
        **whole,
        "$defs": parts,
    }


def _object(cls: Any) -> dict[str, Any]:
    hints, words = get_type_hints(cls), _arguments(cls)
    fields = dataclasses.fields(cls)
    required = [
        item.name
        for item in fields
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    return {
        "description": (inspect.getdoc(cls) or "").partition("\n")[0],
        "type": "object",
        "properties": {item.name: {**_type(hints[item.name]), "description": words[item.name]} for item in fields},
        "required": required,
        "additionalProperties": False,
    }


def _type(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        found = _type(inner)
        if set(found) == {"type"}:
            return {"type": [found["type"], "null"]}
        return {"anyOf": [found, {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _type(arguments[0])}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(arguments[1]) or True}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{getattr(hint, '__name__', '')}"}
    return {"type": _SIMPLE[hint]}


def _arguments(cls: type) -> dict[str, str]:
    """What the docstring's `Args` say of each field, on one line."""
    text = (inspect.getdoc(cls) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def text() -> str:
    """The schema as the shipped file holds it."""
    return json.dumps(json_schema(), indent=1) + "\n"
