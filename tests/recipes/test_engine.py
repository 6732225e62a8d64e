"""One run: what reaches the classes, what is left in the folder, what happens when it goes wrong."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import LightningCLI

from legibility.recipes._engine import check, run
from legibility.recipes._plan import Job, plan

FILES = {".lock", "config.yaml", "digest.txt", "last.ckpt", "origin.json", "record.json"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def jobs(*arms: str, seeds: Sequence[int] = (0,), overrides: Sequence[str] = ()) -> list[Job]:
    return plan(["./toy.py"], arms=arms, seeds=seeds, overrides=overrides, out=Path("runs"))


def settings(job: Job) -> dict[str, Any]:
    record = json.loads((job.folder / "record.json").read_text())
    assert (record["arm"], record["seed"], record["recipe"]) == (job.arm, job.seed, "toy")
    found: dict[str, Any] = record["settings"]
    return found


def without_threads(job: Job) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((job.folder / "record.json").read_text())
    del record["settings"]["threads"]
    return record


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_a_run_leaves_its_folder_finished(toy: Path) -> None:
    threads = torch.get_num_threads()
    plain, decay = jobs("plain", "decay")
    run(plain)
    run(decay)
    assert {path.name for path in plain.folder.iterdir()} == FILES
    assert plain.state() == decay.state() == "finished"
    assert settings(plain) == {"steps": 4, "decay": 0.0, "threads": 1}
    assert settings(decay) == {"steps": 4, "decay": 0.5, "threads": 1}
    assert torch.get_num_threads() == threads
    assert not Path("lightning_logs").exists()


def test_overrides_reach_the_run(toy: Path) -> None:
    (job,) = jobs("other", overrides=["--trainer.max_steps=2", "--model.decay=0.1", "--trainer.callbacks.strength=3"])
    run(job)
    assert settings(job) == {"steps": 2, "decay": 0.1, "threads": 1}
    # The last callback is the arm's own.
    config = (job.folder / "config.yaml").read_text()
    assert "strength: 3.0" in config
    assert "strength: 0.25" not in config


def test_the_written_configuration_reruns_in_a_plain_lightning_cli(toy: Path) -> None:
    (job,) = jobs("decay", seeds=[5], overrides=["--trainer.max_steps=3"])
    run(job)
    record, state = without_threads(job), weights(job.folder)
    (job.folder / "record.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = LightningCLI(
            args=["fit", "--config", str(job.folder / "config.yaml")],
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
        )
    assert without_threads(job) == record
    assert all(torch.equal(value, state[name]) for name, value in cli.model.state_dict().items())


def test_progress_is_told(toy: Path) -> None:
    heard: list[tuple[str, float]] = []
    run(jobs("plain")[0], tell=lambda stage, share: heard.append((stage, share)))
    assert heard[-1] == ("measuring", 1.0)
    assert all(stage == "training" and 0 < share <= 1 for stage, share in heard[:-1])


def test_a_failing_run_is_written_down_and_not_finished(toy: Path) -> None:
    (job,) = jobs("plain")
    run(job)
    (broken,) = jobs("plain", overrides=["--model.fail=true"])
    assert broken.state() == "other"
    with pytest.raises(FloatingPointError, match="this arm always fails"):
        run(broken)
    assert broken.state() == "failed"
    assert "FloatingPointError: this arm always fails" in (broken.folder / "error.txt").read_text()
    assert not (broken.folder / "record.json").exists(), "a record of the earlier run would pass for this one's"
    assert job.state() == "open", "another configuration has not failed"
    run(job)
    assert not (job.folder / "error.txt").exists()


def test_a_wrong_setting_is_an_error_before_anything_runs(toy: Path) -> None:
    (job,) = jobs("plain", overrides=["--model.init_args.widht=3"])
    with pytest.raises(Exception, match="widht"):
        run(job)
    assert "widht" in (job.folder / "error.txt").read_text()
    with pytest.raises(Exception, match="widht"):
        check(job)


def test_a_report_that_writes_nothing_is_an_error(toy: Path) -> None:
    edit(toy, "        save_record(record", "        if False: save_record(record")
    (job,) = jobs("plain")
    with pytest.raises(RuntimeError, match=r"wrote no record\.json"):
        run(job)
    assert job.state() == "failed"


def test_a_report_that_could_not_measure_makes_a_failed_run(toy: Path) -> None:
    edit(toy, 'created="2026', 'notes=["measuring failed: no logits"], created="2026')
    (job,) = jobs("plain")
    with pytest.raises(RuntimeError, match="measuring failed: no logits"):
        run(job)
    assert job.state() == "failed"
    assert (job.folder / "last.ckpt").exists()


def test_a_killed_run_is_not_finished(toy: Path) -> None:
    (job,) = jobs("plain")
    run(job)
    record = (job.folder / "record.json").read_bytes()
    program = (
        "from pathlib import Path; from legibility.recipes._plan import plan; from legibility.recipes._engine import run;"
        "run(plan(['./toy.py'], arms=['plain'], seeds=[0], out=Path('runs'))[0], again=True)"
    )
    environment = os.environ | {"TINY_DIE": "yes"}
    died = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert died.returncode == 9
    assert job.state() == "open"
    run(job)
    assert job.state() == "finished"
    assert (job.folder / "record.json").read_bytes() == record


@pytest.mark.parametrize("damage", ["", "{", '{"schema": "legibility.run-record/9"}'])
def test_a_damaged_record_is_not_finished(toy: Path, damage: str) -> None:
    (job,) = jobs("plain")
    run(job)
    (job.folder / "record.json").write_text(damage)
    assert job.state() == "open"


BASE = '    base=Base("plain", 2),\n    presets={\n        "quick"'


def test_arms_go_on_from_one_base_with_their_own_optimizer_settings(toy: Path) -> None:
    edit(toy, '    presets={\n        "quick"', BASE)
    base, plain, decay = jobs("plain", "decay")
    run(base)
    assert base.state() == "finished"
    assert {path.name for path in base.folder.iterdir()} == FILES - {"record.json"}
    saved = (base.folder / "last.ckpt").read_bytes()
    run(plain)
    run(decay)
    assert (base.folder / "last.ckpt").read_bytes() == saved
    # The base has weight decay 0 in its checkpoint; the arm keeps its own. 2 of the 4 steps are the base's.
    assert settings(plain)["decay"] == 0.0
    assert settings(decay)["decay"] == 0.5
    assert settings(decay)["steps"] == 4
    steps = [torch.load(job.folder / "last.ckpt", weights_only=True)["global_step"] for job in (base, plain, decay)]
    assert steps == [2, 4, 4]


def test_two_steps_of_decay_after_the_base(toy: Path) -> None:
    edit(toy, '    presets={\n        "quick"', BASE)
    base, plain, decay = jobs("plain", "decay")
    for job in (base, plain, decay):
        run(job)
    start, without, with_decay = (weights(job.folder)["net.0.weight"] for job in (base, plain, decay))
    assert not torch.equal(start, without)
    # Decoupled decay: each of two steps multiplies by 1 - 0.01 * 0.5, while Adam's own step differs in second order.
    assert torch.allclose(with_decay, without - start * 2 * 0.01 * 0.5, atol=2e-4)
    assert not torch.allclose(with_decay, without, atol=2e-4)


def test_a_changed_base_is_trained_again(toy: Path) -> None:
    edit(toy, '    presets={\n        "quick"', BASE)
    base, plain = jobs("plain")
    run(base)
    run(plain)
    edit(toy, 'Base("plain", 2)', 'Base("plain", 3)')
    base, plain = jobs("plain")
    assert (base.state(), plain.state()) == ("other", "other")


CONTROLS = (
    '    controls={"cool": Control("temperature", "plain", "decay"), "raw": Control("random-init", "plain")},\n'
    '    presets={\n        "quick"'
)


def test_controls_measure_the_finished_model(toy: Path) -> None:
    edit(toy, '    presets={\n        "quick"', CONTROLS)
    plain, decay, cool, raw = jobs("plain", "decay", "cool", "raw")
    for job in (plain, decay, cool, raw):
        run(job)
    assert settings(cool) == {"control": "TemperatureControl", "of": "plain"}
    assert settings(raw) == {"control": "RandomInitControl", "of": "plain"}
    total = sum(float(tensor.double().sum()) for tensor in weights(plain.folder).values())
    record = json.loads((cool.folder / "record.json").read_text())
    assert record["task"]["loss"] == pytest.approx(total, rel=1e-12), "the model measured is not the finished one"
    assert {path.name for path in cool.folder.iterdir()} == FILES - {"last.ckpt"}
    (plain.folder / "last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt is missing; delete .*digest\.txt"):
        run(cool, again=True)


def test_an_interrupted_fit_is_an_interruption_and_no_failure(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("legibility.recipes._engine._Watch.on_train_batch_end", interrupt)
    (job,) = jobs("plain")
    with pytest.raises(KeyboardInterrupt):
        run(job)
    assert job.state() == "open"
    assert not (job.folder / "error.txt").exists()


def test_nothing_of_the_engine_stays_behind(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[list[Callback]] = []
    original = Trainer.fit

    def fit(self: Trainer, *args: Any, **kwargs: Any) -> None:
        trainers.append(list(self.callbacks))  # type: ignore[attr-defined]
        original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", fit)
    run(jobs("other")[0])
    names = [type(callback).__name__ for callback in trainers[0]]
    assert names == ["_Watch", "InterpretabilityReport", "Other"]
