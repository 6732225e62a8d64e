"""Measures what a run's budget of time left out, from its checkpoint, and completes its record."""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from legibility.recipes._find import find, load
from legibility.recipes._folder import CHECKPOINT, CONFIG, read_origin
from legibility.tradeoff import RunRecord, ScoreEntry, load_record, save_record
from legibility.tradeoff.model_page import load_picture, picture_path, save_picture

_ASK_STUDENTS = ("median_saving", "error_predictability", "patch_through", "student_cka")


def measure_again(path: Path) -> int:
    """Takes every score that has no value yet, without a limit of time, and draws the pictures anew.

    What has a value is left as it is; so are cost and date. Students that took part in the training stay out: where
    there were any, scores that ask students are left as they are too.

    Args:
        path: The record, in the folder of a run of a recipe: with its configuration and checkpoint.

    Returns:
        How many scores have a value now that had none.

    Raises:
        FileNotFoundError: The configuration or the checkpoint is missing.
        ValueError: The run belongs to no recipe, or is a control.
    """
    record = load_record(path)
    for name in (CONFIG, CHECKPOINT):
        if not (path.parent / name).is_file():
            raise FileNotFoundError(
                f"{path.parent / name} is missing: only a finished run of a recipe is measured again"
            )
    if record.recipe is None:
        raise ValueError(f"{path} belongs to no recipe, so its model can't be built: call the report's `measure`")
    if record.control_of is not None:
        raise ValueError(f"{path} is a control: measure the run of {record.control_of.arm} again")
    with tempfile.TemporaryDirectory() as folder:
        measured = _measured(path.parent, record, Path(folder))
        known = {(entry.name, entry.family) for entry in record.scores if entry.value is not None}
        new = {(entry.name, entry.family): entry for entry in _may_be_filled(record, measured)}
        found = picture_path(Path(folder) / path.name)
        if found.is_file():
            picture = load_picture(found)
            kept = [student for student in picture.students if student.family not in record.students]
            save_picture(replace(picture, students=kept), picture_path(path))
    scores = [new.pop((e.name, e.family), e) if (e.name, e.family) not in known else e for e in record.scores]
    scores += [entry for key, entry in new.items() if key not in known]
    filled = sum(entry.value is not None for entry in scores) - len(known)
    note = "Scores that the budget of time had left out were measured later, from the checkpoint."
    notes = [*record.notes, note] if filled and note not in record.notes else list(record.notes)
    save_record(replace(record, scores=scores, notes=notes), path)
    return filled


def _may_be_filled(record: RunRecord, measured: RunRecord) -> list[ScoreEntry]:
    """Scores by students are a mean over those that were asked then; and none of these may have taken part."""
    asking = {*_ASK_STUDENTS, *(e.name for e in (*record.scores, *measured.scores) if e.family is not None)}
    return [entry for entry in measured.scores if not record.students or entry.name not in asking]


def _measured(folder: Path, record: RunRecord, out: Path) -> RunRecord:
    from pytorch_lightning.cli import LightningCLI

    from legibility.lightning_plugins.report.choice._budget import Budget
    from legibility.recipes._engine import parsed_cli

    found = find(read_origin(folder).get("recipe", str(record.recipe)))
    load(found.module, found.path)
    cli = parsed_cli(LightningCLI, _arguments(folder))
    cli.model.load_state_dict(torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"])
    callbacks: Sequence[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]
    report: Any = next(c for c in callbacks if type(c).__name__ == "InterpretabilityReport")
    report.progress = False
    report.folder, report.budget = str(out), Budget(report.budget.share, float("inf"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report.measure(cli.trainer, cli.model, cli.datamodule)
    return load_record(report.path)


def _arguments(folder: Path) -> list[str]:
    return ["--config", str(folder / CONFIG), "--trainer.logger=false", f"--trainer.default_root_dir={folder}"]
