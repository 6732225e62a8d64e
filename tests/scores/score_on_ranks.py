"""A program: all metrics on this rank's part of fixed data; rank 0 prints the results as JSON.

python score_on_ranks.py RANK RANKS MEETING_FILE
"""

import json
import os
import sys

import torch
from torch import distributed

from legibility.scores import (
    CompressedSizeOfModel,
    ErrorAgreement,
    FaithfulCircuit,
    FractionOfVarianceUnexplained,
    HeldOutImitation,
    PatchThroughKL,
    TreeEstimator,
    WeightSparsity,
)
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
    sparsity, imitation = WeightSparsity(), HeldOutImitation([LinearStudent(), TreeEstimator()], taps=["tap"], passes=1)
    sparsity.update([("weight", weight)])
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    circuit = FaithfulCircuit(model, learned_steps=20)
    compressed = CompressedSizeOfModel(model, tolerance=0.3)
    answers = model(inputs).argmax(-1)
    errors = ErrorAgreement(classes=4)
    part = slice(rank * 96 // ranks, (rank + 1) * 96 // ranks)
    for rows in torch.split(torch.arange(96)[part], 20):
        through.update(logits[rows], other[rows], mask[rows])
        unexplained.update(logits[rows], other[rows], mask[rows])
        imitation.update(inputs[rows], logits[rows], labels[rows], mask[rows], {"tap": inputs[rows, :2]})
        circuit.update(inputs[rows])
        compressed.update(inputs[rows], answers[rows])
        errors.update(logits.argmax(-1)[rows], labels[rows], other.argmax(-1)[rows], labels[rows], mask[rows])
    found = {"through": through.compute(), "unexplained": unexplained.compute()}
    found |= sparsity.compute() | imitation.compute() | circuit.compute() | compressed.compute() | errors.compute()
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
