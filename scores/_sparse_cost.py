"""What zeros would save: multiplications and bytes, where somebody makes use of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from legibility.students import flops


def sparse_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes that weights take when each is stored as its nonzero values and one bit for each place, or dense if less.

    Args:
        weights: Any shapes and dtypes.

    Returns:
        Sum over tensors of min(n b, k b + ceil(n / 8)): n weights of b bytes, k of them not zero.

    Example:
        >>> import torch
        >>> sparse_bytes([torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]])])  # 4 bytes and 8 bits, instead of 32
        5
    """
    total = 0
    for weight in weights:
        nonzero, size = int(weight.detach().count_nonzero()), weight.element_size()
        total += min(weight.numel() * size, nonzero * size + -(-weight.numel() // 8))
    return total


def sparse_flops(measured: Callable[..., Any], *inputs: Any, weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Floating point operations of one forward call, and how many are left without multiplications by a zero weight.

    Counts matrix products and convolutions (2 per multiply-add). An operation that reads one of the ``weights``, or a
    part of one, loses the share of zeros of what it reads; all others, as attention between activations, stay whole.
    Zeros of activations are not counted.

    Args:
        measured: A module or another callable.
        inputs: What to call it with.
        weights: Name -> weight.

    Returns:
        (all, needed).

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 3, bias=False)
        >>> _ = layer.weight.data[1:].zero_()  # two rows of three
        >>> sparse_flops(layer, torch.ones(2, 4), weights={"weight": layer.weight})
        (48, 16)

    Source: counts as `torch.utils.flop_counter`.
    """
    counter = _Saved({weight.untyped_storage().data_ptr() for weight in weights.values()})
    whole = flops(_Counted(measured, counter), *inputs)
    return whole, whole - round(counter.saved)


class _Counted(nn.Module):
    # A module, for `flops` puts modules into evaluation mode and back.
    def __init__(self, measured: Callable[..., Any], counter: "_Saved") -> None:
        super().__init__()
        self.measured, self.counter = measured, counter

    def forward(self, *inputs: Any) -> Any:
        with self.counter:
            return self.measured(*inputs)


class _Saved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiplications by zeros of known weights."""

    def __init__(self, storages: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = storages
        self.saved = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in _PRODUCTS:
            for weight in args:
                if isinstance(weight, Tensor) and weight.untyped_storage().data_ptr() in self._storages:
                    outputs = result.shape[_PRODUCTS[func._overloadpacket]]
                    zeros = 1 - int(weight.count_nonzero()) / max(1, weight.numel())
                    self.saved += zeros * 2 * result.numel() * weight.numel() / max(1, outputs)
        return result


_aten = torch.ops.aten
# Product -> which dimension of its result the weight's outputs lie along.
_PRODUCTS: dict[Any, int] = {
    _aten.mm: -1,
    _aten.addmm: -1,
    _aten.linear: -1,
    _aten.convolution: 1,
    _aten._convolution: 1,
}
