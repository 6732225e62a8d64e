"""Which of the concepts that a layer encodes does the model use: erasure and interchange against their null."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from legibility.scores._divergence import LEAST_INFORMATION, Rest, answers, information_bits, kl_bits, one_scale
from legibility.scores.concepts._labelled import as_classes, checked_mask, permuted
from legibility.scores.concepts._leace import Eraser, Whitened
from legibility.scores.concepts._linear_probe import probe_savings

PROTOCOL = "used-given-encoded/2"
"""Version of the protocol; values of different versions must not be compared."""

ENCODED = 0.05
"""A linear probe must save this share of a concept's code length for the concept to count as encoded."""

_LEAST_USE = 1e-6  # bits; below is rounding
_NO_EFFECTS = (math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class ConceptUse:
    """What was found out about one concept. Effects are in bits per position; NaN where there was nothing to measure.

    Attributes:
        saving: share of the concept's code length that a linear probe saves (decodability).
        permuted_saving: the same with permuted labels, the control: about 0 or below.
        accuracy: of that probe on positions that it hadn't seen.
        encoded: whether `saving` is at least 0.05.
        use: `KL(f || f with the concept erased)`.
        use_null: what 95 % of erasures of permuted labels stay below.
        interchange: `KL(f || f with another position's value of the concept)`.
        interchange_null: the same for permuted labels.
        used: encoded, and erasing it costs more than 95 % of erasures of permuted labels, at one scale of the logits.
        witnessed: used, and so does exchanging it.
        isolation: 1 - the mean share of the other encoded concepts' linear variance that erasing this one removes.
    """

    saving: float
    permuted_saving: float
    accuracy: float
    encoded: bool
    use: float
    use_null: float
    interchange: float
    interchange_null: float
    used: bool
    witnessed: bool
    isolation: float


@dataclass(frozen=True)
class UseOfConcepts:
    """The score and what it is made of; NaN where it can't be taken, and `reason` says why.

    Attributes:
        score: `share` times `isolation`, in [0, 1], higher = what is in the layer is what the model goes by.
        share: of the encoded concepts, those that are used beyond the null's 95 %.
        witnessed_share: of the encoded concepts, those that interchange finds used as well.
        isolation: mean over the encoded concepts; 1 when there is only one.
        excess_use: mean over the encoded concepts of what erasing exceeds the null by, as a share of what the answers say,
            both at one scale of the logits; >= 0, tells a strong use from a weak one. It can exceed 1: an erased concept can
            make answers wrong, not vague.
        information: `KL(p || marginal)` of the answers as they are, bits: what there is to lose.
        concepts: each concept's findings, in the order of the labels.
        reason: why `score` is NaN; empty otherwise.
        protocol: version of the protocol.
    """

    score: float
    share: float
    witnessed_share: float
    isolation: float
    excess_use: float
    information: float
    concepts: tuple[ConceptUse, ...] = ()
    reason: str = ""
    protocol: str = field(default=PROTOCOL)


def used_given_encoded(
    activations: Float[Tensor, "*batch units"],
    concepts: Int[Tensor, "*batch concepts"],
    rest: Rest,
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    permutations: int = 100,
    seed: int = 0,
) -> UseOfConcepts:
    r"""Share of a layer's linearly encoded concepts that the model's answer depends on, times their isolation.

    That a probe can read a concept doesn't say that the model does. For each concept:

    - **encoded**: a linear probe, fitted to growing prefixes, saves at least 5 % of the concept's code length.
    - **use** `u = mean KL(f(h) || f(r(h)))` in bits, `r` the LEACE eraser of the concept and `f` the rest of the model.
      Erasing anything costs something, so `u` must exceed 95 % of the erasures of the *same labels permuted* over
      positions: the same estimator, of the same rank, on the same activations.
      What counts as more is decided with the logits divided so that what varies in them has the RMS 3; sharpening or
      flattening all answers then changes no decision (in protocol 1 it did).
    - **interchange**, the second witness: the concept's component is exchanged with that of a random other position.
    - **isolation**: erasing one concept should leave the others. `1 - |P_c M_d|^2 / |M_d|^2` averaged over the other
      encoded concepts d, with `M` the whitened cross-covariances and `P_c` the projection on what the eraser removes.

    Card:
        Range and direction: [0, 1], higher = more of what is encoded is used. NaN for a model that is constant (answers
        carry < 0.05 bits about the input) or a layer that encodes none of the concepts.
        Cost: `2 (1 + permutations)` passes through `rest` for each encoded concept, 2 for the others, two probe fits
        per concept, one eigendecomposition `units x units`.
        Controls: permuted labels (inside). A random-init network must be measured beside it: its answers go by the
        directions of largest variance, which encode concepts too. Ordinarily it is as good as constant and has no
        score, but with its logits amplified it has a *share* and some excess use as well: never read them without it.
        `headline_scores` gives no value to a model that isn't surely better than the commonest label.
        Errs low: random labels erase part of what is used, so weak uses are missed (`docs/audit_concept_scores.md` says
        how many, and what an amplified net has).
        Gamed by: an amplified untrained net (above); a choice of concepts that are the task's own classes; a layer near
        the output. Not by temperature, rescaled or rotated units: answers are
        compared at one scale, decodability and erasure are affine.
        Not trained on, unless concepts or erasure took part in the loss.

    Args:
        activations: the layer, `(N, ..., units)`; all positions of a sequence are erased together.
        concepts: integers >= 0, a value of each concept for every position.
        rest: the model from this layer to its logits, in evaluation mode; called without gradients on batches of N.
        mask: positions that count; None means all. Masked positions are passed through `rest` as they are.
        permutations: R of the null, at least 20 for a 95 % quantile.
        seed: of the order of positions, permutations and donors. The global random state isn't used.

    Returns:
        the findings.

    Raises:
        TypeError: if a tensor has the wrong kind of numbers.
        ValueError: if shapes don't fit, positions are too few, values aren't finite, or `rest` gives no class logits.

    Example:
        >>> import torch
        >>> from legibility.scores import used_given_encoded
        >>> signs = torch.randint(2, (512, 2), generator=torch.Generator().manual_seed(0))
        >>> h = torch.cat([2.0 * signs - 1.0, torch.randn(512, 6, generator=torch.Generator().manual_seed(1))], 1)
        >>> found = used_given_encoded(h, signs, lambda h: h[:, :2] * torch.tensor([3.0, 0.0]), permutations=20)
        >>> found.share, [concept.used for concept in found.concepts]
        (0.5, [True, False])

    Source: erasure of Belrose et al., "LEACE", 2023, as amnesic probing (Elazar et al., 2021); interchange: Geiger et
    al., "Causal abstractions of neural networks", 2021; isolation after Huang et al., "RAVEL", 2024.
    """
    if permutations < 20:
        raise ValueError(f"`permutations` must be at least 20 for a 95 % quantile, got {permutations}.")
    mask = checked_mask(activations, concepts, mask)
    activations = activations.detach()
    real = answers(rest, activations, mask)
    information = information_bits(real)
    if information < LEAST_INFORMATION:
        reason = f"the model is as good as constant: its answers carry {information:.2g} bits about the input"
        return _missing(information, reason)
    generator = torch.Generator().manual_seed(seed)
    rows = activations[mask]
    labels, classes = as_classes(concepts[mask])
    shuffled = torch.randperm(len(rows), generator=generator).to(rows.device)
    probed = torch.cat([labels, permuted(labels, generator)], 1)
    savings, accuracies = probe_savings(rows[shuffled], probed[shuffled], classes * 2)
    intervention = _Intervention(rest, activations, mask, real, generator)
    whitened = Whitened.of(rows)
    encoded = [c for c in range(len(classes)) if savings[c] >= ENCODED]
    bases = {c: whitened.correlated(labels[:, c], classes[c]) for c in encoded}
    found, excesses = [], []
    for c, own in enumerate(classes):
        effects = intervention.effects(whitened.eraser(labels[:, c], own)) if own > 1 else _NO_EFFECTS
        null = torch.full((1, 4), math.nan, dtype=torch.float64)
        if c in encoded:
            null = torch.tensor(
                [
                    intervention.effects(whitened.eraser(permuted(labels[:, c : c + 1], generator)[:, 0], own))
                    for _ in range(permutations)
                ],
                dtype=torch.float64,
            )
        above = null.quantile(0.95, dim=0).tolist()
        used, witnessed = (effects[k] > above[k] + _LEAST_USE for k in (2, 3))
        if c in encoded:
            excesses.append(max(0.0, effects[2] - above[2]))
        others = [d for d in encoded if d != c]
        isolation = math.nan
        if c in encoded:
            kept = [_kept(whitened, labels[:, d], classes[d], bases[c]) for d in others]
            isolation = sum(kept) / len(kept) if kept else 1.0
        found.append(
            ConceptUse(
                saving=savings[c],
                permuted_saving=savings[len(classes) + c],
                accuracy=accuracies[c],
                encoded=c in encoded,
                use=effects[0],
                use_null=above[0],
                interchange=effects[1],
                interchange_null=above[1],
                used=used,
                witnessed=used and witnessed,
                isolation=isolation,
            )
        )
    if not encoded:
        return _missing(information, "no linear probe reads any of the concepts in this layer", tuple(found))
    chosen = [found[c] for c in encoded]
    share = sum(concept.used for concept in chosen) / len(chosen)
    isolation = sum(concept.isolation for concept in chosen) / len(chosen)
    return UseOfConcepts(
        score=share * isolation,
        share=share,
        witnessed_share=sum(concept.witnessed for concept in chosen) / len(chosen),
        isolation=isolation,
        excess_use=sum(excesses) / len(chosen) / information_bits(real / intervention.scale),
        information=information,
        concepts=tuple(found),
    )


def _kept(whitened: Whitened, labels: Tensor, classes: int, erased: Tensor) -> float:
    """Share of a concept's linear variance that is left after directions were erased; all, if it has none."""
    before = whitened.explained(labels, classes)
    return whitened.explained(labels, classes, erased) / before if before > 0 else 1.0


class _Intervention:
    """What the answers lose when an eraser's directions are emptied, or exchanged between positions."""

    def __init__(self, rest: Rest, activations: Tensor, mask: Tensor, real: Tensor, generator: torch.Generator) -> None:
        self.rest, self.activations, self.mask, self.real = rest, activations, mask, real
        self.scale = one_scale(real)
        self.rows = activations[mask]
        # One order of donors for all erasers: real and permuted labels are compared on the same pairs.
        self.donors = self.rows[torch.randperm(len(self.rows), generator=generator).to(self.rows.device)]

    def effects(self, eraser: Eraser) -> tuple[float, float, float, float]:
        """Bits lost by erasing and by exchanging, with the answers as they are; then the same at one scale."""
        erased, exchanged = self._effect(eraser.erase(self.rows)), self._effect(eraser.exchange(self.rows, self.donors))
        return erased[0], exchanged[0], erased[1], exchanged[1]

    def _effect(self, rows: Tensor) -> tuple[float, float]:
        changed = self.activations.clone()
        changed[self.mask] = rows
        said = answers(self.rest, changed, self.mask)
        plain, scaled = (kl_bits(self.real / by, said / by).mean() for by in (1.0, self.scale))
        return float(plain), float(scaled)


def _missing(information: float, reason: str, concepts: tuple[ConceptUse, ...] = ()) -> UseOfConcepts:
    return UseOfConcepts(math.nan, math.nan, math.nan, math.nan, math.nan, information, concepts, reason)
