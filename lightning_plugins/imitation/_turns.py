"""When students learn and step, and what a recorded call counts for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from legibility.lightning_plugins.foundation._manual_optimization import ManualOptimization
from legibility.lightning_plugins.foundation._recording import Recording

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class Turns:
    """The students learn from each batch once, and step once for each optimizer step of the primary."""

    def __init__(self) -> None:
        self._manual: ManualOptimization | None = None
        self._learned, self._trained, self._seen_step = False, False, 0

    def begin_fit(self, trainer: "Trainer", manual: ManualOptimization | None) -> None:
        """Steps of an earlier fit, or of the run that is resumed, don't count."""
        self._manual, self._seen_step = manual, trainer.global_step

    def begin_batch(self) -> None:
        """A closure may run the step several times; the students learn from the first run only."""
        self._learned = self._trained = False
        if self._manual is not None:
            self._manual.begin_batch()

    def end_lesson(self) -> None:
        """The user's step has run once: what it runs again is not learned from."""
        self._learned = True

    def meet(self, recordings: Sequence[Recording]) -> None:
        """The primary was called: with gradients, unless only a part without it is trained in this batch."""
        self._trained = self._trained or any(recording.output.requires_grad for recording in recordings)

    def share(self, recordings: Sequence[Recording]) -> float:
        """What one call counts in the term: by hand, its share of a loss is known only when the loss is."""
        return 1 / max(1, len(recordings)) if self._manual is None else 1.0

    def weight(self, recordings: Sequence[Recording], trainer: "Trainer") -> float | None:
        """What one call counts among all that the students learn from before their next step; None = nothing."""
        return None if self._learned else self.share(recordings) / trainer.accumulate_grad_batches

    def primary_stepped(self, trainer: "Trainer") -> bool:
        """Whether the primary's optimizer stepped in the batch that ends."""
        before, self._seen_step = self._seen_step, trainer.global_step
        counted = before != trainer.global_step
        return counted if self._manual is None else self._manual.end_batch(trained=self._trained, counted=counted)
