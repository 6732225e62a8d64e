"""Linear CKA without bias: whether two layers of different models arrange the same inputs alike."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from legibility.scores._inputs import check_floating, check_mask

_SIDES = ("x", "y")


def linear_cka(
    x: Float[Tensor, "*batch units"],
    y: Float[Tensor, "*batch others"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
) -> float:
    r"""Centred kernel alignment of two layers with linear kernels, with the unbiased estimator of HSIC.

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = X X^T,  L = Y Y^T
        HSIC = [tr K~L~ + 1K~1 1L~1 / ((n-1)(n-2)) - 2/(n-2) 1K~L~1] / (n (n-3)),   K~, L~ without their diagonals

    The plain estimator tends to 1 when units outnumber samples, whatever the layers; this one to 0 for unrelated ones.
    Invariant to rotations, to one scale for a whole layer and to shifts, not to separate scales of units.

    Card:
        Range and direction: at most about 1 (estimates can be a little outside of [0, 1]), higher = more alike. NaN if a
        layer doesn't vary, or too little for an estimate. Cost: `samples * units * others`.
        Control: the same with rows of one side permuted is 0 on average; a random-init primary must stand beside it, for
        wide untrained layers keep the inputs' similarities and look alike.
        Gamed by: a few directions of large variance, which are nearly all that it sees. Says nothing about use.
        Not trained on, unless students imitated this layer.

    Args:
        x: a layer of the primary.
        y: a layer of a student on the same positions.
        mask: positions that count; None means all.

    Returns:
        the alignment.

    Raises:
        TypeError: if a tensor isn't floating point.
        ValueError: if shapes don't fit, values aren't finite, or fewer than 4 positions count.

    Example:
        >>> import torch
        >>> from legibility.scores import linear_cka
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> rotated = x @ torch.linalg.qr(torch.randn(3, 3))[0] * 5
        >>> round(linear_cka(x, rotated), 6)
        1.0

    Source: Kornblith et al., "Similarity of neural network representations revisited", 2019; estimator: Song et al.,
    "Feature selection via dependence maximization", 2012.
    """
    rows = _rows(x, y, mask)
    # Shifts change nothing in exact arithmetic; without them sums keep their digits.
    centred = (rows[0] - rows[0].mean(0), rows[1] - rows[1].mean(0))
    return _compute(_sums(*centred))


def _rows(x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    for side, tensor in zip(_SIDES, (x, y), strict=True):
        check_floating(tensor, side)
        if tensor.ndim < 2 or tensor.shape[-1] == 0:
            raise ValueError(f"`{side}` must be shaped (..., units) with units > 0, got {tuple(tensor.shape)}.")
    if x.shape[:-1] != y.shape[:-1]:
        raise ValueError(f"`y` must be shaped {(*x.shape[:-1], 'units')} as `x`, got {tuple(y.shape)}.")
    check_mask(mask, x)
    pair = (x.flatten(0, -2), y.flatten(0, -2)) if mask is None else (x[mask], y[mask])
    for side, tensor in zip(_SIDES, pair, strict=True):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"`{side}` must be finite where `mask` is True.")
    return pair[0].detach().to(torch.float64), pair[1].detach().to(torch.float64)


def _sums(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Everything that the three HSICs need, each a sum over rows."""
    sides = {"x": x, "y": y}
    norms = {side: rows.square().sum(1) for side, rows in sides.items()}
    found = {"count": torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)}
    for one in _SIDES:
        found[f"sum_{one}"] = sides[one].sum(0)
        found[f"norm_{one}"] = norms[one].sum()
        for other in _SIDES:
            found[f"weighted_{one}{other}"] = sides[one].T @ norms[other]
    for one, other in ("xx", "xy", "yy"):
        found[f"product_{one}{other}"] = sides[one].T @ sides[other]
        found[f"norms_{one}{other}"] = norms[one] @ norms[other]
    return found


def _compute(sums: dict[str, Tensor]) -> float:
    count = float(sums["count"])
    if count < 4:
        raise ValueError(f"`x` and `y` must hold at least 4 unmasked positions, got {int(count)}.")

    def hsic(one: str, other: str) -> Tensor:
        product, a, b = sums[f"product_{one}{other}"], sums[f"sum_{one}"], sums[f"sum_{other}"]
        diagonals = sums[f"norms_{one}{other}"]
        first = product.square().sum() - diagonals
        second = (a @ a - sums[f"norm_{one}"]) * (b @ b - sums[f"norm_{other}"])
        third = a @ product @ b - a @ sums[f"weighted_{one}{other}"] - b @ sums[f"weighted_{other}{one}"] + diagonals
        return (first + second / ((count - 1) * (count - 2)) - 2 / (count - 2) * third) / (count * (count - 3))

    own, others = hsic("x", "x"), hsic("y", "y")
    # Relative to its diagonal part, an HSIC of rounding.
    floor = [1e-20 * float(sums[f"norms_{side}{side}"]) for side in _SIDES]
    if not (own > floor[0] and others > floor[1]):
        return float("nan")
    return float(hsic("x", "y") / (own * others).sqrt())


class LinearCKA(Metric):
    """Streaming `linear_cka` (its card is there): sums over all batches and ranks, exact, not a mean over batches.

    `update(x, y, mask=None)`; `compute()` gives a float64 scalar. States are float64 sums (`units^2 + others^2` and a
    few numbers). A mean that exceeds the standard deviation a hundred times costs half of the digits.

    Args:
        units: of `x`.
        others: units of `y`.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        TypeError: as `linear_cka`.
        ValueError: as `linear_cka`.

    Example:
        >>> import torch
        >>> from legibility.scores import LinearCKA
        >>> score = LinearCKA(units=3, others=1)
        >>> for batch in torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0)):
        ...     score.update(batch, batch[:, :1])
        >>> round(score.compute().item(), 2)  # one direction of three: about 1 / sqrt(3)
        0.57
    """

    is_differentiable: bool | None = False
    # Alike is neither good nor bad: wide untrained layers are alike.
    higher_is_better: bool | None = None
    full_state_update: bool | None = False
    plot_upper_bound: float | None = 1.0

    def __init__(self, units: int, others: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if min(units, others) < 1:
            raise ValueError(f"`units` and `others` must be at least 1, got {units} and {others}.")
        self.units, self.others = units, others
        none = _sums(torch.zeros(0, units, dtype=torch.float64), torch.zeros(0, others, dtype=torch.float64))
        self.names = tuple(none)
        for name, value in none.items():
            self.add_state(name, value, dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of both layers, and which positions count."""
        for side, tensor, units in (("x", x, self.units), ("y", y, self.others)):
            if tensor.ndim and tensor.shape[-1] != units:
                raise ValueError(f"`{side}` must have {units} units in its last dimension, got {tuple(tensor.shape)}.")
        for name, value in _sums(*_rows(x, y, mask)).items():
            setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Tensor:
        """The alignment over everything seen."""
        sums = {name: getattr(self, name) for name in self.names}
        return torch.tensor(_compute(sums), dtype=torch.float64, device=sums["count"].device)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
