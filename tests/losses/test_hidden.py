"""Fraction of variance unexplained: hand values, numpy's variance, detached statistics, dead units, masks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from legibility.losses import fraction_of_variance_unexplained as fvu
from legibility.losses import masked_mean


def random_pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    primary = 5 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return primary, primary + torch.randn(shape, generator=generator, dtype=torch.float64)


def test_hand_value() -> None:
    # unit 0: h = 0, 2, 4: mean 2, variance (4 + 0 + 4) / 3 = 8/3; errors 1, 1, 2: mean square 6/3 = 2; 2 / (8/3) = 3/4
    # unit 1: h = 1, 1, 4: mean 2, variance (1 + 1 + 4) / 3 = 2; errors 0, 0, 3: mean square 3; 3/2
    primary = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    student = torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    torch.testing.assert_close(fvu(primary, student), torch.tensor([0.75, 1.5]))


@pytest.mark.parametrize("shape", [(9, 4), (3, 5, 4), (2, 3, 5, 4)])
def test_equals_numpy_over_all_positions(shape: tuple[int, ...]) -> None:
    primary, student = random_pair(*shape)
    h, g = primary.reshape(-1, 4).numpy(), student.reshape(-1, 4).numpy()
    expected = ((h - g) ** 2).mean(0) / np.var(h, axis=0)
    np.testing.assert_allclose(fvu(primary, student).numpy(), expected, rtol=1e-12)


def test_range_ends() -> None:
    primary, _ = random_pair(20, 3)
    assert (fvu(primary, primary) == 0).all()
    torch.testing.assert_close(fvu(primary, primary.mean(0).expand(20, 3)), torch.ones(3, dtype=torch.float64))


def test_invariant_to_scale_and_shift_of_a_unit() -> None:
    primary, student = random_pair(20, 3)
    scale, shift = torch.tensor([1e-3, 1.0, 1e3]), torch.tensor([5.0, -2.0, 0.0])
    torch.testing.assert_close(fvu(primary * scale + shift, student * scale + shift), fvu(primary, student))


def test_student_gradient() -> None:
    primary, student = random_pair(4, 3)
    assert torch.autograd.gradcheck(lambda s: fvu(primary, s), student.requires_grad_())


def test_statistics_are_detached_but_the_numerator_is_not() -> None:
    primary, student = random_pair(6, 3)
    primary.requires_grad_()
    torch.autograd.backward(fvu(primary, student).sum())
    # d/dh_i of mean (h - g)^2 / v with v held fixed
    expected = 2 * (primary.detach() - student) / (6 * primary.detach().var(0, correction=0))
    torch.testing.assert_close(primary.grad, expected)


def test_inflating_the_primary_does_not_pay() -> None:
    # The value is the same at any common scale, but the slope along "scale the primary up" is not negative when the
    # student matches the direction: with h = s g, s > 1, growing s moves h further from g.
    g = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    s = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(fvu(s * g, g).sum())
    # numerator (s - 1)^2, slope 2 (s - 1) = 2, over the detached variance s^2 = 4
    assert s.grad is not None and s.grad.item() == pytest.approx(0.5)


def test_dead_units_are_nan_without_gradient() -> None:
    # 0.1 in float32 has no exact mean over 1000 positions: naive statistics leave variance noise behind.
    primary, student = torch.full((1000, 3), 0.1), torch.zeros(1000, 3)
    primary[:, 1] = torch.linspace(-1, 1, 1000)
    primary.requires_grad_()
    student.requires_grad_()
    value = fvu(primary, student)
    assert value.isnan().tolist() == [True, False, True]
    torch.autograd.backward(masked_mean(value, ~value.isnan()))
    for tensor in (primary, student):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
        assert (tensor.grad[:, [0, 2]] == 0).all() and tensor.grad[:, 1].abs().sum() > 0


def test_dead_even_if_matched_exactly() -> None:
    value = fvu(torch.ones(4, 1), torch.ones(4, 1).requires_grad_())
    assert value.isnan().all()
    torch.autograd.backward(masked_mean(value, ~value.isnan()))


@pytest.mark.parametrize("shape", [(2,), (1, 2), (1, 1, 2), (0, 2), (3, 0, 2)])
def test_fewer_than_two_positions_are_dead(shape: tuple[int, ...]) -> None:
    value = fvu(torch.randn(shape), torch.randn(shape).requires_grad_())
    assert value.shape == (2,) and value.isnan().all()
    masked = fvu(torch.randn(shape), torch.randn(shape), mask=torch.ones(shape[:-1], dtype=torch.bool))
    assert masked.shape == (2,) and masked.isnan().all()
    torch.autograd.backward(value.sum())


def test_no_units() -> None:
    assert fvu(torch.zeros(3, 0), torch.zeros(3, 0)).shape == (0,)


def test_mask_selects_positions() -> None:
    primary, student = random_pair(4, 5, 3)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, 0] = False  # the first position must not serve as reference then
    torch.testing.assert_close(fvu(primary, student, mask=mask), fvu(primary[mask], student[mask]))
    torch.testing.assert_close(fvu(primary, student, mask=torch.ones_like(mask)), fvu(primary, student))
    assert torch.autograd.gradcheck(lambda s: fvu(primary, s, mask=mask), student.requires_grad_())


@pytest.mark.parametrize("hidden", [math.nan, math.inf])
def test_masked_out_positions_have_no_influence(hidden: float) -> None:
    primary, student = random_pair(6, 3)
    mask = torch.tensor([False, True, True, True, True, False])
    expected = fvu(primary, student, mask=mask)
    primary[~mask], student[~mask] = hidden, -hidden
    primary.requires_grad_()
    student.requires_grad_()
    value = fvu(primary, student, mask=mask)
    torch.testing.assert_close(value, expected)
    torch.autograd.backward(value.sum())
    for tensor in (primary, student):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and (tensor.grad[~mask] == 0).all()


@pytest.mark.parametrize("kept", [0, 1])
def test_mask_that_leaves_fewer_than_two_positions(kept: int) -> None:
    primary, student = random_pair(4, 2)
    mask = torch.zeros(4, dtype=torch.bool)
    mask[1 : 1 + kept] = True
    value = fvu(primary, student.requires_grad_(), mask=mask)
    assert value.isnan().all()
    torch.autograd.backward(masked_mean(value, ~value.isnan()))
    assert student.grad is not None and (student.grad == 0).all()


def test_constant_over_the_mask_is_dead() -> None:
    primary, student = torch.tensor([[0.1], [0.1], [0.1], [9.0]]), torch.zeros(4, 1)
    assert fvu(primary, student, mask=torch.tensor([True, True, True, False])).isnan().all()


def test_not_finite_activation_is_nan_in_its_unit_alone() -> None:
    primary, student = random_pair(5, 3)
    primary[2, 1] = math.inf
    assert fvu(primary, student).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    primary = 200 * torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)).to(dtype)  # squares leave float16
    student = primary * 0.5
    value = fvu(primary, student)
    assert value.dtype == torch.float32 and value.isfinite().all()
    torch.testing.assert_close(value, fvu(primary.float(), student.float()), rtol=0, atol=0)


def test_large_offset_does_not_swallow_the_variance() -> None:
    # variance 1 about 1e5 in float32: squares of raw activations (1e10) would lose it
    primary = 1e5 + torch.tensor([[-1.0], [1.0]]).repeat(500, 1)
    student = torch.full((1000, 1), 1e5)
    torch.testing.assert_close(fvu(primary, student), torch.ones(1))


def test_dtype_of_mixed_arguments() -> None:
    primary, student = random_pair(4, 2)
    assert fvu(primary, student).dtype == torch.float64
    assert fvu(primary, student.float()).dtype == torch.float64
    assert fvu(primary.float(), student.half()).dtype == torch.float32


def test_wrong_arguments() -> None:
    good = torch.zeros(4, 2)
    with pytest.raises(TypeError, match=r"`primary` must be floating point activations.*got torch\.int64"):
        fvu(good.long(), good)
    with pytest.raises(TypeError, match=r"`student` must be floating point activations.*got torch\.complex64"):
        fvu(good, good.to(torch.complex64))
    with pytest.raises(ValueError, match=r"`primary` must be .* got a scalar"):
        fvu(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"`student` must have the shape of `primary` \(4, 2\), got \(4, 1\)"):
        fvu(good, good[:, :1])
    with pytest.raises(
        ValueError, match=r"`mask` must have the shape of `primary` without its units \(4,\), got \(4, 2"
    ):
        fvu(good, good, mask=torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"`mask` must be a boolean tensor.*got torch\.int64"):
        fvu(good, good, mask=torch.ones(4, dtype=torch.int64))
