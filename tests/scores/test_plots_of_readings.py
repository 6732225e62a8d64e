from typing import Any

import pytest
import torch
from known_heads import abc_head
from torch import nn

from legibility.scores import (
    DifficultySlope,
    Dimension,
    FeatureDimensionality,
    GatedDisentanglement,
    KeyValueMemories,
    LensGap,
    LinearCKA,
    LocalFidelity,
    MonosemanticUnits,
    Retargetability,
    UnitStudents,
    UsedGivenEncoded,
)


def test_every_metric_of_concepts_and_representation_draws_itself() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    hidden, concepts, rest = abc_head(128)
    given: list[tuple[Any, tuple[Any, ...]]] = [
        (UsedGivenEncoded(rest, permutations=20), (hidden, concepts)),
        (GatedDisentanglement(permutations=1), (hidden, concepts)),
        (MonosemanticUnits(permutations=1), (hidden, concepts)),
        (UnitStudents(steps=5), (hidden, hidden)),
        (Dimension(8), (hidden,)),
        (LinearCKA(8, 8), (hidden, hidden)),
        (LensGap(rest, layers=["early", "late"]), ({"early": hidden, "late": hidden}, rest(hidden))),
        (FeatureDimensionality(), (hidden[:10],)),
        (LocalFidelity(rest, points=2), (hidden,)),
        (DifficultySlope(), (hidden[:, 0], hidden[:, 1].exp())),
        (KeyValueMemories(torch.eye(8), torch.randn(2, 8), rest), (hidden, hidden.relu())),
        (Retargetability(nn.Linear(8, 2), nn.Linear(8, 2), passes=1), (hidden, concepts[:, 0], hidden)),
    ]
    for metric, batch in given:
        metric.update(*batch)
        value = metric.compute()
        entries = value.values() if isinstance(value, dict) else [value]
        assert all(entry.dtype == torch.float64 and entry.ndim == 0 for entry in entries), metric
        figure, _ = metric.plot()
        assert figure.get_axes()
        figure, _ = metric.plot([value, value])
        assert figure.get_axes()
        matplotlib.pyplot.close("all")
        assert metric.is_differentiable is False and metric.full_state_update is False
