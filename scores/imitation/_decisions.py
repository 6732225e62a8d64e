"""The student of decisions: learns hard labels block by block and codes the next block with what it learnt."""

import itertools
import math
from collections.abc import Callable, Sequence
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
    surplus: float


SURPLUS_TOLERANCE = 0.1
"""Bits per label that count as learnt, for the surplus description length (epsilon)."""


def no_decisions() -> Decisions:
    """Of labels that never change: nothing to learn."""
    return Decisions(math.nan, math.nan, math.nan, math.nan, math.nan)


def sent(blocks: Sequence[tuple[int, float]], null_code_length: float, disagreement: float) -> Decisions:
    """What the code cost, from the number of labels and the bits of each block.

    The surplus takes a block's mean for the expected loss after so much training: `sum_b n_b max(bits_b / n_b - eps, 0)`.
    """
    code_length = sum(bits for _, bits in blocks)
    return Decisions(
        code_length=code_length,
        null_code_length=null_code_length,
        saving=code_length_saving(code_length, null_code_length),
        disagreement=disagreement,
        # NaN stays NaN: max(NaN, 0) would not.
        surplus=sum(max(bits - SURPLUS_TOLERANCE * count, 0.0) for count, bits in blocks) + 0.0 * code_length,
    )


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
        return no_decisions()
    null_code_length = float(kt_code_length(counts))
    first = slice(0, edges[0])
    known = labels[first][counted[first]]
    blocks = [(known.numel(), float(kt_code_length(torch.bincount(known, minlength=classes))))]

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
        blocks.append((target.numel(), float(prediction_code_length(logits / temperature, target).sum())))
        wrong, last = int((logits.argmax(-1) != target).sum()), target.numel()
        temperature = _calibrated(logits, target) if stop < edges[-1] else 1.0
    return sent(blocks, null_code_length, wrong / last if last else math.nan)


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
