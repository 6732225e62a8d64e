"""What a student is: an architecture (`Student`) and the network that it builds (`StudentNetwork`)."""

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from legibility.students._head import Head
from legibility.students._reading import InputReader
from legibility.students._signature import Reads, Signature
from legibility.students._statistics import mean_and_std
from legibility.students._targets import prepare


@dataclass(frozen=True)
class Prediction:
    """What a student says about one batch.

    Attributes:
        output: (batch, outputs) or (batch, positions, outputs), like the primary's.
        taps: By name: (batch, positions, units), or (batch, units) for a flattened tap, in the primary's own units.
    """

    output: Tensor
    taps: dict[str, Tensor]


@final
class StudentNetwork(nn.Module):
    """A student's body, one linear output head and one linear hidden head per tap.

    Inputs are read by `InputReader`: ids modulo the vocabulary, floats as fp32, standardised once `set_statistics`
    was called. Without an output per position, positions are averaged (those that `mask` counts) before the heads.
    The output head starts at zero, so a fresh student predicts the uniform distribution exactly. Hidden heads work in
    standardised units; what comes out is in the primary's units.

    Args:
        body: Inputs -> (batch, positions, width) for tokens and sequences, else (batch, width).
        signature: What is read and imitated.
        width: The body's width.
    """

    def __init__(self, body: nn.Module, signature: Signature, width: int) -> None:
        super().__init__()
        self.signature = signature
        self.width = width
        self.reader = InputReader(signature)
        self.body = body
        self.head = Head(width, signature.outputs, zero=True)
        # A list, not a dict: names of taps hold dots, which names of modules may not.
        self.tap_heads = nn.ModuleList(Head(width, tap.units) for tap in signature.taps.values())

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Prediction:
        """Predict the primary's output and taps.

        Args:
            inputs: The primary's input, (batch, ...); no gradient flows into it.
            mask: bool (batch, positions), True = counts; None = all count.

        Returns:
            The prediction.

        Raises:
            TypeError: For inputs of another kind than in the signature.
            ValueError: For inputs or a mask of a shape that doesn't fit.
        """
        positions = self.signature.reads in ("tokens", "sequence")
        if mask is not None and positions:
            _check_mask(mask, inputs)
        hidden = self.body(self.reader(inputs, mask))
        if hidden.dim() != 2 + positions or hidden.shape[-1] != self.width:
            shape = f"(batch, positions, {self.width})" if positions else f"(batch, {self.width})"
            raise ValueError(f"`body` must return {shape} for {self.signature.reads}, got {tuple(hidden.shape)}.")
        heads = [(self.signature.per_position, self.head)]
        heads += [(t.per_position, h) for t, h in zip(self.signature.taps.values(), self._tap_heads(), strict=True)]
        pooled = hidden
        if positions and not all(per_position for per_position, _ in heads):
            pooled = _mean_over_positions(hidden, mask)
        output, *taps = [head(hidden if per_position else pooled) for per_position, head in heads]
        return Prediction(output, dict(zip(self.signature.taps, taps, strict=True)))

    def set_statistics(
        self,
        taps: Mapping[str, Tensor],
        *,
        inputs: Tensor | None = None,
        output: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Fix the scales from one batch: of the taps, and of float `inputs` and a regressed `output` where given.

        Call it once, before training: a later call changes what the trained heads say.
        """
        for (name, tap), head in zip(self.signature.taps.items(), self._tap_heads(), strict=True):
            if name in taps:
                head.set_scale(*mean_and_std(prepare(taps[name], tap.per_position, mask).rows()))
        if inputs is not None and self.signature.reads != "tokens":
            self.reader.set_scale(*mean_and_std(self.reader.rows(inputs, mask)))
        if output is not None:
            self.head.set_scale(*mean_and_std(prepare(output, self.signature.per_position, mask).rows()))

    def _tap_heads(self) -> Iterator[Head]:
        for head in self.tap_heads:
            assert isinstance(head, Head)
            yield head


def _check_mask(mask: Tensor, inputs: Tensor) -> None:
    if mask.dtype != torch.bool or tuple(mask.shape) not in (tuple(inputs.shape[:2]), tuple(inputs.shape[:1])):
        raise ValueError(
            f"`mask` must be bool {tuple(inputs.shape[:2])}, True where a position counts; "
            f"got {mask.dtype} {tuple(mask.shape)}."
        )


def _mean_over_positions(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or mask.dim() != 2:
        return hidden.mean(1)
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)


@contextlib.contextmanager
def _float32_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # under bf16-true the default dtype is bf16
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Student(ABC):
    """An architecture with its settings and without tensors: cheap to write into a list, comparable, a plain record.

    An own architecture is a frozen dataclass with `reads` and `body`. For tokens and sequences `body` must be causal
    if the primary is: position t sees inputs <= t. Integers among the settings must be at least 1,
    floats above 0.

    Attributes:
        width: Size of the hidden state; None lets `size_students` choose it.
        reads: Which inputs the architecture understands.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> @dataclass(frozen=True)
        ... class LastTokensStudent(Student):
        ...     reads = frozenset({"tokens"})
        ...     kernel: int = 2
        ...
        ...     def body(self, signature, width):
        ...         return torch.nn.Sequential(LastTokens(signature.vocabulary, width, self.kernel), torch.nn.Tanh())
        >>> class LastTokens(torch.nn.Module):
        ...     def __init__(self, vocabulary, width, kernel):
        ...         super().__init__()
        ...         self.tables = torch.nn.ModuleList(torch.nn.Embedding(vocabulary + 1, width) for _ in range(kernel))
        ...
        ...     def forward(self, ids):  # (batch, positions) -> (batch, positions, width)
        ...         shifted = torch.nn.functional.pad(ids + 1, (len(self.tables), 0))
        ...         last = shifted.shape[1]
        ...         return sum(t(shifted[:, last - ids.shape[1] - k : last - k]) for k, t in enumerate(self.tables))
        >>> student = LastTokensStudent(width=8)
        >>> student.name
        'last_tokens'
        >>> network = student.build(Signature("tokens", (5,), outputs=3, per_position=True, vocabulary=3))
        >>> network(torch.tensor([[0, 2, 1, 1, 0]])).output.shape
        torch.Size([1, 5, 3])
    """

    reads: ClassVar[frozenset[Reads]]

    width: int | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"`{setting.name}` of {type(self).__name__} must be at least 1, got {value}.")
            if isinstance(value, float) and not 0 < value < float("inf"):
                raise ValueError(f"`{setting.name}` of {type(self).__name__} must be above 0 and finite, got {value}.")

    @property
    def name(self) -> str:
        """Short, stable name in lower case: `GatedConvStudent` -> `gated_conv`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__.removesuffix("Student") or "student").lower()

    @abstractmethod
    def body(self, signature: Signature, width: int) -> nn.Module:
        """The network without heads.

        Args:
            signature: What is read.
            width: Size of the last dimension to return.

        Returns:
            A module: ids (batch, positions) or floats (batch, positions, features) -> (batch, positions, width),
            causal; features (batch, features) or images (batch, channels, height, width) -> (batch, width).
        """

    def build(self, signature: Signature, *, width: int | None = None) -> StudentNetwork:
        """Build the network in fp32 with the current random state.

        Args:
            signature: What is read and imitated.
            width: Size of the hidden state; default `self.width`.

        Returns:
            The network, in training mode.

        Raises:
            ValueError: If this architecture doesn't read such inputs, or no width is known.
        """
        if signature.reads not in self.reads:
            fitting = sorted(c.__name__ for c in Student.__subclasses__() if signature.reads in c.reads)
            raise ValueError(
                f"`students`: {type(self).__name__} reads {', '.join(sorted(self.reads))}, not {signature.reads}; "
                f"these do: {', '.join(fitting)}."
            )
        width = self.width if width is None else width
        if width is None or width < 1:
            raise ValueError(
                f"`width` of {type(self).__name__} must be at least 1, got {width}; "
                "give one or let size_students choose it."
            )
        with _float32_default():
            return StudentNetwork(self.body(signature, width), signature, width)
