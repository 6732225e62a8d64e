"""torchao's proximal optimizer (PAT) on the transformer of `sparsity_lm`; see `sparsity_pat`.

pip install torchao
legibility sweep benchmarks/sparsity_pat_lm.py --preset full --out runs
"""

import functools
from typing import Any

import torch
from sparsity_pat import PatStep, pat, recipe

from legibility.recipes.sparsity_lm import SparseChars, learning_rate


class PatChars(PatStep, SparseChars):
    """The transformer under PAT.

    Args:
        lr: The learning rate at its highest.
        reg_lambda: Of PAT's proximal step.
    """

    def __init__(self, lr: float = 4.8e-2, reg_lambda: float = 0.1) -> None:
        super().__init__(lr, weight_decay=0.0)
        self.reg_lambda = reg_lambda

    def configure_optimizers(self) -> Any:
        """PAT under the schedule of `sparsity_lm`."""
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer = pat(self, self.reg_lambda, self.hparams["lr"], steps, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(learning_rate, steps=steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


RECIPE = recipe(
    "sparsity_pat_lm.PatChars",
    "characters of Python's own library",
    {0.03: {"lr": 2.4e-2}, 0.06: {"lr": 2.4e-2}, 0.1: {}, 0.2: {}},
    seeds=5,
    minutes=10,
)
