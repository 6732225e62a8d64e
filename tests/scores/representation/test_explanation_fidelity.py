import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import LocalFidelity, explanation_fidelity


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_linear_models_are_explained(inputs: Tensor) -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    found = explanation_fidelity(inputs, lambda x: x @ weight + 1)
    assert found.error < 1e-20 and found.unexplained < 1e-15
    # Neighbours are a tenth of the data's spread in each direction, so a hundredth of the variance.
    assert found.movement == pytest.approx(0.01, rel=0.15)


def test_a_parabola_by_hand() -> None:
    # f = x^2 at step r e: the residual of the best line is r^2 (e^2 - 1), with variance 2 r^4; var(x^2) = 2.
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = explanation_fidelity(x, lambda x: x.square(), radius=0.3, points=3000)
    # Eight neighbours fit the two numbers of a line, which costs about 2/8 and more with so few.
    assert found.error == pytest.approx(0.3**4, rel=0.6)
    half = explanation_fidelity(x, lambda x: x.square(), radius=0.15, points=3000)
    assert found.error / half.error == pytest.approx(16, rel=0.1)


def test_wigglier_is_less_faithful(inputs: Tensor) -> None:
    def error(frequency: float) -> float:
        return explanation_fidelity(inputs, lambda x: (frequency * x).sin()).error

    errors = [error(frequency) for frequency in (0.5, 2, 8)]
    assert errors[0] < errors[1] / 4 < errors[2] / 16


def test_scales_change_nothing(inputs: Tensor) -> None:
    scale = torch.logspace(-3, 3, 5, dtype=torch.float64)
    expected = explanation_fidelity(inputs, lambda x: (2 * x).sin())
    found = explanation_fidelity(inputs * scale, lambda x: 7 * (2 * x / scale).sin() + 3)
    assert found.error == pytest.approx(expected.error, rel=1e-6)
    assert found.unexplained == pytest.approx(expected.unexplained, rel=1e-6)


def test_images_dead_pixels_and_float32(digits: tuple[Tensor, Tensor], fit: Callable[..., Tensor]) -> None:
    images, labels = digits[0][:500].view(500, 1, 8, 8), digits[1][:500]  # the corners are always dark
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(1))
    untrained = explanation_fidelity(images, model, radius=0.5, points=20)
    fit(model[:-1], images, labels, epochs=15, learning_rate=3e-3)
    trained = explanation_fidelity(images, model, radius=0.5, points=20)
    assert 0 < trained.error < 0.01 and 0.01 < trained.unexplained < 0.5
    # Why the random-init control belongs beside it: an untrained net is nearly linear.
    assert untrained.unexplained < trained.unexplained


def test_a_constant_model_has_none(inputs: Tensor) -> None:
    found = explanation_fidelity(inputs, lambda x: torch.full((len(x), 2), 0.1))
    assert math.isnan(found.error) and found.reason == "the model's outputs don't vary over the inputs"


def test_metric_equals_function(inputs: Tensor) -> None:
    metric = LocalFidelity(lambda x: x.sin(), points=10)
    for rows in torch.split(inputs, 70):
        metric.update(rows)
    expected = explanation_fidelity(inputs, lambda x: x.sin(), points=10)
    assert metric.findings().error == pytest.approx(expected.error, rel=1e-9)
    assert metric.compute()["error"].item() == pytest.approx(expected.error, rel=1e-9) and expected.error > 0


def test_errors(inputs: Tensor) -> None:
    with pytest.raises(TypeError, match="`inputs` must be a floating point tensor"):
        explanation_fidelity(inputs.long(), lambda x: x)
    with pytest.raises(ValueError, match="`radius`, `points` and `directions` must be positive"):
        explanation_fidelity(inputs, lambda x: x, radius=0)
    with pytest.raises(ValueError, match="`model` must give finite outputs"):
        explanation_fidelity(inputs, lambda x: x / 0)
    with pytest.raises(ValueError, match="`inputs` must vary"):
        explanation_fidelity(torch.ones(5, 3), lambda x: x)
