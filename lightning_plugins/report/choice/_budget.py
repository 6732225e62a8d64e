"""How much time a report may take."""

import math
import numbers
import time
from dataclasses import dataclass

LEAST_SHARE = 0.02
"""Of the fit's time: what costs almost nothing is measured even where the held-out students used the budget up."""

_MARGIN = 0.2  # of the budget: estimates are rough
_PAGE_SHARE, _PAGE_SECONDS = 0.3, 3.0  # of the budget, and at most: what is kept for drawing the model


@dataclass(frozen=True)
class Budget:
    """What the user allows.

    Attributes:
        share: Of the fit's time, for the whole report.
        seconds: Seconds for the whole report, in place of a share.

    Raises:
        TypeError: For no numbers.
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
        given: dict[str, object] = {"budget": self.share, "budget_seconds": self.seconds}
        for argument, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
                raise TypeError(f"`{argument}` must be a number >= 0, got {value!r} ({type(value).__name__}).")
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
        limit = self.limit(fit_seconds)
        if limit is None:
            return 0.0
        least = 0.0 if self.seconds is not None or fit_seconds is None else min(self.share, LEAST_SHARE) * fit_seconds
        return max(limit - spent, least)

    def limit(self, fit_seconds: float | None) -> float | None:
        """Seconds for the whole report; None where neither a fit nor the user says."""
        if self.seconds is not None or fit_seconds is None:
            return self.seconds
        return self.share * fit_seconds

    def reason(self, fit_seconds: float | None) -> str:
        """Why nothing is left."""
        if self.seconds is None and fit_seconds is None:
            return "no fit was run whose time could be shared: give `budget_seconds=`"
        if self.share == 0.0 or self.seconds == 0.0:
            return "not asked for: the budget is 0"
        return "no time is left of the budget"

    def in_words(self, fit_seconds: float | None) -> str:
        """For the reader."""
        limit = self.limit(fit_seconds)
        if self.seconds is None:
            return f"{100 * self.share:.3g} % of the fit" + ("" if limit is None else f", {limit:.1f} s")
        return "no limit" if math.isinf(self.seconds) else f"{self.seconds:.3g} s"


@dataclass(frozen=True)
class Spent:
    """A budget while it is spent.

    Attributes:
        budget: What the user allows.
        fit_seconds: Of the fit that the report belongs to; None if there was none.
        start: When the report began, by `time.perf_counter`.
        page: Whether the model will be drawn, for which something is kept.
    """

    budget: Budget
    fit_seconds: float | None
    start: float
    page: bool

    def left(self) -> float:
        """Seconds that are left now for what the held-out students leave undone."""
        return self.budget.left(self.fit_seconds, self._gone())

    def for_students(self) -> float:
        """Seconds that are left now for held-out students that nobody named; no limit where nothing sets one."""
        limit = self.budget.limit(self.fit_seconds)
        return math.inf if limit is None else max(0.0, limit - self._gone())

    def for_page(self) -> float:
        """Seconds that are left now for drawing the model; no limit where nothing sets one."""
        limit = self.budget.limit(self.fit_seconds)
        return math.inf if limit is None else limit - (time.perf_counter() - self.start)

    def _gone(self) -> float:
        """Seconds that are spent or spoken for."""
        limit = self.budget.limit(self.fit_seconds)
        gone = time.perf_counter() - self.start
        if limit is None or math.isinf(limit):
            return gone
        return gone + _MARGIN * limit + (min(_PAGE_SHARE * limit, _PAGE_SECONDS) if self.page else 0.0)

    @property
    def why_none(self) -> str:
        """Why nothing is left."""
        return self.budget.reason(self.fit_seconds)

    def told(self, estimates: str) -> str:
        """What is said before the scores beside the held-out students are taken."""
        took, allowed = time.perf_counter() - self.start, self.budget.in_words(self.fit_seconds)
        return f"InterpretabilityReport has taken {took:.1f} s (budget: {allowed}). {estimates}"
