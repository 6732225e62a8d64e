"""What a sparsity step costs at 10M parameters: against the plain training step, and against torchao's PAT.

    python benchmarks/sparsity_steps.py [--steps 10] [--rounds 3]

One transformer (10.6M parameters, width 384, 6 layers), AdamW (fused), batches of 8 x 128 tokens, one thread; in each
round every callback trains for `steps` steps in a Trainer, and its own CPU time per step is held against the rest of the
step (medians). PAT (`pip install torchao`) wraps the optimizer: its time is that of its step without that of the optimizer inside.
Without torchao that line is missing. Targets: proximal <= 2 % of a plain step and <= 1.0 x PAT's, top-k <= 5 %.

Measured with torch 2.13.0 and torchao 0.18.0, --steps 6 --rounds 2, in one call on two quiet cores; the plain step took
820 ms (CPU time):

| step | ms | of a plain step | of PAT's step |
|---|---|---|---|
| proximal | 5.4 | 0.7 % | 0.20 x |
| reweighted | 14.4 | 1.8 % | 0.53 x |
| latent | 15.4 | 1.9 % | 0.57 x |
| top-k, 10 % | 24.7 | 3.0 % | 0.91 x |
| latent top-k, 10 % | 16.9 | 2.1 % | 0.62 x |
| group, rows | 4.3 | 0.5 % | 0.16 x |
| group, columns | 6.4 | 0.8 % | 0.24 x |
| group, heads | 2.5 | 0.3 % | 0.09 x |
| group, neurons | 3.8 | 0.5 % | 0.14 x |
| torchao PAT, lasso | 27.0 | 3.3 % | |

The share depends on the batch: weights cost the same whatever the number of tokens. 1024 tokens are few for 10M weights.
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from legibility.lightning_plugins import GroupSparsity, L1Sparsity, Schedule, TopKSparsity

WIDTH, DEPTH, CONTEXT, BATCH, CLASSES = 384, 6, 128, 8, 97


class Module(pl.LightningModule):
    """A transformer that reads random tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        """Predicts the token itself."""
        return functional.cross_entropy(
            self.head(self.blocks(self.embedding(batch[0]))).flatten(0, 1), batch[0].flatten()
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4, weight_decay=0.0, fused=True)


class StepTimes(pl.Callback):
    """CPU seconds of each whole training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """The step begins."""
        self._start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """The step is over."""
        self.seconds.append(time.process_time() - self._start)


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, with the CPU seconds of each call written down."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = function(*args, **kwargs)
        seconds.append(time.process_time() - start)
        return result

    return wrapper


def of_callback(callback: Any, steps: int) -> tuple[float, float]:
    """Seconds of the callback's step, and of the rest of the training step; medians."""
    times, own = StepTimes(), list[float]()
    callback._move = timed(callback._move, own)
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[times, callback], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(torch.randint(0, CLASSES, (BATCH, CONTEXT))), BATCH))
    mine = statistics.median(own[2:])
    return mine, statistics.median(times.seconds[2:]) - mine


def of_pat(steps: int) -> float | None:
    """Seconds that PAT's optimizer adds to the one that it wraps."""
    if importlib.util.find_spec("torchao") is None:
        return None
    from torchao.prototype.pat.optim import PruneOptimizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

    module = Module()
    matrices = [p for n, p in module.named_parameters() if p.ndim > 1 and "embedding" not in n]
    held = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if id(p) not in held]
    pruned = {"params": matrices, "prox_type": "ProxLasso", "group_type": "ElemGrouper", "reg_lambda": 1e-3}
    base = torch.optim.AdamW([{"params": rest}, pruned], lr=1e-4, weight_decay=0.0, fused=True)
    inner: list[float] = []
    base.step = timed(base.step, inner)  # type: ignore[method-assign]
    optimizer = PruneOptimizer(base)
    added: list[float] = []
    for parameter in module.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    for _ in range(steps):
        timed(optimizer.step, added)()
        added[-1] -= inner[-1]
    return statistics.median(added[2:])


def main() -> None:
    """Prints medians over rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    steps = options.steps
    halfway = Schedule([(0.0, 0.5), (1.0, 1.0)])  # top-k in the middle of its way, which takes 10,000 steps
    variants: dict[str, Any] = {
        "proximal": lambda: L1Sparsity(1.0, reweighted=False, heal=0.0, total_steps=1000),
        "reweighted": lambda: L1Sparsity(100.0, heal=0.0, total_steps=1000),
        "latent": lambda: L1Sparsity(4.0, reweighted=False, heal=0.0, total_steps=1000, latent=True),
        "top-k, 10 %": lambda: TopKSparsity(0.9, schedule=halfway, total_steps=10_000),
        "latent top-k, 10 %": lambda: TopKSparsity(0.9, schedule=halfway, total_steps=10_000, latent=True),
    }
    variants |= {
        f"group, {groups}": lambda groups=groups: GroupSparsity(1.0, groups, heal=0.0, total_steps=1000)
        for groups in ("rows", "columns", "heads", "neurons")
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    plain, pat = [], []
    for _ in range(options.rounds):
        for name, make in variants.items():
            own, rest = of_callback(make(), steps)
            found[name].append(own)
            plain.append(rest)
        if (seconds := of_pat(steps)) is not None:
            pat.append(seconds)
    step = statistics.median(plain)
    print(f"plain step: {1e3 * step:.0f} ms ({sum(p.numel() for p in Module().parameters()):,} parameters)")
    for name, seconds_of in [*found.items(), *([("torchao PAT, lasso", pat)] if pat else [])]:
        own = statistics.median(seconds_of)
        line = f"{name}: {1e3 * own:.1f} ms, {100 * own / step:.1f} % of a plain step"
        print(line + (f", {own / statistics.median(pat):.2f} x PAT" if pat and name != "torchao PAT, lasso" else ""))


if __name__ == "__main__":
    main()
