"""Canonical weights: of all weights that make the same function, always the same ones."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from legibility.scores.weights._chains import LINEAR, Step, chains

_SWEEPS = 2000
_SETTLED = 1e-12


@dataclass(frozen=True, eq=False)
class Canonical:
    """What `canonicalise` made of a model.

    Attributes:
        model: a copy with the canonical weights, of the same shapes and dtype: dropped units are zeros there.
        weights: the weights of every linear and convolutional layer by name, float64, without the rows and columns of
            dropped units.
        joined: pairs of layers of which the second reads the units of the first, and nothing else does.
        rescaled: those between which units were balanced.
        folded: norm layers whose statistics or gains went into a neighbour.
        dropped: units that had no influence on the output, by the layer that made them.
        skipped: layers that were left as they are, and why.
        found: how the structure was found: "traced", or by `nn.Sequential`.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    joined: tuple[tuple[str, str], ...] = ()
    rescaled: tuple[tuple[str, str], ...] = ()
    folded: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    found: str = "traced"


def canonicalise(model: nn.Module) -> Canonical:
    """Take out of the weights what doesn't change the function, so that weight scores measure the function's.

    In this order, in evaluation mode and in float64, on a copy:

    1. **Norms folded.** A batch norm right after a linear or convolutional layer goes into that layer, by its running
       statistics. Gain and bias of a layer norm or RMS norm go into the linear layer right after it.
    2. **Dead units dropped.** A unit whose outgoing weights are all zero, and one whose incoming weights are all zero
       (it is constant: what it says goes into the next layer's biases), again and again until none is left.
    3. **Units balanced.** Between two layers with nothing but positively homogeneous operations in between (ReLU, leaky
       ReLU, dropout, pooling, flattening), a unit's incoming weights and bias are multiplied by `s` and its outgoing
       weights divided by it, `s = sqrt(|out| / |in|)`, until all are balanced. Of all rescalings it is the one with the
       smallest sum of squares, and there is only one: networks that differ by a rescaling become equal.

    The structure is read off the graph that `torch.fx` traces; if Python decides there what is called, from each
    `nn.Sequential`. Supported are `nn.Linear` and ungrouped `nn.Conv1d/2d/3d` with weights of their own. A layer whose
    units go elsewhere too (a residual stream), pass through another activation (tanh and GELU allow dropping, not
    balancing) or a norm in between, or whose weights are tied or parametrised, is left as it is and listed in `skipped`.
    Embeddings and norms aren't weights here. Permutations of units aren't undone.

    What is preserved is the function in evaluation mode, up to rounding; the order of a residual stream's basis, tanh's
    signs and the scale in front of a norm are symmetries as well, and are not taken out.

    Args:
        model: any module; it isn't changed.

    Returns:
        the copy, its weights, and what was done.

    Raises:
        ValueError: if a weight isn't finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from legibility.scores import canonicalise
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> with torch.no_grad():  # 8 relu(3 x + 4 y) with the 8 on the way out
        ...     for parameter, value in zip(model.parameters(), [[[3.0, 4.0]], [0.0], [[80.0]], [0.0]]):
        ...         _ = parameter.copy_(torch.tensor(value))
        >>> canonicalise(model).weights["0.weight"]  # norm 5 in, 80 out: s = 4
        tensor([[12., 16.]], dtype=torch.float64)

    Source: Neyshabur, Salakhutdinov and Srebro, "Path-SGD", 2015, for the symmetry; Stock et al., "Equi-normalization of
    neural networks", 2019, for balancing by alternation.
    """
    twin = copy.deepcopy(model).eval()
    layers = {name: module for name, module in twin.named_modules() if isinstance(module, LINEAR)}
    for name, layer in layers.items():
        if not bool(torch.isfinite(layer.weight).all()):
            raise ValueError(f"`model`: '{name}.weight' must be finite.")
    found, how = chains(twin)
    values = _Values()
    folded = [name for chain in found for name in _fold_norms(chain, values)]
    joints = [joint for chain in found for joint in _joints(chain, values)]
    while sum(joint.drop_dead() for joint in joints):
        pass
    dropped = {joint.first.name: joint.dead for joint in joints if joint.dead}
    free = [joint for joint in joints if joint.homogeneous]
    for _ in range(_SWEEPS):
        if max((joint.balance() for joint in free), default=0.0) < _SETTLED:
            break
    weights = {f"{name}.weight": values.of(layer)[0] for name, layer in layers.items()}
    for joint in joints:
        joint.slice_into(weights)
    for joint in joints:  # columns last: rows of the same tensor are gone by then
        joint.slice_columns(weights)
    values.write()
    done = {id(module) for joint in free for module in (joint.first.module, joint.second.module)}
    return Canonical(
        model=twin,
        weights=weights,
        joined=tuple((joint.first.name, joint.second.name) for joint in joints),
        rescaled=tuple((joint.first.name, joint.second.name) for joint in free),
        folded=tuple(folded),
        dropped=dropped,
        skipped={name: _why(name, found) for name, layer in layers.items() if id(layer) not in done},
        found=how,
    )


class _Values:
    """Weight and bias of each layer in float64, written back at the end."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[nn.Module, Tensor, Tensor | None]] = {}

    def of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        if id(layer) not in self._kept:
            bias = None if layer.bias is None else _exact(layer, "bias")
            self._kept[id(layer)] = (layer, _exact(layer, "weight"), bias)
        return self._kept[id(layer)][1:]

    def set(self, layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        self._kept[id(layer)] = (layer, weight, bias)

    @torch.no_grad()
    def write(self) -> None:
        layer: Any
        for layer, weight, bias in self._kept.values():
            layer.weight.copy_(weight)
            if bias is not None and layer.bias is None:  # a folded norm brought one
                layer.bias = nn.Parameter(bias.to(layer.weight))
            elif bias is not None:
                layer.bias.copy_(bias)


def _fold_norms(chain: list[Step], values: _Values) -> Iterator[str]:
    """Folds what can be, and makes the norm say the identity."""
    for index, (first, second) in enumerate(itertools.pairwise(chain)):
        if first.kind == "linear" and second.kind == "batch norm":
            norm, layer = second.module, first.module
            assert norm is not None and layer is not None
            weight, bias = values.of(layer)
            mean, variance = _exact(norm, "running_mean"), _exact(norm, "running_var")
            gain = torch.ones_like(mean) if norm.weight is None else _exact(norm, "weight")
            shift = torch.zeros_like(mean) if norm.bias is None else _exact(norm, "bias")
            if len(mean) != len(weight):
                continue
            scale = gain / (variance + float(norm.eps)).sqrt()  # type: ignore[arg-type]
            before = torch.zeros_like(mean) if bias is None else bias
            values.set(layer, weight * _rows(scale, weight), (before - mean) * scale + shift)
            chain[index + 1] = Step("homogeneous", second.name, nn.Identity(), _same)
            _neutralise(norm)
            yield second.name
        elif first.kind == "gain" and second.kind == "linear" and isinstance(second.module, nn.Linear):
            norm, layer = first.module, second.module
            assert norm is not None
            weight, bias = values.of(layer)
            gain = _exact(norm, "weight")
            if gain.shape != weight.shape[1:]:
                continue
            learnt_shift = getattr(norm, "bias", None)
            if learnt_shift is not None:
                bias = (0.0 if bias is None else bias) + weight @ _exact(norm, "bias")
            values.set(layer, weight * gain, bias)
            with torch.no_grad():
                norm.weight.fill_(1.0)  # type: ignore[operator]
                if learnt_shift is not None:
                    learnt_shift.zero_()
            yield first.name


def _exact(module: nn.Module, name: str) -> Tensor:
    tensor: Tensor = getattr(module, name)
    return tensor.detach().to(torch.float64, copy=True)


def _same(tensor: Tensor) -> Tensor:
    return tensor


@torch.no_grad()
def _neutralise(norm: Any) -> None:
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.eps = 0.0
    if norm.weight is not None:
        norm.weight.fill_(1.0)
        norm.bias.zero_()


def _rows(vector: Tensor, weight: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (weight.ndim - 1))


def _joints(chain: list[Step], values: _Values) -> Iterator["_Joint"]:
    places = [index for index, step in enumerate(chain) if step.kind == "linear"]
    for start, stop in itertools.pairwise(places):
        between = chain[start + 1 : stop]
        if all(step.kind in ("homogeneous", "elementwise", "pool", "flatten") for step in between):
            joint = _Joint(chain[start], chain[stop], between, values)
            if joint.fits:
                yield joint


class _Joint:
    """Two layers, of which the second reads the units of the first and nothing else does."""

    def __init__(self, first: Step, second: Step, between: list[Step], values: _Values) -> None:
        self.first, self.second, self.between, self.values = first, second, between, values
        self.homogeneous = all(step.kind != "elementwise" for step in between)
        self._units = values.of(self._layer(first))[0].shape[0]
        columns = values.of(self._layer(second))[0].shape[1]
        kinds = {step.kind for step in between}
        dense = isinstance(first.module, nn.Linear), isinstance(second.module, nn.Linear)
        if dense == (False, True):
            # A flattened channel is read at every place: so many columns belong to it, side by side.
            self.fits = "flatten" in kinds and columns % self._units == 0
        else:
            # Behind a linear layer the units come last, where a pool would mix them.
            self.fits = columns == self._units and (dense == (False, False) or (all(dense) and "pool" not in kinds))
        self._live = torch.ones(self._units, dtype=torch.bool)

    @staticmethod
    def _layer(step: Step) -> nn.Module:
        assert step.module is not None
        return step.module

    @property
    def dead(self) -> int:
        return int((~self._live).sum())

    def _outgoing(self) -> Tensor:
        """(units, everything that leaves each), a view where it can be."""
        weight = self.values.of(self._layer(self.second))[0]
        return weight.flatten(2).movedim(1, 0).flatten(1) if weight.ndim > 2 else self._by_unit(weight)

    def _by_unit(self, weight: Tensor) -> Tensor:
        return weight.view(weight.shape[0], self._units, -1).movedim(1, 0).flatten(1)

    def _scale_columns(self, scale: Tensor) -> None:
        layer = self._layer(self.second)
        weight, bias = self.values.of(layer)
        if weight.ndim > 2:
            scaled = weight * scale.view(1, -1, *[1] * (weight.ndim - 2))
        else:
            scaled = weight * scale.repeat_interleave(weight.shape[1] // self._units)
        self.values.set(layer, scaled, bias)

    def drop_dead(self) -> int:
        """Zeroes the units that have become dead; returns how many."""
        layer, after = self._layer(self.first), self._layer(self.second)
        weight, bias = self.values.of(layer)
        silent = (weight.flatten(1) == 0).all(1)
        said = torch.zeros(self._units, dtype=torch.float64, device=weight.device) if bias is None else bias.clone()
        for step in self.between:
            if step.apply is not None:
                said = step.apply(said)
        unread = (self._outgoing() == 0).all(1)
        next_weight, next_bias = self.values.of(after)
        # A constant crosses a pool or a padded convolution unchanged only if it is zero.
        plain = next_weight.ndim == 2 and next_bias is not None and all(step.kind != "pool" for step in self.between)
        dead = (unread | (silent & ((said == 0) | plain))) & self._live.to(weight.device)
        if not bool(dead.any()):
            return 0
        if plain:
            assert next_bias is not None
            reads = next_weight.view(next_weight.shape[0], self._units, -1).sum(2)
            absorbed = (dead & silent & ~unread).double() * said
            self.values.set(after, next_weight, next_bias + reads @ absorbed)
        keep = (~dead).double()
        self.values.set(layer, weight * _rows(keep, weight), None if bias is None else bias * keep)
        self._scale_columns(keep)
        self._live &= ~dead.cpu()
        return int(dead.sum())

    def balance(self) -> float:
        """One step towards balance; returns the largest change of a unit's scale, as a logarithm."""
        layer = self._layer(self.first)
        weight, bias = self.values.of(layer)
        incoming = weight.flatten(1).square().sum(1) + (0.0 if bias is None else bias.square())
        outgoing = self._outgoing().square().sum(1)
        live = (incoming > 0) & (outgoing > 0)
        scale = torch.where(live, (outgoing / incoming).nan_to_num(1.0, 1.0) ** 0.25, 1.0)
        self.values.set(layer, weight * _rows(scale, weight), None if bias is None else bias * scale)
        self._scale_columns(1.0 / scale)
        return float(scale.log().abs().max()) if scale.numel() else 0.0

    def slice_into(self, weights: dict[str, Tensor]) -> None:
        name = f"{self.first.name}.weight"
        weights[name] = weights[name][self._live.to(weights[name].device)]

    def slice_columns(self, weights: dict[str, Tensor]) -> None:
        name = f"{self.second.name}.weight"
        columns = weights[name].shape[1]
        weights[name] = weights[name][:, self._live.repeat_interleave(columns // self._units).to(weights[name].device)]


def _why(name: str, found: list[list[Step]]) -> str:
    """Why a layer's units couldn't be balanced on either side."""
    for chain in found:
        for index, step in enumerate(chain):
            if step.name != name:
                continue
            if step.kind != "linear":
                return "grouped, tied, parametrised, or called more than once"
            near = [*chain[index + 1 : index + 2], *chain[max(0, index - 1) : index]]
            others = [s.name for s in near if s.kind not in ("homogeneous", "pool", "flatten", "linear")]
            if others:
                return f"'{others[0]}' beside it isn't positively homogeneous"
            return "no layer beside it in its chain: its units go to several places, or it stands alone"
    return "in no chain that could be found"
