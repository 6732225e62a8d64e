"""The student of decisions: learns hard labels block by block and codes the next block with what it learnt."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from legibility.scores.imitation._code_length import code_length_saving, kt_code_length, prediction_code_length
from legibility.scores.imitation._families import Imitator, Training, steps_of
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._temperature import match_temperature
from legibility.students import Prediction, Student, read_signature


@dataclass(frozen=True)
class Decisions:
    """What it cost to send labels with one student's help: bits with it and without, and errors on the last block."""

    code_length: float
    null_code_length: float
    saving: float
    disagreement: float


def imitate_decisions(
    queries: Queries,
    labels: Tensor,
    student: Student,
    edges: list[int],
    training: Training,
    advance: Callable[[], None],
) -> Decisions:
    """Send `labels` of all counted positions, block by block. All NaN if they never change: nothing to learn."""
    counted = queries.counted
    classes = queries.logits.shape[-1]
    counts = torch.bincount(labels[counted], minlength=classes)
    if int((counts > 0).sum()) < 2:
        return Decisions(math.nan, math.nan, math.nan, math.nan)
    null_code_length = float(kt_code_length(counts))
    first = slice(0, edges[0])
    bits = float(kt_code_length(torch.bincount(labels[first][counted[first]], minlength=classes)))

    def loss(prediction: Prediction, rows: Tensor) -> Tensor:
        keep = counted[rows]
        # The sum over an empty selection is 0, its mean NaN.
        total = functional.cross_entropy(prediction.output[keep], labels[rows][keep], reduction="sum")
        return total / keep.sum().clamp(min=1)

    imitator = Imitator(student, read_signature(queries.inputs, queries.logits), queries, training, advance)
    temperature = 1.0
    wrong, last = 0, 0
    for start, stop in itertools.pairwise(edges):
        imitator.learn(start, loss, passes=training.passes)
        logits = torch.cat([prediction.output[counted[rows]] for rows, prediction in imitator.answers(start, stop)])
        target = labels[start:stop][counted[start:stop]]
        bits += float(prediction_code_length(logits / temperature, target).sum())
        wrong, last = int((logits.argmax(-1) != target).sum()), target.numel()
        temperature = _calibrated(logits, target) if stop < edges[-1] else 1.0
    return Decisions(
        code_length=bits,
        null_code_length=null_code_length,
        saving=code_length_saving(bits, null_code_length),
        disagreement=wrong / last if last else math.nan,
    )


def _calibrated(logits: Tensor, target: Tensor) -> float:
    """The temperature for the next block: the best for this one, at least 1.

    A student that is too sure of what it learnt by heart stays so with more training; one that isn't sure enough yet
    is helped by the training itself, and would be made too sure.
    """
    if not len(target) or not bool(torch.isfinite(logits).all()):
        return 1.0
    return max(1.0, match_temperature(logits, target, 0.0))


def steps_of_decisions(edges: list[int], training: Training) -> int:
    """Optimizer steps that `imitate_decisions` takes."""
    return sum(steps_of(edge, training.passes, training.batch_size) for edge in edges[:-1])
