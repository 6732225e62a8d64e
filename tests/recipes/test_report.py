"""`legibility report`: one model's scores in the terminal, its page, and what the budget of time left out."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pictures import full_picture, full_record
from tiny import loader, make_module

from legibility.lightning_plugins import InterpretabilityReport
from legibility.lightning_plugins.report.choice import _applicable
from legibility.recipes import _measure_again
from legibility.recipes._cli import main
from legibility.students import LinearStudent
from legibility.tradeoff import load_record, save_record
from legibility.tradeoff.model_page import save_picture

Captured = pytest.CaptureFixture[str]


def test_a_run_is_shown_by_its_folder_or_its_record(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    save_record(full_record(), tmp_path / "run" / "record.json")
    save_picture(full_picture(), tmp_path / "run" / "picture.json.gz")
    for source in (tmp_path / "run", tmp_path, tmp_path / "run" / "record.json"):
        (tmp_path / "run" / "model.html").unlink(missing_ok=True)
        assert main(["report", str(source)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "constant 0.9 !" in printed and "would take about 9 s" in printed
        assert "Not here" not in (tmp_path / "run" / "model.html").read_text()
    elsewhere = tmp_path / "else" / "page.html"
    assert main(["report", str(tmp_path / "run"), "--html", str(elsewhere)]) == 0
    assert elsewhere.is_file() and f"Page: {elsewhere}" in capsys.readouterr().out


def test_a_record_without_pictures_has_a_page_that_says_so(tmp_path: Path, capsys: Captured) -> None:
    save_record(full_record(), tmp_path / "record.json")
    assert main(["report", str(tmp_path)]) == 0
    assert "there is no picture.json.gz beside the record" in (tmp_path / "model.html").read_text()


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    for seed in range(6):
        save_record(full_record(), tmp_path / "many" / f"seed-{seed}" / "record.json")
    for source, said in (("nowhere", "does not exist"), ("empty", "no run record"), ("many", "holds 6 runs")):
        assert main(["report", str(tmp_path / source)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert main(["report", str(tmp_path / "many" / "seed-0"), "--measure"]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err


def test_what_was_left_out_is_filled_and_what_was_measured_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def fit(folder: Path, **options: Any) -> InterpretabilityReport:
        torch.manual_seed(0)
        report = InterpretabilityReport(
            arm="plain", recipe="digits", folder=str(folder), queries=64, passes=1, held_out=[LinearStudent()],
            random_init_control=False, progress=False, scores=["canonical_gini", "lens_gap"], **options,
        )  # fmt: skip
        quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[report], default_root_dir=folder, **quiet)
        trainer.fit(make_module(pl), loader(64), loader(64))
        return report

    fit(tmp_path, budget_seconds=0.0, page=False)
    for name in ("config.yaml", "last.ckpt"):
        (tmp_path / name).touch()
    before = load_record(tmp_path / "record.json")

    def measured(folder: Path, record: Any, out: Path) -> Any:
        assert folder == tmp_path and record == before
        fit(out, budget_seconds=float("inf"))
        payload = json.loads((out / "record.json").read_text())
        for entry in payload["scores"]:
            if entry["name"] == "gini":
                entry["value"] = 0.123  # of another protocol, say: what has a value is left as it is
        (out / "record.json").write_text(json.dumps(payload))
        return load_record(out / "record.json")

    monkeypatch.setattr(_measure_again, "_measured", measured)
    assert main(["report", str(tmp_path), "--measure"]) == 0
    after = load_record(tmp_path / "record.json")
    old, new = ({(e.name, e.family): e for e in record.scores} for record in (before, after))
    assert old["canonical_gini", None].value is None and new["canonical_gini", None].value is not None
    assert "no residual stream" in (new["lens_gap", None].reason or ""), "a reason that is not about time"
    assert new["gini", None] == old["gini", None] and list(new) == list(old)
    assert (after.cost, after.created) == (before.cost, before.created)
    assert "measured later" in after.notes[-1] and "1 scores have a value now" in capsys.readouterr().out
    assert (tmp_path / "model.html").is_file() and (tmp_path / "picture.json.gz").is_file()


def test_an_own_recipe_is_measured_again_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert main(["cp", "digits", "of_mine.py"]) == 0
    settings = (
        Path("of_mine.yaml").read_text().replace("        page:", "        scores: [canonical_gini]\n        page:")
    )
    Path("of_mine.yaml").write_text(settings.replace("queries: 360", "passes: 1\n        budget_seconds: 0"))
    assert main(["run", "./of_mine.py", "--seed", "0", "--trainer.max_epochs=1"]) == 0
    record = tmp_path / "runs/of_mine/quick/plain/seed-0/record.json"
    assert {e.name: e.value for e in load_record(record).scores}["canonical_gini"] is None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["report", str(record), "--measure"]) == 0, capsys.readouterr().err
    assert {e.name: e.value for e in load_record(record).scores}["canonical_gini"] is not None
    sys.modules.pop("of_mine")


def test_students_that_took_part_are_not_asked_later(tmp_path: Path) -> None:
    record = full_record()
    asking = {_applicable.NAMES.get(name, name) for name in _applicable._BY_STUDENTS}
    families = [replace(record.scores[0], name="held_out_kl", family=family) for family in (None, "lstm")]
    mine = [*record.scores, *families, *(replace(record.scores[0], name=name, family=None) for name in asking)]
    names = {entry.name for entry in _measure_again._may_be_filled(record, replace(record, scores=mine))}
    assert record.students and "canonical_gini" in names
    assert not names & {"held_out_kl", *asking}
    alone = replace(record, students=[], scores=mine)
    assert _measure_again._may_be_filled(alone, alone) == mine
