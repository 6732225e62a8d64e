"""Tensors as grids of whole numbers, and coarser ones."""

import itertools
import math

import torch
from torch import Tensor

from legibility.lightning_plugins.report.picture._options import ModelPage
from legibility.tradeoff.model_page import ExamplePicture

Grid = list[list[int]]
_MOST = 64


def grid_of(values: Tensor, largest: float) -> Grid:
    """A matrix in hundredths of ``largest``, cut to -99 to 99; what isn't finite is 0.

    Example:
        >>> grid_of(torch.tensor([[0.5, -2.0]]), 1.0)
        [[50, -99]]
    """
    scaled = (values.double() / max(largest, 1e-30) * 99).nan_to_num(0.0, 99.0, -99.0).round().clamp(-99, 99)
    found: Grid = scaled.to(torch.int64).tolist()
    return found


def coarse(matrix: Tensor, most: int = _MOST) -> Tensor:
    """A matrix of at most ``most`` rows and columns: of each patch what is largest in size.

    Example:
        >>> coarse(torch.tensor([[1.0, -3.0], [2.0, 0.0]]), 1)
        tensor([[-3.]])
    """
    found = matrix
    for axis in (0, 1):
        size = found.shape[axis]
        if size > most:
            edges = torch.linspace(0, size, most + 1).round().long().tolist()
            parts = [found.narrow(axis, a, b - a) for a, b in itertools.pairwise(edges)]
            found = torch.cat([_largest(part, axis) for part in parts], axis)
    return found


def _largest(part: Tensor, axis: int) -> Tensor:
    return part.gather(axis, part.abs().argmax(axis, keepdim=True))


def coarse_mean(matrix: Tensor, most: int = _MOST) -> Tensor:
    """The same with means."""
    height, width = (min(most, size) for size in matrix.shape)
    found: Tensor = torch.nn.functional.adaptive_avg_pool2d(matrix[None, None].float(), (height, width))[0, 0]
    return found


def example_picture(inputs: Tensor, title: str, page: ModelPage, most: int = 160) -> ExamplePicture:
    """One example as it is drawn: tokens as words; pictures, time series and rows of numbers as grids.

    Args:
        inputs: One row of what the model reads.
        title: Its number and answer.
        page: How tokens and rows are shown.
        most: Tokens that are written.
    """
    if not inputs.is_floating_point():
        return ExamplePicture(title, words=[page.word(int(token)) for token in inputs.flatten()[:most]])
    values = inputs.float()
    if page.shape is not None and values.numel() == math.prod(page.shape):
        values = values.reshape(*page.shape)
    elif values.ndim == 3:
        values = values.mean(0)  # channels of a picture
    elif values.ndim > 3:
        values = values.flatten(1)
    values = coarse(values.reshape(1, -1) if values.ndim < 2 else values)
    return ExamplePicture(title, grid=grid_of(values, float(values.abs().max())))
