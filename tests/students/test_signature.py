"""read_signature: what is inferred, and what is refused by which name."""

import pytest
import torch
from torch import Tensor

from legibility.students import Signature, TapSignature, read_signature


@pytest.mark.parametrize(
    ("inputs", "output", "reads", "per_position", "input_shape"),
    [
        (torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 6, 9), "tokens", True, (6,)),
        (torch.zeros(4, 6, dtype=torch.int32), torch.zeros(4, 9), "tokens", False, (6,)),
        (torch.zeros(4, dtype=torch.long), torch.zeros(4, 9), "tokens", False, (1,)),
        (torch.zeros(4, 6, 3), torch.zeros(4, 6, 9), "sequence", True, (6, 3)),
        (torch.zeros(4, 6, 3), torch.zeros(4, 9), "sequence", False, (6, 3)),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4, 9), "image", False, (3, 8, 8)),
        (torch.zeros(4, 3), torch.zeros(4, 9), "features", False, (3,)),
        (torch.zeros(4), torch.zeros(4, 9), "features", False, ()),
        (torch.zeros(4, 2, 2, 2, 2), torch.zeros(4, 9), "features", False, (2, 2, 2, 2)),
        (torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 9, dtype=torch.float16), "features", False, (3,)),
    ],
)
def test_kinds(inputs: Tensor, output: Tensor, reads: str, per_position: bool, input_shape: tuple[int, ...]) -> None:
    found = read_signature(inputs, output)
    assert (found.reads, found.per_position, found.input_shape, found.outputs) == (reads, per_position, input_shape, 9)
    assert (found.vocabulary is not None) == (reads == "tokens")


def test_vocabulary_is_at_least_the_outputs_per_position_and_the_ids() -> None:
    ids = torch.tensor([[3, 11]])
    assert read_signature(ids, torch.zeros(1, 2, 50)).vocabulary == 50
    assert read_signature(ids, torch.zeros(1, 2, 5)).vocabulary == 12
    assert read_signature(ids, torch.zeros(1, 50)).vocabulary == 12  # classes of a text are no vocabulary
    assert read_signature(ids, torch.zeros(1, 50), vocabulary=300).vocabulary == 300
    assert read_signature(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 5)).vocabulary == 1


def test_taps_per_position_or_flattened() -> None:
    taps = {
        "blocks.0": torch.zeros(4, 6, 8),
        "pool": torch.zeros(4, 8),
        "heads": torch.zeros(4, 2, 6, 6),
        "transposed": torch.zeros(4, 8, 6),
    }
    found = read_signature(torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 6, 9), taps).taps
    assert found["blocks.0"] == TapSignature(8, True, (6, 8))
    assert found["pool"] == TapSignature(8, False, (8,))
    assert found["heads"] == TapSignature(72, False, (2, 6, 6))
    assert found["transposed"] == TapSignature(48, False, (8, 6))


def test_a_tap_of_features_has_no_positions_even_if_it_looks_so() -> None:
    found = read_signature(torch.zeros(4, 6), torch.zeros(4, 2), {"h": torch.zeros(4, 6, 8)})
    assert found.taps["h"] == TapSignature(48, False, (6, 8))


@pytest.mark.parametrize(
    ("inputs", "output", "taps", "error", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4), {}, ValueError, r"`output` must have the shape \(4, outputs\).*got \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(5, 2), {}, ValueError, "`output` must have the shape"),
        (torch.zeros(4, 3), torch.zeros(4, 3, 2), {}, ValueError, "`output` must have the shape"),
        (torch.zeros(4, 6, 3), torch.zeros(4, 5, 2), {}, ValueError, r"or \(4, 6, outputs\)"),
        (torch.zeros(4, 3), torch.zeros(4, 0), {}, ValueError, "`output`"),
        (torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.long), {}, TypeError, "`output` must be floating.*int64"),
        (torch.zeros(4, 3), [torch.zeros(4, 2)], {}, TypeError, "`output` must be a tensor, got list"),
        ({"x": 1}, torch.zeros(4, 2), {}, TypeError, "`inputs` must be a tensor, got dict.*`model`"),
        (torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 2), {}, TypeError, "`inputs`.*bool"),
        (torch.zeros(4, 3, dtype=torch.complex64), torch.zeros(4, 2), {}, TypeError, "`inputs`.*complex64"),
        (torch.zeros(()), torch.zeros(4, 2), {}, ValueError, "`inputs` must have a batch dimension"),
        (torch.zeros(4, 6, 2, dtype=torch.long), torch.zeros(4, 2), {}, ValueError, r"`inputs` of token ids.*\(4, 6"),
        (torch.zeros(4, 3), torch.zeros(4, 2), {"a.b": torch.zeros(4, 16385)}, ValueError, "tap `a.b`.*16385"),
        (torch.zeros(4, 3), torch.zeros(4, 2), {"a.b": torch.zeros(3, 2)}, ValueError, "tap `a.b`.*batch size 4"),
        (torch.zeros(4, 3), torch.zeros(4, 2), {"a.b": torch.zeros(())}, ValueError, "tap `a.b`"),
        (torch.zeros(4, 3), torch.zeros(4, 2), {"a.b": torch.zeros(4, 0)}, ValueError, "tap `a.b`.*got 0"),
        (torch.zeros(4, 3), torch.zeros(4, 2), {"a.b": torch.zeros(4, 2).bool()}, TypeError, "tap `a.b`.*bool"),
        (torch.zeros(4, 3), torch.zeros(4, 2), {"a.b": (torch.zeros(4),)}, TypeError, "tap `a.b`.*tuple"),
    ],
)
def test_refusals(
    inputs: Tensor, output: Tensor, taps: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_signature(inputs, output, taps)


def test_vocabulary_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`vocabulary` must be at least 1, got 0"):
        read_signature(torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 2), vocabulary=0)


def test_json_round_trip(signature: Signature) -> None:
    read = Signature.from_json(signature.to_json())
    assert read == signature
    assert isinstance(read.input_shape, tuple)
    assert all(isinstance(tap.shape, tuple) for tap in read.taps.values())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"taps": {}, "input_shape": [1]}', '{"taps": {"a": 3}}'])
def test_json_of_something_else(text: str) -> None:
    with pytest.raises(ValueError, match="JSON of a Signature|Expecting value"):
        Signature.from_json(text)


def test_contradictions() -> None:
    with pytest.raises(ValueError, match="`vocabulary` must be a number for tokens"):
        Signature("tokens", (4,), 2, True)
    with pytest.raises(ValueError, match="`vocabulary` must be a number for tokens"):
        Signature("features", (4,), 2, False, vocabulary=3)
    with pytest.raises(ValueError, match="`per_position` is for tokens and sequences"):
        Signature("features", (4,), 2, True)
    with pytest.raises(ValueError, match="`reads` must be one of"):
        Signature("words", (4,), 2, False)  # type: ignore[arg-type]


def test_what_is_settled_does_not_hold_numbers_of_positions() -> None:
    def read(positions: int, features: int, units: int = 4) -> tuple[object, ...]:
        taps = {"h": torch.zeros(2, positions, units)}
        return read_signature(torch.zeros(2, positions, features), torch.zeros(2, positions, 5), taps).settled

    assert read(3, 2) == read(9, 2)
    assert read(3, 2) != read(3, 4)
    assert read(3, 2) != read(3, 2, units=6)
    assert read_signature(torch.zeros(2, 3), torch.zeros(2, 5)).settled != read(3, 2)
