import math

import pytest
import torch
from torch import Tensor

from legibility.scores import activation_rms, effective_rank, live_units, participation_ratio


def corners(*variances: float) -> Tensor:
    """All sign combinations, scaled: the covariance is exactly diagonal."""
    units = len(variances)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * units).view(-1, units)
    return signs * torch.tensor(variances, dtype=torch.float64).sqrt()


def test_known_spectrum() -> None:
    samples = corners(4.0, 1.0, 1.0, 1.0)
    assert participation_ratio(samples, unbiased=False) == pytest.approx(49 / 19, abs=1e-12)  # 2.57895
    # p = 4/7 and three times 1/7: exp(-(4/7 ln 4/7 + 3/7 ln 1/7)) = 7 / 4^(4/7)
    assert effective_rank(samples) == pytest.approx(7 / 4 ** (4 / 7), abs=1e-12)  # 3.17003


def test_rotation_scale_and_shift_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    moved = 1e3 * samples @ turn + 5e3
    for unbiased in (True, False):
        expected = participation_ratio(samples, unbiased=unbiased)
        assert participation_ratio(moved, unbiased=unbiased) == pytest.approx(expected, rel=1e-9)
    assert effective_rank(moved) == pytest.approx(effective_rank(samples), rel=1e-9)


def test_more_units_than_samples_uses_the_other_gram_matrix() -> None:
    samples = torch.randn(10, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = samples.T.cov()
    plain = covariance.trace() ** 2 / covariance.square().sum()
    assert participation_ratio(samples, unbiased=False) == pytest.approx(plain.item(), rel=1e-12)


def test_unbiased_form_finds_50_directions_from_50_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(50, 50, generator=generator) for _ in range(200)]
    plain = sum(participation_ratio(draw, unbiased=False) for draw in draws) / 200
    unbiased = sum(participation_ratio(draw) for draw in draws) / 200
    assert plain == pytest.approx(24.8, abs=1.0)
    assert unbiased == pytest.approx(50.0, abs=1.0)


def test_unbiased_form_for_skewed_samples() -> None:
    # Bernoulli(.1) units, independent and equal: the truth is the number of units. Gaussian corrections fail here.
    generator = torch.Generator().manual_seed(0)
    draws = [(torch.rand(30, 20, generator=generator) < 0.1).float() for _ in range(1000)]
    assert sum(map(participation_ratio, draws)) / 1000 == pytest.approx(20.0, abs=0.7)


def test_mask_and_leading_shape() -> None:
    samples = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(6, 5, dtype=torch.bool)
    padded = samples.clone()
    padded[4:], mask[4:] = math.nan, False
    for score in (participation_ratio, effective_rank, activation_rms, live_units):
        assert score(padded, mask=mask) == score(samples[:4].flatten(0, 1))


def test_nothing_varies() -> None:
    still = torch.full((8, 3), 2.0)
    assert math.isnan(participation_ratio(still)) and math.isnan(participation_ratio(still, unbiased=False))
    assert math.isnan(effective_rank(still))
    assert live_units(still) == 0
    assert activation_rms(still) == 2.0


def test_live_units_are_relative_to_the_rest() -> None:
    samples = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    samples[:, 0] = 3.0
    samples[:, 1] *= 1e-5
    assert live_units(samples) == live_units(samples * 1e-6) == 3
    assert live_units(samples, threshold=0.0) == 4


def test_low_precision_is_measured_in_float64() -> None:
    samples = corners(4.0, 1.0, 1.0, 1.0)
    for dtype in (torch.float16, torch.bfloat16):
        assert effective_rank(samples.to(dtype)) == effective_rank(samples)
    assert activation_rms(torch.full((4, 4), 3e4, dtype=torch.float16)) == 30000.0  # its square overflows float16


def test_errors() -> None:
    with pytest.raises(TypeError, match="`activations` must be a floating point tensor"):
        participation_ratio(torch.ones(5, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`activations` must be shaped \(..., units\)"):
        activation_rms(torch.ones(5))
    with pytest.raises(ValueError, match="`activations` must hold at least 4 unmasked samples, got 3"):
        participation_ratio(torch.ones(3, 5))
    with pytest.raises(ValueError, match="`activations` must hold at least 2 unmasked samples, got 1"):
        effective_rank(torch.ones(1, 5))
    with pytest.raises(ValueError, match="`activations` must be finite"):
        live_units(torch.tensor([[1.0], [math.inf]]))
    with pytest.raises(ValueError, match=r"`mask` must be bool \(3,\)"):
        activation_rms(torch.ones(3, 5), mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="`threshold` must be >= 0, got -1"):
        live_units(torch.ones(3, 5), threshold=-1)
