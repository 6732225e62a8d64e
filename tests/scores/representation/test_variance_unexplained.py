import math

import pytest
import torch
from torch import Tensor

from legibility.losses import fraction_of_variance_unexplained
from legibility.scores import FractionOfVarianceUnexplained


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    primary = torch.randn(12, 5, 4, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    student = primary + torch.randn(12, 5, 4, generator=generator, dtype=torch.float64)
    return primary, student


def score(primary: Tensor, student: Tensor, mask: Tensor | None = None, *, per_unit: bool = True) -> Tensor:
    metric = FractionOfVarianceUnexplained(primary.shape[-1], per_unit=per_unit)
    metric.update(primary, student, mask)
    value: Tensor = metric.compute()
    return value


def test_by_hand() -> None:
    primary = torch.tensor([[0.0, 0.0], [2.0, 1.0], [4.0, 2.0]])  # variances 8/3 and 2/3
    student = torch.tensor([[1.0, 0.0], [3.0, 1.0], [5.0, 4.0]])  # mean squared errors 1 and 4/3
    expected = torch.tensor([3 / 8, 2.0], dtype=torch.float64)
    torch.testing.assert_close(score(primary, student), expected)
    assert score(primary, student, per_unit=False).item() == pytest.approx((3 / 8 + 2) / 2)


def test_is_one_minus_r2_of_sklearn(pair: tuple[Tensor, Tensor]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    primary, student = (tensor.flatten(0, 1) for tensor in pair)
    r2 = torch.tensor(metrics.r2_score(primary.numpy(), student.numpy(), multioutput="raw_values"))
    torch.testing.assert_close(score(*pair), 1 - r2, rtol=1e-10, atol=0)


def test_agrees_with_the_loss(pair: tuple[Tensor, Tensor]) -> None:
    mask = torch.rand(12, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = fraction_of_variance_unexplained(*pair, mask=mask)
    torch.testing.assert_close(score(*pair, mask), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 7], [12]])
def test_doesnt_depend_on_batches(pair: tuple[Tensor, Tensor], cuts: list[int]) -> None:
    metric = FractionOfVarianceUnexplained(4, per_unit=True)
    for parts in zip(torch.split(pair[0], cuts), torch.split(pair[1], cuts), strict=True):
        metric.update(*parts)
    torch.testing.assert_close(metric.compute(), score(*pair), rtol=1e-10, atol=0)


def test_the_units_mean_leaves_everything_unexplained(pair: tuple[Tensor, Tensor]) -> None:
    primary = pair[0]
    mean = primary.mean((0, 1)).expand_as(primary)
    torch.testing.assert_close(score(primary, mean), torch.ones(4, dtype=torch.float64), rtol=1e-10, atol=0)


def test_dead_units_are_nan_and_left_out(pair: tuple[Tensor, Tensor]) -> None:
    primary, student = pair
    alive = score(primary[..., 1:], student[..., 1:], per_unit=False)
    for constant in (0.0, 0.1, -1e6):
        dead = primary.clone()
        dead[..., 0] = constant
        values = score(dead, student)
        assert values[0].isnan() and not values[1:].isnan().any()
        torch.testing.assert_close(score(dead, student, per_unit=False), alive)
    still = torch.ones_like(primary)
    assert score(still, student, per_unit=False).isnan()


def test_a_large_mean_doesnt_hide_the_variance(pair: tuple[Tensor, Tensor]) -> None:
    primary, student = pair
    torch.testing.assert_close(score(primary + 1e3, student + 1e3), score(primary, student), rtol=1e-5, atol=0)


def test_mask_hides_padding(pair: tuple[Tensor, Tensor]) -> None:
    primary, student = pair
    expected = score(primary[:, :3], student[:, :3])
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[:, 3:] = False
    primary, student = primary.clone(), student.clone()
    primary[:, 3:], student[:, 3:] = math.nan, math.inf
    torch.testing.assert_close(score(primary, student, mask), expected, rtol=1e-12, atol=0)


def test_bfloat16_is_summed_in_float64() -> None:
    primary = torch.arange(1000).remainder(7).to(torch.bfloat16).unsqueeze(1)
    exact = score(primary.double(), primary.double() * 0.5)
    torch.testing.assert_close(score(primary, primary * 0.5), exact, rtol=1e-12, atol=0)


def test_errors() -> None:
    metric = FractionOfVarianceUnexplained(4)
    good = torch.zeros(3, 4)
    with pytest.raises(TypeError, match="`primary` must be a floating point tensor"):
        metric.update(good.long(), good)
    with pytest.raises(ValueError, match=r"`primary` must have 4 units in its last dimension, got \(3, 5\)"):
        metric.update(torch.zeros(3, 5), torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"`student` must have the shape of `primary` \(3, 4\), got \(1, 4\)"):
        metric.update(good, good[:1])
    with pytest.raises(ValueError, match=r"`mask` must be bool \(3,\)"):
        metric.update(good, good, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="`units` must be at least 1, got 0"):
        FractionOfVarianceUnexplained(0)
