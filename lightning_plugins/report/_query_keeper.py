"""Keeps inputs of the user's own batches during a fit, to be asked again when the model is finished."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from legibility.lightning_plugins.foundation._injector import Penalty, injector_of
from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._recording import look_at_loss
from legibility.lightning_plugins.report._queries import KeptCalls

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

MakeRecorder = Callable[..., Recorder]


class QueryKeeper:
    """Watches the first training batches and the first validation batches, then takes its hooks away.

    Validation batches are the better queries; training batches serve a fit that has none. The sanity check does not
    count. Only inputs are kept, so what is asked in the end is answered by the finished model.

    Args:
        limit: Number of examples to keep of each.
        recorder: ``recorder(pl_module, with_gradients=...)`` makes a recorder of the primary.
        found: Called with the primary's name, and the output's, once they are known.
        concepts: Dotted path of the labels of concepts within a batch, if there are any.
    """

    def __init__(
        self,
        limit: int,
        recorder: MakeRecorder,
        found: Callable[[str, str | None], None],
        concepts: str | None = None,
    ) -> None:
        self._limit, self._recorder, self._found, self._concepts = limit, recorder, found, concepts
        self._kept = {split: KeptCalls(limit, split, concepts) for split in ("validation", "training")}
        self._training: Recorder | None = None
        self._validation: Recorder | None = None
        self._module: weakref.ref[LightningModule] | None = None
        self._logits: bool | None = None  # what the training loss takes the output for

    @property
    def kept(self) -> KeptCalls:
        """The validation calls, or the training calls if there are none."""
        return self._kept["validation"] if self._kept["validation"].calls else self._kept["training"]

    def start(self, pl_module: "LightningModule") -> None:
        """Forgets what it has and watches the training steps to come."""
        self.stop()
        self._kept = {split: KeptCalls(self._limit, split, self._concepts) for split in self._kept}
        self._module, self._logits = weakref.ref(pl_module), None
        self._training = self._recorder(pl_module, with_gradients=True)
        self._training.install()
        injector_of(pl_module).attach(self)

    def stop(self) -> None:
        """Takes every hook away; what is kept stays."""
        self._stop_training()
        self._module = None
        self.stop_validation()

    def end_epoch(self) -> None:
        """Training examples come again in the next epoch: those of the first are all that is kept."""
        if self._kept["training"].calls:
            self._stop_training()

    def start_validation(self, pl_module: "LightningModule") -> None:
        """Watches a validation run, unless enough is kept already.

        A run that was too short for the limit is forgotten: the next one brings the same examples again, and an
        example kept twice would be learnt from and asked about.
        """
        if self._kept["validation"].full:
            return
        self._kept["validation"] = KeptCalls(self._limit, "validation", self._concepts)
        if self._validation is None:
            self._validation = self._recorder(pl_module, with_gradients=False)
            self._validation.install()

    def open_validation_batch(self) -> None:
        """Records the calls of one validation batch."""
        if self._validation is not None:
            self._validation.open()

    def keep_validation_batch(self, batch: Any) -> None:
        """Keeps their inputs."""
        if self._validation is not None:
            try:
                self._keep("validation", self._validation, batch)
            except (ValueError, TypeError):
                # Validation may call the model in another way, or not at all: training batches serve then.
                self._validation.discard()

    def stop_validation(self) -> None:
        """A validation run is over. Within a fit the hooks stay for the next one, if more is needed.

        A compiled model would be compiled anew for each new hook.
        """
        if self._validation is None:
            return
        self._validation.discard()
        if self._module is None or self._kept["validation"].full:
            self._validation.remove()
            self._validation = None

    # -- participant of the training step

    def before_step(self, batch: Any) -> None:
        """The user's step begins: record its calls."""
        if self._training is not None:
            self._training.open()

    def abandon_step(self) -> None:
        """The user's step raised: forget."""
        if self._training is not None:
            self._training.discard()

    def around_backward(self, loss: Tensor, batch: Any) -> AbstractContextManager[None]:
        """Nothing: it only watches."""
        return nullcontext()

    def after_step(self, batch: Any, loss: Tensor | None) -> Penalty | None:
        """Keeps the step's inputs; adds nothing to the loss."""
        if self._training is not None:
            self._keep("training", self._training, batch, loss)
            if self._kept["training"].full:
                self._stop_training()
        return None

    def _keep(self, split: str, recorder: Recorder, batch: Any, loss: Tensor | None = None) -> None:
        recordings = recorder.close(batch)
        if self._logits is None:
            look_at_loss(recordings, loss)
            self._logits = next((r.logits for r in recordings if r.logits is not None), None)
        for recording in recordings:
            recording.logits = self._logits
        if recorder.model is not None:
            self._found(recorder.model, recorder.output)
        self._kept[split].keep(recordings, batch)

    def _stop_training(self) -> None:
        if self._training is not None:
            self._training.remove()
        self._training = None
        module = self._module() if self._module is not None else None
        if module is not None:
            injector_of(module).detach(self)
