"""Running somebody's model once more without leaving a trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from legibility.lightning_plugins.foundation._sizes import outermost
from legibility.scores.flat_weights import wraps_flat

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, buffers and random streams are as before afterwards.

    Args:
        module: The module that will be run inside.

    Example:
        >>> dropout = nn.Dropout(0.5)
        >>> with untouched(dropout):
        ...     dropout(torch.ones(3))
        tensor([1., 1., 1.])
        >>> dropout.training
        True
    """
    modes = {m: m.training for m in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    try:
        # Not `module.eval()`: users override it, for example to keep a frozen part as it is.
        for m in modes:
            m.training = False
        with torch.random.fork_rng(devices=sorted(devices)), torch.no_grad():
            yield
    finally:
        for m, training in modes.items():
            m.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                # Written only when it moved: a graph that is waiting for its backward may have saved it.
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def on_device(pl_module: "LightningModule", device: torch.device) -> Iterator[None]:
    """The module on a device: at the end of a fit Lightning has moved it to the CPU already.

    One that FSDP1 has wrapped stays: its pieces are where they are computed with, and can't be moved.
    """
    if any(wraps_flat(module) for module in outermost(pl_module).modules()):
        yield
        return
    before = pl_module.device
    pl_module.to(device)
    try:
        yield
    finally:
        pl_module.to(before)
