"""The legibility term: how far the primary's output is from what its students predict."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from legibility.lightning_plugins.foundation._injector import Penalty
from legibility.lightning_plugins.foundation._recording import Recording
from legibility.losses import entropy, kl_sum_and_gradient, masked_mean
from legibility.students import ImitationLoss, Prediction

Direction = Literal["forward", "reverse", "symmetric"]


def standardised_error(primary: Tensor, student: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Squared error of each prediction in units of the primary's own (detached) variance.

    :math:`d_n = \frac1U \sum_u (h_{nu} - g_{nu})^2 / (\mathrm{var}_u(h) + \epsilon)`, with
    :math:`\epsilon = 10^{-6} \cdot \mathrm{mean}_u \mathrm{var}_u(h) + 10^{-12}` so that a constant unit stays finite.

    Args:
        primary: h, "... units"; gradient flows here.
        student: g, the same shape.
        mask: bool "...", True where a prediction counts for the variance; None counts all.

    Returns:
        One value for each prediction ("..."), >= 0, lower = closer, about 1 for a student that predicts the mean.
    """
    flat = primary.detach().reshape(-1, primary.shape[-1])
    counts = torch.ones_like(flat[:, :1], dtype=torch.bool) if mask is None else mask.reshape(-1, 1)
    count = counts.sum()
    mean = torch.where(counts, flat, 0.0).sum(0) / count.clamp(min=1)
    variance = torch.where(counts, flat - mean, 0.0).square().sum(0) / count.clamp(min=1)
    variance = torch.where(count > 1, variance, 1.0)  # one prediction alone varies around nothing
    floor = 1e-6 * variance.mean() + 1e-12
    return ((primary - student) ** 2 / (variance + floor)).mean(-1)


def legibility_penalty(
    recording: Recording,
    predictions: Sequence[Tensor],
    active: Sequence[bool],
    *,
    strength: float,
    direction: Direction,
    values: bool,
    share: float | None = None,
) -> tuple[Tensor, Penalty | None]:
    r"""The term of one recorded call.

    :math:`L = \frac1K \sum_{k \in \mathrm{active}} \overline{d(h, \mathrm{sg}\, o_k)}`, with d the KL divergence in
    the given direction (or :func:`standardised_error` for values) averaged over counted positions. Students that have
    not yet left the uniform prediction count as zero, not as absent: the others' weight does not depend on them.

    Args:
        recording: The call; its ``output`` gets the gradient.
        predictions: One output for each of the K students, in the prediction shape; detached here.
        active: Whether each student counts.
        strength: Coefficient of the term.
        direction: ``"forward"`` KL(p || q_k), ``"reverse"`` KL(q_k || p) or ``"symmetric"``, half of both.
        values: The output holds values, not logits.
        share: Weight of each student instead of 1/K.

    Returns:
        The unweighted term (scalar, float32, detached, >= 0, lower = more legible), and ``strength`` times it as a
        penalty: None if there is nothing to add to. A term without active students is added as zero, so that the
        graph is the same in every step: DDP with ``static_graph`` believes the first one.
    """
    primary = recording.imitated.float()
    # A sum is finite only if every number is, and takes a twentieth of the time of isfinite().all().
    sound = [torch.isfinite(prediction.detach().sum()) for prediction in predictions]
    # A student that fails in this very step counts as zero: it predicts what the primary says.
    students = [
        torch.where(ok, prediction.detach(), primary)
        for ok, prediction, counts in zip(sound, predictions, active, strict=True)
        if counts
    ]
    mask = recording.mask if primary.ndim == 3 else None
    if values:
        total, gradient = _error_and_gradient(primary, students, mask)
    else:
        total, gradient = kl_sum_and_gradient(primary, students, direction=direction, mask=mask)
    share = 1 / max(len(predictions), 1) if share is None else share
    term = total * share
    if strength == 0 or not recording.output.requires_grad:
        return term, None
    scaled = gradient.mul_(strength * share).reshape(recording.output.shape)
    return term, Penalty(strength * term, [(recording.output, scaled)], recording.source)


def _error_and_gradient(primary: Tensor, students: Sequence[Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum over students of the mean standardised error, and its gradient in the primary's values."""
    # Padding may hold NaN: zeros keep it out of the gradient too.
    leaf = (primary if mask is None else torch.where(mask.unsqueeze(-1), primary, 0.0)).requires_grad_()
    total = torch.zeros((), device=leaf.device)
    with torch.enable_grad():
        for student in students:
            total = total + masked_mean(standardised_error(leaf, student, mask), mask)
        if not students:
            return total, torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient


def term_in_words(
    kind: Literal["distribution", "values"], direction: Direction, strength: float, warm_up_steps: int
) -> str:
    """What the primary is asked for, as the summary says it.

    Example:
        >>> term_in_words("distribution", "symmetric", 0.2, 100)
        "symmetric KL to the students' outputs, strength 0.2, reached over the first 100 steps"
    """
    if strength == 0:
        return "none (strength 0): students are only measured"
    warm = f", reached over the first {warm_up_steps} steps" if warm_up_steps else ""
    what = "standardised error" if kind == "values" else f"{direction} KL"
    return f"{what} to the students' outputs, strength {strength:g}{warm}"


@torch.no_grad()
def describe(
    kind: Literal["distribution", "values"],
    recording: Recording,
    predictions: Sequence[tuple[str, Prediction]],
    losses: Mapping[str, ImitationLoss],
) -> dict[str, Tensor | float]:
    """What is logged about one call, besides the term.

    Args:
        kind: What the output is.
        recording: The call.
        predictions: What the students said.
        losses: What they were told.

    Returns:
        ``entropy`` of the primary (nats), and for each student ``imitation``, ``disagreement`` and ``fvu/<tap>``.
    """
    output = recording.imitated.float()
    mask = recording.mask if output.ndim == 3 else None
    logs: dict[str, Tensor | float] = {}
    if kind == "distribution":
        logs["entropy"] = masked_mean(entropy(output), mask)
    for name, prediction in predictions:
        if name not in losses:
            continue
        logs[f"student/{name}/imitation"] = losses[name].output
        if kind == "distribution":
            other = prediction.output.argmax(-1) != output.argmax(-1)
            logs[f"student/{name}/disagreement"] = masked_mean(other.float(), mask)
        logs |= {f"student/{name}/fvu/{tap}": fvu for tap, fvu in losses[name].taps.items()}
    return logs
