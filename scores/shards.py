"""Weights that are spread over ranks as DTensors (FSDP2): written as a whole, kept as shards. Collective, all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from legibility.scores.flat_weights import wraps_flat


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over ranks gathered; any other as it is."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def spread_like(full: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor in the shards of another one, collectively; as it is if that one is whole too."""
    if not hasattr(tensor, "placements"):
        return full
    from torch.distributed.tensor import distribute_tensor

    spread: Tensor = distribute_tensor(full, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    return spread


def reshard(module: nn.Module) -> None:
    """Frees gathered weights, so that the next call gathers them again as the shards are then; FSDP1's too."""
    for part in module.modules():
        if wraps_flat(part):
            handle: Any = part._handle
            # Outermost wrappers keep what they gathered for a call, and use it in the next one. Before a first call there is nothing.
            if handle is not None and handle.uses_sharded_strategy and hasattr(handle.flat_param, "_local_shard"):
                handle.reshard(True)
        elif hasattr(part, "unshard") and hasattr(part, "reshard"):
            part.reshard()  # type: ignore[operator]


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """While inside, the module's sharded weights are whole, and what is written to them goes to the shards afterwards.

    For code that writes weights, such as ``reset_parameters``: written to shards, each would get the same draw.
    """
    swapped = [
        (part, name, parameter, nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad))
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and hasattr(parameter, "full_tensor")
    ]
    for part, name, _, full in swapped:
        part._parameters[name] = full
    try:
        yield
    finally:
        for part, name, shards, full in swapped:
            part._parameters[name] = shards
            with torch.no_grad():
                shards.copy_(spread_like(full.detach(), shards))
