"""The questions that are put to a finished model: inputs kept from the user's own batches, asked again at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from legibility.lightning_plugins._legibility_term import prediction_shape
from legibility.lightning_plugins._recorder import Recorder
from legibility.lightning_plugins._recording import Recording, find_labels, tensors_in
from legibility.scores import Queries


@dataclass
class Call:
    """One kept call of the primary, on the CPU.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        labels: Class labels of its predictions, if the batch held any.
        examples: Batch size.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None
    examples: int


@dataclass
class KeptCalls:
    """The first calls of the primary on some split of the data, up to a number of examples.

    Attributes:
        limit: Number of examples at which it is full.
        split: "validation" or "training".
        calls: What was kept.
    """

    limit: int
    split: str
    calls: list[Call] = field(default_factory=list)

    @property
    def examples(self) -> int:
        """Number of examples kept."""
        return sum(call.examples for call in self.calls)

    @property
    def full(self) -> bool:
        """Whether no more are needed."""
        return self.examples >= self.limit

    def keep(self, recordings: list[Recording], batch: Any) -> None:
        """Keeps copies of the inputs of one step's calls, and the labels that belong to them."""
        for recording in recordings:
            if self.full:
                return
            shape = prediction_shape(recording.output, recording.inputs)
            labels = find_labels(batch, recording.inputs, recording.output.detach().reshape(shape))
            args, kwargs = apply_to_collection((recording.args, recording.kwargs), Tensor, _copy)
            self.calls.append(Call(args, kwargs, None if labels is None else _copy(labels), shape[0]))


def ask(
    primary: nn.Module,
    calls: list[Call],
    recorder: Callable[[], Recorder],
    device: torch.device,
) -> tuple[Queries, int]:
    """Puts the kept inputs to the primary as it is now.

    Args:
        primary: The module; already in evaluation mode.
        calls: The kept calls.
        recorder: Makes a recorder of the primary (calls made without gradients).
        device: Where the primary is.

    Returns:
        The queries on the CPU, and how many calls were left out because their shapes differ from the first one's.

    Raises:
        ValueError: Nothing was kept.
    """
    if not calls:
        raise ValueError("`calls` is empty: no forward call of the primary was recorded to ask again.")
    rows: list[Recording] = []
    labels: list[Tensor | None] = []
    skipped = 0
    watcher = recorder()
    watcher.install()
    try:
        for call in calls:
            watcher.open()
            args, kwargs = apply_to_collection((call.args, call.kwargs), Tensor, lambda t: t.to(device))
            primary(*args, **kwargs)
            (recording,) = watcher.close()
            if rows and (recording.inputs.shape[1:] != rows[0].inputs.shape[1:]):
                skipped += 1
                continue
            recording.output = recording.output.float().reshape(prediction_shape(recording.output, recording.inputs))
            rows.append(recording)
            labels.append(call.labels)
    finally:
        watcher.remove()
    have_labels = all(label is not None for label in labels)
    queries = Queries(
        inputs=torch.cat([row.inputs for row in rows]).cpu(),
        logits=torch.cat([row.output for row in rows]).cpu(),
        labels=torch.cat([label for label in labels if label is not None]) if have_labels else None,
        mask=None if rows[0].mask is None else torch.cat([r.mask for r in rows if r.mask is not None]).cpu(),
        taps={name: torch.cat([row.taps[name] for row in rows]).float().cpu() for name in rows[0].taps},
    )
    return queries, skipped


@contextmanager
def patched(module: nn.Module, values: Iterator[Tensor]) -> Iterator[None]:
    """While inside, each call of the module returns the next of ``values`` in place of its floating-point output.

    A module that returns a tuple (attention blocks) keeps the other entries.
    """

    def replace(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        real = next(tensor for _, tensor in tensors_in(result) if tensor.is_floating_point())
        value = next(values).reshape(real.shape).to(real)
        if isinstance(result, Tensor):
            return value
        return apply_to_collection(result, Tensor, lambda tensor: value if tensor is real else tensor)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
