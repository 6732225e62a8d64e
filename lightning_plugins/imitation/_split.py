"""Students split by rank: each rank trains some of them on its own data, and ranks speak only of what is reported."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from legibility.lightning_plugins.imitation._build_cohort import BuiltCohort
from legibility.lightning_plugins.imitation._whole_activations import tensor_parallel_group
from legibility.students import Student

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

Sync = Literal["all", "split"]
Logs = dict[str, Tensor | float]


def check_sync(
    sync: Sync, trainer: "Trainer", students: Sequence[Student] | str, state: Mapping[str, Any] | None
) -> None:
    """What is known before the first step of whether a fit's ranks can have their students so.

    Args:
        sync: Whether each rank has all students.
        trainer: The fit's.
        students: What was given.
        state: The callback's state to go on from.

    Raises:
        ValueError: Fewer students than ranks to split them over, ranks that work on one batch together, or a
            checkpoint whose students were split in another way.
    """
    if state is not None:
        state_of_rank(state, trainer, sync)
    if sync == "all":
        return
    if not isinstance(students, str):
        _enough(len(students), trainer.world_size)
    if tensor_parallel_group(trainer) is not None:
        raise ValueError(
            '`sync="split"` needs ranks with data of their own; under tensor parallelism several compute the same '
            'batch together. Leave it at `sync="all"`.'
        )


def _enough(students: int, ranks: int) -> None:
    if students < ranks:
        raise ValueError(
            f'`sync="split"` needs at least one student for each rank, got {students} for {ranks} ranks: the others '
            'would train nobody, and their data would pull at nothing. Give more `students`, or `sync="all"`.'
        )


def split(built: BuiltCohort, rank: int, ranks: int) -> None:
    """Leaves to this rank the students k with k % ranks == rank.

    Raises:
        ValueError: Fewer students than ranks.
    """
    names = built.cohort.names
    _enough(len(names), ranks)
    if ranks == 1:
        return  # the same as all students on each rank
    built.cohort.keep(names[rank::ranks])
    built.ranks = ranks


def logs_of_all(built: BuiltCohort, own: Logs) -> Logs:
    """This rank's values; split by rank, with the mean term and all students' values: collective then."""
    if built.ranks == 1:
        return own
    metrics = ["imitation", *(f"fvu/{tap}" for tap in built.plan.signature.taps)]
    metrics += ["disagreement"] if built.kind == "distribution" else []
    keys = ["term", *(f"student/{name}/{metric}" for name in built.cohort.names for metric in metrics)]
    table = torch.zeros(2, len(keys), device=built.cohort.device)
    for column, key in enumerate(keys):
        if key in own:
            table[0, column], table[1, column] = own[key], 1.0
    dist.all_reduce(table)
    sums, counts = table.tolist()
    means = {key: total / count for key, total, count in zip(keys, sums, counts, strict=True) if count}
    return {**own, **means}


def failures_of_all(built: BuiltCohort) -> None:
    """Split by rank, every rank learns which students were dropped elsewhere: collective then."""
    if built.ranks > 1:
        heard: list[Any] = [None] * built.ranks
        dist.all_gather_object(heard, dict(built.cohort.failed))
        for failed in heard:
            built.cohort.failed |= failed


def states_of_all(built: BuiltCohort) -> dict[str, Any]:
    """Split by rank, what a checkpoint needs beside rank 0's own state: collective then, the states are on rank 0."""
    if built.ranks == 1:
        return {}
    here = apply_to_collection(built.state_dict(), Tensor, lambda tensor: tensor.detach().cpu())
    heard: list[Any] | None = [None] * built.ranks if dist.get_rank() == 0 else None
    dist.gather_object(here, heard)
    return {"cohorts": heard}


def state_of_rank(state: Mapping[str, Any], trainer: "Trainer", sync: Sync) -> Mapping[str, Any] | None:
    """The cohort's state that this rank goes on from, out of the callback's; None if there were no students yet.

    Raises:
        ValueError: The checkpoint's students were split in another way, or are not all in it.
    """
    ranks = trainer.world_size if sync == "split" else 1
    cohort: Mapping[str, Any] | None = state["cohort"]
    before = state.get("ranks", 1)
    if cohort is None or before == ranks == 1:
        return cohort
    if before != ranks:
        told = [f'split over {n} ranks (`sync="split"`)' if n > 1 else "not split" for n in (before, ranks)]
        raise ValueError(
            f"`sync`: the students of this checkpoint are {told[0]}, those of this fit {told[1]}. Each knows its own "
            "rank's data only: resume with the same `sync` and number of ranks."
        )
    cohorts: Sequence[Mapping[str, Any]] | None = state.get("cohorts")
    if cohorts is None:
        raise ValueError(
            '`sync="split"`: this checkpoint was written while a fit was being interrupted, when ranks can no longer '
            "speak to each other, and holds the students of one rank only. Resume from an earlier checkpoint."
        )
    return cohorts[trainer.global_rank]


def settled_widths(state: Mapping[str, Any]) -> list[int] | None:
    """Every student's width out of the callback's state; None if there were no students yet."""
    if state["cohort"] is None:
        return None
    known: dict[str, int] = {}
    for cohort in state.get("cohorts") or [state["cohort"]]:
        known |= cohort["widths"]
    # A student that had failed is built only to be dropped again.
    return [known.get(name, 4) for name in state["cohort"]["students"]]
