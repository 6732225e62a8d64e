"""Held-out families, and training one of networks on growing prefixes of the queries."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from legibility.scores.imitation._estimators import Estimator
from legibility.scores.imitation._queries import Queries
from legibility.students import Prediction, Signature, Student

EVALUATION_BATCH = 128

Family = Student | Estimator
"""A held-out family: a network that is trained, or an estimator that is fitted."""


@dataclass(frozen=True)
class Training:
    """How every family is trained.

    Attributes:
        passes: epochs over the queries seen so far, after each block.
        batch_size: queries per optimizer step.
        learning_rate: Adam's, at the start of each block; it falls linearly to 0 until the next.
        width: hidden size of the students that don't fix their own.
        seed: of initialisation and shuffling.
    """

    passes: int
    batch_size: int
    learning_rate: float
    width: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("passes", "batch_size", "width"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ValueError(f"`learning_rate` must be a positive number, got {self.learning_rate}.")


class Imitator:
    """One student, trained on the first so many queries and asked about others.

    Training goes on from where it stopped (warm start), with Adam. The caller holds `isolated()` around everything.

    Args:
        student: the architecture.
        signature: what it reads and imitates.
        queries: all of them, for their inputs.
        training: the settings.
        advance: called after each optimizer step.
    """

    def __init__(
        self,
        student: Student,
        signature: Signature,
        queries: Queries,
        training: Training,
        advance: Callable[[], None],
    ) -> None:
        torch.manual_seed(training.seed)
        self.inputs = queries.inputs
        self.mask = queries.positions_to_read
        width = training.width if student.width is None else student.width
        self.network = student.build(signature, width=width).to(self.inputs.device)
        # Inputs are known to both ends of a code, so their scale may come from all of them.
        self.network.set_statistics({}, inputs=self.inputs, mask=self.mask)
        self.training = training
        self.advance = advance
        self.shuffle = torch.Generator("cpu").manual_seed(training.seed)
        fused = self.inputs.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=training.learning_rate, fused=fused)

    def learn(self, seen: int, loss: Callable[[Prediction, Tensor], Tensor], *, passes: int) -> None:
        """Train for `passes` epochs on the first `seen` queries; `loss(prediction, rows)` is a scalar."""
        self.network.train()
        steps = steps_of(seen, passes, self.training.batch_size)
        step = 0
        for _ in range(passes):
            order = torch.randperm(seen, generator=self.shuffle, device="cpu").to(self.inputs.device)
            for rows in torch.split(order, self.training.batch_size):
                self.optimizer.param_groups[0]["lr"] = self.training.learning_rate * (1.0 - step / steps)
                self.optimizer.zero_grad()
                torch.autograd.backward(loss(self._predict(rows), rows))
                self.optimizer.step()
                step += 1
                self.advance()

    @torch.no_grad()
    def answers(self, start: int, stop: int) -> Iterator[tuple[Tensor, Prediction]]:
        """Rows and predictions of the queries from `start` to `stop`, in batches, in order."""
        self.network.eval()
        for rows in torch.split(torch.arange(start, stop, device=self.inputs.device), EVALUATION_BATCH):
            yield rows, self._predict(rows)

    def _predict(self, rows: Tensor) -> Prediction:
        prediction: Prediction = self.network(self.inputs[rows], None if self.mask is None else self.mask[rows])
        return prediction


def steps_of(seen: int, passes: int, batch_size: int) -> int:
    """Optimizer steps of `passes` epochs over `seen` queries."""
    return passes * -(-seen // batch_size)


def block_edges(queries: int, blocks: int) -> list[int]:
    """Where doubling blocks end: `N / 2^(blocks-1), ..., N / 4, N / 2, N`, each rounded down."""
    if blocks < 2 or queries >> (blocks - 1) < 1:
        raise ValueError(f"`blocks` must be from 2 to log2 of the {queries} queries plus 1, got {blocks}.")
    return [queries >> (blocks - 1 - block) for block in range(blocks)]


def family_names(students: Sequence[Family]) -> list[str]:
    """Each student's name, numbered from the second of its kind on: `mlp`, `mlp_2`."""
    names: list[str] = []
    for student in students:
        count = sum(earlier.name == student.name for earlier in students[: len(names)])
        names.append(student.name if count == 0 else f"{student.name}_{count + 1}")
    return names


@contextlib.contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Train in a world of its own: the global random state, gradient mode, inference mode and autocast come back."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
