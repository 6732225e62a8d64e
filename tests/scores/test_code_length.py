import itertools
import math

import pytest
import torch

from legibility.scores import code_length_saving, kt_code_length, prediction_code_length


def test_kt_by_hand() -> None:
    # Two classes, sequence a a b: 1/2 * (3/2)/2 * (1/2)/3 = 1/2 * 3/4 * 1/6 = 1/16, so 4 bits.
    assert kt_code_length(torch.tensor([2, 1])).item() == pytest.approx(4.0, abs=1e-12)


@pytest.mark.parametrize("labels", set(itertools.permutations([0, 0, 2, 2, 2, 3])))
def test_kt_is_the_sequential_code_in_any_order(labels: tuple[int, ...]) -> None:
    classes, bits, counts = 4, 0.0, [0] * 4
    for step, label in enumerate(labels):
        bits -= math.log2((counts[label] + 0.5) / (step + classes / 2))
        counts[label] += 1
    assert kt_code_length(torch.tensor(counts)).item() == pytest.approx(bits, abs=1e-10)


def test_kt_edges() -> None:
    assert kt_code_length(torch.zeros(5)).item() == pytest.approx(0.0, abs=1e-12)
    assert kt_code_length(torch.tensor([7])).item() == pytest.approx(0.0, abs=1e-12)  # one class: nothing to say
    rows = torch.tensor([[2, 1], [0, 0]])
    torch.testing.assert_close(kt_code_length(rows), torch.tensor([4.0, 0.0], dtype=torch.float64))


def test_kt_costs_the_entropy_and_half_a_log_per_free_parameter() -> None:
    # Asymptotics of the code: N H + (K - 1)/2 log2 N + O(1).
    share = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    constants = [kt_code_length(share * n).item() - n * 1.5 - math.log2(n) for n in (1e4, 1e5, 1e6)]
    assert max(constants) - min(constants) < 1e-3


@pytest.mark.parametrize("counts", [torch.tensor([1.0, -1.0]), torch.tensor([math.nan]), torch.tensor([math.inf, 0.0])])
def test_kt_refuses_what_is_no_count(counts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`counts` must be finite and >= 0"):
        kt_code_length(counts)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_kt_needs_classes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`counts` must hold one number per class"):
        kt_code_length(torch.zeros(shape))


def test_uniform_digits_cost_5969_bits() -> None:
    bits = prediction_code_length(torch.zeros(1797, 10), torch.zeros(1797, dtype=torch.long)).sum()
    assert bits.item() == pytest.approx(5969.5, abs=0.05)  # 1797 log2 10


def test_prediction_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])  # q = 3/4, 1/4
    # eta = 1/2: 3/8 + 1/4 = 5/8 and 1/8 + 1/4 = 3/8
    for label, probability in ((0, 5 / 8), (1, 3 / 8)):
        bits = prediction_code_length(logits, torch.tensor([label]), mixture=0.5)
        assert bits.item() == pytest.approx(-math.log2(probability), abs=1e-6)


def test_a_confident_mistake_costs_at_most_log2_of_k_over_eta() -> None:
    logits = torch.tensor([[0.0, 1e4, 0.0, -math.inf], [-math.inf, 3e38, 0.0, 0.0]])
    bits = prediction_code_length(logits, torch.tensor([3, 0]))
    torch.testing.assert_close(bits, torch.full((2,), math.log2(4 / 1e-3), dtype=torch.float64))


def test_without_mixture_it_is_the_log_loss() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(50) % 6
    expected = metrics.log_loss(labels.numpy(), logits.softmax(-1).numpy()) / math.log(2)
    assert prediction_code_length(logits, labels, mixture=0.0).mean().item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_logits_are_coded_in_float64(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.5, -2.0, 0.25]], dtype=dtype)  # exact in every dtype
    exact = prediction_code_length(logits.double(), torch.tensor([1]))
    torch.testing.assert_close(prediction_code_length(logits, torch.tensor([1])), exact, rtol=0, atol=0)


def test_prediction_errors() -> None:
    logits = torch.zeros(3, 4)
    with pytest.raises(TypeError, match="`logits` must be a floating point tensor, got torch.int64"):
        prediction_code_length(logits.long(), torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match="`labels` must be an integer tensor of class ids, got torch.float32"):
        prediction_code_length(logits, torch.zeros(3))
    with pytest.raises(ValueError, match=r"`labels` must have the shape .*\(3,\), got \(4,\)"):
        prediction_code_length(logits, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`labels` must be in 0..3, got -100..0"):
        prediction_code_length(logits, torch.tensor([0, -100, 0]))
    with pytest.raises(ValueError, match=r"`mixture` must be in \[0, 1\], got nan"):
        prediction_code_length(logits, torch.tensor([0, 1, 2]), mixture=math.nan)


def test_saving() -> None:
    assert code_length_saving(0.0, 10.0) == 1.0
    assert code_length_saving(15.0, 10.0) == -0.5
    assert math.isnan(code_length_saving(0.0, 0.0))
    assert math.isnan(code_length_saving(1.0, math.nan))
