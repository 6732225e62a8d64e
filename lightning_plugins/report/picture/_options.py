"""How a model's page is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelPage:
    """How ``model.html`` is made.

    Attributes:
        decode: Makes a word of a token's id, such as ``chr`` or a tokenizer's ``decode``; None shows the ids.
        shape: Height and width at which an example's numbers are drawn; None: pictures as they are, else one row.
        answers: Names of the classes, in order; None shows their numbers.
        examples: Columns of the pictures of activations.
        units: Units of a layer that are drawn.

    Raises:
        ValueError: For numbers below 1, or a shape that is not two numbers.
    """

    decode: Callable[[int], str] | None = None
    shape: Sequence[int] | None = None
    answers: Sequence[str] | None = None
    examples: int = 96
    units: int = 48

    def __post_init__(self) -> None:
        if self.examples < 1 or self.units < 1:
            raise ValueError(f"`page`: `examples` and `units` must be at least 1, got {self.examples}, {self.units}.")
        if self.shape is not None and (len(self.shape) != 2 or min(self.shape) < 1):
            raise ValueError(f"`page`: `shape` must be height and width, got {list(self.shape)}.")

    def word(self, token: int) -> str:
        """A token for the reader; a decoder that fails leaves the number."""
        if self.decode is None:
            return str(token)
        try:
            return str(self.decode(token))
        except Exception:  # noqa: BLE001 - somebody else's tokenizer, and ids that it doesn't know
            return str(token)

    def answer(self, number: int, tokens: bool) -> str:
        """A class for the reader: of a model that answers with tokens, the token."""
        if self.answers is not None and number < len(self.answers):
            return str(self.answers[number])
        return self.word(number) if tokens else str(number)
