"""How far two distributions over classes are apart, from logits and in log space; the mean over what counts."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.losses._inputs import check_floating, check_mask, check_positive, working_precision

_LOGITS = "floating point logits, shaped (*batch, classes)"


def forward_kl(
    primary: Float[Tensor, "*batch classes"],
    student: Float[Tensor, "*batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""KL(p || q): the nats per example that the student's beliefs q cost whoever sees the primary's p.

        T^2 * sum_c p_c (log p_c - log q_c),    p = softmax(primary / T),  q = softmax(student / T)

    Mass-covering in q: the student pays where the primary believes something and it doesn't. The factor T^2 keeps the
    gradients' size roughly independent of the temperature T (Hinton et al.), so the value is in nats only at T = 1.
    Range [0, inf), 0 if and only if p = q; lower is better. Gradients flow into both arguments: detach the side that
    must not learn. For the student's logits the gradient is T (q - p).

    Classes without probability are exact: a class that the primary rules out (logit -inf, or so low that p underflows)
    adds 0, whatever the student thinks of it. A class that only the student rules out while p > 0 gives inf, and then
    the gradient in the primary is not finite. A row with a NaN or +inf logit, or all -inf, gives NaN.

    Args:
        primary: Logits of the model that is imitated. bfloat16 and float16 are computed in float32.
        student: Logits of the model that imitates, of the same shape.
        temperature: T > 0; above 1 both distributions are flattened before they are compared.

    Returns:
        One value per example, in float32 (float64 if an argument is float64). Nothing is averaged: see `masked_mean`.

    Raises:
        TypeError: If `primary` or `student` is not a floating point tensor.
        ValueError: If the shapes differ, there are fewer than 2 classes, or `temperature` is not finite and above 0.

    Example:
        >>> import torch
        >>> from legibility.losses import forward_kl
        >>> primary = torch.tensor([[0.0, 0.0]])  # p = (1/2, 1/2)
        >>> student = torch.tensor([[0.75, 0.25]]).log()
        >>> forward_kl(primary, student)  # 1/2 log(2/3) + 1/2 log 2
        tensor([0.1438])

    Source:
        Kullback & Leibler, "On information and sufficiency", 1951. T^2: Hinton, Vinyals & Dean, "Distilling the
        knowledge in a neural network", arXiv:1503.02531, section 2.
    """
    _check_pair(primary, student, temperature)
    log_p, log_q = _log_softmax(primary, temperature), _log_softmax(student, temperature)
    p = log_p.exp()
    return _times_square(_weighted_sum(p, log_p - log_q, dead=p.logical_not()), temperature)


def reverse_kl(
    primary: Float[Tensor, "*batch classes"],
    student: Float[Tensor, "*batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""KL(q || p): the nats per example that the primary's beliefs p cost whoever draws from the student's q.

        T^2 * sum_c q_c (log q_c - log p_c),    p = softmax(primary / T),  q = softmax(student / T)

    Mode-seeking in q: the student pays for believing what the primary doesn't. This is `forward_kl` with the arguments
    exchanged; range, factor T^2, precision and the treatment of classes without probability are described there.

    Args:
        primary: Logits of the model that is imitated.
        student: Logits of the model that imitates, of the same shape.
        temperature: T > 0; above 1 both distributions are flattened before they are compared.

    Returns:
        One value per example, in float32 (float64 if an argument is float64); inf where only the primary rules a class
        out that has q > 0.

    Raises:
        TypeError: If `primary` or `student` is not a floating point tensor.
        ValueError: If the shapes differ, there are fewer than 2 classes, or `temperature` is not finite and above 0.

    Example:
        >>> import torch
        >>> from legibility.losses import reverse_kl
        >>> primary = torch.tensor([[0.0, 0.0]])  # p = (1/2, 1/2)
        >>> student = torch.tensor([[0.75, 0.25]]).log()
        >>> reverse_kl(primary, student)  # 3/4 log(3/2) + 1/4 log(1/2)
        tensor([0.1308])

    Source:
        Kullback & Leibler, "On information and sufficiency", 1951.
    """
    _check_pair(primary, student, temperature)
    log_p, log_q = _log_softmax(primary, temperature), _log_softmax(student, temperature)
    q = log_q.exp()
    return _times_square(_weighted_sum(q, log_q - log_p, dead=q.logical_not()), temperature)


def symmetric_kl(
    primary: Float[Tensor, "*batch classes"],
    student: Float[Tensor, "*batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Half of KL(p || q) + KL(q || p), in nats per example: neither side may ignore what the other believes.

        T^2 / 2 * sum_c (p_c - q_c) (log p_c - log q_c),    p = softmax(primary / T),  q = softmax(student / T)

    Half of Jeffreys' divergence. Range [0, inf), 0 if and only if p = q; lower is better; unchanged when the arguments
    are exchanged. Costs less than the two divergences apart, for each log-softmax is taken once.

    A class that both rule out adds 0; one that exactly one of them rules out while the other gives it probability
    makes the value inf and the gradients not finite. Factor T^2 and precision are as in `forward_kl`.

    Args:
        primary: Logits of one model.
        student: Logits of the other, of the same shape.
        temperature: T > 0; above 1 both distributions are flattened before they are compared.

    Returns:
        One value per example, in float32 (float64 if an argument is float64).

    Raises:
        TypeError: If `primary` or `student` is not a floating point tensor.
        ValueError: If the shapes differ, there are fewer than 2 classes, or `temperature` is not finite and above 0.

    Example:
        >>> import torch
        >>> from legibility.losses import symmetric_kl
        >>> primary = torch.tensor([[0.0, 0.0]])  # p = (1/2, 1/2)
        >>> student = torch.tensor([[0.75, 0.25]]).log()
        >>> symmetric_kl(primary, student)  # 1/8 log 3
        tensor([0.1373])

    Source:
        Jeffreys, "An invariant form for the prior probability in estimation problems", 1946.
    """
    _check_pair(primary, student, temperature)
    log_p, log_q = _log_softmax(primary, temperature), _log_softmax(student, temperature)
    p, q = log_p.exp(), log_q.exp()
    total = _weighted_sum(p - q, log_p - log_q, dead=(p + q).logical_not())
    return _times_square(0.5 * total, temperature)


def entropy(logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    r"""Entropy of softmax(logits), in nats per example: how undecided a model is.

        -sum_c p_c log p_c,    p = softmax(logits)

    Range [0, log(classes)]; neither end is better in itself. A softened model has more of it, so a KL that fell while
    entropy rose may be softening alone. Differentiable; classes without probability add 0.

    Args:
        logits: Logits of one model; bfloat16 and float16 are computed in float32.

    Returns:
        One value per example, in float32 (float64 for float64 logits).

    Raises:
        TypeError: If `logits` is not a floating point tensor.
        ValueError: If there are fewer than 2 classes.

    Example:
        >>> import torch
        >>> from legibility.losses import entropy
        >>> entropy(torch.zeros(1, 4))  # log 4
        tensor([1.3863])

    Source:
        Shannon, "A mathematical theory of communication", 1948.
    """
    _check_logits(logits, "logits")
    log_p = _log_softmax(logits, 1.0)
    p = log_p.exp()
    return _weighted_sum(p, -log_p, dead=p.logical_not())


def masked_mean(values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, ""]:
    r"""Mean of the values that count.

        sum_i m_i v_i / sum_i m_i,    m_i = 1 where `mask` is True, else 0

    Divides by the number of True entries of this call alone: averaging over ranks or micro-batches with different
    counts is the caller's. The mean of nothing (mask all False, or empty `values`) is 0 with zero gradient, so that a
    batch of padding neither moves nor poisons anybody. Masked-out values may be NaN; they get gradient 0, which the
    function that made them may still turn into NaN if its own inputs were not finite.

    Args:
        values: One value per example or position; bfloat16 and float16 are averaged in float32.
        mask: True where a value counts; None for everywhere. Same shape as `values`, it is not broadcast.

    Returns:
        A scalar, in float32 (float64 for float64 values).

    Raises:
        TypeError: If `values` is not floating point or `mask` not boolean.
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> from legibility.losses import masked_mean
        >>> masked_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    check_floating(values, "values", "a floating point tensor")
    values = working_precision(values)
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    check_mask(mask, values.shape, "the shape of `values`")
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def _check_logits(logits: Tensor, argument: str) -> None:
    check_floating(logits, argument, _LOGITS)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(
            f"`{argument}` must be {_LOGITS} with at least 2 classes, got shape {tuple(logits.shape)}: one class is "
            "always certain. A single logit z for yes or no is the pair `torch.stack([torch.zeros_like(z), z], -1)`"
        )


def _check_pair(primary: Tensor, student: Tensor, temperature: float) -> None:
    _check_logits(primary, "primary")
    _check_logits(student, "student")
    if primary.shape != student.shape:
        raise ValueError(
            f"`student` must have the shape of `primary` {tuple(primary.shape)}, got {tuple(student.shape)}: "
            "nothing is broadcast"
        )
    check_positive(temperature, "temperature")


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = working_precision(logits)
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _times_square(value: Tensor, temperature: float) -> Tensor:
    return value if temperature == 1 else value * temperature**2


def _weighted_sum(weight: Tensor, log_ratio: Tensor, *, dead: Tensor) -> Tensor:
    """Sum over classes of weight * log_ratio, where `dead` classes (weight 0) add 0 even if log_ratio isn't finite.

    Writes into `log_ratio`. That write stays out of the graph: the slope in log_ratio is the weight, which is 0 there
    already, and a masked backward would be one more pass over everything.
    """
    with torch.no_grad():
        log_ratio.masked_fill_(dead, 0.0)
    return (weight * log_ratio).sum(-1)
