"""A run's folder: one process at a time, a dead one holds nothing, what a killed one left goes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from legibility.recipes._engine import run
from legibility.recipes._folder import claimed, clean, read_failure, write, write_failure
from legibility.recipes._plan import plan

HOLDS = """
import sys, time
from pathlib import Path
from legibility.recipes._folder import claimed
with claimed(Path(sys.argv[1]), print):
    print("mine", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_claim_is_waited_for_and_ends_with_its_process(tmp_path: Path) -> None:
    other = holder(tmp_path)
    heard: list[str] = []

    def kill(who: str) -> None:
        heard.append(who)
        other.send_signal(signal.SIGKILL)

    start = time.monotonic()
    with claimed(tmp_path, kill) as waited:
        assert waited
    assert heard == [f"process {other.pid} on {os.uname().nodename}"]
    assert time.monotonic() - start < 10
    other.wait()
    with claimed(tmp_path, heard.append) as waited:
        assert not waited, "a dead process holds nothing"
    assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_disk_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path, pytest.fail) as waited:
        assert not waited
    number = errno.EIO  # what `refuse` raises from now on: a disk that is broken is another matter
    with pytest.raises(OSError, match="Input/output"), claimed(tmp_path, pytest.fail):
        pytest.fail("inside")


def test_a_run_that_another_process_finished_meanwhile_is_not_run_again(toy: Path) -> None:
    (job,) = plan(["./toy.py"], arms=["plain"], seeds=[0], out=Path("runs"))
    assert run(job) == ""
    record = (job.folder / "record.json").stat().st_mtime_ns
    other = holder(job.folder)
    told: list[str] = []

    def tell(stage: str, share: float) -> None:
        told.append(stage)
        other.kill()

    assert run(job, tell=tell) == "by another process"
    assert told == [f"waiting for process {other.pid} on {os.uname().nodename}"]
    assert (job.folder / "record.json").stat().st_mtime_ns == record
    other.wait()
    # It was finished before this process came to it, too late to wait for: not once more, unless asked to.
    assert run(job) == "by another process"
    assert (job.folder / "record.json").stat().st_mtime_ns == record
    assert run(job, again=True) == ""
    assert (job.folder / "record.json").stat().st_mtime_ns > record

    (job.folder / "digest.txt").unlink()
    write_failure(job.folder, job.digest, "Traceback\nValueError: no")
    other = holder(job.folder)
    with pytest.raises(RuntimeError, match="it failed in another process: ValueError: no"):
        run(job, tell=tell, again=True)
    other.wait()
    # It had failed before this process came to it: again only if asked to.
    with pytest.raises(RuntimeError, match="it failed in another process: ValueError: no"):
        run(job)
    assert run(job, again=True) == ""
    assert job.state() == "finished"


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    for name in ("digest.txt", "record.json", "last.ckpt", "error.txt", "last.ckpt.part", ".record.json.0a1b.tmp"):
        (tmp_path / name).write_text("old")
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    for name in ("config.yaml", "mine.txt"):
        (tmp_path / name).write_text("kept")
    clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "mine.txt"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", "first")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"


def test_a_failure_belongs_to_one_run(tmp_path: Path) -> None:
    assert read_failure(tmp_path, "abc") is None
    write_failure(tmp_path, "abc", "Traceback:\n  somewhere\nValueError: no\n")
    assert read_failure(tmp_path, "abc") == "ValueError: no"
    assert read_failure(tmp_path, "abd") is None
