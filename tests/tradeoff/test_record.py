"""The run record: what is written is read back; what is broken is said."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legibility.tradeoff import (
    SCHEMA,
    ControlOf,
    CostEntry,
    RunRecord,
    ScoreEntry,
    find_records,
    load_record,
    save_record,
)

Make = Callable[..., RunRecord]


def full(record: Make, score: Callable[..., ScoreEntry]) -> RunRecord:
    return record(
        "temperature ☃ </script>",
        -3,
        1.25,
        [
            score("held_out_kl", 0.5, control=0.9, control_name="random-init"),
            score("held_out_kl", None, family="lstm", reason="it diverged", version="2"),
        ],
        accuracy=0.5,
        control=ControlOf("temperature", "plain", "legibility-0.3", 1.1),
        recipe=None,
        strengths={"legibility": 0.3},
        students=["conv", "gru"],
        cost=CostEntry(None, None, 0.1, None, None, {"StudentLegibility": 0.02, "L1Sparsity": None}, 7),
        settings={"nested": {"list": [1, 2.5, None, True, "x"]}},
        guards={"rms": 1.0, "rank": None},
        notes=["a student was dropped"],
    )


def test_round_trip_of_every_field(tmp_path: Path, record: Make, score: Callable[..., ScoreEntry]) -> None:
    original = full(record, score)
    path = save_record(original, tmp_path / "new folder" / "run.json")
    assert load_record(path) == original
    assert next(iter(json.loads(path.read_text()))) == "schema"


def test_saving_twice_writes_the_same_bytes(tmp_path: Path, record: Make) -> None:
    one, two = (save_record(record(scores={"held_out_kl": 0.1 + 0.2}), tmp_path / name) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_finite_value_becomes_null_with_a_reason(
    tmp_path: Path, record: Make, score: Callable[..., ScoreEntry], bad: float
) -> None:
    scores = [
        score("held_out_kl", bad),
        score("code_length", bad, reason="constant model"),
        score("fvu", 1.0, control=bad),
    ]
    path = save_record(record(loss=bad, scores=scores, guards={"rank": bad}), tmp_path / "run.json")
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    loaded = load_record(path)
    assert loaded.task.loss is None and loaded.guards == {"rank": None}
    first, second, third = loaded.scores
    assert (first.value, first.reason) == (None, f"not finite: {bad}")
    assert (second.value, second.reason) == (None, "constant model")
    assert (third.value, third.control) == (1.0, None)


def test_numpy_numbers_are_written_as_numbers(tmp_path: Path, record: Make) -> None:
    numpy = pytest.importorskip("numpy")
    path = save_record(record(seed=numpy.int64(3), loss=numpy.float32(0.5)), tmp_path / "run.json")
    assert (load_record(path).seed, load_record(path).task.loss) == (3, 0.5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"settings": {"model": object()}}, TypeError, r"`settings\.model` must be a JSON value"),
        ({"settings": {1: "x"}}, TypeError, r"`settings` must have strings as keys"),
        (
            {"strengths": {"legibility": float("nan")}},
            ValueError,
            r"`strengths\.legibility` must be a finite number, got null",
        ),
        ({"arm": ""}, ValueError, "`arm` must not be empty"),
        ({"seed": 1.5}, ValueError, "`seed` must be a whole number, got 1.5"),
        ({"seed": True}, ValueError, "`seed` must be a whole number, got true"),
        ({"created": "yesterday"}, ValueError, "`created` must be an ISO 8601 time, got 'yesterday'"),
    ],
)
def test_what_could_not_be_read_is_not_written(
    tmp_path: Path, record: Make, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    broken = dataclasses.replace(record(), **change)
    with pytest.raises(error, match=message):
        save_record(broken, tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_a_score_written_twice_is_refused(tmp_path: Path, record: Make, score: Callable[..., ScoreEntry]) -> None:
    twice = record(scores=[score("fvu", 1.0), score("fvu", 1.0, family="lstm"), score("fvu", 2.0)])
    with pytest.raises(ValueError, match=r"`scores\[2\]`: 'fvu' of family None is there twice"):
        save_record(twice, tmp_path / "run.json")


def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_record(record(seed=1), tmp_path / "run.json")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(os, name, fail)
            save_record(record(seed=2), path)
        assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
        assert path.read_bytes() == before


def test_every_truncation_is_an_error_that_names_the_file(tmp_path: Path, record: Make) -> None:
    data = save_record(record(scores={"held_out_kl": 0.5}), tmp_path / "run.json").read_bytes().rstrip()
    broken = tmp_path / "broken.json"
    for length in range(0, len(data), 7):
        broken.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"broken\.json: not a run record"):
            load_record(broken)


def edited(tmp_path: Path, record: Make, edit: Callable[[Any], Any]) -> Path:
    path = save_record(record(scores={"held_out_kl": 0.5}), tmp_path / "run.json")
    payload = json.loads(path.read_text())
    edit(payload)
    path.write_text(json.dumps(payload))
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda p: p.update(schema="legibility.run-record/2"),
            r"run\.json: `schema` is 'legibility.run-record/2', this",
        ),
        (lambda p: p.update(schema="other/1"), r"run\.json: `schema` is 'other/1'"),
        (lambda p: p.pop("schema"), r"run\.json: not a run record: expected a JSON object with `schema`"),
        (lambda p: p.pop("seed"), r"run\.json: field `seed` is missing"),
        (lambda p: p.pop("created"), r"run\.json: field `created` is missing"),
        (lambda p: p["task"].pop("loss"), r"run\.json: field `task\.loss` is missing"),
        (lambda p: p["scores"][0].pop("unit"), r"run\.json: field `scores\[0\]\.unit` is missing"),
        (lambda p: p.update(extra=1), r"run\.json: `extra` is no field of legibility.run-record/1"),
        (
            lambda p: p["scores"][0].update(direction="up"),
            r"`scores\[0\]\.direction` must be one of 'lower', 'higher', got",
        ),
        (lambda p: p["scores"][0].update(value="0.5"), r'`scores\[0\]\.value` must be a finite number, got "0.5"'),
        (lambda p: p["scores"][0].update(value=True), r"`scores\[0\]\.value` must be a finite number, got true"),
        (lambda p: p["scores"][0].update(value=10**400), r"`scores\[0\]\.value` must be a finite number"),
        (lambda p: p["scores"][0].update(trained_on=0), r"`scores\[0\]\.trained_on` must be true or false, got 0"),
        (lambda p: p.update(scores={}), r"`scores` must be a list, got dict of 0"),
        (lambda p: p.update(task=[]), r"`task` must be an object, got list of 0"),
        (lambda p: p.update(strengths=[1]), r"`strengths` must be an object"),
        (lambda p: p.update(students="conv"), r'`students` must be a list, got "conv"'),
        (lambda p: p.update(versions={"torch": 2}), r"`versions\.torch` must be a string, got 2"),
        (lambda p: p.update(control_of={"kind": "magic", "arm": "plain"}), r"`control_of\.kind` must be one of"),
        (lambda p: p.update(arm=None), r"`arm` must be a string, got null"),
    ],
)
def test_errors_name_file_and_field(
    tmp_path: Path, record: Make, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_record(edited(tmp_path, record, edit))


def test_fields_with_defaults_may_be_left_out(tmp_path: Path, record: Make) -> None:
    def edit(payload: dict[str, Any]) -> None:
        for name in ("notes", "guards", "settings", "control_of"):
            del payload[name]
        for name in ("family", "version", "reason"):
            del payload["scores"][0][name]

    assert load_record(edited(tmp_path, record, edit)) == record(scores={"held_out_kl": 0.5})


@pytest.mark.parametrize("text", ["[]", "3", "null", '"legibility.run-record/1"', "\xff", "", "[" * 100_000])
def test_other_json_is_not_a_run_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"run\.json: not a run record"):
        load_record(tmp_path / "run.json")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_are_refused(tmp_path: Path, record: Make, constant: str) -> None:
    path = save_record(record(loss=123.5), tmp_path / "run.json")
    path.write_text(path.read_text().replace("123.5", constant))
    with pytest.raises(ValueError, match="run.json"):
        load_record(path)


def test_find_reads_folders_in_natural_order_and_passes_over_other_json(tmp_path: Path, record: Make) -> None:
    for seed in (10, 2, 1):
        save_record(record(seed=seed), tmp_path / "runs" / f"plain-{seed}.json")
    save_record(record("b"), tmp_path / "runs" / "deep" / "er" / "run.json")
    (tmp_path / "runs" / "other.json").write_text('{"schema": "https://example.org"}')
    (tmp_path / "runs" / "mentions.json").write_text('{"note": "legibility.run-record/1"}')
    (tmp_path / "runs" / "broken.json").write_text('{"half": ')
    (tmp_path / "runs" / "binary.json").write_bytes(b"\xff\x00legibility.run-record")
    (tmp_path / "runs" / "notes.txt").write_text(SCHEMA)
    found = find_records(tmp_path / "runs")
    assert [(path.name, run.arm, run.seed) for path, run in found] == [
        ("run.json", "b", 0),
        ("plain-1.json", "plain", 1),
        ("plain-2.json", "plain", 2),
        ("plain-10.json", "plain", 10),
    ]


def test_find_takes_each_file_once(tmp_path: Path, record: Make) -> None:
    path = save_record(record(), tmp_path / "run.json")
    assert len(find_records([tmp_path, path, str(path), tmp_path])) == 1
    assert find_records([]) == []


def test_find_refuses_truncated_and_foreign_records_and_what_is_not_there(tmp_path: Path, record: Make) -> None:
    path = save_record(record(), tmp_path / "run.json")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"run\.json: not a run record: .*truncated"):
        find_records(tmp_path)
    path.write_bytes(whole.replace(b"run-record/1", b"run-record/9"))
    with pytest.raises(ValueError, match=r"run\.json: `schema` is 'legibility.run-record/9'"):
        find_records(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: not a run record"):
        find_records(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist"):
        find_records(tmp_path / "nowhere")


def test_records_are_frozen(record: Make) -> None:
    for part in (record(), record().task, record().cost):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, "other")
