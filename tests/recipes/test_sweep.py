"""Sweeps: workers, what is skipped, what fails, what is left after Ctrl-C."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from legibility.recipes._cli import main
from legibility.recipes._plan import Job, forget_failures, plan, unfinished
from legibility.recipes._pool import Event, run_all
from legibility.recipes._sweep import _Screen, cores

pytestmark = pytest.mark.slow


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def sweep(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "legibility.recipes._cli", "sweep", "./toy.py", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process's sweeps are copies of one that has imported torch and the engine, not new ones."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["legibility.recipes._engine"])
    monkeypatch.setattr("legibility.recipes._pool.multiprocessing.get_context", lambda method: context)


def records(folder: str = "runs") -> dict[str, Any]:
    return {str(path): json.loads(path.read_text()) for path in sorted(Path(folder).rglob("record.json"))}


def test_a_sweep_goes_on_where_it_was_killed(toy: Path) -> None:
    whole = sweep("--jobs", "2", "--out", "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert len(records("whole")) == 6
    assert "[6/6]" in whole.stdout
    assert "legibility compare whole/toy/quick" in whole.stdout

    # Two runs and a half: the process of the third dies in the middle.
    died = sweep("--jobs", "1", "--seeds", "1", TINY_DIE="other")
    assert died.returncode == 1
    assert "its process ended with exit code 9" in died.stdout
    stamps = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")}
    assert len(stamps) == 2

    kept = sweep("--jobs", "1", "--seeds", "1")
    assert kept.returncode == 1
    assert "left out: toy/quick/other/seed-0  its process ended with exit code 9" in kept.stdout
    assert "--retry-failed" in kept.stdout
    assert "runs done" not in kept.stdout

    again = sweep("--jobs", "1", "--retry-failed")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 6 runs are finished already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    resumed = {name.replace("runs", "whole", 1): record for name, record in records().items()}
    assert resumed == records("whole")
    assert "Seed set to" in next(Path("runs").rglob("log.txt")).read_text()

    nothing = sweep()
    assert nothing.returncode == 0
    assert "6 of 6 runs are finished already" in nothing.stdout


@pytest.mark.usefixtures("imported")
def test_a_failing_arm_and_a_dying_process_do_not_stop_the_others(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(toy, '{"decay": 0.5}', '{"fail": True}')
    edit(toy, 'print("Other says", self.strength)', "os._exit(7)")
    command = ["sweep", "./toy.py", "--jobs", "1", "--seeds", "0,4"]
    assert main(command) == 1
    assert [name.split("/")[3:5] for name in records()] == [["plain", "seed-0"], ["plain", "seed-4"]]
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "2 runs done" in text
    assert "FAILED runs/toy/quick/decay/seed-0: FloatingPointError: this arm always fails" in text
    assert "see runs/toy/quick/decay/seed-0/error.txt" in text
    assert "FAILED runs/toy/quick/other/seed-4: its process ended with exit code 7" in text
    assert "this arm always fails" in Path("runs/toy/quick/decay/seed-0/error.txt").read_text()
    assert "exit code 7" in Path("runs/toy/quick/other/seed-0/error.txt").read_text()
    # What failed is tried again by choice, or when it is no longer the same run.
    edit(toy, '{"fail": True}', '{"decay": 0.5}')
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "2 of 6 runs are finished already" in printed
    assert len(records()) == 4
    assert not Path("runs/toy/quick/decay/seed-0/error.txt").exists()
    assert [line.split()[2] for line in printed.splitlines() if line.startswith("left out")] == [
        f"toy/quick/other/seed-{seed}" for seed in (0, 4)
    ]


@pytest.mark.usefixtures("imported")
def test_what_needs_a_failed_run_is_not_tried(toy: Path) -> None:
    edit(
        toy,
        '    presets={\n        "quick"',
        '    base=Base("decay", 2),\n'
        '    controls={"raw": Control("random-init", "plain")},\n'
        '    presets={\n        "quick"',
    )
    edit(toy, '{"decay": 0.5}', '{"fail": True}')
    jobs = plan(["./toy.py"], arms=["plain", "raw"], seeds=[0], out=Path("runs"))
    heard: list[Event] = []
    failed = run_all(jobs, 2, lambda event: heard.append(event) if event else None)
    assert [job.arm for job in jobs] == ["base", "plain", "raw"]
    assert failed[jobs[0].folder].startswith("FloatingPointError")
    assert failed[jobs[1].folder] == f"{jobs[0].folder} failed before"
    assert failed[jobs[2].folder] == f"{jobs[1].folder} failed before"
    assert [event.job.arm for event in heard if event.kind == "started"] == ["base"]


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_what_is_finished_is_kept_and_workers_end(toy: Path, asked: signal.Signals) -> None:
    edit(toy, 'print("Other says", self.strength)', "import time; time.sleep(600)")
    # Whoever starts the tests in a script's background has Ctrl-C ignored, and children inherit that.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from legibility.recipes._cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "sweep", "./toy.py", "--jobs", "1", "--seeds", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (Path("runs/toy/quick/other/seed-0/config.yaml").exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    if asked is signal.SIGINT:
        os.killpg(process.pid, asked)  # as a terminal does: the whole group
    else:
        process.send_signal(asked)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped. 2 finished runs are kept; the same command goes on from there." in printed
    assert len(records()) == 2
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # Python's own helper process ends a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.usefixtures("imported")
def test_progress_of_a_run_is_heard(toy: Path) -> None:
    jobs: list[Job] = plan(["./toy.py"], arms=["plain"], seeds=[0], out=Path("runs"))
    heard: list[Event] = []
    assert run_all(jobs, 1, lambda event: heard.append(event) if event else None) == {}
    assert [event.kind for event in heard][:1] == ["started"]
    assert [event.kind for event in heard][-1:] == ["done"]
    assert heard[-1].seconds > 0
    assert cores() >= 1


def test_the_live_line_says_what_runs_and_plain_lines_what_is_done(toy: Path) -> None:
    jobs = plan(["./toy.py"], arms=["plain", "decay"], seeds=[0], out=Path("runs"))
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with _Screen(jobs, console) as screen:
            screen.hear(Event("started", jobs[0]))
            screen.hear(Event("progress", jobs[0], "training", 0.5, 1.0))
            screen.hear(None)
            shown = screen.line()
            screen.hear(Event("done", jobs[0], seconds=3.0))
            screen.hear(Event("failed", jobs[1], "ValueError: [no]"))
        assert shown == "plain/0 training 50%"
        assert screen.done == 1
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert f"[1/2] toy/quick/plain/seed-0  done in 3 s{'' if terminal else '; about 3 s left'}\n" in printed
        assert "[2/2] toy/quick/decay/seed-0  FAILED: ValueError: [no]\n" in printed
        assert ("\x1b[" in printed) == terminal


def test_two_sweeps_of_one_folder_share_the_runs(toy: Path) -> None:
    edit(
        toy,
        "        group = trainer",
        '        print(self.arm, self.seed, file=open("fits.txt", "a"))\n        group = trainer',
    )
    command = [sys.executable, "-m", "legibility.recipes._cli", "sweep", "./toy.py", "--jobs", "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    fits = Path("fits.txt").read_text().splitlines()
    assert sorted(fits) == sorted(f"{arm} {seed}" for arm in ("plain", "decay", "other") for seed in (0, 1))
    assert len(records()) == 6


@pytest.mark.usefixtures("imported")
def test_a_sweep_that_looked_before_the_other_began_and_starts_when_it_is_done_runs_nothing(toy: Path) -> None:
    # The widest gap that two sweeps can have between look and claim: torch's import alone is longer than all toy runs.
    edit(toy, '{"decay": 0.5}', '{"fail": True}')
    edit(
        toy,
        "    def training_step(",
        '    def on_fit_start(self):\n        open("fits.txt", "a").write(".")\n\n    def training_step(',
    )
    todo = unfinished(plan(["./toy.py"], out=Path("runs")))
    first = run_all(todo, 1, lambda event: None)
    assert {folder.parent.name for folder in first} == {"decay"} and len(first) == 2
    stamps = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")}
    heard: list[Event] = []
    second = run_all(todo, 2, lambda event: heard.append(event) if event else None)
    assert Path("fits.txt").read_text() == "......", "every run was fitted once, failed ones too"
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")} == stamps and len(stamps) == 4
    assert {event.text for event in heard if event.kind == "done"} == {"by another process"}
    assert second.keys() == first.keys()
    assert all("failed in another process: FloatingPointError: this arm always" in why for why in second.values())
    # By choice, what failed is run again, and nothing else; once, if two sweeps that both saw it fail were told to.
    for _ in range(2):
        forget_failures(todo)
    for _ in range(2):
        run_all(todo, 1, lambda event: None)
        assert Path("fits.txt").read_text() == "........"


def test_a_sweep_killed_at_random_is_the_one_left_alone(toy: Path) -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "sweep_killed.py"
    edit(toy, "        self.last = float(loss)", "        import time; time.sleep(0.2); self.last = float(loss)")
    command = [sys.executable, str(program), "--kills", "2", "--", "./toy.py", "--seeds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "records 6 of 6, different: none, left over: none" in done.stdout


def test_time_left_is_of_whole_runs_and_says_less_than_it_knows_before(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("legibility.recipes._sweep.time.monotonic", lambda: now[0])
    jobs = plan(["./toy.py"], seeds=[0, 1], out=Path("runs"))
    screen = _Screen(jobs, Console(file=io.StringIO()))
    screen.hear(Event("started", jobs[0]))
    screen.hear(Event("started", jobs[1]))
    assert screen._left() == ""
    now[0] += 10
    screen.hear(Event("progress", jobs[0], "training", 0.5))
    assert screen._left() == "at least 2 min left"  # 10 s for half of one of six runs: 110 s for the rest
    now[0] += 10
    screen.hear(Event("done", jobs[0], seconds=18.0))
    screen.hear(Event("started", jobs[2]))
    # One of 18 s has begun just now, one is 20 s old, three wait: 4 x 18 s on two processes.
    assert screen._left() == "about 36 s left"
    screen.hear(Event("started", jobs[4]))
    screen.hear(Event("done", jobs[4], "by another process", seconds=0.1))
    assert screen._left() == "about 27 s left", "nor does one that another process did"
    screen.hear(Event("failed", jobs[3], "what it needs failed before"))
    assert screen._left() == "about 18 s left", "what never ran says nothing of how long a run takes"
