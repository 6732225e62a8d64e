"""One of two gloo processes that run the scenarios of test_cohort_ranks.py: `python ranks.py FOLDER RANK`.

A file of its own, not a function handed to torch.multiprocessing: under --import-mode=importlib a spawned child can't
import the test module. The same scenarios run on one process when it is imported by path.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from legibility.students import Cohort, ConvStudent, GRUStudent, MLPStudent, Signature, Student, TapSignature

TEXT = Signature("tokens", (6,), 7, True, 7, {"h": TapSignature(5, True, (6, 5))})
TABLE = Signature("features", (5,), 3, False, None, {"h": TapSignature(4, False, (4,))})
STUDENTS: list[Student] = [ConvStudent(width=8), GRUStudent(width=8), MLPStudent(width=8)]
STEPS = 6


def _batch(step: int, signature: Signature) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Inputs, output, tap and mask of 8 examples."""
    generator = torch.Generator().manual_seed(step)
    tap = signature.taps["h"]
    if signature.reads == "tokens":
        inputs = torch.randint(0, 7, (8, 6), generator=generator)
        mask = torch.rand(8, 6, generator=generator) < torch.linspace(0.2, 0.9, 8).unsqueeze(1)
        leading: tuple[int, ...] = (8, 6)
    else:
        inputs = 10 * torch.randn(8, 5, generator=generator) + torch.arange(8.0).unsqueeze(1)
        mask, leading = None, (8,)
    output = 2 * torch.randn(*leading, signature.outputs, generator=generator)
    return inputs, output, 4 + 3 * torch.randn(*leading, tap.units, generator=generator), mask


def _part(rank: int | None) -> slice:
    return slice(0, 8) if rank is None else slice(4 * rank, 4 * rank + 4)


def _found(cohort: Cohort) -> dict[str, Any]:
    weights = {f"{s}/{n}": t for s, net in cohort.networks.items() for n, t in net.state_dict().items()}
    return {"weights": weights, "failed": cohort.failed, "active": cohort.active, "baseline": cohort._baseline}


def train(
    rank: int | None,
    *,
    signature: Signature = TEXT,
    taps: bool = True,
    early: bool = False,
    poisoned_rank: int = -1,
    bad_rank: int = -1,
    idle_rank: int = -1,
    **settings: Any,
) -> dict[str, Any]:
    """Train on this rank's half of each batch, or on the whole of it (`rank` None), with trouble in the third step.

    `early`: synchronise before the step. `poisoned_rank`: the first student's gradients turn NaN there.
    `bad_rank`: the primary's output is NaN there. `idle_rank`: nothing is learned there.
    """
    students = STUDENTS if signature.reads == "tokens" else [MLPStudent(width=8)]
    cohort = Cohort(students, signature, **settings)
    if settings.get("kind") == "values":
        # A regression starts at the mean, where its bias has the gradient 0 up to rounding: Adam would step by the
        # rounding's sign.
        nn.init.constant_(cohort.networks["mlp"].get_parameter("head.linear.bias"), 0.1)
    for step in range(STEPS):
        trouble = step == 2
        part = _part(rank)
        if trouble and idle_rank >= 0:
            part = _part(1 - idle_rank)
            if rank == idle_rank:
                cohort.step()
                continue
        inputs, output, tap, mask = _batch(step, signature)
        inputs, output, tap, mask = inputs[part], output[part], tap[part], mask[part] if mask is not None else None
        if trouble and bad_rank >= 0 and rank in (None, bad_rank):
            output = output * torch.nan
        predictions = cohort.predict(inputs, mask)
        cohort.learn(predictions, output, {"h": tap} if taps else {}, mask)
        if trouble and poisoned_rank >= 0 and rank in (None, poisoned_rank):
            parameter = next(cohort.networks["conv"].parameters())
            assert parameter.grad is not None
            parameter.grad[0] = torch.nan
        if early:
            cohort.start_synchronising()
        cohort.step()
    return _found(cohort)


SCENARIOS: dict[str, dict[str, Any]] = {
    "output": {"taps": False},
    "taps": {},
    "early": {"early": True},
    "drop": {"poisoned_rank": 1},
    "bad": {"bad_rank": 0},
    "idle": {"idle_rank": 1},
    "table": {"signature": TABLE},
    "values": {"signature": TABLE, "kind": "values"},
}


@dataclass(frozen=True)
class UnluckyStudent(Student):
    """Finds no memory on rank 1."""

    reads = frozenset({"tokens"})

    def body(self, signature: Signature, width: int) -> nn.Module:
        """A table."""
        if dist.get_rank() == 1:
            raise MemoryError
        return nn.Embedding(7, width)


def _error(**settings: Any) -> str:
    try:
        train(dist.get_rank(), **settings)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


def main(folder: Path, rank: int) -> None:
    """Run every scenario and save what was found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, Any] = {name: train(rank, **settings) for name, settings in SCENARIOS.items()}
    found["raise"] = _error(poisoned_rank=1, on_failure="raise")
    own = Signature("tokens", (6,), 7, True, 7 + rank, TEXT.taps)
    found["disagree"] = _error(signature=own)
    longer = Signature("tokens", (6 + rank,), 7, True, 7, {"h": TapSignature(5, True, (6 + rank, 5))})
    found["longer"] = train(rank, signature=longer)
    unlucky = Cohort([*STUDENTS, UnluckyStudent(width=4)], TEXT)
    found["unlucky"] = {"failed": unlucky.failed, "living": list(unlucky.networks)}
    found["alone"] = train(rank, distributed=False)
    if rank == 0:
        found["by_itself"] = train(0, distributed=False)  # no other rank takes part
    else:
        found["by_itself"] = {}
    dist.barrier()
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads abort about one exit in ten ("terminate called without an active exception"): leave at once.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
