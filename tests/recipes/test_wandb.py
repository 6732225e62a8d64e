"""Recipes in Weights & Biases: how runs are filed, where models come from, what agents run, what is published."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console

from legibility.recipes._cli import main
from legibility.recipes._engine import run
from legibility.recipes._plan import Job, plan
from legibility.recipes._wandb_publish import publish, wandb_report
from legibility.recipes._wandb_run import WandbRun, logger_entry
from legibility.recipes._wandb_sweep import offer_sweeps, sweep_config
from legibility.tradeoff import Comparison, CostEntry, RunRecord, ScoreEntry, TaskEntry, compare

wandb = pytest.importorskip("wandb")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """W&B offline; nothing leaves the test's folder."""
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield tmp_path
    wandb.finish()
    wandb.teardown()


def inspect(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [os.path.join(os.path.dirname(sys.executable), "wandb"), "leet", "inspect", str(file), "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def plain_digits(out: Path) -> Job:
    short = ("--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1")
    report = ("--trainer.callbacks.passes=1", "--trainer.callbacks.random_init_control=false")
    (job,) = plan(["digits"], arms=["plain"], seeds=[1], out=out, overrides=[*short, *report])
    return replace(job, project="ours")


def test_a_run_is_filed_by_recipe_arm_and_seed_and_holds_its_model(offline: Path) -> None:
    job = plain_digits(offline / "runs")
    assert run(job) == ""
    assert job.state() == "finished"
    records = inspect(job.folder)
    (started,) = of_type(records, "run")
    assert (started["project"], started["display_name"]) == ("ours", "digits/quick/plain/seed-1")
    assert (started["run_group"], started["job_type"]) == ("digits/quick/plain", "arm")
    assert started["tags"] == ["digits", "quick", "plain", "arm"]
    artifacts = {artifact["name"]: artifact for artifact in of_type(records, "artifact")}
    model = artifacts["model-digits-quick-plain-seed-1"]
    assert (model["type"], model["manifest"]["contents"][0]["path"]) == ("model", "last.ckpt")
    (record,) = [artifact for artifact in artifacts.values() if artifact["type"] == "run-record"]
    assert json.loads(record["metadata"])["model"] == "model-digits-quick-plain-seed-1"
    assert of_type(records, "exit")[-1].get("exit_code", 0) == 0
    assert wandb.run is None
    # A run that is run again begins anew: what was killed half-way is not synchronised one day.
    (job.folder / "digest.txt").unlink()
    assert run(job) == ""
    assert len(list(job.folder.glob("wandb/offline-run-*"))) == 1


def test_logging_to_wandb_is_the_same_run(toy: Path) -> None:
    (job,) = plan(["./toy.py"], arms=["plain"], seeds=[0], out=Path("runs"))
    run(job)
    assert replace(job, project="ours").state() == "finished"


@pytest.mark.parametrize("when", ["start", "during"])
def test_a_run_goes_on_without_a_broken_wandb(toy: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    class Raising:
        offline, disabled = False, False

        def __getattr__(self, name: str) -> Any:
            raise ConnectionError(f"no {name} today")

    def init(**_: Any) -> Any:
        if when == "start":
            raise wandb.errors.UsageError("not logged in")
        return Raising()

    monkeypatch.setattr(wandb, "init", init)
    toy.write_text(
        toy.read_text().replace(
            "        self.last = float(loss)", "        self.log('loss', loss); self.last = float(loss)"
        )
    )
    toy.with_suffix(".yaml").write_text(toy.with_suffix(".yaml").read_text() + "  log_every_n_steps: 1\n")
    (job,) = plan(["./toy.py"], arms=["plain"], seeds=[0], out=Path("runs"))
    note = run(replace(job, project="ours"))
    assert note.startswith("Weights & Biases failed: " + ("UsageError: not" if when == "start" else "ConnectionError"))
    assert job.state() == "finished"
    assert (job.folder / "last.ckpt").is_file()


class _Online:
    """A run that is online, as far as it is asked."""

    offline, disabled, id = False, False, "abc"

    def __init__(self) -> None:
        self.used: list[str] = []
        self.logged: list[Any] = []
        self.codes: list[int] = []

    def use_artifact(self, name: str) -> None:
        self.used.append(name)

    def log_artifact(self, artifact: Any) -> None:
        self.logged.append(artifact)

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)


def test_a_run_names_the_model_that_it_starts_from(tmp_path: Path) -> None:
    online = _Online()
    logger = WandbLogger(experiment=online)  # type: ignore[arg-type]
    trainer = Trainer(logger=[logger], accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    needs = plan(["stdlib_lm"], arms=["temperature-0.3"], seeds=[4], out=tmp_path)
    control = needs[-1]
    assert control.start is not None
    (control.start / "last.ckpt").parent.mkdir(parents=True)
    (control.start / "last.ckpt").write_text("weights")
    connected = WandbRun(trainer)
    with connected.open():
        connected.use_model(control.start)
        connected.keep_model(control.start / "last.ckpt")
    assert online.used == ["model-stdlib_lm-quick-plain-seed-4:latest"]
    assert [artifact.name for artifact in online.logged] == ["model-stdlib_lm-quick-plain-seed-4"]
    with pytest.raises(KeyboardInterrupt), connected.open():
        raise KeyboardInterrupt
    assert online.codes == [0, 1]
    assert connected.notes == []
    kinds = [logger_entry(replace(job, project="p"))["dict_kwargs"]["job_type"] for job in needs]
    assert kinds == ["base", "arm", "arm", "control"]


def test_a_sweep_for_agents_says_what_they_run(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = plan(
        ["stdlib_lm"],
        arms=["plain", "temperature-0.3"],
        seeds=[0, 7],
        out=Path("o"),
        overrides=["--trainer.max_steps=9"],
    )
    config = sweep_config(jobs, "ours")
    assert config["parameters"] == {
        "arm": {"values": ["plain", "legibility-0.3", "temperature-0.3"]},
        "seed": {"values": [0, 7]},
    }
    assert config["command"] == [
        *("${env}", "legibility", "run", "stdlib_lm", "--preset=quick", "--out=o", "--wandb=ours"),
        *("${args}", "--trainer.max_steps=9"),
    ]

    registered: list[Any] = []

    def register(sweep: Any, project: str) -> str:
        registered.append((sweep, project))
        return "me/ours/x1"

    monkeypatch.setattr(wandb, "sweep", register)
    assert main(["sweep", "./toy.py", "digits", "--seeds", "2", "--wandb-sweep", "ours"]) == 0
    assert [project for _, project in registered] == ["ours", "ours"]
    written = yaml.safe_load(Path("runs/toy/quick/wandb-sweep.yaml").read_text())
    assert written == registered[0][0]
    assert written["command"][3] == "./toy.py" and written["parameters"]["seed"] == {"values": [0, 1]}
    assert not list(Path("runs").rglob("record.json")), "registering runs nothing"


def test_a_sweep_that_is_not_registered_is_on_disk(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "sweep", refuse)
    jobs = plan(["./toy.py"], out=Path("runs"))
    assert offer_sweeps(jobs, "ours", Console()) == 1
    assert Path("runs/toy/quick/wandb-sweep.yaml").is_file()
    assert "wandb sweep --project ours runs/toy/quick/wandb-sweep.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_an_agents_command_is_one_run_of_the_sweep(toy: Path, offline: Path) -> None:
    text = toy.read_text().replace(
        '    presets={\n        "quick"', '    base=Base("plain", 2),\n    presets={\n        "quick"'
    )
    toy.write_text(text)
    config = sweep_config(plan(["./toy.py"], out=Path("runs")), "ours")
    # As `wandb agent` does it.
    (offline / "sweep.yaml").write_text("wandb_version: 1\narm:\n  value: decay\nseed:\n  value: 1\n")
    told = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "WANDB_SWEEP_PARAM_PATH": str(offline / "sweep.yaml")}
    args = ["--arm=decay", "--seed=1"]
    filled = [part for chunk in config["command"][2:] for part in (args if chunk == "${args}" else [chunk])]
    command = [sys.executable, "-m", "legibility.recipes._cli", *filled]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("runs/toy/quick/decay/seed-1/record.json").is_file()
    assert Path("runs/toy/quick/base/seed-1/last.ckpt").is_file()
    assert [path.name for path in Path("runs").rglob("run-*.wandb")] == ["run-r1.wandb"], (
        "what it needs is no run of it"
    )


def compared() -> Comparison:
    def made(arm: str, seed: int, loss: float, kl: float) -> RunRecord:
        score = ScoreEntry("held_out_kl", kl, "nats", "lower", None, None, trained_on=False)
        task = TaskEntry("cross-entropy", loss, None, None, None, "test")
        return RunRecord(arm, seed, "demo", {}, [], task, [score], CostEntry(None, None, None, None, None, {}, 1), {})

    runs = [("plain", 2.0, 0.5), ("mine", 2.1, 0.3), ("worse", 2.2, 0.6)]
    return compare([made(arm, seed, loss + seed / 100, kl) for arm, loss, kl in runs for seed in (0, 1)])


def test_a_comparison_is_published_with_charts_and_page(
    offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(offline)
    (offline / "tradeoff.html").write_text("<p>page</p>")
    assert publish(compared(), offline / "tradeoff.html", "ours", Console()) == 0
    records = inspect(offline)
    (started,) = of_type(records, "run")
    assert (started["project"], started["job_type"]) == ("ours", "comparison")
    (row,) = of_type(records, "history")
    assert {key.rpartition(".")[0] for key in row["item"] if "." in key} == {
        "tradeoff/page",
        "tradeoff/demo/runs",
        "tradeoff/demo/verdicts",
        "tradeoff/demo/held_out_kl_table",
        "tradeoff/demo/held_out_kl by arm",
    }
    (chart,) = [update["update"] for update in of_type(records, "config") if "held_out_kl" in str(update)]
    assert chart["_wandb.visualize.tradeoff/demo/held_out_kl"]["panel_config"]["panelDefId"] == "wandb/scatter/v0"
    (figure,) = offline.glob("wandb/offline-run-*/files/media/plotly/**/*.json")
    traces = {trace["name"]: trace for trace in json.loads(figure.read_text())["data"]}
    assert list(traces) == ["plain", "mine", "worse", "front of the means"]
    assert traces["front of the means"]["x"] == pytest.approx([2.005, 2.105])  # "worse" is beaten in both
    artifacts = {artifact["name"]: artifact["manifest"]["contents"] for artifact in of_type(records, "artifact")}
    assert [file["path"] for file in artifacts["trade-off"]] == ["tradeoff.html"]
    runs = next(contents for name, contents in artifacts.items() if "demoruns" in name)
    assert json.loads(Path(runs[0]["local_path"]).read_text())["data"][0] == ["plain", 0, "arm", 2.0, 0.5]


def test_publishing_that_fails_is_said_and_is_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> Any:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    assert publish(compared(), tmp_path / "tradeoff.html", "ours", Console()) == 1
    assert "Weights & Biases failed: UsageError: No API key configured" in capsys.readouterr().out


def test_a_report_needs_a_project_and_its_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["compare", "runs", "--wandb-report"]) == 2
    assert "--wandb PROJECT" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ImportError, match=r"legibility\[wandb-report\]"):
        wandb_report(compared(), "ours", "me")


def test_a_report_shows_each_score_over_task_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces")
    from wandb_workspaces.reports.v2 import interface

    # It asks the server for the project's number; nothing else of it needs a login.
    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "42"}})
    spec = wandb_report(compared(), "ours", "me")._to_model().spec
    blocks = json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))["blocks"]
    (grid,) = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    (runs,) = grid["runSets"]
    assert (runs["project"]["entityName"], runs["project"]["name"]) == ("me", "ours")
    assert runs["filters"]["filters"][0]["key"] == {"section": "run", "name": "tags"}
    assert runs["filters"]["filters"][0]["value"] == ["demo"]
    panels = grid["panelBankSectionConfig"]["panels"]
    assert [panel["viewType"] for panel in panels] == ["Scatter Plot", "Run Comparer"]
    assert panels[0]["config"]["xAxis"] == "summary:legibility/task/loss"
    assert panels[0]["config"]["yAxis"] == "summary:legibility/score/held_out_kl"
    assert any("mine" in block.get("content", "") for block in blocks)
