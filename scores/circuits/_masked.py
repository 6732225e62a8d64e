"""A model of which any part can be replaced by its mean: masks over edges or nodes of its linear layers."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores._asking import Forward
from legibility.scores._divergence import one_scale

Granularity = Literal["edges", "nodes"]
Masks = Mapping[str, Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class MaskedModel:
    """Runs a model on rows of its inputs with some connections mean-ablated.

    An edge joins a unit that a linear layer reads to a unit that it writes; a node is a unit that a linear layer reads,
    with all its edges into that layer. A unit of a convolution is a channel. With mask `M` a layer says
    `(W M) h + (W (1 - M)) mean(h) + b`, the mean taken over all examples (of a sequence, over all positions that count;
    of an image, at each place). Gradients flow to masks that ask for them.

    Args:
        model: in evaluation mode.
        inputs: `(N, ...)`.
        forward: how the model is asked: `(model, rows of the inputs) -> logits`.
        counted: bool, the positions that count, shaped like the logits without classes; None means all.
        granularity: what masks are over.
        batch_size: rows per call.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        forward: Forward,
        counted: Tensor | None,
        granularity: Granularity,
        batch_size: int,
    ) -> None:
        self.model, self.inputs, self.forward = model, inputs, forward
        self.granularity, self.batch_size = granularity, batch_size
        self.layers = {name: m for name, m in model.named_modules() if _is_linear(m)}
        self._means: dict[str, Tensor] = {}
        self._spread: dict[str, Tensor] = {}
        self._counted = counted
        self._temperature = 1.0
        self._logits = self._watch()
        self.log_p = self._logits.log_softmax(-1)
        self.layers = {name: m for name, m in self.layers.items() if name in self._means}
        self.counted = torch.ones(self.log_p.shape[:-1], dtype=torch.bool) if counted is None else counted
        self.counted = self.counted.to(self.log_p.device)
        self.live = {name: self._live(name) for name in self.layers}

    def to_one_scale(self) -> None:
        """From now on answers are compared at a temperature of which the model's own doesn't matter."""
        self._temperature = one_scale(self._logits[self.counted])
        self.log_p = (self._logits / self._temperature).log_softmax(-1)

    def weight(self, name: str) -> Tensor:
        """A layer's weight as (units written, units read, rest)."""
        weight = _written_by_read(self.layers[name])
        return weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(-1)

    def spread(self, name: str) -> Tensor:
        """Standard deviation of each unit that the layer reads."""
        return self._spread[name]

    def everything(self) -> dict[str, Tensor]:
        """The masks that keep all that is live."""
        return {name: live.float() for name, live in self.live.items()}

    def nothing(self) -> dict[str, Tensor]:
        """The masks that keep nothing."""
        return {name: torch.zeros_like(live, dtype=torch.float32) for name, live in self.live.items()}

    def divergence(self, masks: Masks, rows: Tensor) -> Tensor:
        """Mean `KL(f || f_M)` in bits over the positions that count among some rows."""
        log_q = self.answers(masks, rows)
        keep = self.counted[rows]
        log_p = self.log_p[rows][keep]
        return (log_p.exp() * (log_p - log_q[keep])).sum(-1).mean() / math.log(2)

    @torch.no_grad()
    def measured(self, masks: Masks, rows: Tensor) -> float:
        """The same over many rows, in batches."""
        total, positions = 0.0, 0
        for part in torch.split(rows, self.batch_size):
            count = int(self.counted[part].sum())
            if count:
                total += float(self.divergence(masks, part)) * count
                positions += count
        return total / positions if positions else math.nan

    def answers(self, masks: Masks, rows: Tensor) -> Tensor:
        """Log-probabilities of the masked model, float64."""
        with self._ablated(masks), _no_fast_path():
            logits = self.forward(self.model, self.inputs[rows])
        return (logits.double() / self._temperature).log_softmax(-1)

    @contextlib.contextmanager
    def _ablated(self, masks: Masks) -> Iterator[None]:
        try:
            for name, layer in self.layers.items():
                vars(layer)["forward"] = self._masked_forward(name, layer, masks[name])
            yield
        finally:
            for layer in self.layers.values():
                vars(layer).pop("forward", None)

    def _masked_forward(self, name: str, layer: Any, mask: Tensor) -> Callable[[Tensor], Tensor]:
        weight = _written_by_read(layer)
        bias: Tensor | None = None if layer.bias is None else layer.bias.detach()
        grid = mask if self.granularity == "edges" else mask.unsqueeze(0)
        grid = grid.view(*grid.shape, *[1] * (weight.ndim - 2)).to(weight.dtype)
        kept = weight * grid
        mean = self._means[name].to(weight)
        if not isinstance(layer, _CONVOLUTIONS):
            constant = (weight - kept) @ mean
            shifted = constant if bias is None else constant + bias
            return lambda read: functional.linear(read, kept, shifted)
        place = layer._conv_forward(mean.unsqueeze(0), weight - kept, bias)
        return lambda read: layer._conv_forward(read, kept, None) + place

    @torch.no_grad()
    def _watch(self) -> Tensor:
        """Runs the model as it is; returns its logits, keeps mean and spread of what each layer reads."""
        sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        rows = torch.arange(0)

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
                read = args[0].detach().double()
                if not isinstance(layer, _CONVOLUTIONS):
                    counted = None if self._counted is None else self._counted[rows].to(read.device)
                    same = counted is not None and counted.shape == read.shape[:-1]
                    read = read[counted] if same and counted is not None else read.reshape(-1, read.shape[-1])
                total, squares, count = sums.get(name, (torch.zeros(()), torch.zeros(()), 0))
                total, squares = total.to(read) + read.sum(0), squares.to(read) + read.square().sum(0)
                sums[name] = (total, squares, count + len(read))

            return look

        handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            answers = []
            for rows in torch.split(torch.arange(len(self.inputs)), self.batch_size):
                answers.append(self.forward(self.model, self.inputs[rows]).double())
        finally:
            for handle in handles:
                handle.remove()
        for name, (total, squares, count) in sums.items():
            mean = total / count
            variance = squares / count - mean.square()
            variance = torch.where(variance > 1e-12 * squares / count, variance, 0.0)
            self._means[name] = mean
            self._spread[name] = variance.flatten(1).mean(1).sqrt() if variance.ndim > 1 else variance.sqrt()
        return torch.cat(answers)

    def _live(self, name: str) -> Tensor:
        """bool: the edges, or nodes, whose ablation could change anything."""
        carries = (self.weight(name) != 0).any(-1) & (self.spread(name) > 0)
        return carries if self.granularity == "edges" else carries.any(0)


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """`nn.TransformerEncoderLayer` in evaluation mode would read its layers' weights without calling them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _is_linear(layer: nn.Module) -> bool:
    """Whether it is a linear layer, an ungrouped convolution, or GPT-2's `Conv1D`: a linear layer written (read, written)."""
    if isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
        return getattr(layer, "groups", 1) == 1
    return _is_transposed(layer)


def _is_transposed(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and layer.get_parameter("weight").ndim == 2


def _written_by_read(layer: nn.Module) -> Tensor:
    weight = layer.get_parameter("weight").detach()
    return weight.T if _is_transposed(layer) else weight
