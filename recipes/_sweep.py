"""A sweep: what is finished is skipped, the rest runs in worker processes, all of it is seen."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from legibility.recipes._folder import BY_ANOTHER, ERROR, LOG, read_failure
from legibility.recipes._plan import Job, forget_failures, other_code, unfinished, without_failed
from legibility.recipes._pool import Event, run_all


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(jobs: Sequence[Job], workers: int, console: Console, *, retry_failed: bool = False) -> int:
    """Runs what is not finished.

    Args:
        jobs: All runs, each after those that it needs.
        workers: Number of worker processes, at most one for each run.
        console: Where progress is shown: a live line on a terminal, plain lines elsewhere.
        retry_failed: Run again what failed in an earlier sweep, unchanged as it is.

    Returns:
        0, or 1 if a run failed, now or before, or 130 after Ctrl-C.
    """
    if retry_failed:
        forget_failures(jobs)
    finished = sum(job.state() == "finished" for job in jobs)
    if finished:
        console.print(f"{finished} of {len(jobs)} runs are finished already.", highlight=False)
    if note := other_code(jobs):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    tried = without_failed(jobs)
    left_out = [job for job in unfinished(jobs) if job not in tried]
    for job in left_out:
        why = read_failure(job.folder, job.digest) or "what it needs failed before"
        console.print(f"left out: {job.label}  {why}", highlight=False, markup=False, soft_wrap=True)
    if left_out:
        console.print(f"Left out: {len(left_out)}; --retry-failed tries again what failed.", highlight=False)
    todo = unfinished(tried)
    if not todo:
        return 1 if left_out else 0
    workers = min(workers, len(todo))
    console.print(f"{_runs(len(todo))}, {workers} at a time, one thread each.", highlight=False)
    start = time.monotonic()
    with _Screen(todo, console) as screen:
        try:
            failed = run_all(todo, workers, screen.hear)
        except KeyboardInterrupt:
            screen.stop()
            console.print(
                f"Stopped. {finished + screen.done} finished runs are kept; the same command goes on from there.",
                highlight=False,
            )
            return 130
    minutes = (time.monotonic() - start) / 60
    console.print(f"{_runs(len(todo) - len(failed))} done in {minutes:.1f} minutes.", highlight=False)
    for folder, reason in failed.items():
        place = next((folder / name for name in (ERROR, LOG) if (folder / name).is_file()), folder)
        console.print(f"FAILED {folder}: {reason}\n       see {place}", highlight=False, markup=False, soft_wrap=True)
    return 1 if failed or left_out else 0


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


class _Screen:
    """Progress: what is done, what is running, how long it will take."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.done = 0
        self._total = len(jobs)
        self._console = console
        self._running: dict[Path, Event] = {}
        self._since: dict[Path, float] = {}
        self._took: list[float] = []
        self._ended = 0
        self._start = time.monotonic()
        self._live = Progress(
            TextColumn("[bold]runs"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[running]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("runs", total=self._total, left="", running="")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the live line away."""
        self._live.stop()

    def hear(self, event: Event | None) -> None:
        """One event of a run, or None: time passes."""
        if event is not None:
            if event.kind in ("started", "progress"):
                self._since.setdefault(event.job.folder, time.monotonic())
                self._running[event.job.folder] = event
            else:
                self._since.pop(event.job.folder, None)
                if self._running.pop(event.job.folder, None) is not None and event.text != BY_ANOTHER:
                    self._took.append(event.seconds)
                self._ended += 1
                self.done += event.kind == "done"
                noted = f"  ({event.text})" if event.text else ""
                how = f"done in {event.seconds:.0f} s{noted}" if event.kind == "done" else f"FAILED: {event.text}"
                line = f"[{self._ended}/{self._total}] {event.job.label}  {how}"
                if not self._console.is_terminal and self._ended < self._total and (left := self._left()):
                    line += f"; {left}"  # a log has no live line
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._live.update(self._task, completed=self._ended, running=escape(self.line()), left=self._left())

    def line(self) -> str:
        """What is running and how far it is."""
        return "  ".join(
            f"{event.job.arm}/{event.job.seed} {event.text or 'starting'} {event.share:.0%}"
            for event in self._running.values()
        )

    def _left(self) -> str:
        """By the mean of what has ended; before that, what training alone will take at least."""
        now = time.monotonic()
        if self._took:
            mean = sum(self._took) / len(self._took)
            waiting = self._total - self._ended - len(self._running)
            begun = sum(max(0.0, mean - (now - since)) for since in self._since.values())
            return f"about {_duration((begun + mean * waiting) / max(1, len(self._running)))} left"
        ready = sum(event.share for event in self._running.values())
        passed = now - self._start
        return f"at least {_duration(passed * (self._total - ready) / ready)} left" if ready > 0 and passed > 5 else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
