"""Every architecture on everything that it reads."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from legibility.students import (
    ConvStudent,
    FourierStudent,
    GatedConvStudent,
    GRUStudent,
    LinearStudent,
    LSTMStudent,
    MLPStudent,
    NGramStudent,
    Signature,
    Student,
    StudentNetwork,
    TransformerStudent,
)

STUDENTS: list[Student] = [
    MLPStudent(),
    MLPStudent(depth=1, context=3),
    ConvStudent(),
    ConvStudent(depth=3, kernel=2),
    GRUStudent(),
    GRUStudent(depth=2),
    NGramStudent(),
    NGramStudent(order=1),
    TransformerStudent(),
    LSTMStudent(),
    GatedConvStudent(),
    FourierStudent(),
    LinearStudent(),
]
READS = {"tokens": "tokens", "pooled": "tokens", "sequence": "sequence", "image": "image", "features": "features"}
PAIRS = [(student, kind) for student in STUDENTS for kind, reads in READS.items() if reads in student.reads]
every = pytest.mark.parametrize(("student", "kind"), PAIRS, ids=[f"{s!r}-{kind}" for s, kind in PAIRS])
CAUSAL = [pair for pair in PAIRS if pair[1] in ("tokens", "sequence")]


def _build(student: Student, signature: Signature, width: int = 8) -> StudentNetwork:
    torch.manual_seed(0)
    return student.build(signature, width=width)


def _woken(network: StudentNetwork) -> StudentNetwork:
    """With an output head that is no longer zero."""
    torch.nn.init.normal_(network.head.linear.weight)
    return network


def _output_shape(signature: Signature, batch: int, positions: int) -> tuple[int, ...]:
    return (batch, positions, signature.outputs) if signature.per_position else (batch, signature.outputs)


@every
@pytest.mark.parametrize("width", [1, 6])
def test_shapes_and_uniform_start(
    student: Student, kind: str, width: int, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures[kind]
    network = _build(student, signature, width)
    prediction = network(draw(signature))
    assert prediction.output.shape == _output_shape(signature, 3, 6)
    assert torch.equal(prediction.output, torch.zeros_like(prediction.output))
    assert prediction.output.dtype == torch.float32
    assert list(prediction.taps) == list(signature.taps)
    for name, tap in signature.taps.items():
        assert prediction.taps[name].shape == ((3, 6, tap.units) if tap.per_position else (3, tap.units))


@every
@pytest.mark.parametrize(("batch", "positions"), [(1, 6), (1, 1), (3, 1), (2, 17)])
def test_batches_and_positions_may_vary(
    student: Student,
    kind: str,
    batch: int,
    positions: int,
    signatures: dict[str, Signature],
    draw: Callable[..., Tensor],
) -> None:
    signature = signatures[kind]
    network = _woken(_build(student, signature))
    if signature.reads in ("tokens", "sequence"):
        inputs = draw(signature, batch, positions=positions)
    else:
        inputs = draw(signature, batch)
    output = network(inputs).output
    assert output.shape == _output_shape(signature, batch, positions)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize(("student", "kind"), CAUSAL, ids=[f"{s!r}-{kind}" for s, kind in CAUSAL])
def test_causal(student: Student, kind: str, signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures[kind]
    network = _woken(_build(student, signature))
    inputs = draw(signature, positions=12)
    before = network(inputs).output
    for position in range(12):
        changed = inputs.clone()
        changed[:, position] = (changed[:, position] + 1) % 7 if kind == "tokens" else changed[:, position] + 1.0
        after = network(changed).output
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position], before[:, position])


@pytest.mark.parametrize(
    ("student", "seen"),
    [
        (MLPStudent(context=3), 3),
        (ConvStudent(depth=2, kernel=3), 5),  # 1 + 2 * (3 - 1)
        (GatedConvStudent(depth=3, kernel=2), 8),  # 2^3
        (NGramStudent(order=4), 4),
        (LinearStudent(), 1),
        (GRUStudent(), 12),
        (LSTMStudent(), 12),
        (TransformerStudent(), 12),
    ],
)
def test_how_far_back_it_sees(
    student: Student, seen: int, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    """The gradient of the last position's output, or a change of the id, reaches `seen` positions and no more."""
    signature = signatures["tokens"]
    network = _woken(_build(student, signature, 16))
    inputs = draw(signature, 8, positions=12)
    last = network(inputs).output[:, -1]
    reached = []
    for position in range(12):
        changed = inputs.clone()
        changed[:, position] = (changed[:, position] + 1) % 7
        reached.append(not torch.equal(network(changed).output[:, -1], last))
    assert reached == [position >= 12 - seen for position in range(12)]


@every
def test_every_parameter_gets_a_gradient(
    student: Student, kind: str, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures[kind]
    network = _woken(_build(student, signature))
    prediction = network(draw(signature, 32))
    (prediction.output.square().sum() + sum(tap.square().sum() for tap in prediction.taps.values())).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # The transformer's biases of keys shift all attention scores alike, so only most entries can be asked for.
        assert parameter.grad.abs().sum() > 0, name


@every
def test_learns_its_own_twin(
    student: Student, kind: str, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    """Trained on another draw of the same architecture, the error falls to less than half."""
    signature = signatures[kind]
    twin = _woken(_build(student, signature, 16))
    network = student.build(signature, width=16)
    inputs = draw(signature, 16)
    with torch.no_grad():
        target = twin(inputs).output
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    errors = []
    for _ in range(30):
        error = (network(inputs).output - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.5 * errors[0]


def test_ngrams_with_equal_ends_are_equal(signatures: dict[str, Signature]) -> None:
    network = _woken(_build(NGramStudent(order=3), signatures["tokens"]))
    a, b = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([[6, 6, 6, 3, 4, 5]])
    assert torch.equal(network(a).output[:, 5], network(b).output[:, 5])
    assert not torch.equal(network(a).output[:, 4], network(b).output[:, 4])  # 2 3 4 against 6 3 4


def test_ngrams_are_the_sum_of_their_rows() -> None:
    """Order 2, ids (1, 0): position 0 is row 1 + a bigram's row, position 1 is row 0 + another bigram's row."""
    signature = Signature("tokens", (2,), 3, True, 3)
    body = _build(NGramStudent(order=2, buckets=64), signature, 4).get_submodule("body")
    table = body.get_parameter("table.weight")
    vectors = body(torch.tensor([[1, 0]]))
    rows = [vectors[0, position] - table[token] for position, token in ((0, 1), (1, 0))]
    found = [int((table - row).abs().sum(1).argmin()) for row in rows]
    for row, number in zip(rows, found, strict=True):
        torch.testing.assert_close(row, table[number])
        assert 3 <= number < 3 + 64
    assert found[0] != found[1]


def test_ngrams_spread_over_the_buckets() -> None:
    """All 2500 bigrams of 50 tokens in 2048 buckets: random hashing leaves exp(-2500 / 2048) = 30 % empty."""
    signature = Signature("tokens", (2,), 3, True, 50)
    body = _build(NGramStudent(order=2, buckets=2048), signature, 1).get_submodule("body")
    body.get_parameter("table.weight").data = torch.arange(50.0 + 2048).unsqueeze(1)
    first, second = torch.meshgrid(torch.arange(50), torch.arange(50), indexing="ij")
    pairs = torch.stack([first.reshape(-1), second.reshape(-1)], 1)
    used = (body(pairs)[:, 1, 0] - pairs[:, 1]).unique().numel()
    assert used > 0.6 * 2048


def test_mlp_sees_zeros_before_the_first_position(signatures: dict[str, Signature]) -> None:
    body = _build(MLPStudent(depth=1, context=2), signatures["tokens"], 8).get_submodule("body")
    embedding, linear = body.get_submodule("0"), body.get_submodule("2")
    vector = embedding(torch.tensor(3))
    expected = linear(torch.stack([torch.zeros_like(vector), vector], 1).flatten()).relu()
    torch.testing.assert_close(body(torch.tensor([[3]]))[0, 0], expected)


def test_fourier_features_approximate_the_gaussian_kernel() -> None:
    """mean_j z_j(x) z_j(y) -> exp(-|x - y|^2 / (2 bandwidth^2 n)); here exp(-8 / (2 * 4 * 2)) = exp(-1/2)."""
    signature = Signature("features", (2,), 3, False)
    body = _build(FourierStudent(bandwidth=2.0), signature, 40_000).body
    z = body(torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    assert (z[0] * z[1]).mean().item() == pytest.approx(math.exp(-0.5), abs=0.02)
    assert (z[0] * z[0]).mean().item() == pytest.approx(1.0, abs=0.02)


def test_linear_student_is_affine(signatures: dict[str, Signature]) -> None:
    network = _woken(_build(LinearStudent(), signatures["features"]))
    x, y = torch.randn(1, 5), torch.randn(1, 5)
    middle = network((x + y) / 2).output
    torch.testing.assert_close(middle, (network(x).output + network(y).output) / 2)


def test_linear_student_on_pooled_tokens_is_a_bag(signatures: dict[str, Signature]) -> None:
    network = _woken(_build(LinearStudent(), signatures["pooled"]))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    torch.testing.assert_close(network(tokens).output, network(tokens.flip(1)).output)


def test_conv_student_takes_images_of_other_sizes(signatures: dict[str, Signature]) -> None:
    network = _woken(_build(ConvStudent(), signatures["image"]))
    for height, width in ((1, 1), (8, 8), (5, 13)):
        assert network(torch.randn(2, 2, height, width)).output.shape == (2, 4)


@pytest.mark.parametrize("width", [1, 6, 10])
def test_transformer_heads_divide_any_width(width: int, signatures: dict[str, Signature]) -> None:
    network = _build(TransformerStudent(heads=4), signatures["tokens"], width)
    assert network.get_submodule("body.blocks.0").heads == math.gcd(width, 4)
