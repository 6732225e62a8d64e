"""How much time a report may take."""

import math
import time
from dataclasses import dataclass

LEAST_SHARE = 0.02
"""Of the fit's time: what costs almost nothing is measured even where the held-out students used the budget up."""


@dataclass(frozen=True)
class Budget:
    """What the user allows.

    Attributes:
        share: Of the fit's time, for the whole report.
        seconds: Seconds for the whole report, in place of a share.

    Raises:
        ValueError: For numbers below 0.

    Example:
        >>> Budget(0.15).left(fit_seconds=100.0, spent=5.0)
        10.0
        >>> Budget(0.15).left(fit_seconds=100.0, spent=40.0)  # the students took it all: what is nearly free still is taken
        2.0
        >>> Budget(0.15, seconds=60.0).left(fit_seconds=None, spent=40.0)
        20.0
    """

    share: float
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.share >= 0.0:
            raise ValueError(f"`budget` must be a share of the fit's time, at least 0, got {self.share}.")
        if self.seconds is not None and not self.seconds >= 0.0:
            raise ValueError(f"`budget_seconds` must be at least 0, got {self.seconds}.")

    def left(self, fit_seconds: float | None, spent: float) -> float:
        """Seconds that are left for what the held-out students leave undone.

        Args:
            fit_seconds: Of the fit that the report belongs to; None if there was none.
            spent: Seconds that the report took already.
        """
        if self.seconds is not None:
            return max(0.0, self.seconds - spent)
        if fit_seconds is None or self.share == 0.0:
            return 0.0
        return max(self.share * fit_seconds - spent, min(self.share, LEAST_SHARE) * fit_seconds)

    def reason(self, fit_seconds: float | None) -> str:
        """Why nothing is left."""
        if self.seconds is None and fit_seconds is None:
            return "no fit was run whose time could be shared: give `budget_seconds=`"
        if self.share == 0.0 or self.seconds == 0.0:
            return "not asked for: the budget is 0"
        return "no time is left of the budget"

    def in_words(self, fit_seconds: float | None) -> str:
        """For the reader."""
        if self.seconds is not None:
            return "no limit" if math.isinf(self.seconds) else f"{self.seconds:.3g} s"
        return f"{100 * self.share:.3g} % of the fit" + (
            "" if fit_seconds is None else f", {self.share * fit_seconds:.1f} s"
        )


@dataclass(frozen=True)
class Spent:
    """A budget while it is spent.

    Attributes:
        budget: What the user allows.
        fit_seconds: Of the fit that the report belongs to; None if there was none.
        start: When the report began, by `time.perf_counter`.
    """

    budget: Budget
    fit_seconds: float | None
    start: float

    def left(self) -> float:
        """Seconds that are left now."""
        return self.budget.left(self.fit_seconds, time.perf_counter() - self.start)

    @property
    def why_none(self) -> str:
        """Why nothing is left."""
        return self.budget.reason(self.fit_seconds)

    def told(self, estimates: str) -> str:
        """What is said before the scores beside the held-out students are taken."""
        took, allowed = time.perf_counter() - self.start, self.budget.in_words(self.fit_seconds)
        return f"InterpretabilityReport: held-out students took {took:.1f} s (budget: {allowed}). {estimates}"
