"""Tiny programs that tests train."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def net() -> nn.Sequential:
    """10 -> 64 -> 64 -> 5 classes."""
    return nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5))


def loader(rows: int = 64, batch_size: int = 8, shuffle: bool = False) -> DataLoader[Any]:
    """Rows whose class is the largest of five noisy features."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 10, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :5].argmax(1)), batch_size, shuffle=shuffle)


def make_module(namespace: Any, **options: Any) -> Any:
    """A classifier with a model at ``net``; records the gradients that the optimizer sees in ``seen``."""

    class Classifier(namespace.LightningModule):  # type: ignore[misc]
        def __init__(self, returns: str = "tensor", optimizer: str = "sgd", weight_decay: float = 0.0) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = net()
            self.returns = returns
            self.optimizer_name = optimizer
            self.weight_decay = weight_decay
            self.seen: list[list[Tensor]] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.log("task", loss)
            return {"loss": loss, "other": 1} if self.returns == "dict" else loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("val_loss", nn.functional.cross_entropy(self.net(x), y))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            if self.optimizer_name == "adamw":
                return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=self.weight_decay)
            return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=self.weight_decay)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.seen.append([p.grad.detach().clone() for p in self.net.parameters() if p.grad is not None])

    return Classifier(**options)


def validation_data(namespace: Any, rows: int) -> Any:
    """A data module of so many validation rows, for measuring without a fit."""

    class Data(namespace.LightningDataModule):  # type: ignore[misc]
        def val_dataloader(self) -> Any:
            return loader(rows)

    return Data()


def weights_of(module: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])
