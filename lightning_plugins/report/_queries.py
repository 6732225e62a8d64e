"""The questions that are put to a finished model: inputs kept from the user's own batches, asked again at the end."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from legibility.lightning_plugins.foundation._compiled import uncompiled
from legibility.lightning_plugins.foundation._recorder import Recorder
from legibility.lightning_plugins.foundation._recording import Recording, class_labels, prediction_shape
from legibility.lightning_plugins.foundation._trees import at_path, is_floating, leaves_in, packed_like
from legibility.lightning_plugins.report._redirected import redirected
from legibility.lightning_plugins.report._shards import Ranks
from legibility.scores import Queries, untrained
from legibility.students import Student


@dataclass
class Call:
    """One kept call of the primary, on the CPU.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        labels: Class labels of its predictions, if the batch held any.
        examples: Batch size.
        concepts: Labels of concepts, a row for each example, if they were asked for.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None
    examples: int
    concepts: Tensor | None = None


@dataclass
class KeptCalls:
    """The first calls of the primary on some split of the data, up to a number of examples.

    Attributes:
        limit: Number of examples at which it is full.
        split: "validation" or "training".
        concepts: Dotted path of the labels of concepts within a batch, if there are any.
        calls: What was kept.
    """

    limit: int
    split: str
    concepts: str | None = None
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
            labels = class_labels(batch, recording)
            args, kwargs = apply_to_collection((recording.args, recording.kwargs), Tensor, _copy)
            examples = recording.shape[0]
            concepts = self._concepts(batch, examples)
            self.calls.append(Call(args, kwargs, None if labels is None else _copy(labels), examples, concepts))

    def _concepts(self, batch: Any, examples: int) -> Tensor | None:
        found = None if self.concepts is None else at_path(batch, self.concepts)
        return _copy(found) if isinstance(found, Tensor) and found.ndim > 0 and len(found) == examples else None


@dataclass(frozen=True)
class Subject:
    """A finished model, and how to ask it.

    Attributes:
        primary: The module.
        recorder: Makes a recorder of it, for calls without gradients.
        outermost: What holds its weights: itself, or a wrapper of FSDP1 around it.
        ranks: Those that measure together.
        calls: The kept calls.
        split: Which data they are from.
        device: Where the module is.
        trained_with: Architectures that took part in its training.
        sparsified: Whether a sparsity term took part.
        wired: Whether a wiring term took part.
        output: Dotted path of the logits in the model's result, if it was named.
    """

    primary: nn.Module
    recorder: Callable[[], Recorder]
    outermost: nn.Module
    ranks: Ranks
    calls: list[Call]
    split: str
    device: torch.device
    trained_with: frozenset[type[Student]]
    sparsified: bool
    wired: bool = False
    output: str | None = None

    @property
    def sharded(self) -> bool:
        """Whether the weights are spread over ranks."""
        return self.ranks.together

    def untrained(self, seed: int = 0) -> AbstractContextManager[int]:
        """While inside, its weights are freshly drawn ones; yields how many tensors have no rule for that."""
        self.ranks.meet()
        return untrained(self.primary, seed, within=self.outermost)

    def answers(self, calls: list[Call]) -> Iterator[tuple[Call, Recording]]:
        """Puts calls to the model, which is in evaluation mode, and yields what it did."""
        watcher, asked = self.recorder(), redirected(self.outermost, self.primary)
        watcher.install()
        try:
            for call in calls:
                self.ranks.meet()
                watcher.open()
                args, kwargs = apply_to_collection((call.args, call.kwargs), Tensor, lambda t: t.to(self.device))
                with uncompiled():
                    asked(*args, **kwargs)
                (recording,) = watcher.close()
                shape = prediction_shape(recording.output, recording.inputs)
                recording.output = recording.output.float().reshape(shape)
                yield call, recording
        finally:
            watcher.remove()


def ask(subject: Subject) -> tuple[Queries, list[Call]]:
    """Puts the kept inputs to the model as it is now.

    Args:
        subject: The model, in evaluation mode.

    Returns:
        The queries on the CPU, and the calls they come from: those whose input has the shape of the first one's.

    Raises:
        ValueError: Nothing was kept.
    """
    if not subject.calls:
        raise ValueError("no forward call of the model was seen, neither in validation nor in training")
    rows: list[Recording] = []
    used: list[Call] = []
    for call, recording in subject.answers(subject.calls):
        if rows and recording.inputs.shape[1:] != rows[0].inputs.shape[1:]:
            continue
        rows.append(recording)
        used.append(call)
    logits = torch.cat([row.output for row in rows]).cpu()
    masks = [row.mask for row in rows if row.mask is not None]
    # A call without a mask among others with one: all of its positions count.
    every = [torch.ones_like(row.inputs[:, :1]).bool() if row.mask is None else row.mask for row in rows]
    mask = torch.cat([m.expand(len(m), masks[0].shape[1]) for m in every]).cpu() if masks else None
    found = [call.labels for call in used if call.labels is not None]
    labels = torch.cat(found).long() if len(found) == len(used) else None
    if labels is not None and bool((labels < 0).any()):
        # PyTorch's ignore_index: such positions don't count.
        ignored = labels < 0
        mask = ~ignored if mask is None or mask.shape != ignored.shape else mask & ~ignored
        labels = labels.clamp(min=0)
    inputs = torch.cat([row.inputs for row in rows]).cpu()
    queries = Queries(
        inputs=inputs.float() if inputs.dtype in (torch.bfloat16, torch.float16) else inputs,  # as a strategy cast them
        logits=logits,
        labels=labels,
        mask=mask,
        taps={name: torch.cat([row.taps[name] for row in rows]).float().cpu() for name in rows[0].taps},
    )
    return queries, used


@contextmanager
def patched(module: nn.Module, values: Iterator[Tensor]) -> Iterator[None]:
    """While inside, each call of the module returns the next of ``values`` in place of its floating-point output.

    A module that returns a tuple (attention blocks) keeps the other entries.
    """

    def replace(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        leaf = next(leaf for _, leaf in leaves_in(result) if is_floating(leaf))
        real = leaf.data if isinstance(leaf, PackedSequence) else leaf
        value = next(values)
        value = packed_like(value, leaf) if isinstance(leaf, PackedSequence) else value
        value = value.reshape(real.shape).to(real)
        if isinstance(result, Tensor):
            return value
        return apply_to_collection(result, Tensor, lambda tensor: value if tensor is real else tensor)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _copy(tensor: Tensor) -> Tensor:
    # Validation runs in inference mode; a clone made outside of it is an ordinary tensor again.
    with torch.inference_mode(False):
        return tensor.detach().cpu().clone()
