"""Active-path cross-talk: do the paths that an input takes through the units lead to one output, or to all of them?"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from legibility.scores._asking import BATCH, Forward, call
from legibility.scores._of_model import CollectedScore
from legibility.scores.weights._canonical import Canonical, canonicalise
from legibility.scores.weights._graph import Layers, named_runs


@dataclass(frozen=True)
class PathCrosstalk:
    """What `path_crosstalk` found. NaN with a `reason`.

    Attributes:
        value: `crosstalk / null`, lower = less cross-talk than the same weights in other places have.
        crosstalk: chance that two paths of one input, drawn by their weight, end at different outputs; 1 = as if each went
            to all outputs alike.
        null: mean of the same with each unit's outgoing weights led to other units of the next layer.
        null_spread: their standard deviation.
        null_lowest: the lowest of them.
        unit_activity: mean share of the inputs at which an inner unit is at work (not zero).
        reason: why there is no value; empty otherwise.
    """

    value: float = math.nan
    crosstalk: float = math.nan
    null: float = math.nan
    null_spread: float = math.nan
    null_lowest: float = math.nan
    unit_activity: float = math.nan
    reason: str = ""


def path_crosstalk(
    model: nn.Module, inputs: Tensor, *, forward: Forward | None = None, nulls: int = 50, seed: int = 0
) -> PathCrosstalk:
    r"""Cross-talk of the active paths from inputs to outputs.

        P = |W_L| A_{L-1} |W_{L-1}| ... A_1 |W_1|,   p_oi = P_oi / sum_o P_oi
        cross-talk = [1 - sum_i r_i sum_o p_oi^2] / (1 - 1/O),   r_i = sum_o P_oi / sum P

    `W` are the layers of the largest run in which each reads the units of the one before, `A_l` diagonal: the share of
    the inputs at which a unit is at work (not exactly zero). A path's weight is the product of the weights on it, and of
    how often its units are at work.

    Card:
        Range and direction: of the cross-talk [0, 1], of `value`, its share of the null, [0, inf), lower = an input's paths
        lead to few outputs. NaN for a run of fewer than 2 layers,
        one output, or paths that are all zero (a constant model). Cost: one pass over the inputs.
        Controls: each unit's outgoing weights led elsewhere (inside), and a random-init model. Dense networks, trained or not, are
        near 1, and so are their nulls: a value that isn't below all nulls says nothing. Rescaling units, and temperature,
        change nothing.
        Gamed by: cutting inputs off altogether (they have no path, so no weight in the mean): read it beside the task
        loss. Paths may cancel, which their sizes don't show. Depth mixes: compare equal depths only.
        Not trained on, unless weights were made sparse by a term; then in part.

    Args:
        model: any module; it isn't changed.
        inputs: `(N, ...)`, on its device.
        forward: `(model, rows of the inputs) -> output`; None calls the model.
        nulls: how many shuffled copies.
        seed: of shuffling.

    Returns:
        the cross-talk and its null.

    Raises:
        ValueError: as `canonicalise`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import path_crosstalk
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.eye(4)), net[2].weight.copy_(torch.eye(4))
        >>> path_crosstalk(net, torch.randn(64, 4)).crosstalk
        0.0

    Source: of this project; paths as in Neyshabur et al., "Path-SGD", 2015.
    """
    found = canonicalise(model)
    runs = named_runs(found)
    if not runs or len(runs[0]) < 2:
        return PathCrosstalk(reason="no two layers follow one another with nothing else in between")
    run = max(runs, key=lambda each: sum(weight.numel() for weight in each.values()))
    layers = list(run.values())
    outputs = len(layers[-1])
    if outputs < 2:
        return PathCrosstalk(reason="there is one output: no other to talk to")
    shares = _activity(found, run, inputs, call if forward is None else forward)
    crosstalk = _crosstalk(layers, shares)
    if math.isnan(crosstalk):
        return PathCrosstalk(reason="no path leads from an input to an output")
    draw = torch.Generator().manual_seed(seed)
    cpu = [weight.cpu() for weight in layers]
    of_null = torch.tensor([_crosstalk(_redirected(cpu, draw), shares) for _ in range(nulls)], dtype=torch.float64)
    null = float(of_null.mean())
    return PathCrosstalk(
        crosstalk / null if null > 0 else math.nan,
        crosstalk,
        null,
        float(of_null.std()) if nulls > 1 else math.nan,
        float(of_null.min()),
        float(torch.cat(shares).mean()),
    )


def _redirected(layers: Layers, draw: torch.Generator) -> Layers:
    """Each unit's weights to other units of the next layer: how much a unit says, and hears, stays."""
    found = []
    for weight in layers:
        order = torch.rand(weight.shape, generator=draw).argsort(0)
        found.append(weight.gather(0, order))
    return found


def _crosstalk(layers: Layers, shares: list[Tensor]) -> float:
    paths = layers[0]
    for weight, share in zip(layers[1:], shares, strict=True):
        paths = weight @ (share.to(paths).unsqueeze(1) * paths)
    total, by_input = paths.sum(), paths.sum(0)
    if not bool(total > 0):
        return math.nan
    same = (paths.square().sum(0) / by_input.clamp(min=torch.finfo(paths.dtype).tiny)).sum() / total
    return float((1 - same).clamp(min=0) / (1 - 1 / len(paths)))


@torch.no_grad()
def _activity(found: Canonical, run: Mapping[str, Tensor], inputs: Tensor, ask: Forward) -> list[Tensor]:
    """Share of the inputs at which each inner unit of the run isn't zero, by layer."""
    modules = dict(found.model.named_modules())
    names = list(run)
    counts: dict[str, Tensor] = {}
    totals: dict[str, int] = {}

    def look(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            active = args[0].detach() != 0
            active = active.flatten(0, -2) if isinstance(modules[name], nn.Linear) else active.flatten(2).any(-1)
            counts[name] = counts.get(name, torch.zeros((), device=active.device)) + active.double().sum(0)
            totals[name] = totals.get(name, 0) + len(active)

        return hook

    handles = [modules[name].register_forward_pre_hook(look(name)) for name in names[1:]]
    try:
        for rows in torch.split(inputs, BATCH):
            ask(found.model, rows)
    finally:
        for handle in handles:
            handle.remove()
    shares = []
    for before, name in itertools.pairwise(names):
        read, units = modules[name].get_parameter("weight"), len(modules[before].get_parameter("weight"))
        # A flattened channel has many places.
        used = (read != 0).transpose(0, 1).flatten(1).any(1).view(units, -1).any(1)
        share = counts[name].view(units, -1).mean(1) / totals[name]
        shares.append((share[used] if int(used.sum()) == run[name].shape[1] else share).cpu())
    return shares


class CrosstalkOfPaths(CollectedScore):
    """`path_crosstalk` of one model on everything that `update` was given (its card is there), rank after rank.

    `update(inputs)`; `compute()` gives float64 scalars: `"value"`, `"crosstalk"`, `"null"`, `"null_spread"`,
    `"null_lowest"`, `"unit_activity"`.

    Args:
        model: any module, the same on all ranks.
        forward_call: `(model, rows) -> output`; None calls the model.
        nulls: how many shuffled copies.
        seed: of shuffling.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import CrosstalkOfPaths
        >>> score = CrosstalkOfPaths(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        >>> score.update(torch.randn(64, 4))
        >>> bool(0 < score.compute()["crosstalk"] <= 1)
        True
    """

    higher_is_better: bool | None = False

    columns = ("inputs",)

    def __init__(
        self,
        model: nn.Module,
        *,
        forward_call: Forward | None = None,
        nulls: int = 50,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.settings: dict[str, Any] = {"forward": forward_call, "nulls": nulls, "seed": seed}

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs."""
        self._collect(inputs=inputs)

    def measured(self, model: nn.Module, columns: Mapping[str, Tensor | None]) -> dict[str, float]:
        """The cross-talk on all inputs."""
        inputs = columns["inputs"]
        assert inputs is not None
        found = path_crosstalk(model, inputs, **self.settings)
        names = ("value", "crosstalk", "null", "null_spread", "null_lowest", "unit_activity")
        return {name: float(getattr(found, name)) for name in names}
