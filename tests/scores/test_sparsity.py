import math

import pytest
import torch
from torch import Tensor

from legibility.scores import WeightSparsity, gini, weight_sparsity


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0, 3.0], 0.5),  # (-2*0 + 0*1 + 2*3) / (3 * 4)
        ([2.0, 2.0, -2.0], 0.0),  # all equal in size
        ([5.0], 0.0),
        ([0.0, 0.0, 0.0, -7.0], 0.75),  # 1 - 1/4
    ],
)
def test_gini_by_hand(values: list[float], expected: float) -> None:
    assert gini(torch.tensor(values)).item() == pytest.approx(expected, abs=1e-12)


def test_k_of_n_equal() -> None:
    for kept in (1, 10, 37, 100):
        values = torch.zeros(100)
        values[torch.randperm(100, generator=torch.Generator().manual_seed(kept))[:kept]] = 0.3
        assert gini(values).item() == pytest.approx(1 - kept / 100, abs=1e-12)


def test_gini_of_known_distributions() -> None:
    # Equally probable quantiles of the distribution in place of samples.
    share = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    assert gini(torch.special.ndtri(share)).item() == pytest.approx(math.sqrt(2) - 1, abs=1e-4)
    assert gini(-torch.log1p(-share)).item() == pytest.approx(0.5, abs=1e-4)  # |Laplace| is exponential


def test_gini_against_all_pairs() -> None:
    values = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = values.abs()
    pairs = (size[:, None] - size[None, :]).abs().mean() / (2 * size.mean())  # the usual definition
    assert gini(values.view(6, 10)).item() == pytest.approx(pairs.item(), abs=1e-12)


def test_gini_ignores_scale_and_repetition() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert gini(values * 1e-20).item() == pytest.approx(gini(values).item(), rel=1e-6)
    assert gini(values.repeat(7)).item() == pytest.approx(gini(values).item(), rel=1e-9)


def test_gini_edges() -> None:
    assert gini(torch.zeros(4)).isnan()
    assert gini(torch.tensor([0.0, 2.0**120], dtype=torch.bfloat16)).item() == 0.5
    with pytest.raises(TypeError, match="`values` must be a floating point tensor, got torch.int64"):
        gini(torch.tensor([1]))
    for bad in (torch.zeros(0), torch.tensor([math.nan]), torch.tensor([math.inf])):
        with pytest.raises(ValueError, match="`values` must hold at least one element, all of them finite"):
            gini(bad)


def named(*weights: Tensor) -> list[tuple[str, Tensor]]:
    return [(f"layer{index}.weight", weight) for index, weight in enumerate(weights)]


def test_weight_sparsity_by_hand() -> None:
    found = weight_sparsity(
        named(
            torch.tensor([[0.0, 0.0], [0.0, 1.0]]),  # 3 zeros of 4, 1 active, Gini 3/4, one dead row
            torch.tensor([[0.005, -0.005, 0.5, 0.5]]),  # none, 2 active
        )
    )
    # Gini of the second: (-3*.005 - 1*.005 + 1*.5 + 3*.5) / (4 * 1.01) = 1.98 / 4.04
    assert found.zeros == 3 / 8
    assert found.active == 3 / 8
    assert found.gini == pytest.approx((4 * 0.75 + 4 * 1.98 / 4.04) / 8, abs=1e-7)
    assert (found.dead_units, found.units, found.weights) == (1, 3, 8)


def test_signed_zero_and_tiny_weights() -> None:
    found = weight_sparsity(named(torch.tensor([[-0.0, 1e-38], [1e-2, 1.0]])))
    assert found.zeros == 0.25  # -0 is a zero, 1e-38 isn't
    assert found.active == 0.25  # strictly above 1e-2
    assert found.dead_units == 0


def test_a_convolution_is_dead_by_channel() -> None:
    weight = torch.ones(3, 2, 2, 2)
    weight[1] = 0.0
    weight[2, 0] = 0.0
    found = weight_sparsity(named(weight))
    assert (found.dead_units, found.units, found.zeros) == (1, 3, 12 / 24)


def test_a_model_of_zeros_has_no_spread_and_every_zero() -> None:
    found = weight_sparsity(named(torch.zeros(3, 3), torch.zeros(2, 3)))
    assert (found.zeros, found.active) == (1.0, 0.0)
    assert math.isnan(found.gini) and math.isnan(found.hoyer)
    assert found.dead_units == 5
    one = weight_sparsity(named(torch.zeros(3, 3), torch.ones(1, 3)))
    assert (one.zeros, one.gini) == (0.75, 0.0)


def test_nothing_to_measure() -> None:
    found = weight_sparsity([])
    assert math.isnan(found.zeros) and found.weights == 0
    assert weight_sparsity(named(torch.zeros(0, 4), torch.eye(2))).weights == 4


def test_rescaling_a_unit_changes_gini_and_active_but_not_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(8, 4, generator=generator) / 10, torch.randn(3, 8, generator=generator) / 10
    first[0] = 0.0
    scale = torch.tensor([1.0, 64.0, 1 / 64, 1, 1, 1, 1, 8.0])
    before = weight_sparsity(named(first, second))
    after = weight_sparsity(named(first * scale[:, None], second / scale))
    assert (before.zeros, before.dead_units) == (after.zeros, after.dead_units)
    assert abs(before.gini - after.gini) > 0.05  # the caveat of the docstring is real
    layers = weight_sparsity(named(first * 64.0, second / 64.0))
    assert layers.gini == pytest.approx(before.gini, abs=1e-9)


def test_weights_that_dont_belong() -> None:
    with pytest.raises(ValueError, match=r"'layer0.weight' must have at least 2 dimensions, got shape \(3,\)"):
        weight_sparsity(named(torch.ones(3)))
    with pytest.raises(TypeError, match="'layer0.weight' must be a floating point tensor, got torch.int8"):
        weight_sparsity(named(torch.ones(3, 3, dtype=torch.int8)))
    with pytest.raises(ValueError, match="'layer1.weight' must be finite"):
        weight_sparsity(named(torch.ones(3, 3), torch.full((2, 2), math.nan)))


def test_metric_in_parts_equals_the_function() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = named(*(torch.randn(5, 6, generator=generator).relu() for _ in range(3)))
    whole = weight_sparsity(weights)
    metric = WeightSparsity()
    metric.update(weights[:1])
    metric.update(iter(weights[1:]))
    values = metric.compute()
    assert set(values) == {"zeros", "active", "gini", "dead_units", "hoyer"}
    for name, value in values.items():
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(getattr(whole, name), abs=1e-12)
    metric.reset()
    metric.update([])
    assert metric.compute()["zeros"].isnan()
