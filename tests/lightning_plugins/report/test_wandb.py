"""Weights & Biases: what an offline run holds, what a broken one costs (nothing), who is never asked (other ranks)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launch import two
from tiny import loader, make_module, validation_data

from legibility.lightning_plugins import (
    InterpretabilityReport,
    L1Sparsity,
    ModelPage,
    RandomInitControl,
    StudentLegibility,
)
from legibility.lightning_plugins.foundation._wandb import forgiven, wandb_loggers
from legibility.lightning_plugins.report._wandb import summary
from legibility.students import LinearStudent, MLPStudent, load_student
from legibility.tradeoff import load_record

pytest.importorskip("wandb")


def report(folder: Path, **options: Any) -> InterpretabilityReport:
    defaults = {
        "folder": str(folder),
        "queries": 64,
        "passes": 1,
        "progress": False,
        "held_out": [LinearStudent()],
        "page": ModelPage(),
    }
    return InterpretabilityReport(**{**defaults, **options})


def callbacks(folder: Path) -> list[Any]:
    students = StudentLegibility(0.1, students=[MLPStudent(width=8, depth=1)], summary=False)
    return [students, L1Sparsity(5.0), report(folder, arm="mine", seed=3, recipe="test")]


@pytest.fixture
def mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets W&B's mode; nothing leaves the test's folder, and no run stays open."""
    import wandb

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield lambda name: monkeypatch.setenv("WANDB_MODE", name)
    wandb.finish()


def wandb_logger(pl: Any, folder: Path, **options: Any) -> Any:
    import importlib

    kind = importlib.import_module(f"{pl.__name__}.loggers").WandbLogger
    return kind(project="ours", name="one", save_dir=str(folder), **options)


def inspect(folder: Path) -> list[dict[str, Any]]:
    """What an offline run holds."""
    wandb = pytest.importorskip("wandb")
    if tuple(map(int, wandb.__version__.split(".")[:2])) < (0, 31):
        pytest.skip(f"wandb {wandb.__version__} can't read its offline runs back: `wandb leet inspect` came with 0.31")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [os.path.join(os.path.dirname(sys.executable), "wandb"), "leet", "inspect", str(file), "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def test_an_offline_run_holds_everything_once(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, mode: Callable[[str], None]
) -> None:
    mode("offline")
    logger = wandb_logger(pl, tmp_path, group="g", job_type="arm", tags=["t"])
    module = make_module(pl)
    fit = trainer(callbacks(tmp_path / "report"), max_epochs=3, logger=logger, log_every_n_steps=4)
    fit.fit(module, loader(128), loader(128))
    run = logger.experiment.id
    logger.experiment.finish()
    records = inspect(tmp_path)
    record = load_record(tmp_path / "report" / "record.json")

    # x axes: WandbLogger's own rules are still there, ours is a pattern, and it is defined once for all callbacks.
    rules = [(m.get("glob_name") or m["name"], m.get("step_metric")) for m in of_type(records, "metric")]
    assert rules == [("trainer/global_step", None), *((g, "trainer/global_step") for g in ("*", "legibility/*"))]

    rows = [row["item"] for row in of_type(records, "history")]
    steps = [row["trainer/global_step"] for row in rows]
    assert steps == sorted(steps)
    terms = [row["trainer/global_step"] for row in rows if "legibility/term" in row]
    assert terms == list(range(3, 48, 4)), "training curves: each logging step once"
    scored = [row for row in rows if any(key.startswith("legibility/score/") for key in row)]
    assert len(scored) == 1 and scored[0]["trainer/global_step"] == 48

    totals: dict[str, Any] = {}
    for update in of_type(records, "summary"):
        totals.update(update["update"])
    for key, value in summary(record).items():
        assert totals[key] == pytest.approx(value, rel=1e-6), key
    assert {"legibility/task/loss", "legibility/score/held_out_kl", "legibility/control/held_out_kl"} <= set(totals)
    assert totals["legibility/scores.nrows"] == len(record.scores)

    config: dict[str, Any] = {}
    for update in of_type(records, "config"):
        config.update(update.get("update", {}))
    assert config["legibility"] == {
        "arm": "mine",
        "seed": 3,
        "recipe": "test",
        "strengths": {"legibility": 0.1, "l1": 5.0},
    }

    artifacts = {artifact["name"]: artifact for artifact in of_type(records, "artifact")}
    assert len(artifacts) == len(of_type(records, "artifact"))
    kept, students = artifacts[f"run-record-{run}"], artifacts[f"students-{run}"]
    assert (kept["type"], students["type"]) == ("run-record", "students")
    files = {file["path"]: file["local_path"] for file in kept["manifest"]["contents"]}
    assert set(files) == {"record.json", "model.html"}
    for name, stored in files.items():
        assert Path(stored).read_bytes() == (tmp_path / "report" / name).read_bytes()
    assert any(key.startswith("legibility/model") for row in rows for key in row), "the page is shown in the run"
    assert json.loads(kept["metadata"]) == {"arm": "mine", "seed": 3, "recipe": "test", "model": f"model-{run}"}
    (network,) = students["manifest"]["contents"]
    assert network["path"] == "mlp.safetensors"
    assert load_student(network["local_path"]).student == MLPStudent(width=8, depth=1)
    (table,) = [a for name, a in artifacts.items() if "legibilityscores" in name]
    written = json.loads(Path(table["manifest"]["contents"][0]["local_path"]).read_text())
    assert [row[0] for row in written["data"]] == [entry.name for entry in record.scores]
    assert len(artifacts) == 3


def test_users_of_another_x_axis_keep_theirs_and_get_ours(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, mode: Callable[[str], None]
) -> None:
    mode("offline")
    logger = wandb_logger(pl, tmp_path, prefix="pre")
    logger.experiment.define_metric("*", step_metric="epoch")
    fit = trainer([report(tmp_path / "report")], logger=logger)
    fit.fit(make_module(pl), loader(64), loader(64))
    logger.experiment.finish()
    records = inspect(tmp_path)
    rules = {m["glob_name"]: m["step_metric"] for m in of_type(records, "metric") if "glob_name" in m}
    assert rules == {"*": "epoch", "pre-legibility/*": "trainer/global_step"}
    keys = {key.partition(".")[0] for update in of_type(records, "summary") for key in update["update"]}
    assert "pre-legibility/score/held_out_kl" in keys and "pre-legibility/task/loss" in keys
    assert not any(key.startswith("legibility/") for key in keys)


def test_disabled_is_a_run_like_any_other(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, mode: Callable[[str], None], recwarn: pytest.WarningsRecorder
) -> None:
    mode("disabled")
    plugins = callbacks(tmp_path / "report")
    trainer(plugins, logger=wandb_logger(pl, tmp_path, mode="disabled")).fit(make_module(pl), loader(64), loader(64))
    assert load_record(tmp_path / "report" / "record.json").arm == "mine"
    assert not [str(w.message) for w in recwarn if "failed, training" in str(w.message)]
    assert not list(tmp_path.glob("wandb/*run-*"))


class _Raising:
    """A W&B run that is there and can do nothing."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(f"no {name} today")


def broken(pl: Any, path: Path, *, run: bool) -> Any:
    """A WandbLogger by name, whose run, or which itself, raises at every call of ours."""
    import importlib

    base = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger

    class WandbLogger(base):  # type: ignore[misc, valid-type]
        @property
        def experiment(self) -> Any:
            return _Raising() if run else super().experiment

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            raise ConnectionError("no log_metrics today")

        def log_table(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no log_table today")

        def save(self) -> None:
            pass

        def finalize(self, status: str) -> None:
            pass

    return WandbLogger(str(path))


@pytest.mark.parametrize("run", [True, False])
def test_nothing_is_lost_when_every_call_raises(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, run: bool
) -> None:
    from importlib import import_module

    after = import_module(f"{pl.__name__}.loggers").CSVLogger(str(tmp_path / "csv"))
    module, bare = make_module(pl), make_module(pl)
    torch.manual_seed(1)
    trainer().fit(bare, loader(64), loader(64))
    module.log = lambda *_, **__: None  # what the user logs would raise without us too
    torch.manual_seed(1)
    ours = [report(tmp_path / "report", arm="mine")]
    fit = trainer(ours, logger=[broken(pl, tmp_path / "broken", run=run), after])
    with pytest.warns(UserWarning, match="failed, training and run record are not touched by it"):
        fit.fit(module, loader(64), loader(64))
    assert load_record(tmp_path / "report" / "record.json").arm == "mine"
    for one, other in zip(module.parameters(), bare.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "legibility/score/held_out_kl" in Path(after.log_dir, "metrics.csv").read_text(), "the next logger got none"


def test_a_fit_without_wandb_never_imports_it(tmp_path: Path) -> None:
    program = f"""
import sys, torch
sys.modules["wandb"] = None  # importing it raises
from pathlib import Path
import pytorch_lightning as pl
from launch import two
from tiny import loader, make_module
from legibility.lightning_plugins import InterpretabilityReport
from legibility.students import LinearStudent
plugin = InterpretabilityReport(folder={str(tmp_path)!r}, queries=64, passes=1, progress=False, held_out=[LinearStudent()])
trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1, callbacks=[plugin])
trainer.fit(make_module(pl), loader(64), loader(64))
assert plugin.record is not None
"""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_other_ranks_are_never_asked(pl: Any, tmp_path: Path) -> None:
    logger = broken(pl, tmp_path, run=True)
    trainer: Any = SimpleNamespace(is_global_zero=False, loggers=[logger])
    assert wandb_loggers(trainer) == []
    trainer.is_global_zero = True
    assert wandb_loggers(trainer) == [logger]


def test_a_control_measured_by_hand_is_announced_and_logged(
    pl: Any, trainer: Callable[..., Any], tmp_path: Path, mode: Callable[[str], None]
) -> None:
    mode("offline")
    logger = wandb_logger(pl, tmp_path)
    plugin = report(tmp_path / "report", arm="raw", seed=1, random_init_control=False)
    made = trainer([plugin], logger=logger)

    plugin.measure(made, make_module(pl), validation_data(pl, 64), control=RandomInitControl("plain", 1))
    run = logger.experiment.id
    logger.experiment.finish()
    records = inspect(tmp_path)
    updates = [update["update"] for update in of_type(records, "config") if "legibility" in update.get("update", {})]
    assert [update["legibility"]["arm"] for update in updates] == ["raw"]
    assert f"run-record-{run}" in {artifact["name"] for artifact in of_type(records, "artifact")}


def test_forgiven_forgives_exceptions_only() -> None:
    def fail(error: BaseException) -> None:
        with forgiven("the thing"):
            raise error

    with pytest.warns(UserWarning, match="the thing failed"):
        fail(OSError("full"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())


@pytest.mark.slow
def test_two_ranks_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "offline", "SILENT": "true", "DATA_DIR": str(tmp_path / "data")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    ranks = two(Path(__file__).parents[2] / "wandb_ranks.py", "pytorch_lightning", tmp_path / "out")
    assert [rank["records"] for rank in ranks] == [1, 0]
    records = inspect(tmp_path / "out")  # exactly one
    kinds = [artifact["type"] for artifact in of_type(records, "artifact")]
    assert sorted(kinds) == ["run-record", "run_table", "students"]
    terms = [
        row["item"]["trainer/global_step"] for row in of_type(records, "history") if "legibility/term" in row["item"]
    ]
    assert terms == [1, 3, 5, 7]
