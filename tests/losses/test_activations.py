"""Activation sparsity: values by hand, gradients by finite differences, blind to shrinking."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from legibility.losses import abs_top_k, activation_l1, rectified_l1, tail_energy

ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": activation_l1,
    "rectified": rectified_l1,
    "top_k": lambda a: tail_energy(a, 2),
}


def test_by_hand() -> None:
    a = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    # mean |a| = 7 / 4; rms = sqrt(25 / 4)
    torch.testing.assert_close(activation_l1(a), torch.tensor(1.75 / 2.5))
    # unit 0: mean 1.5, standard deviation 1.5; unit 1 is never positive and left out
    torch.testing.assert_close(rectified_l1(a), torch.tensor(1.0))
    # row 0: 9 / 25, row 1: 0
    torch.testing.assert_close(tail_energy(a, 1), torch.tensor(0.18))
    assert tail_energy(a, 2) == 0


@pytest.mark.parametrize("share", [0.04, 0.25, 1.0])
def test_share_of_active_units(share: float) -> None:
    a = (torch.arange(400) < 400 * share).float()
    torch.testing.assert_close(activation_l1(a), torch.tensor(math.sqrt(share)))
    expected = math.sqrt(share / (1 - share)) if share < 1 else 0.0  # a constant unit has no variance
    torch.testing.assert_close(rectified_l1(a[:, None]), torch.tensor(expected))


@pytest.mark.parametrize("name", ALL)
def test_shrinking_gains_nothing(name: str) -> None:
    a = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ALL[name](a), ALL[name](1e-3 * a))


@pytest.mark.parametrize("name", ALL)
def test_zeros_and_nothing(name: str) -> None:
    for a in (torch.zeros(4, 3, requires_grad=True), torch.zeros(0, 3, requires_grad=True)):
        value = ALL[name](a)
        assert value == 0
        (gradient,) = torch.autograd.grad(value, a)
        assert not gradient.any()


def test_gradients() -> None:
    a = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(activation_l1(a), a)
    torch.testing.assert_close(gradient, a.sign() / (a.numel() * a.detach().square().mean().sqrt()))
    assert torch.autograd.gradcheck(rectified_l1, a)
    # The unit's own direction is free: growing it changes nothing.
    (gradient,) = torch.autograd.grad(rectified_l1(a), a)
    torch.testing.assert_close((gradient * a.clamp(min=0)).sum(0), torch.zeros(5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(tail_energy(a, 2), a)
    free = torch.zeros_like(a).scatter(1, a.abs().topk(2, dim=1).indices, 1.0).bool()
    assert not gradient[free].any()
    torch.testing.assert_close(gradient[~free], (2 * a / a.square().sum(1, keepdim=True) / 7)[~free].detach())


@pytest.mark.parametrize("name", ALL)
def test_low_precision_is_computed_in_float32(name: str) -> None:
    a = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert ALL[name](a).dtype == torch.float32
    torch.testing.assert_close(ALL[name](a), ALL[name](a.float()))


def test_bad_arguments() -> None:
    for function in ALL.values():
        with pytest.raises(TypeError, match="`a`"):
            function(torch.ones(3, 3, dtype=torch.long))
    for k in (0, 4):
        with pytest.raises(ValueError, match="`k`"):
            tail_energy(torch.ones(2, 3), k)


def test_the_largest_by_magnitude_stay_with_sign_dtype_and_gradient() -> None:
    a = torch.tensor([[[3.0, -4.0, 0.5], [0.0, -0.25, 0.125]]], requires_grad=True)
    kept = abs_top_k(a, 1)
    assert kept.tolist() == [[[0.0, -4.0, 0.0], [0.0, -0.25, 0.0]]]
    kept.square().sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None and a.grad.tolist() == [[[0.0, -8.0, 0.0], [0.0, -0.5, 0.0]]]
    torch.manual_seed(0)
    drawn = torch.randn(7, 5, 9)
    for k in (1, 4, 9):
        found = abs_top_k(drawn, k)
        edge = drawn.abs().sort(-1, descending=True).values[..., k - 1 : k]
        assert torch.equal(found, torch.where(drawn.abs() >= edge, drawn, 0.0))
        assert tail_energy(found, k) == 0
    assert abs_top_k(drawn.bfloat16(), 2).dtype == torch.bfloat16
    assert abs_top_k(torch.zeros(2, 3), 1).tolist() == [[0.0] * 3] * 2 and abs_top_k(torch.ones(0, 3), 2).shape == (
        0,
        3,
    )
    assert (abs_top_k(torch.ones(2, 4), 3) != 0).sum(-1).tolist() == [3, 3], "of ties as many as asked for"
    infinite = abs_top_k(torch.tensor([1.0, -torch.inf, 2.0]), 1)
    assert infinite.tolist() == [0.0, -torch.inf, 0.0]


@pytest.mark.parametrize("k", [0, 4])
def test_numbers_of_activations_that_there_are_not(k: int) -> None:
    with pytest.raises(ValueError, match=f"`k` must be from 1 to the number of units 3, got {k}"):
        abs_top_k(torch.ones(2, 3), k)
    with pytest.raises(TypeError, match="`a`"):
        abs_top_k(torch.ones(2, 3, dtype=torch.long), 1)
