import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import KeyValueMemories, key_value_memories

Case = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def pure() -> Case:
    """Six classes in eight units; a memory for each class writes its name, with some noise beside it."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(6, (300,), generator=generator)
    keys = torch.eye(6)[classes] * (1 + torch.rand(300, 1, generator=generator))
    names = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0][:6] * 3
    stream = keys @ names + 0.1 * torch.randn(300, 8, generator=generator)
    return stream, keys, names, names


def head(case: Case) -> Callable[[Tensor], Tensor]:
    return lambda stream: stream @ case[3].T


def test_memories_that_name_their_class(pure: Case) -> None:
    found = key_value_memories(*pure, head(pure))
    assert found.agreement == 1.0 and found.permuted_agreement == 0.0
    assert found.success == 1.0 and found.side_effects == 0.0 and found.specificity == 1.0
    # Another unit's value isn't read where this one is: its edit does nothing at these positions.
    assert found.control_specificity <= 0.0
    assert found.memories == 6


def test_values_dealt_to_other_units_agree_with_nothing(pure: Case) -> None:
    stream, keys, values, names = pure
    found = key_value_memories(stream, keys, values.roll(1, 0), names, head(pure))
    assert found.agreement == 0.0 and found.permuted_agreement == pytest.approx(1 / 5)


def test_memories_that_are_active_everywhere_have_side_effects(pure: Case) -> None:
    stream, keys, values, names = pure
    found = key_value_memories(stream, torch.ones_like(keys), values, names, head(pure))
    assert found.side_effects > 0.1 and found.specificity < 0.5
    assert found.control_specificity == pytest.approx(found.specificity, abs=0.3)


def test_rescaled_units_and_temperature_change_nothing(pure: Case) -> None:
    stream, keys, values, names = pure
    scale = torch.tensor([1e-3, 0.1, 1.0, 2.0, 10.0, 1e3])
    expected = key_value_memories(*pure, head(pure))
    assert key_value_memories(stream, keys * scale, values / scale.unsqueeze(1), names, head(pure)) == expected
    assert key_value_memories(*pure, lambda stream: stream @ names.T / 4) == expected


def test_trained_against_untrained(digits: tuple[Tensor, Tensor], fit: Callable[..., Tensor]) -> None:
    inputs, labels = digits[0][:800], digits[1][:800]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        up, down, unembed = nn.Linear(64, 48), nn.Linear(48, 24), nn.Linear(24, 10)
    model = nn.Sequential(up, nn.ReLU(), down, unembed)

    def measured(amplified: float = 1.0) -> tuple[float, float]:
        keys = up(inputs).relu().detach()
        found = key_value_memories(
            down(keys).detach(), keys, down.weight.T, unembed.weight, lambda h: amplified * unembed(h), memories=24
        )
        return found.agreement - found.permuted_agreement, found.specificity - found.control_specificity

    before = measured(50.0)  # as it is, it says next to nothing
    fit(model, inputs, labels, epochs=25, learning_rate=3e-3)
    after = measured()
    assert after[0] > 0.2 > before[0]
    assert after[1] > 0.1


def test_constant_models_and_dead_layers(pure: Case) -> None:
    stream, keys, values, names = pure
    constant = key_value_memories(*pure, lambda stream: torch.zeros(*stream.shape[:-1], 6))
    assert math.isnan(constant.agreement) and constant.reason.startswith("the model is as good as constant")
    dead = key_value_memories(stream, torch.zeros_like(keys), values, names, head(pure))
    assert math.isnan(dead.specificity) and dead.reason == "fewer than two units of the layer are active"


def test_masked_positions_of_sequences(pure: Case) -> None:
    stream, keys, values, names = pure
    mask = torch.ones(60, 7, dtype=torch.bool)
    mask[:, 5:] = False
    wide = [torch.full((60, 7, tensor.shape[-1]), math.nan) for tensor in (stream, keys)]
    wide[0][:, :5], wide[1][:, :5] = stream.view(60, 5, -1), keys.view(60, 5, -1)
    found = key_value_memories(wide[0], wide[1], values, names, head(pure), mask=mask)
    assert found == key_value_memories(*pure, head(pure))


def test_metric_equals_function(pure: Case) -> None:
    stream, keys, values, names = pure
    metric = KeyValueMemories(values, names, head(pure))
    for rows in torch.split(torch.arange(300), 70):
        metric.update(stream[rows], keys[rows])
    assert metric.findings() == key_value_memories(*pure, head(pure))
    assert metric.compute()["success"] == 1.0


def test_errors(pure: Case) -> None:
    stream, keys, values, names = pure
    with pytest.raises(ValueError, match=r"`values` must be \(6, 8\).*transpose of a linear layer's weight"):
        key_value_memories(stream, keys, values.T, names, head(pure))
    with pytest.raises(ValueError, match="`unembedding` must have a row for each of the 6 classes, got 5"):
        key_value_memories(stream, keys, values, names[:5], head(pure))
    with pytest.raises(ValueError, match="at least 40 unmasked positions"):
        key_value_memories(stream[:39], keys[:39], values, names, head(pure))
    with pytest.raises(ValueError, match="`keys` must be finite"):
        key_value_memories(stream, keys / 0, values, names, head(pure))
    with pytest.raises(ValueError, match="`memories` must be at least 1"):
        key_value_memories(*pure, head(pure), memories=0)
