"""Students learn to imitate the primary while it trains; the primary is asked to be easy to imitate."""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from legibility.lightning_plugins._build_cohort import BuiltCohort, build_cohort
from legibility.lightning_plugins._callback import (
    LegibilityCallback,
    check_positive,
    check_share,
    check_strength,
    is_logging_step,
    log_every,
    no_autocast,
    total_steps,
)
from legibility.lightning_plugins._injector import Penalty, injector_of
from legibility.lightning_plugins._legibility_term import (
    Direction,
    describe,
    legibility_penalty,
)
from legibility.lightning_plugins._recorder import Recorder
from legibility.lightning_plugins._recording import Recording
from legibility.lightning_plugins._summary import print_summary
from legibility.students import Student, save_student

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_UNKNOWN_LENGTH = 1000  # steps over which the warm-up share is taken where the trainer can't tell the length


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
            a fit without the callback.
        students: Architectures from :mod:`legibility.students`, or "auto": two that suit the input.
        model: Name of the primary within the LightningModule. Default: the outermost module called in
            ``training_step`` that holds more than half of the trainable parameters.
        taps: Shell patterns over module names whose activations the students imitate too, for measuring only: taps
            add nothing to the primary's loss.
        output: Dotted path of the tensor to imitate in the model's result (``"logits"``). Default: the tensor itself,
            the entry ``logits``, or the only floating-point tensor.
        reads: Name of a module whose output the students read instead of the model's input.
        imitate: "distribution" (the output's softmax), "values" (regression: error in units of the output's variance;
            ``direction`` then has no meaning), or "auto": a distribution if the batch holds class labels for the
            output, or if there is one output for each token.
        direction: "symmetric", "forward" (KL(p || q), softens less) or "reverse" (KL(q || p)).
        warmup: Share of the steps in [0, 1).
        budget: Forward FLOPs of all students together, as a share of the primary's, for those without a width.
        learning_rate: Of the students' Adam. Faster students weaken the effect.
        seed: Of the students' initial weights; independent of the primary's random stream.
        on_failure: What a student with a non-finite loss does: "drop" (it is reported and left out) or "raise".
        summary: Print what was found.

    Raises:
        ValueError: Before the first step of the primary: a pattern that matches nothing (near names are listed), a
            model that can't be found, an output without a usable tensor, students larger than the primary, a negative
            or NaN strength, no students.
        TypeError: The output is not floating point.
        NotImplementedError: Manual optimization.

    Logs under ``legibility/``: ``term`` (unweighted, nats), ``strength``, ``entropy`` of the primary (nats), and for
    each student ``student/<name>/imitation`` (KL(p || q), nats), ``student/<name>/disagreement`` (share of different
    top-1) and ``student/<name>/fvu/<tap>``. They are training quantities; scores come from students that took no part
    (:class:`InterpretabilityReport`).

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
        imitate: Literal["auto", "distribution", "values"] = "auto",
        direction: Direction = "symmetric",
        warmup: float = 0.2,
        budget: float = 0.1,
        learning_rate: float = 3e-3,
        seed: int = 0,
        on_failure: Literal["drop", "raise"] = "drop",
        summary: bool = True,
    ) -> None:
        super().__init__()
        self.strength = check_strength(strength)
        if isinstance(students, str) and students != "auto":
            raise ValueError(f'`students` must be "auto" or a list of students, got {students!r}.')
        if len(students) == 0:
            raise ValueError('`students` is empty: nobody would imitate. Give some, or leave it at "auto".')
        if direction not in get_args(Direction):
            raise ValueError(f"`direction` must be one of {', '.join(get_args(Direction))}, got {direction!r}.")
        if imitate not in ("auto", "distribution", "values"):
            raise ValueError(f'`imitate` must be "auto", "distribution" or "values", got {imitate!r}.')
        self.students = students
        self.model, self.taps, self.output, self.reads = model, taps, output, reads
        self.imitate = imitate
        self.direction: Direction = direction
        self.warmup = check_share(warmup, "warmup")
        self.budget = check_positive(budget, "budget")
        self.learning_rate = check_positive(learning_rate, "learning_rate")
        self.on_failure: Literal["drop", "raise"] = on_failure
        self.seed, self.summary = seed, summary
        self.built: BuiltCohort | None = None
        self._recorder: Recorder | None = None
        self._module: weakref.ref[nn.Module] | None = None
        self._trainer: Trainer | None = None
        self._start: int | None = None
        self._ramp = 0
        self._learned, self._warned, self._seen_step = False, False, 0
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
        """The coefficient at a global step: a linear warm-up from the callback's first step on."""
        since = step - (self._start or 0)
        return self.strength * min(1.0, (since + 1) / self._ramp) if self._ramp > 0 else self.strength

    def save_students(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes each living student to ``<folder>/<name>.safetensors``, with its configuration and without pickle.

        Args:
            folder: Made if it does not exist.

        Returns:
            The files; :func:`legibility.students.load_student` reads them.

        Raises:
            RuntimeError: There are no students yet: they are built in the first training step.
        """
        if self.built is None:
            raise RuntimeError("there are no students yet: they are built in the first training step of a fit.")
        Path(folder).mkdir(parents=True, exist_ok=True)
        cohort, files = self.built.cohort, []
        for name, network in cohort.networks.items():
            files.append(Path(folder) / f"{name}.safetensors")
            save_student(files[-1], network, cohort.students[name], self.built.signature)
        return files

    # -- life cycle

    def _install(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if not pl_module.automatic_optimization:
            raise NotImplementedError(
                "StudentLegibility supports automatic optimization only so far: this module sets "
                "`automatic_optimization = False`, and its own `manual_backward` would never see the term."
            )
        if self._module is None or self._module() is not pl_module:
            self.built, self._start = None, None
        self._module = weakref.ref(pl_module)
        self._trainer = trainer
        self._recorder = Recorder(
            pl_module, model=self.model, taps=self.taps, output=self.output, reads=self.reads, with_gradients=True
        )
        self._recorder.install()
        injector_of(pl_module).attach(self)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """The number of steps is known, and so is the state to resume from."""
        if self._pending is not None:
            self.built, self._start = None, self._pending["start"]
        if self._start is None:
            self._start = trainer.global_step
        end = total_steps(trainer)
        duration = _UNKNOWN_LENGTH if end is None else max(1, end - self._start)
        self._ramp = round(self.warmup * duration)
        self._seen_step = trainer.global_step

    def _uninstall(self) -> None:
        module = self._module() if self._module is not None else None
        if module is not None:
            injector_of(module).detach(self)
        if self._recorder is not None:
            self._recorder.remove()
        self._recorder, self._trainer, self._logs = None, None, {}

    def state_dict(self) -> dict[str, Any]:
        """The students, their optimizer and what they have seen: tensors, numbers and strings only."""
        if self.built is None:
            return self._pending if self._pending is not None else {"start": self._start, "cohort": None}
        return {"start": self._start, "cohort": self.built.state_dict()}

    # -- one batch

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """A closure may run the step several times; the students learn from the first run only."""
        self._learned = False

    def before_step(self, batch: Any) -> None:
        """The user's step begins: record."""
        assert self._recorder is not None
        self._recorder.open()

    def abandon_step(self) -> None:
        """The user's step raised: forget."""
        if self._recorder is not None:
            self._recorder.discard()

    def after_step(self, batch: Any) -> Penalty | None:
        """The user's step is over: the students predict, the primary gets its penalty, the students learn."""
        assert self._recorder is not None and self._trainer is not None
        with self._timed():
            recordings = self._recorder.close()
            if not recordings:
                return None
            with no_autocast(recordings[0].output.device):
                if self.built is None:
                    self._build(recordings[0], batch)
                return self._meet(self._fitting(recordings))

    def _fitting(self, recordings: list[Recording]) -> list[Recording]:
        """The calls of the kind that the students know; others are left out, and that is said once."""
        assert self.built is not None
        fitting = [recording for recording in recordings if self.built.fits(recording)]
        if len(fitting) < len(recordings) and not self._warned:
            self._warned = True
            other = next(recording for recording in recordings if recording not in fitting)
            rank_zero_warn(
                f"StudentLegibility leaves out calls of the model with input {tuple(other.inputs.shape)} and output "
                f"{tuple(other.output.shape)}: the students were built for the first call's kind. "
                "To have another part imitated, name it with `model=`."
            )
        return fitting

    def _meet(self, recordings: list[Recording]) -> Penalty | None:
        assert self.built is not None and self._trainer is not None
        cohort, strength = self.built.cohort, self.strength_at(self._trainer.global_step)
        every = log_every(self._trainer)
        logging = every > 0 and (self._trainer.global_step + 1) % every == 0
        penalties = []
        for recording in recordings:
            predictions = cohort.predict(recording.inputs, recording.mask)
            term, penalty = legibility_penalty(
                recording,
                [prediction.output for _, prediction in predictions],
                [cohort.active[name] for name, _ in predictions],
                strength=strength / len(recordings),
                direction=self.direction,
                values=self.built.kind == "values",
            )
            if penalty is not None:
                penalties.append(penalty)
            if not self._learned:
                scale = 1 / (len(recordings) * self._accumulation)
                losses = self.built.learn(recording, predictions, scale)
                if logging:
                    self._logs = {"term": term, "strength": strength}
                    self._logs |= describe(self.built.kind, recording, predictions, losses)
        self._learned = True
        if not penalties:
            return None
        value = torch.stack([penalty.value for penalty in penalties]).sum()
        return Penalty(value, [pair for penalty in penalties for pair in penalty.gradients])

    @property
    def _accumulation(self) -> int:
        assert self._trainer is not None
        return self._trainer.accumulate_grad_batches

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The students step when the primary did."""
        self._steps += 1
        if self.built is None:
            return
        with self._timed(), no_autocast(pl_module.device):
            if trainer.global_step != self._seen_step:
                self._seen_step = trainer.global_step
                for name in self.built.step():
                    rank_zero_warn(f"StudentLegibility: {name} is dropped: {self.built.cohort.failed[name]}")
            if self._logs and is_logging_step(trainer):
                self._write_log(pl_module, self._logs)
                self._logs = {}

    def _build(self, recording: Recording, batch: Any) -> None:
        assert self._recorder is not None and self._trainer is not None
        pending, self._pending = self._pending, None
        state = None if pending is None else pending["cohort"]
        self.built = build_cohort(
            recording,
            batch,
            self._recorder.primary,
            students=None if isinstance(self.students, str) else list(self.students),
            imitate=self.imitate,
            budget=self.budget,
            learning_rate=self.learning_rate,
            seed=self.seed,
            on_failure=self.on_failure,
            # A student that had failed is built only to be dropped again.
            widths=None if state is None else [state["widths"].get(name, 4) for name in state["students"]],
        )
        if state is not None:
            self.built.load_state_dict(state)
        if self.summary and self._trainer.is_global_zero:
            print_summary(
                self.built,
                primary=self._recorder.primary,
                model=self._recorder.model or "",
                term=self._in_words(),
            )

    def _in_words(self) -> str:
        if self.strength == 0:
            return "none (strength 0): students are only measured"
        warm = f", reached over the first {self._ramp} steps" if self._ramp else ""
        assert self.built is not None
        what = "standardised error" if self.built.kind == "values" else f"{self.direction} KL"
        return f"{what} to the students' outputs, strength {self.strength:g}{warm}"
