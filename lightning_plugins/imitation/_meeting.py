"""One recorded call meets the students: they predict, the primary gets its penalty, they learn."""

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from legibility.lightning_plugins.foundation._injector import Penalty
from legibility.lightning_plugins.foundation._recording import Recording
from legibility.lightning_plugins.imitation._build_cohort import BuiltCohort
from legibility.lightning_plugins.imitation._legibility_term import Direction, describe, legibility_penalty


def meet(
    built: BuiltCohort,
    recording: Recording,
    *,
    strength: float,
    direction: Direction,
    weight: float | None,
    logging: bool,
) -> tuple[Penalty | None, dict[str, Tensor | float]]:
    """One prediction of each student serves both sides, each time with the other side detached.

    Args:
        built: The students.
        recording: The primary's call.
        strength: Coefficient of the term.
        direction: Of the divergence.
        weight: Of this call among those that the students learn from before their next step; None: they don't learn.
        logging: Compute what is logged too.

    Returns:
        The penalty, or None if there is nothing to add; and the values to log.
    """
    predictions = built.cohort.predict(recording.inputs, recording.mask)
    term, penalty = legibility_penalty(
        recording,
        [prediction.output for _, prediction in predictions],
        [built.cohort.active[name] for name, _ in predictions],
        strength=strength,
        direction=direction,
        values=built.kind == "values",
        share=built.share,
    )
    if weight is None:
        return penalty, {}
    losses = built.learn(recording, predictions, weight)
    watched = logging or built.guards.fresh  # the first call is what later ones are held against
    guards = built.guards.look(recording, built.kind, built.plan.signature, warn=strength > 0) if watched else {}
    if not logging:
        return penalty, {}
    return penalty, {"term": term, **describe(built.kind, recording, predictions, losses), **guards}


def meet_each(
    built: BuiltCohort, recordings: list[Recording], **how: Any
) -> tuple[list[Penalty], dict[str, Tensor | float]]:
    """Each recorded call of a step meets the students, as in :func:`meet`: the penalties, and the last call's logs."""
    met = [meet(built, recording, **how) for recording in recordings]
    logs = [found for _, found in met if found]
    return [penalty for penalty, _ in met if penalty is not None], logs[-1] if logs else {}


def with_examples(recordings: list[Recording]) -> list[Recording]:
    """The calls in which there is anybody to imitate: a batch may be empty on one rank, or after filtering."""
    return [recording for recording in recordings if recording.output.numel() and len(recording.inputs)]


def of_known_kind(built: BuiltCohort, recordings: list[Recording], *, warn: bool) -> list[Recording]:
    """The calls of the kind that the students were built for; others are left out, with a warning if asked for."""
    known = [recording for recording in recordings if built.fits(recording)]
    if warn and len(known) < len(recordings):
        other = next(recording for recording in recordings if recording not in known)
        rank_zero_warn(
            f"StudentLegibility leaves out calls of the model with input {tuple(other.inputs.shape)} and output "
            f"{tuple(other.output.shape)}: the students were built for the first call's kind. "
            "To have another part imitated, name it with `model=`."
        )
    return known


def say_if_it_never_counted(built: BuiltCohort, batches: int) -> None:
    """Warns at the end of a fit in which a term was asked for and there was none. Of students elsewhere, others know."""
    if batches > 0 and built.ranks == 1 and not any(built.cohort.active.values()):
        rank_zero_warn(
            f"StudentLegibility: in {batches} batches no student came to know more of the model than a constant does, "
            "so the term was zero throughout and the model was trained as without it. Train longer, or raise "
            "`learning_rate`, which is the students'."
        )
