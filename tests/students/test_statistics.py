"""Running variances by hand."""

import pytest
import torch

from legibility.students._statistics import Moments, mean_and_variance


def test_constant_columns_have_no_variance() -> None:
    """0.1 + rounding at any size; a deviation of 1 % is real at any size."""
    sizes = torch.tensor([1e-8, 1.0, 1e10])
    constant = sizes.expand(1000, 3) * 0.1
    assert mean_and_variance(constant)[1].tolist() == [0.0, 0.0, 0.0]
    varied = constant * torch.tensor([0.99, 1.01]).repeat(500).unsqueeze(1)
    # (0.01 * 0.1 * size)^2
    torch.testing.assert_close(mean_and_variance(varied)[1], 1e-6 * sizes.square(), rtol=1e-2, atol=0)


def test_non_finite_numbers_count_as_zero_and_empty_batches_are_finite() -> None:
    mean, variance = mean_and_variance(torch.tensor([[torch.nan, 2.0], [4.0, torch.inf]]))
    assert mean.tolist() == [2.0, 1.0]
    assert variance.tolist() == [4.0, 1.0]
    mean, variance = mean_and_variance(torch.zeros(0, 2))
    assert (mean.tolist(), variance.tolist()) == ([0.0, 0.0], [0.0, 0.0])


def test_moments_average_equally_and_then_forget() -> None:
    """Batches (-1, 1) and (1, 3) around 0: first moments 0 and 2, second 1 and 5: mean 1, 3 and variance 3 - 1 = 2."""
    moments = Moments(torch.zeros(1), torch.ones(1))
    for values in ([-1.0, 1.0], [1.0, 3.0]):
        moments.update(moments.sums(torch.tensor(values).unsqueeze(1), None))
    assert moments.weights.item() == pytest.approx(1 / 2)
    for _ in range(98):
        moments.update(moments.sums(torch.tensor([[1.0], [3.0]]), None))
    # After 100 equal weights: first 1.98, second 4.96.
    assert moments.first.item() == pytest.approx(1.98, rel=1e-5)
    assert moments.weights.item() == pytest.approx(1 / (4.96 - 1.98**2), rel=1e-4)
    moments.update(moments.sums(torch.tensor([[9.0]]), None))  # from now on a hundredth each
    assert moments.first.item() == pytest.approx(0.99 * 1.98 + 0.01 * 9, rel=1e-5)


def test_sums_count_what_the_mask_counts() -> None:
    moments = Moments(torch.tensor([1.0]), torch.ones(1))
    values = torch.tensor([[[2.0], [5.0]], [[3.0], [7.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    # deviations 1, 2, 6
    assert moments.sums(values, mask).tolist() == [9.0, 41.0, 3.0]


def test_weights_leave_dead_units_out() -> None:
    moments = Moments(torch.tensor([0.0, 100.0, 0.0]), torch.tensor([4.0, 1e-9, 0.5]))
    assert moments.weights.tolist() == pytest.approx([1 / 8, 0.0, 1.0])  # 1 / (variance * 2 live units)
