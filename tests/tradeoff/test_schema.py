"""The published JSON schema, the dataclasses and our own check say the same."""

import copy
import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from legibility.tradeoff import ControlOf, RunRecord, ScoreEntry, json_schema, load_record, save_record
from legibility.tradeoff.records._schema import text

Make = Callable[..., RunRecord]
WRITE = (
    "write it again as tradeoff/records/_schema.py says, and count the format's version up if old files don't fit it"
)


def test_the_published_schema_is_that_of_the_dataclasses() -> None:
    shipped = files("legibility.tradeoff").joinpath("run_record.schema.json").read_text("utf-8")
    assert shipped == text(), WRITE
    assert json.loads(shipped) == json_schema()


def test_every_field_is_described() -> None:
    schema = json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert part["description"] and all(field["description"] for field in part["properties"].values())


@pytest.fixture
def oracle() -> Callable[[Any], bool]:
    """Whether the `jsonschema` library accepts a payload."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())

    def accepts(payload: Any) -> bool:
        return bool(validator.is_valid(payload))

    return accepts


@pytest.fixture
def payload(tmp_path: Path, record: Make, score: Callable[..., ScoreEntry]) -> dict[str, Any]:
    """A run record with something in every field."""
    full = record(
        "temperature",
        3,
        1.25,
        [
            score("kl", 0.5, control=0.9, control_name="random-init"),
            score("kl", None, family="lstm", reason="diverged"),
        ],
        accuracy=0.5,
        control=ControlOf("temperature", "plain", "a-0.3", 1.1),
        strengths={"a": 0.3},
        students=["conv"],
        settings={"nested": {"list": [1, None]}},
        guards={"rms": 1.0, "rank": None},
        notes=["a student was dropped"],
    )
    found: dict[str, Any] = json.loads(save_record(full, tmp_path / "full.json").read_text())
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a payload."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, item in items for found in places(item, (*path, key))]


def trials_at(payload: dict[str, Any], path: tuple[Any, ...], values: list[Any]) -> list[dict[str, Any]]:
    """The payload without what is at `path`, with each of `values` in its place, and with a stranger beside it."""
    result = []
    for change in range(len(values) + 2):
        trial = copy.deepcopy(payload)
        parent: Any = trial
        for key in path[:-1]:
            parent = parent[key]
        if change < len(values):
            parent[path[-1]] = values[change]
        elif change == len(values):
            parent.pop(path[-1])
        elif isinstance(path[-1], str):
            parent[f"{path[-1]}s"] = 1
        result.append(trial)
    return result


def test_the_oracle_and_we_accept_and_refuse_the_same(
    tmp_path: Path, payload: dict[str, Any], oracle: Callable[[Any], bool]
) -> None:
    """Every field, once without it, once with each kind of JSON value in its place, once with a stranger beside it."""
    values: list[Any] = [
        None,
        True,
        0,
        1.0,
        1.5,
        -3,
        "",
        "lower",
        "temperature",
        "2026-05-01",
        [],
        ["x"],
        [1],
        {},
        {"x": 1},
    ]
    rng = random.Random(0)
    file = tmp_path / "changed.json"
    said = {True: 0, False: 0}
    for path in places(payload):
        for trial in trials_at(payload, path, rng.sample(values, 4)):
            file.write_text(json.dumps(trial))
            try:
                load_record(file)
            except ValueError as error:
                message = str(error)
                # What a schema can't say: a time that is none, and a score that is there twice.
                if "`created` must be an ISO 8601 time" in message or "is there twice" in message:
                    continue
                assert not oracle(trial), f"we refuse what the schema accepts: {message}"
                assert message.startswith(str(file)) and ("`" in message)
                said[False] += 1
            else:
                assert oracle(trial), f"we accept at {path} what the schema refuses: {trial}"
                said[True] += 1
    assert min(said.values()) > 50  # both answers were put to the test


def test_a_newer_format_asks_for_a_newer_version(tmp_path: Path, payload: dict[str, Any]) -> None:
    file = tmp_path / "new.json"
    for schema, way_out in (
        ("legibility.run-record/2", "update legibility"),
        ("legibility.run-record/0", "or run it again"),
    ):
        file.write_text(json.dumps({**payload, "schema": schema}))
        with pytest.raises(ValueError, match=way_out):
            load_record(file)


def test_a_whole_number_may_be_written_with_a_point(tmp_path: Path, payload: dict[str, Any]) -> None:
    file = tmp_path / "float.json"
    file.write_text(json.dumps({**payload, "seed": 3.0}))
    assert type(load_record(file).seed) is int and load_record(file).seed == 3
