"""Random numbers that nobody outside notices."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def kept_randomness(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the generators of the CPU and of `device` go on outside as if nothing had been."""
    if device.type in ("cpu", "meta"):
        with torch.random.fork_rng([]):
            yield
    else:
        with torch.random.fork_rng([device], device_type=device.type):
            yield


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """As `kept_randomness`, with the CPU's random numbers from `seed`."""
    with kept_randomness(device):
        # Not torch.manual_seed: it would seed every accelerator, also those that are not kept.
        torch.default_generator.manual_seed(seed)
        yield
