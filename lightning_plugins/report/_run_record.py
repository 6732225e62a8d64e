"""One run record from what was measured, what it cost and what took part."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legibility.lightning_plugins.foundation._callback import LegibilityCallback
from legibility.lightning_plugins.imitation._student_legibility import StudentLegibility
from legibility.lightning_plugins.report._controls import RandomInitControl, TemperatureControl
from legibility.lightning_plugins.report._cost import versions
from legibility.lightning_plugins.report._measurement import Measurement
from legibility.tradeoff import ControlOf, CostEntry, RunRecord

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


def plugins_of(trainer: "Trainer") -> list[LegibilityCallback]:
    """The trainer's callbacks that are ours, in order."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, LegibilityCallback)]


def strengths_of(plugins: Sequence[LegibilityCallback]) -> dict[str, float]:
    """Coefficient of each term, by name; the second of a name (two ``L1Sparsity``) is called ``l1_2``."""
    found: dict[str, float] = {}
    for plugin in plugins:
        for name, value in plugin.strengths.items():
            number = sum(key == name or key.rpartition("_")[0] == name for key in found)
            found[f"{name}_{number + 1}" if number else name] = value
    return found


def terms_of(plugins: Sequence[LegibilityCallback]) -> dict[str, float | None]:
    """Seconds per step of each kind of callback, several of one kind together."""
    found: dict[str, float | None] = {}
    for plugin in plugins:
        found[type(plugin).__name__] = (found.get(type(plugin).__name__) or 0.0) + plugin.seconds_per_step
    return found


def seed_of(seed: int | None) -> int:
    """The training seed: as named, else that of Lightning's ``seed_everything``, else 0."""
    return seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))


def plain_hparams(pl_module: "LightningModule") -> dict[str, Any]:
    """The module's hyperparameters that JSON can hold."""
    return {k: v for k, v in dict(pl_module.hparams).items() if isinstance(v, (bool, int, float, str))}


def run_record(
    found: Measurement,
    cost: CostEntry,
    *,
    arm: str,
    seed: int | None,
    recipe: str | None,
    plugins: Sequence[LegibilityCallback],
    control: TemperatureControl | RandomInitControl | None,
    settings: Mapping[str, Any],
) -> RunRecord:
    """The record of one run.

    Args:
        found: What was measured.
        cost: What it cost.
        arm: Name of the setting.
        seed: Training seed; None: the one of Lightning's ``seed_everything``, else 0.
        recipe: Name of the recipe, if any.
        plugins: Our callbacks that took part: their strengths and students are written down.
        control: The control that was measured instead of the model itself.
        settings: What else is needed to repeat the run.

    Returns:
        The record.
    """
    cohorts = [c.built.cohort for c in plugins if isinstance(c, StudentLegibility) and c.built is not None]
    dropped = [f"student {name} was dropped: {why}" for cohort in cohorts for name, why in cohort.failed.items()]
    of = None
    if isinstance(control, TemperatureControl):
        of = ControlOf("temperature", control.of, control.matches, found.temperature)
    elif control is not None:
        of = ControlOf("random-init", control.of)
    return RunRecord(
        arm=arm,
        seed=seed_of(seed),
        recipe=recipe,
        strengths=strengths_of(plugins),
        students=[name for cohort in cohorts for name in cohort.names],
        task=found.task,
        scores=found.scores,
        cost=cost,
        versions=versions(),
        control_of=of,
        settings=dict(settings),
        guards=found.guards,
        notes=[*found.notes, *dropped],
    )


def record_path(trainer: "Trainer", folder: str | None) -> Path:
    """Where a record goes: into the folder, else into ``legibility-report`` in the trainer's; never over another one.

    Every rank must come here: asking for the trainer's ``log_dir`` is a broadcast.
    """
    if folder is not None:
        found = Path(folder)
    else:  # no module's name: a folder `legibility` beside a script would hide the installed package
        found = Path(trainer.log_dir or trainer.default_root_dir) / "legibility-report"
    number = 1
    while (path := found / ("record.json" if number == 1 else f"record-{number}.json")).exists():
        number += 1
    return path
