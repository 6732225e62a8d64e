import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import MonosemanticUnits, monosemanticity


@pytest.fixture
def signs() -> Tensor:
    return torch.randint(2, (2000, 4), generator=torch.Generator().manual_seed(0))


def test_pure_units(signs: Tensor) -> None:
    found = monosemanticity(2.0 * signs - 1, signs)
    assert found.selectivity == pytest.approx(1.0) and found.coverage == 1.0
    assert found.completeness == pytest.approx(1.0, abs=0.01)
    assert found.permuted_selectivity < 0.01
    torch.testing.assert_close(found.explained, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.01)


def test_mixed_units_share_their_variance(signs: Tensor) -> None:
    for many in (2, 3, 4):
        mixed = (2.0 * signs - 1)[:, :many].sum(1, keepdim=True)
        found = monosemanticity(mixed, signs)
        assert found.selectivity == pytest.approx(1 / many, abs=0.06)
    turned = (2.0 * signs - 1) @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    found = monosemanticity(turned, signs)
    assert found.selectivity < 0.8 and found.completeness < 0.6


def test_duplicates_are_no_coverage(signs: Tensor) -> None:
    found = monosemanticity((2.0 * signs - 1)[:, [0, 0, 0, 0]], signs)
    assert found.selectivity == pytest.approx(1.0) and found.coverage == 0.25


def test_equals_the_correlation_ratio_of_an_f_test(signs: Tensor) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(1)
    unit = torch.randn(300, 1, generator=generator).double()
    groups = torch.randint(3, (300, 1), generator=generator)
    unit += 0.5 * groups
    f = stats.f_oneway(*[unit[groups == k].numpy() for k in range(3)]).statistic
    eta = f * 2 / (f * 2 + 297)
    expected = 1 - (1 - eta) * 299 / 297
    assert monosemanticity(unit, groups).explained.item() == pytest.approx(expected, rel=1e-9)


def test_rescaled_and_shifted_units_are_the_same_dead_ones_do_not_count(signs: Tensor) -> None:
    h = (signs + 0.3 * torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))).double()
    expected = monosemanticity(h, signs)
    moved = torch.cat([h * torch.tensor([1e-3, 1, 10, 1e3]).double() - 5, torch.full((2000, 2), 0.1).double()], 1)
    found = monosemanticity(moved, signs)
    assert found.live == expected.live == 4
    assert found.selectivity == pytest.approx(expected.selectivity, abs=1e-6)
    assert found.completeness == pytest.approx(expected.completeness, abs=1e-6)


def test_permuted_labels_and_constant_layers(signs: Tensor) -> None:
    shuffled = signs[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]
    found = monosemanticity(2.0 * signs - 1, shuffled)
    assert found.selectivity < 0.01 and found.coverage == 0.0
    still = monosemanticity(torch.ones(2000, 3), signs)
    assert math.isnan(still.selectivity) and math.isnan(still.coverage) and still.reason


def test_untrained_units_do_not_win(digits: tuple[Tensor, Tensor], fit: Callable[..., Tensor]) -> None:
    inputs, labels = digits[0][:800], digits[1][:800]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body, head = nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 10)
    concepts = nn.functional.one_hot(labels, 10)
    untrained = monosemanticity(body(inputs).detach(), concepts, permutations=3)
    fit(nn.Sequential(body, head), inputs, labels, epochs=25, learning_rate=3e-3)
    trained = monosemanticity(body(inputs).detach(), concepts, permutations=3)
    assert trained.selectivity > 1.2 * untrained.selectivity > trained.permuted_selectivity


def test_metric_equals_function(signs: Tensor) -> None:
    metric = MonosemanticUnits(permutations=2)
    for rows in torch.split(signs, 700):
        metric.update(rows.float(), rows)
    found = metric.compute()
    assert found["selectivity"].item() == monosemanticity(signs.float(), signs, permutations=2).selectivity
    assert found["live"] == 4
    with pytest.raises(ValueError, match="`permutations` must be at least 1"):
        monosemanticity(signs.float(), signs, permutations=0)
