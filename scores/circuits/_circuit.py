"""Faithful circuit size: how much of a model has to stay for it to go on answering as it does."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from legibility.scores._asking import Forward, call
from legibility.scores.circuits._masked import Granularity, MaskedModel
from legibility.scores.circuits._rankings import by_activation, by_gradient, learned
from legibility.scores.weights._canonical import canonicalise

CIRCUIT_PROTOCOL = "faithful-circuit/2"
"""Version of the protocol; values of different versions or settings must not be compared."""

CONSTANT_BELOW_BITS = 0.05
"""A model that ablating everything changes by less than this counts as constant."""

LEVELS = (0.9, 0.99)
_GRID = 24
_SUB_ABLATIONS = 20
_LEAST_ROWS = 32

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Circuit:
    """What `faithful_circuit` found. A value that couldn't be taken is NaN, and `reason` says why.

    Attributes:
        granularity: "edges" or "nodes": what is counted.
        size_90: smallest share of the live parts with fidelity .9, by the better ranking; lower = simpler.
        size_99: the same with fidelity .99.
        learned_90: the same with fidelity .9 by the learned mask, never above `size_90`: the tighter bound.
        learned_99: the same with fidelity .99.
        area: mean of the fidelity (cut to 0..1) over the logarithm of the size, from 1 part to all; higher = simpler.
        count_90: parts in the circuit of `size_90`.
        count_99: parts in the circuit of `size_99`.
        live: parts whose ablation could change anything: those with a weight and an input that varies.
        divergence: `KL(f || f_none)` in bits per position, of the answers as they are: how much there is to explain.
        stability: lowest fidelity when random halves of what isn't in the circuit of `size_90` are ablated, 20 times;
            below .9 means that the rest only seems idle because its effects cancel.
        ranking: which ranking gave `size_90`.
        curve: pairs of size and fidelity by that ranking.
        masks: the circuit of `size_90`, by layer: 1 for what stays; `(written, read)` for edges, `(read,)` for nodes.
        reason: why there are no values.
        version: of the protocol.
    """

    granularity: Granularity
    size_90: float = math.nan
    size_99: float = math.nan
    learned_90: float = math.nan
    learned_99: float = math.nan
    area: float = math.nan
    count_90: float = math.nan
    count_99: float = math.nan
    live: int = 0
    divergence: float = math.nan
    stability: float = math.nan
    ranking: str | None = None
    curve: Sequence[tuple[int, float]] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    reason: str | None = None
    version: str = CIRCUIT_PROTOCOL


def faithful_circuit(
    model: nn.Module,
    inputs: Tensor,
    *,
    granularity: Granularity = "edges",
    forward: Forward | None = None,
    mask: Tensor | None = None,
    learned_steps: int = 200,
    batch_size: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Circuit:
    """How little of the model, the rest replaced by its mean, still answers like all of it.

    Protocol `faithful-circuit/2`. The model is canonicalised, so that rescaling its units changes nothing, and its logits
    are divided so that what varies in them has the RMS 3, so that sharpening or flattening the answers changes nothing
    (in protocol 1, sharp ones had smaller circuits). A set `M` of
    parts stays, the others are mean-ablated; its fidelity is

        fid(M) = 1 - KL(f || f_M) / KL(f || f_none)

    1 for everything, 0 for nothing, negative for a part that misleads. Parts are ranked by what they carry
    (`|w| std(h)`, in units of what reaches one unit of their layer) and by gradient (`|w dL/dw|`, integrated from nothing to everything); of both, the one with the
    smaller circuit counts. Then a mask is learned by gradient descent, as a tighter bound. Rankings and masks use the
    first half of the inputs, fidelities the second half.

    Faithfulness is to the model itself, not to the task: an untrained network has small circuits for the task too. Even
    so, only the comparison with the same architecture untrained says that a circuit is small because of training.

    Edges are weights of `nn.Linear`, and pairs of channels of ungrouped `nn.Conv1d/2d/3d` (GPT-2's `Conv1D` counts as
    linear); nodes are the units that these read, the input's features included. Other parts (norms, embeddings, a fused
    attention's projections, recurrent layers) always stay: compare only models of one architecture.

    Card:
        Range and direction: sizes in (0, 1], lower = a smaller part explains the behaviour. NaN for a model that ablating
        everything changes by less than .05 bits, of its answers as they are (a constant one).
        Cost: about 150 evaluations of the second half, 5 gradients on the first half, and `learned_steps` steps.
        Control: the same architecture untrained.
        Gamed by: widening a network with idle parts (they are live, so the share falls: read the count too).
        Not trained on, unless a mask was learned in training; sparsity training makes it lower in part.

    Args:
        model: any module; it isn't changed.
        inputs: `(N, ...)`, at least 64 rows, on the model's device.
        granularity: what to count.
        forward: `(model, rows of the inputs) -> logits (n, K) or (n, T, K)`; None calls the model.
        mask: bool `(N,)` or `(N, T)`, True where a position counts; None means all.
        learned_steps: optimizer steps for the learned mask; 0 leaves it out.
        batch_size: rows per call.
        seed: of the sub-ablations and of the learned mask's batches.
        progress: called with what is going on and the share done.

    Returns:
        the sizes, the curve, the circuit.

    Raises:
        ValueError: for too few inputs, a mask that empties one half, logits that aren't finite or have another shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import faithful_circuit
        >>> model = nn.Linear(8, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.zeros(2, 8))
        ...     model.weight[0, 0] = 3.0  # all depends on one feature
        ...     model.weight[0, 1:] = 0.01
        >>> inputs = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        >>> found = faithful_circuit(model, inputs, granularity="nodes", learned_steps=0)
        >>> found.count_99, found.live
        (1.0, 8)

    Source: H3 of this project's scores; mean ablation as in Wang et al., "Interpretability in the wild", 2023; the
    gradient as in Hanna, Pezzelle and Belinkov, "Have faith in faithfulness", 2024; the mask as in Gao et al.,
    "Weight-sparse transformers have interpretable circuits", 2025.
    """
    if len(inputs) < 2 * _LEAST_ROWS:
        raise ValueError(f"`inputs` must hold at least {2 * _LEAST_ROWS} rows, got {len(inputs)}: give more.")
    _check_mask(mask, inputs)
    half = len(inputs) // 2
    fit, scored = torch.arange(half), torch.arange(half, len(inputs))
    with _quiet(model) as twin:
        ask = forward if forward is not None else call
        masked = MaskedModel(twin, inputs, ask, mask, granularity, batch_size)
        if not bool(torch.isfinite(masked.log_p[masked.counted]).all()):
            raise ValueError("`model` must answer with finite logits where `mask` is True.")
        for part in (fit, scored):
            if not bool(masked.counted[part].any()):
                raise ValueError("`mask` must leave positions in both halves of the inputs.")
        live = sum(int(found.sum()) for found in masked.live.values())
        whole, fitted = masked.measured(masked.nothing(), scored), masked.measured(masked.nothing(), fit)
        reason = _why_nothing(live, min(whole, fitted))
        if reason is not None:
            return Circuit(granularity, live=live, divergence=whole, reason=reason)
        divergence = whole
        masked.to_one_scale()
        whole, fitted = masked.measured(masked.nothing(), scored), masked.measured(masked.nothing(), fit)
        bar = _Bar(progress, 2 * (_GRID + 16) + learned_steps + _SUB_ABLATIONS)
        rankings = {"weight x activation": by_activation(masked), "gradient": by_gradient(masked, fit)}
        curves = {
            name: _Curve(masked, ranking, scored, whole, bar.named(f"circuit by {name}"))
            for name, ranking in rankings.items()
        }
        best = {level: min(curves, key=lambda name: curves[name].smallest(level)) for level in LEVELS}
        counts = {level: curves[best[level]].smallest(level) for level in LEVELS}
        tight = dict(counts)
        if learned_steps:
            start = rankings[best[0.9]]
            step = bar.named("circuit by learned mask")
            for found in learned(masked, start, fit, fitted, steps=learned_steps, seed=seed, advance=step):
                size = sum(int(each.sum()) for each in found.values())
                if size < max(tight.values()):
                    fidelity = 1 - masked.measured(found, scored) / whole
                    tight = {level: min(n, size) if fidelity >= level else n for level, n in tight.items()}
        curve = curves[best[0.9]]
        circuit = curve.masks(counts[0.9])
        return Circuit(
            granularity,
            size_90=counts[0.9] / live,
            size_99=counts[0.99] / live,
            learned_90=tight[0.9] / live if learned_steps else math.nan,
            learned_99=tight[0.99] / live if learned_steps else math.nan,
            area=max(each.area() for each in curves.values()),
            count_90=float(counts[0.9]),
            count_99=float(counts[0.99]),
            live=live,
            divergence=divergence,
            stability=_stability(masked, circuit, scored, whole, seed, bar.named("stability of the circuit")),
            ranking=best[0.9],
            curve=tuple(sorted(curve.found.items())),
            masks=circuit,
        )


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[nn.Module]:
    """A canonical copy without gradients of its own; outside autocast and inference mode, for masks are learned."""
    with torch.inference_mode(False), torch.enable_grad():
        twin = canonicalise(copy.deepcopy(model)).model.eval().requires_grad_(False)
        with torch.autocast(next((p.device.type for p in twin.parameters()), "cpu"), enabled=False):
            yield twin


def _check_mask(mask: Tensor | None, inputs: Tensor) -> None:
    if mask is not None and (mask.dtype != torch.bool or mask.ndim > 2 or len(mask) != len(inputs)):
        raise ValueError(
            f"`mask` must be bool ({len(inputs)},) or ({len(inputs)}, T), got {mask.dtype} {tuple(mask.shape)}."
        )


def _why_nothing(live: int, whole: float) -> str | None:
    if live == 0:
        return "no linear or convolutional layer was called whose input varies"
    if not whole >= CONSTANT_BELOW_BITS:
        return f"the model is nearly constant: ablating all changes its answers by {whole:.2g} bits"
    return None


class _Bar:
    """Turns evaluations into a share done."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def named(self, name: str) -> Callable[[], None]:
        def advance() -> None:
            self._done += 1
            if self._report is not None:
                self._report(name, min(1.0, self._done / self._total))

        return advance


class _Curve:
    """Fidelity against size by one ranking, evaluated where it is asked for."""

    def __init__(
        self,
        masked: MaskedModel,
        ranking: Mapping[str, Tensor],
        rows: Tensor,
        whole: float,
        advance: Callable[[], None],
    ) -> None:
        self._masked, self._rows, self._whole, self._advance = masked, rows, whole, advance
        live = masked.live
        self._order = torch.cat([ranking[name][live[name]] for name in live]).argsort(descending=True, stable=True)
        self.live = len(self._order)
        self.found: dict[int, float] = {}
        grid = torch.logspace(0, math.log10(self.live), _GRID, dtype=torch.float64)
        for size in sorted({1, self.live, *(round(float(point)) for point in grid)}):
            self.fidelity(min(size, self.live))
        self._smallest = {level: self._search(level) for level in LEVELS}

    def masks(self, size: int) -> dict[str, Tensor]:
        """The first so many parts in the order."""
        keep = torch.zeros(self.live, device=self._order.device)
        keep[self._order[:size]] = 1.0
        found, begin = {}, 0
        for name, live in self._masked.live.items():
            grid = torch.zeros_like(live, dtype=torch.float32)
            count = int(live.sum())
            grid[live] = keep[begin : begin + count]
            begin += count
            found[name] = grid
        return found

    def fidelity(self, size: int) -> float:
        """Of the first so many parts."""
        if size not in self.found:
            self.found[size] = 1 - self._masked.measured(self.masks(size), self._rows) / self._whole
            self._advance()
        return self.found[size]

    def smallest(self, level: float) -> int:
        """The smallest size with that fidelity that was found."""
        return self._smallest[level]

    def _search(self, level: float) -> int:
        sizes = sorted(self.found)
        # Ablating nothing is exact up to rounding.
        high = next((size for size in sizes if self.found[size] >= level), self.live)
        low = max((size for size in sizes if size < high), default=0)
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            if self.fidelity(middle) >= level:
                high = middle
            else:
                low = middle
        return high

    def area(self) -> float:
        """Mean fidelity, cut to 0..1, over the logarithm of the size."""
        sizes = sorted(self.found)
        if len(sizes) == 1:
            return 1.0
        place = torch.tensor(sizes, dtype=torch.float64).log() / math.log(self.live)
        height = torch.tensor([self.found[size] for size in sizes], dtype=torch.float64).clamp(0.0, 1.0)
        return float(torch.trapezoid(height, place))


def _stability(
    masked: MaskedModel,
    circuit: Mapping[str, Tensor],
    rows: Tensor,
    whole: float,
    seed: int,
    advance: Callable[[], None],
) -> float:
    """Lowest fidelity over random halves of the complement."""
    draw = torch.Generator().manual_seed(seed)
    lowest = math.inf
    for _ in range(_SUB_ABLATIONS):
        masks = {}
        for name, kept in circuit.items():
            stays = (torch.rand(kept.shape, generator=draw) < 0.5).to(kept)
            masks[name] = torch.maximum(kept, stays * masked.live[name])
        lowest = min(lowest, 1 - masked.measured(masks, rows) / whole)
        advance()
    return lowest
