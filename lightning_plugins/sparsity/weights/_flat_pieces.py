"""Weights that FSDP1 has cut: each rank holds a flat piece of some, and nothing of others."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from legibility.scores.flat_weights import wraps_flat

_INSTEAD = "Use ModelParallelStrategy (FSDP2), whose weights keep their shape"


class Cut(NamedTuple):
    """How a weight lies over the ranks: in memory order, this rank has ``length`` numbers of it from ``start`` on.

    Attributes:
        shape: Of the whole weight.
        mesh: The ranks that hold its pieces.
        order: Its dimensions in memory order. Pieces are cuts through the first of them.
        start: Where this rank's piece begins,
        length: and how long it is, perhaps 0.
    """

    shape: torch.Size
    mesh: DeviceMesh
    order: tuple[int, ...]
    start: int
    length: int

    @property
    def rows_whole(self) -> bool:
        """Whether no row lies on two ranks: nobody sees to that."""
        return False

    def seen(self, piece: Tensor) -> Tensor:
        """The whole weight as one flat tensor, of which this rank holds a piece, of any length or empty.

        What is written to it is written to the piece. Sums, norms, counts and elementwise operations are right; means are
        not, where the pieces are of unequal length.
        """
        shape = torch.Size([self.shape.numel()])
        return DTensor.from_local(piece.detach(), self.mesh, [Shard(0)], run_check=False, shape=shape, stride=(1,))

    def _slices(self) -> tuple[int, int, int]:
        """The slices along the dimension that is cut which this rank has something of, and what of the first it has not."""
        size = self.shape.numel() // self.shape[self.order[0]]
        first = self.start // size
        return first, -(-(self.start + self.length) // size) - first, self.start - first * size

    def block(self, piece: Tensor) -> Tensor:
        """This rank's piece, with zeros around that make it whole slices along the dimension that is cut."""
        _, count, before = self._slices()
        block = piece.new_zeros([count, *(self.shape[d] for d in self.order[1:])])
        block.view(-1)[before : before + self.length] = piece.detach()
        return block.permute([self.order.index(d) for d in range(len(self.order))])

    def part(self, values: Tensor) -> Tensor:
        """What stands where this rank's piece does, of values that spread to the shape of the whole weight; flat."""
        first, count, before = self._slices()
        block = values.expand(self.shape).permute(self.order)[first : first + count]
        return block.reshape(-1)[before : before + self.length]

    def whole(self, piece: Tensor) -> Tensor:
        """The whole weight, from what each rank holds of it; all ranks must ask."""
        return self.total(self.block(piece), *range(len(self.shape)))

    def total(self, sums: Tensor, *kept: int) -> Tensor:
        """Sums of each rank's :meth:`block`, added up over the ranks.

        Args:
            sums: What was summed is gone, the dimensions left are
            kept: these of the weight.
        """
        first, count, _ = self._slices()
        total = sums.new_zeros([self.shape[d] for d in kept])
        place = kept.index(self.order[0]) if self.order[0] in kept else None
        (total if place is None else total.narrow(place, first, count)).copy_(sums)
        dist.all_reduce(total, group=self.mesh.get_group())
        return total


def cuts(root: nn.Module) -> dict[int, Cut]:
    """The weights below ``root`` that FSDP1 keeps in pieces, by the ids of their parameters."""
    found: dict[int, Cut] = {}
    meshes: dict[Any, DeviceMesh] = {}
    for handle in _handles(root):
        flat = handle.flat_param
        if flat._params is None:
            continue
        group = handle.process_group
        if group not in meshes:
            meshes[group] = DeviceMesh.from_group(group, handle.device.type)
        # torch 2.5 lays all of them out row by row.
        strides = getattr(flat, "_strides", [range(len(shape), 0, -1) for shape in flat._shapes])
        for parameter, shape, stride, here in zip(
            flat._params, flat._shapes, strides, flat._shard_param_infos, strict=True
        ):
            order = tuple(sorted(range(len(shape)), key=lambda d, stride=stride: -stride[d]))  # type: ignore[misc]
            start, length = here.intra_param_start_idx or 0, here.numel_in_shard or 0
            found[id(parameter)] = Cut(shape, meshes[group], order, start, length)
    return found


def why_not(root: nn.Module) -> str | None:
    """Why the weights below ``root`` that FSDP1 has can't be reached; None if they can, or there are none."""
    for handle in _handles(root):
        if handle.flat_param._params is None:
            return (
                "FSDPStrategy (FSDP1) with `use_orig_params=False` has one vector instead of the weights, so they have no "
                f"names to choose by. Leave it at True, or u{_INSTEAD[1:]}."
            )
        if handle._offload_params:
            return f"weights under FSDPStrategy (FSDP1) with `cpu_offload` can't be counted. {_INSTEAD}."
    return None


def refuse_sharded(model: nn.Module) -> None:
    """A tool that takes weights as they stand needs whole ones.

    Raises:
        ValueError: Weights are sharded, by FSDP2 or FSDP1.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()) or next(_handles(model), None):
        raise ValueError("`model` has sharded weights: load a full state dict into an unsharded copy first.")


def _handles(root: nn.Module) -> Iterator[Any]:
    for module in root.modules():
        handle: Any = getattr(module, "_handle", None)
        if wraps_flat(module) and handle is not None and handle.uses_sharded_strategy:
            yield handle


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
