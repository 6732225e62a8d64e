"""`legibility compare` over runs of any Trainer, and over what Weights & Biases has of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import loader, make_module
from wandb_stand_in import Artifact, Run, StandIn, serving

from legibility.lightning_plugins import InterpretabilityReport, StudentLegibility
from legibility.recipes._cli import main
from legibility.students import MLPStudent
from legibility.tradeoff import read_records

Captured = pytest.CaptureFixture[str]


def fit(folder: Path, arm: str, seed: int, strength: float) -> None:
    """A user's own program: no recipe, records wherever the trainer logs."""
    torch.manual_seed(seed)
    report = InterpretabilityReport(
        arm=arm,
        seed=seed,
        queries=32,
        held_out=[MLPStudent(width=8)],
        passes=1,
        random_init_control=False,
        progress=False,
    )
    students = [StudentLegibility(strength=strength, students=[MLPStudent(width=4)])] if strength else []
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, callbacks=[*students, report], **quiet
    )
    trainer.fit(make_module(pl), loader(), loader())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of three arms, trained without a recipe."""
    folder = tmp_path_factory.mktemp("own")
    for seed in (0, 1):
        for arm, strength in (("plain", 0.0), ("legibility-0.3", 0.3), ("legibility-1", 1.0)):
            fit(folder, arm, seed, strength)
    return folder


def test_runs_of_any_trainer_are_compared(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(runs), "--html", "own.html"]) == 0
    printed = capsys.readouterr().out
    assert "runs without a recipe · 3 arms, 6 runs · change against plain" in printed
    assert "legibility-0.3" in printed and "Methods at equal task loss" in printed
    assert "legibility-1" in Path("own.html").read_text()


def test_a_project_is_compared(runs: Path, tmp_path: Path) -> None:
    """The command, with the real `wandb.Api` against a server on this machine."""
    pytest.importorskip("plotly")
    every = [
        Run(f"run{place}", [Artifact(f"run-record-{place}", {"record.json": Path(source).read_bytes()})])
        for place, (source, _) in enumerate(read_records(runs).records)
    ]
    environment = {**os.environ, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    environment |= {name: str(tmp_path) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")}
    environment.pop("WANDB_MODE", None)
    command = [sys.executable, "-P", "-m", "legibility.recipes._cli", "compare", "people/demo"]
    with serving(StandIn([*every, Run("broken", state="crashed")])) as stand_in:
        environment["WANDB_BASE_URL"] = stand_in.url
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "3 arms, 6 runs" in done.stdout and (tmp_path / "tradeoff.html").exists()
    assert "Left out: shown broken" in done.stdout and "state: crashed" in done.stdout


def test_nothing_to_compare_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "offline-run-20260101_000000-abc"
    folder.mkdir()
    (folder / "run-abc.wandb").write_bytes(b"")
    assert main(["compare", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"no run record in {folder}: {folder}: it" in said
