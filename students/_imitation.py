"""What the students of a cohort minimise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from legibility.students._head import Head
from legibility.students._signature import Signature
from legibility.students._statistics import Moments, Reduce, mean_and_variance
from legibility.students._student import Prediction, StudentNetwork
from legibility.students._targets import Target, prepare

Kind = Literal["distribution", "values"]

OUTPUT = ""  # the output's key beside the taps': as a module's name it would be the whole model


@dataclass(frozen=True)
class ImitationLoss:
    """One student's losses on one batch, detached and unweighted; lower is better.

    Attributes:
        output: Scalar. For distributions the mean forward KL(primary || student) of the logits, in nats; for values
            the mean over outputs of squared error / running variance.
        taps: By name, a scalar: the fraction of variance unexplained, mean over live units of
            mean (h - g)^2 / var(h) with the primary's running variance. 0 = matched, 1 = knows no more than the mean.
    """

    output: Tensor
    taps: dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """What one batch asks of every student; the primary's side is computed once.

    Attributes:
        targets: The output under the key `OUTPUT`, and taps by name.
        beliefs: (..., outputs) probabilities of the primary; None for values.
        entropy: Scalar, their summed entropy in nats; 0 for values.
    """

    targets: dict[str, Target]
    beliefs: Tensor | None
    entropy: Tensor

    @property
    def count(self) -> Tensor:
        """Scalar: how many outputs count."""
        return self.targets[OUTPUT].count()


class Imitation:
    """The losses of a cohort, and the running variances by which they are standardised.

    Args:
        signature: What is imitated.
        kind: Whether outputs are logits of a distribution or values.

    Raises:
        ValueError: For an unknown `kind`, or a distribution over a single output.
    """

    def __init__(self, signature: Signature, kind: Kind) -> None:
        if kind not in ("distribution", "values"):
            raise ValueError(f"`kind` must be 'distribution' or 'values', got {kind!r}.")
        if kind == "distribution" and signature.outputs < 2:
            raise ValueError("`kind` 'distribution' needs at least 2 outputs, got 1; give kind='values' for a number.")
        self.signature = signature
        self.kind = kind
        self.moments: dict[str, Moments] = {}

    def lesson(self, output: Tensor, taps: Mapping[str, Tensor], mask: Tensor | None) -> Lesson:
        """Prepare one batch.

        Raises:
            ValueError: For tensors that don't fit the signature.
        """
        expected = 3 if self.signature.per_position else 2
        if output.dim() != expected or output.shape[-1] != self.signature.outputs:
            shape = "(batch, positions, " if self.signature.per_position else "(batch, "
            raise ValueError(
                f"`output` must be {shape}{self.signature.outputs}) as in the first batch, got {tuple(output.shape)}."
            )
        target = prepare(output, self.signature.per_position, mask)
        targets = {OUTPUT: target}
        for name, tap in taps.items():
            if name not in self.signature.taps:
                raise ValueError(f"`taps` must be among {', '.join(self.signature.taps) or 'none'}, got {name!r}.")
            expect = self.signature.taps[name]
            targets[name] = prepare(tap, expect.per_position, mask)
            if targets[name].values.shape[-1] != expect.units:
                raise ValueError(
                    f"tap `{name}` must have {expect.units} units as in the first batch, got {tuple(tap.shape)}; "
                    "leave taps whose size varies out of `taps`."
                )
        if self.kind == "values":
            return Lesson(targets, None, target.values.new_zeros(()))
        log_beliefs = target.values.log_softmax(-1)
        beliefs = log_beliefs.exp()
        # A class ruled out gets a finite logarithm, for 0 log 0 = 0.
        negentropy = (beliefs * log_beliefs.clamp_(min=torch.finfo(log_beliefs.dtype).min)).sum(-1)
        return Lesson(targets, beliefs, -target.sum(negentropy))

    def empty_lesson(self, device: torch.device) -> Lesson:
        """A batch without examples, in which everything appears that there is to imitate."""
        sizes = {OUTPUT: (self.signature.outputs, self.signature.per_position)}
        sizes |= {name: (tap.units, tap.per_position) for name, tap in self.signature.taps.items()}
        targets = {
            name: Target(torch.zeros(0, *([1] if each else []), units, device=device), None)
            for name, (units, each) in sizes.items()
        }
        return Lesson(targets, None, torch.zeros((), device=device))

    def start(self, lesson: Lesson, networks: Mapping[str, StudentNetwork], reduce: Reduce) -> set[str]:
        """Scale the heads by the first batch in which a thing appears; returns what was new."""
        new = {n for n in lesson.targets if n not in self.moments and (n != OUTPUT or self.kind == "values")}
        for name in sorted(new):
            mean, variance = mean_and_variance(lesson.targets[name].rows(), reduce)
            self.moments[name] = Moments(mean, variance)
            for network in networks.values():
                self._head(network, name).set_scale(mean, torch.where(variance > 0, variance.sqrt(), 1.0))
        return new

    def rescaled(self, prediction: Prediction, network: StudentNetwork, new: set[str]) -> Prediction:
        """What `network` would have predicted, had the heads of `new` been scaled before."""
        if not new:
            return prediction
        taps = {n: self._head(network, n).rescale(p) if n in new else p for n, p in prediction.taps.items()}
        output = network.head.rescale(prediction.output) if OUTPUT in new else prediction.output
        return Prediction(output, taps)

    def _head(self, network: StudentNetwork, name: str) -> Head:
        if name == OUTPUT:
            return network.head
        head = network.tap_heads[list(self.signature.taps).index(name)]
        assert isinstance(head, Head)
        return head

    def objective(self, prediction: Prediction, lesson: Lesson) -> tuple[Tensor, Tensor, ImitationLoss]:
        """One student on one batch.

        Returns:
            What to minimise, with gradient: (output loss + mean of the taps' losses) * number of counted outputs;
            the output's share of it, detached; the losses.

        Raises:
            ValueError: If the prediction is of another batch.
        """
        target = lesson.targets[OUTPUT]
        if prediction.output.shape != target.values.shape:
            raise ValueError(
                f"`predictions` must be of the batch whose `output` is {tuple(target.values.shape)}, "
                f"got {tuple(prediction.output.shape)}."
            )
        if lesson.beliefs is not None:
            # KL = cross-entropy - entropy, of which the students share the second: half the time of forward_kl.
            surprise = functional.cross_entropy(
                prediction.output.flatten(0, -2), lesson.beliefs.flatten(0, -2), reduction="none"
            )
            output = target.sum(surprise.view(target.values.shape[:-1])) - lesson.entropy
        else:
            output = self._standardised_error(OUTPUT, target, prediction.output)
        taps = {}
        for name, tap in lesson.targets.items():
            if name != OUTPUT:
                error = self._standardised_error(name, tap, prediction.taps[name])
                taps[name] = error / tap.count().clamp(min=1.0)
        total = output
        if taps:
            total = output + lesson.count * torch.stack(list(taps.values())).mean()
        mean = (output / lesson.count.clamp(min=1.0)).detach()
        return total, output.detach(), ImitationLoss(mean, {name: tap.detach() for name, tap in taps.items()})

    def baseline(self, lesson: Lesson) -> Tensor:
        """The output's sum for a fresh student, which predicts the uniform distribution or the mean."""
        if self.kind == "distribution":
            return lesson.count * math.log(self.signature.outputs) - lesson.entropy
        return self._standardised_error(OUTPUT, lesson.targets[OUTPUT], self.moments[OUTPUT].shift)

    def _standardised_error(self, name: str, target: Target, predicted: Tensor) -> Tensor:
        return target.sum((target.values - predicted).square() @ self.moments[name].weights)

    def add_sums(self, lesson: Lesson | None, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a batch adds to the step's sums, for every running moment in one order; 0 for what isn't there."""
        targets = {} if lesson is None else lesson.targets
        added = {}
        for name, moments in self.moments.items():
            total = sums.get(name, moments.shift.new_zeros(2 * moments.shift.numel() + 1))
            added[name] = total + moments.sums(targets[name].values, targets[name].mask) if name in targets else total
        return added

    def update(self, sums: Mapping[str, Tensor]) -> None:
        """Take in one step's sums."""
        for name, moments in self.moments.items():
            moments.update(sums[name])

    def state_dict(self) -> dict[str, Any]:
        """The running moments, by name."""
        return {name: moments.state_dict() for name, moments in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over what `state_dict` gave."""
        self.moments = {name: Moments.from_state_dict(entry, device) for name, entry in state.items()}
