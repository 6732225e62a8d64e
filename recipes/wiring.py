"""Placeholder."""

import math

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FORMULAS = {
    "independence": lambda a, b, c, d: torch.stack([(a + c) ** 3, b**2 + torch.sin(math.pi * d)], -1),
    "sharing": lambda a, b, c: torch.stack([a**2, a**2 + b**2, a**2 + b**2 + c**2], -1),
    "composition": lambda a, b, c, d: torch.sqrt((a - b) ** 2 + (c - d) ** 2)[:, None],
}
WIDTHS = {"independence": (4, 20, 20, 2), "sharing": (3, 20, 20, 3), "composition": (4, 20, 20, 20, 20, 1)}


class FormulaModel(LightningModule):
    """An MLP."""

    def __init__(self, task: str = "sharing", learning_rate: float = 2e-3, l1: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        widths = WIDTHS[task]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams["learning_rate"], weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class FormulaData(LightningDataModule):
    """100 points."""

    def __init__(self, task: str = "sharing", steps: int = 10000) -> None:
        super().__init__()
        self.task, self.steps = task, steps

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(torch.initial_seed())
        x = 2 * torch.rand(1100, WIDTHS[self.task][0], generator=generator) - 1
        self.points = TensorDataset(x, FORMULAS[self.task](*x.unbind(1)))

    def train_dataloader(self):
        whole = self.points[:100]
        return DataLoader([whole] * self.steps, batch_size=None, collate_fn=lambda b: b)

    def val_dataloader(self):
        return DataLoader([self.points[100:]], batch_size=None, collate_fn=lambda b: b)
