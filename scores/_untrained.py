"""The same architecture with freshly drawn weights: what a score is worth that needs no training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from legibility.scores._shards import reshard, spread_like, whole, whole_weights


@contextmanager
def untrained(primary: nn.Module, seed: int = 0) -> Iterator[int]:
    """While inside, the module has freshly drawn weights; afterwards its own, bit for bit.

    Each submodule with a ``reset_parameters`` draws by it; a parameter that belongs to none is drawn from a normal
    distribution of its own RMS. Where weights are spread over ranks (FSDP2), all ranks must enter together.

    Args:
        primary: The module.
        seed: Of the draw; the global random stream is left alone.

    Yields:
        The number of parameter tensors that no ``reset_parameters`` covers.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = layer.weight.detach().clone()
        >>> with untrained(layer) as uncovered:
        ...     print(uncovered, torch.equal(layer.weight, before))
        0 False
        >>> torch.equal(layer.weight, before)
        True
    """
    reshard(primary)
    kept = [(tensor, tensor.detach().clone()) for tensor in [*primary.parameters(), *primary.buffers()]]
    try:
        devices = sorted({p.device.index for p in primary.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            covered: set[int] = set()
            for module in primary.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    covered |= {id(parameter) for parameter in module.parameters()}
                    with whole_weights(module):
                        reset()
            left = [parameter for parameter in primary.parameters() if id(parameter) not in covered]
            for parameter in left:
                full = whole(parameter.detach())
                drawn = torch.randn(full.shape).to(full) * full.float().square().mean().sqrt().to(full)
                parameter.copy_(spread_like(drawn, parameter))
        yield len(left)
    finally:
        reshard(primary)
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
