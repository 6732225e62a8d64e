"""Which tensor is the input, which mask says what counts, which leaf is the output."""

import copy
import pickle
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from legibility.lightning_plugins.foundation._arguments import argument_names, by_name, pick_input, pick_mask
from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._recording import find_labels, pick_leaf
from legibility.lightning_plugins.foundation._trees import packed_like, padded

IDS = torch.zeros(4, 6, dtype=torch.long)
COUNTS = torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [True] * 6, [True] + [False] * 5])
ADDITIVE = torch.zeros(4, 6).masked_fill(~COUNTS, float("-inf"))


@pytest.mark.parametrize(
    ("name", "mask", "expected"),
    [
        ("attention_mask", COUNTS, COUNTS),
        ("attention_mask", COUNTS.long(), COUNTS),
        ("attention_mask", COUNTS.float(), COUNTS),
        ("attention_mask", ADDITIVE, COUNTS),
        ("attention_mask", torch.zeros(4, 6), torch.ones(4, 6).bool()),
        ("key_padding_mask", ~COUNTS, COUNTS),
        ("src_key_padding_mask", (~COUNTS).long(), COUNTS),
        ("src_key_padding_mask", ADDITIVE, COUNTS),
        ("src_key_padding_mask", (~COUNTS).float(), COUNTS),
        ("pad_mask", ~COUNTS, COUNTS),
        ("attention_mask", torch.ones(4, 1, 6, 6), None),
        ("attention_mask", torch.ones(6, 6), None),
        ("mask", COUNTS, None),
        ("decoder_attention_mask", COUNTS, None),
    ],
)
def test_masks(name: str, mask: Tensor, expected: Tensor | None) -> None:
    found = pick_mask({"input_ids": IDS, "nested": {name: mask}}, IDS)
    assert (found is None) == (expected is None)
    assert expected is None or (found is not None and found.dtype == torch.bool and torch.equal(found, expected))


def test_a_mask_belongs_to_a_sequence() -> None:
    mask = torch.ones(4, 3, dtype=torch.bool)
    assert pick_mask({"attention_mask": mask}, torch.zeros(4, 3, 8, 8)) is None, "channels are no positions"
    assert pick_mask({"attention_mask": mask}, torch.zeros(4, 3, 8)) is not None


X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({"x": X}, 4),
        ({"labels": torch.zeros(4), "attention_mask": torch.ones(4, 3), "x": X}, 4),
        ({"state": torch.zeros(2, 4, 3), "x": X}, 4),
        ({"batch": {"y": torch.zeros(4), "x": X}}, 4),
        ({"batch": UserDict({"x": X})}, 4),
        ({"scale": torch.tensor(2.0), "flag": torch.ones(4, dtype=torch.bool), "x": X}, 4),
        ({"x": X}, 12),
        ({"ids": torch.zeros(4, 6, 2, dtype=torch.long), "x": X}, 4),
        ({"target": X}, 4),
    ],
)
def test_the_input_among_the_arguments(arguments: dict[str, Any], rows: int) -> None:
    assert pick_input(arguments, rows) is X


def test_arguments_get_the_names_of_forward() -> None:
    names = argument_names(nn.MultiheadAttention(4, 1))
    assert by_name(names, (1, 2, 3, 4), {"need_weights": 5}) == {
        "query": 1, "key": 2, "value": 3, "key_padding_mask": 4, "need_weights": 5,
    }  # fmt: skip
    assert by_name([], ("a",), {}) == {"0": "a"}


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packing_what_was_padded_is_the_identity(enforce_sorted: bool) -> None:
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 5, 1, 3]
    packed = pack_sequence([torch.randn(n, 2) for n in lengths], enforce_sorted=enforce_sorted)
    values, counts = padded(packed, positions=7)
    assert values.shape == (4, 7, 2) and counts is not None and counts.sum(1).tolist() == lengths
    assert torch.equal(packed_like(values, packed), packed.data)


def test_a_scalar_is_a_loss_and_not_an_output() -> None:
    with pytest.raises(ValueError, match="`output`: the model returned a scalar"):
        pick_leaf(torch.tensor(1.0), None)
    with pytest.raises(ValueError, match="`output` = 'mean' leads to no tensor"):
        pick_leaf({"a": X}, "mean")


def test_what_the_model_was_given_is_no_label_unless_it_is_called_one() -> None:
    lengths, classes = torch.tensor([2, 1, 0, 2]), torch.tensor([0, 2, 1, 1])
    batch = {"x": X, "lengths": lengths, "labels": classes}
    assert find_labels(batch, X, torch.zeros(4, 3)) is lengths
    assert find_labels(batch, X, torch.zeros(4, 3), {"x": X, "n": lengths, "labels": classes}) is classes
    assert find_labels(({"n": lengths}, 0), X, torch.zeros(4, 3), {"batch": {"n": lengths}}) is None
    pair = (X, classes)
    assert find_labels(pair, X, torch.zeros(4, 3), {"batch": pair}) is classes, "a model that is given the whole batch"


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)
        self.again = self.first

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        hidden = x.new_ones(len(x), 8) if skip else self.first(x)
        return self.second(hidden)  # type: ignore[no-any-return]


def recorded(net: nn.Module, calls: Callable[[Any], object], **options: Any) -> list[Any]:
    recorder = Recorder(nn.ModuleDict({"net": net}), model="net", **options)
    recorder.install()
    recorder.open()
    calls(net)
    try:
        return recorder.close()
    finally:
        recorder.remove()


def test_a_recording_knows_its_arguments_by_name() -> None:
    (found,) = recorded(_Two(), lambda net: net(X, False))
    assert list(found.arguments) == ["x", "skip"] and found.arguments["x"] is X


def test_two_calls_have_their_own_taps_and_none_is_inherited() -> None:
    net = _Two()
    first, second = recorded(net, lambda net: (net(X), net(X + 1)), taps="net.first")
    assert torch.equal(first.taps["net.first"], net.first(X)) and torch.equal(
        second.taps["net.first"], net.first(X + 1)
    )
    with pytest.raises(ValueError, match="net.first never ran"):
        recorded(net, lambda net: (net(X), net(X, skip=True)), taps="net.first")


def test_a_module_in_two_places_goes_by_both_names() -> None:
    (found,) = recorded(_Two(), lambda net: net(X), taps="net.again")
    assert list(found.taps) == ["net.again"]


def test_students_can_read_a_packed_activation() -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, names: list[str], packed: PackedSequence) -> Tensor:
            return self.head(self.lstm(packed)[1][0][-1])  # type: ignore[no-any-return]

    packed = pack_sequence([torch.randn(n, 3) for n in (2, 4, 3)], enforce_sorted=False)
    (found,) = recorded(Packing(), lambda net: net(["a", "b", "c"], packed), reads="net.lstm")
    assert found.inputs.shape == (3, 4, 5) and not found.inputs.requires_grad
    assert found.mask is not None and found.mask.sum(1).tolist() == [2, 4, 3]


def test_the_source_is_what_the_model_returned() -> None:
    def calls(net: Any) -> None:
        results.append(net(X))
        results[0].mul_(2)

    results: list[Tensor] = []
    net = _Two()
    (found,) = recorded(net, calls)
    assert found.source is results[0] and torch.equal(found.output, net(X))
    assert not torch.equal(found.output, results[0]) and found.output.requires_grad


def test_without_an_inplace_operation_nothing_is_copied() -> None:
    results: list[Tensor] = []
    recorder = Recorder(net := _Two(), model="")
    recorder.install()
    for _ in range(2):
        recorder.open()
        results.append(net(X))
        (found,) = recorder.close()
        assert found.output is results[-1]
    assert not recorder._copying
    recorder.remove()


def test_a_hooked_module_can_be_pickled_and_copied() -> None:
    net = _Two()
    recorder = Recorder(net, model="", taps="first")
    recorder.install()
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    recorder.open()
    for twin in twins:
        twin(X)
    assert recorder.close() == []
    recorder.remove()


def test_lazy_modules_are_measured_after_their_first_call() -> None:
    net = nn.ModuleDict({"big": nn.Sequential(nn.LazyLinear(50), nn.Linear(50, 2)), "small": nn.Linear(2, 2)})
    recorder = Recorder(net)
    recorder.install()
    recorder.open()
    net["small"](net["big"](X))
    (found,) = recorder.close()
    assert recorder.model == "big" and torch.equal(found.inputs, X)
    recorder.remove()
