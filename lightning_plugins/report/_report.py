"""Measures a finished model and writes down what was run, what came out and what it cost."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_warn

from legibility.lightning_plugins.foundation._callback import LegibilityCallback, check_count, check_seed
from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._untouched import on_device
from legibility.lightning_plugins.imitation._plan import check_students
from legibility.lightning_plugins.imitation._student_legibility import StudentLegibility
from legibility.lightning_plugins.report._arguments import ConceptsSought, check_page, check_scores, check_texts
from legibility.lightning_plugins.report._controls import RandomInitControl, TemperatureControl
from legibility.lightning_plugins.report._cost import Clock, cost_entry
from legibility.lightning_plugins.report._finished import finished_model
from legibility.lightning_plugins.report._imitation_scores import Families
from legibility.lightning_plugins.report._measurement import Extent, Measurement, measure_subject, take_logged_loss
from legibility.lightning_plugins.report._page_files import write_page
from legibility.lightning_plugins.report._query_keeper import QueryKeeper
from legibility.lightning_plugins.report._run_record import plain_hparams, plugins_of, record_path, run_record, terms_of
from legibility.lightning_plugins.report._shards import Ranks, refuse_to_wrap_again
from legibility.lightning_plugins.report._telling import cost_in_words, say, telling
from legibility.lightning_plugins.report._wandb import announce_run, publish_record
from legibility.lightning_plugins.report.choice._budget import Budget, Spent
from legibility.lightning_plugins.report.picture._options import ModelPage
from legibility.students import Student
from legibility.tradeoff import CostEntry, RunRecord, TaskEntry, save_record

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule, LightningModule, Trainer


class InterpretabilityReport(LegibilityCallback):
    """Scores the model at the end of a fit, logs the scores, and writes one run record (JSON). It only watches.

    During the fit it keeps the inputs of the first validation batches (without a validation loop: the first training
    batches). At the end the finished model answers them again, in evaluation mode, and is measured:

    - held-out imitation: students of architectures that took no part in training learn the model's answers from
      scratch; KL, relative KL, top-1 disagreement, code length, saving, and the saving beyond the same students' on
      the true labels (:func:`legibility.scores.held_out_imitation`);
    - patch-through KL, unexplained variance, effective rank, RMS and live units of each tap; sparsity of the weights;
    - whatever else of :mod:`legibility.scores` applies, each beside an untrained, a constant, a permuted and a flattened
      model: trees, neighbours and kernels, errors, circuits, compressed size, weight structure, dimension, lenses,
      feed-forward values, and with ``concepts`` what units say of them.

    It keeps to the budget, 15 % of the fit's time (`benchmarks/report_cost.py`). Held-out students come first, whole or not
    at all: a fit of seconds has no time for them. The rest is taken cheapest first, as announced. What did not fit in says
    so; ``budget_seconds=inf`` (YAML ``.inf``) takes all. Students and a page that you name are fitted and drawn whatever
    that takes (the rest then has 2 %): name them where runs are to be compared, as the recipes do.

    Under DDP rank 0 measures and the others wait. Under FSDP, FSDP2 and tensor parallelism all ranks measure in step, each
    with its shards, and rank 0 writes: call :meth:`measure` on all ranks. Scores that need a copy of the model say so.

    Every entry carries its control and whether it was trained on. What can't be measured is in the record with the
    reason. Scores are logged as ``legibility/score/<name>`` to every logger of the trainer; a WandbLogger also gets
    config, summary, the table ``legibility/scores``, the record and the students. A logger that fails costs no record.

    Args:
        arm: Name of this setting in comparisons.
        seed: Training seed; default: the one of Lightning's ``seed_everything``, else 0.
        recipe: Name of the recipe, if it is part of one.
        folder: Where ``record.json`` goes. Default: ``legibility-report`` in the trainer's log folder. An existing record
            is never overwritten: the new one gets a number (``record-2.json``).
        model: Name of the primary, as in :class:`StudentLegibility`; default: that callback's, else found.
        taps: Patterns over module names to patch and guard; default: that callback's.
        output: Dotted path of the logits in the model's result.
        reads: Name of a module whose output held-out students read.
        held_out: Families, fitted in any case; or "auto": such as took no part in training, if the budget allows.
        queries: Number of examples kept.
        passes: Passes of each family over what it has seen.
        random_init_control: Measure the held-out families on the untrained model too. It doubles their time.
        scores: Shell patterns over the names of the scores beside the held-out students, such as ``"circuit_*"``.
        concepts: Dotted path of concept labels within a batch, such as ``"2"`` or ``"concepts"``: integers, a row for each
            example (of sequences also for each position), a column for each concept.
        budget: Time for the whole report as a share of the fit's; 0 leaves it at held-out students that you name.
        budget_seconds: The same in seconds; ``inf``: no limit. Without it and a fit (:meth:`measure`): students and page.
        task_loss: Name of a logged metric to report as the task loss, where the cross-entropy of the queries is not it.
        page: Write ``model.html`` beside the record, many small pictures of the model, and ``picture.json.gz``, what it is
            drawn from, if the budget allows. A :class:`ModelPage` says how they are shown, and draws in any case.
        progress: Print what is being measured, what it is estimated to take and what it took.

    Raises:
        TypeError: For arguments of a wrong type, such as a class in place of a student.
        ValueError: Before training, for names that match nothing and numbers out of range. A ``task_loss`` that was never
            logged is found out after it: the queries' loss stands in its place, with a warning and a note.

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
        passes: int = 4,
        random_init_control: bool = True,
        scores: str | Sequence[str] = "*",
        concepts: str | None = None,
        budget: float = 0.15,
        budget_seconds: float | None = None,
        task_loss: str | None = None,
        page: bool | ModelPage = True,
        progress: bool = True,
    ) -> None:
        super().__init__()
        texts = {"recipe": recipe, "model": model, "output": output, "reads": reads}
        check_texts(arm=arm, folder=folder, **texts, concepts=concepts, task_loss=task_loss)
        check_students(held_out, "held_out")
        self.arm, self.seed, self.recipe, self.folder = arm, None if seed is None else check_seed(seed), recipe, folder
        self.model, self.taps, self.output, self.reads = model, taps, output, reads
        self.families = Families(held_out, check_count(passes, "passes"))
        self.queries = check_count(queries, "queries", least=32)  # fewer leave blocks too small to learn from
        self.random_init_control = random_init_control
        self.scores = check_scores(scores)
        self.concepts, self._concepts = concepts, ConceptsSought(concepts)
        self.budget = Budget(budget, budget_seconds)
        self.task_loss = task_loss
        self.page = check_page(page)
        self._drawn = not isinstance(page, bool)
        self.progress = progress
        #: The last record written, where, and the model's page, if one was written.
        self.record: RunRecord | None = None
        self.path: Path | None = None
        self.page_path: Path | None = None
        self._found: str | None = model
        self._found_output: str | None = output
        self._keeper = QueryKeeper(queries, self._recorder, self._name_model, concepts)
        self._clock = Clock()

    @property
    def state_key(self) -> str:
        """Distinguishes several instances by what they act on."""
        return self._generate_state_key(arm=self.arm, model=self.model, output=self.output)

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._adopt(trainer)
        announce_run(trainer, self.arm, self.seed, self.recipe)
        self._clock = Clock()
        self._recorder(pl_module, taps=True)  # names that match nothing are said now, not after training
        self._keeper.start(pl_module)

    def _uninstall(self) -> None:
        self._keeper.stop()

    def _name_model(self, name: str, output: str | None) -> None:
        self._found, self._found_output = name, output

    def _adopt(self, trainer: "Trainer") -> None:
        """What the user named for StudentLegibility need not be named again."""
        for callback in plugins_of(trainer):
            if isinstance(callback, StudentLegibility):
                self._found = self._found if self._found is not None else callback.model
                self.taps = self.taps or callback.taps
                self.output = self.output if self.output is not None else callback.output
                self.reads = self.reads if self.reads is not None else callback.reads

    def _recorder(self, pl_module: "LightningModule", *, with_gradients: bool = False, taps: bool = False) -> Recorder:
        return Recorder(
            pl_module,
            model=self._found,
            taps=self.taps if taps else (),
            output=self.output if self.output is not None else self._found_output,
            reads=self.reads,
            with_gradients=with_gradients,
        )

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Watches a validation run until enough inputs are kept; the sanity check does not count."""
        if not trainer.sanity_checking:
            self._keeper.start_validation(pl_module)

    def on_validation_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Records this batch's calls."""
        if trainer.sanity_checking:
            self._concepts.in_sanity_check(batch)
        self._keeper.open_validation_batch()

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps this batch's inputs."""
        self._keeper.keep_validation_batch(batch)

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Stops watching."""
        self._keeper.stop_validation()

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Starts the clock of this step."""
        self._concepts.in_training(batch, trainer, self._steps)
        self._clock.start_step()

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops it."""
        self._steps += 1
        self._clock.stop_step()

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """No training example is kept twice."""
        self._keeper.end_epoch()

    # -- the report

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Measures, writes the record, logs. A measurement that fails costs no finished training: it is written down."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a rehearsal: nothing was trained that could be measured
        fit_seconds = self._clock.since_start()
        target = record_path(trainer, self.folder)
        try:
            if trainer.is_global_zero or Ranks(trainer).together:
                self._write(trainer, pl_module, None, target, fit_seconds, steps=trainer.global_step, fatal=False)
        finally:
            trainer.strategy.barrier("legibility_report")

    def measure(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        datamodule: "LightningDataModule | None" = None,
        *,
        control: TemperatureControl | RandomInitControl | None = None,
    ) -> RunRecord:
        """Measures a finished model on demand, or one of its controls, and writes the record.

        Args:
            trainer: A trainer that has this callback.
            pl_module: The module with the finished weights.
            datamodule: Its validation batches become the queries; None: those kept in the last fit.
            control: Measure this control instead of the model itself.

        Returns:
            The record, also in :attr:`record`; its file is :attr:`path`.

        Raises:
            ValueError: Nothing to ask, answers that can't be measured, or a ``datamodule`` after a fit under FSDP1.
        """
        announce_run(trainer, self.arm, self.seed, self.recipe)
        if datamodule is not None:
            refuse_to_wrap_again(pl_module)
            self._adopt(trainer)
            self._keeper = QueryKeeper(self.queries, self._recorder, self._name_model, self.concepts)
            trainer.validate(pl_module, datamodule=datamodule, verbose=False)
        self._write(trainer, pl_module, control, record_path(trainer, self.folder), None, steps=None, fatal=True)
        assert self.record is not None
        return self.record

    def _write(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        control: TemperatureControl | RandomInitControl | None,
        target: Path,
        fit_seconds: float | None,
        *,
        steps: int | None,
        fatal: bool,
    ) -> None:
        start = time.perf_counter()
        try:
            found = self._measured(trainer, pl_module, control, fit_seconds, start)
        except Exception as error:
            if fatal:
                raise
            rank_zero_warn(f"InterpretabilityReport could not measure this model: {error}")
            source = "none: measuring failed"
            found = Measurement(TaskEntry("none", None, None, None, None, source), notes=[f"measuring failed: {error}"])
        device, terms = trainer.strategy.root_device, terms_of(plugins_of(trainer))
        cost = partial(cost_entry, self._clock, pl_module, device, terms, fit_seconds=fit_seconds, steps=steps)
        record = partial(self._record_of, trainer, pl_module, found, control)
        self.record, self.page_path = record(cost(time.perf_counter() - start)), None
        if not trainer.is_global_zero:
            return
        if found.picture is not None:  # it is a part of what the report costs
            self.page_path = write_page(self.record, found.picture, target)
            self.record = record(cost(time.perf_counter() - start))
        self.path = save_record(self.record, target)
        say(self.progress, cost_in_words(self.record.cost, self.page_path))
        publish_record(trainer, self.path, self.page_path)

    def _record_of(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        found: Measurement,
        control: TemperatureControl | RandomInitControl | None,
        cost: CostEntry,
    ) -> RunRecord:
        settings = {"queries": self.queries, "passes": self.families.passes, "hparams": plain_hparams(pl_module)}
        return run_record(
            found,
            cost,
            arm=self.arm,
            seed=self.seed,
            recipe=self.recipe,
            plugins=plugins_of(trainer),
            control=control,
            settings=settings,
        )

    def _measured(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        control: TemperatureControl | RandomInitControl | None,
        fit_seconds: float | None,
        start: float,
    ) -> Measurement:
        shown, ranks = telling(self.progress and trainer.is_global_zero), Ranks(trainer)
        with ranks.in_step(), on_device(pl_module, trainer.strategy.root_device), shown as (progress, aloud):
            recorder = partial(self._recorder, pl_module, taps=True)
            subject = finished_model(trainer, pl_module, ranks, self._keeper.kept, recorder)
            spent = Spent(self.budget, fit_seconds, start, page=self.page is not None)
            found = measure_subject(
                subject,
                self.families,
                control=control,
                random_init_control=self.random_init_control,
                extent=Extent(self.scores, spent, ranks.first, aloud, self.page, self._drawn),
                progress=progress,
            )
        if self.task_loss is not None:
            take_logged_loss(found, trainer.callback_metrics, self.task_loss)
        return found
