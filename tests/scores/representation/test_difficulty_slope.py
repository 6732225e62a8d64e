import math

import pytest
import torch
from torch import Tensor

from legibility.scores import DifficultySlope, difficulty_slope, profile_distance, reference_profiles, search_regret


@pytest.fixture
def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    difficulty = 2 ** (torch.rand(400, generator=generator, dtype=torch.float64) * 8)
    return 0.3 * difficulty.log2() + torch.randn(400, generator=generator), difficulty


def test_equals_scipy(examples: tuple[Tensor, Tensor]) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.linregress(examples[1].log2().numpy(), examples[0].numpy())
    found = difficulty_slope(*examples)
    assert found.slope == pytest.approx(expected.slope, rel=1e-9)
    assert found.standard_error == pytest.approx(expected.stderr, rel=1e-9)


@pytest.mark.parametrize("cuts", [1, 77, 400])
def test_streams_exactly(examples: tuple[Tensor, Tensor], cuts: int) -> None:
    metric = DifficultySlope()
    for loss, difficulty in zip(*(torch.split(tensor, cuts) for tensor in examples), strict=True):
        metric.update(loss, difficulty)
    expected = difficulty_slope(*examples)
    assert metric.compute()["slope"].item() == pytest.approx(expected.slope, rel=1e-9)
    assert metric.compute()["standard_error"].item() == pytest.approx(expected.standard_error, rel=1e-9)
    assert metric.findings().profile == pytest.approx(expected.profile)


def test_reference_models_have_their_signatures() -> None:
    # Argmax over d candidates in random order: difficulty is their number.
    generator = torch.Generator().manual_seed(0)
    number = 2 ** torch.randint(1, 9, (6000,), generator=generator)
    values = torch.rand(6000, 256, generator=generator, dtype=torch.float64)
    values[torch.arange(256) >= number.unsqueeze(1)] = -math.inf
    known = torch.rand(6000, generator=generator) < 0.5
    near = torch.where(values.isfinite(), values + 0.3 * torch.randn(values.shape, generator=generator), -math.inf)
    searched = search_regret(values, 16)
    heuristic = search_regret(values, 1, chosen=near.argmax(1))
    memory = torch.where(known, 0.0, search_regret(values, 1))
    profiles = {name: difficulty_slope(loss, number.double()) for name, loss in
                [("search", searched), ("heuristic", heuristic), ("memory", memory)]}  # fmt: skip
    # Exact to the end of its budget, then it breaks.
    assert all(profiles["search"].profile[2.0**edge] == 0 for edge in range(1, 5))
    assert profiles["search"].profile[256.0] > 0.04
    assert min(profiles["heuristic"].profile.values()) > 0.01
    # A sample of the search is nearest to the search, although all slopes are positive.
    half = torch.randperm(6000, generator=generator)[:3000]
    noisy = difficulty_slope((searched + 0.05 * torch.randn(6000, generator=generator))[half], number[half].double())
    distances = {name: profile_distance(noisy.profile, other.profile) for name, other in profiles.items()}
    assert min(distances, key=lambda name: distances[name]) == "search"
    assert distances["search"] < 0.02


def test_iterations_that_help_have_a_negative_slope() -> None:
    iterations = torch.tensor([1.0, 2, 4, 8, 16])
    assert difficulty_slope(1 / iterations, iterations).slope < 0
    flat = difficulty_slope(torch.full((5,), 0.7), iterations)
    assert flat.slope == pytest.approx(0, abs=1e-12) and flat.standard_error == pytest.approx(0, abs=1e-6)


def test_edges() -> None:
    same = difficulty_slope(torch.rand(5), torch.full((5,), 3.0))
    assert math.isnan(same.slope) and list(same.profile) == [2.0]
    assert math.isnan(profile_distance({1.0: 0.0}, {2.0: 0.0}))
    assert difficulty_slope(torch.ones(2), torch.tensor([8.0, 1e30])).profile == {8.0: 1.0, 2.0**31: 1.0}
    assert math.isnan(DifficultySlope().findings().slope)


def test_errors() -> None:
    with pytest.raises(ValueError, match="`difficulty` must be positive and finite"):
        difficulty_slope(torch.ones(3), torch.tensor([0.0, 1, 2]))
    with pytest.raises(ValueError, match="`loss` must be finite"):
        difficulty_slope(torch.ones(3) / 0, torch.ones(3))
    with pytest.raises(ValueError, match=r"must both be \(N,\)"):
        difficulty_slope(torch.ones(3), torch.ones(3, 1))
    with pytest.raises(ValueError, match="`budget` must be at least 1"):
        search_regret(torch.ones(3, 2), 0)
    with pytest.raises(ValueError, match="must be finite for at least one candidate"):
        search_regret(torch.tensor([[-math.inf, 1.0]]), 1)


def test_the_nearest_reference_names_the_mechanism() -> None:
    draw = torch.Generator().manual_seed(0)
    count = torch.randint(2, 64, (2000,), generator=draw)
    values = torch.rand(2000, 64, generator=draw).masked_fill(torch.arange(64) >= count.unsqueeze(1), -math.inf)
    known, chosen = torch.rand(2000, generator=draw) < 0.8, count // 2
    references = reference_profiles(values, count.float(), budgets=[4, 16], chosen=chosen, known=known)
    assert list(references) == ["guess", "heuristic", "search of 4", "search of 16", "memory"]
    other = torch.rand(2000, 64, generator=draw).masked_fill(torch.arange(64) >= count.unsqueeze(1), -math.inf)
    models = {
        "heuristic": search_regret(other, 1, chosen=count // 2),
        "search of 4": search_regret(other, 4),
        "search of 16": search_regret(other, 16),
    }
    for name, regret in models.items():
        own = difficulty_slope(regret, count.float()).profile
        distances = {each: profile_distance(own, found.profile) for each, found in references.items()}
        nearest = min(distances, key=lambda each: distances[each])
        assert nearest == name or {nearest, name} == {"guess", "heuristic"}  # the middle one is as good as any
    assert references["memory"].profile[32.0] == pytest.approx(0.2 * references["guess"].profile[32.0], rel=0.2)
    assert references["search of 4"].profile[2.0] == 0.0 and references["search of 4"].profile[32.0] > 0.05
    with pytest.raises(ValueError, match="`known` must be bool"):
        reference_profiles(values, count.float(), known=count)
