"""Patch-through KL: what the primary says when a student's hidden state is put into it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from legibility.scores._inputs import check_floating, check_mask, check_same_shape


def patch_through_kl(
    logits: Float[Tensor, "*batch classes"],
    patched_logits: Float[Tensor, "*batch classes"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean `KL(p || p_patched)`: what the primary's answer loses when a tap is replaced by a student's prediction.

    `p` is the primary's output distribution, `p_patched` the output of the same primary on the same inputs with the
    tap overwritten. It asks whether another model can speak the primary's inner language, which the fraction of
    variance unexplained at the tap doesn't: that one can fall while this one rises.

    Card:
        Range and direction: `[0, inf]` in nats per position, lower = more legible, 0 when the patch changes nothing.
        Cost: one pass through the rest of the primary, and a student that predicts the tap.
        Controls: the primary's `KL(p || marginal)`, for a constant one gets 0 as well; the temperature that costs as much
        task loss. `further_scores` has it as a share of what the answers say, at one scale of the logits.
        Gamed by: softening; a tap that the rest ignores.
        Trained on, where the patch-through term is in the loss.

    Args:
        logits: the primary's logits.
        patched_logits: its logits with the patch.
        mask: positions that count; None means all.

    Returns:
        scalar, float64; NaN when no position counts.

    Raises:
        TypeError: if a tensor of logits isn't floating point.
        ValueError: if shapes don't fit, or `logits` aren't finite where `mask` is True.

    Example:
        >>> import torch
        >>> from legibility.scores import patch_through_kl
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> patched = torch.tensor([[1.0986, 0.0]])  # 3 : 1, so 1/2 ln(1/2 / 3/4) + 1/2 ln(1/2 / 1/4)
        >>> patch_through_kl(logits, patched)
        tensor(0.1438, dtype=torch.float64)

    Source: of this project; stitching as in Bansal, Nakkiran and Barak, "Revisiting model stitching", 2021.
    """
    total, count = _update(logits, patched_logits, mask)
    return total / count


def _update(logits: Tensor, patched_logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    check_floating(logits, "logits")
    check_floating(patched_logits, "patched_logits")
    check_same_shape(patched_logits, logits, "patched_logits", "logits")
    check_mask(mask, logits)
    if mask is not None:
        logits, patched_logits = logits[mask], patched_logits[mask]
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("`logits` must be finite where `mask` is True.")
    log_p = logits.detach().to(torch.float64).log_softmax(-1)
    log_q = patched_logits.detach().to(torch.float64).log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return divergence.sum(), torch.tensor(divergence.numel(), dtype=torch.float64, device=divergence.device)


class PatchThroughKL(Metric):
    """Streaming `patch_through_kl`: the mean over all positions of all batches and ranks.

    `update(logits, patched_logits, mask=None)`; `compute()` gives nats per position, float64, NaN before any position.
    Not trained on unless the patch-through term is in the loss.

    Example:
        >>> import torch
        >>> from legibility.scores import PatchThroughKL
        >>> score = PatchThroughKL()
        >>> score.update(torch.zeros(4, 2), torch.zeros(4, 2))
        >>> score.compute()
        tensor(0., dtype=torch.float64)
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = False
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0

    divergence: Tensor
    positions: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("divergence", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, patched_logits: Tensor, mask: Tensor | None = None) -> None:
        """Add one batch: the primary's logits without and with the patch, and which positions count."""
        divergence, positions = _update(logits, patched_logits, mask)
        self.divergence = self.divergence + divergence
        self.positions = self.positions + positions

    def compute(self) -> Tensor:
        """Nats per position over everything seen."""
        return self.divergence / self.positions

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one value or a list of them (needs matplotlib)."""
        return self._plot(val, ax)
