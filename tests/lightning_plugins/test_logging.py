"""What reaches the loggers: our keys once for each logged step, beside the user's own, which stay as they were."""

import csv
import importlib
import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import two
from tiny import loader, make_module
from torch import Tensor, nn

from legibility.lightning_plugins import L1Sparsity, StudentLegibility
from legibility.students import MLPStudent

EVERY, EPOCHS, BATCHES = 2, 2, 8
LOGGED_STEPS = list(range(EVERY - 1, EPOCHS * BATCHES, EVERY))  # as Lightning counts them: from 0
NAMES = ("imitation", "disagreement", "fvu/net.1")
OURS = {"term", "strength", "entropy", *(f"student/{s}/{n}" for s in ("mlp", "mlp_2") for n in NAMES)}
OURS |= {f"guard/{place}{name}" for place in ("", "net.1/") for name in ("rank", "rms", "live")} | {"guard/information"}
OURS = {f"legibility/{name}" for name in OURS}


def students(**options: Any) -> StudentLegibility:
    fixed: dict[str, Any] = {"students": [MLPStudent(width=8), MLPStudent(width=4)], "taps": "net.1", "warmup": 0.5}
    return StudentLegibility(**{"strength": 0.7, **fixed, "summary": False, **options})


def chatty(pl: Any) -> Any:
    """Logs in every way that users do: on steps, on epochs, both, on the bar, in validation."""
    module = make_module(pl)

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("mine/step", loss, prog_bar=True)
        self.log_dict({"mine/both": 2 * loss}, on_step=True, on_epoch=True)
        self.log("mine/epoch", loss, on_step=False, on_epoch=True)
        return loss

    type(module).training_step = training_step
    return module


def recorder(pl: Any) -> Any:
    """A logger that keeps what it is given."""
    base: Any = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger.__mro__[1]

    class Kept(base):  # type: ignore[misc]
        name, version = "kept", "0"
        experiment = None

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int, dict[str, float]]] = []

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            """None."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            assert step is not None
            self.rows.append((step, {k: float(v) for k, v in metrics.items()}))

    return Kept()


def ours(rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    found = [(step, {k: v for k, v in row.items() if k.startswith("legibility/")}) for step, row in rows]
    return [(step, row) for step, row in found if row]


def theirs(rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    found = [(step, {k: v for k, v in row.items() if not k.startswith("legibility/")}) for step, row in rows]
    return [(step, row) for step, row in found if row]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_key_is_logged_once_for_each_logged_step(pl: Any, trainer: Callable[..., Any], accumulate: int) -> None:
    kept = recorder(pl)
    options: dict[str, Any] = {"max_epochs": EPOCHS, "log_every_n_steps": EVERY, "accumulate_grad_batches": accumulate}
    trainer([students(), L1Sparsity(1.0)], logger=kept, **options).fit(chatty(pl), loader(), loader(rows=16))
    rows = ours(kept.rows)
    times = Counter((step, key) for step, row in rows for key in row)
    assert set(times.values()) == {1}, [pair for pair, n in times.items() if n > 1]
    logged = [step for step, row in rows if "legibility/term" in row]
    assert logged == LOGGED_STEPS[: len(LOGGED_STEPS) // accumulate]
    assert all(set(row) >= OURS for _, row in rows), "every row is whole"
    assert {key for _, row in rows for key in row} - OURS == {"legibility/l1/zeros", "legibility/l1/strength"}
    steps = EPOCHS * BATCHES // accumulate
    for step, row in rows:
        assert row["legibility/strength"] == pytest.approx(0.7 * min(1, (step + 1) / (steps // 2)))
        assert row["legibility/term"] >= 0 and 0 <= row["legibility/student/mlp/disagreement"] <= 1


def test_what_the_user_logs_is_what_it_was(pl: Any, trainer: Callable[..., Any]) -> None:
    found = []
    # At strength 0 it is the same training: the same numbers, if nobody touches them.
    for plugins in ([], [students(strength=0.0), L1Sparsity(0.0)]):
        kept = recorder(pl)
        torch.manual_seed(0)
        fit = trainer(plugins, logger=kept, max_epochs=EPOCHS, log_every_n_steps=EVERY)
        fit.fit(chatty(pl), loader(), loader(rows=16))
        users = {k: float(v) for k, v in fit.callback_metrics.items() if not k.startswith("legibility/")}
        bar = {k for k in fit.progress_bar_metrics}
        found.append((theirs(kept.rows), users, bar))
    # The row that holds ours too is the user's row of that step, not one more.
    assert found[0] == found[1]
    assert {"mine/step", "mine/both_step", "mine/both_epoch", "mine/epoch", "val_loss"} <= set(found[0][1])


def test_the_users_loss_is_logged_without_the_term(pl: Any, trainer: Callable[..., Any]) -> None:
    kept, seen = recorder(pl), []
    module = chatty(pl)

    class Look(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(float(outputs["loss"]))

    trainer([students(warmup=0.0), Look()], logger=kept, max_epochs=4, log_every_n_steps=1).fit(module, loader())
    task = {step: row["mine/step"] for step, row in kept.rows if "mine/step" in row}
    term = {step: row["legibility/term"] for step, row in kept.rows if "legibility/term" in row}
    assert len(task) == len(seen) == len(term) == 32
    for step, whole in enumerate(seen):
        assert whole == pytest.approx(task[step] + 0.7 * term[step], rel=1e-5, abs=1e-6)
    assert max(term.values()) > 1e-4, "or the test could not fail"


def test_several_callbacks_of_a_kind_keep_their_own_keys(pl: Any, trainer: Callable[..., Any]) -> None:
    kept = recorder(pl)
    both = [students(taps=()), students(taps="net.1", learning_rate=1e-2)]
    trainer(both, logger=kept, log_every_n_steps=EVERY).fit(chatty(pl), loader())
    (_, row) = ours(kept.rows)[-1]
    assert {"legibility/1/term", "legibility/2/term", "legibility/2/guard/net.1/rms"} <= set(row)
    assert not {"legibility/term", "legibility/1/guard/net.1/rms"} & set(row)
    assert row["legibility/1/student/mlp/imitation"] != row["legibility/2/student/mlp/imitation"]


def test_no_logger_and_no_bar(pl: Any, trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    fit = trainer(students(), logger=False, enable_progress_bar=False, log_every_n_steps=EVERY)
    fit.fit(make_module(pl), loader())
    assert set(fit.callback_metrics) >= OURS
    assert capsys.readouterr().out == "", "with summary=False nothing is printed"
    trainer(students(), log_every_n_steps=0).fit(make_module(pl), loader())  # never logs


def test_csv_and_tensorboard_at_once(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    loggers = importlib.import_module(f"{pl.__name__}.loggers")
    both = [loggers.CSVLogger(tmp_path), loggers.TensorBoardLogger(tmp_path)]
    trainer(students(), logger=both, max_epochs=EPOCHS, log_every_n_steps=EVERY).fit(chatty(pl), loader())
    with (Path(both[0].log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["legibility/term"]]
    events = accumulator(both[1].log_dir)
    events.Reload()
    assert set(events.Tags()["scalars"]) >= OURS | {"mine/step"}
    for key in OURS:
        scalars = events.Scalars(key)
        assert [event.step for event in scalars] == [int(row["step"]) for row in rows] == LOGGED_STEPS
        assert [event.value for event in scalars] == pytest.approx([float(row[key]) for row in rows], rel=1e-5)


def test_the_bar_shows_none_of_ours(pl: Any, trainer: Callable[..., Any]) -> None:
    fit = trainer(students(), enable_progress_bar=True, log_every_n_steps=EVERY)
    fit.fit(chatty(pl), loader())
    assert "mine/step" in fit.progress_bar_metrics
    assert not [key for key in fit.progress_bar_metrics if key.startswith("legibility")]


WANDB = """
import importlib, sys
import torch
sys.path.insert(0, {tests!r})
from tiny import loader, make_module
from legibility.lightning_plugins import StudentLegibility
from legibility.students import MLPStudent
pl = importlib.import_module({namespace!r})
loggers = importlib.import_module({namespace!r} + ".loggers")
logger = loggers.WandbLogger(project="p", offline=True, save_dir={folder!r})
plugin = StudentLegibility(0.7, students=[MLPStudent(width=8), MLPStudent(width=4)], taps="net.1", summary=False)
pl.Trainer(
    accelerator="cpu", callbacks=[plugin], logger=[logger, loggers.CSVLogger({folder!r})], max_epochs=2,
    log_every_n_steps=2, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
).fit(make_module(pl), loader())
logger.experiment.finish()
"""


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "offline", "SILENT": "true", "DATA_DIR": tmp_path, "DIR": tmp_path}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    program = WANDB.format(tests=str(Path(__file__).parents[1]), namespace="lightning.pytorch", folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", str(run), "--json"]
    read = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    if read.returncode != 0:
        pytest.skip("this wandb can't read an offline run back")
    records = [json.loads(line) for line in read.stdout.splitlines() if line.startswith("{")]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    mine = [row for row in rows if "legibility/term" in row]
    assert [row["trainer/global_step"] for row in mine] == LOGGED_STEPS
    assert all(set(row) >= OURS for row in mine) and all("task" in row for row in mine)


# -- what was found


def test_what_was_found_is_printed_once(
    pl: Any, trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    module, plugin = make_module(pl), students(summary=True)
    for _ in range(2):
        fit = trainer(plugin, max_epochs=2)
        fit.fit(module, loader(), loader(rows=16))
        fit.validate(module, loader(rows=16), verbose=False)
    printed = capsys.readouterr().out
    assert printed.count("FLOPs of the primary's") == 1
    assert "net (Sequential" in printed and "net.1" in printed and "strength 0.7" in printed
    trainer(plugin).fit(make_module(pl), loader())  # another module has other students
    assert capsys.readouterr().out.count("FLOPs of the primary's") == 1


def test_only_rank_zero_prints_and_logs(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "two_ranks_logging.py"
    first, second = two(program, "lightning.pytorch", tmp_path / "result")
    assert first["tables"] == 1 and second["tables"] == 0
    (written,) = (tmp_path / "result").rglob("metrics.csv")
    with written.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["legibility/term"]] == ["1", "3", "5", "7"]
    assert first["keys"] == second["keys"] and "legibility/term" in first["keys"]


def test_the_package_says_nothing_by_itself(pl: Any, trainer: Callable[..., Any], caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        trainer(students()).fit(make_module(pl), loader())
    assert not [record for record in caplog.records if "legibility" in record.name]
