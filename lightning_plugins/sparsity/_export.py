"""Sparse weights on disk: nonzero values and one bit for each place, as safetensors."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

KEY = "legibility"
FORMAT = "legibility.sparse/1"


def save_sparse(path: str | os.PathLike[str], module: nn.Module) -> int:
    """Writes a module's parameters and buffers, weights with zeros as mask and values. All or nothing.

    A tensor is stored as ``<name>.values`` (its nonzero values, in order) and ``<name>.mask`` (uint8, 8 places each,
    the first in the highest bit) if that is smaller, else as ``<name>`` whole. Tied weights are stored once. Values keep
    their dtype, bit for bit (a negative zero becomes a zero).

    Args:
        path: The file, conventionally ``*.safetensors``; replaced if it exists.
        module: What to write; sharded parameters must be gathered first.

    Returns:
        The file's size in bytes.

    Raises:
        TypeError: The state holds something that is no tensor.
        ValueError: A tensor is sharded, sparse or lazy.

    Example:
        >>> layer = nn.Linear(64, 64)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> save_sparse("layer.safetensors", layer) < 1200  # instead of 16640
        True
        >>> load_sparse("layer.safetensors")["weight"].shape
        torch.Size([64, 64])

    Source: bitmask compression as in sparse-format surveys (Dave et al., "Hardware acceleration of sparse and irregular
    tensor computations of ML models", 2021).
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    same: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"`module`: {name} is extra state, no tensor ({type(value).__name__}); it can't be stored.")
        if type(value.data) is not Tensor or value.layout != torch.strided or nn.parameter.is_lazy(value):
            kind = type(value.data).__name__ if value.layout == torch.strided else value.layout
            raise ValueError(
                f"`module`: {name} is {kind}; gather sharded and materialise sparse or lazy tensors first."
            )
        if id(value) in first:
            same[name] = first[id(value)]
            continue
        first[id(value)] = name
        dense = value.detach().cpu().contiguous()
        kept = dense != 0
        if int(kept.sum()) * dense.element_size() + -(-dense.numel() // 8) < dense.numel() * dense.element_size():
            tensors[f"{name}.values"] = dense[kept]
            tensors[f"{name}.mask"] = torch.from_numpy(np.packbits(kept.flatten().numpy()))
            shapes[name] = list(dense.shape)
        else:
            tensors[name] = dense.clone()
    # One key: safetensors writes several in random order.
    header = json.dumps({"format": FORMAT, "shapes": shapes, "same": same}, sort_keys=True)
    content = save(tensors, metadata={KEY: header})
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(content)


def load_sparse(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads what :func:`save_sparse` wrote, as a dense state dict for ``module.load_state_dict``.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated or of another kind.

    Example:
        >>> layer = nn.Linear(3, 3)
        >>> _ = save_sparse("layer.safetensors", layer)
        >>> layer.load_state_dict(load_sparse("layer.safetensors"))
        <All keys matched successfully>
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"`path`: {path} is truncated or not a safetensors file ({error}).") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"`path`: {path} holds {header.get('format', 'something else')!r}; expected {FORMAT!r}.")
    for name, shape in header["shapes"].items():
        values, mask = tensors.pop(f"{name}.values"), tensors.pop(f"{name}.mask")
        kept = torch.from_numpy(np.unpackbits(mask.numpy(), count=int(np.prod(shape)))).bool()
        dense = torch.zeros(kept.shape, dtype=values.dtype)
        dense[kept] = values
        tensors[name] = dense.reshape(shape)
    return tensors | {name: tensors[original] for name, original in header["same"].items()}
