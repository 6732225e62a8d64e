"""A program that two ranks run with DDP: what each prints and what each gives to its logger, to a file.

python two_ranks_logging.py NAMESPACE OUT
"""

import contextlib
import importlib
import io
import os
import sys
from typing import Any

import torch
from launch import place
from tiny import loader, make_module

from legibility.lightning_plugins import StudentLegibility
from legibility.students import MLPStudent


def main(namespace: str, out: str) -> None:
    """Trains 8 batches and saves what this rank printed and logged."""
    torch.set_num_threads(1)
    pl = importlib.import_module(namespace)
    loggers = importlib.import_module(f"{namespace}.loggers")
    world, rank = place()
    logger = loggers.CSVLogger(out)
    trainer: Any = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=importlib.import_module(f"{namespace}.strategies").DDPStrategy(process_group_backend="gloo"),
        callbacks=[StudentLegibility(0.7, students=[MLPStudent(width=8)])],
        logger=logger,
        max_epochs=1,
        log_every_n_steps=2,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        trainer.fit(make_module(pl), loader())
    torch.save(
        {
            "tables": printed.getvalue().count("FLOPs of the primary's"),
            "keys": sorted(trainer.callback_metrics),
        },
        f"{out}-{world}-{rank}.pt",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort about one orderly exit in ten
