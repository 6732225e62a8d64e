"""A program that one process or two ranks of FSDP1 run: lengths and shares of groups of all kinds, results to a file.

python flat_groups.py NAMESPACE OUT ["layers"]

The whole model is one vector; with "layers", each layer that has weights is one.
"""

import os
import sys
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from launch import place
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from legibility.lightning_plugins.sparsity._wiring import Wiring
from legibility.lightning_plugins.sparsity.structure._neurons import neurons
from legibility.lightning_plugins.sparsity.structure._units import heads, rows_or_columns
from legibility.lightning_plugins.sparsity.weights._weights import penalisable_weights

LAYERS = (nn.Conv2d, nn.Linear, nn.MultiheadAttention, nn.BatchNorm2d, nn.LayerNorm, nn.Embedding)


def _models() -> dict[str, Any]:
    torch.manual_seed(0)

    def pixels() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(4 * 4, 5), nn.ReLU(), nn.Linear(5, 1)),
        )

    tied = nn.Linear(6, 6)
    return {
        "convolutions": pixels(),
        "channels last": pixels().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        "attention": nn.ModuleDict({"words": nn.Embedding(7, 16), "body": nn.TransformerEncoderLayer(16, 4, 24)}),
        "tied": nn.Sequential(nn.Linear(4, 6), tied, nn.Tanh(), tied, nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)),
    }


def main(namespace: str, out: str, how: str = "one vector") -> None:
    """Saves what this rank finds in each model, and the weights once all groups are scaled, each by a factor of its own."""
    world, rank = place()
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    result: dict[str, Any] = {}
    for name, model in _models().items():
        flat = model
        if world > 1:
            policy = ModuleWrapPolicy(LAYERS) if how == "layers" else None
            flat = FullyShardedDataParallel(
                model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
            )
        names = list(penalisable_weights(flat))
        families = {"neurons": neurons(flat), "heads": heads(flat)}
        families |= {kind: rows_or_columns(flat, names, rows=kind == "rows") for kind in ("rows", "columns")}
        words: dict[str, Any] = {"names": names}
        numbers: dict[str, Any] = {"wires": {}}
        wiring = Wiring(families["neurons"], 0.1, 1.0)
        for line, places in wiring.places.items():
            wiring.move(line, places.flip(0).roll(1))
        for weight, wires in wiring.wires.items():
            numbers["wires"][weight] = wires.loads()
            wires.weight.detach().mul_(wiring.prices(weight))
        for kind, family in families.items():
            words[f"left out of {kind}"] = family.left_out
            for units in family:
                numbers[f"{kind} of {units.name}"] = (units.count, units.size, units.lengths())
                for piece in units.pieces:
                    piece.scale(torch.linspace(0.0, 2.0, units.count))
        here = [p.numel() for p in model.parameters()]
        with FullyShardedDataParallel.summon_full_params(flat, writeback=False) if world > 1 else nullcontext():
            numbers["weights"] = [p.detach().clone().contiguous() for p in model.parameters()]
        result[name] = {"words": words, "numbers": numbers, "here": here}
    torch.save(result, f"{out}-{world}-{rank}.pt")
    if world > 1:
        dist.barrier()
        os._exit(0)  # as in two_shards.py


if __name__ == "__main__":
    main(*sys.argv[1:])
