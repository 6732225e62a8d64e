"""The legibility term: how far the primary's output is from what its students predict."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from legibility.lightning_plugins._injector import Penalty
from legibility.lightning_plugins._recording import Recording
from legibility.losses import entropy, forward_kl, masked_mean, reverse_kl, symmetric_kl
from legibility.students import ImitationLoss, Prediction

Direction = Literal["forward", "reverse", "symmetric"]
DIVERGENCES = {"forward": forward_kl, "reverse": reverse_kl, "symmetric": symmetric_kl}


def prediction_shape(output: Tensor, inputs: Tensor) -> tuple[int, ...]:
    """The shape in which students imitate an output: (batch, time, units) or (batch, units).

    An output with one row for each position of the input keeps its time axis, or gets it back if the model flattened
    batch and time; any other is flattened for each example.

    Example:
        >>> prediction_shape(torch.zeros(8), torch.zeros(8, 3))
        (8, 1)
        >>> prediction_shape(torch.zeros(8, 5, 7), torch.zeros(8, 5, dtype=torch.long))
        (8, 5, 7)
        >>> prediction_shape(torch.zeros(40, 7), torch.zeros(8, 5, dtype=torch.long))
        (8, 5, 7)
        >>> prediction_shape(torch.zeros(8, 1, 4, 4), torch.zeros(8, 3))
        (8, 16)
    """
    sequential = inputs.ndim == (3 if inputs.is_floating_point() else 2)
    if output.ndim == 2 and sequential and len(output) == inputs.shape[0] * inputs.shape[1] != len(inputs):
        return (inputs.shape[0], inputs.shape[1], output.shape[1])
    if output.ndim == 3 and sequential and inputs.shape[1] == output.shape[1]:
        return tuple(output.shape)
    return (output.shape[0], output[0].numel()) if output.ndim > 1 else (output.shape[0], 1)


def standardised_error(primary: Tensor, student: Tensor) -> Tensor:
    r"""Squared error of each prediction in units of the primary's own (detached) variance.

    :math:`d_n = \frac1U \sum_u (h_{nu} - g_{nu})^2 / (\mathrm{var}_u(h) + \epsilon)`, with
    :math:`\epsilon = 10^{-6} \cdot \mathrm{mean}_u \mathrm{var}_u(h) + 10^{-12}` so that a constant unit stays finite.

    Args:
        primary: h, "... units"; gradient flows here.
        student: g, the same shape.

    Returns:
        One value for each prediction ("..."), >= 0, lower = closer, about 1 for a student that predicts the mean.
    """
    flat = primary.detach().reshape(-1, primary.shape[-1])
    variance = flat.var(0, unbiased=False) if len(flat) > 1 else torch.ones_like(flat[0])
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

    Returns:
        The unweighted term (scalar, float32, detached, >= 0, lower = more legible), and ``strength`` times it as a
        penalty: None if there is nothing to add.
    """
    shape = prediction_shape(recording.output, recording.inputs)
    # A float32 leaf: gradients of a float16 leaf underflow to zero.
    leaf = recording.output.detach().float().reshape(shape).requires_grad_()
    total = torch.zeros((), device=leaf.device)
    with torch.enable_grad():
        for prediction, counts in zip(predictions, active, strict=True):
            if not counts:
                continue
            sound = torch.isfinite(prediction).all()
            student = torch.where(sound, prediction.detach(), torch.zeros_like(prediction))
            distance = standardised_error(leaf, student) if values else DIVERGENCES[direction](leaf, student)
            total = total + sound * masked_mean(distance, recording.mask if distance.ndim == 2 else None)
        total = total / max(len(predictions), 1)
    if strength == 0 or not total.requires_grad or not recording.output.requires_grad:
        return total.detach(), None
    (gradient,) = torch.autograd.grad(total, leaf)
    gradient = (strength * gradient).reshape(recording.output.shape)
    return total.detach(), Penalty(strength * total.detach(), [(recording.output, gradient)])


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
    output = recording.output.detach().float()
    output = output.reshape(prediction_shape(output, recording.inputs))
    logs: dict[str, Tensor | float] = {}
    if kind == "distribution":
        logs["entropy"] = entropy(output).mean()
    for name, prediction in predictions:
        if name not in losses:
            continue
        logs[f"student/{name}/imitation"] = losses[name].output
        if kind == "distribution":
            logs[f"student/{name}/disagreement"] = (prediction.output.argmax(-1) != output.argmax(-1)).float().mean()
        logs |= {f"student/{name}/fvu/{tap}": fvu for tap, fvu in losses[name].taps.items()}
    return logs
