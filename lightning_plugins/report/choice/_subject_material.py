"""A finished model as the material that scores are taken of: its kept examples, asked by number."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._compiled import uncompiled
from legibility.lightning_plugins.foundation._recording import pick_output, prediction_shape
from legibility.lightning_plugins.report._queries import Call, Subject
from legibility.scores import Material, Queries

_CLOSE = 1e-3  # of the answers' spread: what other kernels for other batch sizes may change


def by_number(subject: Subject, queries: Queries, used: list[Call], temperature: float) -> tuple[Material, Tensor]:
    """The model and its queries, as scores want them: the inputs are the numbers of the kept examples.

    A model may need more than one tensor (masks, dictionaries, what users pass by name), and scores cut their inputs
    into rows. So they get numbers, and whoever asks the model looks up all that belongs to those examples.

    Args:
        subject: The model, in evaluation mode.
        queries: Its answers, already divided by the temperature.
        used: The calls that the queries come from.
        temperature: What the logits are divided by.

    Returns:
        The material, on the model's device, and the inputs that students and estimators read.

    Raises:
        ValueError: The calls can't be cut into examples; the message says why.
    """
    args, kwargs, cut = _joined(used, len(queries))
    inputs = queries.inputs

    def forward(model: nn.Module, rows: Tensor) -> Tensor:
        numbers = rows.to("cpu")
        asked = iter(cut)

        def picked(tensor: Tensor) -> Tensor:
            return (tensor[numbers] if next(asked) else tensor).to(subject.device)

        given, named = apply_to_collection((args, kwargs), Tensor, picked)
        with uncompiled():
            output = pick_output(model(*given, **named), subject.output)
        shape = prediction_shape(output, inputs[numbers])
        return output.float().reshape(shape) / temperature

    numbered = Queries(
        inputs=torch.arange(len(queries), device=subject.device),
        logits=queries.logits.to(subject.device),
        labels=None if queries.labels is None else queries.labels.to(subject.device),
        mask=queries.counted.to(subject.device) if queries.mask is not None else None,
    )
    model = getattr(subject.primary, "_orig_mod", subject.primary)
    rows = numbered.inputs[: min(len(numbered), 64)]
    again, real = forward(model, rows), numbered.logits[: len(rows)]
    keep = numbered.counted[: len(rows)]
    if again.shape != real.shape or not _near(again[keep], real[keep]):
        raise ValueError("asked for single examples of its batches, the model answers otherwise than for whole batches")
    return Material(numbered, model, forward), inputs


def _near(one: Tensor, other: Tensor) -> bool:
    spread = float(other.double().std()) if other.numel() > 1 else 0.0
    return bool((one - other).abs().max() <= _CLOSE * max(spread, 1e-6)) if one.numel() else True


def _joined(calls: list[Call], examples: int) -> tuple[Any, Any, list[bool]]:
    """Arguments of all calls as those of one; and of each of its tensors whether it has a row for each example."""
    held: list[list[Tensor]] = []
    for call in calls:
        found: list[Tensor] = []
        apply_to_collection(
            (call.args, call.kwargs), Tensor, lambda tensor, found=found: found.append(tensor) or tensor
        )
        held.append(found)
    if len({len(found) for found in held}) != 1 or not held[0]:
        raise ValueError("its calls hold different numbers of tensors, or none, and can't be cut into examples")
    whole, cut = [], []
    for tensors in zip(*held, strict=True):
        by_row = all(t.ndim > 0 and len(t) == call.examples for t, call in zip(tensors, calls, strict=True))
        if by_row and len({tensor.shape[1:] for tensor in tensors}) != 1:
            raise ValueError("tensors among its arguments have other shapes in other batches")
        cut.append(by_row)
        whole.append(torch.cat(tensors) if by_row else tensors[0])
    if not any(cut):
        raise ValueError("no tensor among its arguments has a row for each example (packed sequences, graphs)")
    ready = iter(whole)
    args, kwargs = apply_to_collection((calls[0].args, calls[0].kwargs), Tensor, lambda _: next(ready))
    if sum(call.examples for call in calls) != examples:
        raise ValueError("its calls hold other examples than its answers")
    return args, kwargs, cut


@contextmanager
def unhitched(module: nn.Module) -> Iterator[None]:
    """While inside, a LightningModule knows no trainer: scores copy models, and a trainer holds loaders and loggers."""
    held = [(part, part.__dict__["_trainer"]) for part in module.modules() if part.__dict__.get("_trainer") is not None]
    for part, _ in held:
        part.__dict__["_trainer"] = None
    try:
        yield
    finally:
        for part, trainer in held:
            part.__dict__["_trainer"] = trainer
