"""What fitting held-out students will take, from a few steps of each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from legibility.scores.imitation._decisions import steps_of_decisions
from legibility.scores.imitation._families import Training, block_edges, steps_of
from legibility.scores.imitation._held_out import held_out_imitation
from legibility.scores.imitation._queries import Queries
from legibility.students import Student

_ROWS = 32


class FitSeconds(NamedTuple):
    """Estimated seconds of `held_out_imitation`, and of `held_out_twin` for the same students."""

    imitation: float
    twin: float


def held_out_seconds(queries: Queries, students: Sequence[Student], *, passes: int = 4, blocks: int = 5) -> FitSeconds:
    """Estimates what `held_out_imitation` and `held_out_twin` will take, by fitting each student to noise.

    Each is trained for six steps, on 32 of the inputs and random answers and taps of the queries' shapes; the seconds of
    a step times the number of steps. What the first steps of a process cost more counts too. The global random state is
    neither used nor changed.

    Args:
        queries: what they would be fitted to.
        students: architectures.
        passes: as in `held_out_imitation`.
        blocks: as in `held_out_imitation`.

    Returns:
        The seconds, for networks fitted one at a time.

    Raises:
        ValueError: for settings out of range, or students that don't read such inputs.

    Example:
        >>> from legibility.students import LinearStudent
        >>> queries = Queries(inputs=torch.randn(512, 4), logits=torch.randn(512, 3))
        >>> estimate = held_out_seconds(queries, [LinearStudent()])
        >>> 0 < estimate.twin < estimate.imitation
        True

    Source: this project; the cost of a step hardly depends on the values.
    """
    rows = torch.linspace(0, len(queries) - 1, _ROWS).long().to(queries.inputs.device)
    noise = torch.Generator(queries.inputs.device).manual_seed(0)

    def random(values: torch.Tensor) -> torch.Tensor:
        return torch.randn(_ROWS, *values.shape[1:], generator=noise, device=values.device)

    few = Queries(
        inputs=queries.inputs[rows],
        logits=random(queries.logits),
        taps={name: random(tap) for name, tap in queries.taps.items()},
    )
    tried = [held_out_imitation(few, [student], passes=1, blocks=2) for student in students]
    seconds = sum(family.seconds for found in tried for family in found.values())
    _, few_steps = _steps(_ROWS, 1, 2)
    decisions, steps = _steps(len(queries), passes, blocks)
    return FitSeconds(seconds * steps / few_steps, seconds * decisions / few_steps)


def _steps(queries: int, passes: int, blocks: int) -> tuple[int, int]:
    """Optimizer steps of one student: those of its decisions, all of them."""
    training, edges = Training(passes, 8, 1e-2, 32, 0), block_edges(queries, blocks)
    decisions = steps_of_decisions(edges, training)
    return decisions, decisions + steps_of(edges[-2], 2 * passes, training.batch_size)
