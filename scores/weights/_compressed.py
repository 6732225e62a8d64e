"""Compressed size at tolerance: in how few bits the weights can be written before the task suffers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores._asking import Forward, call
from legibility.scores.imitation._temperature import match_temperature
from legibility.scores.weights._canonical import Canonical, canonicalise

COMPRESSION_PROTOCOL = "compressed-size/1"
"""Version of the protocol; values of different versions or settings must not be compared."""

BITS = (1, 2, 3, 4, 5, 6, 8, 32)
"""Bits per kept weight that are tried; 32 leaves them as they are."""

_RESAMPLES = 1000
_CLOSE = 1.02  # shares are searched to within this factor
_COARSE, _POINTS = 1.5, 14  # where the search starts: more weights aren't always better, for small ones round badly
_LEAST_EXAMPLES = 32
_SURE = 3.0


@dataclass(frozen=True)
class CompressedSize:
    """What `compressed_size` found. A value that couldn't be taken is NaN, and `reason` says why.

    Attributes:
        bits: `nnz b + log2 C(N, nnz)` of the smallest code whose loss is near enough, lower = simpler.
        share: `bits / (32 N0)`, `N0` the number of weights before dead units were dropped.
        kept: share of weights that aren't zero there.
        bits_per_weight: of those kept.
        rise: mean loss minus the full model's, in the loss's units.
        bound: upper 95 % bound of that rise, at most the tolerance.
        weights: `N`: weights in the matrices, without dropped units.
        tolerance: eps.
        reason: why there are no values.
        version: of the protocol.
    """

    bits: float = math.nan
    share: float = math.nan
    kept: float = math.nan
    bits_per_weight: float = math.nan
    rise: float = math.nan
    bound: float = math.nan
    weights: int = 0
    tolerance: float = math.nan
    reason: str | None = None
    version: str = COMPRESSION_PROTOCOL


def compressed_size(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    tolerance: float = 0.01,
    forward: Forward | None = None,
    mask: Tensor | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> CompressedSize:
    """H5: the fewest bits for the model's weights at a loss that is at most `tolerance` above its own.

    Protocol `compressed-size/1`. The weights are canonicalised. Of all matrices together the largest share `s` stays, by
    size in units of the matrix's RMS, the rest is zero; what stays is rounded to `2^b` evenly spaced values between minus and plus the matrix's
    largest. Over `b` in 1 to 6, 8 and 32 (not rounded) and, `s`, searched from few to many, the least

        nnz b + log2 C(N, nnz)

    counts for which the upper 95 % bound of the rise in loss (bootstrap over examples, paired, one-sided) is within
    `tolerance`. Nothing is fine-tuned. Biases, norms and other vectors stay and aren't counted. The loss is that of the
    logits divided by the temperature at which the full model's is lowest (with one mistake that it didn't make, the
    nearest one, added to the examples, so that there is such a temperature): flattening the answers changes nothing.

    Card:
        Range and direction: (0, 32 N], lower = a simpler set of weights at this loss. NaN where the loss without any weight
        isn't surely (3 standard errors) beyond tolerance: a constant model, and one that hasn't learnt.
        Cost: about 100 evaluations. Control: the same architecture untrained, which has none. Multiplying units of
        ReLU-like layers, dropping in dead ones, and temperature change nothing.
        Gamed by: a worse model, whose loss bears more rounding: compare at one task loss.
        Not trained on; what sparsity training optimised makes it lower: it is "trained on" in part then.

    Args:
        model: any module; it isn't changed.
        inputs: `(N, ...)`, at least 32 rows, on the model's device.
        labels: classes, integers shaped like the logits without classes, for cross-entropy in nats; or values shaped
            like the output, floating point, for the mean squared error.
        tolerance: eps, in the loss's units.
        forward: `(model, rows of the inputs) -> output`; None calls the model.
        mask: bool shaped like `labels` (for classes) or `(N,)`, True where a position counts; None means all.
        batch_size: rows per call.
        seed: of the bootstrap.
        progress: called with what is going on and the share done.

    Returns:
        the smallest code.

    Raises:
        ValueError: for too few inputs, shapes that don't fit, `tolerance` not above 0.

    Example:
        >>> import torch
        >>> from legibility.scores import compressed_size
        >>> model = torch.nn.Linear(64, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        ...     model.weight[0, 0] = 8.0  # one weight of 128
        >>> inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
        >>> found = compressed_size(model, inputs, (inputs[:, 0] < 0).long(), tolerance=0.3)
        >>> found.kept, found.bits_per_weight, round(found.bits, 6)  # 1 bit + log2 128, which of them
        (0.0078125, 1.0, 8.0)

    Source: H5 of this project's scores; Rissanen's two-part code; magnitude pruning as in Han et al., "Deep
    compression", 2016.
    """
    if not 0.0 < tolerance < math.inf:
        raise ValueError(f"`tolerance` must be above 0, got {tolerance}.")
    if len(inputs) < _LEAST_EXAMPLES:
        raise ValueError(f"`inputs` must hold at least {_LEAST_EXAMPLES} rows, got {len(inputs)}: give more.")
    with torch.no_grad():
        found = canonicalise(model)
        losses = _Losses(forward, inputs, labels, mask, batch_size)
        losses.calibrate(found.model)
        whole = losses(found.model)
        if not bool(torch.isfinite(whole).all()):
            raise ValueError("`model` must have a finite loss where `mask` is True.")
        search = _Search(found, losses, whole, tolerance, seed)
        if search.before == 0:
            return CompressedSize(tolerance=tolerance, reason="the model has no weight matrices")
        if search.total == 0 or not search.worth > tolerance:
            reason = "without any weight the loss is about as good: the model is constant or hasn't learnt"
            return CompressedSize(weights=search.total, tolerance=tolerance, reason=reason)
        best = (math.inf, 0, 0)
        for step, bits in enumerate(reversed(BITS)):
            if progress is not None:
                progress(f"compressed size at {bits} bits", step / len(BITS))
            count = search.fewest(bits, best[0])
            if count is not None:
                best = min(best, (code_bits(count, search.total, bits), count, bits))
        rise, bound = search.bound(best[1], best[2])
        return CompressedSize(
            bits=best[0],
            share=best[0] / (32 * search.before),
            kept=best[1] / search.total,
            bits_per_weight=float(best[2]),
            rise=rise,
            bound=bound,
            weights=search.total,
            tolerance=tolerance,
        )


def code_bits(count: int, total: int, bits: int) -> float:
    """`nnz b + log2 C(N, nnz)`: the values, and which of the weights they are.

    Example:
        >>> round(code_bits(2, 4, 8), 4)  # 16 + log2 6
        18.585
    """
    choices = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return count * bits + choices / math.log(2)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Weights at the middle of `2^b` equal parts of [-max, max]; zeros stay, 32 bits leave all as they are.

    The step is `2 max / 2^b`, the mean squared error of evenly spread weights `step^2 / 12`.

    Example:
        >>> rounded(torch.tensor([-1.0, 0.0, 0.3, 0.9]), bits=1)
        tensor([-0.5000,  0.0000,  0.5000,  0.5000])
    """
    largest = weight.abs().max()
    if bits >= 32 or not bool(largest > 0):
        return weight
    step = 2 * largest / 2**bits
    half = 2 ** (bits - 1)
    middle = ((weight / step).floor().clamp(-half, half - 1) + 0.5) * step
    return torch.where(weight == 0, 0.0, middle)


class _Losses:
    """The loss of each example."""

    def __init__(
        self, forward: Forward | None, inputs: Tensor, labels: Tensor, mask: Tensor | None, batch_size: int
    ) -> None:
        if len(labels) != len(inputs):
            raise ValueError(f"`labels` must hold as many rows as `inputs`, {len(inputs)}, got {len(labels)}.")
        self.forward, self.inputs, self.labels, self.mask = forward, inputs, labels, mask
        self.batch_size, self.temperature = batch_size, 1.0

    def calibrate(self, model: nn.Module) -> None:
        """Fixes the temperature, of classes."""
        if self.labels.is_floating_point():
            return
        logits, labels = [], []
        for rows in torch.split(torch.arange(len(self.inputs)), self.batch_size):
            output, target, keep = self._classes(model, rows)
            logits.append(output[keep])
            labels.append(target[keep])
        answers, true = torch.cat(logits), torch.cat(labels)
        if not len(true) or not bool(torch.isfinite(answers).all()) or answers.shape[-1] < 2:
            return
        own = answers.gather(-1, true.unsqueeze(-1))
        others = answers.scatter(-1, true.unsqueeze(-1), -math.inf)
        nearest = int((own - others.amax(-1, keepdim=True)).argmin())
        answers = torch.cat([answers, answers[nearest : nearest + 1]])
        true = torch.cat([true, others[nearest].argmax(-1, keepdim=True)])
        best = match_temperature(answers, true, 0.0)
        self.temperature = best if math.isfinite(best) else 1.0

    def __call__(self, model: nn.Module) -> Tensor:
        rows = torch.split(torch.arange(len(self.inputs)), self.batch_size)
        found = torch.cat([self._of(model, part) for part in rows])
        return found if self.mask is None else found[self.mask.reshape(len(self.mask), -1).any(1)]

    def _of(self, model: nn.Module, rows: Tensor) -> Tensor:
        if self.labels.is_floating_point():
            output, values = self._output(model, rows), self.labels[rows]
            if output.shape == (*values.shape, 1):
                output = output.squeeze(-1)
            if output.shape != values.shape:
                shape = tuple(output.shape)
                raise ValueError(f"`labels` must be shaped like the output {shape}, got {tuple(values.shape)}.")
            return (output.double() - values.double()).square().reshape(len(rows), -1).mean(1)
        logits, labels, keep = self._classes(model, rows)
        each = functional.cross_entropy(
            (logits / self.temperature).flatten(0, -2), labels.flatten(), reduction="none"
        ).view(labels.shape)
        return (each * keep).reshape(len(rows), -1).sum(1) / keep.reshape(len(rows), -1).sum(1).clamp(min=1)

    def _classes(self, model: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits in float64, labels, and which count."""
        output, labels = self._output(model, rows), self.labels[rows]
        mask = None if self.mask is None else self.mask[rows]
        if output.shape[:-1] != labels.shape or (mask is not None and mask.shape != labels.shape):
            shape = tuple(output.shape[:-1])
            raise ValueError(f"`labels` and `mask` must have the shape of the logits without classes {shape}.")
        keep = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
        return output.double(), labels.where(keep, 0), keep

    def _output(self, model: nn.Module, rows: Tensor) -> Tensor:
        inputs = self.inputs[rows]
        return (call if self.forward is None else self.forward)(model, inputs)


def _rms(weight: Tensor) -> float:
    """Of the weights that aren't zero; 1 if all are."""
    exact = weight[weight != 0].double()
    return float(exact.square().mean().sqrt()) if len(exact) else 1.0


class _Search:
    """Compresses the model by so many weights and bits and measures it; remembers what it measured."""

    def __init__(self, found: Canonical, losses: _Losses, whole: Tensor, tolerance: float, seed: int) -> None:
        self._model, self._losses, self._whole, self._tolerance = found.model, losses, whole, tolerance
        self._matrices = {name: p for name, p in found.model.named_parameters() if p.ndim >= 2}
        self._values = {name: p.detach().clone() for name, p in self._matrices.items()}
        self.before = sum(p.numel() for p in self._matrices.values())
        gone = {
            name: self._matrices[name].numel() - w.numel()
            for name, w in found.weights.items()
            if name in self._matrices
        }
        self.total = self.before - sum(gone.values())
        self._scales = {name: _rms(value) for name, value in self._values.items()}
        parts = [value.abs().flatten().double() / self._scales[name] for name, value in self._values.items()]
        sizes = torch.cat(parts or [torch.zeros(0)])
        self._sizes = sizes.sort(descending=True).values
        self.nonzero = int((sizes > 0).sum())
        draw = torch.Generator().manual_seed(seed)
        picks = torch.randint(len(whole), (_RESAMPLES, len(whole)), generator=draw)
        self._resampled = torch.zeros(_RESAMPLES, len(whole)).scatter_add_(1, picks, torch.ones_like(picks).float())
        self._known: dict[tuple[int, int], tuple[float, float]] = {}
        gain = self._rise(0, 32)
        #: How much the weights lower the loss, surely: mean less three standard errors.
        self.worth = float(gain.mean() - _SURE * gain.std() / math.sqrt(len(gain)))

    def _with_ties(self, count: int) -> int:
        """The smallest number from `count` on that a threshold can keep."""
        return int((self._sizes >= self._sizes[count - 1]).sum()) if count else 0

    def _before_ties(self, count: int) -> int:
        """The largest number below `count` that a threshold can keep."""
        return int((self._sizes > self._sizes[count - 1]).sum())

    def bound(self, count: int, bits: int) -> tuple[float, float]:
        """Mean rise in loss, and its upper bound."""
        if (count, bits) not in self._known:
            rise = self._rise(count, bits)
            means = (self._resampled.double() @ rise) / len(rise)
            bound = float(means.quantile(0.95)) if bool(torch.isfinite(rise).all()) else math.inf
            self._known[count, bits] = float(rise.mean()), bound
        return self._known[count, bits]

    def _rise(self, count: int, bits: int) -> Tensor:
        """Of each example's loss."""
        threshold = self._sizes[count - 1] if count else math.inf
        for name, parameter in self._matrices.items():
            value = self._values[name]
            keep = value.abs().double() / self._scales[name] >= threshold
            parameter.copy_(rounded(torch.where(keep, value, 0.0), bits))
        return (self._losses(self._model) - self._whole).cpu()

    def fewest(self, bits: int, record: float) -> int | None:
        """A smallest number of weights that is near enough at these bits; None if none is, or none beats the record."""
        low = 0
        points = {max(1, round(self.nonzero / _COARSE**step)) for step in range(_POINTS)}
        for high in sorted({self._with_ties(point) for point in points}):
            if code_bits(high, self.total, bits) > record and low:
                return None
            if self.bound(high, bits)[1] <= self._tolerance:
                break
            low = high
        else:
            return None
        while high - low > max(1, (_CLOSE - 1) * high):
            middle = self._with_ties((low + high) // 2)
            if middle == high:  # as large as the last of them are all in between
                middle = self._before_ties(high)
                if middle <= low:
                    break
            if self.bound(middle, bits)[1] <= self._tolerance:
                high = middle
            else:
                low = middle
        return high
