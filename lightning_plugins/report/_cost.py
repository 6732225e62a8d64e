"""What a run costs in time and memory, and the versions it was made with."""

import resource
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from legibility.lightning_plugins.foundation._sizes import outermost, whole_sizes
from legibility.tradeoff import CostEntry

_PACKAGES = ("legibility", "torch", "pytorch-lightning", "lightning", "torchmetrics")


class Clock:
    """Wall time since it was made, and of the steps between start and stop."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._step: float | None = None
        self._sum = 0.0
        self._count = 0

    def since_start(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start

    def start_step(self) -> None:
        """A step begins."""
        self._step = time.perf_counter()

    def stop_step(self) -> None:
        """It ends."""
        if self._step is not None:
            self._sum += time.perf_counter() - self._step
            self._count += 1

    @property
    def seconds_per_step(self) -> float | None:
        """Mean seconds of a step; None before the first."""
        return self._sum / self._count if self._count else None


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of a CUDA device what torch allocated on it, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cost_entry(
    clock: Clock,
    model: nn.Module,
    device: torch.device,
    terms: Mapping[str, float | None],
    report_seconds: float,
    *,
    fit_seconds: float | None,
    steps: int | None,
) -> CostEntry:
    """The run record's costs.

    Args:
        clock: Of the fit.
        model: What was trained: its parameters are counted.
        device: Where it was.
        terms: Seconds per step of each callback.
        report_seconds: What measuring took.
        fit_seconds: Of the fit; None if there was none, or it belongs to another record.
        steps: Optimizer steps of it.
    """
    return CostEntry(
        fit_seconds=fit_seconds,
        steps=steps,
        step_seconds=clock.seconds_per_step if steps is not None else None,
        report_seconds=report_seconds,
        report_share=report_seconds / fit_seconds if fit_seconds else None,
        peak_memory_bytes=peak_memory(device),
        terms=dict(terms) if steps is not None else {},
        parameters=sum(whole_sizes(outermost(model)).values()),
    )


def versions() -> dict[str, str]:
    """Package -> installed version, of what a result depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
