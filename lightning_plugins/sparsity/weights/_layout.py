"""How a sharded weight lies over the ranks: whole from what each of them holds, and back."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor

from legibility.lightning_plugins.sparsity.weights._flat_pieces import Cut


class Shards(NamedTuple):
    """Of FSDP2 and tensor parallelism, which leave a weight its dimensions; the counterpart of :class:`Cut`."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def rows_whole(self) -> bool:
        """Whether no row (what shares the first index) lies on two ranks."""
        return all(getattr(placement, "dim", 0) == 0 for placement in self.placements)

    def whole(self, piece: Tensor) -> Tensor:
        """The whole of which each rank holds a piece; all ranks must ask."""
        sharded = DTensor.from_local(
            piece, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )
        return sharded.full_tensor()

    def part(self, values: Tensor) -> Tensor:
        """This rank's piece of rank 0's values; all ranks must ask."""
        return distribute_tensor(values, self.mesh, self.placements).to_local()


Layout = Cut | Shards


def layout_of(weight: Tensor, cut: Cut | None) -> Layout | None:
    """None if each rank holds the whole weight."""
    if cut is not None or not isinstance(weight, DTensor):
        return cut
    return Shards(weight.device_mesh, tuple(weight.placements), weight.shape, weight.stride())
