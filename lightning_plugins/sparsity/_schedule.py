"""One language for everything that changes over a fit: warm up, hold, anneal, low-high-low."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from legibility.lightning_plugins.foundation._callback import check_share


@dataclass(frozen=True)
class Schedule:
    r"""A level over the fit, drawn through knots (u, level), with u in [0, 1] the share of the steps that are done.

    Before the first knot and after the last the level is theirs; in between it runs

    .. math:: y_0 + (y_1 - y_0)\,t \quad\text{("linear")}, \qquad y_1 + (y_0 - y_1)(1 - t)^3 \quad\text{("cubic")},

    with t from 0 to 1 between two knots: cubic does most of its way early. Two knots at one u are a jump. What a level
    of 1 means is said by whom it drives: the strength, or the whole way to a density. Where a callback heals, u counts
    the steps before healing.

    Args:
        knots: (u, level) pairs, u in [0, 1] and not falling, level >= 0.
        curve: Between the knots.

    Raises:
        ValueError: No knots, u outside of [0, 1] or falling, a level that is negative or not finite.

    Example:
        >>> [round(Schedule.warm_up(0.5).at(u), 2) for u in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
        >>> Schedule.anneal(0.0, 0.5, curve="cubic").at(0.25)
        0.875
        >>> [Schedule.low_high_low().at(u) for u in (0.1, 0.5, 0.9)]
        [0.1, 1.0, 0.1]

    Source: cubic after Zhu and Gupta, "To prune, or not to prune", 2017; low-high-low after Liu, Gan and Tegmark,
    "Seeing is believing: brain-inspired modular training", 2023.
    """

    knots: Sequence[tuple[float, float]] = ((0.0, 1.0),)
    curve: Literal["linear", "cubic"] = "linear"

    def __post_init__(self) -> None:
        if self.curve not in ("linear", "cubic"):
            raise ValueError(f'`curve` must be "linear" or "cubic", got {self.curve!r}.')
        try:
            knots = tuple((float(u), float(level)) for u, level in self.knots)
        except (TypeError, ValueError):
            raise ValueError(f"`knots` must be pairs (share of the fit, level), got {self.knots!r}.") from None
        object.__setattr__(self, "knots", knots)
        places = [u for u, _ in knots]
        if not knots or places != sorted(places) or not all(0 <= u <= 1 for u in places):
            raise ValueError(f"`knots` need shares of the fit from 0 to 1 in rising order, got {self.knots!r}.")
        if not all(0 <= level < float("inf") for _, level in knots):
            raise ValueError(f"`knots` need finite levels >= 0, got {self.knots!r}.")

    @classmethod
    def warm_up(cls, share: float) -> "Schedule":
        """A rise from 0 to 1 over the first ``share``, then held."""
        return cls(((0.0, 0.0), (check_share(share, "share"), 1.0)))

    @classmethod
    def anneal(cls, start: float = 0.01, end: float = 0.5, curve: Literal["linear", "cubic"] = "linear") -> "Schedule":
        """0 until ``start``, 1 from ``end`` on."""
        return cls(((start, 0.0), (end, 1.0)), curve)

    @classmethod
    def low_high_low(cls, low: float = 0.1, rise: float = 0.25, fall: float = 0.75) -> "Schedule":
        """``low``, then 1 from ``rise`` on, ``low`` again from ``fall`` on."""
        return cls(((0.0, low), (rise, low), (rise, 1.0), (fall, 1.0), (fall, low)))

    def at(self, u: float) -> float:
        """The level when a share ``u`` of the steps is done."""
        level = self.knots[0][1]
        for (start, before), (end, after) in zip(self.knots, self.knots[1:], strict=False):
            if u >= end:
                level = after
            elif u > start:
                way = (u - start) / (end - start)
                done = way if self.curve == "linear" else 1 - (1 - way) ** 3
                return before + (after - before) * done
        return level

    def level(self, step: int, steps: int) -> float:
        """The level of a step (from 0) out of ``steps``: that at the share which is done with it."""
        return self.at((step + 1) / steps)

    def total(self, steps: int) -> float:
        """The sum of the levels of all steps: what a budget is divided by."""
        return sum(self.level(step, steps) for step in range(steps))
