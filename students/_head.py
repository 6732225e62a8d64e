"""The linear head that turns a student's hidden state into the primary's units."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """Linear head in standardised units: y = mean + std * (W h + b), with fixed `mean` and `std` per output.

    The scale is folded into the small matrix, so it costs nothing per position.

    Args:
        width: Size of h.
        units: Size of y.
        zero: Start with W = 0 and b = 0, so that a fresh head says `mean` exactly.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, units: int, *, zero: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, units)
        if zero:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(units))
        self.register_buffer("std", torch.ones(units))

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Fix the mean and standard deviation of each output, (units,)."""
        # New tensors: a prediction that waits for its backward still holds the old ones.
        self.mean, self.std = mean.detach().clone(), std.detach().clone()

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., units)."""
        weight = self.linear.weight * self.std.unsqueeze(-1)
        return functional.linear(hidden, weight, torch.addcmul(self.mean, self.linear.bias, self.std))

    def rescale(self, outputs: Tensor) -> Tensor:
        """What the head would have said with today's scale; `outputs` are from before the first `set_scale`."""
        return torch.addcmul(self.mean, outputs, self.std)
