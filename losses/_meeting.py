"""The distance of one distribution to several fixed ones with its gradient, in closed form: no graph, few passes."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.losses._inputs import check_floating, check_mask, working_precision

Direction = Literal["forward", "reverse", "symmetric"]


@torch.no_grad()
def kl_sum_and_gradient(
    primary: Float[Tensor, "*batch classes"],
    students: Sequence[Float[Tensor, "*batch classes"]],
    *,
    direction: Direction = "symmetric",
    mask: Bool[Tensor, "*batch"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "*batch classes"]]:
    r"""The sum over students of the mean KL to them, and its gradient in the primary's logits.

        value = sum_k mean_n d(p_n, q_kn),    p = softmax(primary),  q_k = softmax(students[k])

    with d = KL(p || q) ("forward"), KL(q || p) ("reverse") or half of both ("symmetric"), and the mean over the rows n
    that count. The gradient is that of the formula, per row and divided by the number of rows that count:

        d/dh KL(p || q) = p (log p - log q - KL(p || q)),        d/dh KL(q || p) = p - q

    It equals autograd through `forward_kl`, `reverse_kl` or `symmetric_kl` and `masked_mean`, for a fraction of the
    work: one softmax of the primary for all students, nothing kept for a backward pass. Range of the value [0, inf) in
    nats; lower is better. A class that both rule out adds 0 to both; rows with NaN give NaN.

    Args:
        primary: Logits. bfloat16 and float16 are computed in float32.
        students: Logits of each student, of the primary's shape; they get no gradient.
        direction: Which KL.
        mask: True where a row counts; None counts all. If none counts, value and gradient are 0.

    Returns:
        The value, and the gradient in the primary's shape; float32, or float64 for float64 logits.

    Raises:
        TypeError: If logits are not floating point, or `mask` is not boolean.
        ValueError: For another direction, or shapes that differ.

    Example:
        >>> value, gradient = kl_sum_and_gradient(torch.zeros(1, 2), [torch.tensor([[0.75, 0.25]]).log()])
        >>> value, gradient  # symmetric: (p - q) . log(p / q) / 2 = 1/8 log 3
        (tensor(0.1373), tensor([[-0.2623,  0.2623]]))

    Source: the derivatives of KL in logits; checked against autograd in the tests.
    """
    if direction not in ("forward", "reverse", "symmetric"):
        raise ValueError(f"`direction` must be 'forward', 'reverse' or 'symmetric', got {direction!r}")
    check_floating(primary, "primary", "floating point logits, shaped (*batch, classes)")
    if mask is not None:
        check_mask(mask, primary.shape[:-1], "the shape of `primary` without its classes")
    log_p = F.log_softmax(working_precision(primary), dim=-1)
    p = log_p.exp()
    dead = p.logical_not()
    rows = torch.zeros_like(log_p[..., 0])
    # With slopes = sum_k (p log p/q_k - q_k), of which each direction takes its part, the gradient of both is
    # slopes - p sum(slopes): the softmax's own Jacobian, once for all students.
    slopes = torch.zeros_like(log_p)
    for number, student in enumerate(students):
        check_floating(student, f"students[{number}]", "floating point logits, shaped (*batch, classes)")
        if student.shape != primary.shape:
            raise ValueError(
                f"`students[{number}]` must have the shape of `primary` {tuple(primary.shape)}, got "
                f"{tuple(student.shape)}: nothing is broadcast"
            )
        log_q = F.log_softmax(working_precision(student), dim=-1)
        log_ratio = log_p - log_q
        if direction != "reverse":
            terms = (p * log_ratio).masked_fill_(dead, 0.0)
            rows += terms.sum(-1)
            slopes += terms
        if direction != "forward":
            q = log_q.exp_()
            slopes -= q
            rows -= log_ratio.mul_(q).masked_fill_(q.logical_not(), 0.0).sum(-1)
    gradient = slopes.addcmul_(p, slopes.sum(-1, keepdim=True), value=-1.0)
    half = 0.5 if direction == "symmetric" else 1.0
    if mask is None:
        return half * rows.mean(), gradient.mul_(half / max(rows.numel(), 1))
    share = half / mask.sum().clamp(min=1).to(rows.dtype)
    zero = torch.zeros((), dtype=rows.dtype, device=rows.device)
    counted = torch.where(mask.unsqueeze(-1), gradient, zero)
    return torch.where(mask, rows, zero).sum() * share, counted.mul_(share)
