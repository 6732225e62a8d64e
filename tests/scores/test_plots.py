from typing import Any

import pytest
import torch

from legibility.scores import (
    CompressedSizeOfModel,
    ErrorAgreement,
    FaithfulCircuit,
    FractionOfVarianceUnexplained,
    HeldOutImitation,
    PatchThroughKL,
    WeightSparsity,
)
from legibility.students import LinearStudent


def test_every_metric_draws_itself() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(64, 3, generator=generator), torch.randn(64, 3, generator=generator)
    through, unexplained = PatchThroughKL(), FractionOfVarianceUnexplained(3)
    sparsity, imitation = WeightSparsity(), HeldOutImitation([LinearStudent()], passes=1)
    through.update(logits, other)
    unexplained.update(logits, other)
    sparsity.update([("weight", torch.eye(3))])
    imitation.update(other, logits)
    model = torch.nn.Linear(3, 3)
    circuit, compressed, errors = (
        FaithfulCircuit(model, learned_steps=0),
        CompressedSizeOfModel(model),
        ErrorAgreement(3),
    )
    circuit.update(other * 9)
    compressed.update(other * 9, model(other * 9).argmax(-1))
    errors.update(*(torch.randint(0, 3, (64,), generator=generator) for _ in range(4)))
    metrics: list[Any] = [through, unexplained, sparsity, imitation, circuit, compressed, errors]
    for metric in metrics:
        figure, _ = metric.plot()
        assert figure.get_axes()
        figure, _ = metric.plot([metric.compute(), metric.compute()])
        assert figure.get_axes()
        matplotlib.pyplot.close("all")
