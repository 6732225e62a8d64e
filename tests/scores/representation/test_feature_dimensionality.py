import math

import pytest
import torch
from torch import Tensor

from legibility.scores import FeatureDimensionality, feature_dimensionality


def polygon(corners: int) -> Tensor:
    angles = torch.arange(corners, dtype=torch.float64) * 2 * math.pi / corners
    return torch.stack([angles.cos(), angles.sin()], 1)


TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.eye(5), 1),
        (TETRAHEDRON, 3 / 4),
        (polygon(3), 2 / 3),
        (polygon(2), 1 / 2),
        (polygon(5), 2 / 5),
        (polygon(6), 1 / 3),
        (torch.ones(4, 3), 1 / 4),
    ],
)
def test_analytic_values(weight: Tensor, expected: float) -> None:
    found = feature_dimensionality(weight)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-9, atol=0)
    assert float(found.sum()) <= weight.shape[1] + 1e-9


def test_scale_and_rotation_change_nothing_tiny_and_huge_do_no_harm() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator).double())[0]
    expected = feature_dimensionality(weight)
    for scale in (1.0, 1e-120, 1e120):
        torch.testing.assert_close(feature_dimensionality(scale * weight @ turn), expected)
    assert feature_dimensionality(torch.zeros(3, 2)).tolist() == [0.0, 0.0, 0.0]


def test_metric() -> None:
    metric = FeatureDimensionality()
    metric.update(torch.cat([polygon(5), 0.05 * polygon(2)]))
    metric.update(torch.eye(5).double())
    found = metric.compute()
    # The small pair overlaps the pentagon, hardly the other way round.
    assert found["dimensionality"].item() == pytest.approx((5 * 0.4 + 5) / 10, abs=1e-3)
    assert found["represented"].item() == pytest.approx(10 / 12)
    assert 0.2 < found["random"].item() < 0.7
    nothing = FeatureDimensionality()
    nothing.update(torch.zeros(3, 2))
    assert nothing.compute()["dimensionality"].isnan() and nothing.compute()["represented"] == 0


def test_random_vectors_have_the_expected_value() -> None:
    metric = FeatureDimensionality()
    metric.update(torch.ones(400, 20))
    assert metric.compute()["random"].item() == pytest.approx(20 / (20 + 399), rel=0.1)


def toy_superposition(sparsity: float, *, instances: int = 8, steps: int = 1500) -> Tensor:
    """Five features of importance .9^i in two units, x' = relu(W^T W x + b): the best of several instances."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.init.xavier_normal_(torch.empty(instances, 5, 2), generator=generator).requires_grad_()
    bias = torch.zeros(instances, 1, 5, requires_grad=True)
    importance = 0.9 ** torch.arange(5)
    optimizer = torch.optim.Adam([weight, bias], lr=1e-2)
    loss = torch.zeros(instances)
    for _ in range(steps):
        present = torch.rand(instances, 256, 5, generator=generator) >= sparsity
        x = torch.rand(instances, 256, 5, generator=generator) * present
        error = importance * (x - (x @ weight @ weight.mT + bias).relu()).square()
        optimizer.zero_grad()
        torch.autograd.backward(error.mean((1, 2)).sum())
        optimizer.step()
        loss = 0.99 * loss + 0.01 * error.detach().mean((1, 2))
    return weight.detach()[loss.argmin()]


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [(0.0, [0.0, 0.0, 0.0, 1.0, 1.0]), (0.8, [0.0, 0.5, 0.5, 0.5, 0.5]), (0.9, [0.4] * 5)],
)
def test_toy_superposition(sparsity: float, expected: list[float]) -> None:
    found = feature_dimensionality(toy_superposition(sparsity)).sort().values
    assert found.tolist() == pytest.approx(expected, abs=0.06)


def test_errors() -> None:
    with pytest.raises(TypeError, match="`weight` must be a floating point tensor"):
        feature_dimensionality(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`weight` must be \(features, units\), got \(3,\)"):
        feature_dimensionality(torch.ones(3))
    with pytest.raises(ValueError, match="`weight` must be finite"):
        feature_dimensionality(torch.ones(3, 2) / 0)
