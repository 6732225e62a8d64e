"""Under tensor parallelism a module may give each rank a part of its activations: no student could learn the whole."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from legibility.lightning_plugins.foundation._recording import Recording

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_VALUES = 256  # of each tensor that are compared
_NOISE = 0.1  # relative; other parts differ by about 1.4, rounding in bfloat16 by less than .01


def tensor_parallel_group(trainer: "Trainer") -> Any:
    """The ranks that compute each batch together with this one; None if it does so alone."""
    mesh: Any = getattr(trainer.strategy, "_device_mesh", None)
    if mesh is None or "tensor_parallel" not in (mesh.mesh_dim_names or ()) or mesh["tensor_parallel"].size() == 1:
        return None
    return mesh["tensor_parallel"].get_group()


def check_whole(trainer: "Trainer", recordings: Sequence[Recording]) -> None:
    """Collective over the ranks that compute the same batch.

    Raises:
        ValueError: They don't see the same inputs, outputs or taps.
    """
    group = tensor_parallel_group(trainer)
    if group is None:
        return
    own = _places(recordings[0]) if recordings else {}
    heard: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(heard, own, group=group)
    places = {place for found in heard for place in found}
    parts = [
        place for place in sorted(places) if not all(_same(heard[0].get(place), found.get(place)) for found in heard)
    ]
    if parts:
        raise ValueError(
            f"{parts[0]}: the ranks of tensor parallelism don't see the same numbers, as if each had a part of them, and "
            "students learn whole ones. Choose a module whose output is whole: after a RowwiseParallel layer, or one with "
            "`output_layouts=Replicate()`."
        )


def _places(recording: Recording) -> dict[str, Tensor]:
    found = {"`reads`": recording.inputs, "`output`": recording.output}
    found |= {f"`taps` = {name!r}": tap for name, tap in recording.taps.items()}
    return {place: _some(tensor.detach().flatten()) for place, tensor in found.items()}


def _some(values: Tensor) -> Tensor:
    places = torch.linspace(0, len(values) - 1, min(_VALUES, len(values))).long()
    return torch.cat([torch.tensor([float(len(values))]), values[places.to(values.device)].float().nan_to_num().cpu()])


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one[0] != other[0]:
        return one is other
    return bool((one[1:] - other[1:]).norm() <= _NOISE * one[1:].norm())
