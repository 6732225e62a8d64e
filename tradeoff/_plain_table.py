"""A table of text, as the page and the exports show it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PlainTable:
    """A table of text: what is shown is what it holds.

    Args:
        title: heading over it, a few words.
        caption: what its numbers are, in a sentence.
        header: name of each column.
        rows: cells, as many in each row as the header has.

    Raises:
        ValueError: a row of another length.

    Example:
        >>> table = PlainTable("At equal loss", "Difference to plain.", ["method", "held-out KL"], [["l1", "-3.1 %"]])
        >>> table.rows[0][1]
        '-3.1 %'
    """

    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"`rows[{index}]` of the table {self.title!r} must have {len(self.header)} cells as `header` has,"
                    f" got {len(row)}"
                )
