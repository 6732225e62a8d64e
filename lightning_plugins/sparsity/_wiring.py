"""Where neurons stand, how long the wires between them are, and which two should change places."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from legibility.lightning_plugins.sparsity.structure._units import Found, Piece


@dataclass(frozen=True, eq=False)
class Wires:
    """The weights between two lines of units.

    Attributes:
        name: The weight's.
        weight: (writers, readers x inner, ...).
        reads: The line that it reads; ``columns`` says which of its columns belong to which unit.
        writes: The line that it writes.
    """

    name: str
    weight: Tensor
    reads: str
    writes: str
    columns: Piece

    def loads(self) -> Tensor:
        """Sum of absolute weights between each two units, (units written, units read), in float32."""
        weight, cut = self.weight.detach(), self.columns.cut
        weight = weight if cut is None else cut.block(weight)
        weight = (weight.full_tensor() if isinstance(weight, DTensor) else weight).float().abs()
        weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        weight = weight if cut is None else cut.total(weight, 0, 1)
        return weight.view(len(weight), self.columns.outer, -1, self.columns.inner).sum((1, 3))


class Wiring:
    r"""Lines of units, evenly spread over a length of 1 each, and the wires between them.

    The price of the wire between units i and j is proportional to :math:`l_0 + \alpha\,|x_i - x_j|`, with mean 1 over
    the wires between two lines.

    Args:
        neurons: The hidden lines with what they read and write; lines before and behind are added.
        nearest: :math:`l_0`.
        slope: :math:`\alpha`.

    Attributes:
        wires: By the name of the weight.
        places: Line -> the place of each unit, 0 to n - 1. Written in place.
    """

    def __init__(self, neurons: Found, nearest: float, slope: float) -> None:
        self.nearest, self.slope = nearest, slope
        self.places: dict[str, Tensor] = {}
        self.wires: dict[str, Wires] = {}
        self._prices: dict[str, Tensor] = {}
        outgoing = {units.outgoing[0].name: (units.name, units.outgoing[0]) for units in neurons}
        rows = {units.incoming[0].name: (units.name, units.incoming[0]) for units in neurons}
        for name in dict.fromkeys([*rows, *outgoing]):
            layer = name.removesuffix(".weight")
            _, piece = rows.get(name) or outgoing[name]
            whole = replace(piece, dim=1, outer=1, inner=1)
            reads, columns = outgoing.get(name, (f"inputs of {layer}", whole))
            self.wires[name] = Wires(name, piece.tensor, reads, layer, columns)
            self.places.setdefault(reads, torch.arange(columns.count))
            self.places.setdefault(layer, torch.arange(piece.shape[0]))

    def positions(self, line: str) -> Tensor:
        """Where each unit of a line stands, in (0, 1)."""
        places = self.places[line]
        return (places + 0.5) / len(places)

    def prices(self, name: str) -> Tensor:
        """The price of each weight, of its shape up to dimensions of size 1; sharded or cut as the weight is."""
        if name not in self._prices:
            wires = self.wires[name]
            each = wires.columns.of_each_slice(self.positions(wires.reads))
            prices = self._price(self.positions(wires.writes)[:, None], each)
            prices = (prices / prices.mean()).view(*prices.shape, *[1] * (len(wires.columns.shape) - 2))
            prices = prices.to(wires.weight.device)
            if wires.columns.cut is not None:
                prices = wires.columns.cut.part(prices)
            if isinstance(wires.weight, DTensor):
                mesh = wires.weight.device_mesh
                prices = DTensor.from_local(prices, mesh, [Replicate()] * mesh.ndim, run_check=False)
                prices = prices.redistribute(placements=wires.weight.placements)
            self._prices[name] = prices
        return self._prices[name]

    def _price(self, here: Tensor, there: Tensor) -> Tensor:
        return self.nearest + self.slope * (here - there).abs()

    def move(self, line: str, places: Tensor) -> None:
        """Gives the units of a line other places."""
        self.places[line] = places
        self._prices = {
            n: p for n, p in self._prices.items() if line not in (self.wires[n].reads, self.wires[n].writes)
        }

    def improve(self, worth: Mapping[str, float]) -> int:
        """Lets every unit, the heaviest first, change places with the one with whom that saves most; once each line.

        Args:
            worth: Name of a weight -> what a unit of its price costs.

        Returns:
            How many pairs changed places.
        """
        loads = {name: wires.loads() * worth[name] for name, wires in self.wires.items()}
        return sum(self._improve(line, loads) for line in self.places)

    def _improve(self, line: str, loads: Mapping[str, Tensor]) -> int:
        slots = (torch.arange(len(self.places[line])) + 0.5) / len(self.places[line])
        costs, weights = torch.zeros(len(slots), len(slots)), torch.zeros(len(slots))
        for name, wires in self.wires.items():
            if line not in (wires.reads, wires.writes):
                continue
            load = loads[name] if line == wires.writes else loads[name].T
            other = self.positions(wires.reads if line == wires.writes else wires.writes)
            # What each unit (row) would cost at each place (column), in the price's own scale.
            here = self.positions(wires.writes)[:, None]
            scale = self._price(here, self.positions(wires.reads)).mean()
            prices = self._price(slots, other[:, None]) / scale
            costs += (load @ prices.to(load.device)).cpu()
            weights += load.sum(1).cpu()
        places, changed = self.places[line].clone(), 0
        for unit in weights.argsort(descending=True, stable=True):
            if weights[unit] == 0:
                break
            own = places[unit]
            staying = costs[unit, own] + costs.gather(1, places[:, None]).flatten()
            saved = staying - costs[unit, places] - costs[:, own]
            best = saved.argmax()
            if saved[best] > 1e-5 * weights[unit]:  # more than rounding
                places[unit], places[best] = places[best].clone(), own.clone()
                changed += 1
        if changed:
            self.move(line, places)
        return changed
