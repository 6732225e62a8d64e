"""Finds tensors in what models take and return: nested containers, packed sequences, objects with attributes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Leaf = Tensor | PackedSequence


def leaves_in(tree: Any, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yields (dotted path, leaf) for every tensor and packed sequence in nested tuples, lists, mappings, dataclasses.

    Of a ``torch.distributions.Distribution``, its parameters.
    """
    if isinstance(tree, (Tensor, PackedSequence)):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (tuple, list)):
        names = getattr(tree, "_fields", range(len(tree)))
        for key, value in zip(names, tree, strict=True):
            yield from leaves_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, torch.distributions.Distribution):
        for key, value in vars(tree).items():
            if not key.startswith("_"):
                yield from leaves_in(value, f"{path}.{key}" if path else key)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for item in dataclasses.fields(tree):
            yield from leaves_in(getattr(tree, item.name, None), f"{path}.{item.name}" if path else item.name)


def tensors_in(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of :func:`leaves_in`, without the packed sequences."""
    for path, leaf in leaves_in(tree):
        if isinstance(leaf, Tensor):
            yield path, leaf


def at_path(tree: Any, path: str) -> Any:
    """What a dotted path leads to: keys, indices, fields and attributes; None if it leads nowhere.

    Example:
        >>> at_path({"pair": (1, 2)}, "pair.1")
        2
        >>> at_path({"pair": (1, 2)}, "pair.real") is None
        True
    """
    for key in path.split("."):
        if isinstance(tree, Mapping):
            tree = {str(name): value for name, value in tree.items()}.get(key)
        elif isinstance(tree, (tuple, list)) and key.isdecimal():
            tree = tree[int(key)] if int(key) < len(tree) else None
        else:
            tree = getattr(tree, key, None)
    return tree


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over ranks (DTensor) gathered, in its graph: collective then. Any other as it is."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def is_floating(leaf: Leaf) -> bool:
    """Whether it holds real floating-point numbers."""
    return (leaf.data if isinstance(leaf, PackedSequence) else leaf).is_floating_point()


def rows_of(leaf: Leaf) -> int:
    """Batch size."""
    return int(leaf.batch_sizes[0]) if isinstance(leaf, PackedSequence) else leaf.shape[0]


def padded(leaf: Leaf, positions: int = 0) -> tuple[Tensor, Tensor | None]:
    """A leaf as one tensor with the batch first, and for packed sequences the mask of what is no padding.

    Args:
        leaf: A tensor passes as it is.
        positions: Pad packed sequences to at least this length.

    Returns:
        The tensor, in the leaf's graph, and bool (batch, time) or None.
    """
    if isinstance(leaf, Tensor):
        return leaf, None
    longest = len(leaf.batch_sizes)
    tensor, lengths = pad_packed_sequence(leaf, batch_first=True, total_length=max(longest, positions))
    return tensor, (torch.arange(tensor.shape[1]) < lengths.unsqueeze(1)).to(tensor.device)


def batch_first(inputs: Tensor, rows: int) -> Tensor:
    """A sequence that has time first, with the batch first, where the number of predictions says so."""
    sequential = inputs.ndim == (3 if inputs.is_floating_point() else 2)
    return inputs.transpose(0, 1) if sequential and inputs.shape[0] != rows == inputs.shape[1] else inputs


def packed_like(values: Tensor, leaf: PackedSequence) -> Tensor:
    """The ``data`` of a packed sequence with the lengths and the order of ``leaf`` and padded values."""
    _, lengths = pad_packed_sequence(leaf, batch_first=True)
    packed = pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=leaf.sorted_indices is None)
    return packed.data
