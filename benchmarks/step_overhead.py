"""What students cost in a training step: the callback against a loop written by hand, side by side in one process.

    python benchmarks/step_overhead.py [--rounds 5] [--steps 80]

Four ways to train one character transformer on the same batches, one thread, in turn within each round:

- plain: a PyTorch loop without students
- by hand: the same loop with the same students and the same legibility term, written out with torch.nn.functional
- Lightning: a Trainer without callbacks
- callback: a Trainer with StudentLegibility

Times are the CPU time of the process, which a busy machine does not stretch. Printed are medians over steps and the
ratios, as the median over rounds with the range. The target is callback / by hand <= 1.05. "idle" is a Trainer with a
callback of strength 0 and no students.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from legibility.lightning_plugins import L1Sparsity, StudentLegibility
from legibility.students import ConvStudent, GRUStudent, Student, read_signature

WIDTH, DEPTH, CONTEXT, BATCH, CLASSES = 96, 3, 64, 16, 97
STUDENTS: list[Student] = [ConvStudent(width=28), GRUStudent(width=28)]


class Network(nn.Module):
    """A small causal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, time) to logits (batch, time, classes)."""
        hidden = self.blocks(self.embedding(tokens), mask=self.mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits


class Module(pl.LightningModule):
    """The network as a user would train it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Next-character cross-entropy."""
        return functional.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as everywhere here."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Fixed random batches: no variant pays for loading."""

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(0, CLASSES, (steps, BATCH, 1), generator=generator)
        # Each character is the one before plus 7: learnt at once, so that the students soon count.
        tokens = (first + 7 * torch.arange(CONTEXT + 1)) % CLASSES
        self.items = [(t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in tokens]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index]


def loop(steps: int, *, students: bool) -> list[float]:
    """Seconds of each step of a loop written by hand."""
    torch.manual_seed(0)
    net = Network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    batches = Batches(steps).items
    networks: list[nn.Module] = []
    if students:
        signature = read_signature(batches[0][0], net(batches[0][0]).detach(), vocabulary=CLASSES)
        networks = [student.build(signature) for student in STUDENTS]
        learner = torch.optim.Adam([p for network in networks for p in network.parameters()], lr=3e-3, fused=True)
    seconds = []
    for x, y in batches:
        start = time.process_time()
        logits = net(x)
        loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        if students:
            log_p = logits.log_softmax(-1).flatten(0, 1)
            fixed = log_p.detach()
            imitation, term = torch.zeros(()), torch.zeros(())
            for network in networks:
                log_q = network(x).output.log_softmax(-1).flatten(0, 1)
                imitation = imitation + functional.kl_div(log_q, fixed, reduction="batchmean", log_target=True)
                other = log_q.detach()
                forward = functional.kl_div(other, log_p, reduction="batchmean", log_target=True)
                reverse = functional.kl_div(log_p, other, reduction="batchmean", log_target=True)
                term = term + (forward + reverse) / 2
            loss = loss + 0.2 * term / len(networks)
            imitation.backward()
            learner.step()
            learner.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return seconds


class _StepTimes(pl.Callback):
    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.starts.append(time.process_time())


def trainer(steps: int, *callbacks: pl.Callback) -> list[float]:
    """Seconds of each step of a Lightning fit."""
    times = _StepTimes()
    fit = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[times, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    fit.fit(Module(), DataLoader(Batches(steps), batch_size=None))
    return [later - earlier for earlier, later in zip(times.starts, times.starts[1:], strict=False)]


def with_students(steps: int) -> list[float]:
    """Seconds of each step of a fit with the callback."""
    callback = StudentLegibility(0.2, students=STUDENTS, warmup=0.0, summary=False)
    seconds = trainer(steps, callback)
    assert callback.built is not None and all(callback.built.cohort.active.values()), "a student never counted"
    return seconds


VARIANTS: dict[str, Callable[[int], list[float]]] = {
    "plain": lambda steps: loop(steps, students=False),
    "by hand": lambda steps: loop(steps, students=True),
    "Lightning": trainer,
    "callback": with_students,
    "idle": lambda steps: trainer(steps, L1Sparsity(0.0)),
}
RATIOS = [
    ("by hand", "plain"),
    ("Lightning", "plain"),
    ("callback", "Lightning"),
    ("callback", "by hand"),
    ("idle", "Lightning"),
]


def rounds(count: int, steps: int) -> Iterator[dict[str, float]]:
    """The median step of each variant, round by round; the first half of each warms up."""
    for index in range(count):
        order = list(VARIANTS) if index % 2 == 0 else list(reversed(VARIANTS))
        yield {name: statistics.median(VARIANTS[name](steps)[steps // 2 :]) for name in order}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found = list(rounds(arguments.rounds, arguments.steps))
    size = sum(p.numel() for p in Network().parameters())
    print(
        f"{size:,} parameters, batch {BATCH} x {CONTEXT}, 1 thread, {arguments.rounds} rounds of {arguments.steps} steps"
    )
    for name in VARIANTS:
        print(f"{name:12s} {statistics.median(r[name] for r in found) * 1e3:8.2f} ms a step")
    for above, below in RATIOS:
        values = sorted(r[above] / r[below] for r in found)
        print(f"{above} / {below}: {statistics.median(values):.3f}  ({values[0]:.3f} to {values[-1]:.3f})")


if __name__ == "__main__":
    main()
