"""A program that trains with `ddp_spawn`, whose processes are copies: what comes back to the one that started them.

python spawned.py NAMESPACE OUT
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from tiny import loader, net

from legibility.lightning_plugins import InterpretabilityReport, StudentLegibility
from legibility.students import MLPStudent


class Classifier(pl.LightningModule):
    """At the top of a file, for it is pickled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = net()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The task's loss."""
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Calls the model."""
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(out: str) -> None:
    """Fits once; saves what this process is left with, then what resuming from the written checkpoint has."""
    folder = Path(out)

    def plugin() -> StudentLegibility:
        return StudentLegibility(0.7, students=[MLPStudent(width=8)], model="net", warmup=0.0, summary=False)

    def trainer(plugins: list[Any], **options: Any) -> Any:
        return pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, callbacks=plugins, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, **options,
        )  # fmt: skip

    legibility = plugin()
    report = InterpretabilityReport(
        folder=str(folder / "report"), queries=32, held_out=[MLPStudent(width=4)], passes=1, progress=False,
        random_init_control=False,
    )  # fmt: skip
    every = ModelCheckpoint(folder, filename="last")
    spawn = DDPStrategy(start_method="spawn", process_group_backend="gloo")
    module = Classifier()
    error = ""
    try:
        trainer([legibility, report, every], devices=2, strategy=spawn).fit(module, loader(), loader())
    except Exception as failure:  # noqa: BLE001
        error = str(failure)
    found: dict[str, Any] = {"error": error, "built": legibility.built is not None, "record": report.record is not None}
    try:
        legibility.save_students(folder / "students")
    except RuntimeError as failure:
        found["said"] = str(failure)
    again = plugin()
    own = trainer([again], devices=1, enable_checkpointing=False)
    own.fit_loop.max_epochs = 2
    own.fit(Classifier(), loader(), ckpt_path=str(folder / "last.ckpt"))
    assert again.built is not None
    found["resumed"] = list(again.built.cohort.networks)
    found["left"] = [name for name in ("training_step", "manual_backward") if name in vars(module)]
    torch.save(found, folder / "found.pt")
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
