"""What one forward call of the primary leaves behind, and how tensors are found in what it took and gave."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Recording:
    """One forward call of the primary.

    Attributes:
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        inputs: What the students read: the first tensor among the arguments, or the activation named by ``reads``.
        mask: True where a position counts (from an ``attention_mask`` argument), or None.
        output: The tensor that the students imitate, in the primary's graph.
        taps: Module name -> its output, detached.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Tensor
    mask: Tensor | None
    output: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)


def tensors_in(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields (dotted path, tensor) for every tensor in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensors_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (tuple, list)):
        names = getattr(tree, "_fields", range(len(tree)))
        for key, value in zip(names, tree, strict=True):
            yield from tensors_in(value, f"{path}.{key}" if path else str(key))
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for item in dataclasses.fields(tree):
            yield from tensors_in(getattr(tree, item.name), f"{path}.{item.name}" if path else item.name)


def pick_output(result: Any, output: str | None) -> Tensor:
    """The floating-point tensor of a forward call's result that the students shall imitate.

    Args:
        result: What the model returned.
        output: Dotted path into it (``"logits"``, ``"0"``), or None: the result itself if it is a tensor, else the
            entry named ``logits``, else the only floating-point tensor.

    Raises:
        ValueError: Nothing or more than one thing fits; the message lists the paths to choose from.
        TypeError: The tensor is not floating point.
    """
    found = dict(tensors_in(result))
    if output is not None:
        if output not in found:
            raise ValueError(
                f"`output` = {output!r} is not in what the model returned. "
                f"Give one of: {_listed(found)}, or leave `output` out if the model returns a tensor."
            )
        chosen = found[output]
    elif isinstance(result, Tensor):
        chosen = result
    else:
        floating = {path: tensor for path, tensor in found.items() if tensor.is_floating_point()}
        logits = [tensor for path, tensor in floating.items() if path.split(".")[-1] == "logits"]
        if len(logits) == 1:
            floating = {"logits": logits[0]}
        if len(floating) != 1:
            what = "no floating-point tensor" if not floating else f"several tensors: {_listed(floating)}"
            raise ValueError(
                f"The model returned {what} (type {type(result).__name__}). Name the one that the students shall "
                "imitate with `output=` (a dotted path), or another module with `model=`."
            )
        (chosen,) = floating.values()
    if not chosen.is_floating_point():
        raise TypeError(
            f"`output` must name floating-point logits or values, got a tensor of {chosen.dtype} and shape "
            f"{tuple(chosen.shape)}. Class indices have no distribution to imitate: name the tensor before the argmax."
        )
    return chosen


def pick_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor with a batch dimension among a call's arguments.

    Raises:
        ValueError: There is none (graphs, strings, packed batches): ``reads`` must name an inner module instead.
    """
    for _, tensor in tensors_in((args, kwargs)):
        if tensor.ndim >= 1:
            return tensor
    raise ValueError(
        "The model's arguments hold no tensor that a student could read. Name a module whose output the students "
        'shall read with `reads=`, for example `reads="encoder.embedding"`.'
    )


def pick_mask(args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Tensor) -> Tensor | None:
    """A call's ``attention_mask`` as booleans (True counts), if it has the inputs' (batch, time) shape."""
    for path, tensor in tensors_in((args, kwargs)):
        if path.split(".")[-1] == "attention_mask" and tensor.shape == inputs.shape[:2]:
            return tensor.bool()
    return None


def find_labels(batch: Any, inputs: Tensor, output: Tensor) -> Tensor | None:
    """Integer class labels in a batch: one for each prediction of ``output``, or None.

    A tensor counts as labels if it is integer, is shaped like ``output`` without its last dimension, fits in its
    classes, and is not what the model read. Token batches one longer than the input are next-token targets.
    """
    classes = output.shape[-1]
    for _, tensor in tensors_in(batch):
        if tensor.dtype not in (torch.int64, torch.int32):
            continue
        if tensor.shape == output.shape[:-1] and not _same(tensor, inputs) and _in_range(tensor, classes):
            return tensor
        one_longer = tensor.ndim == 2 and inputs.ndim == 2 and tensor.shape[1] == inputs.shape[1] + 1
        if one_longer and _same(tensor[:, :-1], inputs) and _in_range(tensor, classes):
            return tensor[:, 1:]
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


def _in_range(labels: Tensor, classes: int) -> bool:
    # -100 is PyTorch's ignore_index: such positions are masked by whoever uses the labels.
    return labels.numel() > 0 and int(labels.max()) < classes and int(labels.min()) >= -100


def _listed(paths: Mapping[str, Any]) -> str:
    return ", ".join(repr(path) for path in list(paths)[:12]) or "nothing (no tensor at all)"
