"""A program: every metric on this rank's part of fixed data; rank 0 prints the results as JSON.

python metrics_on_ranks.py RANK RANKS MEETING_FILE
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

from metric_cases import ON_RANKS, rows_of

ROWS = 320


def main(rank: int, ranks: int, meeting: str) -> None:
    """Score rows `rank * 320 / ranks` and following, in batches of 64."""
    torch.set_num_threads(1)
    if ranks > 1:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    found: dict[str, float] = {}
    for name, case in ON_RANKS.items():
        metric = case.make()
        if case.cut:
            part = range(rank * ROWS // ranks, (rank + 1) * ROWS // ranks, 64)
            for start in part:
                metric.update(**rows_of(case.batch, slice(start, min(start + 64, part.stop))))
        else:  # weights are equal on all ranks
            metric.update(**case.batch)
        value = metric.compute()
        values = value if isinstance(value, dict) else {"value": value}
        found |= {f"{name}:{key}": entry.item() for key, entry in values.items()}
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
