"""Weights that FSDP1 has cut: each rank holds a flat piece of some, and nothing of others."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

_INSTEAD = "Use ModelParallelStrategy (FSDP2), whose weights keep their shape"


class Cut(NamedTuple):
    """How a weight lies over the ranks.

    Attributes:
        shape: Of the whole weight.
        mesh: The ranks that hold its pieces.
    """

    shape: torch.Size
    mesh: DeviceMesh

    def seen(self, piece: Tensor) -> Tensor:
        """The whole weight as one flat tensor, of which this rank holds a piece, of any length or empty.

        What is written to it is written to the piece. Sums, norms, counts and elementwise operations are right; means are
        not, where the pieces are of unequal length.
        """
        shape = torch.Size([self.shape.numel()])
        return DTensor.from_local(piece.detach(), self.mesh, [Shard(0)], run_check=False, shape=shape, stride=(1,))


def cuts(root: nn.Module) -> dict[int, Cut]:
    """The weights below ``root`` that FSDP1 keeps in pieces, by the ids of their parameters.

    Raises:
        ValueError: FSDP1 hides the original parameters, or keeps the pieces away from where the ranks talk.
    """
    found: dict[int, Cut] = {}
    meshes: dict[Any, DeviceMesh] = {}
    for module in root.modules():
        handle: Any = getattr(module, "_handle", None)
        if type(module).__name__ != "FullyShardedDataParallel" or handle is None or not handle.uses_sharded_strategy:
            continue
        flat = handle.flat_param
        if flat._params is None:
            raise ValueError(
                "`targets`: FSDPStrategy (FSDP1) with `use_orig_params=False` has one vector instead of the weights, so "
                f"they have no names to choose by. Leave it at True, or u{_INSTEAD[1:]}."
            )
        if handle._offload_params:
            raise ValueError(
                f"`targets`: weights under FSDPStrategy (FSDP1) with `cpu_offload` can't be counted. {_INSTEAD}."
            )
        group = handle.process_group
        if group not in meshes:
            meshes[group] = DeviceMesh.from_group(group, handle.device.type)
        found |= {id(p): Cut(shape, meshes[group]) for p, shape in zip(flat._params, flat._shapes, strict=True)}
    return found


def with_gradient(parameters: Iterable[nn.Parameter], cut: dict[int, Cut]) -> set[int]:
    """The ids of those that have a gradient; of a cut one, on any rank: who holds nothing of it has none.

    All ranks must ask, for the same parameters.
    """
    parameters = list(parameters)
    stepped = {id(p) for p in parameters if p.grad is not None}
    for mesh in dict.fromkeys(cut[id(p)].mesh for p in parameters if id(p) in cut):
        pieces = [p for p in parameters if id(p) in cut and cut[id(p)].mesh is mesh]
        flags = torch.tensor([p.grad is not None for p in pieces], dtype=torch.int32, device=mesh.device_type)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=mesh.get_group())
        stepped |= {id(p) for p, flag in zip(pieces, flags.tolist(), strict=True) if flag}
    return stepped
