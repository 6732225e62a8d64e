"""How a model is asked for its answers, whatever it takes and returns: tensors, tuples, or dictionaries of both."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Tensor]
"""`(model, rows of the inputs) -> logits`."""

PADDING = -1
"""Stands in a row of token ids where the attention mask is 0."""

_MASK = "attention_mask"

BATCH = 256
"""Rows that a model is asked at a time."""


def answer_in(output: Any) -> Tensor:
    """The tensor of answers in what a model returned: itself, the entry `logits`, or the first floating-point one.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 0:
            return part
    raise TypeError(
        f"`model` must return logits, a tuple or a mapping that holds them, got {type(output).__name__}: "
        "pass `forward=lambda model, rows: ...`."
    )


def call(model: nn.Module, rows: Tensor) -> Tensor:
    """The model's answers to rows, called with them alone."""
    return answer_in(model(rows))


@dataclass(frozen=True)
class ByName:
    """Calls a model by keyword, as those of Hugging Face are: `model(input_ids=..., attention_mask=...)`.

    Attributes:
        name: of what the rows are.
        mask_name: of the mask, which is 0 where the rows hold `PADDING`; None without one.
    """

    name: str
    mask_name: str | None = None

    def __call__(self, model: nn.Module, rows: Tensor) -> Tensor:
        if self.mask_name is None:
            return answer_in(model(**{self.name: rows}))
        real = rows != PADDING
        return answer_in(model(**{self.name: rows.where(real, 0), self.mask_name: real.long()}))


def named_inputs(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, ByName]:
    """One tensor of rows, the positions that count, and the call, of inputs given by name.

    Token ids at positions where `attention_mask` is 0 become `PADDING`, so that the rows alone say which are real.

    Raises:
        ValueError: for anything but one tensor, or token ids with their `attention_mask`.
    """
    others = [name for name in inputs if name != _MASK]
    if len(others) != 1 or (_MASK in inputs and inputs[others[0]].is_floating_point()):
        raise ValueError(
            "`inputs` by name must be one tensor, or token ids with `attention_mask`, got "
            f"{sorted(inputs)}: pass one tensor and `forward=lambda model, rows: ...`."
        )
    rows = inputs[others[0]]
    if _MASK not in inputs:
        return rows, None, ByName(others[0])
    mask = inputs[_MASK].bool()
    if mask.shape != rows.shape:
        raise ValueError(
            f"`inputs['attention_mask']` must be shaped as the token ids {tuple(rows.shape)}, got {tuple(mask.shape)}."
        )
    return rows.where(mask, PADDING), mask, ByName(others[0], _MASK)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def answers(model: nn.Module, inputs: Tensor, forward: Forward | None) -> Tensor:
    """The model's logits on all inputs, in evaluation mode, batch by batch."""
    ask = call if forward is None else forward
    with evaluating(model):
        return torch.cat([ask(model, rows) for rows in torch.split(inputs, BATCH)]).float()
