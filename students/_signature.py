"""What a student must read and imitate, inferred from real tensors."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Reads = Literal["features", "image", "tokens", "sequence"]

LARGEST_TAP = 16384  # units; a wider tap would make one hidden head larger than most students


@dataclass(frozen=True)
class TapSignature:
    """Shape of one tapped activation.

    Attributes:
        units: Numbers per position (`per_position`) or per example.
        per_position: True for a tap `(batch, positions, units)` along the input's own positions.
        shape: The tap's shape without the batch, as it was first seen.
    """

    units: int
    per_position: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a student reads and what it imitates.

    Attributes:
        reads: `"features"` (batch, ...) floats without an order; `"image"` (batch, channels, height, width);
            `"tokens"` (batch, positions) integers; `"sequence"` (batch, positions, features) floats.
        input_shape: The input's shape without the batch, as it was first seen. Positions may vary later.
        outputs: Size of the output's last dimension.
        per_position: True if the output is (batch, positions, outputs), else (batch, outputs).
        vocabulary: Number of distinct token ids; None unless `reads` is `"tokens"`.
        taps: The hidden activations to imitate, by name.

    Raises:
        ValueError: For fields that contradict each other.

    Example:
        >>> signature = Signature("tokens", (16,), outputs=50, per_position=True, vocabulary=50)
        >>> Signature.from_json(signature.to_json()) == signature
        True
    """

    reads: Reads
    input_shape: tuple[int, ...]
    outputs: int
    per_position: bool
    vocabulary: int | None = None
    taps: Mapping[str, TapSignature] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reads not in get_args(Reads):
            raise ValueError(f"`reads` must be one of {', '.join(get_args(Reads))}; got {self.reads!r}.")
        if (self.vocabulary is not None) != (self.reads == "tokens"):
            raise ValueError(
                f"`vocabulary` must be a number for tokens and None otherwise; got {self.vocabulary} "
                f"for reads={self.reads!r}."
            )
        if self.reads in ("features", "image") and (
            self.per_position or any(t.per_position for t in self.taps.values())
        ):
            raise ValueError(f"`per_position` is for tokens and sequences; {self.reads!r} has no positions.")

    @property
    def settled(self) -> tuple[object, ...]:
        """All that must stay the same from batch to batch and from rank to rank; numbers of positions may vary."""
        shape = {"tokens": (), "sequence": self.input_shape[-1:]}.get(self.reads, self.input_shape)
        taps = tuple((name, tap.units, tap.per_position) for name, tap in self.taps.items())
        return self.reads, shape, self.outputs, self.per_position, self.vocabulary, taps

    def to_json(self) -> str:
        """The signature as one line of JSON; `from_json` reads it back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Signature":
        """Read what `to_json` wrote.

        Raises:
            ValueError: If `text` is not the JSON of a signature.
        """
        try:
            fields = json.loads(text)
            taps = {
                name: TapSignature(tap["units"], tap["per_position"], tuple(tap["shape"]))
                for name, tap in fields.pop("taps").items()
            }
            return cls(taps=taps, input_shape=tuple(fields.pop("input_shape")), **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`text` must be the JSON of a Signature; got {text[:80]!r} ({error!r}).") from error


def _read_input(inputs: Tensor) -> Reads:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"`inputs` must be a tensor, got {type(inputs).__name__}; name the part with `model`.")
    if inputs.is_complex() or inputs.dtype == torch.bool:
        raise TypeError(f"`inputs` must be a floating or an integer tensor, got {inputs.dtype}; name another `model`.")
    if inputs.dim() == 0:
        raise ValueError("`inputs` must have a batch dimension, got a scalar; name another `model`.")
    if not inputs.is_floating_point():
        if inputs.dim() > 2:
            raise ValueError(
                f"`inputs` of token ids must be (batch, positions) or (batch,), got {tuple(inputs.shape)}; "
                "name with `model` a part that takes such ids, or one that takes floats."
            )
        return "tokens"
    return {3: "sequence", 4: "image"}.get(inputs.dim(), "features")  # type: ignore[return-value]


def _read_taps(taps: Mapping[str, Tensor], batch: int, positions: int | None) -> dict[str, TapSignature]:
    read = {}
    for name, tap in taps.items():
        if not isinstance(tap, Tensor) or not tap.is_floating_point():
            kind = tap.dtype if isinstance(tap, Tensor) else type(tap).__name__
            raise TypeError(f"tap `{name}` must be a floating tensor, got {kind}; leave it out of `taps`.")
        if tap.dim() == 0 or tap.shape[0] != batch:
            raise ValueError(
                f"tap `{name}` must have the input's batch size {batch} first, got {tuple(tap.shape)}; "
                "leave it out of `taps`."
            )
        shape = tuple(tap.shape[1:])
        per_position = positions is not None and len(shape) == 2 and shape[0] == positions
        units = shape[1] if per_position else tap[0].numel()
        if not 0 < units <= LARGEST_TAP:
            raise ValueError(
                f"tap `{name}` must have 1 to {LARGEST_TAP} units, got {units} from {tuple(tap.shape)}; "
                "tap a narrower module in `taps`."
            )
        read[name] = TapSignature(units, per_position, shape)
    return read


def read_signature(
    inputs: Tensor, output: Tensor, taps: Mapping[str, Tensor] | None = None, *, vocabulary: int | None = None
) -> Signature:
    """Infer the signature from one recorded batch.

    Integer inputs (batch, positions) or (batch,) are tokens. Floats are features (batch, features), a sequence
    (batch, positions, features) or an image (batch, channels, height, width); any other float is flattened to features.

    Args:
        inputs: What the primary was called with.
        output: What it returned: floating, (batch, outputs), or (batch, positions, outputs) for tokens and sequences.
        taps: Its tapped activations by name. (batch, positions, units) stays so, the rest is flattened per example.
        vocabulary: Number of token ids. Default: the largest id of this batch plus one, at least `outputs` if the
            output is per position. Ids at or above it are wrapped modulo `vocabulary` by the students. The default
            depends on the batch: give it where several processes must agree.

    Returns:
        The signature.

    Raises:
        TypeError: For tensors of the wrong kind.
        ValueError: For shapes that students can't imitate; the message names the argument to give.

    Example:
        >>> import torch
        >>> signature = read_signature(torch.zeros(8, 16, dtype=torch.long), torch.zeros(8, 16, 50))
        >>> signature.reads, signature.per_position, signature.vocabulary
        ('tokens', True, 50)
    """
    reads = _read_input(inputs)
    if not isinstance(output, Tensor):
        raise TypeError(f"`output` must be a tensor, got {type(output).__name__}; give the path to one with `output`.")
    if not output.is_floating_point():
        raise TypeError(
            f"`output` must be floating (logits or values), got {output.dtype}; give the path to logits with `output`."
        )
    positions = None
    if reads in ("tokens", "sequence"):
        positions = inputs.shape[1] if inputs.dim() > 1 else 1
    per_position = output.dim() == 3 and positions is not None and output.shape[1] == positions
    fits = per_position or output.dim() == 2
    if not fits or output.shape[0] != inputs.shape[0] or output.shape[-1] == 0:
        expected = f"({inputs.shape[0]}, outputs)"
        if positions is not None:
            expected += f" or ({inputs.shape[0]}, {positions}, outputs)"
        raise ValueError(
            f"`output` must have the shape {expected} for inputs of shape {tuple(inputs.shape)}, "
            f"got {tuple(output.shape)}; give the path to such a tensor with `output`, or another `model`."
        )
    if reads != "tokens":
        vocabulary = None
    elif vocabulary is None:
        highest = int(inputs.max()) + 1 if inputs.numel() else 1
        vocabulary = max(highest, output.shape[-1] if per_position else 1, 1)
    elif vocabulary < 1:
        raise ValueError(f"`vocabulary` must be at least 1, got {vocabulary}.")
    return Signature(
        reads=reads,
        input_shape=tuple(inputs.shape[1:]) or ((1,) if reads == "tokens" else tuple(inputs.shape[1:])),
        outputs=output.shape[-1],
        per_position=per_position,
        vocabulary=vocabulary,
        taps=_read_taps(taps or {}, inputs.shape[0], positions),
    )
