import math

import pytest
import torch
from torch import Tensor

from legibility.scores import UnitStudents, unit_students


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(800, 6, generator=torch.Generator().manual_seed(0))


def test_simple_units_are_read_and_tangled_ones_are_not(inputs: Tensor) -> None:
    simple = inputs @ torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    tangled = (20 * inputs[:, :3]).sin()
    found = unit_students(inputs, torch.cat([simple, tangled], 1))
    assert found.per_unit[:3].min() > 0.95
    assert found.per_unit[3:].max() < 0.1
    assert found.permuted_readability < 0.05


def test_a_tiny_student_cannot_read_what_a_wider_one_can(inputs: Tensor) -> None:
    unit = inputs.abs().sum(1, keepdim=True)  # needs two hidden units for each feature
    tiny, wide = unit_students(inputs, unit, width=1), unit_students(inputs, unit, width=32)
    assert tiny.readability < 0.5 and wide.readability > 0.85


def test_students_do_not_share(inputs: Tensor) -> None:
    unit = (inputs[:, :1] * inputs[:, 1:2]).relu()
    alone = unit_students(inputs, unit).readability
    among = unit_students(inputs, torch.cat([unit, 100 * inputs, inputs**3], 1)).per_unit[0]
    assert float(among) == pytest.approx(alone, abs=0.15)


def test_scales_change_nothing_and_dead_units_do_not_count(inputs: Tensor) -> None:
    units = torch.stack([inputs[:, 0].abs(), inputs[:, 1] * 3 + 1, torch.full((800,), 0.1)], 1)
    found = unit_students(inputs, units)
    moved = unit_students(inputs * 64 + 8, units * torch.tensor([0.125, 1024.0, 1.0]) - 16)
    assert found.per_unit[2].isnan() and moved.per_unit[2].isnan()
    torch.testing.assert_close(moved.per_unit[:2], found.per_unit[:2], rtol=0, atol=1e-2)
    # Powers of two round nothing.
    scaled = unit_students(inputs * 64, units * torch.tensor([0.125, 1024.0, 1.0]))
    torch.testing.assert_close(scaled.per_unit[:2], found.per_unit[:2], rtol=0, atol=1e-6)
    dead = unit_students(inputs, torch.zeros(800, 2))
    assert math.isnan(dead.readability) and dead.reason == "no unit of the layer varies"


def test_metric_equals_function_and_draws_its_own_numbers(inputs: Tensor) -> None:
    metric = UnitStudents(steps=30)
    state = torch.random.get_rng_state()
    for rows in torch.split(inputs, 300):
        metric.update(rows, rows.abs())
    with torch.inference_mode():
        found = metric.compute()["readability"].item()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found == unit_students(inputs, inputs.abs(), steps=30).readability


def test_errors(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 64 examples, got 63"):
        unit_students(inputs[:63], inputs[:63])
    with pytest.raises(ValueError, match=r"`activations` \(N, units\)"):
        unit_students(inputs, inputs[:, 0])
    with pytest.raises(ValueError, match="`width` and `steps` must be at least 1"):
        unit_students(inputs, inputs, width=0)
    with pytest.raises(TypeError, match="`inputs` must be a floating point tensor"):
        unit_students(inputs.long(), inputs)
