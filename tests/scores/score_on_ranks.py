"""A program: all metrics on this rank's part of fixed data; rank 0 prints the results as JSON.

python score_on_ranks.py RANK RANKS MEETING_FILE
"""

import json
import os
import sys

import torch
from torch import distributed

from legibility.scores import FractionOfVarianceUnexplained, HeldOutImitation, PatchThroughKL, WeightSparsity
from legibility.students import LinearStudent


def main(rank: int, ranks: int, meeting: str) -> None:
    """Score rows `rank * 96 / ranks` and following."""
    torch.set_num_threads(1)
    if ranks > 1:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 6, generator=generator)
    logits = inputs @ torch.randn(6, 4, generator=generator)
    labels = torch.randint(0, 4, (96,), generator=generator)
    mask = torch.rand(96, generator=generator) < 0.8
    other = logits + torch.randn(96, 4, generator=generator) * 3
    weight = torch.randn(5, 6, generator=generator).relu()
    through, unexplained = PatchThroughKL(), FractionOfVarianceUnexplained(4)
    sparsity, imitation = WeightSparsity(), HeldOutImitation([LinearStudent()], taps=["tap"], passes=1)
    sparsity.update([("weight", weight)])
    part = slice(rank * 96 // ranks, (rank + 1) * 96 // ranks)
    for rows in torch.split(torch.arange(96)[part], 20):
        through.update(logits[rows], other[rows], mask[rows])
        unexplained.update(logits[rows], other[rows], mask[rows])
        imitation.update(inputs[rows], logits[rows], labels[rows], mask[rows], {"tap": inputs[rows, :2]})
    found = {"through": through.compute(), "unexplained": unexplained.compute()}
    found |= sparsity.compute() | imitation.compute()
    if rank == 0:
        print(json.dumps({name: value.item() for name, value in found.items()}))
    if ranks > 1:
        distributed.barrier()
        distributed.destroy_process_group()
        sys.stdout.flush()
        # gloo's threads abort about one exit in ten ("terminate called without an active exception"): leave at once.
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
