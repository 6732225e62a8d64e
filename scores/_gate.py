"""Whether a model has learnt anything: scores that untrained models win have no value for one that hasn't."""

import math
from collections.abc import Callable

import torch

from legibility.scores._divergence import LEAST_INFORMATION, information_bits
from legibility.scores._material import Material
from legibility.scores._measure import UNLEARNT, Reading
from legibility.scores.imitation._errors import why_no_better
from legibility.scores.imitation._queries import Queries


def why_unlearnt(queries: Queries) -> str | None:
    """Why a model counts as untrained; None if it doesn't.

    Where labels are known: it isn't surely right more often than whoever always says the commonest label. Elsewhere: its
    answers carry less than .05 bits about the input.
    """
    logits = queries.logits[queries.counted]
    if queries.labels is None:
        information = information_bits(logits)
        if information < LEAST_INFORMATION:
            return f"the model is as good as constant: its answers carry {information:.2g} bits about the input"
        return None
    true = queries.labels[queries.counted.to(queries.labels.device)].to(logits.device)
    accuracy = float((logits.argmax(-1) == true).double().mean())
    commonest = float(torch.bincount(true).max()) / len(true)
    return why_no_better(accuracy, commonest, len(true))


def if_learnt(take: Callable[[Material], Reading]) -> Callable[[Material], Reading]:
    """A measurement that has no value for an untrained model; what was measured all the same stays in its details."""

    def gated(material: Material) -> Reading:
        unlearnt, found = why_unlearnt(material.queries), take(material)
        if unlearnt is None:
            return found
        if math.isnan(found.value):
            return Reading(math.nan, found.reason or unlearnt, details=found.details)
        reason = f"{unlearnt} (its value would be {found.value:.4g})"
        return Reading(math.nan, reason, details={**found.details, UNLEARNT: found.value})

    return gated
