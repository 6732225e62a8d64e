"""Task loss against exact zeros: which way of making a character transformer sparse is on the front?

The text of `stdlib_lm` and its transformer (width 64, two blocks, .12M parameters), 350 steps of 8 windows from
scratch: underfit, so nothing regularises much. Each method at four strengths. PAT is torchao's proximal optimizer
(`benchmarks/sparsity_pat_lm.py`), "latent" is L1Sparsity(latent=True), which thresholds a latent weight as PAT does,
"latent-top-k" TopKSparsity(latent=True), where the wanted share of zeros gives the threshold.

Expected, preset full (5 seeds, 0 to 4), held-out files, nats per character, mean +- standard deviation (see
docs/sparsity-lm.png, drawn by `benchmarks/sparsity_fronts.py --minus plain`). plain: 2.326 +- .030; L2 + dropout:
2.317 +- .028.

| method | loss (exact zeros) at four strengths |
|---|---|
| l1-in-loss | 2.324 +- .031, 2.320 +- .025, 2.335 +- .015, 2.396 +- .020 (no exact zero at any) |
| proximal | 2.364 +- .011 (.38), 2.391 +- .018 (.80), 2.473 +- .040 (.92), 2.532 +- .057 (.96) |
| reweighted-heal | 2.348 +- .011 (.37), 2.327 +- .015 (.64), 2.356 +- .024 (.82), 2.447 +- .052 (.94) |
| latent | 2.333 +- .014 (.53), 2.346 +- .016 (.77), 2.335 +- .012 (.90), 2.400 +- .020 (.98) |
| group, rows | 2.373 +- .017 (.00), 2.373 +- .018 (.01), 2.433 +- .024 (.19), 2.599 +- .028 (.94) |
| top-k | 2.352 +- .019 (.50), 2.360 +- .022 (.70), 2.405 +- .011 (.90), 2.616 +- .081 (.97) |
| latent-top-k | 2.303 +- .017 (.50), 2.298 +- .020 (.70), 2.331 +- .011 (.90), 2.375 +- .006 (.97) |
| pruning and fine-tuning | 2.319 +- .025 (.50), 2.326 +- .024 (.70), 2.399 +- .020 (.90), 2.577 +- .093 (.97) |
| PAT | 2.322 +- .023 (.43), 2.310 +- .018 (.68), 2.335 +- .018 (.91), 2.395 +- .024 (.98) |

Paired by seed at equal zeros, 95 % t intervals (the same program with --against latent-top-k): latent top-k is on or
outside of every rival's front, and nine weights in ten go at the loss of the plain model. Above it are PAT by .016 +-
.022 at 50 % zeros, .014 +- .017 at 70 %, .009 +- .011 at 80 %, .004 +- .014 at 90 % and .008 +- .021 at 95 %, so these
two can't be told apart; pruning by .016 +- .048, .028 +- .047, .048 +- .035, .068 +- .023 and .164 +- .087; latent L1,
which is PAT at one rate, by .006 +- .005 at 90 %. The others, at one rate each, are *not* on this front
(reweighted-heal: .035 +- .024 at 50 %, .086 +- .042 at 90 %; top-k: .049 +- .039 and .073 +- .023): a weight that they
set to zero starts again from zero, so what it learns is lost at each step. Whole rows are far off it. L1 in the loss
makes no zeros.

How it was tuned: seed 100, validated on windows of the training files, so the held-out files chose nothing; one seed,
so choices within .01 are arbitrary. One rate for all strengths of a method, chosen near 90 % zeros: .006 to .048 for
top-k and pruning, .012 to .096 for PAT, .024 to .048 for latent top-k, .012 to .048 for proximal and reweighted, .012
and .048 for group, .006 to .024 for plain, .012 and .024 for L1 in the loss. L2 + dropout: decay .1, .3, 1 and dropout
0 and .05 (best: .1, none). Top-k: per tensor or over all, with and without healing. Reweighted: healing .15 and .35,
penalties that follow the rate or not, three of latent weights (2.305 at 90 %). Latent top-k, 18 trials: per tensor or
over all, healing, eight schedules (to the end: 2.329, to 60 % of the steps before healing: 2.283), thresholds between
soft and hard (2.305); hard ones were no better than top-k without latent weights (four trials, best: 2.365). PAT, 19
trials: strengths .005 to .2, with and without clipping, healing from 50 to 90 % of the steps on, warm-up of 0 to 20 %
(best as it is: 2.287). Pruning, 21 trials: 13 plans of 5 to 25 steps (2.365); a rate of .034 (2.348) was no better over
five seeds: 2.322, 2.327, 2.395, 2.656. Then rates of .012 to .048 at 50 and 70 % zeros for these three, on seeds 100
and 101: .024 was best for each (with .048, five seeds: latent top-k 2.333 and 2.323; PAT 2.338 at 53 % and 2.353 at 77
%).
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
_SOON = {"class_path": _OURS + "Schedule", "init_args": {"knots": [[0.05, 0.0], [0.6, 1.0]], "curve": "cubic"}}
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
            f"latent-top-k-{1 - s:.2f}": _arm(
                _OURS + "TopKSparsity",
                {"sparsity": s, **_TOP_K, "schedule": _SOON, "latent": True},
                lr=_FAST if s > 0.7 else _FAST / 2,
            )
            for s in _SHARES
        },
        **{
            f"pruning-{1 - s:.2f}": _arm(_PRUNE, {"amount": s, "start": 2, "end": 12}, _PRUNING, lr=2.4e-2)
            for s in _SHARES
        },
    },
    presets={"quick": Preset(seeds=(0,), minutes=5), "full": Preset(seeds=(0, 1, 2, 3, 4), minutes=29)},
)
