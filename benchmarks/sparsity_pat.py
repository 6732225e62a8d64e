"""torchao's proximal optimizer (PAT) on the digits of `sparsity_digits`: the strongest rival for the step itself.

    pip install torchao
    legibility sweep benchmarks/sparsity_pat.py --preset full --out runs
    legibility compare runs

ProxLasso on all weight matrices through latent weights, the optimizer and schedule of `digits`; zeros are frozen for the
last 35 % of the steps, as in `reweighted-heal`.

6 seeds, torchao 0.18, loss (exact zeros): .092 (.12) at .01, .091 (.25) at .03, 1.39 (.27) at .1, 2.31 (.27) at .3; plain .123.
So these settings reach few zeros before training breaks down. Nothing but the strength was tuned: that is no verdict.
"""

from typing import Any

import torch

from legibility.recipes import Arm, Preset, Recipe
from legibility.recipes.digits import DigitsModel


class PatModel(DigitsModel):
    """The digits' MLP under PAT.

    Args:
        learning_rate: At the start.
        reg_lambda: Of PAT's proximal step.
    """

    def __init__(self, learning_rate: float = 5e-3, reg_lambda: float = 1e-4) -> None:
        super().__init__(learning_rate)
        self.save_hyperparameters({"learning_rate": learning_rate, "reg_lambda": reg_lambda, "l1": 0.0})

    def configure_optimizers(self) -> Any:
        """AdamW inside of PAT's optimizer, half a cosine."""
        from torchao.prototype.pat.optim import PruneOptimizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

        steps = int(self.trainer.estimated_stepping_batches)
        matrices = {"params": [p for p in self.parameters() if p.ndim > 1]}
        pruned = {"prox_type": "ProxLasso", "group_type": "ElemGrouper", "reg_lambda": self.hparams["reg_lambda"]}
        others = {"params": [p for p in self.parameters() if p.ndim < 2]}
        base = torch.optim.AdamW([matrices | pruned, others], self.hparams["learning_rate"], weight_decay=0.0)
        optimizer = PruneOptimizer(base, healing_start_step=round(0.65 * steps))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _arm(strength: float, rate: float) -> Arm:
    settings = {"learning_rate": rate, "reg_lambda": strength}
    return Arm({"model": {"class_path": "sparsity_pat.PatModel", "init_args": settings}})


RECIPE = Recipe(
    name="sparsity_pat",
    question="torchao's proximal optimizer on the digits: task loss against exact zeros.",
    arms={
        "plain": Arm({"model": {"class_path": "sparsity_pat.PatModel", "init_args": {"reg_lambda": 0.0}}}),
        **{f"pat-{s:g}": _arm(s, 5e-3) for s in (0.01, 0.03, 0.1, 0.3)},
    },
    presets={"full": Preset(seeds=(0, 1, 2, 3, 4, 5, 6, 7), minutes=4)},
)
