"""torchao's proximal optimizer (PAT) on the digits of `sparsity_digits`: the strongest rival for the step itself.

    pip install torchao
    legibility sweep benchmarks/sparsity_pat.py --preset full --out runs
    legibility compare runs

ProxLasso on all weight matrices through latent weights, the optimizer and schedule of `digits`; zeros are frozen for the
last 35 % of the steps, as in `reweighted-heal`. Its step must get gradients that are ready: given a closure, as
Lightning does, it evaluates that at the latent weights, so the network is trained dense and cut at the end.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from legibility.recipes import Arm, Preset, Recipe
from legibility.recipes.digits import DigitsModel


class PatStep:
    """For a LightningModule: forward and backward at the sparse weights, then PAT's step without a closure."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """The gradients, then the step."""
        assert optimizer_closure is not None
        optimizer_closure()
        module: Any = self
        if module.trainer.gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), module.trainer.gradient_clip_val)
        optimizer.step()


def pat(module: torch.nn.Module, reg_lambda: float, rate: float, steps: int, **settings: Any) -> Any:
    """AdamW inside of PAT's optimizer: ProxLasso on all matrices but embeddings, healing for the last 35 % of the steps."""
    from torchao.prototype.pat.optim import PruneOptimizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

    embeddings = {id(p) for m in module.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    taken = {id(p) for p in module.parameters() if p.ndim > 1} - embeddings
    pruned = {"prox_type": "ProxLasso", "group_type": "ElemGrouper", "reg_lambda": reg_lambda}
    matrices: dict[str, Any] = {"params": [p for p in module.parameters() if id(p) in taken], **pruned}
    others: dict[str, Any] = {"params": [p for p in module.parameters() if id(p) not in taken]}
    base = torch.optim.AdamW([matrices, others], rate, weight_decay=0.0, **settings)
    return PruneOptimizer(base, healing_start_step=round(0.65 * steps))


def recipe(model: str, of: str, arms: Mapping[float, Mapping[str, float]], seeds: int, minutes: int) -> Recipe:
    """Arms of one model, `module.Class`: PAT's strength -> further arguments."""
    named = {
        f"pat-{s:g}": Arm({"model": {"class_path": model, "init_args": {"reg_lambda": s, **more}}})
        for s, more in arms.items()
    }
    return Recipe(
        name=model.partition(".")[0],
        question=f"torchao's proximal optimizer on {of}: task loss against exact zeros.",
        arms=named,
        baseline=next(iter(named)),
        presets={"full": Preset(seeds=tuple(range(seeds)), minutes=minutes)},
    )


class PatModel(PatStep, DigitsModel):
    """The digits' MLP under PAT.

    Args:
        learning_rate: At the start.
        reg_lambda: Of PAT's proximal step.
    """

    def __init__(self, learning_rate: float = 1e-2, reg_lambda: float = 0.1) -> None:
        super().__init__(learning_rate)
        self.save_hyperparameters({"learning_rate": learning_rate, "reg_lambda": reg_lambda, "l1": 0.0})

    def configure_optimizers(self) -> Any:
        """PAT under half a cosine."""
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer = pat(self, self.hparams["reg_lambda"], self.hparams["learning_rate"], steps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


RECIPE = recipe("sparsity_pat.PatModel", "the digits", {s: {} for s in (0.02, 0.05, 0.1, 0.2)}, seeds=8, minutes=4)
