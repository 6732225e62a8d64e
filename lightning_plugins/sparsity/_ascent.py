"""A strength that finds itself: it rises while there is too little sparsity, or while the loss leaves room."""

import math


class Ascent:
    r"""A factor that follows a goal by exponentiated dual ascent: :math:`\lambda \leftarrow \lambda\,e^{\rho\,g/n}`.

    g in [-1, 1] is the gap: how much of the goal is missing (positive) or exceeded (negative); n is the number of
    steps. It is the multiplier of the constraint "gap <= 0", updated multiplicatively (mirror ascent), because strengths
    that work lie decades apart between models.

    Args:
        sparsity: Wanted share of exact zeros; the gap is what is missing to it.
        loss_budget: Highest loss that may be paid; the gap is the free share of the budget, the loss averaged over
            about 20 readings.
        gain: rho. At a constant gap of 1, lambda grows by :math:`e^{\rho}` over the fit.

    Attributes:
        factor: lambda, 1 at the start.

    Example:
        >>> ascent = Ascent(sparsity=0.9)
        >>> ascent.read(0.0, steps=4, of=1000)  # no zeros yet
        >>> round(ascent.factor, 2)
        1.15

    Source: dual ascent on a sparsity constraint after Gallego-Posada et al., "Controlled sparsity via constrained
    optimization", 2022; exponentiated updates after Kivinen and Warmuth, 1997.
    """

    def __init__(self, sparsity: float | None = None, loss_budget: float | None = None, gain: float = 40.0) -> None:
        self.sparsity, self.loss_budget, self.gain = sparsity, loss_budget, gain
        self.factor = 1.0
        self._mean: float | None = None

    def read(self, value: float, steps: int, of: int) -> None:
        """Takes what was reached (share of zeros, or a loss) and moves the factor for ``steps`` out of ``of`` steps."""
        if not math.isfinite(value):
            return
        if self.sparsity is not None:
            gap = self.sparsity - value
        else:
            assert self.loss_budget is not None
            self._mean = value if self._mean is None else self._mean + 0.05 * (value - self._mean)
            gap = (self.loss_budget - self._mean) / self.loss_budget
        self.factor *= math.exp(self.gain * max(-1.0, min(1.0, gap)) * steps / of)

    def state(self) -> dict[str, float]:
        """Plain numbers."""
        return {"factor": self.factor} | ({} if self._mean is None else {"mean": self._mean})

    def restore(self, state: dict[str, float]) -> None:
        """The opposite of :meth:`state`."""
        self.factor, self._mean = state.get("factor", 1.0), state.get("mean")
