"""Weights & Biases, found without importing it and never allowed to cost a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

STEP = "trainer/global_step"


def wandb_loggers(trainer: "Trainer") -> list[Any]:
    """The trainer's WandbLoggers, of either namespace; empty off rank zero, where their run is a dummy."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if any(c.__name__ == "WandbLogger" for c in type(logger).__mro__)]


@contextmanager
def forgiven(what: str) -> Iterator[None]:
    """What fails inside is warned of and goes no further: a logger must not cost a trained model or its record."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a foreign service raises
        rank_zero_warn(f"{what} failed, training and run record are not touched by it: {type(error).__name__}: {error}")


def define_step_metric(trainer: "Trainer") -> None:
    """Our keys have the trainer's step as their x axis, also where the user's own rules say something else for ``*``.

    A pattern, not names: a rule for an exact name would need everything repeated that WandbLogger's ``*`` says.
    """
    for logger in wandb_loggers(trainer):
        with forgiven("Weights & Biases: `define_metric`"):
            if not getattr(logger, "_wandb_init", {}).get("sync_tensorboard"):  # it counts by another key then
                logger.experiment.define_metric(prefixed(logger, "legibility/*"), step_metric=STEP, step_sync=True)


def prefixed(logger: Any, key: str) -> str:
    """A key as this logger writes it."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{logger.LOGGER_JOIN_CHAR}{key}" if prefix else key
