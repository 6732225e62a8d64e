"""A program: scores of concepts and representation on this rank's part of fixed data; rank 0 prints them as JSON.

python readings_on_ranks.py RANK RANKS MEETING_FILE
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

from known_heads import abc_head

from legibility.scores import (
    DifficultySlope,
    Dimension,
    FeatureDimensionality,
    GatedDisentanglement,
    KeyValueMemories,
    LensGap,
    LinearCKA,
    LocalFidelity,
    MonosemanticUnits,
    Retargetability,
    UnitStudents,
    UsedGivenEncoded,
)


def main(rank: int, ranks: int, meeting: str) -> None:
    """Score rows `rank * 300 / ranks` and following."""
    torch.set_num_threads(1)
    if ranks > 1:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    hidden, concepts, rest = abc_head(300)
    early = hidden + torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(300, generator=torch.Generator().manual_seed(2)) < 0.9
    metrics: dict[str, Any] = {
        "use": UsedGivenEncoded(rest, permutations=20),
        "disentanglement": GatedDisentanglement(permutations=1),
        "lens": LensGap(rest, layers=["early", "late"]),
        "dimension": Dimension(8),
        "similarity": LinearCKA(8, 8),
        "features": FeatureDimensionality(),
    }
    metrics |= {
        "monosemanticity": MonosemanticUnits(permutations=2),
        "students": UnitStudents(steps=10),
        "fidelity": LocalFidelity(lambda x: rest(x).sin(), points=5),
        "difficulty": DifficultySlope(),
        "memories": KeyValueMemories(torch.eye(8), torch.stack([hidden[1], hidden[2]]), rest, memories=4),
        "retargetability": Retargetability(torch.nn.Identity(), torch.nn.Identity(), passes=1),
    }
    metrics["features"].update(hidden[:10])
    part = slice(rank * 300 // ranks, (rank + 1) * 300 // ranks)
    for rows in torch.split(torch.arange(300)[part], 64):
        metrics["use"].update(hidden[rows], concepts[rows], mask[rows])
        metrics["disentanglement"].update(hidden[rows], concepts[rows], mask[rows])
        metrics["lens"].update({"early": early[rows], "late": hidden[rows]}, rest(hidden[rows]), mask[rows])
        metrics["dimension"].update(hidden[rows], mask[rows])
        metrics["similarity"].update(hidden[rows], early[rows], mask[rows])
        metrics["monosemanticity"].update(hidden[rows], concepts[rows], mask[rows])
        metrics["students"].update(early[rows], hidden[rows])
        metrics["fidelity"].update(hidden[rows])
        metrics["difficulty"].update(hidden[rows, 0], early[rows, 0].exp())
        metrics["memories"].update(hidden[rows], early[rows].relu(), mask[rows])
        metrics["retargetability"].update(hidden[rows], concepts[rows, 0], early[rows])
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        values = value if isinstance(value, dict) else {"value": value}
        found |= {f"{name}/{key}": entry.item() for key, entry in values.items()}
    if rank == 0:
        print(json.dumps(found))
    if ranks > 1:
        distributed.barrier()
        distributed.destroy_process_group()
        sys.stdout.flush()
        # gloo's threads abort about one exit in ten ("terminate called without an active exception"): leave at once.
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
