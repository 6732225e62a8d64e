"""Loss against difficulty: the profile that tells a heuristic, a search and a memory apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from legibility.scores._inputs import check_floating

BINS = 64
"""Doublings of difficulty that the profile resolves, from 2^-32 to 2^32."""


@dataclass(frozen=True)
class DifficultyProfile:
    """How loss grows with difficulty. No direction is better.

    Attributes:
        slope: loss per doubling of difficulty, by least squares; NaN if difficulty doesn't vary.
        standard_error: of the slope, for independent examples.
        profile: mean loss in each doubling of difficulty, by its lower edge.
    """

    slope: float
    standard_error: float
    profile: Mapping[float, float]


def difficulty_slope(loss: Float[Tensor, " N"], difficulty: Float[Tensor, " N"]) -> DifficultyProfile:
    r"""Least-squares slope of loss against log2 difficulty, and the profile over doublings.

        slope = sum (d - mean d) (loss - mean loss) / sum (d - mean d)^2,   d = log2 difficulty

    A signature, not a grade: an inner search of fixed budget is flat and then breaks where the budget ends, a heuristic
    rises or stays flat throughout, a memory doesn't depend on difficulty at all. Compare with such reference models of
    the same task (`reference_profiles`) by `profile_distance`. With the number of test-time iterations for
    difficulty it says whether more thinking helps: then the slope is negative.

    Card:
        Range and direction: any, in units of loss per doubling; none is better. Cost: none beyond the losses.
        Control: an untrained model; its profile is the task's own difficulty for guessing. Constant models have one too.
        Gamed by: a difficulty that goes with something else (size, parity): stratify. Prefer regret to hits where good
        heuristics are nearly optimal. Soft losses follow temperature; hard ones don't.
        Not trained on, unless examples were weighted by difficulty.

    Args:
        loss: of each example, finite.
        difficulty: positive and finite.

    Returns:
        the profile.

    Raises:
        TypeError: if a tensor isn't floating point.
        ValueError: if shapes don't fit, or values aren't finite or positive.

    Example:
        >>> import torch
        >>> from legibility.scores import difficulty_slope
        >>> found = difficulty_slope(torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
        >>> round(found.slope, 3), found.profile
        (0.904, {1.0: 1.0, 2.0: 2.0, 4.0: 3.0})

    Source: of this project; easy-to-hard extrapolation after Schwarzschild et al., "Can you learn an algorithm?", 2021.
    """
    return _compute(_sums(loss, difficulty))


def profile_distance(profile: Mapping[float, float], reference: Mapping[float, float]) -> float:
    """Root mean square difference of two profiles over the doublings that both have.

    Range `[0, inf)` in units of loss, lower = more alike; NaN if they share none. The smallest over reference models
    names the likeliest mechanism, if a difference as large as that between two training seeds rules the others out.

    Example:
        >>> from legibility.scores import profile_distance
        >>> profile_distance({1.0: 0.0, 2.0: 3.0}, {2.0: 1.0, 4.0: 0.0})
        2.0
    """
    shared = sorted(set(profile) & set(reference))
    if not shared:
        return math.nan
    return math.sqrt(sum((profile[edge] - reference[edge]) ** 2 for edge in shared) / len(shared))


def search_regret(
    values: Float[Tensor, "N candidates"], budget: int, *, chosen: Tensor | None = None
) -> Float[Tensor, " N"]:
    """What a reference model loses against the best candidate: an exact search of `budget` candidates, or a heuristic.

    The search takes the best of the first `budget` candidates, in the order given; `chosen` (an index for each example)
    takes the place of the first of them, so that budget 1 with `chosen` is a pure heuristic. Candidates that don't exist
    for an example are -inf. Regret is >= 0, lower = better, in units of `values`.

    Args:
        values: what each candidate is worth.
        budget: number of candidates looked at, at least 1.
        chosen: the heuristic's candidate.

    Raises:
        TypeError: if `values` isn't floating point.
        ValueError: if shapes don't fit, the budget isn't positive, or what would be chosen doesn't exist.

    Example:
        >>> import torch
        >>> from legibility.scores import search_regret
        >>> search_regret(torch.tensor([[1.0, 5.0, 2.0]]), 1), search_regret(torch.tensor([[1.0, 5.0, 2.0]]), 2)
        (tensor([4.]), tensor([0.]))
    """
    check_floating(values, "values")
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"`values` must be (N, candidates), got {tuple(values.shape)}.")
    if budget < 1:
        raise ValueError(f"`budget` must be at least 1, got {budget}.")
    if chosen is not None and (chosen.is_floating_point() or chosen.shape != values.shape[:1]):
        raise ValueError(f"`chosen` must hold an index for each of the {len(values)} examples.")
    seen = values[:, :budget].clone()
    if chosen is not None:
        seen[:, 0] = values.gather(1, chosen.unsqueeze(1))[:, 0]
    best = seen.max(1).values
    if not bool(torch.isfinite(best).all()):
        raise ValueError("`values` must be finite for at least one candidate that is looked at in each example.")
    return values.max(1).values - best


def reference_profiles(
    values: Float[Tensor, "N candidates"],
    difficulty: Float[Tensor, " N"],
    *,
    budgets: Sequence[int] = (4, 16),
    chosen: Tensor | None = None,
    known: Tensor | None = None,
) -> dict[str, DifficultyProfile]:
    """Profiles of regret of models whose mechanism is known, to lay beside a model's own.

    - ``guess``: any candidate, all alike (the expected regret).
    - ``heuristic``: `chosen`, for each example.
    - ``search of B``: the best of the first B candidates, in the order given.
    - ``memory``: the best where `known`, a guess elsewhere.

    A model's own profile is `difficulty_slope` of its regret; `profile_distance` says which of these it is nearest to.

    Args:
        values: what each candidate is worth; -inf for one that doesn't exist.
        difficulty: of each example, positive.
        budgets: of the searches.
        chosen: the heuristic's candidate; None leaves it out.
        known: bool `(N,)`, the examples that were seen in training; None leaves the memory out.

    Returns:
        the profiles by name.

    Raises:
        ValueError: as `search_regret` and `difficulty_slope`.

    Example:
        >>> import torch
        >>> from legibility.scores import reference_profiles
        >>> values = torch.tensor([[1.0, 5.0, 2.0], [3.0, 0.0, 0.0]])
        >>> found = reference_profiles(values, torch.tensor([1.0, 2.0]), budgets=[2], known=torch.tensor([True, False]))
        >>> {name: list(each.profile.values()) for name, each in found.items()}
        {'guess': [2.333..., 2.0], 'search of 2': [0.0, 0.0], 'memory': [0.0, 2.0]}
    """
    best = values.max(1).values
    exists = torch.isfinite(values)
    guess = best - torch.where(exists, values, 0.0).sum(1) / exists.sum(1)
    regrets = {"guess": guess}
    if chosen is not None:
        regrets["heuristic"] = search_regret(values, 1, chosen=chosen)
    regrets |= {f"search of {budget}": search_regret(values, budget) for budget in budgets}
    if known is not None:
        if known.dtype != torch.bool or known.shape != best.shape:
            raise ValueError(f"`known` must be bool ({len(best)},), got {known.dtype} {tuple(known.shape)}.")
        regrets["memory"] = torch.where(known, 0.0, guess)
    return {name: difficulty_slope(regret, difficulty) for name, regret in regrets.items()}


class DifficultySlope(Metric):
    """Streaming `difficulty_slope` (its card is there) over all batches and ranks.

    `update(loss, difficulty)`; `compute()` gives float64 scalars: `"slope"`, `"standard_error"`. `findings()` gives the
    profile too, of what this process holds. States are float64 sums; the profile has a bin for each doubling.

    Example:
        >>> import torch
        >>> from legibility.scores import DifficultySlope
        >>> score = DifficultySlope()
        >>> score.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0]))
        >>> score.compute()["slope"]
        tensor(1., dtype=torch.float64)
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None
    full_state_update: bool | None = False

    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(6 + 2 * BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, difficulty: Tensor) -> None:
        """Add a batch: the loss of each example, and how difficult it is."""
        self.sums = self.sums + _sums(loss, difficulty).to(self.sums)

    def findings(self) -> DifficultyProfile:
        """Slope and profile of what this process holds."""
        return _compute(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """The slope and its standard error."""
        found = self.findings()
        return {
            "slope": self.sums.new_tensor(found.slope),
            "standard_error": self.sums.new_tensor(found.standard_error),
        }

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)


def _sums(loss: Tensor, difficulty: Tensor) -> Tensor:
    """Count, sums of d, d^2, loss, loss^2 and d loss; then of losses and counts for each doubling."""
    check_floating(loss, "loss")
    check_floating(difficulty, "difficulty")
    if loss.ndim != 1 or difficulty.shape != loss.shape:
        raise ValueError(
            f"`loss` and `difficulty` must both be (N,), got {tuple(loss.shape)} and {tuple(difficulty.shape)}."
        )
    loss, difficulty = loss.detach().to(torch.float64), difficulty.detach().to(torch.float64)
    if not bool(torch.isfinite(loss).all()):
        raise ValueError("`loss` must be finite.")
    if not bool((torch.isfinite(difficulty) & (difficulty > 0)).all()):
        raise ValueError("`difficulty` must be positive and finite.")
    d = difficulty.log2()
    moments = [torch.ones_like(d), d, d.square(), loss, loss.square(), d * loss]
    # log2 of a power of two may round down.
    bins = ((d + 1e-12).floor().long() + BINS // 2).clamp(0, BINS - 1)
    binned = torch.zeros(2, BINS, dtype=torch.float64, device=loss.device)
    binned[0].index_add_(0, bins, loss)
    binned[1].index_add_(0, bins, torch.ones_like(loss))
    return torch.cat([torch.stack([moment.sum() for moment in moments]), binned.flatten()])


def _compute(sums: Tensor) -> DifficultyProfile:
    count, d, squares, loss, loss_squares, products = sums[:6].tolist()
    totals, counts = sums[6:].view(2, BINS).tolist()
    profile = {
        2.0 ** (index - BINS // 2): total / number
        for index, (total, number) in enumerate(zip(totals, counts, strict=True))
        if number
    }
    spread = squares - d * d / count if count else 0.0
    if count < 3 or spread <= 1e-12 * max(squares, 1.0):
        return DifficultyProfile(math.nan, math.nan, profile)
    slope = (products - d * loss / count) / spread
    residual = max(0.0, loss_squares - loss * loss / count - slope * slope * spread)
    return DifficultyProfile(slope, math.sqrt(residual / (count - 2) / spread), profile)
