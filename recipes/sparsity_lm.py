"""Task loss against exact zeros: which way of making a character transformer sparse is on the front?

The text and the transformer of `stdlib_lm` (width 64, .17M parameters), 700 steps (350 batches, twice) from scratch;
each method at four strengths. It is underfit, so nothing here regularises: zeros cost, and the question is how little.

Measured so far, preset full, **one seed** (0), held-out files; plain: 2.02 nats per character.

| method | loss (exact zeros) at four strengths |
|---|---|
| l1-in-loss | 2.02, 2.03, 2.34, 2.45 (no exact zero at any) |
| proximal | 2.11 (.01), 2.26 (.08), 2.40 (.39), 2.60 (.78) |
| reweighted-heal | 2.06 (.19), 2.16 (.50), 2.28 (.77), 2.40 (.91) |
| top-k | 2.11 (.50), 2.17 (.70), 2.57 (.90), 3.78 (.97) |
| pruning and fine-tuning | 2.07 (.46), 2.12 (.65), 2.30 (.83), 2.69 (.89) |

So up to about 80 % zeros ModelPruning with fine-tuning is on the front, and reweighted-heal at 90 %; plain proximal steps are
dominated. One seed is no interval, rates were not tuned for each method, and group was not run.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from legibility.recipes import Arm, Preset, Recipe
from legibility.recipes.stdlib_lm import CharTransformer


class SparseChars(CharTransformer):
    """The transformer of `stdlib_lm` under a schedule for 700 steps, with L1 in the loss if asked for.

    Args:
        lr: The learning rate at its highest.
        weight_decay: Decoupled weight decay of matrices.
        l1: Strength of an L1 penalty on the matrices of the blocks and the head inside the loss.

    Example:
        >>> SparseChars()(torch.zeros(5, 64, dtype=torch.long)).shape
        torch.Size([5, 64, 128])
    """

    def __init__(self, lr: float = 3e-3, weight_decay: float = 0.1, l1: float = 0.0) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay)
        self.l1 = l1

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, nats per character."""
        loss = nn.functional.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())
        if self.l1 > 0:
            matrices = [p for n, p in self.named_parameters() if p.ndim > 1 and n.startswith(("blocks", "head"))]
            loss = loss + self.l1 * sum(p.abs().sum() for p in matrices)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; the rate rises over 50 steps, holds, and falls linearly to a tenth over the last half."""
        (optimizer,), _ = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        rate = functools.partial(_rate, steps=int(steps))
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"}]


def _rate(step: int, steps: int) -> float:
    return min((step + 1) / 50, 1.0) * min(max(1.0 - 0.9 * (2 * step / steps - 1), 0.1), 1.0)


def _arm(
    callback: str = "", settings: object = None, path: str = "legibility.lightning_plugins.", **model: float
) -> Arm:
    callbacks = [{"class_path": path + callback, "init_args": settings}] if callback else []
    return Arm({"model": {"init_args": model}}, callbacks)


_PRUNE = "legibility.recipes.sparsity_digits."
_SHARES = (0.5, 0.7, 0.9, 0.97)

RECIPE = Recipe(
    name="sparsity_lm",
    question="Characters of Python's own library: task loss against exact zeros. Which way is on the front?",
    arms={
        "plain": _arm(),
        "no-decay": _arm(weight_decay=0.0),
        **{f"l1-in-loss-{s:g}": _arm(l1=s, weight_decay=0.0) for s in (1e-6, 1e-5, 1e-4, 3e-4)},
        **{
            f"proximal-{s}": _arm("L1Sparsity", {"strength": s, "reweighted": False, "heal": 0.0}, weight_decay=0.0)
            for s in (2, 4, 8, 16)
        },
        **{
            f"reweighted-heal-{s}": _arm("L1Sparsity", {"strength": s, "heal": 0.35}, weight_decay=0.0)
            for s in (5, 10, 20, 40)
        },
        **{
            f"group-{s:g}": _arm("GroupSparsity", {"strength": s, "groups": "rows"}, weight_decay=0.0)
            for s in (1, 2, 4, 8)
        },
        **{f"top-k-{1 - s:.2f}": _arm("TopKSparsity", {"sparsity": s}, weight_decay=0.0) for s in _SHARES},
        **{f"pruning-{1 - s:.2f}": _arm("PruneOnce", {"amount": s, "epoch": 0}, _PRUNE) for s in _SHARES},
    },
    presets={"quick": Preset(seeds=(0,), minutes=4), "full": Preset(seeds=(0, 1, 2, 3, 4), minutes=20)},
)
