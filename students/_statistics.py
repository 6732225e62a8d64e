"""Mean and variance per unit: over one batch, over ranks, over time."""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]

REMEMBERED_STEPS = 100  # how many steps a running variance averages
CONSTANT = 1e-5  # deviation, as a share of the mean, below which fp32 can't tell a unit from a constant
TINY = 1e-24  # variance below which its inverse isn't safe in fp32


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _varies(mean: Tensor, variance: Tensor) -> Tensor:
    return variance > (CONSTANT * mean).square().clamp(min=TINY)


def mean_and_variance(rows: Tensor, reduce: Reduce = _unchanged) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each column of `rows` (rows, units), 0 for a column that never varies.

    Non-finite numbers count as 0. `reduce` sums a tensor over ranks; it is called twice: the variance is taken around
    the common mean.
    """
    rows = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    total = reduce(torch.cat([rows.sum(0), rows.new_full((1,), float(rows.shape[0]))]))
    count = total[-1].clamp(min=1.0)
    mean = total[:-1] / count
    variance = reduce((rows - mean).square().sum(0)) / count
    return mean, torch.where(_varies(mean, variance), variance, 0.0)


def mean_and_std(rows: Tensor, reduce: Reduce = _unchanged) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of `rows` (rows, units); 1 for a column that never varies.

    Example:
        >>> mean, std = mean_and_std(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> mean.tolist(), std.tolist()
        ([2.0, 5.0], [1.0, 1.0])
    """
    mean, variance = mean_and_variance(rows, reduce)
    return mean, torch.where(variance > 0, variance.sqrt(), 1.0)


class Moments:
    """Running mean and variance of the units of one thing to imitate.

    The variance of a single batch would be wrong for a small batch (0 for one example) and differ between ranks. This
    one averages the first and second moments of the last 100 steps or so, with equal weights until there are as many,
    around the mean of the first batch; what a step adds is a sum, which can be summed over batches and ranks.

    Args:
        mean: (units,) of the first batch.
        variance: (units,) of the first batch.
    """

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.shift = mean
        self.first = torch.zeros_like(mean)
        self.second = variance.clone()
        self.steps = 0
        self.weights = self._weights()

    def _weights(self) -> Tensor:
        variance = (self.second - self.first.square()).clamp(min=0.0)
        alive = _varies(self.shift + self.first, variance)  # a dead unit has nothing to imitate
        return torch.where(alive, 1.0 / variance, 0.0) / alive.sum().clamp(min=1)

    def sums(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(2 units + 1,): sums of the deviations and of their squares over (..., units), and the count."""
        deviations = (values - self.shift).flatten(0, -2)
        count = deviations.new_full((1,), float(deviations.shape[0]))
        if mask is not None:
            deviations = deviations * mask.reshape(-1, 1)
            count = mask.sum().to(deviations.dtype).reshape(1)
        return torch.cat([deviations.sum(0), deviations.square().sum(0), count])

    def update(self, sums: Tensor) -> None:
        """Take in one step's sums over all batches and ranks."""
        first, second = (sums[:-1] / sums[-1].clamp(min=1.0)).chunk(2)
        self.steps += 1
        share = max(1.0 / self.steps, 1.0 / REMEMBERED_STEPS)
        self.first = torch.lerp(self.first, first, share)
        self.second = torch.lerp(self.second, second, share)
        self.weights = self._weights()

    def state_dict(self) -> dict[str, Tensor | int]:
        """Tensors and one number."""
        return {"shift": self.shift, "first": self.first, "second": self.second, "steps": self.steps}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor | int], device: torch.device) -> "Moments":
        """What `state_dict` gave, on `device`."""
        tensors = {name: torch.as_tensor(state[name]).to(device) for name in ("shift", "first", "second")}
        moments = cls(tensors["shift"], tensors["second"])
        moments.first, moments.second, moments.steps = tensors["first"], tensors["second"], int(state["steps"])
        moments.weights = moments._weights()
        return moments
