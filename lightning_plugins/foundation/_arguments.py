"""Which of a call's arguments the students read, and which positions of it count."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._trees import Leaf, leaves_in, rows_of, tensors_in

# What stands beside the input in a call. It is read only if there is nothing else.
_BESIDE = re.compile(r"(^|[._])(masks?|labels?|targets?|lengths?|weights?|position_ids|token_type_ids)$|(^|\.)y$")


def argument_names(module: nn.Module) -> list[str]:
    """The names of a module's positional arguments.

    Example:
        >>> argument_names(nn.Bilinear(2, 2, 2))
        ['input1', 'input2']
    """
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def by_name(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name; those without a name by their index."""
    return {**{names[i] if i < len(names) else str(i): value for i, value in enumerate(args)}, **kwargs}


def pick_input(arguments: Mapping[str, Any], rows: int) -> Leaf:
    """The tensor or packed sequence that the students read.

    The first one that has as many examples as the output (or as many positions, where the model flattens them) and
    is no mask, label or length by its name.

    Args:
        arguments: The call's, by name.
        rows: First dimension of the output.

    Raises:
        ValueError: There is none (graphs, strings, custom objects): ``reads`` must name an inner module instead.
    """
    found = []
    for path, leaf in leaves_in(arguments):
        if _readable(leaf):
            beside = _BESIDE.search(path) is not None
            if _belongs(leaf, rows) and not beside:
                return leaf
            found.append((beside, leaf))
    if not found:
        kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in arguments.items()) or "none"
        raise ValueError(
            f"`reads`: the model's arguments ({kinds}) hold no tensor that a student could read. Name a module whose "
            'output the students shall read instead, for example `reads="encoder.embedding"`.'
        )
    if all(beside for beside, _ in found):
        return next((leaf for _, leaf in found if _belongs(leaf, rows)), found[0][1])
    return next(leaf for beside, leaf in found if not beside)


def pick_mask(arguments: Mapping[str, Any], inputs: Tensor) -> Tensor | None:
    """Which positions of a sequence count, from an argument of shape (batch, time); None if all do.

    An ``attention_mask`` is 1 or True where a position counts. A ``...padding_mask`` or ``pad_mask`` is True where
    none does. Either may also be additive: 0 where a position counts, -inf or some large negative number elsewhere.
    Masks of other names or shapes (causal masks, masks for each head) say nothing about padding.

    Args:
        arguments: The call's, by name.
        inputs: What the students read.
    """
    if inputs.ndim != (3 if inputs.is_floating_point() else 2):
        return None
    for path, mask in tensors_in(arguments):
        name = path.split(".")[-1]
        padding = name.endswith(("padding_mask", "pad_mask"))
        if mask.shape != inputs.shape[:2] or not (padding or name == "attention_mask"):
            continue
        if mask.is_floating_point():
            # No mask with weights 1 and 0 is without a 1; decided on the device.
            return torch.where((mask > 0).any(), (mask > 0) ^ padding, mask == 0)
        return mask == 0 if padding else mask != 0
    return None


def _readable(leaf: Leaf) -> bool:
    if not isinstance(leaf, Tensor):
        return True
    if leaf.ndim == 0 or leaf.is_complex() or leaf.dtype == torch.bool:
        return False
    return leaf.is_floating_point() or leaf.ndim <= 2  # several ids for each position have no order to read them in


def _belongs(leaf: Leaf, rows: int) -> bool:
    if isinstance(leaf, Tensor) and leaf.ndim >= 2 and leaf.shape[0] * leaf.shape[1] == rows:
        return True
    return rows_of(leaf) == rows
