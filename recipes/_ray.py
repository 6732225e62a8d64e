"""The same runs as Ray Tune trials, over whatever cluster Ray finds, or this machine."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from legibility.recipes._folder import LOG, read_failure
from legibility.recipes._plan import Job, forget_failures, other_code, unfinished, without_failed


def ray_sweep(jobs: Sequence[Job], at_once: int | None, console: Console, *, retry_failed: bool = False) -> int:
    """Runs what is not finished as trials of Ray Tune, one CPU each, what others need before them.

    The folder of the runs must be the same on all machines (a network disk), as for every trial of Ray Tune.

    Args:
        jobs: All runs, each after those that it needs.
        at_once: Number of trials at a time; None for as many as the cluster has CPUs.
        console: Where progress is shown.
        retry_failed: Run again what failed before.

    Returns:
        0, or 1 if a run failed.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        from ray import tune
    except ImportError as error:
        raise ValueError(f'`--ray` needs Ray Tune: pip install "legibility[ray]" ({error})') from error
    # Trials run in folders of their own, and Ray must not move them away from the recipe's data.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    jobs = [_absolute(job) for job in jobs]
    if retry_failed:
        forget_failures(jobs)
    if note := other_code(jobs):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    for wave in _waves(jobs):
        # Of all runs, not of the wave alone: a base is wanted for the arms that start from it, in a later wave.
        todo = unfinished(without_failed(jobs))
        ready = {j.label: j for j in todo if j in wave and all(_is_finished(folder, jobs) for folder in j.needs)}
        if not ready:
            continue
        console.print(f"{len(ready)} run(s) as Ray Tune trials.", highlight=False)
        tuner = tune.Tuner(
            tune.with_resources(_trial(ready), {"cpu": 1}),
            param_space={"run": tune.grid_search(list(ready))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name="ray", storage_path=str(next(iter(ready.values())).folder.parents[1]), verbose=1
            ),
        )
        tuner.fit()
    code = 0
    for job in jobs:
        if job in unfinished(jobs):
            code = 1
            why = (
                read_failure(job.folder, job.digest)
                or "it was not run: what it needs is not finished, or it was killed"
            )
            console.print(f"FAILED {job.folder}: {why}", highlight=False, markup=False, soft_wrap=True)
    done = sum(job.state() == "finished" for job in jobs)
    console.print(f"{done} of {len(jobs)} runs are finished.", highlight=False)
    return code


def _trial(jobs: Mapping[str, Job]) -> Any:
    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        from legibility.recipes._engine import run
        from legibility.recipes._pool import written_to

        job = jobs[config["run"]]
        run(job, written=written_to)
        tune.report({"finished": 1, "log": str(job.folder / LOG)})

    return trial


def _waves(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Bases, then arms, then controls: a wave needs nothing of its own or of later ones."""
    level: dict[Path, int] = {}
    for job in jobs:
        level[job.folder] = 1 + max((level.get(folder, 0) for folder in job.needs), default=0)
    for number in sorted(set(level.values())):
        yield [job for job in jobs if level[job.folder] == number]


def _is_finished(folder: Path, jobs: Sequence[Job]) -> bool:
    return all(job.state() == "finished" for job in jobs if job.folder == folder)


def _absolute(job: Job) -> Job:
    """The same run, whatever folder a worker works in."""
    start = None if job.start is None else job.start.absolute()
    return replace(
        job, folder=job.folder.absolute(), start=start, needs=tuple(folder.absolute() for folder in job.needs)
    )
