"""A strength that finds itself: it rises while there is too little sparsity, or while the loss leaves room."""

import math

READINGS = 500
"""How often in a fit a strength that finds itself looks at what it has reached."""

_ARRIVAL = 0.8  # share of the steps after which the whole sparsity is asked for
_AVERAGED = 20  # over about how many a loss is averaged


class Ascent:
    r"""A factor that follows a goal by dual ascent in its logarithm, with a proportional part.

    .. math:: \lambda_t = e^{\mu_t + p\,g_t}, \qquad \mu_{t+1} = \mu_t + \rho\,g_t / T

    g is the gap, within +-.1 or +-1: how much of the goal is missing (positive) or exceeded (negative); T is the number of
    steps. :math:`\mu` is the logarithm of the multiplier of the constraint "g <= 0", because strengths that work lie
    decades apart between models; the proportional part answers at once, which keeps the zeros from overshooting while
    the multiplier comes down.

    Args:
        sparsity: Wanted share of exact zeros. What is asked for rises linearly, and is all of it after 80 % of the steps.
        loss_budget: Highest loss that may be paid; the gap is the free share of the budget, the loss averaged over
            about 20 readings. The factor is 0 until the loss has been below the budget.

    Attributes:
        factor: :math:`\lambda`; at the start 1 for a sparsity and 0 for a budget.

    Example:
        >>> ascent = Ascent(sparsity=0.8)
        >>> ascent.read(0.0, steps=10, done=80, of=1000)  # a tenth of the way: .08 are missing
        >>> round(ascent.factor, 2)
        5.2

    Source: dual ascent on a sparsity constraint after Gallego-Posada et al., "Controlled sparsity via constrained
    optimization", 2022; exponentiated updates after Kivinen and Warmuth, 1997.
    """

    def __init__(self, sparsity: float | None = None, loss_budget: float | None = None) -> None:
        self.sparsity, self.loss_budget = sparsity, loss_budget
        self.factor, self._log = 0.0, 0.0
        self._mean: float | None = None
        self.restore({})

    def read(self, value: float, *, steps: int, done: int, of: int) -> None:
        """Takes what was reached (share of zeros, or a loss) and moves the factor.

        Args:
            value: A reading that is not finite is ignored.
            steps: Since the last reading.
            done: Since the start.
            of: In all.
        """
        if not math.isfinite(value):
            return
        if self.sparsity is not None:
            gap = max(-0.1, min(0.1, self.sparsity * min(1.0, done / of / _ARRIVAL) - value))
            self._move(gap, steps / of, gain=60.0, at_once=20.0)
            return
        assert self.loss_budget is not None
        self._mean = value if self._mean is None else self._mean + (value - self._mean) / _AVERAGED
        gap = max(-1.0, 1 - self._mean / self.loss_budget)
        if self.factor > 0 or gap > 0:
            self._move(gap, steps / of, gain=10.0, at_once=3.0)

    def _move(self, gap: float, share: float, gain: float, at_once: float) -> None:
        self._log += gain * gap * share
        self.factor = math.exp(self._log + at_once * gap)

    def state(self) -> dict[str, float]:
        """Plain numbers."""
        return {"factor": self.factor, "log": self._log} | ({} if self._mean is None else {"mean": self._mean})

    def restore(self, state: dict[str, float]) -> None:
        """The opposite of :meth:`state`; of nothing, the start."""
        self.factor = state.get("factor", 1.0 if self.sparsity is not None else 0.0)
        self._log, self._mean = state.get("log", 0.0), state.get("mean")
