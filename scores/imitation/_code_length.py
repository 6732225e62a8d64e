"""Code lengths in bits: what it costs to send labels, without and with a model."""

import math

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from legibility.scores._inputs import check_floating, check_labels

MIXTURE = 1e-3
"""Share of the uniform distribution mixed into every prediction before it codes a label (eta)."""


def kt_code_length(counts: Num[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    r"""Length in bits of a label sequence under the Krichevsky-Trofimov code, which ignores the inputs.

    The code predicts class `k` by `(c_k + 1/2) / (n + K/2)` from the counts so far. Its total length doesn't depend on
    the order of the labels:

        log2 G(N + K/2) - log2 G(K/2) - sum_k [log2 G(c_k + 1/2) - log2 G(1/2)]

    with `G` the gamma function, `K` the number of classes and `N = sum_k c_k`. Lower is shorter; 0 labels cost 0 bits.

    Args:
        counts: how often each class occurs, finite and >= 0, any number type.

    Returns:
        bits, float64.

    Raises:
        ValueError: if a count is negative or not finite, or there are no classes.

    Example:
        >>> import torch
        >>> from legibility.scores import kt_code_length
        >>> kt_code_length(torch.tensor([2, 0]))  # 1/2 * 3/4 = 3/8, so log2(8/3) bits
        tensor(1.4150, dtype=torch.float64)

    Source: Krichevsky and Trofimov, "The performance of universal encoding", 1981.
    """
    if counts.ndim == 0 or counts.shape[-1] == 0:
        raise ValueError(f"`counts` must hold one number per class in its last dimension, got {tuple(counts.shape)}.")
    exact = counts.to(torch.float64)
    if not bool(torch.isfinite(exact).all()) or bool((exact < 0).any()):
        raise ValueError("`counts` must be finite and >= 0.")
    classes = exact.shape[-1]
    total = torch.lgamma(exact.sum(-1) + classes / 2) - math.lgamma(classes / 2)
    seen = torch.lgamma(exact + 0.5).sum(-1) - classes * math.lgamma(0.5)
    return (total - seen) / math.log(2)


def prediction_code_length(
    logits: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"], *, mixture: float = MIXTURE
) -> Float[Tensor, "*batch"]:
    """Bits that a prediction spends on each label: `-log2 [(1 - eta) q(label) + eta / K]`.

    The mixture bounds the cost of one confident mistake by `log2(K / eta)`. Lower is shorter.

    Args:
        logits: the prediction, natural log up to a constant.
        labels: classes in `0..K-1`.
        mixture: eta, the share of the uniform distribution, in `[0, 1]`.

    Returns:
        bits per label, float64, unreduced.

    Raises:
        TypeError: if `logits` isn't floating point or `labels` isn't an integer tensor.
        ValueError: if the shapes don't fit, a label isn't a class, or `mixture` isn't in `[0, 1]`.

    Example:
        >>> import torch
        >>> from legibility.scores import prediction_code_length
        >>> round(prediction_code_length(torch.zeros(8), torch.tensor(5)).item(), 6)  # uniform over 8 classes
        3.0

    Source: prequential coding, Dawid 1984; Blier and Ollivier, "The description length of deep learning models", 2018.
    """
    check_floating(logits, "logits")
    check_labels(labels, logits)
    if not 0.0 <= mixture <= 1.0:
        raise ValueError(f"`mixture` must be in [0, 1], got {mixture}.")
    # In float64 from the logits of the label and the normaliser only: a full float64 log-softmax would be larger.
    exact = logits.to(torch.float64)
    log_share = exact.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1) - exact.logsumexp(-1)
    return -torch.log2((1.0 - mixture) * log_share.exp() + mixture / logits.shape[-1])


def code_length_saving(code_length: float, null_code_length: float) -> float:
    """Share of the null code that a model saves: `S = 1 - PCL / PCL_0`.

    Range `(-inf, 1]`, higher = better compressed, 0 = no better than the null code.

    Args:
        code_length: bits with the model (PCL).
        null_code_length: bits of the code that ignores the inputs (PCL_0, `kt_code_length`).

    Returns:
        the saving; NaN when the null code is empty (nothing to save).

    Example:
        >>> from legibility.scores import code_length_saving
        >>> code_length_saving(250.0, 1000.0)
        0.75
    """
    if not null_code_length > 0.0:
        return math.nan
    return 1.0 - code_length / null_code_length
