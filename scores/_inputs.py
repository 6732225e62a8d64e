"""What every score demands of its inputs."""

import torch
from torch import Tensor


def check_floating(tensor: Tensor, argument: str) -> None:
    """Raises TypeError unless `tensor` is floating point."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"`{argument}` must be a floating point tensor, got {got}.")


def check_same_shape(tensor: Tensor, like: Tensor, argument: str, like_argument: str) -> None:
    """Raises ValueError unless both have the same shape, which has a last dimension."""
    if like.ndim == 0 or tensor.shape != like.shape:
        raise ValueError(
            f"`{argument}` must have the shape of `{like_argument}` {tuple(like.shape)}, got {tuple(tensor.shape)}."
        )


def check_mask(mask: Tensor | None, values: Tensor) -> None:
    """Raises ValueError unless `mask` is None or bool with the shape of `values` without the last dimension."""
    if mask is not None and (mask.dtype != torch.bool or mask.shape != values.shape[:-1]):
        raise ValueError(
            f"`mask` must be bool {tuple(values.shape[:-1])}, True where a position counts; "
            f"got {mask.dtype} {tuple(mask.shape)}."
        )


def check_labels(labels: Tensor, logits: Tensor, mask: Tensor | None = None) -> None:
    """Raises unless `labels` are integers shaped like `logits` without classes, and classes where `mask` is True."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"`labels` must be an integer tensor of class ids, got {labels.dtype}.")
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"`labels` must have the shape of `logits` without its classes {tuple(logits.shape[:-1])}, "
            f"got {tuple(labels.shape)}."
        )
    counted = labels if mask is None else labels[mask]
    classes = logits.shape[-1]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise ValueError(
            f"`labels` must be in 0..{classes - 1}, got {int(counted.min())}..{int(counted.max())}: "
            "set `mask` to False where there is no label."
        )
