"""FLOPs against hand formulas; widths against budgets."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from legibility.students import (
    ConvStudent,
    GatedConvStudent,
    GRUStudent,
    LSTMStudent,
    MLPStudent,
    NGramStudent,
    Signature,
    Student,
    TransformerStudent,
    check_smaller,
    flops,
    read_signature,
    size_students,
)

IDS = torch.zeros(8, 16, dtype=torch.long)
TEXT = read_signature(IDS, torch.zeros(8, 16, 50))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("cells", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_flops(cells: Callable[..., nn.Module], gates: int, training: bool) -> None:
    """Per position and layer two matrices of gates * hidden rows, 2 per multiply-add; layer 2 reads 7 instead of 5."""
    module = cells(5, 7, num_layers=2, batch_first=True).train(training)
    expected = 2 * 3 * 11 * gates * 7 * ((5 + 7) + (7 + 7))
    assert flops(module, torch.zeros(3, 11, 5)) == expected


def test_bidirectional_lstm_flops() -> None:
    module = nn.LSTM(5, 7, bidirectional=True)
    assert flops(module, torch.zeros(11, 3, 5)) == 2 * 2 * 3 * 11 * 4 * 7 * (5 + 7)


@pytest.mark.parametrize(("student", "per_position"), [(GRUStudent(), 12), (LSTMStudent(), 16)])
def test_recurrent_students_cost_what_their_docstring_says(student: Student, per_position: int) -> None:
    width = 20
    network = student.build(TEXT, width=width)
    # 128 positions; body per_position * width^2, head 2 * width * 50; the embedding is a look-up.
    assert flops(network, IDS) == 128 * (per_position * width**2 + 2 * width * 50)


def test_attention_flops() -> None:
    """Two products of (positions x positions x size) per head, causal or not: 2 * 2 * 2 * 3 * 9 * 9 * 4."""
    query = torch.zeros(2, 3, 9, 4)
    assert flops(nn.functional.scaled_dot_product_attention, query, query, query) == 2 * 2 * (2 * 3) * 9 * 9 * 4


def test_encoder_layer_of_torch_is_counted_in_evaluation_mode_too() -> None:
    """Projections 4 * 16^2, feed-forward 2 * 16 * 32, and attention 2 * 11 * 16 multiply-adds per position."""
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True).eval()
    expected = 2 * 22 * (4 * 16**2 + 2 * 16 * 32 + 2 * 11 * 16)
    assert flops(layer, torch.zeros(2, 11, 16)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_measuring_leaves_no_trace() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 5))
    module[1].eval()
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    statistics = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert flops(module, torch.ones(4, 3)) == 2 * 4 * 3 * 5
    assert flops(lambda x: nn.functional.dropout(x) @ x.t(), torch.ones(4, 3)) == 2 * 4 * 3 * 4
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(statistics[name], tensor) for name, tensor in module.state_dict().items())
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    with pytest.raises(RuntimeError):
        flops(module, torch.ones(4, 7))
    assert module.training
    assert torch.is_grad_enabled()


def _cost(student: Student, width: int) -> int:
    return flops(student.build(TEXT, width=width), IDS)


@pytest.mark.parametrize("budget", [1e4, 2e5, 1e6, 3e6, 1e7, 4e7])
@pytest.mark.parametrize(
    "student", [MLPStudent(), ConvStudent(), GRUStudent(), LSTMStudent(), GatedConvStudent(), TransformerStudent()]
)
def test_as_wide_as_the_budget_allows(student: Student, budget: float) -> None:
    (width,) = size_students([student], TEXT, IDS, budget_flops=budget)
    assert width % 4 == 0
    assert _cost(student, width + 4) > budget
    if width > 4:
        assert _cost(student, width) <= budget
    if width >= 16:
        assert _cost(student, width) > 0.6 * budget


def test_students_share_equally_and_given_widths_stay() -> None:
    alone = size_students([GRUStudent()], TEXT, IDS, budget_flops=1e6)
    shared = size_students([GRUStudent(), GRUStudent(width=99)], TEXT, IDS, budget_flops=2e6)
    assert shared == [*alone, 99]
    assert size_students([], TEXT, IDS, budget_flops=1e6) == []


def test_hidden_heads_count(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    """Head of 7 and tap head of 5 units: the table-only n-gram student costs 2 * 12 * width per position."""
    network = NGramStudent().build(signatures["tokens"], width=10)
    assert flops(network, draw(signatures["tokens"])) == 3 * 6 * 2 * (7 + 5) * 10


def test_tables_are_bounded_by_parameters_and_by_the_widest() -> None:
    student = NGramStudent(order=2, buckets=100)
    assert size_students([student], TEXT, IDS, budget_flops=1e12) == [1024]
    (width,) = size_students([student], TEXT, IDS, budget_flops=1e12, budget_parameters=10_000)
    # Table (50 + 100) * width, head 50 * width + 50: 200 * 48 + 50 = 9650, and 52 would be 10450.
    assert width == 48


def test_sizing_draws_no_random_numbers() -> None:
    state = torch.random.get_rng_state()
    size_students([GRUStudent(), TransformerStudent()], TEXT, IDS, budget_flops=1e6)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_budgets_must_be_positive(budget: float) -> None:
    with pytest.raises(ValueError, match="`budget_flops` must be above 0"):
        size_students([GRUStudent()], TEXT, IDS, budget_flops=budget)
    with pytest.raises(ValueError, match="`budget_parameters` must be above 0"):
        size_students([GRUStudent()], TEXT, IDS, budget_flops=1e6, budget_parameters=budget)


def test_check_smaller_names_the_large() -> None:
    small, large = GRUStudent(width=4).build(TEXT), GRUStudent(width=40).build(TEXT)
    cost = flops(large, IDS)
    size = sum(parameter.numel() for parameter in large.parameters())
    check_smaller({"a": small, "b": large}, IDS, primary_flops=cost, primary_parameters=size)
    with pytest.raises(ValueError, match=f"`students` must be smaller .* larger are: `b` of width 40 .{cost} FLOPs"):
        check_smaller({"a": small, "b": large}, IDS, primary_flops=cost - 1, primary_parameters=size)
    with pytest.raises(ValueError, match=f"`b` of width 40 .*, {size} parameters"):
        check_smaller({"a": small, "b": large}, IDS, primary_flops=cost, primary_parameters=size - 1)
