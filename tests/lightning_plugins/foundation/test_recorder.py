"""The recorder: finds the model, names what it can't find, records the right calls only."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._recording import find_labels, pick_output


class _Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))
        self.scale = nn.Linear(3, 3)
        self.teacher = nn.Linear(4, 500).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("call", ["root", "net", "teacher and net"])
def test_the_model_is_the_outermost_called_module_with_most_parameters(call: str) -> None:
    root = _Root()
    recorder = Recorder(root)
    recorder.install()
    recorder.open()
    x = torch.randn(5, 4)
    if "teacher" in call:
        root.teacher(x)
    root(x) if call == "root" else root.net(x)
    (recording,) = recorder.close()
    assert recorder.model == ("" if call == "root" else "net")
    assert recording.inputs is not x and torch.equal(recording.inputs, x)
    assert recording.output.requires_grad
    recorder.remove()
    assert not any(m._forward_hooks for m in root.modules())


def test_a_model_that_is_called_in_parts_is_asked_for_by_name() -> None:
    parts = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    recorder = Recorder(parts)
    recorder.install()
    recorder.open()
    parts["decoder"](parts["encoder"](torch.randn(5, 4)))
    with pytest.raises(ValueError, match="`model`.*Name it with `model=`.*encoder .50% .*decoder"):
        recorder.close()


def test_nothing_is_recorded_outside_of_a_step_without_gradients_or_on_a_copy() -> None:
    root = _Root()
    recorder = Recorder(root, model="net")
    recorder.install()
    twin = copy.deepcopy(root)
    root.net(torch.randn(2, 4))
    recorder.open()
    with torch.no_grad():
        root.net(torch.randn(2, 4))
    twin.net(torch.randn(2, 4))
    assert recorder.close() == []
    root.net(torch.randn(2, 4))
    recorder.open()
    assert recorder.close() == []


def test_recomputation_under_checkpointing_is_not_a_second_call() -> None:
    root = _Root()
    recorder = Recorder(root, model="net")
    recorder.install()
    recorder.open()
    x = torch.randn(2, 4, requires_grad=True)
    out = checkpoint(root.net, x, use_reentrant=False)
    out.sum().backward()
    assert len(recorder.close()) == 1


def test_taps_are_recorded_before_an_inplace_operation_changes_them() -> None:
    root = _Root()
    recorder = Recorder(root, model="net", taps="net.0")
    recorder.install()
    recorder.open()
    x = torch.randn(6, 4)
    root.net(x)
    (recording,) = recorder.close()
    assert torch.equal(recording.taps["net.0"], root.net[0](x).detach())
    assert (recording.taps["net.0"] < 0).any(), "the in-place ReLU after it must not show"


def test_a_tap_that_never_runs_is_an_error() -> None:
    root = _Root()
    recorder = Recorder(root, model="net", taps="scale")
    recorder.install()
    recorder.open()
    root.net(torch.randn(2, 4))
    with pytest.raises(ValueError, match="scale never ran"):
        recorder.close()


@pytest.mark.parametrize("argument", ["model", "taps", "reads"])
def test_unknown_names_list_near_ones(argument: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}`.*'nett'.*Near: net"):
        Recorder(_Root(), **{argument: "nett"})  # type: ignore[arg-type]


class _Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


@pytest.mark.parametrize(
    ("result", "output", "row"),
    [
        (torch.zeros(2, 3), None, 3),
        ({"logits": torch.zeros(2, 3), "hidden": torch.zeros(2, 4)}, None, 3),
        (_Pair(torch.zeros(2, 3), torch.zeros(2, 4)), None, 3),
        (_Pair(torch.zeros(2, 3), torch.zeros(2, 4)), "hidden", 4),
        ((torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)), None, 3),
        ({"a": [torch.zeros(2, 5), {"b": torch.zeros(2, 6)}]}, "a.1.b", 6),
    ],
)
def test_the_output_is_found_in_structures(result: Any, output: str | None, row: int) -> None:
    assert pick_output(result, output).shape == (2, row)


@pytest.mark.parametrize(
    ("result", "output", "error", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 4)), None, ValueError, "several tensors: '0', '1'"),
        ("text", None, ValueError, "no floating-point tensor"),
        ({"a": torch.zeros(2)}, "b", ValueError, "`output` = 'b'.*'a'"),
        (torch.zeros(2, 3, dtype=torch.long), None, TypeError, "`output`.*torch.int64"),
    ],
)
def test_outputs_that_cannot_be_imitated(result: Any, output: str | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pick_output(result, output)


def test_labels_are_found_beside_the_input_and_in_shifted_tokens() -> None:
    x, y = torch.randn(4, 7), torch.tensor([0, 2, 1, 2])
    assert find_labels((x, y), x, torch.zeros(4, 3)) is y
    assert find_labels({"x": x, "y": y + 7}, x, torch.zeros(4, 3)) is None, "ids beyond the classes are no labels"
    tokens = torch.randint(0, 9, (4, 6))
    shifted = find_labels(tokens, tokens[:, :-1], torch.zeros(4, 5, 9))
    assert shifted is not None and torch.equal(shifted, tokens[:, 1:])
    assert find_labels(tokens[:, :-1], tokens[:, :-1], torch.zeros(4, 5, 9)) is None, "the input is no label of itself"
