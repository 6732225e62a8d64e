"""Grids of numbers as small PNG pictures: transparent at 0, so that they stand on light and on dark."""

import base64
import math
import struct
import zlib
from collections.abc import Sequence

from legibility.tradeoff.model_page._picture import Grid

UP, DOWN, NOTHING = (13, 130, 218), (211, 94, 1), (128, 128, 128)
_STEPS = 99


def grid_png(grid: Grid, *, hatched: bool = False) -> str:
    """A data URL of a picture with one pixel for each number: blue above 0, orange below, stronger away from it.

    Args:
        grid: rows of equal length, from -99 to 99.
        hatched: numbers below 0 mean that there is nothing: all of them grey.

    Raises:
        ValueError: no pixel, or rows of different lengths.

    Example:
        >>> grid_png([[0, 99], [-99, 50]])[:30]
        'data:image/png;base64,iVBORw0K'
    """
    width = len(grid[0]) if grid else 0
    if width == 0 or any(len(row) != width for row in grid):
        raise ValueError(f"`grid` must be rows of one length, got {[len(row) for row in grid][:5]}")
    down = [(*NOTHING, 60)] * _STEPS if hatched else [(*DOWN, _alpha(step)) for step in range(_STEPS, 0, -1)]
    palette = [*down, (*NOTHING, 0), *((*UP, _alpha(step)) for step in range(1, _STEPS + 1))]
    rows = b"".join(b"\0" + bytes(min(max(value, -_STEPS), _STEPS) + _STEPS for value in row) for row in grid)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(grid), 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", bytes(part for colour in palette for part in colour[:3]))
        + _chunk(b"tRNS", bytes(colour[3] for colour in palette))
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _alpha(step: int) -> int:
    return round(255 * math.pow(step / _STEPS, 0.8))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def joined(grids: Sequence[Grid], gap: int = 1) -> Grid:
    """Grids of one height side by side.

    Example:
        >>> joined([[[1], [2]], [[3], [4]]])
        [[1, 0, 3], [2, 0, 4]]
    """
    rows = zip(*grids, strict=True)
    return [
        [value for place, part in enumerate(row) for value in [*([0] * gap if place else []), *part]] for row in rows
    ]
