"""The finished model of a fit as the subject of questions: its calls, its device, what took part in its training."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._sizes import outermost
from legibility.lightning_plugins.imitation._student_legibility import StudentLegibility
from legibility.lightning_plugins.report._queries import KeptCalls, Subject
from legibility.lightning_plugins.report._run_record import plugins_of
from legibility.lightning_plugins.report._shards import Ranks
from legibility.lightning_plugins.sparsity._weight_step import WeightStep
from legibility.lightning_plugins.sparsity._wiring_cost import WiringCost

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


def finished_model(
    trainer: "Trainer", pl_module: "LightningModule", ranks: Ranks, kept: KeptCalls, recorder: Callable[[], Recorder]
) -> Subject:
    """The subject.

    Args:
        trainer: Of the fit: what of ours took part.
        pl_module: The module with the finished weights.
        ranks: Those of the trainer.
        kept: The calls that are asked again; where weights are spread over ranks, those of rank 0 on all.
        recorder: Makes a recorder of the primary with its taps.

    Returns:
        The subject.

    Raises:
        ValueError: The model was never called.
    """
    kept = ranks.first(kept)
    watcher = recorder()
    if watcher.model is None:
        raise ValueError("the model was never called, so it is not known: name it with `model=`")
    plugins = plugins_of(trainer)
    trained = [c.built for c in plugins if isinstance(c, StudentLegibility) and c.strength > 0 and c.built]
    return Subject(
        primary=watcher.primary,
        recorder=recorder,
        outermost=outermost(pl_module),
        ranks=ranks,
        calls=kept.calls,
        split=kept.split,
        device=trainer.strategy.root_device,
        trained_with=frozenset(type(s) for built in trained for s in built.cohort.students.values()),
        sparsified=any(isinstance(c, WeightStep) and c.active for c in plugins),
        wired=any(isinstance(c, WiringCost) and c.active for c in plugins),
        output=watcher.output,
    )
