"""Programs for several ranks: what each rank's batches are, and the same objective written out in one process.

The reference runs the ranks one after the other and averages their gradients, as DDP and FSDP do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from by_hand import gradients_of
from tiny import loader
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from legibility.lightning_plugins.foundation._recording import Recording
from legibility.lightning_plugins.imitation._plan import plan_cohort
from legibility.losses import forward_kl, reverse_kl
from legibility.students import Cohort, MLPStudent, Student

STRENGTH, RATE, BATCHES, WORLD = 0.7, 3e-2, 24, 2
Slices = Callable[[int, int], slice | None]


class Two(nn.Module):
    """A trunk with two heads; the task may have no need of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.head, self.side = nn.Linear(64, 5), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both heads' logits."""
        hidden = self.trunk(x)
        return self.head(hidden), self.side(hidden)


def halves(index: int, rank: int) -> slice | None:
    """Half of every batch of 16."""
    return slice(8 * rank, 8 * rank + 8)


def smaller_on_rank_1(index: int, rank: int) -> slice | None:
    """Rank 1 has less of each batch, and one row of the last."""
    return slice(0, 11) if rank == 0 else slice(11, 16 if index < BATCHES - 1 else 12)


def empty_at_times(index: int, rank: int) -> slice | None:
    """A batch without rows: on rank 0 in the first step, on rank 1 in every fourth."""
    return slice(0, 0) if (rank == 0 and index == 0) or (rank == 1 and index % 4 == 2) else halves(index, rank)


def unneeded_at_times(index: int, rank: int) -> slice | None:
    """A batch in which the model isn't called at all: on rank 0 in the first two steps, on rank 1 in every fifth."""
    return None if (rank == 0 and index < 2) or (rank == 1 and index % 5 == 3) else halves(index, rank)


@dataclass(frozen=True)
class Scenario:
    """One program.

    Attributes:
        slices: Which rows of batch i a rank has; None: it does not call the model.
        second: The students imitate the second head, which the task has no need of.
        needed: The task needs the second head too.
        strategy: Options of the strategy.
        accumulate: Batches to one step.
        precision: Of the trainer.
        split: Students split by rank.
        students: Architectures.
        sharded: With FSDP2: options of `fully_shard`; None: with DDP.
        compiled: The trunk is compiled.
    """

    slices: Slices = halves
    second: bool = False
    needed: bool = True
    strategy: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    precision: str = "32-true"
    split: bool = False
    students: tuple[Student, ...] = (MLPStudent(width=16, depth=1), MLPStudent(width=8, depth=2))
    sharded: dict[str, Any] | None = None
    compiled: bool = False


ONLY_THE_TERM: dict[str, Any] = {"second": True, "needed": False}
THREE = (*Scenario.students, MLPStudent(width=4, depth=1))
LOW: dict[str, Any] = {"low": True}
DDP = {
    "plain": Scenario(),
    "find unused": Scenario(strategy={"find_unused_parameters": True}),
    "find unused, a head that only the term needs": Scenario(
        **ONLY_THE_TERM, strategy={"find_unused_parameters": True}
    ),
    "a head that only the term needs": Scenario(**ONLY_THE_TERM),
    "static graph": Scenario(strategy={"static_graph": True}),
    "static graph, a head that only the term needs": Scenario(**ONLY_THE_TERM, strategy={"static_graph": True}),
    "accumulated, short last group": Scenario(accumulate=5),
    "bf16-mixed": Scenario(precision="bf16-mixed"),
    "uneven": Scenario(slices=smaller_on_rank_1),
    "uneven, accumulated": Scenario(slices=smaller_on_rank_1, accumulate=2),
    "empty batches": Scenario(slices=empty_at_times),
    "no call on one rank": Scenario(slices=unneeded_at_times),
    "split": Scenario(split=True),
    "split, uneven": Scenario(slices=smaller_on_rank_1, split=True, students=THREE),
    "split, no call on one rank": Scenario(slices=unneeded_at_times, split=True, accumulate=2),
}
FSDP2 = {
    "FSDP2": Scenario(sharded={}),
    "FSDP2, accumulated": Scenario(sharded={}, accumulate=5),
    "FSDP2, bf16": Scenario(sharded=LOW),
    "FSDP2, compiled": Scenario(sharded={}, compiled=True),
    "FSDP2, split": Scenario(sharded={}, split=True),
}


def batches() -> list[tuple[Tensor, Tensor]]:
    """The global batches of 16."""
    return list(loader(rows=16 * BATCHES, batch_size=16))


def model() -> Two:
    """With the same weights each time."""
    torch.manual_seed(0)
    return Two()


def task(
    scenario: Scenario, net: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The user's loss, and what the students imitate."""
    first, second = net(x)
    said = second if scenario.second else first
    if len(x) == 0:
        return (first.sum() + second.sum()) * 0, said
    loss = cross_entropy(first, y)
    return loss + 0.1 * second.square().mean() if scenario.needed else loss, said


def idle(net: nn.Module) -> Tensor:
    """A loss without the model, which yet has a gradient."""
    return torch.stack([p.sum() for p in net.parameters()]).sum() * 0


def written_out(scenario: Scenario) -> dict[str, Any]:
    """The mean over ranks of `task + strength * term`, every term through autograd from the task's own graph."""
    net, data = model(), batches()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    parts = [[scenario.slices(index, rank) for rank in range(WORLD)] for index in range(BATCHES)]
    cohorts = _cohorts(scenario, net, data, parts)
    seen: list[list[Tensor]] = []
    for index, (x, y) in enumerate(data):
        for rank, part in enumerate(parts[index]):
            loss = idle(net)
            if part is not None:
                with torch.autocast("cpu", torch.bfloat16, enabled=scenario.precision == "bf16-mixed"):
                    loss, h = task(scenario, _low(net) if scenario.sharded == LOW else net, x[part], y[part])
                if len(x[part]):
                    loss = loss + STRENGTH * _term(scenario, cohorts[rank % len(cohorts)], x[part], h)
            (loss / scenario.accumulate / WORLD).backward()  # type: ignore[no-untyped-call]
        if (index + 1) % scenario.accumulate == 0 or index + 1 == BATCHES:
            seen.append(gradients_of(optimizer))
            optimizer.step()
            optimizer.zero_grad()
            for cohort in cohorts:
                cohort.step()
    networks = {name: network for cohort in cohorts for name, network in cohort.networks.items()}
    return {
        "gradients": seen,
        "weights": [p.detach() for p in net.parameters()],
        "students": {name: [p.detach() for p in network.parameters()] for name, network in networks.items()},
        "active": {name: cohort.active[name] for cohort in cohorts for name in cohort.networks},
    }


def _low(net: nn.Module) -> Any:
    """Computes in bfloat16 with gradients to the float32 weights, as the mixed precision of `fully_shard` does."""
    weights = {name: p.bfloat16() for name, p in net.named_parameters()}
    return lambda x: torch.func.functional_call(net, weights, (x.bfloat16(),))


def _cohorts(scenario: Scenario, net: nn.Module, data: list[Any], parts: list[list[slice | None]]) -> list[Cohort]:
    """One that all ranks share, or one for each rank; inputs standardised by the first batches that they see."""
    first = {
        rank: next(data[i][0][own] for i, row in enumerate(parts) if (own := row[rank]) is not None and len(data[i][0][own]))
        for rank in range(WORLD)
    }  # fmt: skip
    now = [data[0][0][own] for own in parts[0] if own is not None]
    x = next(rows for rows in now if len(rows))
    _, h = task(scenario, net, x, torch.zeros(len(x), dtype=torch.long))
    plan = plan_cohort(
        Recording((x,), {}, x, None, h), (x,), net, students=scenario.students, imitate="distribution", budget=0.1
    )
    cohorts = []
    for rank in range(WORLD if scenario.split else 1):
        cohort = Cohort(scenario.students, plan.signature, widths=plan.widths, learning_rate=RATE)
        if scenario.split:
            cohort.keep(cohort.names[rank::WORLD])
        cohort.predict(first[rank] if scenario.split else torch.cat(now))
        cohorts.append(cohort)
    return cohorts


def _term(scenario: Scenario, cohort: Cohort, x: Tensor, h: Tensor) -> Tensor:
    predictions = cohort.predict(x)
    terms = [torch.zeros(())]
    for name, prediction in predictions:
        o = prediction.output.detach()
        both = (forward_kl(h.float(), o).mean() + reverse_kl(h.float(), o).mean()) / 2
        terms.append(both if cohort.active[name] else 0 * both)
    cohort.learn(predictions, h.detach().float(), scale=1 / scenario.accumulate)
    share = WORLD if scenario.split else 1
    return torch.stack(terms).sum() * share / len(scenario.students)
