"""What every loss demands of its inputs, and the precision in which it computes."""

import math

import torch
from torch import Tensor

_KEPT = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def check_dims(dim: int | tuple[int, ...], w: Tensor) -> tuple[int, ...]:
    """`dim` as dimensions from 0 up; raises ValueError unless they are one or more different dimensions of `w`."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    inside = {d % w.ndim for d in dims if -w.ndim <= d < w.ndim}
    if not dims or len(inside) != len(dims):
        raise ValueError(
            f"`dim` must name one or more different dimensions of `w`, whose shape is {tuple(w.shape)}, got {dim}"
        )
    return tuple(sorted(inside))


def check_floating(tensor: Tensor, argument: str, expected: str, *, complex_too: bool = False) -> None:
    """Raises TypeError unless `tensor` is a floating point tensor (or complex, with `complex_too`)."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{argument}` must be {expected}, got {type(tensor).__name__}: pass a torch.Tensor")
    if not (tensor.is_floating_point() or (complex_too and tensor.is_complex())):
        raise TypeError(f"`{argument}` must be {expected}, got {tensor.dtype}")


def check_mask(mask: Tensor, shape: torch.Size, described: str) -> None:
    """Raises TypeError unless `mask` is boolean, ValueError unless it has exactly `shape`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"`mask` must be a boolean tensor, True where a value counts, got {got}: use `mask.bool()`")
    if mask.shape != shape:
        raise ValueError(
            f"`mask` must have {described} {tuple(shape)}, got {tuple(mask.shape)}: it is not broadcast, "
            "expand it with `mask.expand(...)` if that is meant"
        )


def check_positive(value: float, argument: str) -> None:
    """Raises ValueError unless `value` is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{argument}` must be a finite number above 0, got {value}")


def working_precision(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype in which losses compute: float32, or as it is when that is as precise or more."""
    if tensor.dtype in _KEPT:
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
