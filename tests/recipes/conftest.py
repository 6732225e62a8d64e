"""A recipe that trains in a blink, in a folder of its own, with a report of its own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULE = '''
"""A toy recipe."""
import os
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from legibility.recipes import Arm, Base, Control, Preset, Recipe
from legibility.tradeoff import CostEntry, RunRecord, TaskEntry, save_record


class Model(LightningModule):
    def __init__(self, width: int = 3, decay: float = 0.0, fail: bool = False) -> None:
        super().__init__()
        self.decay, self.fail = decay, fail
        self.net = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        if self.fail:
            raise FloatingPointError("this arm always fails")
        if os.environ.get("TINY_DIE") == "yes":
            os._exit(9)
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.last = float(loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01, weight_decay=self.decay)


class Data(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(8, 2)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)


class InterpretabilityReport(Callback):
    def __init__(self, arm: str = "run", seed: int = 0, recipe: str | None = None, folder: str | None = None) -> None:
        self.arm, self.seed, self.recipe, self.folder = arm, seed, recipe, folder

    def write(self, loss, settings):
        record = RunRecord(
            self.arm, self.seed, self.recipe, {}, [], TaskEntry("mse", loss, None, None, 8, "training"), [],
            CostEntry(None, None, None, None, None, {}, 1), {}, settings=settings, created="2026-01-01T00:00:00",
        )
        save_record(record, Path(self.folder) / "record.json")

    def on_fit_end(self, trainer, pl_module):
        group = trainer.optimizers[0].param_groups[0]
        self.write(pl_module.last, {"steps": trainer.global_step, "decay": group["weight_decay"],
                                    "threads": torch.get_num_threads()})

    def measure(self, trainer, pl_module, datamodule=None, *, control=None):
        total = sum(float(p.detach().double().sum()) for p in pl_module.parameters())
        self.write(total, {"control": type(control).__name__, "of": control.of})


class Other(Callback):
    def __init__(self, strength: float) -> None:
        self.strength = strength

    def on_train_start(self, trainer, pl_module):
        print("Other says", self.strength)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if os.environ.get("TINY_DIE") == "other" and trainer.global_step == 2:
            os._exit(9)


RECIPE = Recipe(
    name="toy",
    question="Does it run?",
    arms={
        "plain": Arm(),
        "decay": Arm(config={"model": {"init_args": {"decay": 0.5}}}),
        "other": Arm(callbacks=[{"class_path": "toy.Other", "init_args": {"strength": 0.25}}]),
    },
    presets={
        "quick": Preset(seeds=(0, 1), minutes=0.1),
        "long": Preset(seeds=(0,), config={"trainer": {"max_steps": 8}}),
    },
)
'''

YAML = """
model:
  class_path: toy.Model
data:
  class_path: toy.Data
trainer:
  max_steps: 4
  accelerator: cpu
  devices: 1
  callbacks:
    - class_path: toy.InterpretabilityReport
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The recipe's path; the current folder is its folder, and nothing of it stays imported."""
    (tmp_path / "toy.py").write_text(MODULE)
    (tmp_path / "toy.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(os.environ)
    yield tmp_path / "toy.py"
    for name in ("toy", "my_tiny"):
        sys.modules.pop(name, None)
    for name in set(os.environ) - set(before):
        del os.environ[name]
