"""Students learn to imitate the primary while it trains; the primary is asked to be easy to imitate."""

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from legibility.lightning_plugins.foundation._callback import (
    LegibilityCallback,
    check_choice,
    check_positive,
    check_seed,
    check_strength,
    is_logging_step,
    log_every,
    no_autocast,
    step_of,
)
from legibility.lightning_plugins.foundation._injector import Penalty, injector_of, total_penalty
from legibility.lightning_plugins.foundation._manual_optimization import ManualOptimization, manual_optimization
from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._recording import Recording, look_at_loss
from legibility.lightning_plugins.foundation._warm_up import WarmUp
from legibility.lightning_plugins.imitation._begin import also_at_zero, begin
from legibility.lightning_plugins.imitation._build_cohort import BuiltCohort
from legibility.lightning_plugins.imitation._legibility_term import Direction, term_in_words
from legibility.lightning_plugins.imitation._meeting import (
    meet_each,
    of_known_kind,
    say_if_it_never_counted,
    with_examples,
)
from legibility.lightning_plugins.imitation._plan import Imitate, check_students
from legibility.lightning_plugins.imitation._split import Sync, check_sync, failures_of_all, logs_of_all, states_of_all
from legibility.lightning_plugins.imitation._summary import print_summary
from legibility.lightning_plugins.imitation._turns import Turns
from legibility.students import Student

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class StudentLegibility(LegibilityCallback):
    r"""Trains small students of other architectures beside the primary and adds the legibility term to its loss.

    .. math:: L = L_\mathrm{task} + \lambda_t \frac1K \sum_k \tfrac12\left[ \mathrm{KL}(p \,\|\, \mathrm{sg}\, q_k)
              + \mathrm{KL}(\mathrm{sg}\, q_k \,\|\, p) \right]

    p is the primary's distribution, q_k student k's on the same input, sg the stop-gradient. Students minimise
    KL(sg p || q_k) with their own Adam, one update for each optimizer step of the primary, and are never reset. The
    strength rises linearly to ``strength`` over the first ``warmup`` share of the steps; a student counts once it has
    left the uniform prediction (before that it would act as label smoothing).

    Args:
        strength: :math:`\lambda`, >= 0. 0 only trains and logs the students: the primary's weights are bit-equal to
            a fit without the callback. What the students need must be found all the same.
        students: Architectures from :mod:`legibility.students`, or "auto": two that suit the input.
        model: Name of the primary within the LightningModule. Default: the outermost module called in
            ``training_step`` that holds more than half of the trainable parameters.
        taps: Shell patterns over module names whose activations the students imitate too, for measuring only: taps
            add nothing to the primary's loss.
        output: Dotted path of the tensor to imitate in the model's result (``"logits"``). Default: the tensor itself,
            the entry ``logits``, or the only floating-point tensor.
        reads: Name of a module whose output the students read instead of the model's input.
        imitate: "distribution" (the output's softmax), "values" (regression: error in units of the output's variance;
            ``direction`` then has no meaning), or "auto": a distribution if the loss takes a softmax over the output's
            last dimension. Where that can't be seen (a loss within a compiled graph, or several losses by hand): if
            there is one output for each token, or the batch holds class labels for the output.
        direction: "symmetric", "forward" (KL(p || q), softens less) or "reverse" (KL(q || p)).
        warmup: Share of the steps in [0, 1).
        budget: Forward FLOPs of all students together, as a share of the primary's, for those without a width.
        learning_rate: Of the students' Adam. Faster students weaken the effect.
        seed: Of the students' initial weights; independent of the primary's random stream.
        on_failure: What a student with a non-finite loss does: "drop" (it is reported and left out) or "raise".
        sync: With several ranks, "all": each rank has every student, and their gradients are averaged as the
            primary's are; two ranks do what one process does with both batches. "split": rank r trains the students
            k with k % ranks == r, on its own data only, and adds their term with the weight ranks / K. Nothing of a
            student crosses ranks, and each costs one rank only, but it is another objective: each student sees, and
            pulls at, 1 / ranks of the data. Needs K >= ranks; a fit resumes on as many ranks as before.
        summary: Print what was found.

    Raises:
        ValueError: Before the first step of the primary: a pattern that matches nothing (near names are listed), a
            model that can't be found, an output without a usable tensor, students larger than the primary, a negative
            or NaN strength, no students.
        TypeError: The output is not floating point; a class in place of a student; no number where one belongs.

    In manual optimization (``automatic_optimization = False``) the term is added to each loss given to
    ``self.manual_backward`` that depends on the model's output: the mean over the recorded calls that it reaches, once
    for each call, and again only if the gradients were cleared since. A ``loss.backward()`` of the user's own can't
    be reached: that is warned of. Students then step once for each batch in which the primary's optimizer stepped, and
    steps count as batches. Whoever accumulates by hand and divides the loss by N divides ``strength`` by N too.

    Logs under ``legibility/``: ``term`` (unweighted, nats), ``strength``, ``entropy`` of the primary (nats), and for
    each student ``student/<name>/imitation`` (KL(p || q), nats), ``student/<name>/disagreement`` (share of different
    top-1) and ``student/<name>/fvu/<tap>``; ``guard/rank``, ``rms``, ``live`` and ``information`` of the output and
    ``guard/<tap>/rank``, ``rms``, ``live``, which warn once if they collapse. They are training quantities; scores come
    from students that took no part (:class:`InterpretabilityReport`). Of several such callbacks in one trainer, the
    first logs under ``legibility/1/`` and so on.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from legibility.students import GRUStudent
        >>> callbacks = [StudentLegibility(strength=0.1, students=[GRUStudent()], taps="net.blocks.*")]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)

    Source: mutual learning (Zhang et al. 2018) with one-sided detached terms; co-trained weak students as a
    regulariser of the teacher (SFTN, Park et al. 2021).
    """

    def __init__(
        self,
        strength: float = 0.2,
        students: Sequence[Student] | Literal["auto"] = "auto",
        model: str | None = None,
        taps: str | Sequence[str] = (),
        output: str | None = None,
        reads: str | None = None,
        imitate: Imitate = "auto",
        direction: Direction = "symmetric",
        warmup: float = 0.2,
        budget: float = 0.1,
        learning_rate: float = 3e-3,
        seed: int = 0,
        on_failure: Literal["drop", "raise"] = "drop",
        sync: Sync = "all",
        summary: bool = True,
    ) -> None:
        super().__init__()
        self.strength = check_strength(strength)
        check_students(students)
        check_choice(direction, Direction, "direction")
        check_choice(imitate, Imitate, "imitate")
        check_choice(sync, Sync, "sync")
        check_choice(on_failure, Literal["drop", "raise"], "on_failure")
        self.students, self.sync = students, sync
        self.model, self.taps, self.output, self.reads = model, taps, output, reads
        self.imitate, self.seed, self.summary = imitate, check_seed(seed), summary
        self.direction: Direction = direction
        self.warmup, self._warm_up = warmup, WarmUp(warmup)
        self.budget = check_positive(budget, "budget")
        self.learning_rate = check_positive(learning_rate, "learning_rate")
        self.on_failure: Literal["drop", "raise"] = on_failure
        self.built: BuiltCohort | None = None
        self._recorder: Recorder | None = None
        self._module: weakref.ref[nn.Module] | None = None
        self._trainer: Trainer | None = None
        self._manual: ManualOptimization | None = None
        self._turns, self._warned = Turns(), False
        self._logs: dict[str, Tensor | float] = {}

    @property
    def state_key(self) -> str:
        """Distinguishes several instances by what they act on."""
        return self._generate_state_key(model=self.model, output=self.output, reads=self.reads, taps=self.taps)

    @property
    def strengths(self) -> dict[str, float]:
        """The coefficient, under the name of the term."""
        return {"legibility": self.strength}

    def strength_at(self, step: int) -> float:
        """The coefficient at a step: a linear warm-up from the callback's first step on."""
        return self.strength * self._warm_up.at(step)

    def save_students(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes each living student to ``<folder>/<name>.safetensors``, with its configuration and without pickle.

        Args:
            folder: Made if it does not exist. With ``sync="split"`` a rank writes its own students: call it on all.

        Returns:
            The files; :func:`legibility.students.load_student` reads them.

        Raises:
            RuntimeError: There are no students: they are built in the first training step, in the process that trains.
        """
        if self.built is None:
            raise RuntimeError(
                "there are no students yet: they are built in the first training step of a fit, in the process that "
                "trains. After `ddp_spawn`, only the checkpoints that its processes wrote have them."
            )
        return self.built.save(Path(folder))

    # -- life cycle

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._module is None or self._module() is not pl_module:
            self.built, self._warm_up.start = None, None
        self._module = weakref.ref(pl_module)
        self._trainer = trainer
        with also_at_zero(self.strength):
            self._recorder = Recorder(
                pl_module, model=self.model, taps=self.taps, output=self.output, reads=self.reads, with_gradients=True
            )
            self._recorder.install()
        injector_of(pl_module).attach(self)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """The number of steps is known, and so is the state to resume from."""
        check_sync(self.sync, trainer, self.students, self._pending)
        if self._pending is not None:
            self.built, self._warm_up.start = None, self._pending["start"]
        self._warm_up.begin(trainer)
        self._manual = manual_optimization(trainer, self._primary, self.strength > 0, type(self).__name__)
        self._turns.begin_fit(trainer, self._manual)

    def _primary(self) -> nn.Module | None:
        return None if self._recorder is None or self._recorder.model is None else self._recorder.primary

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Says so if the term never found a loss; students that were dropped on one rank are known on all."""
        if self.built is not None:
            failures_of_all(self.built)
            if self.strength > 0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                say_if_it_never_counted(self.built, self._steps)
        if self._manual is not None and self._recorder is not None:
            self._manual.end_fit(self._recorder.model or "")

    def _uninstall(self) -> None:
        module = self._module() if self._module is not None else None
        if module is not None:
            injector_of(module).detach(self)
        if self._recorder is not None:
            self._recorder.remove()
        if self._manual is not None:
            self._manual.remove()
        self._manual, self._turns = None, Turns()
        self._recorder, self._trainer, self._logs = None, None, {}

    def state_dict(self) -> dict[str, Any]:
        """The students, their optimizer and what they have seen: tensors, numbers and strings only."""
        if self.built is None:
            return self._pending if self._pending is not None else {"start": self._warm_up.start, "cohort": None}
        return {"start": self._warm_up.start, "cohort": self.built.state_dict(), "ranks": self.built.ranks}

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """With ``sync="split"``, rank 0 writes the students of all: saving is collective, except after an exception."""
        if self.built is not None and not trainer.interrupted:
            checkpoint["callbacks"][self.state_key] |= states_of_all(self.built)

    # -- one batch

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """What the students owe this batch is not done yet."""
        self._turns.begin_batch()

    def before_step(self, batch: Any) -> None:
        """The user's step begins: record."""
        assert self._recorder is not None
        self._recorder.open()

    def abandon_step(self) -> None:
        """The user's step raised: forget."""
        if self._recorder is not None:
            self._recorder.discard()
        if self._manual is not None:
            self._manual.forget()

    @contextmanager
    def around_backward(self, loss: Tensor, batch: Any) -> Iterator[Penalty | None]:
        """Manual optimization: what was called since the last backward pass gets its penalty, and the students learn."""
        assert self._recorder is not None and self._manual is not None
        with self._timed():
            penalties = self._meet(batch, loss)
            self._recorder.open()
            due = self._manual.due(loss, penalties)
        yield due
        self._manual.settle()

    def after_step(self, batch: Any, loss: Tensor | None) -> Penalty | None:
        """The user's step is over: the students predict, the primary gets its penalty, the students learn."""
        with self._timed():
            penalties = self._meet(batch, loss)
            self._turns.end_lesson()
            if self._manual is not None:
                self._manual.forget()
            return total_penalty(penalties) if penalties else None

    def _meet(self, batch: Any, loss: Tensor | None) -> list[Penalty]:
        """The students meet recorded calls: one penalty for each that gets any."""
        assert self._recorder is not None and self._trainer is not None
        with also_at_zero(self.strength):
            recordings = with_examples(self._recorder.close(batch))
        with no_autocast(self._trainer.strategy.root_device):
            if self.built is None:
                look_at_loss(recordings, loss)
                with also_at_zero(self.strength):
                    self._build(recordings, batch)
            if self.built is None or not recordings:
                return []
            known = of_known_kind(self.built, recordings, warn=not self._warned)
            self._warned, recordings = self._warned or len(known) < len(recordings), known
            self._turns.meet(recordings)
            step, every = step_of(self._trainer), log_every(self._trainer)
            strength = self.strength_at(step)
            penalties, logs = meet_each(
                self.built,
                recordings,
                strength=strength * self._turns.share(recordings),
                direction=self.direction,
                weight=self._turns.weight(recordings, self._trainer),
                logging=every > 0 and (step + 1) % every == 0,
            )
        if logs:
            self._logs = {"strength": strength, **logs}
        return penalties

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The students step when the primary did."""
        self._steps += 1
        if self.built is None:
            return
        with self._timed(), no_autocast(pl_module.device):
            if self._turns.primary_stepped(trainer):
                self.built.step()
            if is_logging_step(trainer):
                if logs := logs_of_all(self.built, self._logs):
                    self._write_log(pl_module, logs)
                self._logs = {}

    def _build(self, recordings: list[Recording], batch: Any) -> None:
        assert self._recorder is not None and self._trainer is not None
        self.built = begin(
            recordings,
            batch,
            self._recorder,
            self._trainer,
            self._pending,
            students=None if isinstance(self.students, str) else list(self.students),
            imitate=self.imitate,
            budget=self.budget,
            learning_rate=self.learning_rate,
            seed=self.seed,
            on_failure=self.on_failure,
            sync=self.sync,
        )
        if self.built is not None:
            self._pending = None
            if self.summary:
                term = term_in_words(self.built.kind, self.direction, self.strength, self._warm_up.steps)
                print_summary(self.built, self._recorder, term=term)
