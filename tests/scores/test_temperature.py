import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from legibility.scores import match_temperature


@pytest.fixture
def noisy() -> tuple[Tensor, Tensor]:
    """Logits that know the label in part."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (400,), generator=generator)
    logits = torch.randn(400, 7, generator=generator, dtype=torch.float64) * 2
    logits[torch.arange(400), labels] += 2.0
    return logits, labels


def loss_at(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return cross_entropy(logits / temperature, labels).item()


def test_best_temperature_by_hand() -> None:
    # Odds 3 : 1 for one class, gap 2: CE is least where exp(2 / T) = 3.
    logits = torch.tensor([[2.0, 0.0]] * 3 + [[0.0, 2.0]])
    temperature = match_temperature(logits, torch.zeros(4, dtype=torch.long), 0.1)
    assert temperature == pytest.approx(2 / math.log(3), rel=1e-6)


def test_best_temperature_against_scipy(noisy: tuple[Tensor, Tensor]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    found = optimize.minimize_scalar(lambda t: loss_at(*noisy, t), bounds=(0.1, 20), options={"xatol": 1e-10})
    assert match_temperature(*noisy, 0.0) == pytest.approx(found.x, rel=1e-6)


@pytest.mark.parametrize("rise", [1e-6, 1e-3, 1e-2, 0.1, 0.35])
def test_matched_loss_never_worse_than_asked(noisy: tuple[Tensor, Tensor], rise: float) -> None:
    best = match_temperature(*noisy, 0.0)
    asked = loss_at(*noisy, best) + rise
    temperature = match_temperature(*noisy, asked)
    assert temperature > best
    assert asked * (1 - 1e-6) <= loss_at(*noisy, temperature) <= asked * (1 + 1e-12)


def test_the_flat_side_is_taken_though_the_sharp_one_has_the_same_loss(noisy: tuple[Tensor, Tensor]) -> None:
    best = match_temperature(*noisy, 0.0)
    sharp = 0.7 * best
    assert match_temperature(*noisy, loss_at(*noisy, sharp)) > best


def test_loss_of_the_uniform_distribution_can_be_asked(noisy: tuple[Tensor, Tensor]) -> None:
    temperature = match_temperature(*noisy, math.log(7))
    assert loss_at(*noisy, temperature) == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.parametrize("loss", [math.log(7) + 1e-3, 100.0, -0.1, math.nan, math.inf])
def test_unreachable_losses_are_refused(noisy: tuple[Tensor, Tensor], loss: float) -> None:
    with pytest.raises(ValueError, match=r"`loss` must be in \[0, log K\] = \[0, 1.94591\] nats, got"):
        match_temperature(*noisy, loss)


def test_a_model_without_mistakes() -> None:
    logits = torch.eye(5) * 3
    labels = torch.arange(5)
    temperature = match_temperature(logits, labels, 0.4)
    # ln(1 + 4 exp(-3 / T)) = 0.4
    assert temperature == pytest.approx(3 / math.log(4 / (math.exp(0.4) - 1)), rel=1e-5)
    assert loss_at(logits.double(), labels, match_temperature(logits, labels, 0.0)) < 1e-8  # T* itself would be 0


def test_logits_that_tell_nothing_or_the_opposite_are_best_uniform() -> None:
    labels = torch.tensor([0, 1])
    assert match_temperature(torch.zeros(2, 2), labels, 0.5) == math.inf
    assert match_temperature(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), labels, 0.5) == math.inf


def test_scale_moves_the_temperature_and_shift_doesnt(noisy: tuple[Tensor, Tensor]) -> None:
    logits, labels = noisy
    temperature = match_temperature(logits, labels, 1.0)
    assert match_temperature(logits * 1e3, labels, 1.0) == pytest.approx(1e3 * temperature, rel=1e-5)
    assert match_temperature(logits + 1e4 * torch.randn(400, 1), labels, 1.0) == pytest.approx(temperature, rel=1e-5)


def test_mask_leaves_out_what_it_says(noisy: tuple[Tensor, Tensor]) -> None:
    logits, labels = noisy
    expected = match_temperature(logits[:300], labels[:300], 1.0)
    logits, labels = logits.clone().view(20, 20, 7), labels.clone().view(20, 20)
    mask = torch.ones(20, 20, dtype=torch.bool)
    logits[15:], labels[15:], mask[15:] = math.nan, -100, False
    assert match_temperature(logits, labels, 1.0, mask=mask) == expected


def test_errors(noisy: tuple[Tensor, Tensor]) -> None:
    logits, labels = noisy
    with pytest.raises(TypeError, match="`logits` must be a floating point tensor"):
        match_temperature(labels, labels, 1.0)
    with pytest.raises(TypeError, match="`labels` must be an integer tensor"):
        match_temperature(logits, labels.float(), 1.0)
    with pytest.raises(ValueError, match="`labels` must have the shape"):
        match_temperature(logits, labels[:-1], 1.0)
    with pytest.raises(ValueError, match="`labels` must be in 0..6, got -100..6: set `mask`"):
        match_temperature(logits, labels.clone().index_fill_(0, torch.tensor([3]), -100), 1.0)
    with pytest.raises(ValueError, match="`labels` must have at least one position"):
        match_temperature(logits, labels, 1.0, mask=torch.zeros(400, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`mask` must be bool \(400,\)"):
        match_temperature(logits, labels, 1.0, mask=torch.ones(400))
    with pytest.raises(ValueError, match="`logits` must be finite"):
        match_temperature(logits.index_fill(0, torch.tensor([3]), math.nan), labels, 1.0)
