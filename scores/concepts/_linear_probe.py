"""Linear probes of many concepts at once: multinomial logistic regression with L1 or L2, solved to convergence."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from legibility.scores.imitation._code_length import code_length_saving, kt_code_length, prediction_code_length

_BLOCKS = 5
_SCALES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.1, 0.03, 0.0)  # of logits: inverse temperatures


@dataclass(frozen=True, eq=False)
class Probes:
    """One probe for each concept, with as many classes as the largest needs; the others' are ruled out.

    Attributes:
        weight: `(concepts, units, classes)` float64.
        bias: `(concepts, classes)`, -inf for classes that a concept doesn't have.
    """

    weight: Float[Tensor, "concepts units classes"]
    bias: Float[Tensor, "concepts classes"]

    def logits(self, inputs: Float[Tensor, "positions units"]) -> Float[Tensor, "positions concepts classes"]:
        """What the probes answer."""
        concepts, units, classes = self.weight.shape
        flat = self.weight.permute(1, 0, 2).reshape(units, concepts * classes)
        return (inputs @ flat).view(-1, concepts, classes) + self.bias


def untrained_probes(units: int, classes: Sequence[int], device: torch.device) -> Probes:
    """Probes that answer the uniform distribution."""
    most = max(classes)
    bias = torch.zeros(len(classes), most, dtype=torch.float64, device=device)
    for concept, own in enumerate(classes):
        bias[concept, own:] = -torch.inf
    return Probes(torch.zeros(len(classes), units, most, dtype=torch.float64, device=device), bias)


def fit_probes(
    inputs: Float[Tensor, "positions units"],
    labels: Int[Tensor, "positions concepts"],
    start: Probes,
    *,
    l1: Float[Tensor, " concepts"] | None = None,
    l2: float = 0.0,
    iterations: int = 2000,
    tolerance: float = 1e-5,
) -> Probes:
    """Minimises mean cross-entropy (nats) + l1 |w|_1 + l2 / 2 |w|^2 of each concept; biases are free.

    Accelerated proximal gradient with restarts. The problem is convex, so `start` matters for time only. It stops when
    no gradient step would move a weight by more than `tolerance` / L, L the largest curvature.

    Args:
        inputs: standardised, float64.
        labels: values `0 .. classes - 1` of each concept.
        start: where to begin.
        l1: a strength for each concept; None means 0.
        l2: the strength for all.
        iterations: at most.
        tolerance: of the gradient, in nats per unit of weight.

    Returns:
        the probes.

    Source: Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm", 2009; restarts: O'Donoghue and
    Candes, 2015.
    """
    ones = inputs.new_ones(len(inputs), 1)
    extended = torch.cat([inputs, ones], 1)  # the last weight is the bias
    ruled_out = torch.isinf(start.bias)
    target = torch.nn.functional.one_hot(labels, start.bias.shape[1]).to(inputs)
    # The Hessian of a softmax is at most 1/2.
    curvature = float(torch.linalg.eigvalsh(extended.T @ extended / len(inputs))[-1]) / 2 + l2
    decay = torch.ones(extended.shape[1], 1, dtype=inputs.dtype, device=inputs.device)
    decay[-1] = 0
    threshold = torch.zeros((), dtype=inputs.dtype, device=inputs.device) if l1 is None else l1.view(-1, 1, 1)
    threshold = threshold * decay / curvature
    free = torch.where(ruled_out, 0.0, start.bias)
    current = torch.cat([start.weight, free.unsqueeze(1)], 1)
    point, momentum = current, torch.ones(len(current), 1, 1, dtype=inputs.dtype, device=inputs.device)
    flatten = current.shape[1]
    for iteration in range(iterations):
        logits = (extended @ point.permute(1, 0, 2).reshape(flatten, -1)).view(target.shape)
        error = logits.masked_fill(ruled_out, -torch.inf).softmax(-1) - target
        gradient = (extended.T @ error.flatten(1) / len(inputs)).view(flatten, len(current), -1).permute(1, 0, 2)
        step = point - (gradient + l2 * decay * point) / curvature
        following = step.sign() * (step.abs() - threshold).clamp(min=0)
        moved = following - current
        # Where the step turns back against the momentum, the momentum starts anew.
        back = ((point - following) * moved).sum((1, 2), keepdim=True) > 0
        gathered = torch.where(back, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
        point = following + torch.where(back, 0.0, (momentum - 1) / gathered) * moved
        current, momentum = following, gathered
        if iteration % 10 == 9 and float(moved.abs().max()) * curvature < tolerance:
            break
    return Probes(current[:, :-1], current[:, -1].masked_fill(ruled_out, -torch.inf))


def standardised(inputs: Float[Tensor, "positions units"], like: Tensor | None = None) -> Tensor:
    """Float64 with mean 0 and deviation 1 of each unit, or by the statistics of `like`; constant units become 0."""
    exact = inputs.to(torch.float64)
    known = exact if like is None else like.to(torch.float64)
    mean, deviation = known.mean(0), known.std(0, correction=0)
    live = deviation > 1e-7 * known.square().mean(0).sqrt()
    return torch.where(live, (exact - mean) / torch.where(live, deviation, 1.0), 0.0)


def probe_savings(
    activations: Float[Tensor, "positions units"],
    labels: Int[Tensor, "positions concepts"],
    classes: Sequence[int],
) -> tuple[list[float], list[float]]:
    """How much a growing linear probe compresses each concept, and its accuracy on the last block, unseen before.

    Blocks double from 1/16 of the positions on. A probe with the L2 penalty 1/2 |w|^2 on the summed cross-entropy is
    fitted to all earlier blocks and codes the next, at the temperature that would have coded the block before best; the
    first block is coded by Krichevsky-Trofimov.

    Args:
        activations: at least 64 positions, in an order that says nothing (shuffled).
        labels: `0 .. classes - 1` for each concept.
        classes: number of values of each concept.

    Returns:
        savings `1 - PCL / PCL_0` and accuracies; NaN for a concept with a single value.
    """
    # The inputs are known to both ends of a code, so their scale may come from all of them.
    inputs = standardised(activations)
    edges = [len(inputs) >> (_BLOCKS - 1 - block) for block in range(_BLOCKS)]
    bits = [float(kt_code_length(_counts(labels[: edges[0], c], own))) for c, own in enumerate(classes)]
    correct = [0.0] * len(classes)
    probes = untrained_probes(inputs.shape[1], classes, inputs.device)
    scales = [1.0] * len(classes)
    for seen, stop in itertools.pairwise(edges):
        probes = fit_probes(inputs[:seen], labels[:seen], probes, l2=1 / seen)
        logits = probes.logits(inputs[seen:stop])
        for concept, own in enumerate(classes):
            answer, truth = logits[:, concept, :own], labels[seen:stop, concept]
            bits[concept] += float(prediction_code_length(answer * scales[concept], truth).sum())
            # What this block would have cost at other temperatures is known by the time the next one is coded.
            scales[concept] = min(_SCALES, key=lambda s: float(prediction_code_length(answer * s, truth).sum()))
            correct[concept] = float((answer.argmax(-1) == truth).double().mean())
    savings = []
    for concept, own in enumerate(classes):
        null = float(kt_code_length(_counts(labels[:, concept], own)))
        savings.append(code_length_saving(bits[concept], null) if own > 1 else torch.nan)
    return savings, [accuracy if own > 1 else torch.nan for accuracy, own in zip(correct, classes, strict=True)]


def _counts(labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels, minlength=classes)
