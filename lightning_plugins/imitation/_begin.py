"""The students' first step: planned, agreed, built, and gone on with from a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._recording import Recording
from legibility.lightning_plugins.imitation._build_cohort import BuiltCohort
from legibility.lightning_plugins.imitation._plan import Imitate, plan_together
from legibility.lightning_plugins.imitation._split import Sync, settled_widths, split, state_of_rank
from legibility.lightning_plugins.imitation._whole_activations import check_whole
from legibility.students import Cohort, Student

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


@contextmanager
def also_at_zero(strength: float) -> Iterator[None]:
    """Students that can't be made are an error without a term too, for they are measured: at strength 0, says so."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if strength > 0:
            raise
        raise type(error)(
            f"{error} (At `strength` 0 the students still train, to be measured; leave StudentLegibility out to train "
            "without them.)"
        ) from error


def begin(
    recordings: Sequence[Recording],
    batch: Any,
    recorder: Recorder,
    trainer: "Trainer",
    pending: Mapping[str, Any] | None,
    *,
    students: Sequence[Student] | None,
    imitate: Imitate,
    budget: float,
    learning_rate: float,
    seed: int,
    on_failure: Literal["drop", "raise"],
    sync: Sync,
) -> BuiltCohort | None:
    """Builds the students once any rank has seen a call of the model.

    With several ranks all come here in the same step, whatever each has recorded: a batch without examples, or
    without need of the model, is no reason for the others to wait.

    Args:
        recordings: This step's calls on this rank, perhaps none.
        batch: The batch they belong to, searched for class labels.
        recorder: What recorded them.
        trainer: The fit's.
        pending: The callback's state, from a checkpoint.
        students: Architectures, or None for the default ones.
        imitate: What the output is.
        budget: Share of the primary's FLOPs for all students without a width.
        learning_rate: Of the students' Adam.
        seed: Of their initial weights.
        on_failure: Drop a failing student, or raise.
        sync: Whether each rank has all students.

    Returns:
        The students; None if nobody saw a call yet.

    Raises:
        ValueError: Activations in parts (tensor parallelism), shapes that no student reads, students larger than the
            primary, fewer than ranks to split over, or a checkpoint that can't be gone on from.
    """
    check_whole(trainer, recordings)
    state = None if pending is None else state_of_rank(pending, trainer, sync)
    plan = plan_together(
        recordings,
        batch,
        lambda: recorder.primary,
        trainer.world_size,
        students=students,
        imitate=imitate,
        budget=budget,
        widths=None if pending is None else settled_widths(pending),
    )
    if plan is None:
        return None
    cohort = Cohort(
        plan.students(students),
        plan.signature,
        widths=plan.widths,
        seed=seed,
        learning_rate=learning_rate,
        device=recordings[0].output.device if recordings else trainer.strategy.root_device,
        kind=plan.kind,
        on_failure=on_failure,
        distributed=trainer.world_size > 1,
    )
    built = BuiltCohort(cohort, plan)
    if sync == "split":
        split(built, trainer.global_rank, trainer.world_size)
    if state is not None:
        built.load_state_dict(state)
    if cohort.distributed and not recordings:
        cohort.attend()
    return built
