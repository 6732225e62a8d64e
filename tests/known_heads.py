"""Models whose use of concepts is known beforehand."""

from collections.abc import Callable

import torch
from torch import Tensor


def abc_head(positions: int = 2000, noise: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Activations Q[A, B, C, noise] of three signs, their concepts, and a head with the logit 3A + 0B + .6C."""
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.randint(2, (positions, 3), generator=generator)
    units = 3 + noise
    rotation = torch.linalg.qr(torch.randn(units, units, generator=generator))[0]
    hidden = torch.cat([2.0 * concepts - 1, torch.randn(positions, noise, generator=generator)], 1) @ rotation.T
    direction = rotation @ torch.tensor([3.0, 0.0, 0.6] + [0.0] * noise)

    def rest(activations: Tensor) -> Tensor:
        logit = activations @ direction
        return torch.stack([torch.zeros_like(logit), logit], -1)

    return hidden, concepts, rest
