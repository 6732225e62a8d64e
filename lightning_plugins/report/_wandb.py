"""What Weights & Biases gets of a run beside its curves: configuration, summary, one table, the files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legibility.lightning_plugins.foundation._wandb import forgiven, prefixed, wandb_loggers
from legibility.lightning_plugins.imitation._student_legibility import StudentLegibility
from legibility.lightning_plugins.report._run_record import plugins_of, seed_of, strengths_of
from legibility.tradeoff import RunRecord, load_record

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_COLUMNS = ("score", "family", "value", "unit", "direction", "control", "control name", "trained on", "reason")


def announce_run(trainer: "Trainer", arm: str, seed: int | None, recipe: str | None) -> None:
    """Writes arm, seed, recipe and strengths into the configuration: at the start, so that runs can be told apart.

    Args:
        trainer: Its WandbLoggers are written to, under ``legibility``.
        arm: Name of the setting.
        seed: Training seed, as :func:`run_record` takes it.
        recipe: Name of the recipe, if any.
    """
    told = {"arm": arm, "seed": seed_of(seed), "recipe": recipe, "strengths": strengths_of(plugins_of(trainer))}
    for logger in wandb_loggers(trainer):
        with forgiven("Weights & Biases: the configuration"):
            logger.experiment.config.update({"legibility": told}, allow_val_change=True)


def publish_record(trainer: "Trainer", path: Path, page: Path | None = None) -> None:
    """Logs a finished run: scores to every logger; to Weights & Biases also summary, score table and files.

    The record is on disk already. A logger that fails is warned of, and the others still get theirs.

    Files are artifacts of the run that trained the model, which is what ties them to it: the record (type
    ``run-record``, file ``record.json``) and each cohort's students (type ``students``, safetensors). The model itself
    is stored by whoever trains: ``WandbLogger(log_model=True)`` makes it an artifact of the same run.

    Args:
        trainer: Its loggers are written to.
        path: The record's file: what is logged is what was written.
        page: The model's page, shown as ``legibility/model`` and stored beside the record.
    """
    record = load_record(path)
    step = trainer.global_step
    cohorts = [plugin for plugin in plugins_of(trainer) if isinstance(plugin, StudentLegibility) and plugin.built]
    means = {entry.name: entry.value for entry in record.scores if entry.family is None}
    scores = {f"legibility/score/{name}": value for name, value in means.items() if value is not None}
    for logger in trainer.loggers:
        with forgiven(f"{type(logger).__name__}: the scores"):
            logger.log_metrics(scores, step=step)
    for logger in wandb_loggers(trainer):
        with forgiven("Weights & Biases: the summary"):
            logger.experiment.summary.update({prefixed(logger, key): value for key, value in summary(record).items()})
        with forgiven("Weights & Biases: the score table"):
            logger.log_table("legibility/scores", columns=list(_COLUMNS), data=_rows(record), step=step)
        shown = {} if page is None else {"model.html": page}
        with forgiven("Weights & Biases: the run record"):
            _log_files(logger, "run-record", "run-record", {"record.json": path, **shown}, record)
        if page is not None:
            with forgiven("Weights & Biases: the model's page"):
                _log_page(logger, page, step)
        for number, cohort in enumerate(cohorts):
            with forgiven("Weights & Biases: the students"), tempfile.TemporaryDirectory() as folder:
                files = {file.name: file for file in cohort.save_students(folder)}
                _log_files(logger, f"students-{number + 1}" if number else "students", "students", files, record)


def summary(record: RunRecord) -> dict[str, float]:
    """One number for each key: what W&B's tables and sweeps sort runs by.

    Task, scores and their controls (means over families), guards and cost, under ``legibility/``; what was not
    measured is left out.

    Example:
        >>> from legibility.tradeoff import CostEntry, ScoreEntry, TaskEntry
        >>> score = ScoreEntry("held_out_kl", 0.4, "nats", "lower", 0.9, "random-init", trained_on=False)
        >>> task = TaskEntry("cross-entropy", 1.5, None, None, 64, "validation")
        >>> cost = CostEntry(60.0, 100, 0.6, None, None, {"StudentLegibility": 0.1}, 12)
        >>> for key, value in summary(RunRecord("plain", 0, None, {}, [], task, [score], cost, {})).items():
        ...     print(key, value)
        legibility/task/loss 1.5
        legibility/score/held_out_kl 0.4
        legibility/control/held_out_kl 0.9
        legibility/cost/fit_seconds 60.0
        legibility/cost/step_seconds 0.6
        legibility/cost/parameters 12
        legibility/cost/step_seconds/StudentLegibility 0.1
    """
    task, cost = record.task, record.cost
    aggregates = [entry for entry in record.scores if entry.family is None]
    found: dict[str, float | None] = {
        "task/loss": task.loss,
        "task/accuracy": task.accuracy,
        "task/entropy": task.entropy,
        **{f"score/{entry.name}": entry.value for entry in aggregates},
        **{f"control/{entry.name}": entry.control for entry in aggregates},
        **{f"guard/{name}": value for name, value in record.guards.items()},
        "cost/fit_seconds": cost.fit_seconds,
        "cost/step_seconds": cost.step_seconds,
        "cost/report_seconds": cost.report_seconds,
        "cost/report_share": cost.report_share,
        "cost/peak_memory_bytes": cost.peak_memory_bytes,
        "cost/parameters": cost.parameters,
        **{f"cost/step_seconds/{name}": value for name, value in cost.terms.items()},
    }
    return {f"legibility/{key}": value for key, value in found.items() if value is not None}


def _rows(record: RunRecord) -> list[list[Any]]:
    return [
        [e.name, e.family, e.value, e.unit, e.direction, e.control, e.control_name, e.trained_on, e.reason]
        for e in record.scores
    ]


def _log_page(logger: Any, page: Path, step: int) -> None:
    import wandb  # its logger is in use, so it is there

    logger.log_metrics({"legibility/model": wandb.Html(page.read_text(encoding="utf-8"), inject=False)}, step=step)


def _log_files(logger: Any, name: str, kind: str, files: Mapping[str, Path], record: RunRecord) -> None:
    import wandb  # its logger is in use, so it is there

    run = logger.experiment
    model = getattr(logger, "_checkpoint_name", None) or f"model-{run.id}"  # the name by which WandbLogger stores it
    of = {"arm": record.arm, "seed": record.seed, "recipe": record.recipe, "model": model}
    artifact = wandb.Artifact(f"{name}-{run.id}", kind, metadata=of)
    for inside, file in files.items():
        artifact.add_file(str(file), name=inside)
    run.log_artifact(artifact)
