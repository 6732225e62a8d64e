"""Measures a finished model and writes down what was run, what came out and what it cost."""

import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from legibility.lightning_plugins._callback import LegibilityCallback
from legibility.lightning_plugins._controls import RandomInitControl, TemperatureControl
from legibility.lightning_plugins._injector import Penalty, injector_of
from legibility.lightning_plugins._measurement import Measurement, Protocol, measure_model
from legibility.lightning_plugins._queries import KeptCalls
from legibility.lightning_plugins._recorder import Recorder
from legibility.lightning_plugins._student_legibility import StudentLegibility
from legibility.students import Student
from legibility.tradeoff import ControlOf, CostEntry, RunRecord, TaskEntry, save_record

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_PACKAGES = ("legibility", "torch", "pytorch-lightning", "lightning", "torchmetrics")


class InterpretabilityReport(LegibilityCallback):
    """Scores the model at the end of a fit, logs the scores, and writes one run record (JSON). It only watches.

    During the fit it keeps the inputs of the first validation batches (without a validation loop: the first training
    batches). At the end the finished model answers them again, in evaluation mode, and is measured:

    - held-out imitation: students of architectures that took no part in training learn the model's answers from
      scratch; KL, relative KL, top-1 disagreement, code length, saving, and the saving beyond the same students' on
      the true labels (:func:`legibility.scores.held_out_imitation`);
    - patch-through KL and unexplained variance of each tap;
    - sparsity of the weights;
    - guards: entropy, effective rank, RMS and live units of each tap.

    Every entry carries its control and whether it was trained on. What can't be measured is in the record with the
    reason. Scores are logged as ``legibility/score/<name>`` to every logger of the trainer.

    Args:
        arm: Name of this setting in comparisons.
        seed: Training seed; default: the one of Lightning's ``seed_everything``, else 0.
        recipe: Name of the recipe, if it is part of one.
        folder: Where ``record.json`` goes. Default: ``legibility`` in the trainer's log folder; an existing record
            there is never overwritten, the new one gets a number.
        model: Name of the primary, as in :class:`StudentLegibility`; default: that callback's, else found.
        taps: Patterns over module names to patch and guard; default: that callback's.
        output: Dotted path of the logits in the model's result.
        reads: Name of a module whose output held-out students read.
        held_out: Families, or "auto": those that suit the input and took no part in training.
        queries: Number of examples kept.
        passes: Passes of each family over what it has seen.
        random_init_control: Measure the held-out families on the untrained model too. It doubles their time.
        task_loss: Name of a logged metric to report as the task loss, where the cross-entropy of the queries is not it.
        progress: Print what is being measured.

    Raises:
        ValueError: Before training, for names that match nothing and numbers out of range.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[InterpretabilityReport(arm="plain")], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        arm: str = "run",
        seed: int | None = None,
        recipe: str | None = None,
        folder: str | None = None,
        model: str | None = None,
        taps: str | Sequence[str] = (),
        output: str | None = None,
        reads: str | None = None,
        held_out: Sequence[Student] | Literal["auto"] = "auto",
        queries: int = 1024,
        passes: float = 4.0,
        random_init_control: bool = True,
        task_loss: str | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if not arm:
            raise ValueError("`arm` must not be empty: it names this run in comparisons.")
        if queries < 32:
            raise ValueError(f"`queries` must be at least 32, got {queries}: fewer leave blocks too small to learn from.")
        if not passes > 0:
            raise ValueError(f"`passes` must be positive, got {passes}.")
        if not isinstance(held_out, str) and len(held_out) == 0:
            raise ValueError('`held_out` is empty: nobody would be asked. Give some students, or leave it at "auto".')
        self.arm, self.seed, self.recipe, self.folder = arm, seed, recipe, folder
        self.model, self.taps, self.output, self.reads = model, taps, output, reads
        self.protocol = Protocol(held_out, passes, random_init_control)
        self.queries = queries
        self.task_loss = task_loss
        self.progress = progress
        #: The last record written, and where.
        self.record: RunRecord | None = None
        self.path: Path | None = None
        self._kept = {split: KeptCalls(queries, split) for split in ("validation", "training")}
        self._watching: Recorder | None = None
        self._validating: Recorder | None = None
        self._module: LightningModule | None = None
        self._found: str | None = model
        self._clock = _Clock()

    @property
    def state_key(self) -> str:
        """Distinguishes several instances by what they act on."""
        return self._generate_state_key(arm=self.arm, model=self.model, output=self.output)

    # -- keeping queries

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        legibility = next((c for c in _ours(trainer) if isinstance(c, StudentLegibility)), None)
        if legibility is not None:
            self._found = self.model if self.model is not None else legibility.model
            self.taps = self.taps or legibility.taps
            self.output = self.output if self.output is not None else legibility.output
            self.reads = self.reads if self.reads is not None else legibility.reads
        self._kept = {split: KeptCalls(self.queries, split) for split in self._kept}
        self._module = pl_module
        self._clock = _Clock()
        self._watching = self._recorder(pl_module, with_gradients=True)
        self._watching.install()
        injector_of(pl_module).attach(self)

    def _uninstall(self) -> None:
        self._stop_watching()
        self._stop_validating()
        self._module = None

    def _recorder(self, pl_module: "LightningModule", *, with_gradients: bool, taps: bool = False) -> Recorder:
        return Recorder(
            pl_module,
            model=self._found,
            taps=self.taps if taps else (),
            output=self.output,
            reads=self.reads,
            with_gradients=with_gradients,
        )
