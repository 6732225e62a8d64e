"""One run of a recipe in Weights & Biases: where it is filed, which model it came from; and a run goes on without it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import WandbLogger

from legibility.recipes._plan import Job
from legibility.recipes._recipe import RESERVED

_GUARDED = ("log_metrics", "log_hyperparams", "log_table", "log_image", "save", "after_save_checkpoint", "finalize")


def logger_entry(job: Job) -> dict[str, Any]:
    """The logger of a run, as LightningCLI reads it.

    The seeds of an arm are one group, so W&B draws their mean and range. The mode is the user's: ``WANDB_MODE``.
    """
    kind = "base" if job.arm == RESERVED else "arm" if job.control is None else "control"
    return {
        "class_path": "pytorch_lightning.loggers.WandbLogger",
        "init_args": {
            "project": job.project,
            "name": job.label,
            "save_dir": str(job.folder),
            "checkpoint_name": _model_name(job.folder),
        },
        "dict_kwargs": {
            "group": f"{job.recipe}/{job.preset}/{job.arm}",
            "job_type": kind,
            "tags": [job.recipe, job.preset, job.arm, kind],
        },
    }


def _model_name(folder: Path) -> str:
    """Of the model artifact of the run in a folder: the same for every attempt, so that others find it."""
    return "-".join(["model", *folder.parts[-4:]])


class WandbRun:
    """The W&B runs of a trainer, from their start to their end. What fails there is noted and costs nothing.

    Args:
        trainer: A logger of it that can't be started is taken away.

    Attributes:
        notes: What failed, each once.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.notes: list[str] = []
        self._loggers: list[WandbLogger] = []
        kept = []
        for logger in trainer.loggers:
            if not isinstance(logger, WandbLogger):
                kept.append(logger)
                continue
            with self._noted():
                _ = logger.experiment
                for name in _GUARDED:
                    setattr(logger, name, self._guarded(getattr(logger, name)))
                self._loggers.append(logger)
                kept.append(logger)
        if len(kept) < len(trainer.loggers):
            trainer.loggers = kept

    def use_model(self, folder: Path) -> None:
        """This run starts from the model in another run's folder. Only a server knows of it: nothing is done offline."""
        for run in self._online():
            with self._noted():
                run.use_artifact(f"{_model_name(folder)}:latest")

    def keep_model(self, path: Path) -> None:
        """The trained model becomes an artifact of the run, beside the record and the students."""
        import wandb

        for logger in self._loggers:
            with self._noted():
                artifact = wandb.Artifact(_model_name(path.parent), "model")
                artifact.add_file(str(path))
                logger.experiment.log_artifact(artifact)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Ends the runs, as failed if what is inside raises: the next run of this process would go on in them."""
        code = 1
        try:
            yield
            code = 0
        finally:
            for logger in self._loggers:
                with self._noted():
                    logger.experiment.finish(exit_code=code)

    def _online(self) -> Iterator[Any]:
        for logger in self._loggers:
            run: Any = logger.experiment
            if not (run.offline or run.disabled):
                yield run

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a foreign service raises
            note = f"Weights & Biases failed: {type(error).__name__}: {error}"
            if note not in self.notes:
                self.notes.append(note)
                print(note)

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self._noted():
                return call(*args, **kwargs)

        return guarded
