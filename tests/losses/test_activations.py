"""Activation sparsity: values by hand, gradients by finite differences, blind to shrinking."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from legibility.losses import activation_l1, rectified_l1, tail_energy

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
