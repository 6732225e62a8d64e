"""Student as a record, and what StudentNetwork does around any body."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, dataclass

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

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
    TapSignature,
    TransformerStudent,
)


@dataclass(frozen=True)
class LookStudent(Student):
    """Shows what bodies are given: the inputs themselves."""

    reads = frozenset({"tokens", "sequence", "features", "image"})

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Nothing."""
        return nn.Identity()


def _look(signature: Signature) -> StudentNetwork:
    return LookStudent().build(signature, width=signature.input_shape[-1])


def test_names() -> None:
    students = [MLPStudent(), ConvStudent(), GRUStudent(), NGramStudent(), TransformerStudent(), LSTMStudent()]
    students += [GatedConvStudent(), FourierStudent(), LinearStudent(), LookStudent()]
    names = ["mlp", "conv", "gru", "ngram", "transformer", "lstm", "gated_conv", "fourier", "linear", "look"]
    assert [student.name for student in students] == names


def test_is_a_plain_record() -> None:
    student = ConvStudent(width=12, kernel=5)
    assert student == ConvStudent(width=12, kernel=5)
    assert student != ConvStudent(width=12)
    assert {student, ConvStudent(width=12, kernel=5)} == {student}
    assert ConvStudent(**json.loads(json.dumps(asdict(student)))) == student
    with pytest.raises(FrozenInstanceError):
        student.kernel = 3  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_can_be_written_into_a_lightning_cli_file() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--students", type=list[Student])
    written = [
        {"class_path": "legibility.students.MLPStudent", "init_args": {"depth": 3}},
        {"class_path": "legibility.students.NGramStudent", "init_args": {"width": 8, "order": 2}},
    ]
    made = parser.instantiate_classes(parser.parse_object({"students": written})).students
    assert made == [MLPStudent(depth=3), NGramStudent(width=8, order=2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPStudent(depth=0), "`depth` of MLPStudent must be at least 1, got 0"),
        (lambda: GRUStudent(width=-4), "`width` of GRUStudent must be at least 1, got -4"),
        (lambda: FourierStudent(bandwidth=0.0), "`bandwidth` of FourierStudent must be above 0 and finite, got 0.0"),
        (lambda: FourierStudent(bandwidth=float("nan")), "`bandwidth` of FourierStudent"),
    ],
)
def test_settings_are_checked(make: Callable[[], Student], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_inputs_for_the_architecture_list_those_that_fit(signatures: dict[str, Signature]) -> None:
    with pytest.raises(ValueError, match="GRUStudent reads sequence, tokens, not features; these do: .*MLPStudent"):
        GRUStudent(width=8).build(signatures["features"])


def test_a_width_is_needed(signatures: dict[str, Signature]) -> None:
    with pytest.raises(ValueError, match="`width` of GRUStudent must be at least 1, got None; .*size_students"):
        GRUStudent().build(signatures["tokens"])
    with pytest.raises(ValueError, match="`width` of GRUStudent must be at least 1, got 0"):
        GRUStudent().build(signatures["tokens"], width=0)
    assert GRUStudent(width=4).build(signatures["tokens"], width=6).width == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_whatever_the_default(dtype: torch.dtype, signature: Signature) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(1)
        network = MLPStudent(width=4).build(signature)
        assert torch.get_default_dtype() == dtype
        with pytest.raises(TypeError):
            MLPStudent(width="4").build(signature)  # type: ignore[arg-type]
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)
    torch.manual_seed(1)
    again = MLPStudent(width=4).build(signature)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_ids_wrap_around_the_vocabulary(signatures: dict[str, Signature]) -> None:
    network = _look(signatures["tokens"])
    assert network.reader(torch.tensor([[0, 6, 7, 15, -1]])).tolist() == [[0, 6, 0, 1, 6]]
    assert network.reader(torch.tensor([3, 9], dtype=torch.int16)).tolist() == [[3], [2]]


def test_floats_are_standardised_and_clipped_and_never_nan() -> None:
    network = _look(Signature("features", (3,), 2, False))
    inputs = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]])
    assert torch.equal(network.reader(1e6 * inputs), 1e6 * inputs)  # no clipping before the scale is known
    network.set_statistics({}, inputs=inputs)
    # Means 2, 5, 0; deviations 1, none -> 1, none -> 1.
    assert network.reader(inputs).tolist() == [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    strange = torch.tensor([[float("nan"), float("inf"), 1e9], [100.0, 6.0, -1e9]])
    # NaN and inf read as 0: (0 - 2) / 1, (0 - 5) / 1; the rest clipped to 10.
    assert network.reader(strange).tolist() == [[-2.0, -5.0, 10.0], [10.0, 1.0, -10.0]]
    assert network.reader(inputs.double()).dtype == torch.float32


def test_images_are_standardised_per_channel() -> None:
    network = ConvStudent(width=4).build(Signature("image", (2, 4, 4), 3, False))
    images = torch.randn(8, 2, 4, 4) * torch.tensor([3.0, 0.1]).view(1, 2, 1, 1) + 5.0
    network.set_statistics({}, inputs=images)
    read = network.reader(images)
    torch.testing.assert_close(read.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(read.std((0, 2, 3), correction=0), torch.ones(2))


def test_masked_positions_of_a_sequence_are_silent_even_if_nan(signatures: dict[str, Signature]) -> None:
    network = MLPStudent(width=8).build(signatures["sequence"])
    torch.nn.init.normal_(network.head.linear.weight)
    inputs = torch.randn(2, 6, 2)
    mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 3 + [True] * 3])
    padded = torch.where(mask.unsqueeze(-1), inputs, torch.nan)
    torch.testing.assert_close(
        network(padded, mask).output[mask], network(torch.where(mask.unsqueeze(-1), inputs, 7.0), mask).output[mask]
    )
    network.set_statistics({}, inputs=padded, mask=mask)
    torch.testing.assert_close(network.reader.mean, inputs[mask].mean(0))


def test_pooling_counts_only_what_the_mask_counts(signatures: dict[str, Signature]) -> None:
    network = GRUStudent(width=8).build(signatures["pooled"])
    torch.nn.init.normal_(network.head.linear.weight)
    long = torch.tensor([[1, 2, 3, 0, 0, 0], [4, 5, 6, 1, 2, 3]])
    mask = torch.tensor([[True, True, True, False, False, False], [True] * 6])
    masked = network(long, mask)
    torch.testing.assert_close(masked.output[0], network(long[:1, :3]).output[0])
    torch.testing.assert_close(masked.taps["pool"][0], network(long[:1, :3]).taps["pool"][0])
    torch.testing.assert_close(masked.output[1], network(long[1:]).output[0])
    nobody = network(long, torch.zeros(2, 6, dtype=torch.bool)).output
    assert torch.isfinite(nobody).all()


@pytest.mark.parametrize("mask", [torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 6), torch.ones(6).bool()])
def test_a_mask_that_does_not_fit(mask: Tensor, signatures: dict[str, Signature]) -> None:
    network = GRUStudent(width=8).build(signatures["tokens"])
    with pytest.raises(ValueError, match=r"`mask` must be bool \(3, 6\)"):
        network(torch.zeros(3, 6, dtype=torch.long), mask)


def test_heads_predict_in_the_units_of_the_primary(draw: Callable[..., Tensor]) -> None:
    """After set_statistics a head whose linear layer says 0 predicts the mean, one that says 1 mean + deviation."""
    taps = {"a": TapSignature(2, True, (6, 2)), "b": TapSignature(2, False, (2,))}
    signature = Signature("tokens", (6,), 3, True, 7, taps)
    network = MLPStudent(width=4).build(signature)
    a = torch.stack([torch.arange(12.0).view(2, 6), torch.full((2, 6), 4.0)], -1)  # mean 5.5, variance 143/12
    b = torch.tensor([[-1.0, 0.0], [1.0, 10.0]])
    network.set_statistics({"a": a, "b": b})
    for number in range(2):
        nn.init.zeros_(network.get_parameter(f"tap_heads.{number}.linear.weight"))
        nn.init.ones_(network.get_parameter(f"tap_heads.{number}.linear.bias"))
    predicted = network(draw(signature, 2)).taps
    torch.testing.assert_close(predicted["a"][1, 3], torch.tensor([5.5 + (143 / 12) ** 0.5, 5.0]))
    torch.testing.assert_close(predicted["b"][1], torch.tensor([1.0, 10.0]))
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :2] = True
    network.set_statistics({"a": a, "b": b}, mask=mask)  # a: 0 and 1; b: the first example alone
    predicted = network(draw(signature, 2)).taps
    torch.testing.assert_close(predicted["a"][1, 3], torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(predicted["b"][1], torch.tensor([0.0, 1.0]))


def test_regressed_outputs_start_at_the_mean() -> None:
    network = MLPStudent(width=4).build(Signature("features", (5,), 2, False))
    output = torch.tensor([[100.0, -1.0], [300.0, -3.0]])
    network.set_statistics({}, output=output)
    torch.testing.assert_close(network(torch.randn(2, 5)).output, torch.tensor([[200.0, -2.0]] * 2))


def test_no_gradient_flows_into_the_inputs() -> None:
    network = MLPStudent(width=4).build(Signature("features", (5,), 2, False))
    torch.nn.init.normal_(network.head.linear.weight)
    inputs = torch.randn(2, 5, requires_grad=True)
    network(inputs).output.sum().backward()
    assert inputs.grad is None


@pytest.mark.parametrize(
    ("kind", "inputs", "error", "message"),
    [
        ("tokens", torch.zeros(3, 6), TypeError, "`inputs` must be tokens as in the first batch, got torch.float32"),
        ("features", torch.zeros(3, 5, dtype=torch.long), TypeError, "`inputs` must be features .*int64"),
        ("features", torch.zeros(3, 4), ValueError, r"`inputs` must be features .*\(batch, 5\), got \(3, 4\)"),
        ("tokens", torch.zeros(3, 6, 2, dtype=torch.long), ValueError, "`inputs` must be tokens"),
        ("sequence", torch.zeros(3, 6, 3), ValueError, "`inputs` must be sequence"),
        ("image", torch.zeros(3, 1, 8, 8), ValueError, "`inputs` must be image"),
    ],
)
def test_inputs_of_another_kind(
    kind: str, inputs: Tensor, error: type[Exception], message: str, signatures: dict[str, Signature]
) -> None:
    network = MLPStudent(width=4).build(signatures[kind])
    with pytest.raises(error, match=message):
        network(inputs)


def test_a_body_of_the_wrong_shape_is_named(signatures: dict[str, Signature]) -> None:
    network = LookStudent().build(signatures["features"], width=4)
    with pytest.raises(ValueError, match=r"`body` must return \(batch, 4\) for features, got \(3, 5\)"):
        network(torch.zeros(3, 5))
