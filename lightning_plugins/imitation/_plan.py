"""What the students will be, from the first recorded call: planned by each rank, agreed by all."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._compiled import uncompiled
from legibility.lightning_plugins.foundation._recording import Recording, class_labels, has_classes
from legibility.lightning_plugins.foundation._sizes import whole_sizes
from legibility.lightning_plugins.foundation._untouched import untouched
from legibility.students import (
    Cohort,
    Signature,
    Student,
    auto_students,
    check_smaller,
    flops,
    read_signature,
    size_students,
)

Imitate = Literal["auto", "distribution", "values"]


def check_students(students: Any, argument: str = "students") -> None:
    """What the user gave as students.

    Raises:
        TypeError: No list of students; a class in place of a student.
        ValueError: An unknown word, or nobody.
    """
    expected = f'`{argument}` must be "auto" or a list of students such as `[MLPStudent()]`'
    if isinstance(students, str):
        if students != "auto":
            raise ValueError(f"{expected}, got {students!r}.")
        return
    if not isinstance(students, Sequence):
        raise TypeError(f"{expected}, got {students!r}.")
    if not students:
        raise ValueError(f'`{argument}` is empty: nobody would imitate. Give some, or leave it at "auto".')
    for student in students:
        if isinstance(student, type) and issubclass(student, Student):
            raise TypeError(f"{expected}, got the class {student.__name__}: write `{student.__name__}()`.")
        if not isinstance(student, Student):
            raise TypeError(f"{expected}, got {student!r} among them.")


@dataclass(frozen=True)
class Plan:
    """What a rank would build.

    Attributes:
        signature: What the students read and imitate.
        kind: "distribution" or "values".
        widths: One for each student.
        primary_flops: FLOPs of one forward call of the primary on the first batch.
        student_flops: Student -> FLOPs on the same batch.
    """

    signature: Signature
    kind: Literal["distribution", "values"]
    widths: list[int]
    primary_flops: int
    student_flops: dict[str, int]

    def with_vocabulary(self, size: int) -> "Plan":
        """The same with so many token ids, if tokens are read."""
        if self.signature.vocabulary is None:
            return self
        return replace(self, signature=replace(self.signature, vocabulary=size))

    def students(self, given: Sequence[Student] | None) -> Sequence[Student]:
        """Those that were given, or the default ones."""
        return auto_students(self.signature) if given is None else given


def plan_cohort(
    recording: Recording,
    batch: Any,
    primary: nn.Module,
    *,
    students: Sequence[Student] | None,
    imitate: Imitate,
    budget: float,
    widths: list[int] | None = None,
) -> Plan:
    """Chooses and sizes the students for what was recorded, on this rank.

    Args:
        recording: The primary's first call.
        batch: The batch it belongs to, searched for class labels.
        primary: The recorded module; run once more to count FLOPs, without a trace.
        students: Architectures, or None for the default ones.
        imitate: What the output is.
        budget: Share of the primary's FLOPs for all students without a width.
        widths: The students' widths, when a checkpoint has settled them.

    Raises:
        ValueError: Shapes that no student reads, or students larger than the primary.
    """
    signature = read_signature(
        recording.inputs,
        recording.imitated.float(),
        recording.taps,
        vocabulary=_vocabulary(primary, recording.inputs),
    )
    cost = _primary_flops(primary, recording)
    size = sum(whole_sizes(primary).values())
    chosen = auto_students(signature) if students is None else students
    if widths is None:
        widths = size_students(
            chosen, signature, recording.inputs, budget_flops=budget * cost, budget_parameters=max(1.0, budget * size)
        )
    distribution = _is_distribution(imitate, signature, recording, batch)
    kind: Literal["distribution", "values"] = "distribution" if distribution else "values"
    trial = Cohort(chosen, signature, widths=widths, device=recording.output.device, kind=kind, distributed=False)
    costs = {name: flops(network, recording.inputs) for name, network in trial.networks.items()}
    if students is not None:
        check_smaller(trial.networks, recording.inputs, primary_flops=cost, primary_parameters=size)
    return Plan(signature, kind, widths, cost, costs)


def plan_together(
    recordings: Sequence[Recording], batch: Any, primary: Callable[[], nn.Module], ranks: int, **choices: Any
) -> Plan | None:
    """This rank's plan or, with several ranks, the common one: collective then, also where nothing was recorded.

    Args:
        recordings: The calls of this step, perhaps none.
        batch: The batch they belong to.
        primary: Returns the recorded module; asked only if there was a call.
        ranks: How many there are.
        choices: As for :func:`plan_cohort`.

    Returns:
        The plan; None if nobody saw a call.
    """
    if ranks == 1:
        return plan_cohort(recordings[0], batch, primary(), **choices) if recordings else None
    own: Plan | Exception | None = None
    if recordings:
        try:
            own = plan_cohort(recordings[0], batch, primary(), **choices)
        except Exception as error:  # noqa: BLE001
            own = error  # the others wait to hear of it, and then it is raised
    return agree(own)


def agree(own: Plan | Exception | None) -> Plan | None:
    """One plan for all ranks, from those that saw a call of the model: with the smallest widths, the largest vocabulary.

    Collective. Ranks size their students by their own first batch, whose length may differ; a rank whose first batch
    does not need the model has no plan.

    Args:
        own: This rank's plan, why it has none, or None if it saw no call.

    Returns:
        The plan; None while no rank saw a call.

    Raises:
        ValueError: A rank could not plan (on that rank: its own error), or two ranks saw calls of different kinds.
    """
    told = f"{type(own).__name__}: {own}" if isinstance(own, Exception) else own
    heard: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(heard, told)
    if isinstance(own, Exception):
        raise own
    failed = [f"rank {rank}: {entry}" for rank, entry in enumerate(heard) if isinstance(entry, str)]
    if failed:
        raise ValueError(f"no students could be built on {failed[0]}")
    plans: dict[int, Plan] = {rank: plan for rank, plan in enumerate(heard) if plan is not None}
    if not plans:
        return None
    highest = max(plan.signature.vocabulary or 0 for plan in plans.values())
    plans = {rank: plan.with_vocabulary(highest) for rank, plan in plans.items()}
    first = next(iter(plans.values()))
    for rank, plan in plans.items():
        if plan.signature.settled != first.signature.settled or len(plan.widths) != len(first.widths):
            raise ValueError(
                f"`model`: the ranks' first calls are of different kinds: {plan.signature.settled} on rank {rank}, "
                f"{first.signature.settled} on rank {next(iter(plans))}. Name the part to imitate with `model=`."
            )
    distribution = any(plan.kind == "distribution" for plan in plans.values())
    widths = [min(choices) for choices in zip(*(plan.widths for plan in plans.values()), strict=True)]
    return replace(first, widths=widths, kind="distribution" if distribution else "values")


def _vocabulary(primary: nn.Module, inputs: Tensor) -> int | None:
    """The number of token ids: that of the primary's largest embedding, else those seen."""
    if inputs.is_floating_point():
        return None
    sizes = [m.num_embeddings for m in primary.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return max(sizes) if sizes else int(inputs.max()) + 1


def _is_distribution(imitate: str, signature: Signature, recording: Recording, batch: Any) -> bool:
    if imitate == "distribution" and signature.outputs < 2:
        raise ValueError(
            '`imitate` = \'distribution\' needs at least 2 outputs, got 1. Give "values", or leave it at "auto".'
        )
    if imitate != "auto":
        return imitate == "distribution"
    if not has_classes(recording):
        return False
    if recording.logits is not None:
        return recording.logits
    if signature.reads == "tokens" and signature.per_position:
        return True
    return class_labels(batch, recording) is not None


def _primary_flops(primary: nn.Module, recording: Recording) -> int:
    """FLOPs of one forward call, counted by running it again; by its parameters where that does not work."""
    try:
        with untouched(primary), uncompiled(), warnings.catch_warnings():
            # The counter's hooks are global ones, and compiled modules say so.
            warnings.filterwarnings("ignore", message=".*global hooks on modules.*")
            counted = flops(lambda: primary(*recording.args, **recording.kwargs))
        if counted > 0:
            return counted
    except Exception as error:  # noqa: BLE001
        # Whatever the user's forward raises when it is run a second time must not end the user's training.
        warnings.warn(
            f"StudentLegibility could not count the primary's FLOPs ({type(error).__name__}: {error}); the students "
            "are sized by its number of parameters.",
            stacklevel=2,
        )
    positions = (
        recording.inputs.shape[1] if recording.inputs.ndim == 2 and not recording.inputs.is_floating_point() else 1
    )
    size = sum(whole_sizes(primary).values())
    return 2 * size * recording.inputs.shape[0] * positions
