import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import GatedDisentanglement, dci_disentanglement, gated_disentanglement


def turned(degrees: float) -> Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.fixture
def factors() -> tuple[Tensor, Tensor]:
    """Four signs with a little noise, each a unit of its own."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (1200, 4), generator=generator)
    return 2.0 * signs - 1 + 0.1 * torch.randn(1200, 4, generator=generator), signs


@pytest.mark.parametrize(
    ("importances", "expected"),
    [
        (torch.eye(4), 1.0),
        (torch.eye(5).repeat_interleave(2, 1), 1 - math.log(2) / math.log(10)),  # .69897
        (turned(22.5).abs(), 0.1276),
        (turned(45.0).abs(), 0.0),
        (torch.eye(3).repeat(4, 1), 1.0),  # duplicates cost nothing
        (torch.tensor([[3.0, 0.0], [0.5, 0.5]]), 0.75),  # weights 3/4 and 1/4
        (torch.ones(3, 7), 0.0),
    ],
)
def test_analytic_values(importances: Tensor, expected: float) -> None:
    assert dci_disentanglement(importances)[0] == pytest.approx(expected, abs=5e-5)


def test_a_unit_without_importance_is_left_out() -> None:
    total, per_unit = dci_disentanglement(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert total == 1.0 and per_unit[0] == 1 and per_unit[1].isnan()
    assert math.isnan(dci_disentanglement(torch.zeros(2, 2))[0])


def test_equals_scipy() -> None:
    entropy = pytest.importorskip("scipy.stats").entropy
    importances = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = 1 - torch.tensor(entropy(importances.numpy(), base=5, axis=1))
    torch.testing.assert_close(dci_disentanglement(importances)[1], expected)
    weights = importances.sum(1) / importances.sum()
    assert dci_disentanglement(importances)[0] == pytest.approx(float(weights @ expected))


def test_pure_units_win_and_rotations_lose(factors: tuple[Tensor, Tensor]) -> None:
    h, signs = factors
    scores = [gated_disentanglement(h[:, :2] @ turned(angle), signs[:, :2]).score for angle in (0, 10, 22.5, 45)]
    assert scores[0] > 0.99
    assert scores == sorted(scores, reverse=True)
    # L1 probes of separable signs lean a little more to the larger coefficient than the rotation (.1276) does.
    assert 0.1 < scores[2] < 0.3 and scores[3] < 0.01


def test_noise_is_gated(factors: tuple[Tensor, Tensor]) -> None:
    noise = torch.randn(1200, 30, generator=torch.Generator().manual_seed(1))
    found = gated_disentanglement(noise, factors[1])
    assert found.score < 0.05 and found.gate < 0.1
    assert found.informativeness == pytest.approx(found.permuted_informativeness, abs=0.05)
    # Why there is a gate: on noise, sparse probes are "disentangled".
    empty = torch.zeros(12, 4)
    empty[3, 1] = empty[7, 2] = 1e-3
    assert dci_disentanglement(empty)[0] == 1.0


def test_permuted_labels_are_gated(factors: tuple[Tensor, Tensor]) -> None:
    h, signs = factors
    shuffled = signs[torch.randperm(len(signs), generator=torch.Generator().manual_seed(1))]
    assert gated_disentanglement(h, shuffled).score < 0.05


def test_no_unit_that_varies_no_score(factors: tuple[Tensor, Tensor]) -> None:
    found = gated_disentanglement(torch.full((1200, 3), 0.1), factors[1])
    assert math.isnan(found.score) and found.reason == "no unit of the layer varies"
    same = gated_disentanglement(factors[0], factors[1].clamp(max=0))
    assert math.isnan(same.score) and "more than one value" in same.reason


def test_rescaling_shifting_and_dead_units_change_nothing(factors: tuple[Tensor, Tensor]) -> None:
    h, signs = factors
    h = (h @ torch.randn(4, 6, generator=torch.Generator().manual_seed(1))).double()
    plain = gated_disentanglement(h, signs, permutations=1)
    dead = torch.full((1200, 1), 0.3, dtype=h.dtype)
    other = gated_disentanglement(
        torch.cat([h * torch.logspace(-3, 3, 6).double() + 7, dead], 1), signs, permutations=1
    )
    assert 0.05 < plain.score < 0.9
    assert other.score == pytest.approx(plain.score, abs=1e-6)
    torch.testing.assert_close(other.importances[:6], plain.importances, rtol=0, atol=1e-6)
    assert not other.importances[6].any()


def test_concepts_of_many_values_and_of_one(factors: tuple[Tensor, Tensor]) -> None:
    h, signs = factors
    pairs = torch.stack([signs[:, 0] + 2 * signs[:, 1], signs[:, 2] * 5, torch.zeros_like(signs[:, 0])], 1)
    found = gated_disentanglement(h[:, :3], pairs)
    # Units 0 and 1 serve the first concept, unit 2 the second: all disentangled, the first not complete.
    assert found.disentanglement > 0.97 and found.gate > 0.97
    assert found.completeness < 0.8
    assert found.importances.shape == (3, 3) and not found.importances[:, 2].any()


def test_random_init_does_not_win(digits: tuple[Tensor, Tensor], fit: Callable[..., Tensor]) -> None:
    inputs, labels = digits[0][:800], digits[1][:800]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body, head = nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 10)
    concepts = nn.functional.one_hot(labels, 10)
    untrained = gated_disentanglement(body(inputs).detach(), concepts, permutations=1)
    fit(nn.Sequential(body, head), inputs, labels, epochs=25, learning_rate=3e-3)
    trained = gated_disentanglement(body(inputs).detach(), concepts, permutations=1)
    assert trained.gate > 1.5 * untrained.gate
    assert trained.score > 1.3 * untrained.score
    labelled = gated_disentanglement(concepts.float(), concepts, permutations=1)
    assert labelled.score > 0.9 > trained.score


def test_metric_equals_function(factors: tuple[Tensor, Tensor]) -> None:
    h, signs = factors
    mask = torch.rand(1200, generator=torch.Generator().manual_seed(1)) < 0.8
    metric = GatedDisentanglement(permutations=2)
    for rows in torch.split(torch.arange(1200), 500):
        metric.update(h[rows], signs[rows], mask[rows])
    expected = gated_disentanglement(h[mask], signs[mask], permutations=2)
    found = metric.compute()
    assert found["score"].item() == expected.score == metric.findings().score
    assert found["permuted_informativeness"].item() == expected.permuted_informativeness


def test_errors(factors: tuple[Tensor, Tensor]) -> None:
    h, signs = factors
    with pytest.raises(ValueError, match="`concepts` must hold at least 2 concepts"):
        gated_disentanglement(h, signs[:, :1])
    with pytest.raises(ValueError, match="`permutations` must be at least 1"):
        gated_disentanglement(h, signs, permutations=0)
    with pytest.raises(ValueError, match=r"`importances` must be \(units, concepts\)"):
        dci_disentanglement(torch.ones(3, 1))
    with pytest.raises(ValueError, match="`importances` must be finite and >= 0"):
        dci_disentanglement(-torch.ones(3, 3))
