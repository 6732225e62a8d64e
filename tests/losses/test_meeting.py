"""The closed form equals autograd through the three divergences, in value and gradient."""

import math

import pytest
import torch
from torch import Tensor

from legibility.losses import forward_kl, kl_sum_and_gradient, masked_mean, reverse_kl, symmetric_kl
from legibility.losses._meeting import Direction

REFERENCE = {"forward": forward_kl, "reverse": reverse_kl, "symmetric": symmetric_kl}
DIRECTIONS: list[Direction] = ["forward", "reverse", "symmetric"]


def by_autograd(
    primary: Tensor, students: list[Tensor], direction: Direction, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    leaf = primary.detach().clone().requires_grad_()
    value = torch.stack([masked_mean(REFERENCE[direction](leaf, student), mask) for student in students]).sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_it_equals_autograd(direction: Direction, masked: bool, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    primary = 3 * torch.randn(4, 5, 7, dtype=torch.float64, generator=generator)
    students = [2 * torch.randn(4, 5, 7, dtype=torch.float64, generator=generator) for _ in range(count)]
    mask = torch.rand(4, 5, generator=generator) < 0.6 if masked else None
    value, gradient = kl_sum_and_gradient(primary, students, direction=direction, mask=mask)
    expected, slope = by_autograd(primary, students, direction, mask)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-14)
    if mask is not None:
        assert not gradient[~mask].any() and gradient[mask].any()


def test_value_and_gradient_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): KL(p||q) = log(2 / sqrt 3); d/dh_0 = 1/2 (log(2/3) - KL) = -1/4 log 3.
    value, gradient = kl_sum_and_gradient(torch.zeros(1, 2), [torch.tensor([[0.75, 0.25]]).log()], direction="forward")
    torch.testing.assert_close(value, torch.tensor(math.log(2 / math.sqrt(3))))
    torch.testing.assert_close(gradient, torch.tensor([[-math.log(3) / 4, math.log(3) / 4]]))
    # Backwards: KL(q||p) = 3/4 log(3/2) + 1/4 log(1/2); the slope is p - q.
    value, gradient = kl_sum_and_gradient(torch.zeros(1, 2), [torch.tensor([[0.75, 0.25]]).log()], direction="reverse")
    torch.testing.assert_close(value, torch.tensor(0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 0.25]]))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_class_that_both_rule_out_adds_nothing(direction: Direction) -> None:
    primary, student = torch.tensor([[1.0, -0.5, -torch.inf]]), torch.tensor([[0.2, 0.1, -torch.inf]])
    value, gradient = kl_sum_and_gradient(primary, [student], direction=direction)
    fewer, slope = kl_sum_and_gradient(primary[:, :2], [student[:, :2]], direction=direction)
    torch.testing.assert_close(value, fewer)
    torch.testing.assert_close(gradient[:, :2], slope)
    assert gradient[0, 2] == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_edges(direction: Direction) -> None:
    logits = torch.randn(3, 4)
    value, gradient = kl_sum_and_gradient(logits, [logits + 5.0], direction=direction)
    assert value.abs() < 1e-6 and gradient.abs().max() < 1e-6, "the same distribution"
    value, gradient = kl_sum_and_gradient(logits, [], direction=direction)
    assert value == 0 and not gradient.any(), "nobody to meet"
    nothing = torch.zeros(3, dtype=torch.bool)
    value, gradient = kl_sum_and_gradient(logits, [torch.randn(3, 4)], direction=direction, mask=nothing)
    assert value == 0 and not gradient.any()
    broken = logits.clone()
    broken[1, 2] = torch.nan
    value, gradient = kl_sum_and_gradient(broken, [logits], direction=direction)
    assert value.isnan() and gradient[1].isnan().all() and gradient[[0, 2]].isfinite().all()
    value, gradient = kl_sum_and_gradient(broken, [logits], direction=direction, mask=torch.tensor([True, False, True]))
    assert value.isfinite() and gradient.isfinite().all(), "a masked row may hold anything"
    half, _ = kl_sum_and_gradient(logits.bfloat16(), [logits.bfloat16()], direction=direction)
    assert half.dtype == torch.float32


def test_errors() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="`direction`.*'sideways'"):
        kl_sum_and_gradient(logits, [logits], direction="sideways")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`primary`.*int64"):
        kl_sum_and_gradient(logits.long(), [logits])
    with pytest.raises(TypeError, match=r"`students\[1\]`.*int64"):
        kl_sum_and_gradient(logits, [logits, logits.long()])
    with pytest.raises(ValueError, match=r"`students\[0\]`.*\(2, 3\).*\(2, 4\)"):
        kl_sum_and_gradient(logits, [torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="`mask`"):
        kl_sum_and_gradient(logits, [logits], mask=torch.ones(3, dtype=torch.bool))
