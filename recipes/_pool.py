"""Worker processes that take runs: each imports torch once, so that a small run costs no start of its own."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from legibility.recipes._folder import ERROR, write_failure
from legibility.recipes._plan import Job

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Args:
        kind: ``"started"``, ``"progress"``, ``"done"`` or ``"failed"``.
        job: The run.
        text: What it does, why it failed, or what is to be said of it though it is done.
        share: Which part of its training is done, 0 to 1.
        seconds: How long it took so far, without the start of its process.
    """

    kind: Literal["started", "progress", "done", "failed"]
    job: Job
    text: str = ""
    share: float = 0.0
    seconds: float = 0.0


def run_all(jobs: Sequence[Job], workers: int, hear: Callable[[Event | None], None]) -> dict[Path, str]:
    """Runs jobs in worker processes, each after those that it needs.

    A run that fails does not stop the others. Whatever ends this call ends the workers.

    Args:
        jobs: What is to be done. Needs that are not among them are taken to be finished.
        workers: Number of processes.
        hear: Is told each event, and None about twice each second.

    Returns:
        Why runs failed, by folder. Empty if none did.
    """
    waiting, failed, missing = list(jobs), dict[Path, str](), {job.folder for job in jobs}
    idle: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    try:
        while waiting or busy:
            for job in list(waiting):
                if reason := next((f"{path} failed before" for path in job.needs if path in failed), None):
                    waiting.remove(job)
                    failed[job.folder] = reason
                    hear(Event("failed", job, reason))
                elif len(busy) < workers and not missing.intersection(job.needs):
                    waiting.remove(job)
                    worker = idle.pop() if idle else _Worker()
                    worker.take(job)
                    busy[worker.pipe] = worker
                    hear(Event("started", job))
            ready = wait(list(busy), timeout=0.5) if busy else []
            for pipe in [one for one in ready if isinstance(one, Connection)]:
                worker = busy[pipe]
                event = worker.news()
                hear(event)
                if event.kind in ("done", "failed"):
                    del busy[pipe]
                    if worker.process.is_alive():
                        idle.append(worker)
                    if event.kind == "done":
                        missing.discard(event.job.folder)
                    else:
                        failed[event.job.folder] = event.text
            hear(None)
    finally:
        for worker in [*idle, *busy.values()]:
            worker.process.kill()
        for worker in [*idle, *busy.values()]:
            worker.process.join()
    return failed


class _Worker:
    """One process and the run it is busy with."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs,))
        self.process.start()
        theirs.close()
        self._job: Job | None = None
        self._since = 0.0

    def take(self, job: Job) -> None:
        """Starts a run."""
        self._job, self._since = job, time.monotonic()
        # A worker that died while idle shows when it is listened to.
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def news(self) -> Event:
        """What the process says, or that it is gone."""
        assert self._job is not None
        seconds = time.monotonic() - self._since
        try:
            kind, text, share, seconds = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            text = f"its process ended with exit code {self.process.exitcode} (killed? out of memory?)"
            if not (self._job.folder / ERROR).exists():
                write_failure(self._job.folder, self._job.digest, text)
            return Event("failed", self._job, text, seconds=seconds)
        return Event(kind, self._job, text, share, seconds)


def _work(pipe: Connection) -> None:
    """What a worker process does until nothing more comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of the terminal's processes; the parent decides.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # One thread each: as many as there are processes, and results that do not depend on how many those are.
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from legibility.recipes._engine import run  # imports torch: here and not in the parent

    def say(kind: str, text: str, share: float) -> None:
        pipe.send((kind, text, share, time.monotonic() - start))

    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:  # the parent is gone
            return
        start = time.monotonic()
        try:
            note = run(job, written=written_to, tell=lambda stage, share: say("progress", stage, share))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a failing run must not stop the others
            lines = str(error).strip().splitlines() or [""]
            say("failed", f"{type(error).__name__}: {lines[0]}"[:300], 0.0)
        else:
            say("done", note, 1.0)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Everything that the process prints, also from C, goes into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(number) for number in (1, 2)]
    with path.open("w", encoding="utf-8") as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), saved, strict=True):
                os.dup2(old, number)
                os.close(old)
