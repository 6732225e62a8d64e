"""The threshold that keeps the k largest weights, and what it leaves."""

import math

import pytest
import torch

from legibility.losses import hard_threshold, magnitude_threshold


def by_sorting(w: torch.Tensor, keep: int) -> torch.Tensor:
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[w.flatten().abs().argsort(descending=True)[:keep]] = True
    return mask.reshape(w.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("start", [None, 1e-6, 0.5, 1e6])
def test_equals_sorting(dtype: torch.dtype, start: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randperm(200, generator=generator) + 1  # bfloat16 tells the whole numbers up to 256 apart
    w = torch.where(numbers % 2 == 0, numbers, -numbers).to(dtype).reshape(20, 10)
    for keep in (1, 7, 100, 199, 200):
        threshold = magnitude_threshold([w], keep, start=start)
        assert torch.equal(w.abs() > threshold, by_sorting(w.float(), keep)), keep


def test_several_tensors_are_taken_together() -> None:
    threshold = magnitude_threshold([torch.tensor([4.0, 1.0]), torch.tensor([[3.0], [-2.0]])], 3)
    assert 1 <= threshold < 2


def test_edges() -> None:
    w = torch.tensor([2.0, -2.0, 0.0, 0.0])
    assert magnitude_threshold([w], 3) == 0.0, "zeros can't be kept"
    assert magnitude_threshold([w], 4) == 0.0
    assert (hard_threshold(w, magnitude_threshold([w], 1)) != 0).sum() == 2, "ties stay"
    assert not hard_threshold(w, magnitude_threshold([w], 0)).any()
    assert magnitude_threshold([torch.zeros(3)], 2) == 0.0
    assert magnitude_threshold([torch.zeros(0)], 0) == 0.0
    extreme = torch.tensor([math.inf, 1e-45, 3e38, float("nan")])
    kept = hard_threshold(extreme, magnitude_threshold([extreme], 2))
    assert kept[0] == math.inf and kept[1] == 0 and kept[2] == 3e38 and kept[3].isnan()


def test_tolerance_saves_looks_and_is_kept() -> None:
    w = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    looks = []

    def counted(count: torch.Tensor) -> torch.Tensor:
        looks.append(int(count))
        return count

    exact = magnitude_threshold([w], 1000, total=counted)
    assert int((w.abs() > exact).sum()) == 1000
    looks.clear()
    near = magnitude_threshold([w], 990, start=exact, tolerance=0.02, total=counted)
    assert near == exact and len(looks) == 1
    assert 990 <= int((w.abs() > near).sum()) <= 1010


def test_a_count_over_other_ranks_decides() -> None:
    w = torch.arange(1.0, 11.0)
    # Somebody else holds the same weights: 8 of all 20 are 4 of mine.
    assert torch.equal(w > magnitude_threshold([w], 8, total=lambda count: 2 * count), w > 6)


@pytest.mark.parametrize("minimum", [1, 3, 99])
def test_a_row_keeps_its_minimum(minimum: int) -> None:
    w = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    w[0] *= 1e-3
    threshold = magnitude_threshold([w], 12)
    kept = hard_threshold(w, threshold, minimum_per_row=minimum)
    for row, before in zip(kept, w, strict=True):
        expected = (before.abs() > threshold) | by_sorting(before, min(minimum, 6))
        assert torch.equal(row != 0, expected)
        assert torch.equal(row[expected], before[expected])


def test_filters_count_as_rows() -> None:
    w = torch.arange(1.0, 17.0).reshape(2, 2, 2, 2)
    kept = hard_threshold(w, 12.0, minimum_per_row=1)
    assert kept[0].flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 8]
    assert (kept[1] != 0).sum() == 4


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`weights`"):
        magnitude_threshold([], 1)
    with pytest.raises(ValueError, match="`keep`"):
        magnitude_threshold([torch.ones(2)], -1)
    with pytest.raises(TypeError, match="`weights`"):
        magnitude_threshold([torch.ones(2, dtype=torch.long)], 1)
    with pytest.raises(ValueError, match="`threshold`"):
        hard_threshold(torch.ones(2), float("nan"))
    with pytest.raises(ValueError, match="`minimum_per_row`"):
        hard_threshold(torch.ones(2, 2), 0.1, minimum_per_row=-1)
    with pytest.raises(TypeError, match="`w`"):
        hard_threshold(torch.ones(2, dtype=torch.long), 0.1)
