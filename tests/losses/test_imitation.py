"""Divergences, entropy and masked mean: hand values, PyTorch's own, gradients, impossible classes, wrong input."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from legibility.losses import entropy, forward_kl, masked_mean, reverse_kl, symmetric_kl

Divergence = Callable[..., Tensor]
ALL = pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, symmetric_kl])
INF = math.inf


def kl_div(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) as torch.nn.functional has it."""
    log_q, log_p = F.log_softmax(q_logits, -1), F.log_softmax(p_logits, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


REFERENCES: dict[Any, Divergence] = {
    forward_kl: kl_div,
    reverse_kl: lambda p, q: kl_div(q, p),
    symmetric_kl: lambda p, q: (kl_div(p, q) + kl_div(q, p)) / 2,
}


def random_pair(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    primary = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    student = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return primary.to(dtype), student.to(dtype)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        # p = (1/2, 1/2), q = (3/4, 1/4):
        (forward_kl, 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),  # sum p log(p/q) = 1/2 log(4/3)
        (reverse_kl, 0.75 * math.log(3 / 2) - 0.25 * math.log(2)),  # sum q log(q/p)
        (symmetric_kl, math.log(3) / 8),  # 1/2 (-1/4 log(2/3) + 1/4 log 2)
    ],
)
def test_hand_value(divergence: Divergence, expected: float) -> None:
    primary = torch.zeros(2, dtype=torch.float64)
    student = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    assert divergence(primary, student).item() == pytest.approx(expected, rel=1e-12)


@ALL
@pytest.mark.parametrize("shape", [(5,), (4, 2), (2, 3, 7), (0, 3), (2, 0, 3)])
def test_equals_torch_functional(divergence: Divergence, shape: tuple[int, ...]) -> None:
    primary, student = random_pair(*shape)
    result = divergence(primary, student)
    assert result.shape == shape[:-1]
    torch.testing.assert_close(result, REFERENCES[divergence](primary, student), rtol=1e-5, atol=1e-6)


def test_equals_torch_distributions() -> None:
    primary, student = random_pair(6, 5, dtype=torch.float64)
    p, q = torch.distributions.Categorical(logits=primary), torch.distributions.Categorical(logits=student)
    torch.testing.assert_close(forward_kl(primary, student), torch.distributions.kl_divergence(p, q))
    torch.testing.assert_close(reverse_kl(primary, student), torch.distributions.kl_divergence(q, p))


@ALL
@pytest.mark.parametrize("temperature", [0.5, 2, 4.0])
def test_temperature_divides_logits_and_multiplies_by_its_square(divergence: Divergence, temperature: float) -> None:
    primary, student = random_pair(4, 5, dtype=torch.float64)
    expected = temperature**2 * REFERENCES[divergence](primary / temperature, student / temperature)
    torch.testing.assert_close(divergence(primary, student, temperature=temperature), expected)


@ALL
def test_hot_limit_is_squared_error_of_centred_logits(divergence: Divergence) -> None:
    # For T -> inf every one of them tends to sum_c (d_c - mean d)^2 / (2 C), d = primary - student.
    primary, student = random_pair(3, 4, dtype=torch.float64)
    centred = (primary - student) - (primary - student).mean(-1, keepdim=True)
    expected = centred.square().sum(-1) / 8
    torch.testing.assert_close(divergence(primary, student, temperature=1e4), expected, rtol=1e-2, atol=0)


@ALL
def test_properties(divergence: Divergence) -> None:
    primary, student = random_pair(50, 6, dtype=torch.float64)
    value = divergence(primary, student)
    assert (value > 0).all()
    torch.testing.assert_close(divergence(primary + 7, student - 300), value)  # softmax ignores shifts
    torch.testing.assert_close(divergence(primary.flip(-1), student.flip(-1)), value)
    assert divergence(primary, primary).abs().max() == 0


def test_directions_are_exchanged_arguments() -> None:
    primary, student = random_pair(20, 6, dtype=torch.float64)
    torch.testing.assert_close(reverse_kl(primary, student), forward_kl(student, primary), rtol=0, atol=0)
    torch.testing.assert_close(symmetric_kl(primary, student), symmetric_kl(student, primary))
    both = (forward_kl(primary, student) + reverse_kl(primary, student)) / 2
    torch.testing.assert_close(symmetric_kl(primary, student), both)


@ALL
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_of_both_arguments(divergence: Divergence, temperature: float) -> None:
    primary, student = (t.requires_grad_() for t in random_pair(3, 4, dtype=torch.float64))

    def function(p: Tensor, s: Tensor) -> Tensor:
        return divergence(p, s, temperature=temperature)

    assert torch.autograd.gradcheck(function, (primary, student))
    assert torch.autograd.gradgradcheck(function, (primary, student))


def test_closed_form_gradients() -> None:
    primary, student = (t.requires_grad_() for t in random_pair(3, 4, dtype=torch.float64))
    p, q = primary.detach().div(2).softmax(-1), student.detach().div(2).softmax(-1)
    to_primary, to_student = torch.autograd.grad(
        forward_kl(primary, student, temperature=2.0).sum(), (primary, student)
    )
    torch.testing.assert_close(to_student, 2 * (q - p))
    ratio = p.log() - q.log()
    torch.testing.assert_close(to_primary, 2 * p * (ratio - (p * ratio).sum(-1, keepdim=True)))


@ALL
def test_detached_side_gets_no_gradient(divergence: Divergence) -> None:
    pair = [t.requires_grad_() for t in random_pair(3, 4)]
    for value, learns in [(divergence(pair[0].detach(), pair[1]), 1), (divergence(pair[0], pair[1].detach()), 0)]:
        gradients = torch.autograd.grad(value.sum(), pair, allow_unused=True)
        assert gradients[1 - learns] is None
        assert gradients[learns] is not None and gradients[learns].abs().sum() > 0


@ALL
def test_huge_logits_stay_finite(divergence: Divergence) -> None:
    # p = (1, 0), q = (0, 1): sum p (log p - log q) = 0 - (-2e4)
    primary = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    student = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    value = divergence(primary, student)
    assert value.tolist() == [2e4, 0.0]
    torch.autograd.backward(value.sum())
    for gradient in (primary.grad, student.grad):
        assert gradient is not None and gradient.isfinite().all()


@ALL
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_classes_ruled_out_by_both_are_absent(divergence: Divergence, temperature: float) -> None:
    primary, student = random_pair(4, 5, dtype=torch.float64)
    kept = [0, 2, 4]
    masked_primary, masked_student = torch.full_like(primary, -INF), torch.full_like(student, -INF)
    masked_primary[:, kept], masked_student[:, kept] = primary[:, kept], student[:, kept]
    full = [masked_primary.requires_grad_(), masked_student.requires_grad_()]
    reduced = [primary[:, kept].requires_grad_(), student[:, kept].requires_grad_()]

    value, expected = divergence(*full, temperature=temperature), divergence(*reduced, temperature=temperature)
    torch.testing.assert_close(value, expected)
    torch.autograd.backward(value.sum())
    torch.autograd.backward(expected.sum())
    for wide, narrow in zip(full, reduced, strict=True):
        assert wide.grad is not None and narrow.grad is not None
        torch.testing.assert_close(wide.grad[:, kept], narrow.grad)
        assert (wide.grad[:, [1, 3]] == 0).all()


def test_class_ruled_out_by_the_student_alone_is_infinitely_wrong() -> None:
    # p = (1/2, 1/2, 0): the second class costs 1/2 * inf, the third 0 * inf = 0.
    primary = torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, -INF]])
    student = torch.tensor([[0.0, -INF, 0.0], [0.0, 0.0, -INF]], requires_grad=True)
    value = forward_kl(primary, student)
    assert value.tolist() == [INF, 0.0]
    assert symmetric_kl(primary, student).tolist() == [INF, 0.0]
    torch.autograd.backward(value.sum())  # q - p, even then
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, -0.5, 0.5], [0.0, 0.0, 0.0]]))


def test_class_ruled_out_by_the_primary_alone() -> None:
    # p = (1, 0), q = (1/2, 1/2): forward 1 log 2 + 0; the others pay q log(q / 0).
    primary = torch.tensor([0.0, -INF], requires_grad=True)
    student = torch.tensor([0.0, 0.0], requires_grad=True)
    value = forward_kl(primary, student)
    assert value.item() == pytest.approx(math.log(2))
    torch.autograd.backward(value)
    torch.testing.assert_close(student.grad, torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(primary.grad, torch.tensor([0.0, 0.0]))
    assert reverse_kl(primary, student).item() == INF
    assert symmetric_kl(primary, student).item() == INF


@pytest.mark.parametrize(("divergence", "expected"), [(forward_kl, 0.0), (reverse_kl, 0.0), (symmetric_kl, 0.0)])
def test_underflow_against_minus_infinity_is_not_nan(divergence: Divergence, expected: float) -> None:
    # One side's probability underflows to 0 where the other rules the class out: 0 * inf, which is 0 here.
    for primary, student in [([0.0, -1e4], [0.0, -INF]), ([0.0, -INF], [0.0, -1e4])]:
        p, s = torch.tensor(primary, requires_grad=True), torch.tensor(student, requires_grad=True)
        value = divergence(p, s)
        assert value.item() == expected
        torch.autograd.backward(value)
        assert p.grad is not None and s.grad is not None
        assert p.grad.isfinite().all() and s.grad.isfinite().all()


@ALL
@pytest.mark.parametrize("bad_row", [[0.0, math.nan], [INF, 0.0], [-INF, -INF]])
@pytest.mark.parametrize("which", [0, 1])
def test_broken_row_is_nan_and_stays_alone(divergence: Divergence, bad_row: list[float], which: int) -> None:
    pair = [torch.zeros(3, 2), torch.ones(3, 2)]
    pair[which][1] = torch.tensor(bad_row)
    value = divergence(*pair)
    assert value.isnan().tolist() == [False, True, False]


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(divergence: Divergence, dtype: torch.dtype) -> None:
    primary, student = random_pair(8, 5, dtype=dtype)
    primary[0], student[0] = 300.0, -300.0
    primary[0, 0] = 6e4 if dtype == torch.float16 else 1e30  # its quotient by 1/2 leaves float16
    result = divergence(primary, student, temperature=0.5)
    assert result.dtype == torch.float32 and result.isfinite().all()
    torch.testing.assert_close(result, divergence(primary.float(), student.float(), temperature=0.5), rtol=0, atol=0)
    primary.requires_grad_()
    torch.autograd.backward(divergence(primary, student).sum())
    assert primary.grad is not None and primary.grad.dtype == dtype


@ALL
def test_autocast_does_not_lower_the_precision(divergence: Divergence) -> None:
    primary, student = random_pair(8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = divergence(primary, student)
    assert torch.equal(result, divergence(primary, student))


@ALL
def test_double_precision_is_kept(divergence: Divergence) -> None:
    primary, student = random_pair(8, 5, dtype=torch.float64)
    result = divergence(primary, student)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, REFERENCES[divergence](primary, student), rtol=1e-13, atol=1e-15)
    assert divergence(primary, student.float()).dtype == torch.float64


@ALL
def test_arguments_are_left_as_they_were(divergence: Divergence) -> None:
    pair = random_pair(3, 4)
    pair[0][0, 0] = pair[1][0, 0] = -INF
    before = [t.clone() for t in pair]
    with torch.no_grad():
        divergence(*pair)
    for tensor, old in zip(pair, before, strict=True):
        assert torch.equal(tensor, old)


@ALL
def test_works_under_function_transforms(divergence: Divergence) -> None:
    primary, student = random_pair(3, 4, dtype=torch.float64)
    primary[0, 0] = student[0, 0] = -INF
    torch.testing.assert_close(torch.vmap(divergence)(primary, student), divergence(primary, student))
    per_example = torch.vmap(torch.func.grad(divergence, argnums=1))(primary, student)
    student.requires_grad_()
    torch.autograd.backward(divergence(primary, student).sum())
    torch.testing.assert_close(per_example, student.grad)


@ALL
def test_each_log_softmax_is_taken_once(divergence: Divergence) -> None:
    primary, student = random_pair(3, 4)
    student.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as run:
        torch.autograd.backward(divergence(primary, student).sum())
    counts = {event.key: event.count for event in run.key_averages()}
    assert counts["aten::_log_softmax"] == 2
    assert counts["aten::_log_softmax_backward_data"] == 1
    assert "aten::div" not in counts  # temperature 1 costs nothing


@ALL
def test_wrong_arguments(divergence: Divergence) -> None:
    good = torch.zeros(3, 4)
    with pytest.raises(TypeError, match=r"`primary` must be floating point logits.*got torch\.int64"):
        divergence(torch.zeros(3, 4, dtype=torch.int64), good)
    with pytest.raises(TypeError, match=r"`student` must be floating point logits.*got torch\.bool"):
        divergence(good, good.bool())
    with pytest.raises(TypeError, match=r"`student` must be floating point logits.*got torch\.complex64"):
        divergence(good, good.to(torch.complex64))
    with pytest.raises(TypeError, match=r"`primary` must be.*got list: pass a torch\.Tensor"):
        divergence([[0.0, 1.0]], good)
    with pytest.raises(ValueError, match=r"`student` must have the shape of `primary` \(3, 4\), got \(1, 4\)"):
        divergence(good, good[:1])
    with pytest.raises(ValueError, match=r"`primary` must be .* at least 2 classes, got shape \(3, 1\).*torch\.stack"):
        divergence(good[:, :1], good[:, :1])
    with pytest.raises(ValueError, match=r"`student` must be .* at least 2 classes, got shape \(\)"):
        divergence(good, torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"got shape \(3, 0\)"):
        divergence(good[:, :0], good[:, :0])
    for temperature in (0.0, -1.0, math.nan, INF):
        with pytest.raises(ValueError, match=r"`temperature` must be a finite number above 0, got"):
            divergence(good, good, temperature=temperature)


def test_single_logit_hint_is_right() -> None:
    # The error's advice: yes with probability sigmoid(z). KL((s, 1 - s) || (1/2, 1/2)) = log 2 - H(s).
    z = torch.tensor([0.3, -2.0])
    pair = torch.stack([torch.zeros_like(z), z], -1)
    s = z.sigmoid()
    torch.testing.assert_close(pair.softmax(-1)[:, 1], s)
    expected = math.log(2) + s * s.log() + (1 - s) * (1 - s).log()
    torch.testing.assert_close(forward_kl(pair, torch.zeros_like(pair)), expected)


class TestEntropy:
    def test_hand_values(self) -> None:
        logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -INF, -INF], [1e4, -1e4, 0.0, 0.0]])
        # uniform over 4: log 4; over 2: log 2; certain: 0
        torch.testing.assert_close(entropy(logits), torch.tensor([math.log(4), math.log(2), 0.0]))

    def test_equals_torch_special(self) -> None:
        logits, _ = random_pair(2, 6, 5, dtype=torch.float64)
        torch.testing.assert_close(entropy(logits), torch.special.entr(logits.softmax(-1)).sum(-1))

    def test_gradient(self) -> None:
        logits, _ = random_pair(3, 4, dtype=torch.float64)
        assert torch.autograd.gradcheck(entropy, logits.requires_grad_())
        masked = torch.tensor([1.0, 0.0, -INF], requires_grad=True)
        torch.autograd.backward(entropy(masked))
        reduced = torch.tensor([1.0, 0.0], requires_grad=True)
        torch.autograd.backward(entropy(reduced))
        assert masked.grad is not None and masked.grad[2] == 0
        torch.testing.assert_close(masked.grad[:2], reduced.grad)

    def test_half_precision(self) -> None:
        logits, _ = random_pair(3, 4, dtype=torch.bfloat16)
        assert entropy(logits).dtype == torch.float32
        assert torch.equal(entropy(logits), entropy(logits.float()))

    def test_leaves_its_argument(self) -> None:
        logits = torch.tensor([1.0, -INF])
        entropy(logits)
        assert torch.equal(logits, torch.tensor([1.0, -INF]))

    def test_wrong_arguments(self) -> None:
        with pytest.raises(TypeError, match=r"`logits` must be floating point logits.*got torch\.int64"):
            entropy(torch.zeros(2, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"`logits` must be .* at least 2 classes, got shape \(2, 1\)"):
            entropy(torch.zeros(2, 1))


class TestMaskedMean:
    def test_hand_value(self) -> None:
        values = torch.tensor([[1.0, 2.0], [6.0, 1000.0]])
        mask = torch.tensor([[True, True], [True, False]])
        assert masked_mean(values, mask).item() == 3.0  # (1 + 2 + 6) / 3
        assert masked_mean(values).item() == 252.25  # 1009 / 4
        assert masked_mean(values, torch.ones(2, 2, dtype=torch.bool)).item() == 252.25
        assert masked_mean(torch.tensor(3.0)).item() == 3.0

    def test_gradient(self) -> None:
        values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
        mask = torch.tensor([True, False, True])
        assert torch.autograd.gradcheck(lambda v: masked_mean(v, mask), values)
        torch.autograd.backward(masked_mean(values, mask))
        assert values.grad is not None and values.grad.tolist() == [0.5, 0.0, 0.5]

    @pytest.mark.parametrize("hidden", [math.nan, INF])
    def test_masked_out_values_do_not_leak(self, hidden: float) -> None:
        values = torch.tensor([2.0, hidden], requires_grad=True)
        mean = masked_mean(values, torch.tensor([True, False]))
        assert mean.item() == 2.0
        torch.autograd.backward(mean)
        assert values.grad is not None and values.grad.tolist() == [1.0, 0.0]
        assert not masked_mean(values).isfinite()

    def test_mean_of_nothing_is_zero_with_zero_gradient(self) -> None:
        values = torch.tensor([math.nan, 2.0], requires_grad=True)
        mean = masked_mean(values, torch.tensor([False, False]))
        assert mean.item() == 0.0
        torch.autograd.backward(mean)
        assert values.grad is not None and values.grad.tolist() == [0.0, 0.0]
        empty = torch.zeros(0, 3, requires_grad=True)
        for mask in (None, torch.zeros(0, 3, dtype=torch.bool)):
            mean = masked_mean(empty, mask)
            assert mean.item() == 0.0
            torch.autograd.backward(mean)

    def test_precision(self) -> None:
        # 4096 * 60 is far above float16's 65504.
        assert masked_mean(torch.full((4096,), 60.0, dtype=torch.float16)).item() == 60.0
        assert masked_mean(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
        mask = torch.tensor([True, True])
        assert masked_mean(torch.ones(2, dtype=torch.float64), mask).dtype == torch.float64

    def test_wrong_arguments(self) -> None:
        values = torch.zeros(2, 3)
        with pytest.raises(TypeError, match=r"`values` must be a floating point tensor, got torch\.int64"):
            masked_mean(torch.zeros(2, dtype=torch.int64))
        with pytest.raises(
            TypeError, match=r"`mask` must be a boolean tensor.*got torch\.float32: use `mask\.bool\(\)`"
        ):
            masked_mean(values, torch.ones(2, 3))
        with pytest.raises(TypeError, match=r"`mask` must be a boolean tensor.*got list"):
            masked_mean(values, [True])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"`mask` must have the shape of `values` \(2, 3\), got \(2, 1\)"):
            masked_mean(values, torch.ones(2, 1, dtype=torch.bool))
