"""Measuring a model whose weights are spread over ranks: all ranks put the same questions, each with its shards.

A forward call of a sharded model is collective. So every rank measures, in step, on rank 0's queries, and rank 0 writes.
Nobody holds the whole model: one whole weight at a time for the sparsity, one module's weights at a time for the
random-init control, beside what FSDP gathers for any forward call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._trees import whole
from legibility.lightning_plugins.report._queries import KeptCalls

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def in_step(trainer: "Trainer") -> bool:
    """Whether all ranks must measure together: FSDP2 and tensor parallelism."""
    return "ModelParallelStrategy" in _bases(trainer)


def common_calls(trainer: "Trainer", kept: KeptCalls) -> KeptCalls:
    """The kept calls; those of rank 0 where all ranks must ask the same.

    Raises:
        ValueError: Under FSDP1.
    """
    if "FSDPStrategy" in _bases(trainer):
        raise ValueError(
            "FSDPStrategy (FSDP1) keeps flat pieces of weights, in which neither zeros can be counted by matrix nor an "
            "untrained control be drawn; train with ModelParallelStrategy (FSDP2), or measure the saved model"
        )
    return trainer.strategy.broadcast(kept) if in_step(trainer) else kept


def _bases(trainer: "Trainer") -> set[str]:
    return {base.__name__ for base in type(trainer.strategy).__mro__}


def spread_like(full: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor in the shards of another one, collectively; as it is if that one is whole too."""
    if not hasattr(tensor, "placements"):
        return full
    from torch.distributed.tensor import distribute_tensor

    spread: Tensor = distribute_tensor(full, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    return spread


def reshard(module: nn.Module) -> None:
    """Frees gathered weights, so that the next call gathers them again as the shards are then."""
    for part in module.modules():
        if hasattr(part, "unshard") and hasattr(part, "reshard"):
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
