"""The search over strengths: trials are ordinary runs, a killed study goes on, less is better in both."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from legibility.recipes import _optuna, _sweep
from legibility.recipes._cli import main
from legibility.recipes._optuna import _controls_of, _sign, _values
from legibility.recipes._plan import Job, plan
from legibility.recipes._vary import vary
from legibility.recipes.stdlib_lm import RECIPE
from legibility.tradeoff import CostEntry, RunRecord, ScoreEntry, TaskEntry, find_records, save_record

optuna = pytest.importorskip("optuna")


def times_of(job: Job) -> float:
    """How many times its own strength an arm has."""
    return float(job.arm.rpartition("-x")[2]) if "-x" in job.arm else 1.0 if job.arm != "plain" else 0.0


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs take no time: the loss rises with the strength, the score has its best at 2."""
    labels: list[str] = []

    def finish(jobs: list[Job], workers: int, console: Console, *, retry_failed: bool = False) -> int:
        for job in jobs:
            if job.state() != "finished":
                labels.append(job.label)
                times = times_of(job)
                entries = [
                    ScoreEntry("sharp", -abs(times - 2), "share", "higher", None, None, trained_on=False),
                    ScoreEntry("kl", None, "nats", "lower", None, None, trained_on=False, reason="constant"),
                ]
                task = TaskEntry("mse", times + job.seed, None, None, 8, "test")
                cost = CostEntry(None, None, None, None, None, {}, 1)
                record = RunRecord(job.arm, job.seed, "toy", {}, [], task, entries, cost, {})
                save_record(record, job.folder / "record.json")
                (job.folder / "digest.txt").write_text(job.digest)
        return 0

    monkeypatch.setattr(_sweep, "sweep", finish)
    monkeypatch.setattr(_optuna, "sweep", finish)
    return labels


def search(*more: str) -> int:
    return main(["sweep", "./toy.py", "--score", "sharp", *more])


def test_the_front_is_found_and_every_trial_is_a_run(
    toy: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("--optuna", "12") == 0
    records = [record for _, record in find_records("runs")]
    arms = {record.arm for record in records} - {"plain"}
    assert 10 <= len(arms) <= 12 and all(arm.startswith("other") for arm in arms)
    assert {record.seed for record in records} == {0, 1}
    printed = capsys.readouterr().out
    points = {
        arm: times_of(job) for job in plan(["./toy.py"], arms=sorted(arms), out=Path("runs")) for arm in [job.arm]
    }
    # Loss t + 1/2 and score -|t - 2|: everything up to 2 is on the front, nothing far beyond.
    nearest = min(abs(times - 2) for times in points.values())
    for arm, times in points.items():
        on_front = times <= 2 or abs(times - 2) == nearest
        assert (f"│ {arm} " in printed) == (
            on_front and not any(u < times and abs(u - 2) <= abs(times - 2) for u in points.values())
        )
    assert "chosen by these very seeds" in printed and "--seeds 100,101,102" in printed


def test_a_study_goes_on_and_asks_again_for_what_was_killed(
    toy: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search("--optuna", "3") == 0
    before = list(ran)
    assert search("--optuna", "3") == 0
    assert ran == before, "finished trials count"

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_optuna, "_values", die)
        assert search("--optuna", "4") == 130
    killed = ran[-1].split("/")[2]
    assert search("--optuna", "4") == 0
    study = optuna.load_study(
        study_name=None,
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("runs/toy/quick/optuna.log")),
    )
    finished = [trial.user_attrs["run"] for trial in study.trials if trial.state.is_finished() and trial.values]
    assert len(finished) == 4 and finished[-1] == killed
    assert len(set(finished)) == 4, "another stream of random numbers after each start"
    assert len(ran) == len(before) + 2, "its runs were there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./toy.py", "digits", "--optuna", "3"], "searches one recipe, got ./toy.py, digits"),
        (["./toy.py", "--optuna", "3", "--arms", "plain,decay"], "no arm among plain, decay has a strength to choose"),
        (["./toy.py", "--optuna", "3", "--score", "sharpp"], "no run has a score 'sharpp'.*did you mean sharp"),
    ],
)
def test_what_is_wrong_is_said(
    toy: Path, ran: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    import re

    assert main(["sweep", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_trial_without_its_score_is_no_trial(toy: Path, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "./toy.py", "--score", "kl", "--optuna", "2"]) == 1
    printed = capsys.readouterr().out
    assert "has no task loss or no kl: constant" in printed
    assert "No trial has both a task loss and the score." in printed


def test_values_are_means_over_all_seeds(toy: Path, ran: list[str]) -> None:
    jobs = plan(["./toy.py"], arms=["other-x4"], seeds=[0, 3], out=Path("runs"))
    _sweep.sweep(jobs, 1, Console())
    assert _values(jobs, "sharp", -1.0) == (5.5, 2.0)  # (4 + 7) / 2, |4 - 2|
    (jobs[0].folder / "digest.txt").unlink()
    with pytest.raises(ValueError, match="seed-0 is not finished"):
        _values(jobs, "sharp", -1.0)


def test_a_score_is_turned_so_that_less_is_better(tmp_path: Path) -> None:
    def entry(name: str, direction: Any) -> ScoreEntry:
        return ScoreEntry(name, 0.5, "share", direction, None, None, trained_on=False)

    task, cost = TaskEntry("mse", 1.0, None, None, 8, "test"), CostEntry(None, None, None, None, None, {}, 1)
    scores = [entry("down", "lower"), entry("up", "higher"), entry("neither", None)]
    path = save_record(RunRecord("plain", 0, "toy", {}, [], task, scores, cost, {}), tmp_path / "record.json")
    assert (_sign(path, "down"), _sign(path, "up")) == (1.0, -1.0)
    with pytest.raises(ValueError, match="'neither' with a better and a worse: .*There are: down, up"):
        _sign(path, "neither")


def test_controls_of_the_front_are_those_matched_to_its_arms() -> None:
    assert _controls_of(RECIPE, ["legibility-0.3-x2", "legibility-0.1"]) == ["temperature-0.1", "temperature-0.3-x2"]
    varied, wanted = vary(RECIPE, ["temperature-0.3-x2"])
    assert wanted == ["temperature-0.3-x2"] and varied.controls["temperature-0.3-x2"].matches == "legibility-0.3-x2"
