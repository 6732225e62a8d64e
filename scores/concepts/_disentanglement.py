"""DCI disentanglement times gated informativeness: does each unit speak of one concept, and do they speak at all."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from legibility.scores.concepts._labelled import as_classes, checked_mask, permuted
from legibility.scores.concepts._linear_probe import Probes, fit_probes, standardised, untrained_probes

PROTOCOL = "disentanglement/1"
"""Version of the protocol; values of different versions must not be compared."""

_PATH = (0.5, 0.25, 0.12, 0.06, 0.03, 0.015, 0.007)  # L1 strengths, as shares of the one that empties a probe


def dci_disentanglement(
    importances: Float[Tensor, "units concepts"],
) -> tuple[float, Float[Tensor, " units"]]:
    r"""Disentanglement of DCI: how far each unit is important for one concept only.

        D_i = 1 - H_K(P_i),  P_ij = R_ij / sum_k R_ik,   D = sum_i rho_i D_i,  rho_i = sum_j R_ij / sum_ij R_ij

    with `R >= 0` the importances, `K` the number of concepts and `H_K` the entropy to the base K. Range [0, 1], higher =
    each unit speaks of one concept. One unit for two of ten concepts has `1 - ln 2 / ln 10 = .69897`; two units that
    are a rotation of two concepts by 22.5 degrees .1276, by 45 degrees 0. Duplicated units cost nothing. **Importances
    of pure noise can have 1**: use `gated_disentanglement`. The transpose gives completeness: whether each concept is
    spoken of by one unit only.

    Args:
        importances: >= 0 and finite, for at least two concepts.

    Returns:
        `D`, NaN if all importances are 0, and `D_i` of each unit, NaN where a unit has none.

    Raises:
        ValueError: if the shape or a value doesn't fit.

    Example:
        >>> import torch
        >>> from legibility.scores import dci_disentanglement
        >>> dci_disentanglement(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        (0.333..., tensor([1., 0.], dtype=torch.float64))

    Source: Eastwood and Williams, "A framework for the quantitative evaluation of disentangled representations", 2018.
    """
    if importances.ndim != 2 or importances.shape[1] < 2 or importances.shape[0] == 0:
        raise ValueError(
            f"`importances` must be (units, concepts) with at least 2 concepts, got {tuple(importances.shape)}."
        )
    exact = importances.detach().to(torch.float64)
    if not bool(torch.isfinite(exact).all()) or bool((exact < 0).any()):
        raise ValueError("`importances` must be finite and >= 0.")
    total = exact.sum(1)
    shares = exact / total.unsqueeze(1)  # NaN for a unit without any
    per_unit = 1 - torch.special.entr(shares).sum(1) / math.log(exact.shape[1])
    if not bool(total.any()):
        return math.nan, per_unit
    return float((total / total.sum() * per_unit).nansum().clamp(0, 1)), per_unit


@dataclass(frozen=True, eq=False)
class Disentanglement:
    """The score and what it is made of; NaN where it can't be taken, and `reason` says why.

    Attributes:
        score: `disentanglement * gate`, in [0, 1], higher = units stand for single concepts, which can be read.
        disentanglement: D of DCI; NaN if no probe uses any unit.
        completeness: C of DCI, the same for concepts over units.
        informativeness: I, mean accuracy of the probes on positions they hadn't seen.
        permuted_informativeness: the same with permuted labels, the control.
        gate: `max(0, (I - I_perm) / (1 - I_perm))`.
        importances: `(units, concepts)`; each concept's sum to the share of it that is read beyond chance.
        reason: why `score` is NaN; empty otherwise.
        protocol: version of the protocol.
    """

    score: float
    disentanglement: float
    completeness: float
    informativeness: float
    permuted_informativeness: float
    gate: float
    importances: Float[Tensor, "units concepts"]
    reason: str = ""
    protocol: str = field(default=PROTOCOL)


def gated_disentanglement(
    activations: Float[Tensor, "*batch units"],
    concepts: Int[Tensor, "*batch concepts"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    permutations: int = 5,
    seed: int = 0,
) -> Disentanglement:
    r"""Disentanglement of the units of a layer, counted only as far as they tell the concepts at all.

        score = D * max(0, (I - I_perm) / (1 - I_perm))

    Importances are mean |coefficient| of one L1-penalised multinomial probe per concept on standardised units, scaled
    to sum to `max(0, (I_c - I_perm_c) / (1 - I_perm_c))` for concept c: coefficients grow with the number of classes and
    with how sharply they separate, and a concept with large ones everywhere would make all units look devoted to it (an
    untrained network then scored above the trained one). Half of the positions fit the probes, a quarter chooses each
    one's penalty (of seven, the largest first, until the next one is worse), a quarter measures the accuracy I. `I_perm`
    is the accuracy of the same procedure with permuted labels: the gate is needed because probes of pure noise are
    often sparse and then perfectly "disentangled".

    Card:
        Range and direction: [0, 1], higher = single units stand for single concepts. NaN if no unit varies, or there
        are fewer than two concepts with two values.
        Cost: `concepts * (1 + permutations)` probes, each fitted along up to seven penalties.
        Controls: permuted labels (inside). Measure a random-init network and, where a layer's basis is no privileged
        one (a residual stream), a random rotation of the layer beside it.
        Gamed by: a choice of concepts (nested ones, such as digit and parity, can't be told apart by units, and an
        untrained layer may then score above a trained one); a layer of one-hot copies of the labels. Not by rescaled,
        permuted or duplicated units, nor by temperature. A rotation changes it: that is what it measures.
        Not trained on, unless concept labels took part in the loss.

    Args:
        activations: the layer, `(N, ..., units)`.
        concepts: integers >= 0, a value of each concept for every position, at least two concepts.
        mask: positions that count; None means all.
        permutations: of the labels, at least 1.
        seed: of the split and the permutations. The global random state isn't used.

    Returns:
        the findings.

    Raises:
        TypeError: if a tensor has the wrong kind of numbers.
        ValueError: if shapes don't fit, positions or concepts are too few, or values aren't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import gated_disentanglement
        >>> signs = torch.randint(2, (512, 2), generator=torch.Generator().manual_seed(0))
        >>> pure, mixed = signs.float(), signs.float() @ torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> round(gated_disentanglement(pure, signs).score, 2), round(gated_disentanglement(mixed, signs).score, 2)
        (1.0, 0.0)

    Source: Eastwood and Williams, 2018; the gate is ours.
    """
    if permutations < 1:
        raise ValueError(f"`permutations` must be at least 1, got {permutations}.")
    mask = checked_mask(activations, concepts, mask)
    rows = activations.detach()[mask]
    labels, classes = as_classes(concepts[mask])
    varied = [c for c, own in enumerate(classes) if own > 1]
    if concepts.shape[-1] < 2:
        raise ValueError("`concepts` must hold at least 2 concepts for units to tell apart, got 1.")
    units = rows.shape[1]
    if len(varied) < 2:
        return _missing(units, concepts.shape[-1], "fewer than two concepts have more than one value here")
    labels, classes = labels[:, varied], [classes[c] for c in varied]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    rows, labels = rows[order], labels[order]
    columns = torch.cat([labels, *(permuted(labels, generator) for _ in range(permutations))], 1)
    half, quarter = len(rows) // 2, 3 * len(rows) // 4
    inputs = standardised(rows, like=rows[:half])
    if not bool(inputs[:half].any()):
        return _missing(units, concepts.shape[-1], "no unit of the layer varies")
    weight, accuracy = _chosen_probes(inputs, columns, classes * (1 + permutations), half, quarter)
    accuracy = accuracy.view(1 + permutations, len(varied))
    null = accuracy[1:].mean(0)
    read = torch.where(null < 1, (accuracy[0] - null) / (1 - null), 0.0).clamp(min=0)
    # Classes that a concept lacks have no coefficient.
    size = torch.stack([weight[c, :, :own].abs().mean(-1) for c, own in enumerate(classes)], 1)
    importances = torch.zeros(units, concepts.shape[-1], dtype=torch.float64, device=rows.device)
    importances[:, varied] = size / size.sum(0).clamp(min=torch.finfo(size.dtype).tiny) * read
    informativeness, chance = float(accuracy[0].mean()), float(null.mean())
    gate = max(0.0, (informativeness - chance) / (1 - chance)) if chance < 1 else 0.0
    found, _ = dci_disentanglement(importances[:, varied])
    complete = math.nan if units < 2 else dci_disentanglement(importances[:, varied].T)[0]
    return Disentanglement(
        # Probes that use no unit know nothing: the worst value, not a missing one.
        score=0.0 if math.isnan(found) else found * gate,
        disentanglement=found,
        completeness=complete,
        informativeness=informativeness,
        permuted_informativeness=chance,
        gate=gate,
        importances=importances,
    )


def _chosen_probes(
    inputs: Tensor, labels: Tensor, classes: list[int], half: int, quarter: int
) -> tuple[Tensor, Tensor]:
    """Weights of each concept's probe at the penalty that codes the third quarter best; accuracy on the fourth."""
    fitting = slice(0, half)
    most = max(classes)
    indicator = torch.nn.functional.one_hot(labels[fitting], most).to(inputs)
    slopes = torch.einsum("nd,nck->cdk", inputs[fitting], indicator - indicator.mean(0)) / half
    emptying = slopes.abs().amax((1, 2)).clamp(min=torch.finfo(inputs.dtype).tiny)
    probes = untrained_probes(inputs.shape[1], classes, inputs.device)
    best = torch.full((len(classes),), math.inf, dtype=inputs.dtype, device=inputs.device)
    chosen, kept = probes.weight.clone(), probes.bias.clone()
    trying = torch.arange(len(classes), device=inputs.device)  # until a smaller penalty no longer helps
    for share in _PATH:
        probes = fit_probes(
            inputs[fitting], labels[fitting][:, trying], probes, l1=share * emptying[trying], tolerance=1e-4
        )
        loss = _cross_entropy(probes, inputs[half:quarter], labels[half:quarter][:, trying])
        better = loss < best[trying]
        trying, probes = trying[better], Probes(probes.weight[better], probes.bias[better])
        if len(trying) == 0:
            break
        best[trying] = loss[better]
        chosen[trying], kept[trying] = probes.weight, probes.bias
    answer = Probes(chosen, kept).logits(inputs[quarter:]).argmax(-1)
    return chosen, (answer == labels[quarter:]).double().mean(0)


def _cross_entropy(probes: Probes, inputs: Tensor, labels: Tensor) -> Tensor:
    log_q = probes.logits(inputs).log_softmax(-1)
    return -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(0)


def _missing(units: int, concepts: int, reason: str) -> Disentanglement:
    none = torch.zeros(units, concepts, dtype=torch.float64)
    return Disentanglement(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, none, reason)
