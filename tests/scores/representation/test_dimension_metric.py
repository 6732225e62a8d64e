import math

import pytest
import torch
from torch import Tensor

from legibility.scores import Dimension, activation_rms, effective_rank, live_units, participation_ratio


@pytest.fixture
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(60, 7, generator=generator, dtype=torch.float64) @ torch.randn(7, 7, generator=generator).double()
    )
    rows[:, 3] = 0.1  # a dead unit
    return rows.relu() + 1


def measured(rows: Tensor, mask: Tensor | None = None, *, cuts: int = 60) -> dict[str, float]:
    metric = Dimension(rows.shape[-1])
    for part in torch.split(torch.arange(len(rows)), cuts):
        metric.update(rows[part], None if mask is None else mask[part])
    return {name: value.item() for name, value in metric.compute().items()}


def test_equals_the_library(rows: Tensor) -> None:
    library = pytest.importorskip("dimensionality")
    expected = library.participation_ratio(rows.numpy(), return_all=True)["row"]
    assert participation_ratio(rows) == pytest.approx(expected, rel=1e-9)
    assert measured(rows)["participation_ratio"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cuts", [1, 7, 60])
def test_equals_the_functions_however_cut(rows: Tensor, cuts: int) -> None:
    found = measured(rows, cuts=cuts)
    assert found["participation_ratio"] == pytest.approx(participation_ratio(rows), rel=1e-9)
    assert found["effective_rank"] == pytest.approx(effective_rank(rows), rel=1e-9)
    assert found["activation_rms"] == pytest.approx(activation_rms(rows), rel=1e-12)
    assert found["live_units"] == live_units(rows) == 6


def test_mask_and_leading_shape(rows: Tensor) -> None:
    mask = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    holed = rows.view(12, 5, 7).masked_fill(~mask.unsqueeze(-1), math.nan)
    assert measured(holed, mask) == pytest.approx(measured(rows[mask.flatten()]), rel=1e-9)


def test_known_spectrum_from_a_great_many_samples() -> None:
    signs = torch.randint(2, (100_000, 4), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    found = measured(signs * torch.tensor([2.0, 1.0, 1.0, 1.0]), cuts=50_000)
    assert found["participation_ratio"] == pytest.approx(2.57895, rel=0.01)
    assert found["effective_rank"] == pytest.approx(3.17003, rel=0.01)


def test_no_unit_that_varies() -> None:
    found = measured(torch.full((50, 3), 0.1))
    assert math.isnan(found["participation_ratio"]) and math.isnan(found["effective_rank"])
    assert found["live_units"] == 0 and found["activation_rms"] == pytest.approx(0.1)


def test_errors(rows: Tensor) -> None:
    metric = Dimension(7)
    metric.update(rows[:3])
    with pytest.raises(ValueError, match="at least 4 unmasked positions, got 3"):
        metric.compute()
    with pytest.raises(ValueError, match="`activations` must have 7 units"):
        metric.update(rows[:, :5])
    with pytest.raises(ValueError, match="must be finite"):
        metric.update(rows / 0)
    with pytest.raises(ValueError, match="`units` must be at least 1"):
        Dimension(0)
