"""A program that two ranks run: a fit with everything of ours and a WandbLogger.

python wandb_ranks.py NAMESPACE OUT
"""

import importlib
import sys
from typing import Any

import torch
from launch import part_of_each_batch, place
from tiny import make_module
from torch.utils.data import DataLoader

from legibility.lightning_plugins import InterpretabilityReport, StudentLegibility
from legibility.students import LinearStudent, MLPStudent


def main(namespace: str, out: str) -> None:
    """Trains 8 batches; W&B's files go to the folder OUT, as the environment says."""
    torch.set_num_threads(1)
    pl = importlib.import_module(namespace)
    world, rank = place()
    rows: Any
    rows, share = part_of_each_batch(8)
    report = InterpretabilityReport(
        "mine", 3, folder=out, queries=32, passes=1, progress=False, held_out=[LinearStudent()]
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp",
        max_epochs=1,
        log_every_n_steps=2,
        logger=importlib.import_module(f"{namespace}.loggers").WandbLogger(project="ours", save_dir=out),
        callbacks=[StudentLegibility(0.1, students=[MLPStudent(width=8, depth=1)], summary=False), report],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(make_module(pl), DataLoader(rows, batch_size=share), DataLoader(rows, batch_size=share))
    trainer.logger.experiment.finish()
    torch.save({"records": int(report.record is not None)}, f"{out}-{world}-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
