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
    """The transformer of `stdlib_lm` under a schedule for 350 steps, with two blocks, with L1 in the loss if asked for.

    Args:
        lr: The learning rate at its highest.
        weight_decay: Decoupled weight decay of matrices.
        dropout: After attention and within and after the feed-forward layers.
        l1: Strength of an L1 penalty on the matrices of the blocks and the head inside the loss.

    Example:
        >>> SparseChars()(torch.zeros(5, 64, dtype=torch.long)).shape
        torch.Size([5, 64, 128])
    """

    def __init__(self, lr: float = 1.2e-2, weight_decay: float = 0.0, dropout: float = 0.0, l1: float = 0.0) -> None:
        super().__init__(depth=2, lr=lr, weight_decay=weight_decay)
        self.l1 = l1
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

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
        rate = functools.partial(learning_rate, steps=int(steps))
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"}]


def learning_rate(step: int, steps: int) -> float:
    """The share of the highest rate at a step (from 0): up for 50 steps, held, linearly to a tenth over the last half."""
    return min((step + 1) / 50, 1.0) * min(max(1.0 - 0.9 * (2 * step / steps - 1), 0.1), 1.0)


def _arm(callback: str = "", settings: object = None, trainer: object = None, **model: float) -> Arm:
    callbacks = [{"class_path": callback, "init_args": settings}] if callback else []
    return Arm({"model": {"init_args": model}} | ({"trainer": trainer} if trainer else {}), callbacks)


_OURS = "legibility.lightning_plugins."
_WARM = {"class_path": _OURS + "Schedule", "init_args": {"knots": [[0.0, 0.0], [0.3, 1.0]]}}
_PENALTY = {"heal": 0.35, "schedule": _WARM, "follow_rate": False}
_CUBIC = {"class_path": _OURS + "Schedule", "init_args": {"knots": [[0.1, 0.0], [1.0, 1.0]], "curve": "cubic"}}
_TOP_K = {"scope": "global", "heal": 0.35, "schedule": _CUBIC}
# ModelPruning acts at the ends of epochs: twenty of them, of which the third to the thirteenth prune.
_PRUNING = {"limit_train_batches": 18, "val_check_interval": 1.0, "check_val_every_n_epoch": 20}
_PRUNE = "legibility.recipes.sparsity_digits.Prune"
_FAST = 4.8e-2
# The thresholds follow the learning rate, which rises over the first 50 of the 227 steps before healing.
_RISING = {"class_path": _OURS + "Schedule", "init_args": {"knots": [[0.0, 0.0], [0.22, 1.0]]}}
_LATENT = {"heal": 0.35, "schedule": _RISING, "reweighted": False, "latent": True}
_SHARES = (0.5, 0.7, 0.9, 0.97)


def _even(strength: float) -> dict[str, float]:
    """One threshold for all matrices, whatever their initial RMS (.088, .036, elsewhere .072)."""
    return {"*.in_proj_weight": 0.82 * strength, "*.linear2.weight": 2 * strength, "*": strength}


def _l1(strength: float, **settings: Any) -> Arm:
    return _arm(_OURS + "L1Sparsity", {"strength": strength, **_PENALTY, **settings}, lr=_FAST)


RECIPE = Recipe(
    name="sparsity_lm",
    question="Characters of Python's own library: task loss against exact zeros. Which way is on the front?",
    arms={
        "plain": _arm(),
        "l2-dropout": _arm(weight_decay=0.1, dropout=0.0),
        **{f"l1-in-loss-{s:g}": _arm(l1=s) for s in (1e-6, 1e-5, 3e-5, 1e-4)},
        **{f"proximal-{s}": _l1(s, reweighted=False) for s in (16, 32, 48, 64)},
        **{f"reweighted-heal-{s}": _l1(s) for s in (80, 160, 320, 640)},
        **{
            f"latent-{s}": _arm(_OURS + "L1Sparsity", {"strength": _even(s), **_LATENT}, lr=_FAST)
            for s in (4, 8, 13, 27)
        },
        **{
            f"group-{s}": _arm(_OURS + "GroupSparsity", {"strength": s, "groups": "rows", **_PENALTY}, lr=_FAST)
            for s in (4, 8, 16, 32)
        },
        **{f"top-k-{1 - s:.2f}": _arm(_OURS + "TopKSparsity", {"sparsity": s, **_TOP_K}, lr=_FAST) for s in _SHARES},
        **{
            f"pruning-{1 - s:.2f}": _arm(_PRUNE, {"amount": s, "start": 2, "end": 12}, _PRUNING, lr=2.4e-2)
            for s in _SHARES
        },
    },
    presets={"quick": Preset(seeds=(0,), minutes=5), "full": Preset(seeds=(0, 1, 2, 3, 4), minutes=25)},
)
