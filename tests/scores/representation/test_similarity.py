import math

import pytest
import torch
from torch import Tensor

from legibility.scores import LinearCKA, linear_cka


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y = x[:, :3] @ torch.randn(3, 5, generator=generator).double() + torch.randn(40, 5, generator=generator)
    return x, y


def by_kernels(x: Tensor, y: Tensor) -> float:
    """The estimator as Song et al. write it, with n x n kernels."""

    def hsic(a: Tensor, b: Tensor) -> float:
        n = len(a)
        k, m = a @ a.T, b @ b.T
        k.fill_diagonal_(0)
        m.fill_diagonal_(0)
        parts = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(1))
        return float(parts / (n * (n - 3)))

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def test_equals_the_kernel_form(pair: tuple[Tensor, Tensor]) -> None:
    assert linear_cka(*pair) == pytest.approx(by_kernels(*pair), rel=1e-9)
    assert 0.2 < linear_cka(*pair) < 0.9


@pytest.mark.parametrize("cuts", [1, 7, 40])
def test_streams_exactly(pair: tuple[Tensor, Tensor], cuts: int) -> None:
    metric = LinearCKA(6, 5)
    for x, y in zip(torch.split(pair[0] + 3, cuts), torch.split(pair[1] - 2, cuts), strict=True):
        metric.update(x, y)
    assert metric.compute().item() == pytest.approx(linear_cka(*pair), rel=1e-9)


def test_rotation_scale_and_shift_change_nothing(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())[0]
    assert linear_cka(50 * x @ turn + 1e4, y) == pytest.approx(linear_cka(x, y), rel=1e-9)
    assert linear_cka(x, x @ turn) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), rel=1e-12)


def test_unrelated_layers_are_zero_also_when_units_outnumber_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [
        linear_cka(torch.randn(30, 200, generator=generator), torch.randn(30, 200, generator=generator))
        for _ in range(50)
    ]
    assert sum(draws) / 50 == pytest.approx(0, abs=0.02)  # the plain estimator gives about .87


def test_permuted_rows_are_zero(pair: tuple[Tensor, Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    draws = [linear_cka(pair[0], pair[1][torch.randperm(40, generator=generator)]) for _ in range(200)]
    assert sum(draws) / 200 == pytest.approx(0, abs=0.02)


def test_mask(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    mask = torch.rand(8, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    holed = x.view(8, 5, 6).masked_fill(~mask.unsqueeze(-1), math.nan)
    assert linear_cka(holed, y.view(8, 5, 5), mask=mask) == pytest.approx(
        linear_cka(x[mask.flatten()], y[mask.flatten()]), rel=1e-12
    )


def test_a_constant_layer_has_none(pair: tuple[Tensor, Tensor]) -> None:
    assert math.isnan(linear_cka(pair[0], torch.full((40, 3), 0.1)))
    assert math.isnan(linear_cka(torch.full((40, 3), 0.1, dtype=torch.float32), pair[1]))


def test_errors(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    with pytest.raises(TypeError, match="`y` must be a floating point tensor"):
        linear_cka(x, y.long())
    with pytest.raises(ValueError, match=r"`y` must be shaped \(40, 'units'\)"):
        linear_cka(x, y[:5])
    with pytest.raises(ValueError, match="at least 4 unmasked positions, got 3"):
        linear_cka(x[:3], y[:3])
    with pytest.raises(ValueError, match="`x` must be finite"):
        linear_cka(x / 0, y)
    with pytest.raises(ValueError, match="`y` must have 4 units"):
        LinearCKA(6, 4).update(x, y)
    with pytest.raises(ValueError, match="`units` and `others` must be at least 1"):
        LinearCKA(0, 4)
