"""Soft thresholds: hand values, the minimisation they stand for, exact zeros, dtypes, complex weights, wrong input."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from legibility.losses import (
    group_l1_penalty,
    group_soft_threshold,
    log_penalty,
    reweighted_soft_threshold,
    root_mean_square,
    soft_threshold,
)


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


class TestSoftThreshold:
    def test_hand_value(self) -> None:
        w = torch.tensor([3.0, -3.0, 1.0, -1.0, 0.5, 0.0])
        assert soft_threshold(w, 1.0).tolist() == [2.0, -2.0, 0.0, 0.0, 0.0, 0.0]
        assert soft_threshold(w, 0.0).tolist() == w.tolist()
        assert soft_threshold(w, math.inf).tolist() == [0.0] * 6

    @pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0, 5.0])
    def test_equals_softshrink(self, threshold: float) -> None:
        w = weights(100)
        torch.testing.assert_close(soft_threshold(w, threshold), F.softshrink(w, threshold))

    @pytest.mark.parametrize("w", [-2.0, -0.3, 0.0, 0.25, 0.9, 1.7])
    @pytest.mark.parametrize("threshold", [0.0, 0.25, 1.0])
    def test_minimises_its_objective(self, w: float, threshold: float) -> None:
        x = torch.linspace(-3, 3, 6001, dtype=torch.float64)  # steps of 1e-3, 0 included
        best = x[(0.5 * (x - w) ** 2 + threshold * x.abs()).argmin()]
        found = soft_threshold(torch.tensor(w, dtype=torch.float64), threshold)
        assert found.item() == pytest.approx(best.item(), abs=1e-3)

    def test_thresholds_add_up(self) -> None:
        w = weights(1000, dtype=torch.float64)
        thrice = soft_threshold(soft_threshold(soft_threshold(w, 0.1), 0.2), 0.3)
        torch.testing.assert_close(thrice, soft_threshold(w, 0.6), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("rates", [[1.0] * 10, [0.3, 0.2, 0.1], [1e-3 * 0.9**k for k in range(50)]])
    def test_budget_means_the_same_at_any_schedule(self, rates: list[float]) -> None:
        # The recipe of the docstring: threshold_k = strength * c * eta_k / sum eta, in all strength * c.
        start = 0.02 * weights(500, dtype=torch.float64)
        strength, c = 0.7, root_mean_square(start).item()
        w = start
        for rate in rates:
            w = soft_threshold(w, strength * c * rate / sum(rates))
        torch.testing.assert_close(w, soft_threshold(start, strength * c), rtol=0, atol=1e-12)
        assert 0.4 < (w == 0).double().mean() < 0.6  # P(|normal| < 0.7) = 0.52

    def test_zeros_are_exact_and_positive(self) -> None:
        result = soft_threshold(-weights(1000).abs(), 0.5)
        zeros = result[result.abs() < 1e-9]
        assert len(zeros) > 100 and (zeros == 0).all() and not zeros.signbit().any()

    def test_never_crosses_zero_nor_grows(self) -> None:
        w = weights(1000)
        result = soft_threshold(w, 0.3)
        assert (result * w >= 0).all() and (result.abs() <= w.abs()).all()

    def test_tensor_threshold(self) -> None:
        w = torch.tensor([[3.0, -3.0], [3.0, -3.0]])
        assert soft_threshold(w, torch.tensor(1.0)).tolist() == [[2.0, -2.0], [2.0, -2.0]]
        assert soft_threshold(w, torch.tensor([[1.0], [4.0]])).tolist() == [[2.0, -2.0], [0.0, 0.0]]
        assert soft_threshold(w, torch.tensor([1, 2])).tolist() == [[2.0, -1.0], [2.0, -1.0]]

    def test_is_pure(self) -> None:
        w = torch.tensor([3.0, 0.5])
        result = soft_threshold(w, 0.0)
        result += 1
        assert w.tolist() == [3.0, 0.5]

    @pytest.mark.parametrize("threshold", [0.5, torch.tensor(0.5)])
    def test_nan_stays_nan(self, threshold: float | Tensor) -> None:
        result = soft_threshold(torch.tensor([math.nan, 1.0, math.inf, -math.inf]), threshold)
        assert result[0].isnan() and result[1:].tolist() == [0.5, math.inf, -math.inf]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_half_precision_computes_in_float32(self, dtype: torch.dtype, as_tensor: bool) -> None:
        w = weights(500).to(dtype)
        threshold = 0.1234567
        result = soft_threshold(w, torch.tensor(threshold) if as_tensor else threshold)
        assert result.dtype == dtype
        assert torch.equal(result, soft_threshold(w.float(), threshold).to(dtype))
        in_half = w - w.clamp(-torch.tensor(threshold, dtype=dtype), torch.tensor(threshold, dtype=dtype))
        assert not torch.equal(result, in_half)  # or this test couldn't tell

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
    @pytest.mark.parametrize("threshold_dtype", [torch.float16, torch.float64])
    def test_dtype_is_kept(self, dtype: torch.dtype, threshold_dtype: torch.dtype) -> None:
        w = weights(4, dtype=dtype)
        assert soft_threshold(w, 0.5).dtype == dtype
        each = torch.full((4,), 0.5, dtype=threshold_dtype)
        torch.testing.assert_close(soft_threshold(w, each), soft_threshold(w, 0.5))  # compares dtypes too
        assert reweighted_soft_threshold(w, each, epsilon=0.1).dtype == dtype
        assert torch.equal(soft_threshold(w, 0.5), soft_threshold(w, torch.tensor(0.5, dtype=threshold_dtype)))

    def test_double_precision_is_kept(self) -> None:
        w = torch.tensor([1.0 + 1e-12], dtype=torch.float64)
        assert soft_threshold(w, 1.0).item() == pytest.approx(1e-12, rel=1e-3)

    def test_complex_hand_value(self) -> None:
        # |3 + 4j| = 5, threshold 1 keeps 4/5 of it; |0.6 + 0.8j| = 1 falls to zero
        w = torch.tensor([3 + 4j, 0.6 + 0.8j, 0j, 0.1j], dtype=torch.complex128)
        expected = torch.tensor([2.4 + 3.2j, 0j, 0j, 0j], dtype=torch.complex128)
        torch.testing.assert_close(soft_threshold(w, 1.0), expected)
        assert (soft_threshold(w, 1.0 + 1e-9)[1:] == 0).all()
        assert torch.equal(soft_threshold(w, 0.0), w)
        assert torch.equal(soft_threshold(w, math.inf), torch.zeros_like(w))

    def test_complex_keeps_the_phase_and_shrinks_the_modulus(self) -> None:
        w = weights(200, dtype=torch.complex128)
        result = soft_threshold(w, 0.5)
        torch.testing.assert_close(result.abs(), soft_threshold(w.abs(), 0.5))
        alive = result != 0
        torch.testing.assert_close(result[alive].angle(), w[alive].angle())
        assert 0 < alive.sum() < 200

    def test_complex_on_the_real_line_is_real(self) -> None:
        w = weights(200, dtype=torch.float64)
        torch.testing.assert_close(soft_threshold(w.to(torch.complex128), 0.5).real, soft_threshold(w, 0.5))

    def test_complex_nan(self) -> None:
        result = soft_threshold(torch.tensor([complex(math.nan, 0.0), 2 + 0j]), 1.0)
        assert result[0].isnan() and result[1] == 1

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    def test_gradient_away_from_the_kink(self, dtype: torch.dtype) -> None:
        w = torch.tensor([2.0, -1.5, 0.2, -0.1], dtype=dtype, requires_grad=True)
        threshold = torch.tensor([0.5, 0.4, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(soft_threshold, (w, threshold))

    @pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0)])
    def test_any_shape(self, shape: tuple[int, ...]) -> None:
        assert soft_threshold(torch.ones(shape), 0.5).shape == shape

    def test_tensor_entries_are_not_read_on_the_host(self) -> None:
        w, threshold = torch.empty(3, 2, device="meta"), torch.empty(3, 1, device="meta")  # no values to read
        assert soft_threshold(w, threshold).shape == (3, 2)
        assert reweighted_soft_threshold(w, threshold, epsilon=1.0).shape == (3, 2)


class TestReweightedSoftThreshold:
    def test_hand_value(self) -> None:
        # t_i = 1 * 1 / (|w| + 1): 1/4, 1/2, 4/5, 1
        w = torch.tensor([3.0, -1.0, 0.25, 0.0])
        assert reweighted_soft_threshold(w, 1.0, epsilon=1.0).tolist() == [2.75, -0.5, 0.0, 0.0]

    def test_equals_soft_threshold_with_its_own_thresholds(self) -> None:
        w = weights(3, 5, dtype=torch.float64)
        for threshold in (0.3, torch.tensor([[0.1], [0.2], [0.9]], dtype=torch.float64)):
            expected = soft_threshold(w, threshold * 0.2 / (w.abs() + 0.2))
            torch.testing.assert_close(reweighted_soft_threshold(w, threshold, epsilon=0.2), expected)

    def test_wide_epsilon_is_the_plain_step(self) -> None:
        w = weights(100, dtype=torch.float64)
        step = reweighted_soft_threshold(w, 0.3, epsilon=1e9)
        torch.testing.assert_close(step, soft_threshold(w, 0.3), rtol=0, atol=1e-8)

    def test_spares_large_weights(self) -> None:
        w = torch.tensor([0.01, 10.0])
        result = reweighted_soft_threshold(w, 0.1, epsilon=0.01)
        assert result[0] == 0 and result[1] > 10 - 1e-3 and soft_threshold(w, 0.1)[1] < 10 - 0.09

    def test_threshold_is_the_slope_of_the_log_penalty(self) -> None:
        w = torch.tensor([2.0, 0.5, -3.0], dtype=torch.float64, requires_grad=True)
        torch.autograd.backward(log_penalty(w, epsilon=0.3))
        assert w.grad is not None
        step = w.detach() - reweighted_soft_threshold(w.detach(), 1e-3, epsilon=0.3)
        torch.testing.assert_close(step, 1e-3 * w.grad)

    @pytest.mark.parametrize("threshold", [0.05, 0.5, 2.0])
    def test_descends_the_penalised_objective(self, threshold: float) -> None:
        w = weights(200, dtype=torch.float64)
        x = reweighted_soft_threshold(w, threshold, epsilon=0.2)
        # Each weight on its own: 1/2 (x - w)^2 + t * penalty(x) <= t * penalty(w)
        before = torch.stack([threshold * log_penalty(v, epsilon=0.2) for v in w])
        after = torch.stack([threshold * log_penalty(v, epsilon=0.2) for v in x]) + 0.5 * (x - w) ** 2
        assert (after <= before + 1e-12).all() and (after < before).any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_computes_in_float32(self, dtype: torch.dtype) -> None:
        w = weights(500).to(dtype)
        result = reweighted_soft_threshold(w, 0.1234567, epsilon=0.02)
        assert result.dtype == dtype
        assert torch.equal(result, reweighted_soft_threshold(w.float(), 0.1234567, epsilon=0.02).to(dtype))

    def test_complex(self) -> None:
        # |3 + 4j| = 5: t = 2 * 5 / (5 + 5) = 1 keeps 4/5
        w = torch.tensor([3 + 4j, 0j], dtype=torch.complex128)
        expected = torch.tensor([2.4 + 3.2j, 0j], dtype=torch.complex128)
        torch.testing.assert_close(reweighted_soft_threshold(w, 2.0, epsilon=5.0), expected)

    def test_nan_and_infinity(self) -> None:
        result = reweighted_soft_threshold(torch.tensor([math.nan, math.inf, -math.inf]), 1.0, epsilon=1.0)
        assert result[0].isnan() and result[1:].tolist() == [math.inf, -math.inf]

    def test_gradient_away_from_the_kink(self) -> None:
        w = torch.tensor([2.0, -1.5, 0.01], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v: reweighted_soft_threshold(v, 0.5, epsilon=0.3), w)

    @pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
    def test_wrong_epsilon(self, epsilon: float) -> None:
        with pytest.raises(ValueError, match="`epsilon` must be a finite number above 0, got"):
            reweighted_soft_threshold(torch.ones(2), 0.1, epsilon=epsilon)


class TestGroupSoftThreshold:
    def test_hand_value(self) -> None:
        # sqrt|g| = sqrt 2: t = 1/sqrt 2 takes 1 from each length: 5 -> 4, 1 -> 0
        w = torch.tensor([[3.0, -4.0], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64)
        expected = torch.tensor([[2.4, -3.2], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(group_soft_threshold(w, math.sqrt(0.5) + 1e-12, dim=1), expected)
        assert (group_soft_threshold(w, math.sqrt(0.5) + 1e-12, dim=1)[1:] == 0).all()
        assert torch.equal(group_soft_threshold(w, 0.0, dim=1), w)
        assert torch.equal(group_soft_threshold(w, math.inf, dim=1), torch.zeros_like(w))
        # columns: lengths sqrt(9.36), sqrt(16.64), sqrt|g| = sqrt 3
        kept = 1 - 0.5 * math.sqrt(3) / torch.tensor([math.sqrt(9.36), math.sqrt(16.64)], dtype=torch.float64)
        torch.testing.assert_close(group_soft_threshold(w, 0.5, dim=0), w * kept)

    @pytest.mark.parametrize("threshold", [0.05, 0.3, 0.9])
    def test_minimises_its_objective(self, threshold: float) -> None:
        scipy = pytest.importorskip("scipy.optimize")
        w = weights(4, 3, dtype=torch.float64)

        def objective(x: Any) -> float:
            v = torch.tensor(x).reshape(4, 3)
            return float(0.5 * (v - w).square().sum() + threshold * group_l1_penalty(v, dim=1))

        best = scipy.minimize(objective, w.numpy().ravel(), method="Powell", options={"xtol": 1e-9, "ftol": 1e-13})
        found = group_soft_threshold(w, threshold, dim=1)
        assert objective(found.numpy().ravel()) <= best.fun + 1e-12
        assert torch.allclose(found, torch.tensor(best.x).reshape(4, 3), atol=1e-3)

    def test_groups_of_one_are_the_soft_threshold(self) -> None:
        w = weights(50, 1, dtype=torch.float64)
        torch.testing.assert_close(group_soft_threshold(w, 0.4, dim=1), soft_threshold(w, 0.4))

    def test_one_threshold_means_the_same_for_any_size(self) -> None:
        # A group whose weights all are c dies at t = c, be it of 2 weights or of 1000.
        for size in (2, 1000):
            w = torch.full((1, size), 0.5, dtype=torch.float64)
            torch.testing.assert_close(group_soft_threshold(w, 0.2, dim=1), torch.full_like(w, 0.3))
            assert (group_soft_threshold(w, 0.5 + 1e-9, dim=1) == 0).all()

    def test_thresholds_add_up_and_directions_stay(self) -> None:
        w = weights(7, 5, 3, dtype=torch.float64)
        thrice = group_soft_threshold(group_soft_threshold(w, 0.1, dim=(1, 2)), 0.2, dim=(1, 2))
        once = group_soft_threshold(w, 0.3, dim=(-1, -2))
        torch.testing.assert_close(thrice, once)
        cosine = F.cosine_similarity(once.flatten(1), w.flatten(1))
        torch.testing.assert_close(cosine, torch.ones_like(cosine))

    def test_a_threshold_for_each_group(self) -> None:
        w = weights(3, 4, dtype=torch.float64)
        each = torch.tensor([[0.1], [0.0], [9.0]], dtype=torch.float64)
        found = group_soft_threshold(w, each, dim=1)
        rows = [group_soft_threshold(w[i : i + 1], each[i].item(), dim=1) for i in range(3)]
        torch.testing.assert_close(found, torch.cat(rows))
        assert group_soft_threshold(w, torch.tensor([0.1, 0.2, 0.3, 9.0]), dim=0)[:, 3].tolist() == [0, 0, 0]

    def test_nan_and_infinity_stay_in_their_group(self) -> None:
        w = torch.tensor([[1.0, math.nan], [1.0, math.inf], [3.0, 4.0]])
        found = group_soft_threshold(w, 0.0, dim=1)
        assert found[:2].isnan().all() and found[2].tolist() == [3.0, 4.0]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_computes_in_float32(self, dtype: torch.dtype) -> None:
        w = (300 * weights(20, 300)).to(dtype)  # in half precision the squares overflow
        found = group_soft_threshold(w, 12.3, dim=1)
        assert found.dtype == dtype and found.isfinite().all()
        assert torch.equal(found, group_soft_threshold(w.float(), 12.3, dim=1).to(dtype))

    def test_complex_weights(self) -> None:
        w = torch.tensor([[3j, 4.0]], dtype=torch.complex128)
        torch.testing.assert_close(group_soft_threshold(w, math.sqrt(0.5), dim=1), 0.8 * w)

    def test_gradient_away_from_the_kink(self) -> None:
        w = weights(4, 3, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda v: group_soft_threshold(v, 0.3, dim=1), w)

    @pytest.mark.parametrize(("shape", "dim"), [((0, 3), 1), ((3, 0), 1), ((0,), 0), ((1,), 0)])
    def test_empty(self, shape: tuple[int, ...], dim: int) -> None:
        assert group_soft_threshold(torch.ones(shape), 0.5, dim=dim).shape == shape

    @pytest.mark.parametrize("dim", [2, -3, (), (0, 0), (0, -2)])
    def test_wrong_dim(self, dim: int | tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"`dim` must name one or more different dimensions.*\(3, 2\), got"):
            group_soft_threshold(torch.ones(3, 2), 0.1, dim=dim)

    def test_wrong_threshold(self) -> None:
        with pytest.raises(ValueError, match=r"`threshold` must be the same within a group: .*`dim` 1, got \(3, 2\)"):
            group_soft_threshold(torch.ones(3, 2), torch.zeros(3, 2), dim=1)
        with pytest.raises(ValueError, match="`threshold` must be 0 or above, got -1"):
            group_soft_threshold(torch.ones(3, 2), -1.0, dim=1)
        with pytest.raises(TypeError, match="`w` must be floating point"):
            group_soft_threshold(torch.ones(3, 2, dtype=torch.int64), 1.0, dim=1)


@pytest.mark.parametrize("reweighted", [False, True])
class TestWrongArguments:
    def step(self, w: Tensor, threshold: float | Tensor, reweighted: bool) -> Tensor:
        return reweighted_soft_threshold(w, threshold, epsilon=1.0) if reweighted else soft_threshold(w, threshold)

    @pytest.mark.parametrize("threshold", [-1e-9, -1.0, -math.inf, math.nan])
    def test_negative_or_nan_threshold(self, reweighted: bool, threshold: float) -> None:
        with pytest.raises(ValueError, match="`threshold` must be 0 or above, got"):
            self.step(torch.ones(2), threshold, reweighted)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
    def test_integer_weights(self, reweighted: bool, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=r"`w` must be floating point or complex weights, got torch\."):
            self.step(torch.ones(2, dtype=dtype), 0.5, reweighted)

    def test_complex_threshold(self, reweighted: bool) -> None:
        with pytest.raises(TypeError, match=r"`threshold` must be a number or a real tensor, got torch\.complex64"):
            self.step(torch.ones(2), torch.tensor(1j), reweighted)

    @pytest.mark.parametrize("shape", [(3,), (1, 3, 2), (2, 2), (3, 3), (1, 1, 1)])
    def test_threshold_that_does_not_fit(self, reweighted: bool, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"`threshold` must broadcast to the shape of `w` \(3, 2\), got"):
            self.step(torch.ones(3, 2), torch.zeros(shape), reweighted)

    def test_threshold_would_enlarge_the_weights(self, reweighted: bool) -> None:
        with pytest.raises(ValueError, match=r"`threshold` must broadcast to the shape of `w` \(1, 2\), got \(3, 2\)"):
            self.step(torch.ones(1, 2), torch.zeros(3, 2), reweighted)
