"""What a run costs in time and memory, and the versions it was made with."""

import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import torch

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


def versions() -> dict[str, str]:
    """Package -> installed version, of what a result depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
