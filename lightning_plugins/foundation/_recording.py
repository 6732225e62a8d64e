"""What one forward call of the primary leaves behind: its output and labels among what was returned and given."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from legibility.lightning_plugins.foundation._softmax import softmaxed
from legibility.lightning_plugins.foundation._trees import Leaf, at_path, is_floating, leaves_in, padded, tensors_in

# Names of what a model says, the surest first.
_OUTPUTS = (("logits", "prediction"), ("predictions", "preds", "y_hat", "y_pred", "output"), ("loc",))
_LABEL = re.compile(r"label|target|class|(^|\.)y$")


@dataclass(eq=False)
class Recording:
    """One forward call of the primary.

    Attributes:
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        inputs: What the students read: the first tensor among the arguments, or the activation named by ``reads``.
        mask: bool (batch, time), True where a position counts (no padding), or None.
        output: The tensor that the students imitate, in the primary's graph.
        taps: Module name -> its output, detached.
        source: The tensor that the model returned. The loss's graph leads to it; not always to ``output``, which is
            derived from it where it was a packed sequence, or was changed in place after the call.
        arguments: ``args`` and ``kwargs`` by the names in the primary's ``forward``.
        logits: Whether the task's loss takes a softmax of the output; None where nobody knows.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Tensor
    mask: Tensor | None
    output: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    source: Tensor | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    logits: bool | None = None

    def __post_init__(self) -> None:
        if self.source is None:
            self.source = self.output

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's, as it is imitated."""
        return prediction_shape(self.output, self.inputs)

    @property
    def imitated(self) -> Tensor:
        """The output as it is imitated, without its graph."""
        return self.output.detach().reshape(self.shape)


def pick_leaf(result: Any, output: str | None) -> Leaf:
    """What the students shall imitate in a forward call's result: a tensor, or a packed sequence.

    Args:
        result: What the model returned.
        output: Dotted path into it (``"logits"``, ``"0"``, ``"distribution.loc"``), or None: the result itself if it
            is a tensor, else the entry whose name says so, else the only floating-point tensor that is no scalar.

    Raises:
        ValueError: Nothing or more than one thing fits; the message lists the paths to choose from.
        TypeError: The tensor is not floating point.
    """
    found = {} if output is None and isinstance(result, Tensor) else dict(leaves_in(result))
    if output is not None:
        chosen = found.get(output, at_path(result, output))
        if not isinstance(chosen, (Tensor, PackedSequence)):
            raise ValueError(
                f"`output` = {output!r} leads to no tensor in what the model returned ({type(result).__name__}). "
                f"Give one of: {_listed(found)}, or leave `output` out if the model returns a tensor."
            )
    elif isinstance(result, (Tensor, PackedSequence)):
        chosen = result
    else:
        floating = candidate_outputs(result)
        if len(floating) != 1:
            what = "no floating-point tensor" if not floating else f"several tensors: {_listed(floating)}"
            raise ValueError(
                f"`output`: the model returned {what} (type {type(result).__name__}). Name the one that the students "
                "shall imitate with `output=` (a dotted path), or another module with `model=`."
            )
        (chosen,) = floating.values()
    if not is_floating(chosen):
        raise TypeError(
            f"`output` must name floating-point logits or values, got a tensor of {chosen.data.dtype} and shape "
            f"{tuple(chosen.data.shape)}. Class indices have no distribution to imitate: name the tensor before the "
            "argmax."
        )
    if _is_scalar(chosen):
        raise ValueError(
            "`output`: the model returned a scalar (its loss?), and students imitate one prediction for each example. "
            "Name another tensor with `output=`, or the module that predicts with `model=`."
        )
    return chosen


def candidate_outputs(result: Any) -> dict[str, Leaf]:
    """Path -> floating-point leaf that is no scalar; only the one whose name says that it is the output, if one does.

    Example:
        >>> list(candidate_outputs({"hidden": torch.zeros(2, 3), "logits": torch.zeros(2, 5)}))
        ['logits']
    """
    floating = {path: leaf for path, leaf in leaves_in(result) if is_floating(leaf) and not _is_scalar(leaf)}
    for names in _OUTPUTS:
        named = {path: leaf for path, leaf in floating.items() if path.split(".")[-1] in names}
        if len(named) == 1:
            return named
    return floating


def pick_output(result: Any, output: str | None) -> Tensor:
    """The leaf of :func:`pick_leaf` as one tensor in the primary's graph."""
    return padded(pick_leaf(result, output))[0]


def has_predictions(result: Any) -> bool:
    """Whether a result holds anything that could be imitated: not only a loss, not only indices."""
    return any(is_floating(leaf) and not _is_scalar(leaf) for _, leaf in leaves_in(result))


def find_labels(
    batch: Any, inputs: Tensor, output: Tensor, arguments: Mapping[str, Any] | None = None
) -> Tensor | None:
    """Integer class labels in a batch: one for each prediction of ``output``, or None.

    A tensor counts as labels if it is integer, is shaped like ``output`` without its last dimension, fits in its
    classes, and is not what the model read: neither ``inputs`` nor, unless its name says that it is a label,
    anything in the call's ``arguments`` (lengths, indices; the whole batch says nothing). Token batches one longer than the input are next-token targets.
    """
    classes = output.shape[-1]
    found = tensors_in({name: value for name, value in (arguments or {}).items() if value is not batch})
    taken = {id(tensor) for path, tensor in found if not _LABEL.search(path)}
    for _, tensor in tensors_in(batch):
        if tensor.dtype not in (torch.int64, torch.int32) or id(tensor) in taken:
            continue
        if tensor.shape == output.shape[:-1] and not _same(tensor, inputs) and _in_range(tensor, classes):
            return tensor
        one_longer = tensor.ndim == 2 and inputs.ndim == 2 and tensor.shape[1] == inputs.shape[1] + 1
        if one_longer and _same(tensor[:, :-1], inputs) and _in_range(tensor, classes):
            return tensor[:, 1:]
    return None


def class_labels(batch: Any, recording: Recording) -> Tensor | None:
    """The labels of :func:`find_labels`, if the output is one number for each class and they belong to it.

    What the loss does with the output decides. Where that is not known, labels that use less than an eighth of the
    classes belong to something else (ten digits beside 784 generated pixels), as do those beside a reconstruction.
    """
    classes = recording.shape[-1]
    if recording.logits is False or not has_classes(recording):
        return None
    labels = find_labels(batch, recording.inputs, recording.imitated, recording.arguments)
    if labels is None or recording.logits:
        return labels
    reconstructs = recording.inputs.is_floating_point() and recording.output.shape == recording.inputs.shape
    return None if reconstructs or 8 * (int(labels.max()) + 1) <= classes else labels


def has_classes(recording: Recording) -> bool:
    """Whether the last dimension of the output is still that of what is imitated: there are several entries, not flattened."""
    return recording.shape[-1] > 1 and recording.output.shape[-1] == recording.shape[-1]


def look_at_loss(recordings: Sequence[Recording], loss: Tensor | None) -> None:
    """Notes whether the loss takes the recorded outputs for logits, or they are logarithms of probabilities already."""
    for recording in recordings:
        if loss is not None and recording.source is not None:
            recording.logits = softmaxed(recording.source, loss)
            if recording.logits is False and has_classes(recording):
                sums = recording.output.detach().float().logsumexp(-1)
                recording.logits = bool(sums.abs().max() < 1e-3) if sums.numel() else None


def _is_scalar(leaf: Leaf) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim == 0


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


def _in_range(labels: Tensor, classes: int) -> bool:
    # -100 is PyTorch's ignore_index: such positions are masked by whoever uses the labels.
    return labels.numel() > 0 and int(labels.max()) < classes and int(labels.min()) >= -100


def _listed(paths: Mapping[str, Any]) -> str:
    return ", ".join(repr(path) for path in list(paths)[:12] if path) or "nothing (no tensor at all)"


def prediction_shape(output: Tensor, inputs: Tensor) -> tuple[int, ...]:
    """The shape in which students imitate an output: (batch, time, units) or (batch, units).

    An output with one row for each position of the input keeps its time axis, or gets it back if the model flattened
    batch and time; any other is flattened for each example.

    Example:
        >>> prediction_shape(torch.zeros(8), torch.zeros(8, 3))
        (8, 1)
        >>> prediction_shape(torch.zeros(8, 5, 7), torch.zeros(8, 5, dtype=torch.long))
        (8, 5, 7)
        >>> prediction_shape(torch.zeros(40, 7), torch.zeros(8, 5, dtype=torch.long))
        (8, 5, 7)
        >>> prediction_shape(torch.zeros(8, 1, 4, 4), torch.zeros(8, 3))
        (8, 16)
        >>> prediction_shape(torch.zeros(0, 2, 4), torch.zeros(0, 3))
        (0, 8)
    """
    sequential = inputs.ndim == (3 if inputs.is_floating_point() else 2)
    if output.ndim == 2 and sequential and len(output) == inputs.shape[0] * inputs.shape[1] != len(inputs):
        return (inputs.shape[0], inputs.shape[1], output.shape[1])
    if output.ndim == 3 and sequential and inputs.shape[1] == output.shape[1]:
        return tuple(output.shape)
    return (output.shape[0], math.prod(output.shape[1:]))
