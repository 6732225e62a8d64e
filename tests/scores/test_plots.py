from typing import Any

import pytest
import torch

from legibility.scores import FractionOfVarianceUnexplained, HeldOutImitation, PatchThroughKL, WeightSparsity
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
    metrics: list[Any] = [through, unexplained, sparsity, imitation]
    for metric in metrics:
        figure, _ = metric.plot()
        assert figure.get_axes()
        figure, _ = metric.plot([metric.compute(), metric.compute()])
        assert figure.get_axes()
        matplotlib.pyplot.close("all")
