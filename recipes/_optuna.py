"""The front of task loss and a score, found by Optuna: it chooses arms and strengths, we run them over all seeds."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from legibility.recipes._find import find, near
from legibility.recipes._folder import RECORD
from legibility.recipes._plan import Job
from legibility.recipes._recipe import Recipe
from legibility.recipes._sweep import sweep
from legibility.recipes._vary import has_strength, variant
from legibility.tradeoff import load_record

if TYPE_CHECKING:
    import optuna

_RANGE = (1 / 16, 16.0)
"""Multiples of an arm's own strengths."""


def search(parsed: argparse.Namespace, workers: int, console: Console) -> int:
    """A multi-objective study: each trial is one arm at one strength, its values are means over the seeds.

    Trials leave ordinary runs; the study lies beside them, so the same command goes on where it stopped. At the end
    the controls of the arms on the front are run, for a score without its control says nothing.

    Args:
        parsed: The command: recipe, preset, arms, seeds, number of trials (finished ones count), score.
        workers: Runs at a time.
        console: Where progress is shown.

    Returns:
        0, or 1 if runs failed, or 130 after Ctrl-C.

    Raises:
        ValueError: Optuna is not installed, several recipes, no arm with a strength, a score that no run has.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ValueError(f'`--optuna` needs Optuna: pip install "legibility[optuna]" ({error})') from error
    if len(parsed.recipes) != 1:
        raise ValueError(f"`--optuna` searches one recipe, got {', '.join(parsed.recipes)}")
    recipe = find(parsed.recipes[0]).recipe
    arms = [name for name in parsed.arms or recipe.arms if name in recipe.arms and has_strength(recipe.arms[name])]
    if not arms:
        raise ValueError(f"`--optuna`: no arm among {', '.join(parsed.arms or recipe.arms)} has a strength to choose")

    def run(names: Sequence[str]) -> tuple[int, list[Job]]:
        from legibility.recipes._sweep_command import planned

        jobs = planned(parsed, parsed.recipes, names, parsed.seeds)
        return sweep(jobs, workers, console, retry_failed=parsed.retry_failed), jobs

    code, jobs = run([recipe.baseline])
    if code:
        return code
    sign = _sign(jobs[-1].folder / RECORD, parsed.score)
    folder = jobs[0].folder.parents[1]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"{parsed.score} of {', '.join(arms)} over seeds {sorted({job.seed for job in jobs})}",
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.log"))),
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    _take_up_again(study)
    # Another stream of random numbers each time that it goes on, or it would ask for the same trials again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    failed = 0
    while (done := len(_finished(study))) + failed < parsed.optuna:
        trial = study.ask()
        arm = trial.suggest_categorical("arm", arms)
        name = variant(arm, float(f"{trial.suggest_float('times', *_RANGE, log=True):.3g}"))
        trial.set_user_attr("run", name)
        console.print(f"trial {done + failed + 1} of {parsed.optuna}: {name}", highlight=False, markup=False)
        code, jobs = run([name])
        if code == 130:
            return code
        try:
            values = _values([job for job in jobs if job.arm == name], parsed.score, sign)
        except ValueError as error:
            failed += 1
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            console.print(f"no trial: {error}", highlight=False, markup=False)
        else:
            study.tell(trial, values)
    if not _finished(study):
        console.print("No trial has both a task loss and the score.", highlight=False)
        return 1
    front = sorted((trial for trial in study.best_trials), key=lambda trial: trial.values)
    names = list(dict.fromkeys(str(trial.user_attrs["run"]) for trial in front))
    code = 0
    if controls := _controls_of(recipe, names):
        console.print("The controls of the arms on the front:", highlight=False)
        code, _ = run(controls)
    _print_front(front, parsed.score, sign, console)
    console.print(
        "They were chosen by these very seeds, which flatters them. Before saying anything of them, run them with other "
        f"seeds: legibility sweep {parsed.recipes[0]} --arms {','.join([recipe.baseline, *names])} --seeds 100,101,102\n"
        f"Compare all: legibility compare {folder}",
        highlight=False,
        markup=False,
    )
    return 1 if code or failed else 0


def _take_up_again(study: "optuna.Study") -> None:
    """A trial that was killed is asked for again first: its finished runs are there."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if len(trial.params) == 2:
            study.enqueue_trial(trial.params)


def _finished(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    from optuna.trial import TrialState

    found: list[optuna.trial.FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return found


def _sign(path: Path, score: str) -> float:
    """What makes less of the score better."""
    entries = {entry.name: entry for entry in load_record(path).scores if entry.family is None}
    if score not in entries or entries[score].direction is None:
        known = [name for name, entry in entries.items() if entry.direction is not None]
        raise ValueError(f"`--score`: no run has a score {score!r} with a better and a worse: {near(score, known)}")
    return 1.0 if entries[score].direction == "lower" else -1.0


def _values(jobs: Sequence[Job], score: str, sign: float) -> tuple[float, float]:
    """Mean task loss and mean score over the seeds, less of each is better.

    Raises:
        ValueError: A seed has no finished run, or its record no value: a mean over the others would be another arm's.
    """
    losses, scores = [], []
    for job in jobs:
        if job.state() != "finished":
            raise ValueError(f"{job.label} is not finished")
        record = load_record(job.folder / RECORD)
        entry = next((entry for entry in record.scores if entry.name == score and entry.family is None), None)
        if record.task.loss is None or entry is None or entry.value is None:
            why = "" if entry is None else f": {entry.reason}"
            raise ValueError(f"{job.label} has no task loss or no {score}{why}")
        losses.append(record.task.loss)
        scores.append(sign * entry.value)
    return sum(losses) / len(losses), sum(scores) / len(scores)


def _controls_of(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Names of the controls that are matched to some arms, variants included."""
    found = []
    for control, settings in recipe.controls.items():
        for name in names:
            if name == settings.matches:
                found.append(control)
            elif name.startswith(f"{settings.matches}-x"):
                found.append(control + name.removeprefix(str(settings.matches)))
    return found


def _print_front(front: "Sequence[optuna.trial.FrozenTrial]", score: str, sign: float, console: Console) -> None:
    table = Table(title="The front: no other trial is better in both")
    for column in ("arm", "task loss", score):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for trial in front:
        loss, value = trial.values
        table.add_row(str(trial.user_attrs["run"]), f"{loss:.4g}", f"{sign * value:.4g}")
    console.print(table)
